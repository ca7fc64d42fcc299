//! The rule sets as text for `nft -f -`. Pure; what it promises is pinned by snapshots and tried on a kernel.

use std::fmt::Write;

use super::{CONN_MARK, DNS_PORT, HBONE_PORT, INBOUND_PORT, MARK_MASK, OUTBOUND_PORT, Options, PROXY_MARK};

const NAT: &str = "istio-ambient-nat";
const MANGLE: &str = "istio-ambient-mangle";
const RAW: &str = "istio-ambient-raw";

/// The whole redirection of a pod: replaces all three tables in one transaction.
pub fn rules(options: &Options) -> String {
    let mut out = removal();
    nat(&mut out, Some(options));
    mangle(&mut out, !options.ipv6);
    if options.dns {
        raw(&mut out);
    }
    out
}

/// The state between captured and free: the chains of the nat table are there but empty, since the kernel goes on
/// translating running connections only while a nat chain exists.
pub fn rules_without_capture() -> String {
    let mut out =
        format!("table inet {NAT}\ndelete table inet {NAT}\ntable inet {RAW}\ndelete table inet {RAW}\n");
    nat(&mut out, None);
    out
}

/// Removes all three tables, whether they are there or not.
pub fn removal() -> String {
    [NAT, MANGLE, RAW].iter().fold(String::new(), |mut out, table| {
        let _ = writeln!(out, "table inet {table}\ndelete table inet {table}");
        out
    })
}

fn nat(out: &mut String, options: Option<&Options>) {
    let mut inbound = Vec::new();
    let mut outbound = Vec::new();
    if let Some(options) = options {
        inbound_rules(&mut inbound, options);
        outbound_rules(&mut outbound, options);
    }
    table(
        out,
        NAT,
        &[
            ("prerouting", Some("nat hook prerouting priority -100"), &["jump istio-prerouting".to_owned()]),
            ("output", Some("nat hook output priority -100"), &["jump istio-output".to_owned()]),
            ("istio-prerouting", None, &inbound),
            ("istio-output", None, &outbound),
        ],
    );
}

/// A connection's first packet. Anything else that the tracker sees first is the middle of an older connection.
const FIRST: &str = "tcp flags & (syn | ack) == syn";

fn not_proxy() -> String {
    format!("meta mark & {MARK_MASK:#x} != {PROXY_MARK:#x}")
}

/// The families that are carried, as match on a destination that is not loopback.
fn not_loopback(options: &Options) -> impl Iterator<Item = &'static str> {
    let v6 = options.ipv6.then_some("ip6 daddr != ::1");
    ["ip daddr != 127.0.0.1"].into_iter().chain(v6)
}

fn inbound_rules(rules: &mut Vec<String>, options: &Options) {
    for name in &options.virtual_interfaces {
        rules.push(format!(
            "iifname \"{name}\" meta l4proto tcp {FIRST} counter redirect to :{OUTBOUND_PORT}"
        ));
        rules.push(format!("iifname \"{name}\" meta l4proto tcp counter return"));
    }
    if options.ingress {
        return;
    }
    rules.push(format!("meta l4proto tcp ip saddr {} counter accept", options.probe_v4));
    if options.ipv6 {
        rules.push(format!("meta l4proto tcp ip6 saddr {} counter accept", options.probe_v6));
    }
    for elsewhere in not_loopback(options) {
        rules.push(format!(
            "{elsewhere} tcp dport != {HBONE_PORT} {FIRST} {} counter redirect to :{INBOUND_PORT}",
            not_proxy()
        ));
    }
}

