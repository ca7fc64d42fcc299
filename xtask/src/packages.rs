//! The programs that lab and demo run, from Debian's packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::commands::run;

/// A file that must be there, and the package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/bin/prometheus", "prometheus"),
    ("/usr/bin/prometheus-node-exporter", "prometheus-node-exporter"),
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/bin/prometheus-nginx-exporter", "prometheus-nginx-exporter"),
    ("/usr/bin/redis-server", "redis-server"),
    ("/usr/bin/prometheus-redis-exporter", "prometheus-redis-exporter"),
    ("/usr/sbin/nft", "nftables"),
    ("/sbin/ip", "iproute2"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/sbin/nghttpx", "nghttp2-proxy"),
    ("/usr/bin/tcpdump", "tcpdump"),
    ("/usr/bin/nsenter", "util-linux"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/share/ca-certificates", "ca-certificates"),
];

/// What the pages are looked at with.
const BROWSER: &[(&str, &str)] = &[("/usr/bin/chromium", "chromium")];

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Makes sure that this is a Linux machine where we are root, and that every needed program is there.
pub fn ready_machine() -> anyhow::Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("the lab needs Linux: pods are network namespaces");
    }
    let id = Command::new("id").arg("-u").output().context("cannot ask who I am")?;
    if id.stdout.trim_ascii() != b"0" {
        bail!("the lab needs root, since it makes network namespaces and mounts: run this command with sudo");
    }
    need(NEEDED)
}

/// The same, and a browser.
pub fn ready_browser() -> anyhow::Result<()> {
    ready_machine()?;
    need(BROWSER)
}

/// Installs what is missing, and says so.
fn need(files: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        files.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "these programs are missing and this is no Debian system: {}; install them by hand",
            missing.join(", ")
        );
    }
    eprintln!("Installing from Debian's packages: {}", missing.join(", "));
    install(&missing)
}

/// Installs packages without letting their services start: the lab runs them in namespaces of its own.
fn install(packages: &[&str]) -> anyhow::Result<()> {
    let _quiet = NoServices::new()?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]);
        command
    };
    run(apt().arg("update")).context("cannot read the package lists")?;
    run(apt().args(["install", "--no-install-recommends"]).args(packages))
        .context("cannot install the packages")
}

/// While it lives, Debian's packages start no services (`policy-rc.d` of invoke-rc.d(8)).
struct NoServices(bool);

impl NoServices {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        if Path::new(POLICY).exists() {
            return Ok(Self(false));
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(true))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.0
            && let Err(error) = std::fs::remove_file(POLICY)
        {
            eprintln!("{POLICY} could not be removed: {error}");
        }
    }
}
