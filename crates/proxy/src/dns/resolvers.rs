//! Whom to ask what the mesh does not know: the name servers of a `resolv.conf`, read anew when it changes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

const PORT: u16 = 53;
/// More name servers than this only take time.
const MOST: usize = 6;
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// The name servers.
#[derive(Debug)]
pub(crate) struct Resolvers {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    looked: Option<Instant>,
    changed: Option<SystemTime>,
    servers: Arc<[SocketAddr]>,
}

impl Resolvers {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::default() }
    }

    /// Where they are written.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The name servers as they are at `now`. A file that cannot be read leaves those known before.
    pub(crate) fn current(&self, now: Instant) -> Arc<[SocketAddr]> {
        let mut known = self.known.lock();
        if known.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK) {
            known.looked = Some(now);
            let changed = std::fs::metadata(&self.path).and_then(|file| file.modified()).ok();
            if changed.is_none() || changed != known.changed {
                match std::fs::read(&self.path) {
                    Ok(text) => {
                        known.servers = parse(&String::from_utf8_lossy(&text)).into();
                        known.changed = changed;
                    }
                    Err(error) => {
                        tracing::warn!(path = %self.path.display(), %error, "name servers cannot be read");
                    }
                }
            }
        }
        known.servers.clone()
    }
}

/// The name servers of a `resolv.conf`, in order, each once.
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(ip) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        let server = SocketAddr::new(ip, PORT);
        if servers.len() < MOST && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_taken_in_order_and_everything_else_is_passed_over() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.96.0.10 # kube\n\tnameserver fd00::a\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver 10.96.0.10\noptions ndots:5\n;nameserver 2.2.2.2\n";
        let expected: Vec<SocketAddr> = ["10.96.0.10:53", "[fd00::a]:53"].map(|s| s.parse().unwrap()).into();
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn a_change_of_the_file_is_noticed_and_its_loss_is_survived() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let write = |text: &str, age: u64| {
            std::fs::write(&path, text).unwrap();
            let file = std::fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(age)).unwrap();
        };
        write("nameserver 10.0.0.1", 1);
        let (resolvers, start) = (Resolvers::new(path.clone()), Instant::now());
        let first = |resolvers: &Resolvers, at| resolvers.current(at).first().copied();
        assert_eq!(first(&resolvers, start), Some("10.0.0.1:53".parse().unwrap()));
        write("nameserver 10.0.0.2", 2);
        assert_eq!(first(&resolvers, start), Some("10.0.0.1:53".parse().unwrap()), "not looked at again yet");
        assert_eq!(first(&resolvers, start + LOOK), Some("10.0.0.2:53".parse().unwrap()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(first(&resolvers, start + LOOK * 2), Some("10.0.0.2:53".parse().unwrap()));
    }
}
