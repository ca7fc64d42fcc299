//! The same rule sets as chains of iptables (`enrolment.md` §2.2), for hosts without nftables. Pure; tried on a
//! kernel by the same tests as the other ones.

use super::{CONN_MARK, DNS_PORT, HBONE_PORT, INBOUND_PORT, MARK_MASK, OUTBOUND_PORT, Options, PROXY_MARK};
use crate::firewall::xtables::Chain;

const IN: &str = "ISTIO_PRERT";
const OUT: &str = "ISTIO_OUTPUT";
/// Chains of ours that refuse a family that is not carried.
const REFUSE_IN: &str = "AMBIT_REFUSE_IN";
const REFUSE_OUT: &str = "AMBIT_REFUSE_OUT";
/// A connection's first packet, see [`super`].
const FIRST: &str = "-p tcp -m tcp --tcp-flags SYN,ACK SYN";

/// How much of the redirection is to be there.
#[derive(Clone, Copy, Debug)]
pub enum Extent<'a> {
    /// All of it.
    Whole(&'a Options),
    /// Only what the connections need that the proxy holds.
    WithoutCapture,
    /// Nothing.
    Nothing,
}

/// Our chains for one family.
pub fn chains(extent: Extent<'_>, ipv6: bool) -> Vec<Chain> {
    let options = match extent {
        Extent::Whole(options) => Some(options),
        _ => None,
    };
    // A family that is not carried is refused, and has no other rules.
    let carried = !ipv6 || options.is_none_or(|options| options.ipv6);
    let some = !matches!(extent, Extent::Nothing);
    let dns = options.is_some_and(|options| options.dns) && carried;
    let refuse = options.is_some() && !carried;
    let options = options.filter(|_| carried);
    let chain = |table, hook, name, rules, wanted| Chain { table, hook, name, rules, wanted };
    let nat_in = options.map(|options| inbound(options, ipv6)).unwrap_or_default();
    let nat_out = options.map(|options| outbound(options, ipv6)).unwrap_or_default();
    let set =
        format!("-m mark --mark {} -j CONNMARK --set-xmark {CONN_MARK:#x}/{MARK_MASK:#x}", of(PROXY_MARK));
    let restore = format!(
        "-m connmark --mark {} -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        of(CONN_MARK)
    );
    let sent = format!("-p udp -m udp --dport 53 -m mark --mark {} -j CT --zone 1", of(PROXY_MARK));
    let answered = format!("-p udp -m udp --sport 53 -m mark ! --mark {} -j CT --zone 1", of(PROXY_MARK));
    let reset = |direction: &str| vec![format!("! {direction} lo {FIRST} -j REJECT --reject-with tcp-reset")];
    let mut all = vec![
        chain("mangle", "PREROUTING", IN, vec![set], some && carried),
        chain("mangle", "OUTPUT", OUT, vec![restore], some && carried),
        chain("nat", "PREROUTING", IN, nat_in, some && carried),
        chain("nat", "OUTPUT", OUT, nat_out, some && carried),
        chain("raw", "PREROUTING", IN, vec![answered], dns),
        chain("raw", "OUTPUT", OUT, vec![sent], dns),
    ];
    if ipv6 {
        all.push(chain("filter", "INPUT", REFUSE_IN, reset("-i"), refuse));
        all.push(chain("filter", "OUTPUT", REFUSE_OUT, reset("-o"), refuse));
    }
    all
}

fn of(mark: u32) -> String {
    format!("{mark:#x}/{MARK_MASK:#x}")
}

fn inbound(options: &Options, ipv6: bool) -> Vec<String> {
    let mut rules = Vec::new();
    for name in &options.virtual_interfaces {
        rules.push(format!("-i {name} {FIRST} -j REDIRECT --to-ports {OUTBOUND_PORT}"));
        rules.push(format!("-i {name} -p tcp -j RETURN"));
    }
    if options.ingress {
        return rules;
    }
    rules.push(format!("-s {} -p tcp -j ACCEPT", probe(options, ipv6)));
    rules.push(format!(
        "! -d {} {FIRST} ! --dport {HBONE_PORT} -m mark ! --mark {} -j REDIRECT --to-ports {INBOUND_PORT}",
        loopback(ipv6),
        of(PROXY_MARK)
    ));
    rules
}

fn outbound(options: &Options, ipv6: bool) -> Vec<String> {
    let mut rules = vec![format!("-d {} -p tcp -j ACCEPT", probe(options, ipv6))];
    let (elsewhere, free) =
        (format!("! -d {}", loopback(ipv6)), format!("-m mark ! --mark {}", of(PROXY_MARK)));
    if options.dns {
        // A resolver on the loopback interface is left alone over UDP and TCP alike.
        let to = format!("-j REDIRECT --to-ports {DNS_PORT}");
        rules.push(format!("{elsewhere} ! -o lo -p udp -m udp --dport 53 {free} {to}"));
        rules.push(format!("{elsewhere} ! -o lo {FIRST} --dport 53 {free} {to}"));
    }
    rules.push(format!("-p tcp -m mark --mark {} -j ACCEPT", of(CONN_MARK)));
    rules.push(format!("{elsewhere} -o lo -j ACCEPT"));
    rules.push(format!("{elsewhere} {FIRST} {free} -j REDIRECT --to-ports {OUTBOUND_PORT}"));
    rules
}

fn probe(options: &Options, ipv6: bool) -> String {
    if ipv6 { format!("{}/128", options.probe_v6) } else { format!("{}/32", options.probe_v4) }
}

fn loopback(ipv6: bool) -> &'static str {
    if ipv6 { "::1/128" } else { "127.0.0.1/32" }
}
