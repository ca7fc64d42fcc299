//! Names, as a captured pod asks for them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use mesh::{NetworkAddress, PortMapping, Service, ServiceKey, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::control::Control;
use crate::harness::{Proxy, eventually, log, workload};
use crate::namespaces::{Node, Pod, in_a_node};
use crate::resolver::{name, serve};

const FIRST: &str = "10.77.0.1";

struct Names {
    control: Control,
    pod: Pod,
    proxy: Proxy,
    /// Where the pod sends its questions.
    server: SocketAddr,
    resolv_conf: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Names {
    /// A captured pod whose proxy asks `servers`.
    async fn new(node: &Node, servers: &[&str]) -> Self {
        log::collect();
        let (control, address) = Control::start().await;
        let pod = node.pod(2);
        let directory = tempfile::tempdir().unwrap();
        let resolv_conf = directory.path().join("resolv.conf");
        let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        std::fs::write(&resolv_conf, lines).unwrap();
        let path = resolv_conf.clone();
        let proxy =
            Proxy::start_changed("node-a", address, &[], |config| config.dns.resolv_conf = path).await;
        assert_eq!(proxy.agent.add("a", "a", &pod).await, "");
        capture(&pod);
        control.workload(&workload("a", "node-a", &pod));
        Self {
            control,
            pod,
            proxy,
            server: SocketAddr::new(servers[0].parse().unwrap(), 53),
            resolv_conf,
            _directory: directory,
        }
    }

    fn service(&self, host: &str, vips: &[&str]) -> ServiceKey {
        let key = ServiceKey::new("ns", host);
        let mut service = Service::new(host.split('.').next().unwrap(), key.clone());
        service.vips = vips.iter().map(|vip| NetworkAddress::new("", vip.parse().unwrap())).collect();
        self.control.service(&service);
        key
    }

    async fn udp(&self, question: &[u8]) -> Vec<u8> {
        let socket = datagrams(&self.pod).await;
        socket.send_to(question, self.server).await.unwrap();
        let mut answer = vec![0; 65535];
        let received = timeout(Duration::from_secs(8), socket.recv_from(&mut answer)).await;
        let (length, from) = received.expect("no answer").unwrap();
        assert_eq!(from, self.server, "it comes from where it was asked");
        answer.truncate(length);
        answer
    }

    async fn connect(&self) -> TcpStream {
        self.pod.connect(self.server).await.unwrap()
    }

    async fn tcp(&self, question: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        send(&mut stream, question).await;
        receive(&mut stream).await
    }

    /// Waits until the mesh knows the names that were put into it.
    async fn known(&self, host: &str) {
        eventually("the name is known", || async {
            read(&self.udp(&ask(host, RecordType::A, None)).await).metadata.authoritative
        })
        .await;
    }
}

async fn datagrams(pod: &Pod) -> UdpSocket {
    let socket = pod.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_nonblocking(true).unwrap();
    UdpSocket::from_std(socket).unwrap()
}

async fn send(stream: &mut TcpStream, message: &[u8]) {
    stream.write_u16(message.len() as u16).await.unwrap();
    stream.write_all(message).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let receive = async {
        let length = stream.read_u16().await.unwrap();
        let mut message = vec![0; usize::from(length)];
        stream.read_exact(&mut message).await.unwrap();
        message
    };
    timeout(Duration::from_secs(8), receive).await.expect("no answer")
}

/// The redirection of DNS that a node agent makes (reference/enrolment.md §2.4).
fn capture(pod: &Pod) {
    let rules = "table inet dns {
        chain output { type nat hook output priority -100; policy accept;
            oifname != lo meta mark & 0xfff != 0x539 udp dport 53 redirect to :15053
            ip daddr != 127.0.0.1 tcp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
            ip6 daddr != ::1 tcp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
        }
        chain raw-output { type filter hook output priority -300; policy accept;
            udp dport 53 meta mark & 0xfff == 0x539 ct zone set 1
        }
        chain raw-prerouting { type filter hook prerouting priority -300; policy accept;
            udp sport 53 meta mark & 0xfff != 0x539 ct zone set 1
        }
    }";
    pod.sh(&format!("printf '%s' '{rules}' | nft -f -"));
}

