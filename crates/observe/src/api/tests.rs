use axum::body::Body;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::sse::tests::Pulled;
use super::*;
use crate::fixture::Fixture;
use crate::flow::Millis;
use crate::graph::Query;
use crate::ingest::parse::{self, Workloads};
use crate::store::Limits;
use crate::testing::T0;

/// Time as the test sets it.
#[derive(Clone, Default)]
struct Time(Arc<std::sync::atomic::AtomicU64>);

impl Time {
    fn set(&self, now: Millis) {
        self.0.store(now, std::sync::atomic::Ordering::Relaxed);
    }
}

/// An observer of a fixture that ran for two minutes, at its end.
fn observer(pods: usize) -> (Arc<Observer>, Time) {
    let time = Time::default();
    let clock = time.clone();
    let observer = Observer::new(
        Limits::default(),
        Box::new(move || clock.0.load(std::sync::atomic::Ordering::Relaxed)),
    );
    let fixture = Fixture::new(pods, 3);
    let directory = Arc::new(fixture.directory());
    observer.set_directory(directory.clone());
    let end = T0 + 120_000;
    time.set(end);
    observer.with_store(|store| {
        for mut proxy in fixture.proxies() {
            let mut workloads = Workloads::default();
            let hello = proxy.hello(end);
            let greeting =
                parse::greeting(&hello, "spiffe://cluster.local/ns/a/sa/p", &mut store.texts).unwrap();
            let (mut session, _) = store.greet(&greeting, end).unwrap();
            for step in 0..120 {
                let from = T0 + step * 1_000;
                for message in proxy.batches(from, from + 1_000) {
                    let batch = parse::batch(message, &mut workloads, &mut store.texts, &directory).unwrap();
                    store.apply(&mut session, &batch, end, &directory).unwrap();
                }
            }
        }
    });
    observer.set_scrapers(vec![fixture.scraper(end - 5_000).unwrap()]);
    time.set(end + 5_000);
    (Arc::new(observer), time)
}

fn open(observer: &Arc<Observer>) -> Router {
    router(observer.clone(), Gate::Open, Arc::new(|| Ok(())))
}

async fn ask(router: Router, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = Request::builder().uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost:15030");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes().to_vec())
}

async fn get_json(router: Router, path: &str) -> Value {
    let (status, _, body) = ask(router, path, &[]).await;
    assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// Whether a value is what a schema says, unknown fields being wrong too.
fn conforms(spec: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = spec.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference}"));
        return conforms(spec, target, value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let null = choices.iter().any(|choice| choice["type"] == "null");
        if value.is_null() {
            assert!(null, "{at} is null");
            return;
        }
        let other = choices.iter().find(|choice| choice["type"] != "null").unwrap();
        return conforms(spec, other, value, at);
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value} is none of {allowed:?}");
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = |wanted: &str| wanted == kind || (wanted == "number" && kind == "integer");
    match &schema["type"] {
        Value::String(wanted) => assert!(fits(wanted), "{at} is a {kind}, not a {wanted}"),
        Value::Array(wanted) => {
            assert!(wanted.iter().any(|wanted| fits(wanted.as_str().unwrap())), "{at} is a {kind}")
        }
        _ => {}
    }
    if let Value::Array(items) = value {
        for (i, item) in items.iter().enumerate() {
            conforms(spec, &schema["items"], item, &format!("{at}[{i}]"));
        }
    }
    if let Value::Object(fields) = value {
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(fields.contains_key(required.as_str().unwrap()), "{at} has no {required}");
        }
        for (name, field) in fields {
            let described = schema["properties"].get(name);
            conforms(
                spec,
                described.unwrap_or_else(|| panic!("{at}.{name} is not described")),
                field,
                &format!("{at}.{name}"),
            );
        }
    }
}

fn spec() -> Value {
    serde_json::from_str(include_str!("../openapi.json")).unwrap()
}

#[tokio::test]
async fn every_answer_is_as_described() {
    let (observer, _) = observer(60);
    let spec = spec();
    for (path, operation) in [
        ("/api/v1/graph?level=namespace", "/api/v1/graph"),
        ("/api/v1/graph?level=workload&hubs=edges", "/api/v1/graph"),
        ("/api/v1/graph?level=pod&expand=shop&window=60", "/api/v1/graph"),
        ("/api/v1/pairs?source=wl:monitoring/prometheus", "/api/v1/pairs"),
        ("/api/v1/targets", "/api/v1/targets"),
        ("/api/v1/overview", "/api/v1/overview"),
    ] {
        let answer = get_json(open(&observer), path).await;
        let schema =
            &spec["paths"][operation]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        conforms(&spec, schema, &answer, path);
        for list in ["nodes", "edges", "pairs", "targets", "namespaces"] {
            if let Some(items) = answer[list].as_array() {
                assert!(!items.is_empty(), "{path}: {list} is empty, so nothing of it was checked");
            }
        }
    }
}

