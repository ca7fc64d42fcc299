//! SPDY/3 header blocks: name/value pairs, all blocks of one direction being one zlib stream that starts from the
//! dictionary of the specification (draft-mbelshe-httpbis-spdy-00, §2.6.10).
//!
//! Blocks that are read may be compressed in any way. Those that are written are kept as they are, in *stored*
//! blocks, which every zlib reader takes: replies here have no headers worth compressing.

use bytes::{BufMut as _, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::frame::Malformed;

/// Larger than any header block that API servers and kubectl send, and a bound on what a block may inflate to.
const LARGEST: usize = 64 * 1024;

/// Header names and values.
pub type Headers = Vec<(String, String)>;

/// The words the dictionary consists of, each behind its length, and the text after them.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding \
    content-language content-length content-location content-md5 content-range content-type date etag expect \
    expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
    location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
    trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK \
    version HTTP/1.1 url public set-cookie keep-alive origin";
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary's 1423 bytes.
pub(super) fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace() {
        // A space within a word is written as an underscore above.
        let word = word.replace('_', " ");
        bytes.put_u32(word.len() as u32);
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(TEXT.as_bytes());
    bytes
}

/// The reading direction.
pub(super) struct Reader {
    stream: Decompress,
}

impl Reader {
    pub fn new() -> Self {
        Self { stream: Decompress::new(true) }
    }

    /// The headers of the next block.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::with_capacity(4096);
        loop {
            if out.len() == out.capacity() {
                if out.len() >= LARGEST {
                    return Err(Malformed("a header block is too large"));
                }
                out.reserve(out.len());
            }
            let (read, written) = (self.stream.total_in(), out.len());
            let status = self.stream.decompress_vec(block, &mut out, FlushDecompress::Sync);
            let consumed = (self.stream.total_in() - read) as usize;
            block = block.get(consumed..).unwrap_or_default();
            match status {
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(_) if block.is_empty() && out.len() < out.capacity() => return Ok(out),
                Ok(_) if consumed == 0 && out.len() == written => {
                    return Err(Malformed("a header block cannot be decompressed"));
                }
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.stream.set_dictionary(&dictionary());
                    set.map_err(|_| Malformed("header blocks start from an unknown dictionary"))?;
                }
                Err(_) => return Err(Malformed("a header block cannot be decompressed")),
            }
        }
    }
}

/// The writing direction.
pub(super) struct Writer {
    started: bool,
}

impl Writer {
    pub fn new() -> Self {
        Self { started: false }
    }

    /// The next block, with `headers`. They must be few: their text is limited to 64 KiB.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> BytesMut {
        let mut plain = BytesMut::new();
        plain.put_u32(headers.len() as u32);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(text.len() as u32);
            plain.put_slice(text.as_bytes());
        }
        let mut block = BytesMut::with_capacity(plain.len() + 12);
        if !std::mem::replace(&mut self.started, true) {
            // zlib: deflate with a 32 KiB window, no dictionary needed to read this.
            block.put_slice(&[0x78, 0x01]);
        }
        for piece in plain.chunks(usize::from(u16::MAX)) {
            block.put_u8(0); // not the last block; stored
            block.put_u16_le(piece.len() as u16);
            block.put_u16_le(!(piece.len() as u16));
            block.put_slice(piece);
        }
        // The mark of a flush, an empty stored block: readers hand on what they have when they see it.
        block.put_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, Malformed> {
    const SHORT: Malformed = Malformed("a header block ends too early");
    fn number(from: &mut &[u8]) -> Option<usize> {
        let (bytes, rest) = from.split_first_chunk::<4>()?;
        *from = rest;
        usize::try_from(u32::from_be_bytes(*bytes)).ok()
    }
    fn text(from: &mut &[u8]) -> Option<String> {
        let length = number(from)?;
        let (bytes, rest) = from.split_at_checked(length)?;
        *from = rest;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
    let count = number(&mut plain).ok_or(SHORT)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = text(&mut plain).ok_or(SHORT)?;
        headers.push((name.to_ascii_lowercase(), text(&mut plain).ok_or(SHORT)?));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// What a client of the specification sends: compressed from the dictionary, flushed after each block.
    fn compressed(stream: &mut Compress, headers: &[(&str, &str)]) -> Vec<u8> {
        let plain = Writer { started: true }.write(headers).split_off(5);
        let plain = &plain[..plain.len() - 5];
        let mut out = Vec::with_capacity(4096);
        stream.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        let bytes = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &bytes {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(bytes.len(), 1423);
        assert_eq!((b << 16) | a, 0xe3c6_a7c2, "the identifier with which SPDY/3 streams begin");
    }

    #[test]
    fn blocks_of_one_stream_are_read_one_after_the_other() {
        let mut stream = Compress::new(Compression::default(), true);
        stream.set_dictionary(&dictionary()).unwrap();
        let mut reader = Reader::new();
        for request in ["0", "1", "2"] {
            let headers = [("streamtype", "data"), ("port", "8080"), ("requestid", request)];
            let read = reader.read(&compressed(&mut stream, &headers)).unwrap();
            let read: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(read, headers);
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let (mut writer, mut reader) = (Writer::new(), Reader::new());
        assert_eq!(reader.read(&writer.write(&[])).unwrap(), []);
        let read = reader.read(&writer.write(&[("Name", "value")])).unwrap();
        assert_eq!(read, [("name".to_owned(), "value".to_owned())]);
    }

    #[test]
    fn each_block_ends_with_the_mark_of_a_flush() {
        let mut writer = Writer::new();
        for block in [writer.write(&[]), writer.write(&[("a", "b")])] {
            assert!(block.ends_with(&[0, 0, 0, 0xff, 0xff]), "Go's reader keeps the data back without it");
        }
    }

    #[test]
    fn a_block_that_inflates_without_end_is_refused() {
        let mut stream = Compress::new(Compression::best(), true);
        let mut bomb = Vec::with_capacity(1 << 20);
        stream.compress_vec(&vec![0; 1 << 24], &mut bomb, FlushCompress::Sync).unwrap();
        assert!(Reader::new().read(&bomb).is_err());
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(Reader::new().read(b"\xff\xff\xff\xff").is_err());
        assert!(parse(b"\x00\x00\x00\x01\x00\x00\x00\x09abc").is_err());
        assert!(parse(b"\xff\xff\xff\xff").is_err());
        assert!(parse(b"").is_err());
    }
}
