//! Logging of the long-running subcommands: one line an event on stderr, text or JSON.

use tracing_subscriber::EnvFilter;

/// Starts logging. `RUST_LOG` chooses the level (default `info`), `LOG_FORMAT=json` the form.
pub fn init() {
    let filter = filter(std::env::var("RUST_LOG").ok().as_deref());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(false).init();
    }
}

/// The client of the Kubernetes API writes a line at every try while the API is away, a dozen a second; whoever watches
/// says it once. It is heard when it is named.
fn filter(wanted: Option<&str>) -> EnvFilter {
    let wanted = wanted.filter(|wanted| !wanted.is_empty() && EnvFilter::try_new(wanted).is_ok());
    let wanted = wanted.unwrap_or("info");
    let quiet = if wanted.contains("kube_") { "" } else { ",kube_client=off,kube_runtime=off" };
    EnvFilter::new(format!("{wanted}{quiet}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_client_is_silent_unless_it_is_named() {
        let directives = |wanted: Option<&str>| {
            let text = filter(wanted).to_string();
            let mut all: Vec<String> = text.split(',').map(str::to_owned).collect();
            all.sort();
            all
        };
        let quiet = ["info", "kube_client=off", "kube_runtime=off"];
        assert_eq!(directives(None), quiet);
        assert_eq!(directives(Some("")), quiet);
        assert_eq!(directives(Some("control=shout")), quiet);
        assert_eq!(
            directives(Some("control=debug")),
            ["control=debug", "kube_client=off", "kube_runtime=off"]
        );
        assert_eq!(directives(Some("info,kube_client=debug")), ["info", "kube_client=debug"]);
    }
}
