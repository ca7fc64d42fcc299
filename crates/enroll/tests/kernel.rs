//! The promises that only a kernel can keep: redirection, probe exemption and the ending of older connections, in
//! network namespaces of the test's own. They have no names, so nothing is left of them however a test ends.
//! Needs root, `nft` and `ip`.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enroll::config::{PROBE_SNAT_V4, PROBE_SNAT_V6};
use enroll::firewall::{self, Backend};
use enroll::metrics::Metrics;
use enroll::netns_of;
use enroll::older::diag::Diag;
use enroll::older::sweep::{Drained, Pod, Sweeper, drain};
use enroll::older::{Exempt, Outside, Policy};
use enroll::probes;
use enroll::redirect::{self, Options};
use enroll::strict::Strictness;
use netns::NetNs;
use nix::sched::{CloneFlags, unshare};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

/// A fresh namespace with loopback up.
fn namespace() -> NetNs {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        NetNs::current().unwrap()
    });
    let made = made.join().unwrap();
    ip(&made, "link set lo up");
    made
}

fn ip(ns: &NetNs, args: &str) {
    let output = ns.run(|| Command::new("ip").args(args.split(' ')).output()).unwrap().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A node with two pods, each on its own link to the node.
struct Net {
    node: NetNs,
    a: NetNs,
    b: NetNs,
}

const A: &str = "10.77.1.2";
const B: &str = "10.77.2.2";
const A6: &str = "fd77:1::2";
const B6: &str = "fd77:2::2";

fn net() -> Net {
    let node = namespace();
    let (a, b) = (namespace(), namespace());
    for (n, pod) in [(1, &a), (2, &b)] {
        let fd = format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd());
        ip(&node, &format!("link add pod{n} type veth peer name eth0 netns {fd}"));
        ip(&node, &format!("link set pod{n} up"));
        ip(&node, &format!("addr add 10.77.{n}.1/24 dev pod{n}"));
        ip(&node, &format!("addr add fd77:{n}::1/64 dev pod{n} nodad"));
        ip(pod, "link set eth0 up");
        ip(pod, &format!("addr add 10.77.{n}.2/24 dev eth0"));
        ip(pod, &format!("addr add fd77:{n}::2/64 dev eth0 nodad"));
        ip(pod, &format!("route add default via 10.77.{n}.1"));
        ip(pod, &format!("-6 route add default via fd77:{n}::1"));
    }
    node.run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    })
    .unwrap();
    settled(&a, A6);
    settled(&b, B6);
    Net { node, a, b }
}

/// The kernel makes the route of a new IPv6 address in its own time, also where it need not be sure of it.
fn settled(ns: &NetNs, address: &str) {
    let routes = || Command::new("ip").args(["-6", "route", "show", "table", "local"]).output().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !String::from_utf8_lossy(&ns.run(routes).unwrap().stdout).contains(&format!("local {address} ")) {
        assert!(Instant::now() < deadline, "{address} never came");
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn listen(ns: &NetNs, port: u16) -> TcpListener {
    let listener = ns.run(|| TcpListener::bind(("::", port))).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port()));
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert!(Instant::now() < deadline, "nobody connected");
        std::thread::yield_now();
    }
}

fn connect(ns: &NetNs, to: SocketAddr) -> TcpStream {
    let stream = ns.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn connect_marked(ns: &NetNs, to: SocketAddr) -> TcpStream {
    let socket = ns
        .run(|| socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None))
        .unwrap()
        .unwrap();
    socket.set_mark(redirect::PROXY_MARK).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    socket.into()
}

fn original_destination(stream: &TcpStream, v6: bool) -> SocketAddr {
    use nix::sys::socket::{getsockopt, sockopt};
    if v6 {
        let a = getsockopt(stream, sockopt::Ip6tOriginalDst).unwrap();
        SocketAddr::new(std::net::Ipv6Addr::from(a.sin6_addr.s6_addr).into(), u16::from_be(a.sin6_port))
    } else {
        let a = getsockopt(stream, sockopt::OriginalDst).unwrap();
        SocketAddr::new(
            std::net::Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)).into(),
            u16::from_be(a.sin_port),
        )
    }
}