fn ask(host: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(&format!("{host}.")), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn read(bytes: &[u8]) -> Message {
    let message = Message::from_vec(bytes).unwrap();
    assert_eq!(message.metadata.id, 0x1234);
    assert_eq!(message.metadata.message_type, MessageType::Response);
    message
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    found.sort();
    found
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn names_of_the_mesh_are_answered_and_others_are_asked_for() {
    in_a_node(|node| async move {
        let asked = serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        names.service("web.ns.svc.cluster.local", &["10.96.0.7", "fd96::7"]);
        names.known("web.ns.svc.cluster.local").await;
        asked.lock().unwrap().clear();
        let upstream = [("request_protocol", "udp"), ("source_canonical_service", "a")];
        // Questions before the name was known were passed on.
        let before = names.proxy.metrics().await.sum("istio_dns_upstream_requests_total", &upstream);
        for host in ["web.ns.svc.cluster.local", "web", "WEB.ns.Svc"] {
            for (kind, ip) in [(RecordType::A, "10.96.0.7"), (RecordType::AAAA, "fd96::7")] {
                let question = ask(host, kind, None);
                for answer in [names.udp(&question).await, names.tcp(&question).await] {
                    let answer = read(&answer);
                    assert_eq!(addresses(&answer), ips(&[ip]));
                    assert_eq!(answer.answers[0].ttl, 30);
                    assert!(answer.queries[0].name().eq_case(&name(&format!("{host}."))));
                }
            }
        }
        assert!(asked.lock().unwrap().is_empty(), "nobody else was asked");
        let answer = read(&names.udp(&ask("www.example", RecordType::A, None)).await);
        assert_eq!(addresses(&answer), ips(&["192.0.2.1"]));
        assert!(!answer.metadata.authoritative);
        let (_, peer, _) = asked.lock().unwrap()[0].clone();
        assert_eq!(peer.ip(), names.pod.ip, "asked from the pod itself");
        let answer = read(&names.udp(&ask("no.such.name", RecordType::A, None)).await);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);

        let metrics = names.proxy.metrics().await;
        assert_eq!(metrics.sum("istio_dns_upstream_requests_total", &upstream), before + 2);
        assert_eq!(metrics.sum("istio_dns_upstream_request_duration_seconds_count", &upstream), before + 2);
        assert!(metrics.sum("istio_dns_requests_total", &upstream) >= before + 8);
        names.proxy.stop().await;
    });
}

#[test]
fn srv_questions_keep_their_meaning() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        names.service("stores.mon.svc.cluster.local", &[]);
        names.known("stores.mon.svc.cluster.local").await;
        for payload in [None, Some(1232)] {
            let question = ask("_grpc._tcp.stores.mon.svc.cluster.local", RecordType::SRV, payload);
            let direct = direct(&question).await;
            assert_eq!(names.udp(&question).await, direct, "byte for byte");
            assert_eq!(names.tcp(&question).await, direct);
            let answer = read(&direct);
            assert_eq!((answer.answers.len(), answer.additionals.len()), (4, 4));
        }
        names.proxy.stop().await;
    });
}

/// What the name server says to somebody who is not captured.
async fn direct(question: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((FIRST, 53)).await.unwrap();
    send(&mut stream, question).await;
    receive(&mut stream).await
}

#[test]
fn what_is_not_the_meshs_is_passed_on_and_back_unchanged() {
    in_a_node(|node| async move {
        let asked = serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        let mut update = ask("zone.example", RecordType::SOA, None);
        update[2] = 5 << 3;
        let mut odd = ask("MiXeD.example", RecordType::TXT, Some(4000));
        odd[3] |= 0x30;
        for question in [update, odd, ask("x.example", RecordType::from(65_000), None)] {
            let expected = direct(&question).await;
            for answer in [names.udp(&question).await, names.tcp(&question).await] {
                assert_eq!(answer, expected);
            }
            let arrived: Vec<_> = std::mem::take(&mut *asked.lock().unwrap());
            // The pod's own address tells the proxy's questions from the direct one.
            for wanted in [false, true] {
                let same = |(bytes, peer, tcp): &(Vec<u8>, SocketAddr, bool)| {
                    *tcp == wanted && peer.ip() == names.pod.ip && bytes[2..] == question[2..]
                };
                assert!(arrived.iter().any(same), "over the transport it came by, tcp: {wanted}");
            }
        }
        names.proxy.stop().await;
    });
}

