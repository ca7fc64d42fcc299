//! Header compression (RFC 7541): all of it when reading, the useful part of it when writing.
//!
//! What is written again and again for a tunnel (who sends, to whom) is put into the peer's table once and then named
//! by number, so that a further CONNECT costs a few bytes.

mod huffman;
mod table;

use table::Dynamic;

/// Entries that we let a peer keep with us, in bytes; what every peer may assume (RFC 9113 §6.5.2).
const DECODER_LIMIT: usize = 4096;
/// Entries that we keep with a peer, at most.
const ENCODER_LIMIT: usize = 4096;

/// What one block may say, names of entries that come again and again included: a bomb is not read to its end.
const MOST: usize = 1 << 20;

/// A block that cannot be read; the connection's state is lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

/// Reads header blocks.
#[derive(Debug)]
pub(super) struct Decoder {
    table: Dynamic,
    scratch: (Vec<u8>, Vec<u8>),
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { table: Dynamic::new(DECODER_LIMIT), scratch: Default::default() }
    }

    /// Reads a whole block; `field` is told of each field.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Corrupt> {
        let mut rest = block;
        let mut begun = false;
        let mut said = 0;
        let mut field = |name: &[u8], value: &[u8]| {
            field(name, value);
            said += name.len() + value.len();
            if said > MOST { Err(Corrupt) } else { Ok(()) }
        };
        while let Some(first) = rest.first().copied() {
            match first {
                // §6.1: by number
                0x80.. => {
                    let number = integer(&mut rest, 7)?;
                    let (name, value) = self.table.get(number).ok_or(Corrupt)?;
                    field(name, value)?;
                }
                // §6.3: a new size, only at the start
                0x20..0x40 => {
                    let limit = integer(&mut rest, 5)?;
                    if begun || limit > DECODER_LIMIT {
                        return Err(Corrupt);
                    }
                    self.table.set_limit(limit);
                    continue;
                }
                // §6.2.1: with an entry; §6.2.2 and §6.2.3: without
                _ => {
                    let kept = first & 0x40 != 0;
                    let number = integer(&mut rest, if kept { 6 } else { 4 })?;
                    let (name, value) = &mut self.scratch;
                    name.clear();
                    value.clear();
                    match number {
                        0 => string(&mut rest, name)?,
                        number => name.extend_from_slice(self.table.get(number).ok_or(Corrupt)?.0),
                    }
                    string(&mut rest, value)?;
                    field(name, value)?;
                    if kept {
                        self.table.insert(name.clone(), value.clone());
                    }
                }
            }
            begun = true;
        }
        Ok(())
    }
}

/// Writes header blocks.
#[derive(Debug)]
pub(super) struct Encoder {
    table: Dynamic,
    /// Sizes that the peer has to be told of: the smallest since, and the last.
    resized: Option<(usize, usize)>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { table: Dynamic::new(ENCODER_LIMIT), resized: None }
    }

    /// The peer keeps no more than this.
    pub(super) fn set_limit(&mut self, limit: usize) {
        let limit = limit.min(ENCODER_LIMIT);
        if limit != self.table.limit() {
            let smallest = self.resized.map_or(limit, |(smallest, _)| smallest.min(limit));
            self.resized = Some((smallest, limit));
            self.table.set_limit(limit);
        }
    }

    /// Must be called at the start of each block.
    pub(super) fn begin(&mut self, block: &mut Vec<u8>) {
        if let Some((smallest, last)) = self.resized.take() {
            if smallest < last {
                put_integer(block, 5, 0x20, smallest);
            }
            put_integer(block, 5, 0x20, last);
        }
    }

    /// Writes a field that the static table knows.
    pub(super) fn known(&mut self, block: &mut Vec<u8>, number: usize) {
        put_integer(block, 7, 0x80, number);
    }

    /// Writes a field. `again`: it is likely to come again, and worth an entry. `number`: of the name in the static
    /// table, if it is there.
    pub(super) fn field(
        &mut self,
        block: &mut Vec<u8>,
        number: Option<usize>,
        name: &[u8],
        value: &[u8],
        again: bool,
    ) {
        let found = self.table.find(name, value);
        if let Some((number, true)) = found {
            return put_integer(block, 7, 0x80, number);
        }
        let again = again && self.table.fits(name, value);
        let named = number.or(found.map(|(number, _)| number));
        match named {
            Some(number) if again => put_integer(block, 6, 0x40, number),
            Some(number) => put_integer(block, 4, 0, number),
            None => {
                block.push(if again { 0x40 } else { 0 });
                put_string(block, name);
            }
        }
        put_string(block, value);
        if again {
            self.table.insert(name.to_vec(), value.to_vec());
        }
    }
}

/// §5.1
fn integer(rest: &mut &[u8], prefix: u8) -> Result<usize, Corrupt> {
    let mask = (1_usize << prefix) - 1;
    let (first, mut after) = rest.split_first().ok_or(Corrupt)?;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, more) = after.split_first().ok_or(Corrupt)?;
            after = more;
            if shift > 21 {
                return Err(Corrupt);
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = after;
    Ok(value)
}

/// §5.2
fn string(rest: &mut &[u8], text: &mut Vec<u8>) -> Result<(), Corrupt> {
    let coded = rest.first().ok_or(Corrupt)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (bytes, after) = rest.split_at_checked(length).ok_or(Corrupt)?;
    *rest = after;
    match coded {
        true => huffman::decode(bytes, text).map_err(|_| Corrupt),
        false => {
            text.extend_from_slice(bytes);
            Ok(())
        }
    }
}

