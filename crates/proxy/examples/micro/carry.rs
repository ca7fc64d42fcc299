//! What the data path does with bytes between two sockets, the sockets left out: from plaintext to frame to record, and
//! back. Both ends of a tunnel are in it.

use std::hint::black_box;
use std::net::SocketAddr;

use hbone::h2::{Config, Connection, Event, Key};
use hbone::secured::{Content, Secured};
use hbone::{Credential, Head, Settings};
use mesh::{Authority, Identity};
use rustls_pki_types::PrivateKeyDer;

/// Before the payload of a frame (RFC 9113 §4.1).
const FRAME: usize = 9;

struct Pair {
    client: Connection,
    server: Connection,
    events: Vec<Event>,
    head: Head,
}

impl Pair {
    fn new() -> anyhow::Result<Self> {
        let config = Config::from(&Settings::default());
        let head = Head::to(Authority::Address("10.0.0.2:8080".parse()?));
        let (client, server) = (Connection::client(config), Connection::server(config));
        let mut pair = Self { client, server, events: Vec::new(), head };
        pair.talk()?;
        pair.talk()?;
        Ok(pair)
    }

    /// Each hears what the other one has to say; the last key that a request or an answer was about.
    fn talk(&mut self) -> anyhow::Result<Option<Key>> {
        let mut asked = None;
        for turn in 0..2 {
            let (from, to) = match turn {
                0 => (&mut self.client, &mut self.server),
                _ => (&mut self.server, &mut self.client),
            };
            to.receive(from.output(), &mut self.events)?;
            from.output().clear();
            for event in self.events.drain(..) {
                if let Event::Request { stream, .. } = event {
                    to.accept(stream, None);
                    asked = Some(stream);
                }
            }
        }
        Ok(asked)
    }

    fn open(&mut self) -> anyhow::Result<(Key, Key)> {
        let near = self.client.open(&self.head, 1).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let far = self.talk()?.ok_or_else(|| anyhow::anyhow!("the server was not asked"))?;
        Ok((near, far))
    }
}

/// The life of a stream: CONNECT, its answer, both ends of it.
pub fn stream() -> anyhow::Result<Box<dyn FnMut()>> {
    let mut pair = Pair::new()?;
    let mut step = move || -> anyhow::Result<()> {
        let (near, far) = pair.open()?;
        for (stream, client) in [(near, true), (far, false)] {
            let end = if client { &mut pair.client } else { &mut pair.server };
            let header = end.data(stream, 0, true);
            end.output().extend_from_slice(&header);
            pair.talk()?;
        }
        pair.client.release(near);
        pair.server.release(far);
        pair.talk()?;
        Ok(())
    };
    step()?;
    Ok(Box::new(move || black_box(step()).unwrap_or_else(|error| panic!("{error:#}"))))
}

/// So many bytes of an application: framed, sealed, opened, and found again.
pub fn carry(length: usize) -> anyhow::Result<Box<dyn FnMut()>> {
    // A record carries its frame's header, too.
    let length = length.min(hbone::secured::MAX_PAYLOAD - FRAME);
    let mut pair = Pair::new()?;
    let (near, far) = pair.open()?;
    let (mut client, mut server) = tunnel()?;
    let (head, tail) = (client.sealer.head(), client.sealer.tail());
    let mut record = vec![0; head + FRAME + length + tail];
    let mut events = Vec::new();
    let mut step = move || -> anyhow::Result<()> {
        record[head..head + FRAME].copy_from_slice(&pair.client.data(near, length, false));
        client.sealer.seal(&mut record, Content::Data)?;
        let whole = server.opener.length(&record)?;
        anyhow::ensure!(whole == Some(record.len()), "a record without end");
        let (_, range) = server.opener.open(&mut record)?;
        pair.server.receive(&record[range], &mut events)?;
        let mut got = 0;
        for event in events.drain(..) {
            if let Event::Data { range, .. } = event {
                got += range.len();
            }
        }
        anyhow::ensure!(got == length, "{got} bytes of {length}");
        pair.server.consumed(far, got);
        if !pair.server.output().is_empty() {
            pair.talk()?;
        }
        if client.sealer.is_worn() {
            client.sealer = client.keys.next_sealer()?;
            server.keys.handshake_message(&hbone::secured::KEY_UPDATE_MESSAGE, &mut server.opener)?;
        }
        Ok(())
    };
    step()?;
    Ok(Box::new(move || black_box(step()).unwrap_or_else(|error| panic!("{error:#}"))))
}

/// Both ends of a handshake.
fn tunnel() -> anyhow::Result<(Secured, Secured)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key)?.der().clone();
    let issuer = rcgen::Issuer::new(params, key);
    let credential = |account: &str| -> anyhow::Result<Credential> {
        let identity = Identity::new("cluster.local", "bench", account)?;
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().try_into()?)];
        let leaf = params.signed_by(&key, &issuer)?.der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow::anyhow!(error))?;
        Ok(Credential::new(identity, vec![leaf], key, vec![root.clone()])?)
    };
    let (near, far) = (credential("client")?, credential("server")?);
    let expected = [Identity::new("cluster.local", "bench", "server")?];
    let (settings, peer): (_, SocketAddr) = (Settings::default(), "10.0.0.2:15008".parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut a, mut b) = tokio::io::duplex(64 << 10);
    let (client, server) = runtime.block_on(async {
        tokio::join!(
            hbone::secured::client(&mut a, peer, &near, &expected, &settings),
            hbone::secured::server(&mut b, peer, &far, &settings),
        )
    });
    Ok((client?, server?))
}