#[test]
fn a_long_answer_fits_an_old_resolver_and_is_whole_over_tcp() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        let host = "many.ns.svc.cluster.local";
        let key = names.service(host, &[]);
        for last in 1..=60 {
            let name = format!("many-{last}");
            let identity = mesh::Identity::new("cluster.local", "ns", "many").unwrap();
            let mut endpoint = Workload::new(format!("Kubernetes//Pod/ns/{name}"), name, identity);
            endpoint.addresses = vec![IpAddr::from([10, 1, 0, last])];
            let ports = vec![PortMapping { service_port: 80, target_port: 80 }];
            endpoint.services.insert(key.clone(), ports);
            names.control.workload(&endpoint);
        }
        eventually("all are known", || async {
            read(&names.tcp(&ask(host, RecordType::A, None)).await).answers.len() == 60
        })
        .await;
        for (host, whole) in [("long.example", 43), (host, 60)] {
            for (payload, limit) in [(None, 512), (Some(600), 600)] {
                let bytes = names.udp(&ask(host, RecordType::A, payload)).await;
                let answer = read(&bytes);
                assert!(
                    bytes.len() <= limit && bytes.len() > limit - 60,
                    "{host}: {} of {limit}",
                    bytes.len()
                );
                assert!(answer.metadata.truncation && answer.answers.len() > 25, "{host}");
            }
            let roomy = read(&names.udp(&ask(host, RecordType::A, Some(1232))).await);
            let over_tcp = read(&names.tcp(&ask(host, RecordType::A, None)).await);
            for answer in [roomy, over_tcp] {
                assert!(!answer.metadata.truncation);
                assert_eq!(answer.answers.len(), whole, "{host}");
            }
        }
        names.proxy.stop().await;
    });
}

#[test]
fn answers_to_other_questions_are_dropped_and_case_is_decided_over_tcp() {
    in_a_node(|node| async move {
        let asked = serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        let answer = read(&names.udp(&ask("spoofed.example", RecordType::A, None)).await);
        assert_eq!(addresses(&answer), ips(&["192.0.2.1"]));
        let answer = read(&names.udp(&ask("CaSe.example", RecordType::A, None)).await);
        assert_eq!(addresses(&answer), ips(&["192.0.2.1"]), "what the connection said");
        let mut ids = std::collections::HashSet::new();
        let mut ports = std::collections::HashSet::new();
        asked.lock().unwrap().clear();
        for _ in 0..20 {
            names.udp(&ask("www.example", RecordType::A, None)).await;
        }
        for (bytes, peer, _) in asked.lock().unwrap().iter() {
            ids.insert([bytes[0], bytes[1]]);
            ports.insert(peer.port());
        }
        assert!(ids.len() > 15 && ports.len() > 15, "{} ids, {} ports", ids.len(), ports.len());
        names.proxy.stop().await;
    });
}

#[test]
fn a_silent_name_server_hurts_neither_others_nor_the_next_question() {
    in_a_node(|node| async move {
        const SILENT: &str = "10.77.0.200";
        crate::namespaces::sh(&format!("ip addr add {SILENT}/24 dev br0"));
        // It takes every question and says nothing.
        let silent = UdpSocket::bind((SILENT, 53)).await.unwrap();
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[SILENT, FIRST]).await;
        names.service("web.ns.svc.cluster.local", &["10.96.0.7"]);
        names.known("web.ns.svc.cluster.local").await;
        for round in 0..10 {
            let start = tokio::time::Instant::now();
            let answer = read(&names.udp(&ask("www.example", RecordType::A, None)).await);
            assert_eq!(addresses(&answer), ips(&["192.0.2.1"]));
            let took = start.elapsed();
            let most = if round < 2 { Duration::from_secs(3) } else { Duration::from_millis(450) };
            assert!(took < most, "question {round} took {took:?}");
        }
        let mut buffer = [0; 512];
        assert!(silent.try_recv_from(&mut buffer).is_ok(), "it was asked first");
        // With nobody else to ask, names of the mesh are answered, and the others fail in time and say so.
        std::fs::write(&names.resolv_conf, "nameserver 10.77.0.201\n").unwrap();
        eventually("the name servers are read anew", || async {
            let answer = read(&names.udp(&ask("www.example", RecordType::A, None)).await);
            answer.metadata.response_code == ResponseCode::ServFail
        })
        .await;
        let slow = ask("silent.example", RecordType::A, None);
        let waiting = names.udp(&slow);
        let quick = async {
            let start = tokio::time::Instant::now();
            names.udp(&ask("web", RecordType::A, None)).await;
            start.elapsed()
        };
        let (failed, quick) = tokio::join!(waiting, quick);
        assert_eq!(read(&failed).metadata.response_code, ResponseCode::ServFail);
        assert!(quick < Duration::from_secs(1), "{quick:?}");
        let metrics = names.proxy.metrics().await;
        assert!(metrics.sum("istio_dns_upstream_failures_total", &[("request_query_type", "a")]) >= 2);
        names.proxy.stop().await;
    });
}

