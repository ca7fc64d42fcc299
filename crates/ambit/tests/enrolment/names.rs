//! Names as pods resolve them: by the C library, from the `resolv.conf` that the kubelet wrote, through the capture that
//! is there unless somebody declines it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use netns::NetNs;
use serde_json::json;

use crate::support::{eventually, netns_of, processes};
use crate::{NAMESPACE, PORT, all_ready, app, create, lab_with_mesh, load, until_enrolled};

/// Where a caching resolver of the node listens.
const LOCAL: &str = "169.254.20.10";
/// More than fit into a datagram.
const MANY: u8 = 60;

/// A resolver of the node's own: knows `www.example`, and `many.example` only over TCP. Remembers what it was asked.
fn node_resolver(node: &NetNs) -> Arc<Mutex<BTreeSet<String>>> {
    let added = node.run(|| Command::new("ip").args(["addr", "add", LOCAL, "dev", "lo"]).status());
    assert!(added.unwrap().unwrap().success());
    let udp = node.run(|| UdpSocket::bind((LOCAL, 53))).unwrap().unwrap();
    let tcp = node.run(|| TcpListener::bind((LOCAL, 53))).unwrap().unwrap();
    let asked = Arc::new(Mutex::new(BTreeSet::new()));
    let (over_udp, over_tcp) = (asked.clone(), asked.clone());
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&answer(&buffer[..length], false, &over_udp), peer);
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let (Ok(mut stream), mut length) = (stream, [0; 2]) else { continue };
            if stream.read_exact(&mut length).is_err() {
                continue;
            }
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            if stream.read_exact(&mut question).is_ok() {
                let answer = answer(&question, true, &over_tcp);
                let _ = stream.write_all(&[&(answer.len() as u16).to_be_bytes(), &answer[..]].concat());
            }
        }
    });
    asked
}

fn answer(question: &[u8], tcp: bool, asked: &Mutex<BTreeSet<String>>) -> Vec<u8> {
    let (mut name, mut at) = (String::new(), 12);
    while question[at] != 0 {
        let label = &question[at + 1..=at + usize::from(question[at])];
        name += &format!("{}.", String::from_utf8_lossy(label).to_lowercase());
        at += label.len() + 1;
    }
    let asked_for_v4 = question[at + 1..at + 3] == [0, 1];
    asked.lock().unwrap().insert(name.clone());
    // Flags, and how many addresses.
    let (second, third, count) = match (&*name, tcp) {
        ("www.example.", _) => (0x81, 0x80, 1),
        ("many.example.", true) => (0x81, 0x80, MANY),
        ("many.example.", false) => (0x83, 0x80, 0),
        _ => (0x81, 0x83, 0),
    };
    let count = if asked_for_v4 { count } else { 0 };
    let mut answer =
        [&question[..2], &[second, third, 0, 1, 0, count, 0, 0, 0, 0], &question[12..at + 5]].concat();
    for last in 1..=count {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, last]);
    }
    answer
}

/// The program of the pod: others of its processes do not have its files.
fn program_of(pod: &Pod) -> i32 {
    let uid = pod.uid().unwrap();
    let tags = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let read =
        |pid: i32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let is_it = |pid: &i32| {
        let (group, command) = (read(*pid, "cgroup"), read(*pid, "cmdline"));
        tags.iter().any(|tag| group.contains(tag.as_str())) && command.contains("\0--name\0")
    };
    pids.find(is_it).expect("the pod runs")
}

