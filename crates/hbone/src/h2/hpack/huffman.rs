//! The Huffman code of header texts (RFC 7541 §5.2, Appendix B).
//!
//! The code is canonical: the lengths alone say what the codes are.

/// Bits of the code of each byte, and of the end of the text.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
    30,
];

const LONGEST: usize = 30;
const END: u16 = 256;

struct Code {
    /// Symbols by length of their code, then by value.
    symbols: [u16; 257],
    /// The first code of each length.
    first: [u32; LONGEST + 1],
    /// Where the symbols of each length start.
    start: [u16; LONGEST + 1],
    /// How many symbols have each length.
    count: [u16; LONGEST + 1],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut code =
        Code { symbols: [0; 257], first: [0; LONGEST + 1], start: [0; LONGEST + 1], count: [0; LONGEST + 1] };
    let (mut length, mut at, mut next) = (1, 0, 0_u32);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = at as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                code.symbols[at] = symbol as u16;
                at += 1;
                next += 1;
                code.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// Not a text in this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotHuffman;

/// Appends the text that `coded` stands for.
pub(super) fn decode(coded: &[u8], text: &mut Vec<u8>) -> Result<(), NotHuffman> {
    let (mut bits, mut length) = (0_u32, 0_usize);
    for byte in coded {
        for shift in (0..8).rev() {
            bits = bits << 1 | u32::from(byte >> shift & 1);
            length += 1;
            let offset = bits.wrapping_sub(CODE.first[length]);
            if bits >= CODE.first[length] && offset < u32::from(CODE.count[length]) {
                let symbol = CODE.symbols[usize::from(CODE.start[length]) + offset as usize];
                if symbol == END {
                    return Err(NotHuffman);
                }
                text.push(symbol as u8);
                (bits, length) = (0, 0);
            } else if length == LONGEST {
                return Err(NotHuffman);
            }
        }
    }
    // Padding is the start of the code of the end, all ones and shorter than a byte.
    if length > 7 || bits != (1 << length) - 1 { Err(NotHuffman) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &[u8]) -> Vec<u8> {
        let (mut coded, mut bits, mut length) = (Vec::new(), 0_u64, 0);
        for byte in text {
            let long = LENGTHS[usize::from(*byte)] as usize;
            let range = usize::from(CODE.start[long])..usize::from(CODE.start[long] + CODE.count[long]);
            let at = CODE.symbols[range].iter().position(|symbol| *symbol == u16::from(*byte)).unwrap();
            bits = bits << long | u64::from(CODE.first[long] + at as u32);
            length += long;
            while length >= 8 {
                length -= 8;
                coded.push((bits >> length) as u8);
            }
        }
        if length > 0 {
            coded.push(((bits << (8 - length)) as u8) | (0xff >> length));
        }
        coded
    }

    #[test]
    fn examples_of_the_rfc() {
        // RFC 7541 Appendix C.4 and C.6
        for (coded, text) in [
            (
                &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], "custom-key"),
            (&[0x64, 0x02], "302"),
        ] {
            let mut decoded = Vec::new();
            decode(coded, &mut decoded).unwrap();
            assert_eq!(String::from_utf8(decoded).unwrap(), text);
            assert_eq!(encode(text.as_bytes()), coded);
        }
    }

    #[test]
    fn all_bytes_come_back() {
        let text: Vec<u8> = (0..=255).collect();
        let mut decoded = Vec::new();
        decode(&encode(&text), &mut decoded).unwrap();
        assert_eq!(decoded, text);
    }

    #[test]
    fn padding_that_is_none_and_the_end_in_the_middle_are_refused() {
        for coded in [&[0xff, 0xff, 0xff, 0xff][..], &[0xff], &[0x00], &[0x64, 0x02, 0xff]] {
            assert_eq!(decode(coded, &mut Vec::new()), Err(NotHuffman), "{coded:x?}");
        }
    }
}
