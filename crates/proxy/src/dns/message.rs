//! Messages: what a client's question means, whether an answer belongs to it, and how both fit into their size.
//!
//! What the mesh answers is parsed and built with `hickory_proto`. What is relayed stays the bytes that it is: only
//! its id is replaced, and only records at its end are left out when it does not fit. Nothing here does IO, and no
//! bytes, whoever sent them, make it panic.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Asked};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

use super::answer::{Answer, Family, Question};

const HEADER: usize = 12;
/// What every client takes over UDP (RFC 1035 §4.2.1).
const CLASSIC: usize = 512;
/// What fits into a datagram of IPv4.
const LARGEST_DATAGRAM: usize = 65_507;
/// What we tell clients to send at most; nothing on loopback is cut.
const OUR_PAYLOAD: u16 = 4096;
const OPT: u16 = 41;
const TTL: u32 = 30;
/// What precedes the target in a CNAME: a pointer to its owner, type, class, TTL, length.
const CNAME_HEAD: usize = 12;

/// Codes that say that this resolver cannot help, though another may.
const POOR: [u8; 3] = [2, 4, 5];
const FORMERR: u8 = 1;
const NXDOMAIN: u8 = 3;
/// The answer when nothing can be found out.
pub(crate) const SERVFAIL: u8 = 2;

/// A client's message, understood as far as we need to.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    bytes: Bytes,
    question_end: usize,
    kind: RecordType,
    payload: Option<usize>,
    question: Option<Question>,
    asked: Option<SocketAddr>,
}

/// Why there is nothing to be done about a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Not a question at all; answering would only make loops.
    Ignore,
    /// Broken; the answer that says so.
    Malformed(Vec<u8>),
}

/// Whether an answer belongs to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belongs {
    Yes,
    /// But for the case of letters: a resolver that does not keep it, or somebody who guesses.
    ButForCase,
    No,
}

