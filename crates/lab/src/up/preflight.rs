//! What has to be true before anything is made. Each refusal is one sentence that says what to do.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::answers::plainly;

/// Programs a lab with nodes cannot do without, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("runc", "runc"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
];

/// The machine can carry a lab.
pub fn machine(with_nodes: bool) -> anyhow::Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("a lab needs Linux: its pods are network namespaces");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("a lab needs root to make network namespaces: run it with sudo");
    }
    if with_nodes {
        let missing: Vec<_> = PROGRAMS.iter().filter(|(program, _)| find(program).is_none()).collect();
        if let Some((program, _)) = missing.first() {
            let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
            packages.dedup();
            bail!("{program} is not installed: run `apt-get install {}`", packages.join(" "));
        }
        can_make_namespaces()?;
    }
    Ok(())
}

/// Root in a container often may not.
fn can_make_namespaces() -> anyhow::Result<()> {
    let status = std::process::Command::new("unshare").args(["--net", "--mount", "true"]).output();
    match status {
        Ok(output) if output.status.success() => Ok(()),
        _ => bail!(
            "this process may not make network namespaces (CAP_SYS_ADMIN is missing): \
             run it on the machine itself or in a privileged container"
        ),
    }
}

fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|path| path.exists())
}

/// The API's socket. Only the loopback interface: pods come through their node.
pub fn listen(port: Option<u16>) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)));
    TcpListener::bind(address).with_context(|| match port {
        Some(port) => {
            format!("port {port} of 127.0.0.1 cannot be used: choose another one with --port or leave it out")
        }
        None => "no free port on 127.0.0.1".to_owned(),
    })
}

/// The cluster to join answers.
pub async fn reachable(path: &Path) -> anyhow::Result<kube::Client> {
    let client = client(path).await?;
    let version = tokio::time::timeout(std::time::Duration::from_secs(10), client.apiserver_version()).await;
    match version {
        Ok(Ok(_)) => Ok(client),
        Ok(Err(error)) => Err(plainly(error))
            .with_context(|| format!("the cluster of {} cannot be used: is it up?", path.display())),
        Err(_) => bail!("the cluster of {} did not answer within ten seconds: is it up?", path.display()),
    }
}

/// A client for a kubeconfig file.
pub async fn client(path: &Path) -> anyhow::Result<kube::Client> {
    let why = || format!("{} is no usable kubeconfig", path.display());
    std::fs::File::open(path).with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
    let kubeconfig = kube::config::Kubeconfig::read_from(path).with_context(why)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.with_context(why)?;
    kube::Client::try_from(config).map_err(plainly).with_context(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_refused_with_advice() {
        let taken = listen(None).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = format!("{:#}", listen(Some(port)).unwrap_err());
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
    }

    #[test]
    fn programs_are_found_by_path_and_by_name() {
        assert!(find("sh").is_some());
        assert!(find("/no/such/program").is_none());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