#[tokio::test]
async fn the_scrapes_of_the_fixture_are_judged_as_they_were_made() {
    let (observer, _) = observer(60);
    let targets = get_json(open(&observer), "/api/v1/targets").await;
    let summary = &targets["summary"];
    assert_eq!((summary["total"].as_u64(), summary["denied"].as_u64()), (Some(60), Some(1)), "{summary}");
    assert_eq!(summary["one_sided"], 1);
    assert!(summary["plaintext"].as_u64() >= Some(2) && summary["proven"].as_u64() >= Some(50), "{summary}");
    let denied = get_json(open(&observer), "/api/v1/targets?proof=denied").await;
    assert!(denied["targets"][0]["why"]["text"].as_str().unwrap().contains("allow-nothing"));
    let overview = get_json(open(&observer), "/api/v1/overview").await;
    assert_eq!(overview["scrapes"], *summary);
    // The same figures everywhere.
    let graph = get_json(open(&observer), "/api/v1/graph").await;
    assert_eq!(graph["coverage"], overview["coverage"]);
    let (_, _, text) = ask(open(&observer), "/metrics", &[]).await;
    let text = String::from_utf8(text).unwrap();
    let line = format!(
        "ambit_scrape_targets{{prometheus=\"monitoring/prometheus-k8s-0\",proof=\"proven\"}} {}",
        summary["proven"]
    );
    assert!(text.contains(&line), "{text}");
}

