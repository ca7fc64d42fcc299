//! TLS records, sealed and opened where they lie.
//!
//! rustls makes the handshake and hands out the secrets of both directions; from then on a record is a header, a
//! payload that the data path has already put in its place, and a tag. Nothing here copies a payload or allocates.
//! TLS 1.3 (RFC 8446 §5.2) and, where it was allowed, the AES-GCM suites of TLS 1.2 (RFC 5288).

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Payload of a record, at most (RFC 8446 §5.1).
pub const MAX_PAYLOAD: usize = 1 << 14;
/// Before every record: type, version, length.
const HEADER: usize = 5;
/// TLS 1.2 sends half of each nonce along.
const EXPLICIT_NONCE: usize = 8;
const TAG: usize = 16;
/// What a record may be longer than its payload: RFC 8446 §5.2, RFC 5246 §6.2.3.
const EXPANSION_13: usize = 256;
const EXPANSION_12: usize = 2048;
/// Records of one key, at most: well below the 2^24.5 of RFC 8446 §5.5.
const KEY_LIFE: u64 = 1 << 23;

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes of HTTP/2.
    Data,
    /// A warning, or the end.
    Alert,
    /// Tickets and new keys.
    Handshake,
}

impl Content {
    fn of(code: u8) -> Option<Self> {
        match code {
            21 => Some(Self::Alert),
            22 => Some(Self::Handshake),
            23 => Some(Self::Data),
            _ => None,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }
}

/// Why a record cannot be used; the tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is longer than a record may be, or empty where it must not be.
    #[error("a TLS record of {0} bytes")]
    Length(usize),
    /// Its type is not known, or not allowed here.
    #[error("a TLS record of type {0}")]
    Type(u8),
    /// It was altered, or sealed with another key.
    #[error("a TLS record that cannot be decrypted")]
    Decrypt,
    /// The key has been used for as many records as it may.
    #[error("the key of the tunnel is used up")]
    KeyUsedUp,
}

struct Direction {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    tls12: bool,
}

impl Direction {
    fn new(secrets: &(u64, ConnectionTrafficSecrets), tls12: bool) -> Option<Self> {
        let (algorithm, key, iv) = match &secrets.1 {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            // In TLS 1.2 its nonces are made otherwise, and it is not offered there.
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } if !tls12 => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => return None,
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).ok()?;
        let iv = iv.as_ref().try_into().ok()?;
        Some(Self { key: LessSafeKey::new(key), iv, sequence: secrets.0, tls12 })
    }

    fn next_nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, of) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of;
        }
        nonce
    }

    fn aad_12(&self, content: u8, length: usize) -> [u8; 13] {
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..11].copy_from_slice(&[content, 3, 3]);
        aad[11..].copy_from_slice(&(length as u16).to_be_bytes());
        aad
    }
}

/// Seals what we send.
pub struct Sealer(Direction);

impl Sealer {
    /// Nothing when the suite is none of ours.
    pub(super) fn new(secrets: &(u64, ConnectionTrafficSecrets), tls12: bool) -> Option<Self> {
        Direction::new(secrets, tls12).map(Self)
    }

    /// Bytes to leave free before a payload.
    pub fn head(&self) -> usize {
        if self.0.tls12 { HEADER + EXPLICIT_NONCE } else { HEADER }
    }

    /// Bytes to leave free behind a payload.
    pub fn tail(&self) -> usize {
        if self.0.tls12 { TAG } else { 1 + TAG }
    }

    /// Whether it is time for a new key.
    pub fn is_worn(&self) -> bool {
        !self.0.tls12 && self.0.sequence >= KEY_LIFE
    }