#[test]
fn a_broken_name_server_is_not_the_last_word() {
    in_a_node(|node| async move {
        const REFUSING: &str = "10.77.0.1";
        const BROKEN: &str = "10.77.0.202";
        const GOOD: &str = "10.77.0.203";
        crate::namespaces::sh(&format!("ip addr add {BROKEN}/24 dev br0 && ip addr add {GOOD}/24 dev br0"));
        let broken = UdpSocket::bind((BROKEN, 53)).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, peer)) = broken.recv_from(&mut buffer).await {
                buffer[2] |= 0x80;
                buffer[3] = 2;
                let _ = broken.send_to(&buffer[..length], peer).await;
            }
        });
        serve(GOOD.parse().unwrap()).await;
        // Nobody listens at the first, the second has trouble, the third knows.
        let names = Names::new(&node, &[REFUSING, BROKEN, GOOD]).await;
        let start = tokio::time::Instant::now();
        let answer = read(&names.udp(&ask("www.example", RecordType::A, None)).await);
        assert_eq!(addresses(&answer), ips(&["192.0.2.1"]));
        assert!(start.elapsed() < Duration::from_millis(450), "nothing was waited for");
        let answer = read(&names.udp(&ask("broken.example", RecordType::A, None)).await);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "when all say so");
        names.proxy.stop().await;
    });
}

#[test]
fn questions_that_follow_each_other_on_a_connection_do_not_wait_for_each_other() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        names.service("web.ns.svc.cluster.local", &["10.96.0.7"]);
        names.known("web.ns.svc.cluster.local").await;
        let mut stream = names.connect().await;
        let mut all = Vec::new();
        for (id, host) in [(1u8, "silent.example"), (2, "web"), (3, "www.example"), (4, "WEB.ns")] {
            let mut question = ask(host, RecordType::A, None);
            question[1] = id;
            all.extend((question.len() as u16).to_be_bytes());
            all.extend(question);
        }
        stream.write_all(&all).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(receive(&mut stream).await[1]);
        }
        assert_eq!(order[3], 1, "the slow one is last, and is answered though we have ended: {order:?}");
        let mut rest = Vec::new();
        assert_eq!(timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap().unwrap(), 0);
        names.proxy.stop().await;
    });
}

#[test]
fn a_pod_that_asks_too_much_is_told_and_is_served_again_afterwards() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        names.service("web.ns.svc.cluster.local", &["10.96.0.7"]);
        names.known("web.ns.svc.cluster.local").await;
        let socket = datagrams(&names.pod).await;
        let mut buffer = [0; 512];
        let mut refused = false;
        for id in 0..2000u16 {
            let mut question = ask("silent.example", RecordType::A, None);
            question[..2].copy_from_slice(&id.to_be_bytes());
            socket.send_to(&question, names.server).await.unwrap();
            // No faster than they are read.
            if timeout(Duration::from_millis(1), socket.recv_from(&mut buffer)).await.is_ok() {
                refused = true;
                break;
            }
        }
        assert!(refused, "told at once");
        assert_eq!(buffer[3] & 0xf, 2);
        let start = tokio::time::Instant::now();
        assert_eq!(addresses(&read(&names.udp(&ask("web", RecordType::A, None)).await)), ips(&["10.96.0.7"]));
        assert!(start.elapsed() < Duration::from_secs(1), "names of the mesh do not wait");
        eventually("others are answered again", || async {
            read(&names.udp(&ask("www.example", RecordType::A, None)).await).metadata.response_code
                == ResponseCode::NoError
        })
        .await;
        names.proxy.stop().await;
    });
}

