//! What must hold for anything that a control plane sends: for fuzzing.

use std::net::SocketAddr;

use mesh::{Call, Connection, Decision, NOTHING_RESOLVED, NetworkAddress, Tunnel, View, authorize, decide};
use prost::Message;
use wire::type_url::{ADDRESS, AUTHORIZATION};
use wire::xds::DeltaDiscoveryResponse;

use super::Known;

/// Takes `responses` in one after the other, each an encoded `DeltaDiscoveryResponse`; `true` is one of policies. Then
/// asks the view for decisions. Panics where a promise is broken.
pub fn exercise<'a>(responses: impl IntoIterator<Item = (bool, &'a [u8])>) {
    let (mut known, _identities) = Known::new(None);
    // The same for a proxy that asks by name, and has asked for what is taken away.
    let (mut named, _identities) = Known::new(None);
    named.on_demand();
    let mut last = None;
    for (policies, bytes) in responses {
        let Ok(response) = DeltaDiscoveryResponse::decode(bytes) else { continue };
        let type_url = if policies { AUTHORIZATION } else { ADDRESS };
        let offered = response.resources.len();
        let rejected = known.apply(type_url, response.clone());
        assert!(rejected.len() <= offered, "refused what was not offered");
        named.ask(response.removed_resources.iter().filter_map(|name| name.parse().ok()));
        named.apply(type_url, response.clone());
        for lookup in response.removed_resources.iter().filter_map(|name| name.parse().ok()) {
            assert!(!named.view().lacks(&lookup), "an answer that leaves its question open");
        }
        assert!(known.versions(type_url).len() <= known_objects(&known), "a version of nothing");
        last = Some((type_url, response));
    }
    let Some((type_url, response)) = last else { return };
    let before = count(&known.view());
    let mut again = response;
    again.removed_resources.clear();
    known.apply(type_url, again);
    assert!(count(&known.view()) >= before, "the same again takes nothing away");
    judge(&known.view());
    judge(&named.view());
}

fn known_objects(known: &Known) -> usize {
    known.versions.values().map(std::collections::BTreeMap::len).sum()
}

fn count(view: &View) -> usize {
    view.workloads().count() + view.services().count() + view.policies().count()
}

/// Every pair of the first few calls each other and each other's services.
fn judge(view: &View) {
    let workloads: Vec<_> = view.workloads().take(6).cloned().collect();
    let ports = [0, 80, 443, 15008, u16::MAX];
    let ips = workloads.iter().flat_map(|workload| workload.addresses.iter().copied());
    let vips = view.services().flat_map(|service| service.vips.iter().map(|vip| vip.ip)).take(8);
    let destinations: Vec<_> = ips.chain(vips).take(16).collect();
    for source in &workloads {
        for (ip, port) in destinations.iter().flat_map(|ip| ports.map(|port| (*ip, port))) {
            let destination = SocketAddr::new(ip, port);
            for random in [0, 1 << 40, u64::MAX] {
                let call = Call { source, destination, random, resolved: &NOTHING_RESOLVED };
                if let Decision::Passthrough { to, workload, .. } = decide(view, &call) {
                    let plain = |workload: &mesh::Workload| workload.tunnel == Tunnel::None;
                    assert!(workload.as_deref().is_none_or(plain), "plaintext to {to}, which takes tunnels");
                    let owner = view.workload_by_address(&NetworkAddress::new(&*source.network, to.ip()));
                    assert!(owner.is_none_or(|owner| plain(owner)), "plaintext to {to}, which takes tunnels");
                }
            }
            for identity in [None, Some(source.identity.clone())] {
                let connection = Connection { identity, source_ip: ip, destination };
                for workload in &workloads {
                    let verdict = authorize(view, workload, &connection);
                    let shut = !view.missing_policies(workload).is_empty();
                    assert!(!shut || !verdict.is_allowed(), "a policy that is not known yet lets through");
                }
            }
        }
    }
}
