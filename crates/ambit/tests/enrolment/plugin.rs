//! The plugin as container runtimes and `cnitool` call it: environment and standard input in, one JSON object and an
//! exit status out.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::AMBIT;

struct Called {
    dir: tempfile::TempDir,
}

impl Called {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(AMBIT, dir.path().join("ambit-cni")).unwrap();
        Self { dir }
    }

    fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    fn call(&self, env: &[(&str, &str)], input: &[u8]) -> Output {
        let mut child = Command::new(self.dir.path().join("ambit-cni"))
            .env_clear()
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have heard enough before the end.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    fn add(&self, input: &[u8]) -> (Option<i32>, Value) {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u";
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_NETNS", "/var/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", args),
        ];
        let output = self.call(&env, input);
        // One object and nothing else, also on failure.
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "net", "type": "ambit-cni", "cni_agent_run_dir": self.run_dir(),
            "pod_namespace": "ambit-system", "agent_pod_prefix": "ambit-agent-", "exclude_namespaces": ["kube-system"],
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}], "dns": {}},
        })
    }
}

#[test]
fn versions_are_told_and_the_harmless_commands_say_nothing() {
    let plugin = Called::new();
    let output = plugin.call(&[("CNI_COMMAND", "VERSION")], b"{\"cniVersion\":\"1.0.0\"}");
    let versions: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success());
    assert!(versions["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        // Whatever is gone: agent, socket, namespace, even the configuration.
        for input in [&b""[..], b"{\"cniVersion\":\"1.0.0\"}", b"\x00\xff"] {
            let output = plugin.call(&[("CNI_COMMAND", command)], input);
            assert!(output.status.success() && output.stdout.is_empty(), "{command}");
        }
    }
}

#[test]
fn without_an_agent_a_pod_outside_the_mesh_starts_and_one_inside_is_told_to_wait() {
    let plugin = Called::new();
    let known = enroll::config::known_file(plugin.run_dir());
    enroll::cni::Known { namespaces: ["other".to_owned()].into() }.write(&known).unwrap();
    let config = plugin.config();
    assert_eq!(plugin.add(config.to_string().as_bytes()), (Some(0), config["prevResult"].clone()));
    enroll::cni::Known { namespaces: ["shop".to_owned()].into() }.write(&known).unwrap();
    let (status, error) = plugin.add(config.to_string().as_bytes());
    assert_eq!((status, &error["code"]), (Some(1), &json!(11)));
    assert!(error["msg"].as_str().unwrap().contains("Ambit node agent"), "{error}");
}

#[test]
fn hostile_input_is_answered_with_an_error_and_never_hangs_or_panics() {
    let plugin = Called::new();
    let mut bad_version = plugin.config();
    bad_version["cniVersion"] = json!("99.0.0");
    let mut bad_result = plugin.config();
    bad_result["prevResult"] = json!({"ips": [{"address": {"x": 1}}]});
    let mut deep = "[".repeat(400_000);
    deep.push_str(&"]".repeat(400_000));
    let mut endless = b"{\"cniVersion\": \"1.0.0\", \"x\": \"".to_vec();
    endless.resize(4 << 20, b'a');
    for (input, code) in [
        (&b""[..], 6),
        (b"null", 6),
        (b"{\"cniVersion\"", 6),
        (b"\xff\xfe\x00", 6),
        (deep.as_bytes(), 6),
        (&endless, 6),
        (bad_version.to_string().as_bytes(), 1),
        (bad_result.to_string().as_bytes(), 7),
    ] {
        let (status, error) = plugin.add(input);
        assert_eq!(
            (status, &error["code"]),
            (Some(1), &json!(code)),
            "{}",
            String::from_utf8_lossy(&input[..input.len().min(60)])
        );
    }
    let output = plugin.call(
        &[
            ("CNI_COMMAND", "ADD"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=../../x"),
            ("CNI_NETNS", "/x"),
        ],
        plugin.config().to_string().as_bytes(),
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["code"], 4);
}

/// Every command in every version of the specification: what is no ADD never stands in the way, an ADD without an
/// agent is one object of the version that was asked in, and an unknown version is named beside those that are known.
#[test]
fn every_command_keeps_its_promise_in_every_version() {
    let plugin = Called::new();
    let known = enroll::config::known_file(plugin.run_dir());
    enroll::cni::Known { namespaces: ["other".to_owned()].into() }.write(&known).unwrap();
    let all = enroll::cni::plugin::VERSIONS;
    for version in all {
        let mut config = plugin.config();
        config["cniVersion"] = json!(version);
        config["prevResult"] = match version {
            "0.1.0" | "0.2.0" => json!({"cniVersion": version, "ip4": {"ip": "10.1.2.3/24"}, "dns": {}}),
            _ => {
                json!({"cniVersion": version, "ips": [{"version": "4", "address": "10.1.2.3/24"}], "dns": {}})
            }
        };
        let text = config.to_string();
        let (status, result) = plugin.add(text.as_bytes());
        assert_eq!((status, &result), (Some(0), &config["prevResult"]), "ADD {version}");
        // Alone in a configuration of its own there is nothing to hand on.
        config.as_object_mut().unwrap().remove("prevResult");
        let (status, result) = plugin.add(config.to_string().as_bytes());
        assert_eq!((status, &result["cniVersion"]), (Some(0), &json!(version)), "ADD alone {version}");
        for command in ["DEL", "CHECK", "GC", "STATUS"] {
            let output = plugin.call(&[("CNI_COMMAND", command)], text.as_bytes());
            assert!(output.status.success() && output.stdout.is_empty(), "{command} {version}");
        }
        let output = plugin.call(&[("CNI_COMMAND", "VERSION")], text.as_bytes());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["cniVersion"], &answer["supportedVersions"]), (&json!(version), &json!(all)));
    }
    let mut config = plugin.config();
    config["cniVersion"] = json!("2.0.0");
    let (status, error) = plugin.add(config.to_string().as_bytes());
    assert_eq!((status, &error["code"]), (Some(1), &json!(1)));
    assert!(error["details"].as_str().unwrap().contains("1.1.0"), "{error}");
    for command in ["", "add", "ADD ", "\u{fffd}"] {
        let output = plugin.call(&[("CNI_COMMAND", command)], plugin.config().to_string().as_bytes());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["code"], 4, "{command:?}");
    }
}