    /// Seals the record that fills `record`: the payload lies between [`Sealer::head`] and [`Sealer::tail`].
    pub fn seal(&mut self, record: &mut [u8], content: Content) -> Result<(), RecordError> {
        let direction = &mut self.0;
        let (head, tail) = match direction.tls12 {
            true => (HEADER + EXPLICIT_NONCE, TAG),
            false => (HEADER, 1 + TAG),
        };
        let length = record.len().checked_sub(head + tail).filter(|length| *length <= MAX_PAYLOAD);
        let length = length.ok_or(RecordError::Length(record.len()))?;
        if direction.sequence == u64::MAX {
            return Err(RecordError::KeyUsedUp);
        }
        let nonce = direction.next_nonce();
        let outer = if direction.tls12 { content.code() } else { Content::Data.code() };
        let [high, low] = ((record.len() - HEADER) as u16).to_be_bytes();
        record[..HEADER].copy_from_slice(&[outer, 3, 3, high, low]);
        let sealed = if direction.tls12 {
            record[HEADER..head].copy_from_slice(&nonce[4..]);
            let aad = Aad::from(direction.aad_12(outer, length));
            let nonce = Nonce::assume_unique_for_key(nonce);
            direction.key.seal_in_place_separate_tag(nonce, aad, &mut record[head..head + length])
        } else {
            record[head + length] = content.code();
            let aad = Aad::from([outer, 3, 3, high, low]);
            let nonce = Nonce::assume_unique_for_key(nonce);
            direction.key.seal_in_place_separate_tag(nonce, aad, &mut record[head..=head + length])
        };
        let tag = sealed.map_err(|_| RecordError::KeyUsedUp)?;
        let at = record.len() - TAG;
        record[at..].copy_from_slice(tag.as_ref());
        direction.sequence += 1;
        Ok(())
    }
}

/// Opens what the peer sends.
pub struct Opener(Direction);

impl Opener {
    pub(super) fn new(secrets: &(u64, ConnectionTrafficSecrets), tls12: bool) -> Option<Self> {
        Direction::new(secrets, tls12).map(Self)
    }

    /// Length of the record that `bytes` begin with, header included; nothing while that cannot be told.
    pub fn length(&self, bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(&[content, _, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (least, most) = match self.0.tls12 {
            true => (EXPLICIT_NONCE + TAG, MAX_PAYLOAD + EXPANSION_12),
            false => (1 + TAG, MAX_PAYLOAD + EXPANSION_13),
        };
        let allowed = if self.0.tls12 { Content::of(content).is_some() } else { content == 23 };
        if !allowed {
            return Err(RecordError::Type(content));
        }
        if length < least || length > most {
            return Err(RecordError::Length(length));
        }
        Ok(Some(HEADER + length))
    }

    /// Opens one whole record in place: what it carries, and where in `record` the payload lies.
    pub fn open(&mut self, record: &mut [u8]) -> Result<(Content, std::ops::Range<usize>), RecordError> {
        let direction = &mut self.0;
        if self_length(record) != Some(record.len()) || direction.sequence == u64::MAX {
            return Err(RecordError::Length(record.len()));
        }
        let mut nonce = direction.next_nonce();
        if direction.tls12 {
            let start = HEADER + EXPLICIT_NONCE;
            let length = record.len().checked_sub(start + TAG).ok_or(RecordError::Length(record.len()))?;
            nonce[..4].copy_from_slice(&direction.iv[..4]);
            nonce[4..].copy_from_slice(&record[HEADER..start]);
            let aad = Aad::from(direction.aad_12(record[0], length));
            let nonce = Nonce::assume_unique_for_key(nonce);
            let content = Content::of(record[0]).ok_or(RecordError::Type(record[0]))?;
            let opened = direction.key.open_in_place(nonce, aad, &mut record[start..]);
            let length = opened.map_err(|_| RecordError::Decrypt)?.len();
            if length > MAX_PAYLOAD {
                return Err(RecordError::Length(length));
            }
            direction.sequence += 1;
            return Ok((content, start..start + length));
        }
        let (header, sealed) = record.split_at_mut(HEADER);
        let aad = Aad::from(<[u8; HEADER]>::try_from(&*header).unwrap_or_default());
        let opened = direction.key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, sealed);
        let opened = opened.map_err(|_| RecordError::Decrypt)?;
        // Behind the payload stands its type, and behind that there may be zeros.
        let end = opened.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Type(0))?;
        let content = Content::of(opened[end]).ok_or(RecordError::Type(opened[end]))?;
        if end > MAX_PAYLOAD {
            return Err(RecordError::Length(end));
        }
        direction.sequence += 1;
        Ok((content, HEADER..HEADER + end))
    }
}

fn self_length(record: &[u8]) -> Option<usize> {
    let &[_, _, _, high, low] = record.first_chunk::<HEADER>()?;
    Some(HEADER + usize::from(u16::from_be_bytes([high, low])))
}
