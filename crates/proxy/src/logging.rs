//! The proxy's log: one line an event, tab separated or JSON, in the form that users of Istio's ambient mode know
//! (reference/data-plane.md §10); the level can be changed while it runs.

use std::fmt::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Changes the log level of the running process.
#[derive(Clone)]
pub struct LogHandle(Arc<Mutex<Inner>>);

struct Inner {
    start: String,
    current: String,
    reload: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send>,
}

/// Starts logging to stderr. `RUST_LOG` chooses the level (default `info`), `LOG_FORMAT=json` the form. Nothing when
/// something else logs in this process already.
pub fn init() -> Option<LogHandle> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|filter| EnvFilter::try_new(filter).is_ok());
    let start = wanted.unwrap_or_else(|| "info".to_owned());
    let json = std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json");
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&start));
    let layer = tracing_subscriber::fmt::layer().event_format(Lines { json }).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(layer).try_init().ok()?;
    let reload = move |filter| handle.reload(filter).map_err(|error| error.to_string());
    Some(LogHandle(Arc::new(Mutex::new(Inner { current: start.clone(), start, reload: Box::new(reload) }))))
}

impl LogHandle {
    /// Adds `level` to the filter, after going back to the start when `reset`; an empty level only shows. Scopes may
    /// be written with `=` or, as the command line of Istio does, with `:`.
    pub(crate) fn change(&self, level: &str, reset: bool) -> Result<String, String> {
        let mut inner = self.0.lock();
        let mut filter = if reset { inner.start.clone() } else { inner.current.clone() };
        for clause in level.split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
            let clause = check(clause)?;
            filter = format!("{filter},{clause}");
        }
        if filter != inner.current {
            let parsed = EnvFilter::try_new(&filter).map_err(|error| error.to_string())?;
            (inner.reload)(parsed)?;
            inner.current = filter;
        }
        Ok(inner.current.clone())
    }
}

/// A bare level, or `scope=level`.
fn check(clause: &str) -> Result<String, String> {
    let level = |text: &str| {
        let known = ["off", "error", "warn", "info", "debug", "trace"].contains(&text);
        if known { Ok(text.to_owned()) } else { Err(format!("{text:?} is no level")) }
    };
    let (scope, named) = match (clause.split_once('='), clause.rsplit_once(':')) {
        (Some((scope, named)), _) => (scope, named),
        (None, Some((scope, named))) => (scope.trim_end_matches(':'), named),
        (None, None) => return level(clause),
    };
    Ok(format!("{scope}={}", level(named)?))
}

struct Lines {
    json: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ");
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let scope = event.metadata().target();
        if self.json {
            let mut fields = Json(Map::new());
            event.record(&mut fields);
            let mut line = Map::new();
            line.insert("level".into(), level.into());
            line.insert("time".into(), time.to_string().into());
            line.insert("scope".into(), scope.into());
            line.insert("message".into(), fields.0.remove("message").unwrap_or_default());
            line.extend(fields.0);
            return writeln!(out, "{}", Value::Object(line));
        }
        let mut fields = Text { message: String::new(), fields: String::new() };
        event.record(&mut fields);
        write!(out, "{time}\t{level}\t{scope}\t{}", fields.message)?;
        if !fields.fields.is_empty() {
            write!(out, "\t{}", fields.fields)?;
        }
        writeln!(out)
    }
}

/// `k=v k="text"`: strings are quoted, displayed values and numbers are not.
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value}");
            return;
        }
        let separator = if self.fields.is_empty() { "" } else { " " };
        let _ = write!(self.fields, "{separator}{}={value}", field.name());
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value:?}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, format_args!("{value}"));
    }
}

struct Json(Map<String, Value>);

impl Visit for Json {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
}

#[cfg(test)]
mod tests;
