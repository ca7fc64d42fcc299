//! Capabilities of a container: the default set of container runtimes, what a pod adds and drops, and no more
//! than the node has itself.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::SecurityContext;

/// All capabilities in the kernel's order.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What every container has unless it is taken away.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities of a container as runc names them. `permitted` is the node's own set, as a bit mask.
pub fn for_container(context: Option<&SecurityContext>, permitted: u64) -> Vec<String> {
    let privileged = context.and_then(|c| c.privileged).unwrap_or(false);
    let wanted = context.and_then(|c| c.capabilities.as_ref());
    let names = |list: Option<&Vec<String>>| -> Vec<String> {
        let plain = |n: &String| n.to_uppercase().trim_start_matches("CAP_").to_owned();
        list.into_iter().flatten().map(plain).collect()
    };
    let add = names(wanted.and_then(|w| w.add.as_ref()));
    let drop = names(wanted.and_then(|w| w.drop.as_ref()));

    let mut set: BTreeSet<&str> = if privileged { ALL.into() } else { DEFAULT.into() };
    if !privileged {
        if add.iter().any(|n| n == "ALL") {
            set = ALL.into();
        }
        if drop.iter().any(|n| n == "ALL") {
            set.clear();
        }
        set.retain(|n| !drop.iter().any(|d| d == n));
        set.extend(ALL.iter().filter(|n| add.iter().any(|a| a == *n)));
    }
    ALL.iter()
        .enumerate()
        .filter(|(bit, name)| permitted & (1 << bit) != 0 && set.contains(*name))
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

/// The node's own permitted set, from `/proc/self/status`.
pub fn own() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .as_deref()
        .and_then(|text| text.lines().find_map(|l| l.strip_prefix("CapPrm:")))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Capabilities;

    fn context(add: &[&str], drop: &[&str], privileged: bool) -> SecurityContext {
        let list = |names: &[&str]| Some(names.iter().map(|&n| n.to_owned()).collect());
        SecurityContext {
            privileged: Some(privileged),
            capabilities: Some(Capabilities { add: list(add), drop: list(drop) }),
            ..Default::default()
        }
    }

    #[test]
    fn the_default_set_is_that_of_container_runtimes() {
        assert_eq!(for_container(None, u64::MAX).len(), DEFAULT.len());
    }

    #[test]
    fn dropping_all_leaves_what_is_added() {
        let context = context(&["NET_ADMIN", "cap_sys_admin"], &["ALL"], false);
        assert_eq!(for_container(Some(&context), u64::MAX), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }

    #[test]
    fn nobody_has_more_than_the_node() {
        let all = for_container(Some(&context(&[], &[], true)), u64::MAX);
        assert_eq!(all.len(), ALL.len());
        let fewer = for_container(Some(&context(&[], &[], true)), !(1 << 24));
        assert!(!fewer.contains(&"CAP_SYS_RESOURCE".to_owned()));
        assert_eq!(fewer.len(), ALL.len() - 1);
    }
}
