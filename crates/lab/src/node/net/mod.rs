//! The network services a node gives its pods: Service addresses ([`services`]), names ([`dns`]) and a way to the
//! API server (`relay`).
//!
//! It owns, inside the node's network namespace only: two nftables tables, the resolver's address on `lo`, the
//! route for Service addresses, and the pods' bridge until the CNI chain takes it. It watches Services and
//! EndpointSlices through the Kubernetes API and never writes to it. Pods themselves are none of its business.

pub mod dns;
pub mod model;
mod plumbing;
mod relay;
pub mod services;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client};
use netns::NetNs;
use tokio::sync::watch;

use crate::node::{Config, layout};
use model::{ServiceKey, Snapshot};
pub use plumbing::BRIDGE;

/// Where the programs this module calls are, whatever the process inherited.
const TOOLS_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The latest snapshot; nothing until Services and EndpointSlices have both been listed once.
type Shared = Option<Arc<Snapshot>>;

/// Prepares the node's network namespace and serves it for the life of the process.
///
/// Call it within a Tokio runtime and before the first pod starts. It fails when the namespace cannot be prepared
/// or an address is taken; what breaks later is logged and tried again.
pub fn start(config: &Config, client: Client) -> anyhow::Result<()> {
    let ns = NetNs::open(inside(layout::NODE_NETNS, &config.netns))?;
    start_in(&ns, config, client)
        .with_context(|| format!("node {}: cannot serve Services and names", config.name))
}

/// What a furnished node has in its own corner, because its private `/run` and `/etc` hide the host's; elsewhere,
/// as in tests, the host's own.
fn inside<'a>(corner: &'a str, elsewhere: &'a Path) -> &'a Path {
    let corner = Path::new(corner);
    if corner.exists() { corner } else { elsewhere }
}

fn start_in(ns: &NetNs, config: &Config, client: Client) -> anyhow::Result<()> {
    let wanted = plumbing::Wanted {
        ip: config.ip,
        dns_ip: config.dns_ip,
        pod_cidr: config.pod_cidr,
        service_cidr: config.service_cidr,
    };
    let bridge_mac = plumbing::prepare(ns, &wanted)?;
    let upstream = relay::Upstream::parse(&server_of(config)?)?;
    let relay = relay::start(ns, config.ip, upstream)?;
    let changes = watch_services(client);
    dns::start(ns, SocketAddr::new(config.dns_ip, 53), changes.clone())?;
    let node = services::rules::Node {
        name: config.name.clone(),
        ip: config.ip,
        bridge_mac,
        own: config.dns_ip,
        overrides: BTreeMap::from([(ServiceKey::new("default", "kubernetes"), relay)]),
    };
    tokio::spawn(services::keep(ns.clone(), node, changes));
    Ok(())
}

/// The server URL of the kubeconfig's current context.
fn server_of(config: &Config) -> anyhow::Result<String> {
    let path = &config.kubeconfig;
    let kubeconfig = kube::config::Kubeconfig::read_from(path)
        .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
    let context = kubeconfig
        .current_context
        .as_ref()
        .and_then(|current| kubeconfig.contexts.iter().find(|context| &context.name == current))
        .or(kubeconfig.contexts.first())
        .and_then(|context| context.context.as_ref());
    let cluster = context.and_then(|c| kubeconfig.clusters.iter().find(|named| named.name == c.cluster));
    cluster
        .and_then(|named| named.cluster.as_ref()?.server.clone())
        .with_context(|| format!("the kubeconfig {} names no server for its current context", path.display()))
}

/// Follows Services and EndpointSlices and publishes a snapshot after each change.
fn watch_services(client: Client) -> watch::Receiver<Shared> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let (services, services_writer) = reflector::store::<Service>();
        let (slices, slices_writer) = reflector::store::<EndpointSlice>();
        let config = watcher::Config::default;
        let services_events = watcher(Api::<Service>::all(client.clone()), config()).default_backoff();
        let slices_events = watcher(Api::<EndpointSlice>::all(client), config()).default_backoff();
        let services_events =
            reflector(services_writer, services_events).map(|event| completes(&event, "services"));
        let slices_events =
            reflector(slices_writer, slices_events).map(|event| completes(&event, "endpointslices"));
        // Which of the two said it: a snapshot needs both to have been listed.
        let mut events = std::pin::pin!(futures::stream::select(
            services_events.map(|complete| (0, complete)),
            slices_events.map(|complete| (1, complete)),
        ));
        let mut listed = [false; 2];
        while let Some((which, complete)) = events.next().await {
            if !complete {
                continue;
            }
            listed[which] = true;
            if listed != [true; 2] {
                continue;
            }
            let (services, slices) = (services.state(), slices.state());
            let snapshot = Snapshot::build(services.iter().map(|s| &**s), slices.iter().map(|s| &**s));
            sender.send_if_modified(|current| {
                let changed = current.as_deref() != Some(&snapshot);
                if changed {
                    *current = Some(Arc::new(snapshot));
                }
                changed
            });
        }
    });
    receiver
}

/// Whether the store behind an event is complete after it. While a list is being read, the reflector keeps the old
/// state, and so do the rules.
fn completes<K>(event: &watcher::Result<watcher::Event<K>>, what: &str) -> bool {
    match event {
        Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => false,
        Ok(_) => true,
        Err(error) => {
            tracing::warn!("watch of {what} broke, starting again: {error}");
            false
        }
    }
}

/// A TCP listener made on the calling thread's network namespace, to be used from anywhere.
fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = match address.ip() {
        IpAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        IpAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// After a failed `accept`: a peer that went away costs nothing, lack of descriptors or memory needs a pause, for
/// the listener stays readable and would spin.
async fn accept_failed(who: &str, error: &io::Error) {
    let of_the_peer = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    );
    if !of_the_peer {
        tracing::warn!("{who}: cannot accept a connection: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