#[tokio::test]
async fn bad_questions_are_answered_with_what_to_write() {
    let (observer, _) = observer(10);
    for (path, word) in [
        ("/api/v1/graph?level=galaxy", "namespace, workload, pod"),
        ("/api/v1/graph?window=0", "between 10 and 3600"),
        ("/api/v1/graph?window=soon", "no whole number"),
        ("/api/v1/graph?at=99999999999999", "future"),
        ("/api/v1/graph?at=5", "more than an hour"),
        ("/api/v1/graph?state=odd", "proven"),
        ("/api/v1/graph?limit=0", "between 1"),
        ("/api/v1/targets?proof=maybe", "unproven"),
        ("/api/v1/stream?hubs=x", "trunks"),
    ] {
        let (status, _, body) = ask(open(&observer), path, &[]).await;
        let text = String::from_utf8(body).unwrap();
        assert!(status == StatusCode::BAD_REQUEST && text.contains(word), "{path}: {status} {text}");
    }
    let long = format!("/api/v1/graph?q={}", "x".repeat(201));
    assert_eq!(ask(open(&observer), &long, &[]).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(ask(open(&observer), "/api/v2/graph", &[]).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_answer_forbids_other_origins() {
    let (observer, _) = observer(10);
    for path in ["/", "/api/v1/graph", "/api/v1/graph?level=x", "/nothing.js", "/metrics"] {
        let (_, headers, _) = ask(open(&observer), path, &[]).await;
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}");
        assert_eq!(
            (&headers["x-content-type-options"], &headers["x-frame-options"]),
            (&"nosniff".parse().unwrap(), &"DENY".parse().unwrap())
        );
    }
    // A page of somewhere else that had its name point here.
    let (status, ..) = ask(open(&observer), "/api/v1/graph", &[("host", "evil.example")]).await;
    assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn targets_that_have_not_changed_are_not_sent_again() {
    let (observer, time) = observer(10);
    let (status, headers, _) = ask(open(&observer), "/api/v1/targets", &[]).await;
    assert_eq!(status, StatusCode::OK);
    let tag = headers["etag"].to_str().unwrap().to_owned();
    time.set(observer.now() + 2_000);
    let (status, _, body) = ask(open(&observer), "/api/v1/targets", &[("if-none-match", &tag)]).await;
    assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_can_read_that() {
    let (observer, _) = observer(60);
    let (_, headers, plain) =
        ask(open(&observer), "/api/v1/graph", &[("accept-encoding", "br, gzip;q=0")]).await;
    assert!(!headers.contains_key("content-encoding"));
    let (_, headers, packed) =
        ask(open(&observer), "/api/v1/graph", &[("accept-encoding", "br, gzip")]).await;
    assert_eq!(headers["content-encoding"], "gzip");
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).unwrap();
    assert!(unpacked == plain && packed.len() * 4 < plain.len());
}

struct Fake;

impl auth::Reviewer for Fake {
    fn review<'a>(&'a self, token: &'a str) -> futures::future::BoxFuture<'a, auth::Opens> {
        Box::pin(async move {
            match token {
                "admin" => Ok(Some(Visible::All)),
                "shop" => Ok(Some(Visible::Namespaces(["shop".into()].into()))),
                "nobody" => Ok(Some(Visible::Namespaces(Default::default()))),
                "broken" => Err("the API is away".into()),
                _ => Ok(None),
            }
        })
    }
}

#[tokio::test]
async fn beyond_loopback_a_token_opens_only_its_namespaces() {
    let (observer, _) = observer(60);
    let guarded = || router(observer.clone(), Gate::tokens(Arc::new(Fake)), Arc::new(|| Ok(())));
    let host = ("host", "observe.example");
    let status = |token: &'static str| {
        let guarded = guarded();
        async move {
            let bearer = format!("Bearer {token}");
            ask(guarded, "/api/v1/graph", &[host, ("authorization", &bearer)]).await.0
        }
    };
    assert_eq!(ask(guarded(), "/api/v1/graph", &[host]).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(status("wrong").await, StatusCode::UNAUTHORIZED);
    assert_eq!(status("broken").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("nobody").await, StatusCode::FORBIDDEN);
    assert_eq!(status("admin").await, StatusCode::OK);
    assert_eq!(ask(guarded(), "/healthz", &[host]).await.0, StatusCode::OK);
    let bearer = [host, ("authorization", "Bearer shop")];
    let (_, _, body) = ask(guarded(), "/api/v1/pairs", &bearer).await;
    let pairs: Value = serde_json::from_slice(&body).unwrap();
    let all = pairs["pairs"].as_array().unwrap();
    assert!(!all.is_empty());
    for pair in all {
        assert!(pair["source"]["namespace"] == "shop" || pair["target"]["namespace"] == "shop", "{pair}");
    }
    for path in ["/api/v1/targets", "/api/v1/overview"] {
        let (_, _, body) = ask(guarded(), path, &bearer).await;
        let answer: Value = serde_json::from_slice(&body).unwrap();
        let rows = answer["targets"].as_array().or(answer["namespaces"].as_array()).unwrap();
        assert!(!rows.is_empty());
        assert!(rows.iter().all(|row| row["namespace"] == "shop" || row["name"] == "shop"), "{path}");
    }
}

fn api(observer: &Arc<Observer>) -> Api {
    Api { observer: observer.clone(), streams: Arc::default(), ready: Arc::new(|| Ok(())) }
}

#[tokio::test]
async fn the_stream_begins_with_a_snapshot_and_goes_on_where_it_broke() {
    let (observer, time) = observer(30);
    let api = api(&observer);
    let mut stream = Pulled::new(&api, 300, Query::default());
    let first = stream.turn().unwrap();
    assert!(first.contains("snapshot") && !first.contains("delta"));
    assert!(stream.turn().is_none(), "nothing has changed");
    let (sequence, graph) = stream.last().unwrap();
    conforms(
        &spec(),
        &serde_json::json!({ "$ref": "#/components/schemas/Graph" }),
        &serde_json::to_value(&*graph).unwrap(),
        "snapshot",
    );
    drop(stream);
    // The proxies fall silent: everything has an age now.
    time.set(observer.now() + 30_000);
    let mut resumed = Pulled::new(&api, 300, Query::default());
    assert!(resumed.resume(&sequence));
    let next = resumed.turn().unwrap();
    assert!(
        next.contains("delta") && next.contains(&format!("\\\"since\\\":\\\"{sequence}\\\"")),
        "{}",
        &next[..300]
    );
    drop(resumed);
    // Of another question, or too late: a snapshot.
    let mut other = Pulled::new(&api, 60, Query::default());
    assert!(!other.resume(&sequence));
    drop(other);
    time.set(observer.now() + 61_000);
    let mut late = Pulled::new(&api, 300, Query::default());
    assert!(!late.resume(&sequence));
    assert!(late.turn().unwrap().contains("snapshot"));
}

#[tokio::test]
async fn streams_are_bounded_and_give_their_place_back() {
    let (observer, _) = observer(10);
    let api = api(&observer);
    let many: Vec<_> = (0..64).map(|_| Pulled::new(&api, 300, Query::default())).collect();
    assert!(
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Pulled::new(&api, 300, Query::default())))
            .is_err()
    );
    drop(many);
    let _one = Pulled::new(&api, 300, Query::default());
    assert_eq!(observer.counters.streams_live.load(std::sync::atomic::Ordering::Relaxed), 1);
}

/// A browser that does not read for a while: what is sent to it stays in its socket, and nothing else waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_holds_up_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (observer, _) = observer(60);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(crate::serve::serve(listener, open(&observer), "test"));
    let mut stuck = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /api/v1/stream?level=pod HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stuck.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stuck.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    // It reads no more; others are answered, and flows are taken.
    for _ in 0..3 {
        let graph = get_json(open(&observer), "/api/v1/graph").await;
        assert!(!graph["edges"].as_array().unwrap().is_empty());
        observer.with_store(|store| assert!(!store.is_empty()));
    }
    drop(stuck);
    server.abort();
}