fn put_integer(block: &mut Vec<u8>, prefix: u8, flags: u8, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return block.push(flags | value as u8);
    }
    block.push(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        block.push(rest as u8 & 0x7f | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn put_string(block: &mut Vec<u8>, text: &[u8]) {
    put_integer(block, 7, 0, text.len());
    block.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = Vec<(String, String)>;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Corrupt> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
        Ok(fields)
    }

    fn fields(of: &[(&str, &str)]) -> Fields {
        of.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn requests_of_the_rfc_without_and_with_huffman() {
        // Appendix C.3 and C.4
        let plain: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x0fwww.example.com",
            b"\x82\x86\x84\xbe\x58\x08no-cache",
            b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
        ];
        let huffman: [&[u8]; 3] = [
            &[
                0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90,
                0xf4, 0xff,
            ],
            &[0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf],
            &[
                0x82, 0x87, 0x85, 0xbf, 0x40, 0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f, 0x89,
                0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf,
            ],
        ];
        let host = (":authority", "www.example.com");
        let expected = [
            fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), host]),
            fields(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                host,
                ("cache-control", "no-cache"),
            ]),
            fields(&[
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/index.html"),
                host,
                ("custom-key", "custom-value"),
            ]),
        ];
        for blocks in [plain, huffman] {
            let mut decoder = Decoder::new();
            for (block, expected) in blocks.iter().zip(&expected) {
                assert_eq!(&decode(&mut decoder, block).unwrap(), expected);
            }
        }
    }

    #[test]
    fn answers_of_the_rfc_that_push_each_other_out_of_a_small_table() {
        // Appendix C.5, whose table holds 256 bytes, as is said first.
        let date = "Mon, 21 Oct 2013 20:13:21 GMT";
        let later = "Mon, 21 Oct 2013 20:13:22 GMT";
        let location = "https://www.example.com";
        let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
        let first = format!("\x48\x03302\x58\x07private\x61\x1d{date}\x6e\x17{location}");
        let blocks = [
            [&[0x3f, 0xe1, 0x01], first.as_bytes()].concat(),
            [&b"\x48\x03307"[..], &[0xc1, 0xc0, 0xbf]].concat(),
            [
                &[0x88, 0xc1, 0x61, 0x1d],
                later.as_bytes(),
                &[0xc0],
                b"\x5a\x04gzip\x77\x38",
                cookie.as_bytes(),
            ]
            .concat(),
        ];
        let common = [("cache-control", "private"), ("date", date), ("location", location)];
        let expected = [
            [&[(":status", "302")][..], &common].concat(),
            [&[(":status", "307")][..], &common].concat(),
            vec![
                (":status", "200"),
                common[0],
                ("date", later),
                common[2],
                ("content-encoding", "gzip"),
                ("set-cookie", cookie),
            ],
        ];
        let mut decoder = Decoder::new();
        for (block, expected) in blocks.iter().zip(&expected) {
            assert_eq!(decode(&mut decoder, block).unwrap(), fields(expected));
        }
        assert_eq!(decoder.table.get(62).unwrap(), (&b"set-cookie"[..], cookie.as_bytes()));
        assert_eq!(decoder.table.get(65), None, "three are left");
    }

    #[test]
    fn what_comes_again_is_named_by_number() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let baggage = "k8s.namespace.name=monitoring,service.name=prometheus".repeat(4);
        let mut sizes = Vec::new();
        for turn in 0..3 {
            let mut block = Vec::new();
            encoder.begin(&mut block);
            encoder.field(&mut block, Some(2), b":method", b"CONNECT", true);
            encoder.field(&mut block, Some(1), b":authority", b"10.0.0.1:80", true);
            encoder.field(&mut block, None, b"baggage", baggage.as_bytes(), true);
            let port = format!("for=\"10.0.0.2:{turn}\"");
            encoder.field(&mut block, None, b"forwarded", port.as_bytes(), false);
            let expected = [
                (":method", "CONNECT"),
                (":authority", "10.0.0.1:80"),
                ("baggage", &*baggage),
                ("forwarded", &*port),
            ];
            assert_eq!(decode(&mut decoder, &block).unwrap(), fields(&expected));
            sizes.push(block.len());
        }
        assert!(sizes[1] < 40 && sizes[0] > 200, "{sizes:?}");
    }

    #[test]
    fn a_smaller_table_is_told_of_and_obeyed() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let mut block = Vec::new();
        encoder.field(&mut block, None, b"baggage", b"something", true);
        encoder.set_limit(0);
        encoder.set_limit(64);
        let mut second = Vec::new();
        encoder.begin(&mut second);
        encoder.field(&mut second, None, b"baggage", b"something", true);
        assert_eq!(second[..3], [0x20, 0x3f, 0x21], "emptied, then 64");
        for block in [&block, &second] {
            assert_eq!(decode(&mut decoder, block).unwrap(), fields(&[("baggage", "something")]));
        }
    }

    #[test]
    fn blocks_that_make_no_sense_are_refused() {
        for block in [
            &[0x80][..],                                 // number 0
            &[0xbe],                                     // an entry that is not there
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], // a number without end
            &[0x40, 0x05, b'a'],                         // a text without end
            &[0x82, 0x20],                               // a size in the middle
            &[0x3f, 0xe2, 0x1f],                         // a size beyond what was offered
            &[0x40, 0x81, 0x00, 0x00],                   // no Huffman code
        ] {
            assert_eq!(decode(&mut Decoder::new(), block), Err(Corrupt), "{block:x?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_block_makes_it_panic(block: Vec<u8>) {
            let _ = Decoder::new().decode(&block, |_, _| {});
        }
    }
}
