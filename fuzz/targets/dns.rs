//! Whatever a pod asks and whatever a name server answers: it is passed on as it is, it fits, and nothing panics.

use super::{joined, pieces};

pub fn run(input: &[u8]) {
    let pieces = pieces(input);
    let piece = |at: usize| pieces.get(at).map_or(&[][..], |(_, piece)| *piece);
    proxy::exercise_dns(piece(0), piece(1));
}

pub fn examples() -> Vec<Vec<u8>> {
    let question = |kind: u8, with_opt: bool| {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(with_opt)];
        message.extend(b"\x03web\x04shop\x03svc\x07cluster\x05local\0");
        message.extend([0, kind, 0, 1]);
        if with_opt {
            message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        message
    };
    let answer = |kind: u8, count: u8, data: &[u8]| {
        let mut message = question(kind, false);
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        message[7] = count;
        for last in 0..count {
            // The name is that of the question, by a pointer.
            message.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 30, 0, data.len() as u8 + 1]);
            message.extend(data);
            message.push(last);
        }
        message
    };
    let pairs = [
        (question(1, false), answer(1, 1, &[10, 0, 0])),
        (question(1, true), answer(1, 90, &[10, 0, 0])),
        (question(28, true), answer(28, 3, &[0xfd; 15])),
        // SRV: priority, weight, port, target.
        (question(33, true), answer(33, 4, &[0, 0, 0, 0, 0x2a, 0x95, 2, b'n', b'1'])),
        (question(12, false), answer(12, 0, &[])),
        (question(255, false), Vec::new()),
    ];
    pairs.iter().map(|(asked, answered)| joined([(false, &asked[..]), (false, &answered[..])])).collect()
}
