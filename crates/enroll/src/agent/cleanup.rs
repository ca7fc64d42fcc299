//! The end of an agent: leave everything in place for a successor, or give all pods back to plaintext.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use netns::NetNs;

use super::{Node, announce, exempt, installer};
use crate::config::{Config, access_file, known_file};
use crate::firewall::Backend;
use crate::netns_of::remembered::{Record, Remembered};
use crate::netns_of::{Finder, Wanted, addresses};
use crate::older::{Exempt, Policy, sweep};
use crate::{probes, redirect};

/// How long the API server may take to say whether this is an upgrade.
const API_PATIENCE: Duration = Duration::from_secs(5);

/// How long the connections that proxies hold may take to become idle.
const LINGER: Duration = Duration::from_secs(5);

/// Why the agent ends.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// A successor comes, or nobody could say otherwise.
    Upgrade,
    /// The mesh is being removed.
    Uninstall,
}

/// What the answer to "where is my DaemonSet" means (`enrolment.md` §1.8). Without a clear answer pods stay as they
/// are: an agent that only lost its line to the API server must not open the mesh.
fn ending(answer: &Result<Option<DaemonSet>, kube::Error>) -> Ending {
    match answer {
        Ok(Some(set)) if set.metadata.deletion_timestamp.is_none() => Ending::Upgrade,
        Ok(_) => Ending::Uninstall,
        Err(kube::Error::Api(status)) if status.code == 401 => Ending::Uninstall,
        Err(_) => Ending::Upgrade,
    }
}

pub(super) async fn on_shutdown(node: &Node) {
    let api = Api::<DaemonSet>::namespaced(node.client.clone(), &node.config.namespace);
    let ending = if node.config.safe_upgrade {
        match tokio::time::timeout(API_PATIENCE, api.get_opt(&node.config.daemonset)).await {
            Ok(answer) => ending(&answer),
            Err(_) => Ending::Upgrade,
        }
    } else {
        Ending::Uninstall
    };
    match ending {
        Ending::Upgrade => {
            tracing::info!("leaving pods, rules and CNI plugin in place for the next node agent")
        }
        Ending::Uninstall => {
            for error in cleanup(&node.config, Some(&node.client)).await {
                tracing::warn!(error, "left behind while cleaning up");
            }
        }
    }
}

/// Takes everything of the mesh from this node: CNI plugin, rules in all pods, probe table, annotations (with a
/// client), files. Pods go on in plaintext. Every step is tried; what failed is returned, one line each. Doing it
/// twice is no error.
pub async fn cleanup(config: &Config, client: Option<&Client>) -> Vec<String> {
    let mut failed = Vec::new();
    if let Some(installer) = installer(config) {
        // First: no pod may start that asks for an agent that is going.
        failed.extend(installer.uninstall().iter().map(ToString::to_string));
    }
    let remembered = Remembered::load(&config.run_dir);
    let records = remembered.all();
    let finder = Finder { host_proc: config.host_proc.clone(), host_root: config.host_root.clone() };
    let mut missing = Wanted::new();
    let mut namespaces = Vec::new();
    for (uid, record) in &records {
        let held = record.path.as_deref().and_then(|path| finder.open(path).ok());
        match held.filter(|netns| {
            addresses(netns).is_ok_and(|there| record.ips.iter().any(|ip| there.contains(ip)))
        }) {
            Some(netns) => namespaces.push((netns, record.written_by.clone())),
            None => {
                missing.insert(uid.clone(), record.ips.clone());
            }
        }
    }
    match tokio::task::spawn_blocking(move || finder.find(&missing)).await {
        Ok(found) => namespaces.extend(found.into_iter().map(|(uid, netns)| {
            let written_by = records.get(&uid).map(|record| record.written_by.clone());
            (netns, written_by.unwrap_or_default())
        })),
        Err(error) => failed.push(format!("cannot look for network namespaces: {error}")),
    }
    for (netns, _) in &namespaces {
        failed.extend(
            redirect::stop_capturing(netns, config.firewall).await.err().map(|error| error.to_string()),
        );
    }
    if let Some(client) = client {
        let removals = records.values().cloned().map(|record| take_annotation(client.clone(), record));
        failed.extend(futures::future::join_all(removals).await.into_iter().flatten());
    }
    failed.extend(probes::remove_all(config.firewall).await.err().map(|error| error.to_string()));
    // Proxies may still be there: what they hold ends when it is idle, so that programs dial anew, past them.
    let policy = Policy::with_grace(config.older_grace);
    let exempt = exempt(config).unwrap_or_default();
    let drains = namespaces.iter().cloned().map(|(netns, _)| drain(netns, exempt.clone(), policy));
    failed.extend(futures::future::join_all(drains).await.into_iter().flatten());
    for (netns, written_by) in &namespaces {
        let earlier = written_by.iter().filter_map(|name| Backend::named(name));
        for tools in earlier.filter(|tools| *tools != config.firewall) {
            failed.extend(redirect::remove_rules(netns, tools).await.err().map(|error| error.to_string()));
        }
        failed.extend(redirect::remove(netns, config.firewall).await.err().map(|error| error.to_string()));
    }
    failed.extend(remembered.erase().err().map(|error| error.to_string()));
    for file in [known_file(&config.run_dir), access_file(&config.run_dir), config.event_socket()] {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                failed.push(format!("cannot remove {}: {error}", file.display()));
            }
            _ => {}
        }
    }
    tracing::info!(pods = namespaces.len(), failed = failed.len(), "gave the node's pods back to plaintext");
    failed
}

async fn take_annotation(client: Client, record: Record) -> Option<String> {
    let result = announce::set_annotation(&client, &record.namespace, &record.name, None).await;
    result.err().map(|error| format!("{}/{}: {error:#}", record.namespace, record.name))
}

async fn drain(netns: NetNs, exempt: Exempt, policy: Policy) -> Option<String> {
    let result = sweep::drain(&netns, &exempt, &policy, Duration::ZERO..LINGER, || false).await;
    result.err().map(|error| format!("cannot list a pod's connections: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> kube::Error {
        let status = serde_json::json!({"status": "Failure", "code": code, "reason": "x", "message": "x"});
        kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn only_a_clear_answer_opens_the_mesh() {
        let set = |value| serde_json::from_value::<DaemonSet>(value).unwrap();
        let alive = set(serde_json::json!({"metadata": {"name": "ambit-agent"}}));
        let dying = set(serde_json::json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        assert_eq!(ending(&Ok(Some(alive))), Ending::Upgrade);
        assert_eq!(ending(&Ok(Some(dying))), Ending::Uninstall);
        assert_eq!(ending(&Ok(None)), Ending::Uninstall);
        assert_eq!(ending(&Err(status(401))), Ending::Uninstall);
        assert_eq!(ending(&Err(status(403))), Ending::Upgrade);
        assert_eq!(ending(&Err(status(500))), Ending::Upgrade);
    }
}
