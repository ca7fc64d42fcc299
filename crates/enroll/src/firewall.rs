//! The node's way of writing firewall rules: nftables where it works, iptables on hosts without it.
//!
//! Chosen once a process, by trying ([`Backend::detect`]), and the same for the node and for all its pods. Both are
//! driven by handing one script to one process ([`apply`], [`xtables`]); what the scripts say is the business of
//! [`crate::redirect`] and [`crate::probes`]. Every process is ended when it takes longer than [`PATIENCE`], and
//! starts on a thread that is inside the wanted network namespace for that moment.

pub mod xtables;

use std::fmt;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use netns::NetNs;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long one change may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How many programs run at once in pods. More make nothing quicker: the kernel takes one change after the other, and what
/// has started must end within [`PATIENCE`].
const AT_ONCE: usize = 8;

static SLOTS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(AT_ONCE);

/// Why a rule set could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is missing or cannot be started.
    #[error("cannot start {program}: {source}; is the package {} installed?", package(program))]
    Start {
        /// The program.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// The program refused the script; nothing of it was applied.
    #[error("{program} refused the rules: {reason}")]
    Refused {
        /// The program.
        program: String,
        /// What it said.
        reason: String,
    },
    /// The program did not end in time and was killed.
    #[error("{program} did not finish within {} s", PATIENCE.as_secs())]
    Slow {
        /// The program.
        program: String,
    },
}

fn package(program: &str) -> &'static str {
    if program == "nft" { "nftables" } else { "iptables" }
}

/// Which tools write the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// `nft`.
    #[default]
    Nft,
    /// `iptables-restore` and its like, by the name of the variant.
    Iptables(Variant),
}

/// Which of the programs that are called iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-nft-restore`.
    Nft,
    /// `iptables-legacy-restore`.
    Legacy,
    /// `iptables-restore`, whatever that is.
    Plain,
}

impl Variant {
    /// The program for a family, such as `ip6tables-legacy-restore`.
    pub fn program(self, ipv6: bool, verb: &str) -> String {
        let family = if ipv6 { "ip6tables" } else { "iptables" };
        match self {
            Self::Nft => format!("{family}-nft-{verb}"),
            Self::Legacy => format!("{family}-legacy-{verb}"),
            Self::Plain => format!("{family}-{verb}"),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nftables",
            Self::Iptables(Variant::Nft) => "iptables-nft",
            Self::Iptables(Variant::Legacy) => "iptables-legacy",
            Self::Iptables(Variant::Plain) => "iptables",
        })
    }
}

/// Neither kind of rules can be written here.
#[derive(Debug, thiserror::Error)]
#[error(
    "neither nft nor iptables works here ({0}); install nftables, and run the node agent with CAP_NET_ADMIN in a \
     kernel that has nf_tables or ip_tables"
)]
pub struct NoFirewall(String);

impl Backend {
    /// The backend of that name: `nft`, `iptables`, `iptables-nft` or `iptables-legacy`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "nft" | "nftables" => Self::Nft,
            "iptables" => Self::Iptables(Variant::Plain),
            "iptables-nft" => Self::Iptables(Variant::Nft),
            "iptables-legacy" => Self::Iptables(Variant::Legacy),
            _ => return None,
        })
    }

    /// The first that works, nftables before all: each is asked to check a rule set without applying it. Blocks for
    /// some milliseconds; call it before anything serves.
    pub fn detect() -> Result<Self, NoFirewall> {
        let all = [Variant::Legacy, Variant::Nft, Variant::Plain].map(Self::Iptables);
        let mut failed = Vec::new();
        for backend in [Self::Nft].into_iter().chain(all) {
            match backend.works() {
                Ok(()) => return Ok(backend),
                Err(why) => failed.push(format!("{backend}: {why}")),
            }
        }
        Err(NoFirewall(failed.join("; ")))
    }

    /// Whether rules can be written this way here; nothing is changed.
    pub fn works(self) -> Result<(), String> {
        match self {
            // Redirection needs the nat type and conntrack marks; both are tried, nothing is applied.
            Self::Nft => try_out(
                "nft",
                &["-c", "-f", "-"],
                "table inet ambit-check {\n chain c {\n type nat hook output priority -100;\n \
                 meta l4proto tcp redirect to :15001\n }\n}\n",
            ),
            Self::Iptables(variant) => try_out(
                &variant.program(false, "restore"),
                &["--test", "--noflush"],
                "*nat\n-A OUTPUT -p tcp -m tcp --tcp-flags SYN,ACK SYN -j REDIRECT --to-ports 15001\nCOMMIT\n",
            ),
        }
    }
}

fn try_out(program: &str, args: &[&str], input: &str) -> Result<(), String> {
    let mut child = std::process::Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    // It fits into the pipe; a program that does not read it ends, and says so by its status.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("it does not answer".to_owned());
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    Err(first_lines(&output.stderr))
}

/// Runs `program` in `namespace`, or in the caller's own one, with `input`; answers what it printed.
pub async fn run(
    namespace: Option<&NetNs>,
    program: &str,
    args: &[&str],
    input: &str,
) -> Result<String, Error> {
    let start = |source| Error::Start { program: program.to_owned(), source };
    // Never closed; each holder's time is bounded. The node's own rules stand for many pods, so they go past the queue.
    let _slot = match namespace {
        Some(_) => Some(SLOTS.acquire().await),
        None => None,
    };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    let mut child = match namespace {
        Some(namespace) => namespace.run(|| command.spawn())?,
        None => command.spawn(),
    }
    .map_err(start)?;
    let mut stdin = child.stdin.take();
    let work = async move {
        let write = async {
            if let Some(mut stdin) = stdin.take() {
                // A program that ends early says why on stderr; the broken pipe adds nothing.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        tokio::join!(write, child.wait_with_output()).1
    };
    let slow = |_| Error::Slow { program: program.to_owned() };
    let output = tokio::time::timeout(PATIENCE, work).await.map_err(slow)?.map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = format!("{} ({})", first_lines(&output.stderr), output.status);
    Err(Error::Refused { program: program.to_owned(), reason })
}

/// Applies a script of `nft -f -` in one kernel transaction.
pub async fn apply(namespace: Option<&NetNs>, script: &str) -> Result<(), Error> {
    run(namespace, "nft", &["-f", "-"], script).await.map(drop)
}

fn first_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().take(4).map(str::trim).collect::<Vec<_>>().join(" ")
}
