//! A connection with its handshake done: who the peer is, and records in both directions.
//!
//! [`client`] and [`server`] make the handshake over anything that reads and writes, with rustls' unbuffered
//! interface, so that not a byte of the peer's is lost in a buffer of somebody else; what comes of it is plain data
//! that any loop can carry on with. The handshake is bounded in time by [`Settings`](crate::Settings).

mod handshake;
mod record;

#[cfg(test)]
mod tests;

use std::fmt;

use mesh::Identity;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use crate::tls::Presented;

pub use handshake::{client, server};
pub use record::{Content, MAX_PAYLOAD, Opener, RecordError, Sealer};

/// What a handshake leaves.
pub struct Secured {
    /// Who the peer has proven to be.
    pub identity: Identity,
    /// Seals what we send.
    pub sealer: Sealer,
    /// Opens what the peer sends.
    pub opener: Opener,
    /// Makes new keys.
    pub keys: Keys,
    /// Bytes of the peer that were already decrypted.
    pub early: Vec<u8>,
    /// Bytes of the peer that were already received, and not decrypted.
    pub received: Vec<u8>,
    pub(crate) presented: Presented,
}

impl Secured {
    /// Whether the peer's certificate has been revoked since.
    pub fn is_revoked(&self) -> bool {
        self.presented.is_revoked()
    }

    /// Asks later whether the peer's certificate has been revoked.
    pub fn certificate(&self) -> PeerCertificate {
        PeerCertificate(self.presented.clone())
    }
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What a peer presented.
#[derive(Clone, Debug)]
pub struct PeerCertificate(Presented);

impl PeerCertificate {
    /// Whether it has been revoked.
    pub fn is_revoked(&self) -> bool {
        self.0.is_revoked()
    }
}

enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// Where new keys come from, and what the peer's messages about keys mean.
pub struct Keys {
    kernel: Box<Kernel>,
    tls12: bool,
    /// The start of a message that has not arrived whole yet.
    partial: Vec<u8>,
}

/// Messages of the handshake after the handshake, at most: tickets are the longest.
const MAX_MESSAGE: usize = 16 << 10;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// KeyUpdate that asks for nothing in return (RFC 8446 §4.6.3).
pub const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// What a message of the peer asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The peer wants us to change our key, too.
    pub new_key: bool,
}

/// A message about keys that cannot be followed; the tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an unexpected TLS message after the handshake")]
pub struct KeyError;

impl Keys {
    /// Follows what the peer says after the handshake; its next records may need a new key.
    pub fn handshake_message(&mut self, bytes: &[u8], opener: &mut Opener) -> Result<Asked, KeyError> {
        if self.tls12 || self.partial.len() + bytes.len() > MAX_MESSAGE {
            return Err(KeyError);
        }
        self.partial.extend_from_slice(bytes);
        let mut asked = Asked::default();
        let mut rest = &self.partial[..];
        while let Some((&[kind, a, b, c], body)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some((body, after)) = body.split_at_checked(length) else { break };
            match (kind, body) {
                // Tunnels are not resumed.
                (NEW_SESSION_TICKET, _) => {}
                // A new key begins with a new record (RFC 8446 §5.1).
                (KEY_UPDATE, [wanted @ (0 | 1)]) if after.is_empty() => {
                    let secrets = match &mut *self.kernel {
                        Kernel::Client(kernel) => kernel.update_rx_secret(),
                        Kernel::Server(kernel) => kernel.update_rx_secret(),
                    };
                    *opener = secrets.ok().and_then(|new| Opener::new(&new, false)).ok_or(KeyError)?;
                    asked.new_key |= *wanted == 1;
                }
                _ => return Err(KeyError),
            }
            rest = after;
        }
        let done = self.partial.len() - rest.len();
        self.partial.drain(..done);
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(asked)
    }

    /// A new key for what we send, to be used right after [`KEY_UPDATE_MESSAGE`].
    pub fn next_sealer(&mut self) -> Result<Sealer, KeyError> {
        let secrets = match &mut *self.kernel {
            Kernel::Client(kernel) => kernel.update_tx_secret(),
            Kernel::Server(kernel) => kernel.update_tx_secret(),
        };
        secrets.ok().and_then(|new| Sealer::new(&new, false)).ok_or(KeyError)
    }
}
