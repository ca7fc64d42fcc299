//! Logging of the long-running subcommands: one line an event on stderr, text or JSON.

use tracing_subscriber::EnvFilter;

/// Starts logging. `RUST_LOG` chooses the level (default `info`), `LOG_FORMAT=json` the form.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(false).init();
    }
}
