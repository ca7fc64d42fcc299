//! What a caller may ask, read from method, path and query: the kubelet's API as API servers use it. Pure.

use http::{Method, StatusCode, Uri};
use jiff::Timestamp;

use super::Refusal;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub namespace: String,
    pub pod: String,
    pub action: Action,
}

/// What to do with the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Health,
    Logs { container: String, options: LogOptions },
    Exec { container: String, options: ExecOptions },
    Attach { container: String, options: ExecOptions },
    PortForward { ports: Vec<u16> },
}

/// Which part of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub since: Option<Since>,
}

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    Seconds(i64),
    Time(Timestamp),
}

/// A command to run, and the streams to connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ExecOptions {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Call {
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self, Refusal> {
        let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
        let mut segments = Vec::new();
        for segment in uri.path().trim_matches('/').split('/') {
            let segment =
                decode(segment, false).ok_or_else(|| bad(format!("the path {} is not UTF-8", uri.path())))?;
            segments.push(segment);
        }
        let query = Query::parse(uri.query().unwrap_or_default())
            .ok_or_else(|| bad("the query is not UTF-8".into()))?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        if !matches!(*method, Method::GET | Method::POST) {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not served here")));
        }
        // exec, attach and port-forward may name the pod's UID before the container; names are enough here.
        let (namespace, pod, action) = match segments.as_slice() {
            ["healthz"] => return Ok(Self { namespace: "".into(), pod: "".into(), action: Action::Health }),
            ["containerLogs", namespace, pod, container] => {
                let container = (*container).to_owned();
                (namespace, pod, Action::Logs { container, options: log_options(&query)? })
            }
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                let options = exec_options(&query);
                if options.command.is_empty() {
                    return Err(bad("exec needs a command".into()));
                }
                (namespace, pod, Action::Exec { container: (*container).to_owned(), options })
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                let container = (*container).to_owned();
                (namespace, pod, Action::Attach { container, options: exec_options(&query) })
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                (namespace, pod, Action::PortForward { ports: ports(&query)? })
            }
            _ => {
                let message = format!("the kubelet server serves no {}", uri.path());
                return Err(Refusal::new(StatusCode::NOT_FOUND, message));
            }
        };
        Ok(Self { namespace: (*namespace).to_owned(), pod: (*pod).to_owned(), action })
    }
}

fn log_options(query: &Query) -> Result<LogOptions, Refusal> {
    let since_time = query.get("sinceTime").map(|text| text.parse().map_err(|_| invalid("sinceTime", text)));
    let since = match since_time.transpose()? {
        Some(time) => Some(Since::Time(time)),
        None => query
            .number("sinceSeconds")?
            .map(|seconds| Since::Seconds(i64::try_from(seconds).unwrap_or(i64::MAX))),
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: query.number("tailLines")?,
        limit_bytes: query.number("limitBytes")?,
        since,
    })
}

/// API servers say `input`, `output` and `error` to kubelets; clients say `stdin`, `stdout` and `stderr`.
fn exec_options(query: &Query) -> ExecOptions {
    let either = |a, b| query.flag(a) || query.flag(b);
    let tty = query.flag("tty");
    ExecOptions {
        command: query.all("command").map(str::to_owned).collect(),
        stdin: either("input", "stdin"),
        stdout: either("output", "stdout"),
        // With a terminal there is only one stream.
        stderr: either("error", "stderr") && !tty,
        tty,
    }
}

fn ports(query: &Query) -> Result<Vec<u16>, Refusal> {
    let mut ports = Vec::new();
    for text in query.all("port").chain(query.all("ports")).flat_map(|list| list.split(',')) {
        match text.trim().parse() {
            Ok(port) if port != 0 && !ports.contains(&port) => ports.push(port),
            Ok(port) if port != 0 => {}
            _ => return Err(invalid("port", text)),
        }
    }
    Ok(ports)
}

fn invalid(parameter: &str, value: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, format!("{value:?} is no value for {parameter}"))
}

/// A query string's parameters, in order.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Option<Self> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name, true)?, decode(value, true)?))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next().filter(|value| !value.is_empty())
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "TRUE" | "t"))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        self.get(name).map(|text| text.parse().map_err(|_| invalid(name, text))).transpose()
    }
}

/// Percent-decoding; `plus` where a plus stands for a space. `None` for what is not UTF-8 afterwards.
fn decode(text: &str, plus: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |digit: u8| char::from(digit).to_digit(16);
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push((hex(*high)? * 16 + hex(*low)?) as u8);
                rest = tail;
            }
            (b'+', tail) if plus => {
                bytes.push(b' ');
                rest = tail;
            }
            (other, tail) => {
                bytes.push(*other);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<Call, Refusal> {
        Call::parse(&Method::GET, &path.parse().unwrap())
    }

    #[test]
    fn an_exec_call_says_what_to_run_and_what_to_connect() {
        let call = parse(
            "/exec/shop/web-0/main?command=sh&command=-c&command=echo+a%20%2b&input=1&output=1&tty=1&error=1",
        )
        .unwrap();
        assert_eq!((call.namespace.as_str(), call.pod.as_str()), ("shop", "web-0"));
        let Action::Exec { container, options } = call.action else { panic!("{call:?}") };
        assert_eq!(container, "main");
        assert_eq!(options.command, ["sh", "-c", "echo a +"]);
        assert!(options.stdin && options.stdout && options.tty);
        assert!(!options.stderr, "a terminal has one stream");
    }

    #[test]
    fn the_pods_uid_may_stand_in_the_path() {
        assert!(matches!(
            parse("/exec/shop/web-0/0123-uid/main?command=x").unwrap().action,
            Action::Exec { container, .. } if container == "main"
        ));
        assert!(matches!(
            parse("/portForward/shop/web-0/uid?port=80").unwrap().action,
            Action::PortForward { .. }
        ));
    }

    #[test]
    fn ports_may_come_as_a_list_or_one_by_one() {
        for query in ["port=80&port=90", "port=80,90", "ports=80&ports=90&ports=80"] {
            let action = parse(&format!("/portForward/shop/web-0?{query}")).unwrap().action;
            assert_eq!(action, Action::PortForward { ports: vec![80, 90] }, "{query}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for path in [
            "/portForward/shop/web-0?port=0",
            "/portForward/shop/web-0?port=http",
            "/containerLogs/shop/web-0/main?tailLines=-1",
            "/containerLogs/shop/web-0/main?sinceTime=yesterday",
            "/exec/shop/web-0/main",
            "/exec/shop/web-0/%ff?command=x",
            "/run/shop/web-0/main",
            "/",
        ] {
            let refusal = parse(path).unwrap_err();
            assert!(refusal.status.is_client_error() && !refusal.message.is_empty(), "{path}");
        }
        let refusal = Call::parse(&Method::DELETE, &"/healthz".parse().unwrap()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn log_options_are_read() {
        let call =
            parse("/containerLogs/shop/web-0/main?follow=true&tailLines=5&sinceSeconds=60&limitBytes=9")
                .unwrap();
        let Action::Logs { options, .. } = call.action else { panic!("{call:?}") };
        assert!(options.follow && !options.previous && !options.timestamps);
        assert_eq!((options.tail_lines, options.limit_bytes), (Some(5), Some(9)));
        assert_eq!(options.since, Some(Since::Seconds(60)));
    }
}