fn outbound_rules(rules: &mut Vec<String>, options: &Options) {
    rules.push(format!("meta l4proto tcp ip daddr {} counter accept", options.probe_v4));
    if options.ipv6 {
        rules.push(format!("meta l4proto tcp ip6 daddr {} counter accept", options.probe_v6));
    }
    if options.dns {
        for elsewhere in not_loopback(options) {
            // A resolver on the loopback interface is left alone over UDP and TCP alike.
            let rule = format!("{elsewhere} oifname != \"lo\" {}", not_proxy());
            rules.push(format!("{rule} udp dport 53 counter redirect to :{DNS_PORT}"));
            rules.push(format!("{rule} tcp dport 53 {FIRST} counter redirect to :{DNS_PORT}"));
        }
    }
    rules.push(format!("meta l4proto tcp meta mark & {MARK_MASK:#x} == {CONN_MARK:#x} counter accept"));
    for elsewhere in not_loopback(options) {
        rules.push(format!("oifname \"lo\" {elsewhere} counter accept"));
    }
    for elsewhere in not_loopback(options) {
        rules.push(format!(
            "meta l4proto tcp {elsewhere} {FIRST} {} counter redirect to :{OUTBOUND_PORT}",
            not_proxy()
        ));
    }
}

fn mangle(out: &mut String, refuse_v6: bool) {
    let mark = format!(
        "meta mark & {MARK_MASK:#x} == {PROXY_MARK:#x} counter ct mark set ct mark & 0xfffff000 | {CONN_MARK:#x}"
    );
    let restore = format!("ct mark & {MARK_MASK:#x} == {CONN_MARK:#x} counter meta mark set ct mark");
    let refuse = |direction: &str| {
        vec![format!("{direction} != \"lo\" meta nfproto ipv6 {FIRST} counter reject with tcp reset")]
    };
    let (refuse_in, refuse_out) = (refuse("iifname"), refuse("oifname"));
    let jumps = ["jump istio-prerouting".to_owned(), "jump istio-output".to_owned()];
    let marks = [mark, restore];
    let mut chains: Vec<(&str, Option<&str>, &[String])> = vec![
        ("prerouting", Some("filter hook prerouting priority -150"), &jumps[..1]),
        ("output", Some("route hook output priority -150"), &jumps[1..]),
        ("istio-prerouting", None, &marks[..1]),
        ("istio-output", None, &marks[1..]),
    ];
    if refuse_v6 {
        chains.push(("refuse-v6-in", Some("filter hook input priority 0"), &refuse_in));
        chains.push(("refuse-v6-out", Some("filter hook output priority 0"), &refuse_out));
    }
    table(out, MANGLE, &chains);
}

/// The proxy's own queries get a connection tracking zone of their own, so that they never collide with a query
/// of the application from the same port.
fn raw(out: &mut String) {
    let sent = format!("udp dport 53 meta mark & {MARK_MASK:#x} == {PROXY_MARK:#x} counter ct zone set 1");
    let answered = format!("udp sport 53 {} counter ct zone set 1", not_proxy());
    table(
        out,
        RAW,
        &[
            (
                "prerouting",
                Some("filter hook prerouting priority -300"),
                &["jump istio-prerouting".to_owned()],
            ),
            ("output", Some("filter hook output priority -300"), &["jump istio-output".to_owned()]),
            ("istio-prerouting", None, &[answered]),
            ("istio-output", None, &[sent]),
        ],
    );
}

/// A table with its chains: the regular ones stand first, since a jump needs its target.
fn table(out: &mut String, name: &str, chains: &[(&str, Option<&str>, &[String])]) {
    let _ = writeln!(out, "table inet {name} {{");
    let (regular, base): (Vec<_>, Vec<_>) = chains.iter().partition(|(_, hook, _)| hook.is_none());
    for (chain, hook, rules) in regular.into_iter().chain(base) {
        let _ = writeln!(out, "\tchain {chain} {{");
        if let Some(hook) = hook {
            let _ = writeln!(out, "\t\ttype {hook}; policy accept;");
        }
        for rule in rules.iter() {
            let _ = writeln!(out, "\t\t{rule}");
        }
        let _ = writeln!(out, "\t}}");
    }
    let _ = writeln!(out, "}}");
}
