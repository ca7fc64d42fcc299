//! What is fuzzed: everything that reads what another process wrote. Each target takes any bytes, panics where a
//! promise is broken, and brings examples of good input to begin with.
//!
//! Two programs share this module: the fuzz targets of this workspace (coverage-guided, `cargo xtask fuzz`), and the
//! test `fuzz` of the crate `ambit`, which mutates the examples without looking at coverage and so needs no build of its
//! own.

mod certificates;
mod cni;
mod dns;
mod flows;
mod h2;
mod head;
mod node_files;
mod xds;
mod zds;

/// Something that reads bytes.
pub struct Target {
    /// Its name, that of the fuzz target too.
    pub name: &'static str,
    /// Reads; panics where a promise is broken.
    pub run: fn(&[u8]),
    /// Input that is understood.
    pub examples: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const ALL: [Target; 11] = [
    Target { name: "dns", run: dns::run, examples: dns::examples },
    Target { name: "head", run: head::run, examples: head::examples },
    Target { name: "h2", run: h2::run, examples: h2::examples },
    Target { name: "resources", run: xds::resources, examples: xds::resource_examples },
    Target { name: "xds", run: xds::responses, examples: xds::response_examples },
    Target { name: "zds", run: zds::run, examples: zds::examples },
    Target { name: "flows", run: flows::run, examples: flows::examples },
    Target { name: "cni_plugin", run: cni::plugin, examples: cni::plugin_examples },
    Target { name: "cni_event", run: cni::event, examples: cni::event_examples },
    Target { name: "node_files", run: node_files::run, examples: node_files::examples },
    Target { name: "certificates", run: certificates::run, examples: certificates::examples },
];

/// The target of this name.
pub fn named(name: &str) -> &'static Target {
    ALL.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target is called {name}"))
}

/// Cuts input into pieces: each is preceded by its length, two bytes, of which the topmost bit is free for a flag.
fn pieces(mut input: &[u8]) -> Vec<(bool, &[u8])> {
    let mut pieces = Vec::new();
    while let [high, low, rest @ ..] = input {
        let length = usize::from(u16::from_be_bytes([high & 0x7f, *low])).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        pieces.push((high & 0x80 != 0, piece));
        input = rest;
    }
    pieces
}

/// The input that [`pieces`] cuts into these.
fn joined<'a>(pieces: impl IntoIterator<Item = (bool, &'a [u8])>) -> Vec<u8> {
    let mut input = Vec::new();
    for (flag, piece) in pieces {
        let length = u16::try_from(piece.len()).unwrap_or(0x7fff).min(0x7fff);
        input.extend((length | if flag { 0x8000 } else { 0 }).to_be_bytes());
        input.extend(&piece[..usize::from(length)]);
    }
    input
}

/// A runtime for what waits.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