#[test]
fn a_question_waits_for_its_pod_to_be_announced() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        let late = node.pod(9);
        assert_eq!(names.proxy.agent.add("late", "late", &late).await, "");
        capture(&late);
        let socket = datagrams(&late).await;
        socket.send_to(&ask("www.example", RecordType::A, None), names.server).await.unwrap();
        let mut buffer = [0; 512];
        let none = timeout(Duration::from_millis(300), socket.recv_from(&mut buffer)).await;
        assert!(none.is_err(), "who asks is not known yet");
        names.control.workload(&workload("late", "node-a", &late));
        let (length, _) =
            timeout(Duration::from_secs(5), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(addresses(&read(&buffer[..length])), ips(&["192.0.2.1"]));
        names.proxy.stop().await;
    });
}

#[test]
fn a_pod_that_is_never_announced_keeps_its_name_servers() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        let never = node.pod(9);
        assert_eq!(names.proxy.agent.add("never", "never", &never).await, "");
        capture(&never);
        let socket = datagrams(&never).await;
        for patience in [Duration::from_secs(4), Duration::from_secs(1)] {
            // Resolver libraries give up after five seconds; only the first question waits for the pod's name.
            socket.send_to(&ask("www.example", RecordType::A, None), names.server).await.unwrap();
            let mut buffer = [0; 512];
            let received = timeout(patience, socket.recv_from(&mut buffer)).await;
            let (length, _) = received.unwrap_or_else(|_| panic!("no answer within {patience:?}")).unwrap();
            assert_eq!(addresses(&read(&buffer[..length])), ips(&["192.0.2.1"]));
        }
        names.proxy.stop().await;
    });
}

#[test]
fn both_families_are_served_and_a_pod_without_ipv6_too() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        names.service("web.ns.svc.cluster.local", &["10.96.0.7"]);
        names.known("web.ns.svc.cluster.local").await;
        let socket = names.pod.netns.run(|| std::net::UdpSocket::bind("[::1]:0")).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(&ask("web", RecordType::A, None), "[::1]:15053").unwrap();
        let mut buffer = [0; 512];
        let (length, _) =
            tokio::task::spawn_blocking(move || socket.recv_from(&mut buffer).map(|r| (r.0, buffer)))
                .await
                .unwrap()
                .map(|(length, found)| {
                    buffer = found;
                    (length, ())
                })
                .unwrap();
        assert_eq!(addresses(&read(&buffer[..length])), ips(&["10.96.0.7"]));

        let old = node.pod(10);
        old.sh("echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
        assert_eq!(names.proxy.agent.add("old", "old", &old).await, "", "it is not failed for IPv6");
        let taken = node.pod(11);
        let _other = taken.netns.run(|| std::net::UdpSocket::bind("127.0.0.1:15053")).unwrap().unwrap();
        let refusal = names.proxy.agent.add("taken", "taken", &taken).await;
        assert!(refusal.contains("15053"), "{refusal}");
        names.proxy.stop().await;
    });
}

#[test]
fn a_pod_is_not_served_when_dns_is_switched_off() {
    in_a_node(|node| async move {
        let (_control, address) = Control::start().await;
        let proxy = Proxy::start_with("node-a", address, &[("ISTIO_META_DNS_CAPTURE", "false")]).await;
        let pod = node.pod(2);
        assert_eq!(proxy.agent.add("a", "a", &pod).await, "");
        let bound = pod.netns.run(|| std::net::UdpSocket::bind("127.0.0.1:15053")).unwrap();
        assert!(bound.is_ok(), "the port is the pod's own");
        proxy.stop().await;
    });
}

