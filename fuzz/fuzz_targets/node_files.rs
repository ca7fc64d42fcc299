//! Whatever other tools write on a node: network configurations, process control groups, saved iptables rules.
#![no_main]

use std::path::Path;

use enroll::firewall::xtables::Present;
use enroll::install::{PLUGIN, conflist};
use enroll::netns_of::pod_of_cgroup;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    if let Some(uid) = pod_of_cgroup(&text) {
        assert_eq!(uid.len(), 36);
    }
    let _ = Present::read(&text);
    let Ok(config) = serde_json::from_slice(input) else { return };
    let entry = conflist::entry(Path::new("/run/x"), "mesh", "agent-", &[]);
    for list in [false, true] {
        let Ok(with) = conflist::with_entry(&config, &entry, list) else { continue };
        assert!(conflist::is_valid(&with, true));
        assert_eq!(with["plugins"].as_array().and_then(|all| all.last()), Some(&entry));
        assert_eq!(conflist::with_entry(&with, &entry, true).as_ref(), Ok(&with));
        assert!(!conflist::has_entry(&conflist::without_entry(&with, PLUGIN), PLUGIN));
    }
});