impl Query {
    /// Reads what a client sent.
    pub(crate) fn parse(bytes: Bytes) -> Result<Self, Unreadable> {
        if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
            return Err(Unreadable::Ignore);
        }
        let Some(question_end) = question_end(&bytes) else {
            return Err(Unreadable::Malformed(failure(&bytes, HEADER, false, FORMERR)));
        };
        let kind = match count(&bytes, 0) {
            1 => be16(&bytes, question_end - 4).map_or(RecordType::ZERO, RecordType::from),
            _ => RecordType::ZERO,
        };
        let records = Records::new(&bytes, question_end);
        let opt = records.clone().find(|record| record.section == 2 && record.kind == OPT);
        let payload = opt.map(|opt| usize::from(opt.class).max(CLASSIC));
        // Whatever follows is not for us to understand; who asks in a strange way is relayed in a strange way.
        let question = mesh_question(&bytes);
        Ok(Self { bytes, question_end, kind, payload, question, asked: None })
    }

    /// Notes whom the pod asked, when that is known.
    pub(crate) fn sent_to(mut self, asked: Option<SocketAddr>) -> Self {
        self.asked = asked;
        self
    }

    /// Whom the pod asked, when that is known.
    pub(crate) fn asked(&self) -> Option<SocketAddr> {
        self.asked
    }

    /// The question, if it is one that the mesh may answer.
    pub(crate) fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// The type asked for.
    pub(crate) fn kind(&self) -> RecordType {
        self.kind
    }

    /// Whether asking twice is as good as asking once.
    pub(crate) fn repeatable(&self) -> bool {
        self.op_code() == 0
    }

    /// Whether the answer may take several messages (AXFR, IXFR).
    pub(crate) fn transfer(&self) -> bool {
        self.op_code() == 0 && matches!(self.kind, RecordType::AXFR | RecordType::IXFR)
    }

    fn op_code(&self) -> u8 {
        (self.bytes[2] >> 3) & 0xf
    }

    /// The message under another id.
    pub(crate) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// An answer under the id that the client knows.
    pub(crate) fn restore_id(&self, response: &mut [u8]) {
        if let Some(id) = response.get_mut(..2) {
            id.copy_from_slice(&self.bytes[..2]);
        }
    }

    /// Whether `response` answers this question that was sent as `id`.
    pub(crate) fn belongs(&self, id: u16, response: &[u8]) -> Belongs {
        let header = response.len() >= HEADER
            && response[..2] == id.to_be_bytes()
            && response[2] & 0x80 != 0
            && (response[2] ^ self.bytes[2]) & 0x78 == 0;
        if !header {
            return Belongs::No;
        }
        let asked = &self.bytes[HEADER..self.question_end];
        if count(response, 0) == 0 {
            // Servers that understood nothing repeat nothing; those that found something do.
            let rcode = response[3] & 0xf;
            let excused = !self.repeatable() || !(rcode == 0 || rcode == NXDOMAIN);
            return if asked.is_empty() || excused { Belongs::Yes } else { Belongs::No };
        }
        let Some(end) = question_end(response) else { return Belongs::No };
        let repeated = &response[HEADER..end];
        if count(response, 0) != count(&self.bytes, 0) || repeated.len() != asked.len() {
            Belongs::No
        } else if repeated == asked {
            Belongs::Yes
        } else if count(response, 0) == 1 {
            let (name, rest) = asked.split_at(asked.len() - 4);
            let (repeated, same) = repeated.split_at(repeated.len() - 4);
            if rest == same && name.eq_ignore_ascii_case(repeated) {
                Belongs::ButForCase
            } else {
                Belongs::No
            }
        } else {
            Belongs::No
        }
    }

    /// The mesh's answer.
    pub(crate) fn answered(&self, question: &Question, answer: &Answer) -> Vec<u8> {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.authoritative = true;
        message.metadata.recursion_desired = self.bytes[2] & 1 != 0;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.bytes[3] & 0x10 != 0;
        message.add_query(Asked::query(question.name.clone(), self.kind));
        if let Some(alias) = &answer.alias {
            let cname = RData::CNAME(CNAME(alias.clone()));
            message.add_answer(Record::from_rdata(question.name.clone(), TTL, cname));
        }
        let mut bytes = match message.to_vec() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(%error, "an answer of the mesh cannot be written");
                return self.failed(SERVFAIL);
            }
        };
        self.restore_id(&mut bytes);
        // By hand, since the encoder points at a name only so many times, and a long answer would not fit.
        let owner = match question_end(&bytes) {
            Some(end) if answer.alias.is_some() => end + CNAME_HEAD,
            _ => HEADER,
        };
        let answers = count(&bytes, 1) as usize + answer.addresses.len();
        for ip in &answer.addresses {
            bytes.extend((0xc000 | owner as u16).to_be_bytes());
            let kind = if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA };
            bytes.extend(u16::from(kind).to_be_bytes());
            bytes.extend(u16::from(DNSClass::IN).to_be_bytes());
            bytes.extend(TTL.to_be_bytes());
            match ip {
                IpAddr::V4(ip) => bytes.extend([0, 4].into_iter().chain(ip.octets())),
                IpAddr::V6(ip) => bytes.extend([0, 16].into_iter().chain(ip.octets())),
            }
        }
        // There are at most as many as `answer` allows.
        bytes[6..8].copy_from_slice(&(answers as u16).to_be_bytes());
        if self.payload.is_some() {
            add_opt(&mut bytes);
        }
        bytes
    }

    /// The answer that says that nothing was found out.
    pub(crate) fn failed(&self, rcode: u8) -> Vec<u8> {
        failure(&self.bytes, self.question_end, self.payload.is_some(), rcode)
    }

    /// `response` as it fits into a datagram that this client takes.
    pub(crate) fn fit(&self, response: Vec<u8>) -> Vec<u8> {
        truncate(response, self.payload.unwrap_or(CLASSIC).min(LARGEST_DATAGRAM))
    }
}

/// Whether an answer says that another resolver may do better.
pub(crate) fn poor(response: &[u8]) -> bool {
    response.get(3).is_some_and(|byte| POOR.contains(&(byte & 0xf)))
}

/// Whether an answer says that it is not all.
pub(crate) fn truncated(response: &[u8]) -> bool {
    response.get(2).is_some_and(|byte| byte & 2 != 0)
}

