//! Whatever a container runtime hands to the plugin: one object or nothing, an exit status that agrees, no panic.
#![no_main]

use enroll::cni::plugin::{Env, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, String, String, Vec<u8>)| {
    let (command, args, netns, config) = input;
    let commands = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "X"];
    let command = commands[usize::from(command) % commands.len()];
    let env: Env = [("CNI_COMMAND", command), ("CNI_ARGS", &args), ("CNI_NETNS", &netns)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    // No runtime directory of anybody: whatever the input names must not be there.
    let config = match serde_json::from_slice::<serde_json::Value>(&config) {
        Ok(serde_json::Value::Object(mut object)) => {
            object.insert("cni_agent_run_dir".to_owned(), "/nonexistent/ambit-fuzz".into());
            serde_json::Value::Object(object).to_string().into_bytes()
        }
        _ => config,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runtime.block_on(run(&env, &config));
    let error = outcome.stdout.as_ref().is_some_and(|object| object.get("code").is_some_and(|code| code.is_u64()));
    assert!(outcome.status == 0 || error);
});