fn options() -> Options {
    Options {
        ipv6: true,
        dns: false,
        ingress: false,
        virtual_interfaces: vec![],
        probe_v4: PROBE_SNAT_V4,
        probe_v6: PROBE_SNAT_V6,
    }
}

fn say(from: &mut TcpStream, to: &mut TcpStream, what: &[u8]) {
    from.write_all(what).unwrap();
    let mut got = vec![0; what.len()];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, what);
}

/// All that the mesh could have left in a namespace.
fn traces(ns: &NetNs) -> String {
    let commands: [&[&str]; 5] = [
        &["nft", "list", "ruleset"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
    ];
    ns.run(|| {
        commands
            .iter()
            .map(|c| Command::new(c[0]).args(&c[1..]).output().unwrap())
            .flat_map(|output| {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                // Link-local addresses come when the kernel has made sure of them.
                text.lines().filter(|line| !line.contains("fe80")).map(str::to_owned).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
            .join("\n")
    })
    .unwrap()
}

/// The ways to write rules that work here; nftables must.
fn backends() -> Vec<Backend> {
    let all = ["nft", "iptables-nft", "iptables-legacy"].map(|name| Backend::named(name).unwrap());
    let works: Vec<Backend> = all.into_iter().filter(|backend| backend.works().is_ok()).collect();
    assert!(works.contains(&Backend::Nft));
    println!(
        "rules are written with {}",
        works.iter().map(Backend::to_string).collect::<Vec<_>>().join(", ")
    );
    works
}

/// What the mesh could have left. iptables leaves its own empty chains behind, which are nobody's.
fn ours(ns: &NetNs, backend: Backend) -> String {
    if backend == Backend::Nft {
        return traces(ns);
    }
    let saved = |program: &str| {
        let output = ns.run(|| Command::new(program).output()).unwrap().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let Backend::Iptables(variant) = backend else { unreachable!() };
    let rules = saved(&variant.program(false, "save")) + &saved(&variant.program(true, "save"));
    let rules = rules.lines().filter(|line| line.contains("ISTIO") || line.contains("AMBIT"));
    let routes = traces(ns);
    let routes = routes.lines().filter(|line| line.contains("lookup 100") || line.contains("table 100"));
    rules.chain(routes).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn new_connections_of_a_pod_go_to_the_proxy_and_nothing_is_left_after_it() {
    for backend in backends() {
        let net = net();
        let before = ours(&net.a, backend);
        for _ in 0..2 {
            redirect::apply(&net.a, &options(), backend).await.unwrap();
        }
        let (out, inbound) = (listen(&net.a, 15001), listen(&net.a, 15006));
        let (app_a, app_b) = (listen(&net.a, 8080), listen(&net.b, 8080));
        for (v6, a, b) in [(false, A, B), (true, A6, B6)] {
            let _client = connect(&net.a, at(b, 8080));
            let (proxy, _) = accept(&out);
            assert_eq!(original_destination(&proxy, v6), at(b, 8080));

            let client = connect(&net.b, at(a, 8080));
            let (proxy, peer) = accept(&inbound);
            assert_eq!(original_destination(&proxy, v6), at(a, 8080));
            assert_eq!(peer, client.local_addr().unwrap(), "the caller's address is kept");

            // The proxy itself, tunnels to it, and a pod that talks to itself are not captured.
            let _direct = connect_marked(&net.a, at(b, 8080));
            assert_eq!(accept(&app_b).1.ip(), a.parse::<IpAddr>().unwrap());
            let tunnels = listen(&net.a, if v6 { 15018 } else { 15008 });
            if !v6 {
                let _tunnel = connect(&net.b, at(a, 15008));
                accept(&tunnels);
            }
            let _self = connect(&net.a, at(a, 8080));
            accept(&app_a);
            let _loopback = connect(&net.a, at(if v6 { "::1" } else { "127.0.0.1" }, 8080));
            accept(&app_a);
        }
        redirect::remove(&net.a, backend).await.unwrap();
        redirect::remove(&net.a, backend).await.unwrap();
        assert_eq!(ours(&net.a, backend), before);
        let _direct = connect(&net.a, at(B, 8080));
        accept(&app_b);
    }
}

#[tokio::test]
async fn the_applications_answers_come_back_to_a_proxy_that_uses_the_callers_address() {
    for backend in backends() {
        let net = net();
        redirect::apply(&net.a, &options(), backend).await.unwrap();
        let app = listen(&net.a, 8080);
        let socket = net
            .a
            .run(|| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None))
            .unwrap()
            .unwrap();
        socket.set_mark(redirect::PROXY_MARK).unwrap();
        socket.set_ip_transparent_v4(true).unwrap();
        socket.bind(&at(B, 0).into()).unwrap();
        socket.connect_timeout(&at(A, 8080).into(), PATIENCE).unwrap();
        let mut proxy: TcpStream = socket.into();
        let (mut app, peer) = accept(&app);
        assert_eq!(peer.ip(), B.parse::<IpAddr>().unwrap());
        say(&mut proxy, &mut app, b"request");
        say(&mut app, &mut proxy, b"answer");
    }
}

#[tokio::test]
async fn running_connections_survive_the_rules_and_their_removal() {
    for backend in backends() {
        let net = net();
        let (app_a, app_b) = (listen(&net.a, 8080), listen(&net.b, 8080));
        let (_out, _in) = (listen(&net.a, 15001), listen(&net.a, 15006));
        let mut pairs = Vec::new();
        for (a, b) in [(A, B), (A6, B6)] {
            pairs.push((connect(&net.a, at(b, 8080)), accept(&app_b).0));
            pairs.push((connect(&net.b, at(a, 8080)), accept(&app_a).0));
        }
        let mut talk = |what: &[u8]| {
            for (client, server) in &mut pairs {
                say(client, server, what);
                say(server, client, what);
            }
        };
        talk(b"before");
        redirect::apply(&net.a, &options(), backend).await.unwrap();
        talk(b"enrolled");
        redirect::apply(&net.a, &Options { dns: true, ..options() }, backend).await.unwrap();
        talk(b"changed");
        redirect::remove(&net.a, backend).await.unwrap();
        talk(b"removed");
    }
}

#[tokio::test]
async fn connections_held_by_the_proxy_go_on_while_the_pod_leaves() {
    for backend in backends() {
        let net = net();
        redirect::apply(&net.a, &options(), backend).await.unwrap();
        let (out, inbound) = (listen(&net.a, 15001), listen(&net.a, 15006));
        let (app_a, app_b) = (listen(&net.a, 8080), listen(&net.b, 8080));
        let mut client = connect(&net.a, at(B, 8080));
        let (mut proxy, _) = accept(&out);
        let mut caller = connect(&net.b, at(A, 8080));
        let (mut proxy_in, _) = accept(&inbound);
        redirect::stop_capturing(&net.a, backend).await.unwrap();
        say(&mut client, &mut proxy, b"request");
        say(&mut proxy, &mut client, b"answer");
        say(&mut caller, &mut proxy_in, b"request");
        say(&mut proxy_in, &mut caller, b"answer");
        let _direct = connect(&net.a, at(B, 8080));
        accept(&app_b);
        let _direct = connect(&net.b, at(A, 8080));
        accept(&app_a);
        redirect::remove(&net.a, backend).await.unwrap();
    }
}

#[tokio::test]
async fn where_ipv6_is_not_carried_it_is_refused_at_once() {
    for backend in backends() {
        let net = net();
        redirect::apply(&net.a, &Options { ipv6: false, ..options() }, backend).await.unwrap();
        let _apps = (listen(&net.a, 8080), listen(&net.b, 8080));
        for (from, to) in [(&net.a, B6), (&net.b, A6)] {
            let refused =
                from.run(|| TcpStream::connect_timeout(&at(to, 8080), PATIENCE)).unwrap().unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        let _loopback = connect(&net.a, at("::1", 8080));
    }
}

#[tokio::test]
async fn probes_of_the_node_reach_the_application_and_forwarded_traffic_does_not() {
    let net = net();
    redirect::apply(&net.a, &options(), Backend::Nft).await.unwrap();
    let mut exempt = probes::Exempt::default();
    exempt.set("uid-a", &[A.parse().unwrap(), A6.parse().unwrap()]);
    firewall::apply(Some(&net.node), &probes::rules(&exempt, PROBE_SNAT_V4, PROBE_SNAT_V6)).await.unwrap();
    let (app, inbound) = (listen(&net.a, 8080), listen(&net.a, 15006));
    for (a, source) in [(A, IpAddr::from(PROBE_SNAT_V4)), (A6, PROBE_SNAT_V6.into())] {
        let mut probe = connect(&net.node, at(a, 8080));
        let (mut app, peer) = accept(&app);
        assert_eq!(peer.ip(), source);
        say(&mut probe, &mut app, b"GET /healthz");
        say(&mut app, &mut probe, b"200");
        let caller = connect(&net.b, at(a, 8080));
        assert_eq!(accept(&inbound).1, caller.local_addr().unwrap());
    }
    exempt.remove("uid-a");
    firewall::apply(Some(&net.node), &probes::rules(&exempt, PROBE_SNAT_V4, PROBE_SNAT_V6)).await.unwrap();
    let _probe = connect(&net.node, at(A, 8080));
    accept(&inbound);
    firewall::apply(Some(&net.node), &probes::removal()).await.unwrap();
    firewall::apply(Some(&net.node), &probes::removal()).await.unwrap();
}

#[tokio::test]
async fn rules_of_the_pod_itself_stay_as_they_are_and_go_on_to_work() {
    let net = net();
    firewall::apply(
        Some(&net.a),
        "table inet mine {\n chain in {\n type filter hook input priority 0; policy accept;\n tcp dport 9999 reject with tcp reset\n }\n}\n\
         table ip nat {\n chain PREROUTING {\n type nat hook prerouting priority -100;\n udp dport 5353 redirect to :53\n }\n}\n",
    )
    .await
    .unwrap();
    ip(&net.a, "rule add fwmark 0x7 lookup 77");
    ip(&net.a, "route add 192.0.2.0/24 dev eth0 table 77");
    // And with the tools that older images bring, of both kinds, whatever the node uses.
    let own: Vec<Backend> = backends().into_iter().filter(|backend| *backend != Backend::Nft).collect();
    let saved = |backend: &Backend| {
        let Backend::Iptables(variant) = backend else { unreachable!() };
        let output = net.a.run(|| Command::new(variant.program(false, "save")).output()).unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter(|line| line.contains("7777")).collect::<String>()
    };
    for backend in &own {
        let Backend::Iptables(variant) = backend else { unreachable!() };
        let program = variant.program(false, "restore");
        let rule = "*filter\n-A INPUT -p udp -m udp --dport 7777 -j DROP\nCOMMIT\n";
        firewall::run(Some(&net.a), &program, &["--noflush"], rule).await.unwrap();
    }
    let of_tools: Vec<String> = own.iter().map(saved).collect();
    assert!(of_tools.iter().all(|text| text.contains("--dport 7777")), "{of_tools:?}");
    for backend in backends() {
        let before = ours(&net.a, backend);
        redirect::apply(&net.a, &options(), backend).await.unwrap();
        assert_eq!(own.iter().map(saved).collect::<Vec<_>>(), of_tools, "beside {backend}");
        let there = traces(&net.a);
        assert!(
            there.contains("dport 9999") && there.contains("dport 5353") && there.contains("lookup 77"),
            "{there}"
        );
        // Its own refusal counts for what is captured, too: the proxy's connection meets it.
        let _app = listen(&net.a, 9999);
        let socket = net.a.run(|| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None));
        let socket = socket.unwrap().unwrap();
        socket.set_mark(redirect::PROXY_MARK).unwrap();
        let refused = socket.connect_timeout(&at(A, 9999).into(), PATIENCE).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        redirect::remove(&net.a, backend).await.unwrap();
        assert_eq!(ours(&net.a, backend), before);
    }
}

#[tokio::test]
async fn a_pod_with_several_interfaces_is_captured_on_each() {
    let net = net();
    ip(&net.a, "link add net1 type veth peer name net1p");
    ip(&net.a, "link set net1 up");
    ip(&net.a, "link set net1p up");
    ip(&net.a, "addr add 10.78.1.2/24 dev net1");
    redirect::apply(&net.a, &options(), Backend::Nft).await.unwrap();
    let (out, inbound) = (listen(&net.a, 15001), listen(&net.a, 15006));
    let _client = connect(&net.a, at("10.78.1.9", 8080));
    assert_eq!(original_destination(&accept(&out).0, false), at("10.78.1.9", 8080));
    ip(&net.node, "route add 10.78.1.2/32 via 10.77.1.2");
    let _caller = connect(&net.b, at("10.78.1.2", 8080));
    assert_eq!(original_destination(&accept(&inbound).0, false), at("10.78.1.2", 8080));
}

#[tokio::test]
async fn dns_goes_to_the_proxy_only_where_it_is_asked_for() {
    for backend in backends() {
        let net = net();
        let resolver = net.b.run(|| std::net::UdpSocket::bind((B, 53))).unwrap().unwrap();
        let proxy = net.a.run(|| std::net::UdpSocket::bind(("0.0.0.0", 15053))).unwrap().unwrap();
        let client = net.a.run(|| std::net::UdpSocket::bind((A, 0))).unwrap().unwrap();
        for (dns, asked) in [(false, &resolver), (true, &proxy), (false, &resolver)] {
            redirect::apply(&net.a, &Options { dns, ..options() }, backend).await.unwrap();
            // A new flow each time: the tracker remembers where the old one went.
            let client = if dns {
                &client
            } else {
                &net.a.run(|| std::net::UdpSocket::bind((A, 0))).unwrap().unwrap()
            };
            client.send_to(b"who?", at(B, 53)).unwrap();
            asked.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(asked.recv(&mut [0; 16]).unwrap(), 4, "{backend}, DNS capture {dns}");
        }
    }
}

#[tokio::test]
async fn a_rule_set_that_is_refused_changes_nothing() {
    let net = net();
    redirect::apply(&net.a, &options(), Backend::Nft).await.unwrap();
    let before = traces(&net.a);
    let bad = format!("{}table inet x {{ chain y {{ nonsense }} }}\n", redirect::removal());
    assert!(matches!(firewall::apply(Some(&net.a), &bad).await, Err(firewall::Error::Refused { .. })));
    assert_eq!(traces(&net.a), before);
}

struct Sweeping {
    sweeper: Sweeper,
    strict: Strictness,
    metrics: Arc<Metrics>,
    _stop: tokio_util::sync::DropGuard,
}

fn sweeping(policy: Policy, outside: &[&str]) -> Sweeping {
    let metrics = Arc::new(Metrics::default());
    let stop = CancellationToken::new();
    let outside: Outside = outside.iter().map(|ip| ip.parse().unwrap()).collect();
    let outside = Arc::new(arc_swap::ArcSwap::from_pointee(outside));
    let exempt = Exempt { addresses: [PROBE_SNAT_V4.into()].into(), peers: HashSet::new() };
    let sweeper = Sweeper::start(policy, exempt, outside, metrics.clone(), stop.clone());
    Sweeping { sweeper, strict: Strictness::default(), metrics, _stop: stop.drop_guard() }
}

impl Sweeping {
    fn track(&self, ns: &NetNs) {
        let pod = Pod { uid: "u".into(), namespace: "shop".into(), name: "client".into() };
        self.sweeper.track(pod, ns, self.strict.clone()).unwrap();
    }

    async fn left(&self, count: usize) {
        let line = format!("ambit_agent_older_connections{{namespace=\"shop\",pod=\"client\"}} {count}");
        let there =
            |text: &str| if count == 0 { !text.contains("pod=\"client\"") } else { text.contains(&line) };
        let deadline = Instant::now() + PATIENCE;
        while !there(&self.metrics.text()) {
            assert!(Instant::now() < deadline, "never {count}:\n{}", self.metrics.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_is_made_to_dial_anew_and_a_request_in_flight_is_not_lost() {
    let net = net();
    let server = listen(&net.b, 9100);
    let mut idle = connect(&net.a, at(B, 9100));
    let mut idle_end = accept(&server).0;
    say(&mut idle, &mut idle_end, b"GET /metrics");
    say(&mut idle_end, &mut idle, b"200");
    let mut busy = connect(&net.a, at(B, 9100));
    let mut busy_end = accept(&server).0;
    let out = listen(&net.a, 15001);
    redirect::apply(&net.a, &options(), Backend::Nft).await.unwrap();
    say(&mut busy, &mut busy_end, b"GET /slow");

    let sweeping = sweeping(Policy::with_grace(Duration::from_secs(600)), &[]);
    sweeping.track(&net.a);
    sweeping.left(1).await;
    assert_eq!(idle.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
    assert_eq!(idle_end.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let _again = connect(&net.a, at(B, 9100));
    assert_eq!(original_destination(&accept(&out).0, false), at(B, 9100));

    // The answer arrives whole, then the connection goes.
    say(&mut busy_end, &mut busy, b"200 at last");
    sweeping.left(0).await;
    assert_eq!(busy.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_becomes_idle_is_named_and_ended_when_the_grace_is_over() {
    let net = net();
    let server = listen(&net.b, 9100);
    let mut busy = connect(&net.a, at(B, 9100));
    let mut busy_end = accept(&server).0;
    say(&mut busy, &mut busy_end, b"GET /stream");
    redirect::apply(&net.a, &options(), Backend::Nft).await.unwrap();
    let sweeping = sweeping(Policy::with_grace(Duration::from_millis(1500)), &[]);
    sweeping.track(&net.a);
    sweeping.left(1).await;
    sweeping.left(0).await;
    assert_eq!(busy.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_that_a_policy_forbids_is_ended_at_once_busy_or_not_from_inside_and_outside() {
    let net = net();
    let (guarded, open) = (listen(&net.a, 9100), listen(&net.a, 9101));
    let pair = |listener: &TcpListener, port| {
        let mut client = connect(&net.b, at(A, port));
        let mut server = accept(listener).0;
        // A request that is still to be answered.
        say(&mut client, &mut server, b"GET /slow");
        (client, server)
    };
    let (mut illegal, mut legal) = (pair(&guarded, 9100), pair(&open, 9101));
    redirect::apply(&net.a, &options(), Backend::Nft).await.unwrap();
    let peer = enroll::strict::Peer::read(
        "shop",
        "guard",
        None,
        &serde_json::json!({"selector": {"matchLabels": {"app": "a"}}, "portLevelMtls": {"9100": {"mode": "STRICT"}}}),
    );
    let labels = [("app".to_owned(), "a".to_owned())].into();
    let strict = enroll::strict::of_pod(&[peer], "ambit-system", "shop", &labels);
    // Its peer is outside the mesh, which would be reason enough to leave it alone where plaintext is legal.
    let never = Policy {
        settle: Duration::MAX,
        server_turn: Duration::MAX,
        grace: Duration::MAX,
        ..Policy::with_grace(PATIENCE)
    };
    let sweeping = Sweeping { strict, ..sweeping(never, &[B]) };
    sweeping.track(&net.a);
    assert_eq!(illegal.0.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    say(&mut legal.1, &mut legal.0, b"200 at last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_ends_what_its_clients_left_open_but_not_for_clients_outside_the_mesh() {
    let net = net();
    let policy = Policy { server_turn: Duration::ZERO, ..Policy::with_grace(Duration::from_secs(600)) };
    for (outside, kept) in [(&[][..], false), (&[B][..], true)] {
        let server = listen(&net.a, if kept { 9101 } else { 9100 });
        let mut client = connect(&net.b, at(A, if kept { 9101 } else { 9100 }));
        let mut end = accept(&server).0;
        say(&mut client, &mut end, b"GET /metrics");
        say(&mut end, &mut client, b"200");
        redirect::apply(&net.a, &options(), Backend::Nft).await.unwrap();
        let sweeping = sweeping(policy, outside);
        sweeping.track(&net.a);
        if kept {
            sweeping.left(0).await;
            say(&mut client, &mut end, b"GET /metrics");
        } else {
            assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
        redirect::remove(&net.a, Backend::Nft).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_through_the_proxy_is_not_touched_until_the_pod_leaves() {
    let net = net();
    redirect::apply(&net.a, &options(), Backend::Nft).await.unwrap();
    let out = net
        .a
        .run(|| socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None))
        .unwrap()
        .unwrap();
    out.set_mark(redirect::PROXY_MARK).unwrap();
    out.bind(&at("::", 15001).into()).unwrap();
    out.listen(8).unwrap();
    let out: TcpListener = out.into();
    out.set_nonblocking(true).unwrap();
    let mut client = connect(&net.a, at(B, 9100));
    let (mut proxy, _) = accept(&out);
    say(&mut client, &mut proxy, b"GET /metrics");
    say(&mut proxy, &mut client, b"200");
    let exempt = Exempt::default();
    let sockets = Diag::open(&net.a).unwrap().list().unwrap();
    assert!(enroll::older::older(&sockets, &exempt).is_empty(), "{sockets:?}");
    assert_eq!(enroll::older::carried(&sockets, &exempt).len(), 1);
    redirect::stop_capturing(&net.a, Backend::Nft).await.unwrap();
    let policy = Policy::with_grace(Duration::from_secs(600));
    // A pod that is wanted again keeps what is under way.
    say(&mut client, &mut proxy, b"GET /metrics");
    let drained = drain(&net.a, &exempt, &policy, Duration::ZERO..PATIENCE, || true).await.unwrap();
    assert_eq!(drained, Drained::CalledOff);
    say(&mut proxy, &mut client, b"200");
    let drained = drain(&net.a, &exempt, &policy, Duration::ZERO..PATIENCE, || false).await.unwrap();
    assert_eq!(drained, Drained::Idle);
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
}

#[test]
fn a_namespace_without_a_process_is_found_by_its_mount_and_a_stranger_is_not_taken_for_it() {
    let net = net();
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run/netns");
    std::fs::create_dir_all(&dir).unwrap();
    // A link to the descriptor stands in for the runtime's bind mount.
    for (name, ns) in [("cni-a", &net.a), ("cni-b", &net.b)] {
        let fd = format!("/proc/{}/fd/{}", std::process::id(), ns.as_fd().as_raw_fd());
        std::os::unix::fs::symlink(fd, dir.join(name)).unwrap();
    }
    let finder = netns_of::Finder { host_proc: "/nonexistent".into(), host_root: root.path().to_owned() };
    let wanted = [("a", A), ("c", "10.77.9.9")].map(|(uid, ip)| (uid.to_owned(), vec![ip.parse().unwrap()]));
    let found = finder.find(&wanted.into_iter().chain([("none".to_owned(), vec![])]).collect());
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(found["a"].id(), net.a.id());
    assert_eq!(finder.open("/var/run/netns/cni-b").unwrap().id(), net.b.id());
}
