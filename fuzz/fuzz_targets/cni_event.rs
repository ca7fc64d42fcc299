//! Whatever comes over the agent's socket: it is understood or refused, and what is understood leads nowhere else.
#![no_main]

use enroll::cni::event::Event;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(event) = serde_json::from_slice::<Event>(input) else { return };
    let _ = event.addresses();
    if event.fault().is_none() {
        assert!(event.netns.starts_with('/'));
        assert!(!event.netns.split('/').any(|step| step == ".."));
        assert!(!event.pod_name.contains(['/', '\0', ' ']) && !event.pod_namespace.contains(['/', '\0', ' ']));
    }
});
