//! Container logs in the format of the container runtime interface: `<RFC3339Nano> stdout|stderr F <line>`.
//!
//! A log that grows past [`LIMIT`] is set aside once as `<name>.1`, so that a lab that runs for days does not
//! fill the memory its files live in.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// How large a log may grow before it is set aside.
const LIMIT: u64 = 10 << 20;
/// The longest line; longer ones are cut into parts tagged `P`.
const LINE: usize = 16 << 10;

/// The log of one run of a container.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: std::fs::File,
    written: u64,
}

impl Log {
    /// Makes the file and what it lies in.
    pub fn create(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = std::fs::File::create(path)?;
        Ok(Self(Arc::new(Mutex::new(Inner { path: path.to_owned(), file, written: 0 }))))
    }

    /// Copies a stream into the log until it ends.
    pub async fn copy(self, stream: &'static str, from: impl AsyncRead + Unpin) {
        let mut from = BufReader::with_capacity(LINE, from);
        let mut line = Vec::new();
        loop {
            let (used, full) = match from.fill_buf().await {
                Ok([]) | Err(_) => break,
                Ok(bytes) => {
                    let room = LINE - line.len();
                    let part = &bytes[..bytes.len().min(room)];
                    match part.iter().position(|&b| b == b'\n') {
                        Some(end) => {
                            line.extend_from_slice(&part[..end]);
                            (end + 1, Some("F"))
                        }
                        None => {
                            line.extend_from_slice(part);
                            (part.len(), (line.len() >= LINE).then_some("P"))
                        }
                    }
                }
            };
            from.consume(used);
            if let Some(tag) = full {
                self.line(stream, tag, &line);
                line.clear();
            }
        }
        if !line.is_empty() {
            self.line(stream, "F", &line);
        }
    }

    fn line(&self, stream: &str, tag: &str, line: &[u8]) {
        let mut inner = self.0.lock();
        let entry = entry(Timestamp::now(), stream, tag, line);
        if inner.written + entry.len() as u64 > LIMIT {
            let aside = inner.path.with_added_extension("1");
            if let Ok(file) =
                std::fs::rename(&inner.path, aside).and_then(|()| std::fs::File::create(&inner.path))
            {
                inner.file = file;
                inner.written = 0;
            }
        }
        // A log that cannot be written must not stop the container: its pipe goes on being read.
        if inner.file.write_all(&entry).is_ok() {
            inner.written += entry.len() as u64;
        }
    }
}

fn entry(now: Timestamp, stream: &str, tag: &str, line: &[u8]) -> Vec<u8> {
    let mut entry = format!("{now:.9} {stream} {tag} ").into_bytes();
    entry.extend_from_slice(line);
    entry.push(b'\n');
    entry
}

/// The last lines of a log without their heads, at most `bytes` of them: for termination messages.
pub fn tail(path: &Path, lines: usize, bytes: usize) -> String {
    let Ok(text) = std::fs::read(path) else { return String::new() };
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(bytes * 4)..]).into_owned();
    let bodies: Vec<&str> = text.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).collect();
    let kept = bodies[bodies.len().saturating_sub(lines)..].join("\n");
    let mut start = kept.len().saturating_sub(bytes);
    while !kept.is_char_boundary(start) {
        start += 1;
    }
    kept[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_kept_and_long_ones_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/0.log");
        let log = Log::create(&path).unwrap();
        let long = "x".repeat(LINE + 3);
        log.copy("stdout", format!("one\n\n{long}\nlast").as_bytes()).await;
        let text = std::fs::read_to_string(&path).unwrap();
        let bodies: Vec<(String, usize)> = text
            .lines()
            .map(|l| {
                let part: Vec<&str> = l.splitn(4, ' ').collect();
                assert_eq!(part[1], "stdout");
                (part[2].to_owned(), part[3].len())
            })
            .collect();
        let expected = [("F", 3), ("F", 0), ("P", LINE), ("F", 3), ("F", 4)];
        assert_eq!(bodies, expected.map(|(t, n)| (t.to_owned(), n)));
        assert_eq!(tail(&path, 2, 100), "xxx\nlast");
    }

    #[test]
    fn an_entry_has_nine_digits_and_utc() {
        let entry = entry("2026-11-25T01:02:03.5Z".parse().unwrap(), "stderr", "F", b"hello");
        assert_eq!(String::from_utf8(entry).unwrap(), "2026-11-25T01:02:03.500000000Z stderr F hello\n");
    }
}