/// What the C library of a program in the pod finds.
fn resolve(pod: &Pod, name: &str) -> BTreeSet<String> {
    let target = program_of(pod).to_string();
    let output = Command::new("nsenter")
        .args(["-t", &target, "-n", "-m", "getent", "ahostsv4", name])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

/// The admin server of a proxy tells what holds memory, once that is switched on.
fn tells_what_holds_memory(proxy: &NetNs) {
    let ask = |path: &str| {
        let url = format!("http://127.0.0.1:15000/debug/pprof/heap{path}");
        let output = proxy
            .run(|| Command::new("curl").args(["-sSf", "--noproxy", "*", "--max-time", "60", &url]).output());
        let output = output.unwrap().unwrap();
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(ask("/profiling?activate=true"), b"heap profiling active: true\n");
    let profile = ask("");
    assert_eq!(profile[..2], [0x1f, 0x8b], "packed, as pprof takes it");
    assert_eq!(ask("/profiling?activate=false"), b"heap profiling active: false\n");
}

/// By default the node proxy answers what the mesh knows and passes on the rest, whichever resolver a pod has; a pod
/// that declines by annotation is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_resolved_through_the_node_proxy_unless_a_pod_declines() {
    let (lab, client) = lab_with_mesh("e2n").await;
    lab.label(NAMESPACE, "ambient").await;
    let local = json!({"dnsPolicy": "None", "dnsConfig": {
        "nameservers": [LOCAL],
        "searches": ["crowd.svc.cluster.local", "svc.cluster.local", "cluster.local"],
        "options": [{"name": "ndots", "value": "5"}],
    }});
    let declines =
        json!({"labels": {"app": "declines"}, "annotations": {"ambient.istio.io/dns-capture": "false"}});
    for (name, metadata, spec) in [
        ("target", json!({"labels": {"app": "target"}}), json!({})),
        ("asks", json!({"labels": {"app": "asks"}}), json!({})),
        ("local", json!({"labels": {"app": "local"}}), local),
        ("declines", declines, json!({})),
    ] {
        let mut pod = serde_json::to_value(app(name, metadata, &[])).unwrap();
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        create(&client, &serde_json::from_value(pod).unwrap()).await;
    }
    let service = json!({"metadata": {"name": "target"}, "spec": {"selector": {"app": "target"}, "ports": [{"port": PORT}]}});
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE);
    let service: Service = serde_json::from_value(service).unwrap();
    let service = services.create(&PostParams::default(), &service).await.unwrap();
    let vip: BTreeSet<String> = service.spec.unwrap().cluster_ip.into_iter().collect();
    let pods = all_ready(&client, 4).await;
    until_enrolled(&client, &pods.keys().cloned().collect(), true).await;
    let resolvers = ["node1", "node2"]
        .map(|node| node_resolver(&NetNs::open(format!("/run/netns/ambit-{}-{node}", lab.name)).unwrap()));
    let node_was_asked = |name: &str| resolvers.iter().any(|asked| asked.lock().unwrap().contains(name));

    for asker in ["asks", "local", "declines"] {
        for name in ["target", "target.crowd", "target.crowd.svc", "target.crowd.svc.cluster.local."] {
            // The declining pod is answered by the cluster's resolver, the others by the mesh; each hears of the service
            // when it does.
            eventually(&format!("{asker} to resolve {name}"), || async {
                let found = resolve(&pods[asker], name);
                if found == vip { Ok(()) } else { Err(format!("{found:?}, not {vip:?}")) }
            })
            .await;
        }
        assert_eq!(resolve(&pods[asker], "nobody.crowd"), BTreeSet::new(), "{asker}");
    }
    assert!(!node_was_asked("target.crowd.svc.cluster.local."), "the node's resolver knows no such name");
    // Every search domain is tried first; each of these questions is passed on, and so is the last one's answer.
    assert_eq!(resolve(&pods["local"], "www.example"), ["192.0.2.1".to_owned()].into());
    assert!(node_was_asked("www.example.cluster.local.") && node_was_asked("www.example."));
    let many = (1..=MANY).map(|last| format!("192.0.2.{last}")).collect::<BTreeSet<_>>();
    assert_eq!(resolve(&pods["local"], "many.example"), many, "truncated over UDP, whole over TCP");

    let rules = |name: &str| {
        let text = lab.must(&["explain", "pod", &format!("{NAMESPACE}/{name}"), "-o", "json"]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["rules"].as_array().unwrap().len()
    };
    assert_eq!((rules("asks"), rules("declines")), (3, 2));
    let proxies = Api::<Pod>::namespaced(client.clone(), "ambit-system");
    let mut text = String::new();
    for proxy in proxies.list(&ListParams::default().labels("app=ztunnel")).await.unwrap() {
        let (netns, status) = (netns_of(&proxy).unwrap(), proxy.status.unwrap());
        tells_what_holds_memory(&netns);
        text += &load::get(&netns, &status.pod_ip.unwrap(), 15020, "/metrics").await.unwrap();
    }
    let counted = |name: &str| {
        let of_pod = format!("source_canonical_service=\"{name}\"");
        text.lines().any(|line| line.starts_with("istio_dns_requests_total{") && line.contains(&of_pod))
    };
    assert!(counted("asks") && counted("local"), "{text}");
    assert!(!counted("declines"), "{text}");

    // A proxy that dies is away for a moment; nobody has to resolve anything anew by hand.
    for pid in processes(&lab, "proxy") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    eventually("names to be resolved again", || async {
        let found = resolve(&pods["asks"], "target");
        if found == vip { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}