/// The question, when it is a plain one for addresses, and unsigned: nobody could sign our answer.
fn mesh_question(bytes: &[u8]) -> Option<Question> {
    let plain =
        (bytes[2] >> 3) & 0xf == 0 && count(bytes, 0) == 1 && count(bytes, 1) == 0 && count(bytes, 2) == 0;
    // An OPT at most, and a name that is written out, since it is repeated as it is read.
    if !plain || count(bytes, 3) > 1 || !written_out(bytes, HEADER) {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let [query] = &*message.queries else { return None };
    let version = message.edns.as_ref().map_or(0, Edns::version);
    if message.signature.is_some() || !message.additionals.is_empty() || version != 0 {
        return None;
    }
    let family = match query.query_type() {
        RecordType::A => Family::V4,
        RecordType::AAAA => Family::V6,
        _ => return None,
    };
    (query.query_class() == DNSClass::IN).then(|| Question { name: query.name().clone(), family })
}

/// An answer without records.
fn failure(query: &[u8], question_end: usize, edns: bool, rcode: u8) -> Vec<u8> {
    let mut bytes = query[..question_end].to_vec();
    bytes[2] = 0x80 | (query[2] & 0x79);
    bytes[3] = 0x80 | (query[3] & 0x10) | (rcode & 0xf);
    if question_end == HEADER {
        bytes[4..6].fill(0);
    }
    bytes[6..12].fill(0);
    if edns {
        add_opt(&mut bytes);
    }
    bytes
}

/// Adds our OPT to a message that has no additional record yet.
fn add_opt(bytes: &mut Vec<u8>) {
    bytes[11] = 1;
    bytes.push(0);
    bytes.extend(OPT.to_be_bytes());
    bytes.extend(OUR_PAYLOAD.to_be_bytes());
    bytes.extend([0; 6]);
}

/// Leaves out whole records from the end until the message has at most `limit` bytes, keeps its OPT, and marks it.
fn truncate(bytes: Vec<u8>, limit: usize) -> Vec<u8> {
    if bytes.len() <= limit || bytes.len() < HEADER {
        return bytes;
    }
    let end = question_end(&bytes).filter(|end| *end <= limit);
    let Some(mut end) = end else {
        let mut bytes = bytes;
        bytes.truncate(HEADER);
        bytes[2] |= 2;
        bytes[4..].fill(0);
        return bytes;
    };
    let records = Records::new(&bytes, end);
    let opt = records.clone().find(|record| record.section == 2 && record.kind == OPT);
    let opt = opt.map(|opt| &bytes[opt.start..opt.end]).filter(|opt| end + opt.len() <= limit);
    let room = limit - opt.map_or(0, <[u8]>::len);
    let mut kept = [0u16; 3];
    for record in records {
        if record.end > room || record.kind == OPT {
            break;
        }
        end = record.end;
        kept[record.section] += 1;
    }
    let mut short = bytes[..end].to_vec();
    if let Some(opt) = opt {
        short.extend(opt);
        kept[2] += 1;
    }
    // Additional records may be left out without a word (RFC 2181 §9).
    if kept[0] < count(&bytes, 1) || kept[1] < count(&bytes, 2) {
        short[2] |= 2;
    }
    for (section, kept) in kept.into_iter().enumerate() {
        short[6 + 2 * section..8 + 2 * section].copy_from_slice(&kept.to_be_bytes());
    }
    short
}

/// How many entries a section has: 0 questions, 1 answers, 2 authorities, 3 additionals.
fn count(bytes: &[u8], section: usize) -> u16 {
    be16(bytes, 4 + 2 * section).unwrap_or(0)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Where the questions end.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    for _ in 0..count(bytes, 0) {
        at = name_end(bytes, at)? + 4;
    }
    (at <= bytes.len()).then_some(at)
}

/// Whether a name has no pointer to another.
fn written_out(bytes: &[u8], mut at: usize) -> bool {
    loop {
        match bytes.get(at) {
            Some(0) => return true,
            Some(length @ 1..=63) => at += 1 + usize::from(*length),
            _ => return false,
        }
    }
}

fn name_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// A record's place in a message.
struct Place {
    /// 0 answers, 1 authorities, 2 additionals.
    section: usize,
    kind: u16,
    class: u16,
    start: usize,
    end: usize,
}

/// The records of a message as far as they can be read.
#[derive(Clone)]
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    section: usize,
    left: u16,
}

impl<'a> Records<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, section: 0, left: count(bytes, 1) }
    }
}

impl Iterator for Records<'_> {
    type Item = Place;

    fn next(&mut self) -> Option<Place> {
        while self.left == 0 {
            if self.section == 2 {
                return None;
            }
            self.section += 1;
            self.left = count(self.bytes, self.section + 1);
        }
        let start = self.at;
        let fixed = name_end(self.bytes, start)?;
        let (kind, class) = (be16(self.bytes, fixed)?, be16(self.bytes, fixed + 2)?);
        let end = fixed + 10 + usize::from(be16(self.bytes, fixed + 8)?);
        if end > self.bytes.len() {
            return None;
        }
        self.at = end;
        self.left -= 1;
        Some(Place { section: self.section, kind, class, start, end })
    }
}

mod exercise;
pub use exercise::exercise;

#[cfg(test)]
mod tests;
