//! Log files in CRI format, `<RFC3339Nano> stdout|stderr F|P <text>`: bytes in, records out. Pure.

use std::io::{Read, Seek, SeekFrom};

use bytes::{Buf as _, Bytes, BytesMut};
use jiff::Timestamp;

/// A line longer than this is handed on in pieces: a program that never ends its line must not fill memory.
const LONGEST: usize = 256 * 1024;

/// One record, borrowed from the file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node::server) struct Record<'a> {
    /// When it was written, as text; empty when the record is in no known form.
    pub time: &'a str,
    /// Whether it came from standard error.
    pub stderr: bool,
    /// Whether the line ends with this record.
    pub ends_line: bool,
    /// What was written, without the line's end.
    pub text: &'a [u8],
}

impl<'a> Record<'a> {
    /// What is in no known form is a whole line of standard output: better shown than lost.
    fn parse(line: &'a [u8]) -> Self {
        Self::known(line).unwrap_or(Self { time: "", stderr: false, ends_line: true, text: line })
    }

    fn known(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stderr = match parts.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let tag = parts.next()?;
        let partial = tag == b"P" || tag.starts_with(b"P:");
        Some(Self { time, stderr, ends_line: !partial, text: parts.next().unwrap_or_default() })
    }
}

/// Cuts a growing file into records.
#[derive(Debug, Default)]
pub(in crate::node::server) struct Records {
    pending: BytesMut,
}

impl Records {
    /// Takes what was read next and calls `each` for every record that is complete.
    pub fn push(&mut self, read: &[u8], mut each: impl FnMut(Record<'_>)) {
        self.pending.extend_from_slice(read);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            each(Record::parse(&self.pending[..end]));
            self.pending.advance(end + 1);
        }
        if self.pending.len() > LONGEST {
            each(Record::parse(&self.pending));
            self.pending.clear();
        }
    }
}

/// Turns records into what the client asked to see.
#[derive(Debug)]
pub(super) struct View {
    pub timestamps: bool,
    pub since: Option<Timestamp>,
    /// Bytes that may still be sent.
    pub left: Option<u64>,
    /// The last record ended its line: the next one starts with its time.
    pub fresh: bool,
}

impl View {
    /// Adds one record to `out`, as far as the client wants it.
    pub fn add(&mut self, record: &Record<'_>, out: &mut BytesMut) {
        if let (Some(since), Ok(time)) = (self.since, record.time.parse::<Timestamp>())
            && time < since
        {
            return;
        }
        let from = out.len();
        if self.timestamps && self.fresh && !record.time.is_empty() {
            out.extend_from_slice(record.time.as_bytes());
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(record.text);
        if record.ends_line {
            out.extend_from_slice(b"\n");
        }
        self.fresh = record.ends_line;
        if let Some(left) = &mut self.left {
            let fits = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len() - from);
            out.truncate(from + fits);
            *left -= fits as u64;
        }
    }

    /// Whether the client has had all it asked for.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }
}

/// Where the last `lines` lines of a file begin.
pub(super) fn tail(file: &mut (impl Read + Seek), lines: u64) -> std::io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let (mut start, mut seen) = (end, 0);
    let mut block = Vec::new();
    while start > 0 {
        let length = BLOCK.min(start);
        start -= length;
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(length).read_to_end(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let after = start + index as u64 + 1;
            // The end of the last line starts no line.
            if *byte == b'\n' && after < end {
                seen += 1;
                if seen == lines {
                    return Ok(after);
                }
            }
        }
    }
    Ok(0)
}

/// The bytes of a record as one piece of a terminal's or pipe's output.
pub(in crate::node::server) fn output(record: &Record<'_>) -> Bytes {
    let end: &[u8] = if record.ends_line { b"\n" } else { b"" };
    [record.text, end].concat().into()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:01.000000001Z stdout F one\n\
        2026-01-01T00:00:02Z stderr P tw\n\
        2026-01-01T00:00:02Z stderr F o\n\
        2026-01-01T00:00:03Z stdout F \n\
        2026-01-01T00:00:04Z stdout F a b  c\n";

    fn shown(mut view: View, log: &[u8], chunk: usize) -> String {
        let (mut records, mut out) = (Records::default(), BytesMut::new());
        for piece in log.chunks(chunk) {
            records.push(piece, |record| view.add(&record, &mut out));
        }
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn view() -> View {
        View { timestamps: false, since: None, left: None, fresh: true }
    }

    #[test]
    fn lines_come_out_as_the_program_wrote_them_however_the_file_is_read() {
        for chunk in [1, 7, 4096] {
            assert_eq!(shown(view(), LOG, chunk), "one\ntwo\n\na b  c\n");
        }
    }

    #[test]
    fn times_stand_once_a_line() {
        let text = shown(View { timestamps: true, ..view() }, LOG, 4096);
        assert_eq!(text.lines().nth(1), Some("2026-01-01T00:00:02Z two"));
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn older_lines_are_left_out() {
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(shown(View { since, ..view() }, LOG, 4096), "\na b  c\n");
    }

    #[test]
    fn a_limit_cuts_to_the_byte() {
        assert_eq!(shown(View { left: Some(6), ..view() }, LOG, 4096), "one\ntw");
    }

    #[test]
    fn a_record_in_no_known_form_is_shown_whole() {
        assert_eq!(shown(view(), b"hello\nx y z\n\n", 4096), "hello\nx y z\n\n");
    }

    #[test]
    fn a_line_without_end_does_not_fill_memory() {
        let mut records = Records::default();
        let mut seen = 0;
        for _ in 0..10 {
            records.push(&[b'x'; 100_000], |record| seen += record.text.len());
        }
        assert!(seen >= 600_000 && records.pending.len() <= LONGEST);
    }

    #[test]
    fn the_tail_begins_at_a_line() {
        let at = |lines| tail(&mut Cursor::new(b"a\nbb\nccc\n"), lines).unwrap();
        assert_eq!((at(0), at(1), at(2), at(3), at(9)), (9, 5, 2, 0, 0));
        let open_ended = |lines| tail(&mut Cursor::new(b"a\nbb"), lines).unwrap();
        assert_eq!((open_ended(1), open_ended(2)), (2, 0));
        let large: Vec<u8> = (0..50_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let start = tail(&mut Cursor::new(&large), 30_000).unwrap() as usize;
        assert!(large[start..].starts_with(b"20000\n"));
    }
}