#[test]
fn a_real_client_resolves_through_the_capture() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        names.service("web.ns.svc.cluster.local", &["10.96.0.7", "fd96::7"]);
        names.known("web.ns.svc.cluster.local").await;
        for (arguments, expected) in [
            ("web.ns.svc.cluster.local A", "10.96.0.7\n"),
            ("+tcp web.ns.svc.cluster.local AAAA", "fd96::7\n"),
            ("+noedns www.example A", "192.0.2.1\n"),
            ("txt.example TXT", "\"nobody touches this\"\n"),
            ("+tcp +keepopen www.example A other.example A", "192.0.2.1\n192.0.2.1\n"),
        ] {
            let (netns, server) = (names.pod.netns.clone(), format!("@{}", names.server.ip()));
            let run = move || {
                let words = arguments.split(' ');
                let dig = std::process::Command::new("dig")
                    .args([server.as_str(), "+short", "+time=5"])
                    .args(words)
                    .output();
                dig.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            };
            let output = tokio::task::spawn_blocking(move || netns.run(run)).await.unwrap().unwrap();
            match output {
                Ok(output) => assert_eq!(output, expected, "{arguments}"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    eprintln!("dig is not installed (package dnsutils): only our own client was tried");
                }
                Err(error) => panic!("{error}"),
            }
        }
        names.proxy.stop().await;
    });
}

#[test]
fn the_name_server_that_the_pod_asks_is_asked() {
    in_a_node(|node| async move {
        const ITS_OWN: &str = "10.77.0.204";
        crate::namespaces::sh(&format!(
            "ip addr add {ITS_OWN}/24 dev br0 && ip addr add fd77::1/64 dev br0 nodad"
        ));
        let asked = serve(FIRST.parse().unwrap()).await;
        let asked_too = serve(ITS_OWN.parse().unwrap()).await;
        let asked_v6 = serve("fd77::1".parse().unwrap()).await;
        let mut names = Names::new(&node, &[FIRST]).await;
        names.server = SocketAddr::new(ITS_OWN.parse().unwrap(), 53);
        let question = ask("www.example", RecordType::A, None);
        for answer in [names.udp(&question).await, names.tcp(&question).await] {
            assert_eq!(addresses(&read(&answer)), ips(&["192.0.2.1"]));
        }
        let over = |tcp: bool| asked_too.lock().unwrap().iter().any(|asked| asked.2 == tcp);
        assert!(over(false) && over(true));
        let socket = names.pod.netns.run(|| std::net::UdpSocket::bind("[::]:0")).unwrap().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = UdpSocket::from_std(socket).unwrap();
        socket.send_to(&question, "[fd77::1]:53").await.unwrap();
        let mut buffer = [0; 512];
        let received = timeout(Duration::from_secs(8), socket.recv_from(&mut buffer)).await;
        let (length, from) = received.expect("no answer").unwrap();
        assert_eq!(from, "[fd77::1]:53".parse().unwrap());
        assert_eq!(addresses(&read(&buffer[..length])), ips(&["192.0.2.1"]));
        assert!(!asked_v6.lock().unwrap().is_empty());
        assert!(asked.lock().unwrap().is_empty(), "nobody else");
        names.proxy.stop().await;
    });
}

#[test]
fn a_transfer_of_several_messages_arrives_whole() {
    in_a_node(|node| async move {
        serve(FIRST.parse().unwrap()).await;
        let names = Names::new(&node, &[FIRST]).await;
        let mut stream = names.connect().await;
        send(&mut stream, &ask("zone.example", RecordType::AXFR, None)).await;
        for last in 1..=3 {
            let part = read(&receive(&mut stream).await);
            assert_eq!(addresses(&part), [IpAddr::from([192, 0, 2, last])]);
        }
        names.proxy.stop().await;
    });
}

#[test]
fn nobody_is_asked_twice_to_change_something() {
    in_a_node(|node| async move {
        // It takes what it is told and says nothing.
        let silent = UdpSocket::bind((FIRST, 53)).await.unwrap();
        let names = Names::new(&node, &[FIRST, "10.77.0.200"]).await;
        let mut update = ask("zone.example", RecordType::SOA, None);
        update[2] = 5 << 3;
        let answer = read(&names.udp(&update).await);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(answer.metadata.op_code, OpCode::Update);
        let mut buffer = [0; 512];
        assert!(silent.try_recv_from(&mut buffer).is_ok());
        assert!(silent.try_recv_from(&mut buffer).is_err(), "once");
        names.proxy.stop().await;
    });
}
