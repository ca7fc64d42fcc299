//! Addresses and node ports of Services: assigned here, inside the transaction, so that none is given twice.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::api::Api;
use crate::api::failure::{Cause, Failure};
use crate::api::object::{map_mut, name, namespace, str_at};
use crate::api::store::Inner;

const NODE_PORTS: std::ops::Range<u16> = 30_000..32_768;

/// Gives a Service what it needs and has not; keeps what it had.
pub fn allocate(api: &Api, tx: &Inner, service: &mut Value, old: Option<&Value>) -> Result<(), Failure> {
    let kind = str_at(service, "/spec/type").to_owned();
    if kind == "ExternalName" {
        let spec = map_mut(service, "spec");
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.shift_remove(key);
        }
        return Ok(());
    }
    cluster_ip(api, tx, service, old)?;
    if kind == "NodePort" || kind == "LoadBalancer" {
        node_ports(tx, service, old);
    }
    Ok(())
}

fn cluster_ip(api: &Api, tx: &Inner, service: &mut Value, old: Option<&Value>) -> Result<(), Failure> {
    let before = old.map(|old| str_at(old, "/spec/clusterIP")).unwrap_or("").to_owned();
    let mut wanted = str_at(service, "/spec/clusterIP").to_owned();
    if wanted.is_empty() {
        wanted = service.pointer("/spec/clusterIPs/0").and_then(Value::as_str).unwrap_or("").to_owned();
    }
    let refuse = |cause: Cause| Err(Failure::invalid("", "Service", name(service), &[cause]));
    if !before.is_empty() {
        if !wanted.is_empty() && wanted != before {
            return refuse(Cause::invalid("spec.clusterIPs[0]", &json!([wanted]), "may not change once set"));
        }
        wanted = before;
    } else if wanted.is_empty() {
        wanted = free(api, tx, service)?.to_string();
    } else if wanted != "None" {
        let Ok(address) = wanted.parse::<IpAddr>() else {
            return refuse(Cause::invalid(
                "spec.clusterIPs[0]",
                &wanted.into(),
                "must be empty, 'None', or a valid IP address",
            ));
        };
        let range = api.service_cidr;
        if !range.contains(&address) {
            let why = format!(
                "failed to allocate IP {address}: the provided IP is not in the valid range. The range of valid IPs is {range}"
            );
            return refuse(Cause::invalid("spec.clusterIPs", &json!([wanted]), why));
        }
        if taken(tx, service).contains(&address) {
            let why = format!("failed to allocate IP {address}: provided IP is already allocated");
            return refuse(Cause::invalid("spec.clusterIPs", &json!([wanted]), why));
        }
    }
    let family = if api.service_cidr.addr().is_ipv4() { "IPv4" } else { "IPv6" };
    let spec = map_mut(service, "spec");
    spec.insert("clusterIPs".into(), json!([wanted]));
    spec.insert("clusterIP".into(), wanted.into());
    if !spec.contains_key("ipFamilies") {
        spec.insert("ipFamilies".into(), json!([family]));
    }
    if !spec.contains_key("ipFamilyPolicy") {
        spec.insert("ipFamilyPolicy".into(), "SingleStack".into());
    }
    Ok(())
}

fn others<'a>(tx: &'a Inner, service: &Value) -> impl Iterator<Item = &'a Value> {
    let (own_namespace, own_name) = (namespace(service).to_owned(), name(service).to_owned());
    tx.list("services", None)
        .map(AsRef::as_ref)
        .filter(move |other| namespace(other) != own_namespace || name(other) != own_name)
}

fn taken(tx: &Inner, service: &Value) -> HashSet<IpAddr> {
    others(tx, service).filter_map(|s| str_at(s, "/spec/clusterIP").parse().ok()).collect()
}

/// A free address, from the upper part of the range: the lower one is for addresses that people choose.
fn free(api: &Api, tx: &Inner, service: &Value) -> Result<IpAddr, Failure> {
    let taken = taken(tx, service);
    let hosts = api.service_cidr.hosts();
    let lower = (api.service_cidr.max_prefix_len() - api.service_cidr.prefix_len()).min(8);
    let reserved = (1usize << lower) / 2;
    hosts
        .skip(reserved)
        .find(|address| !taken.contains(address))
        .or_else(|| hosts.take(reserved).skip(1).find(|address| !taken.contains(address)))
        .ok_or_else(|| {
            Failure::internal(format!("failed to allocate a serviceIP: range {} is full", api.service_cidr))
        })
}

fn node_ports(tx: &Inner, service: &mut Value, old: Option<&Value>) {
    let ports = |service: &Value| -> Vec<(Value, u16)> {
        let list = service.pointer("/spec/ports").and_then(Value::as_array);
        let number =
            |p: &Value| p.get("nodePort").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
        list.into_iter()
            .flatten()
            .filter_map(|p| Some((json!([p.get("port"), p.get("protocol")]), number(p)?)))
            .collect()
    };
    let mut taken: HashSet<u16> = others(tx, service).flat_map(ports).map(|(_, n)| n).collect();
    taken.extend(ports(service).into_iter().map(|(_, n)| n));
    let before = old.map(ports).unwrap_or_default();
    let list = map_mut(service, "spec").get_mut("ports").and_then(Value::as_array_mut);
    for port in list.into_iter().flatten().filter_map(Value::as_object_mut) {
        if port.contains_key("nodePort") {
            continue;
        }
        let id = json!([port.get("port"), port.get("protocol")]);
        let kept = before.iter().find(|(have, n)| *have == id && !taken.contains(n)).map(|(_, n)| *n);
        if let Some(number) = kept.or_else(|| NODE_PORTS.clone().find(|n| !taken.contains(n))) {
            taken.insert(number);
            port.insert("nodePort".into(), number.into());
        }
    }
}
