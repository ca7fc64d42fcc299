//! The eavesdropper: tcpdump on every link of every node, and what it can read.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// Texts that only a readable scrape or its answer contains.
const NEEDLES: &[&str] =
    &["GET /metrics HTTP/1.1", "app_secret_orders_total", "# HELP ", "X-Prometheus-Scrape-Timeout-Seconds"];

/// What an eavesdropper got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overheard {
    /// Bytes seen altogether.
    pub bytes: usize,
    /// Bytes to or from port 15008, the tunnels.
    pub tunnel_bytes: usize,
    /// A readable line, if there was one.
    pub readable: Option<String>,
}

impl Overheard {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.tunnel_bytes += other.tunnel_bytes;
        self.readable = self.readable.take().or(other.readable);
    }
}

/// Listens in all `namespaces` for `duration`: all links of the nodes, so that calls within a node are overheard too.
pub async fn eavesdrop(namespaces: &[String], duration: Duration) -> anyhow::Result<Overheard> {
    let listening = namespaces.iter().map(|namespace| async move {
        let all = one(namespace, "tcp", duration);
        let tunnels = one(namespace, "tcp port 15008", duration);
        let (all, tunnels) = tokio::try_join!(all, tunnels)?;
        Ok::<_, anyhow::Error>(Overheard {
            bytes: all.len(),
            tunnel_bytes: tunnels.len(),
            readable: readable(&all),
        })
    });
    let mut overheard = Overheard::default();
    for one in futures::future::try_join_all(listening).await? {
        overheard.add(one);
    }
    Ok(overheard)
}

/// The packets that tcpdump saw in one network namespace.
async fn one(namespace: &str, filter: &str, duration: Duration) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{namespace}"))
        .args(["tcpdump", "-i", "any", "-U", "-n", "-s", "0", "-B", "16384", "-Z", "root", "-w", "-", filter])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start tcpdump")?;
    let mut stdout = child.stdout.take().context("no output of tcpdump")?;
    let mut lines = BufReader::new(child.stderr.take().context("no messages of tcpdump")?).lines();
    let reading = tokio::spawn(async move {
        let mut seen = Vec::new();
        stdout.read_to_end(&mut seen).await.map(|_| seen)
    });
    let listening = async {
        let mut said = Vec::new();
        while let Some(line) = lines.next_line().await? {
            if line.contains("listening on") {
                return Ok(());
            }
            said.push(line);
        }
        bail!("tcpdump ended: {}", said.join("; "))
    };
    timeout(Duration::from_secs(10), listening).await.context("tcpdump does not start")??;
    sleep(duration).await;
    let pid = child.id().context("tcpdump ended by itself")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid)?),
        nix::sys::signal::Signal::SIGINT,
    )?;
    timeout(Duration::from_secs(10), child.wait()).await.context("tcpdump does not end")??;
    Ok(reading.await??)
}

/// The first readable line of a scrape in captured bytes.
fn readable(captured: &[u8]) -> Option<String> {
    NEEDLES.iter().find_map(|needle| {
        let at = captured.windows(needle.len()).position(|window| window == needle.as_bytes())?;
        let line = captured[at..].split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
        Some(
            line.iter()
                .take(100)
                .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
                .collect(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_in_the_clear_is_noticed_and_noise_is_not() {
        assert_eq!(
            readable(b"\x00\x01GET /metrics HTTP/1.1\r\nHost: x"),
            Some("GET /metrics HTTP/1.1".to_owned())
        );
        assert_eq!(
            readable(b"..\napp_secret_orders_total{service=\"a\"} 5\n"),
            Some("app_secret_orders_total{service=\"a\"} 5".to_owned())
        );
        assert_eq!(readable(&[0x17, 0x03, 0x03, 0x00, 0x20, 0xff, 0x80]), None);
    }
}
