//! Variables of other node proxies that this one knows and will not follow (docs/decisions/0008): an error at the start
//! says why, where ignoring them would leave a user with something else than was asked for.

use super::ConfigError;
use super::env::{Vars, error};

/// Refuses what cannot be followed; a value that only says the default passes.
pub(super) fn check(vars: &Vars) -> Result<(), ConfigError> {
    if let Some(mode) = vars.text("PROXY_MODE").filter(|mode| *mode != "shared") {
        let why = match mode {
            "dedicated" => {
                "a proxy for a single pod is not supported: this one serves all pods of its node, each under its own \
                 identity; leave PROXY_MODE out, or set it to `shared`"
            }
            _ => "only `shared` is supported",
        };
        return Err(error("PROXY_MODE", mode, why));
    }
    if let Some(info) = vars.text("PROXY_WORKLOAD_INFO") {
        let why = "it is for a proxy of a single pod, which is not supported: pods are told by the node agent; leave \
                   it out";
        return Err(error("PROXY_WORKLOAD_INFO", info, why));
    }
    for (variable, wanted, why) in [
        ("ENABLE_PROXY", true, "a node proxy that carries nothing would leave every pod without a network"),
        (
            "UNSTABLE_ENABLE_SOCKS5",
            false,
            "SOCKS5 is not supported: connections are captured, applications need no proxy settings",
        ),
        ("FAKE_CA", false, "certificates that nobody checks prove nothing; set CA_ADDRESS"),
    ] {
        if vars.flag(variable)?.is_some_and(|value| value != wanted) {
            return Err(error(variable, vars.text(variable).unwrap_or_default(), why));
        }
    }
    if let Some(address) = vars.text("ISTIO_META_DNS_PROXY_ADDR")
        && !matches!(address, "127.0.0.1:15053" | "localhost:15053" | "[::1]:15053")
    {
        let why =
            "captured DNS is redirected to port 15053 on the pod's loopback, nothing else would be reached";
        return Err(error("ISTIO_META_DNS_PROXY_ADDR", address, why));
    }
    Ok(())
}
