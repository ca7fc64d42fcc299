//! What the node agent may do: as its manifest asks, and as its processes have it.

use serde_json::{Value, json};

use crate::lab_with_mesh;
use crate::support::processes;

/// Numbers of capabilities, as of linux/capability.h.
const DAC_OVERRIDE: u64 = 1 << 1;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

fn manifest() -> Value {
    let text = include_str!("../../manifests/40-agent.yaml");
    // Variables stand where any text may; the flags among them are quoted.
    serde_saphyr::from_str(text).unwrap()
}

/// What the platforms' profiles want to be told: SELinux (OpenShift and others) a type that may look into other
/// containers, AppArmor (Debian, Ubuntu, GKE, AKS) that its default profile does not apply, in the words of old and new
/// API servers. And nothing that would make the rest pointless.
#[test]
fn the_manifest_asks_for_five_capabilities_and_names_both_kinds_of_profiles() {
    let pod = &manifest()["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    let context = &container["securityContext"];
    let wanted = json!(["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "DAC_OVERRIDE"]);
    assert_eq!(context["capabilities"], json!({"drop": ["ALL"], "add": wanted}));
    assert_eq!(context["privileged"], false);
    assert_eq!(context["seLinuxOptions"], json!({"type": "spc_t"}));
    assert_eq!(context["appArmorProfile"], json!({"type": "Unconfined"}));
    let name = container["name"].as_str().unwrap();
    let annotation = format!("container.apparmor.security.beta.kubernetes.io/{name}");
    assert_eq!(pod["metadata"]["annotations"][annotation], "unconfined");
    assert_eq!(
        pod["spec"].get("hostPID"),
        None,
        "the node's processes are seen through one mount, read-only"
    );
    let mounts = container["volumeMounts"].as_array().unwrap();
    let proc = mounts.iter().find(|mount| mount["name"] == "proc").unwrap();
    assert_eq!(proc["readOnly"], true);
}

/// NET_RAW goes too where nftables writes the rules. The bounds are the container's, but with no_new_privs no program
/// that the agent starts gets anything back from them.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_has_four_capabilities_left_and_can_get_no_more() {
    let (lab, _client) = lab_with_mesh("e2c").await;
    let agents = processes(&lab, "agent");
    assert_eq!(agents.len(), 2, "one on each node");
    for pid in agents {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let mask = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
        let kept = DAC_OVERRIDE | NET_ADMIN | SYS_PTRACE | SYS_ADMIN;
        let of_the_container = kept | NET_RAW;
        for (name, wanted) in [
            ("CapEff:", kept),
            ("CapPrm:", kept),
            ("CapBnd:", of_the_container),
            ("CapInh:", 0),
            ("CapAmb:", 0),
        ] {
            assert_eq!(mask(name), wanted, "{name} {:#x}", mask(name));
        }
        assert_eq!(field("NoNewPrivs:"), "1");
    }
}
