//! Whatever other tools write on a node: network configurations, process control groups, saved iptables rules.

use std::path::Path;

use enroll::firewall::xtables::Present;
use enroll::install::{PLUGIN, conflist};
use enroll::netns_of::pod_of_cgroup;

pub fn run(input: &[u8]) {
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
}

pub fn examples() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"cniVersion":"0.3.1","name":"k8s","plugins":[{"type":"ptp","ipam":{"type":"host-local"}},{"type":"portmap"}]}"#,
        r#"{"cniVersion":"0.3.0","name":"net","type":"bridge"}"#,
        "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f0f0f0f_0000_4000_8000_000000000001.slice/cri-containerd-abc.scope\n",
        "*nat\n:PREROUTING ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A PREROUTING -j ISTIO_PRERT\n-A ISTIO_OUTPUT -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001\nCOMMIT\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
