use std::io::Write as _;

use tracing_subscriber::fmt::MakeWriter;

use super::*;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Buffer {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn logged(json: bool, log: impl FnOnce()) -> String {
    let buffer = Buffer::default();
    let layer = tracing_subscriber::fmt::layer().event_format(Lines { json }).with_writer(buffer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
    let mut bytes = buffer.0.lock();
    bytes.flush().unwrap();
    String::from_utf8(std::mem::take(&mut *bytes)).unwrap()
}

fn event() {
    tracing::event!(
        target: "access",
        tracing::Level::INFO,
        src.addr = %"10.0.0.1:5000",
        src.workload = "a \"quoted\"\nname",
        src.identity = None::<&str>,
        bytes_sent = 7u64,
        "connection complete"
    );
}

#[test]
fn texts_are_quoted_addresses_and_numbers_are_not_and_what_is_absent_is_left_out() {
    let line = logged(false, event);
    let (time, rest) = line.split_once('\t').unwrap();
    assert!(time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000000Z".len(), "{time}");
    assert_eq!(
        rest,
        "info\taccess\tconnection complete\tsrc.addr=10.0.0.1:5000 src.workload=\"a \\\"quoted\\\"\\nname\" \
         bytes_sent=7\n"
    );
}

#[test]
fn json_lines_are_flat() {
    let line: Value = serde_json::from_str(&logged(true, event)).unwrap();
    assert_eq!(line["level"], "info");
    assert_eq!(line["scope"], "access");
    assert_eq!(line["message"], "connection complete");
    assert_eq!(line["src.addr"], "10.0.0.1:5000");
    assert_eq!(line["bytes_sent"], 7);
    assert!(line.get("src.identity").is_none());
}

#[test]
fn levels_are_taken_with_either_separator_and_nonsense_is_refused() {
    assert_eq!(check("debug").unwrap(), "debug");
    assert_eq!(check("access=debug").unwrap(), "access=debug");
    assert_eq!(check("access:debug").unwrap(), "access=debug");
    assert_eq!(check("proxy::pool=trace").unwrap(), "proxy::pool=trace");
    assert_eq!(check("proxy::pool:trace").unwrap(), "proxy::pool=trace");
    for text in ["loud", "access=loud", "=", ":"] {
        assert!(check(text).is_err(), "{text}");
    }
}
