//! Whatever a container runtime hands to the plugin, and whatever comes over the agent's socket.

use enroll::cni::event::Event;
use enroll::cni::plugin::{Env, run};

use super::{joined, pieces, runtime};

const COMMANDS: [&str; 8] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "X"];

/// Command, arguments, network namespace and configuration: one object or nothing, an exit status that agrees.
pub fn plugin(input: &[u8]) {
    let pieces = pieces(input);
    let piece = |at: usize| pieces.get(at).map_or(&[][..], |(_, piece)| *piece);
    let text = |at: usize| String::from_utf8_lossy(piece(at)).into_owned();
    let command = COMMANDS[usize::from(piece(0).first().copied().unwrap_or_default()) % COMMANDS.len()];
    let env: Env = [("CNI_COMMAND", command.to_owned()), ("CNI_ARGS", text(1)), ("CNI_NETNS", text(2))]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    // No runtime directory of anybody: whatever the input names must not be there.
    let config = match serde_json::from_slice::<serde_json::Value>(piece(3)) {
        Ok(serde_json::Value::Object(mut object)) => {
            object.insert("cni_agent_run_dir".to_owned(), "/nonexistent/ambit-fuzz".into());
            serde_json::Value::Object(object).to_string().into_bytes()
        }
        _ => piece(3).to_vec(),
    };
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = runtime();
    }
    let outcome = RUNTIME.with(|runtime| runtime.block_on(run(&env, &config)));
    let error =
        outcome.stdout.as_ref().is_some_and(|object| object.get("code").is_some_and(|code| code.is_u64()));
    assert!(outcome.status == 0 || error, "a failure without an error object");
}

pub fn plugin_examples() -> Vec<Vec<u8>> {
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=0f0f0f0f-0000-4000-8000-000000000001";
    let config = br#"{"cniVersion":"1.0.0","name":"k8s","type":"ambit-cni","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"address":"10.0.0.7/24","gateway":"10.0.0.1","interface":0}]}}"#;
    (0..6u8)
        .map(|command| {
            joined([
                (false, &[command][..]),
                (false, args.as_bytes()),
                (false, &b"/run/netns/x"[..]),
                (false, &config[..]),
            ])
        })
        .collect()
}

/// It is understood or refused, and what is understood leads nowhere else.
pub fn event(input: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Event>(input) else { return };
    let _ = event.addresses();
    if event.fault().is_none() {
        assert!(event.netns.starts_with('/'));
        assert!(!event.netns.split('/').any(|step| step == ".."));
        assert!(
            !event.pod_name.contains(['/', '\0', ' ']) && !event.pod_namespace.contains(['/', '\0', ' '])
        );
    }
}

pub fn event_examples() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"Netns":"/run/netns/x","PodName":"web-0","PodNamespace":"shop","IPs":[{"Interface":0,"Address":{"IP":"10.0.0.7","Mask":"////AA=="},"Gateway":"10.0.0.1"}]}"#,
        r#"{"netns":"/run/netns/../x","podname":"web/0","podNamespace":"shop","ips":null}"#,
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
