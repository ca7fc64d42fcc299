//! Network namespaces that exist only while a test holds them: nothing has a name, so nothing can be left behind.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use netns::NetNs;
use nix::sched::{CloneFlags, unshare};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Runs a test in a namespace of its own, on a runtime whose threads all live there.
pub fn in_a_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
        sh(
            "ip link set lo up && ip link add br0 type bridge && ip addr add 10.77.0.1/24 dev br0 && ip link set br0 up",
        );
        let node = Node { netns: NetNs::current().unwrap() };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let long = std::env::var_os("AMBIT_TEST_FULL").is_some();
            let patience = std::time::Duration::from_secs(if long { 1800 } else { 120 });
            tokio::time::timeout(patience, test(node)).await.expect("the test hangs");
        });
        runtime.shutdown_background();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The namespace in which the proxies run; pods are joined by a bridge in it.
pub struct Node {
    netns: NetNs,
}

/// A pod: a namespace with an address.
#[derive(Clone)]
pub struct Pod {
    pub netns: NetNs,
    pub ip: IpAddr,
    pub ip6: IpAddr,
}

impl Node {
    /// A pod with the address 10.77.0.`last`.
    pub fn pod(&self, last: u8) -> Pod {
        let netns = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            NetNs::current().unwrap()
        });
        let netns = netns.join().unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        self.netns
            .run(|| {
                sh(&format!(
                    "ip link add v{last} type veth peer name eth0 netns {path} && ip link set v{last} master br0 up"
                ));
            })
            .unwrap();
        let ip6 = IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(last)]);
        let pod = Pod { netns, ip: IpAddr::from([10, 77, 0, last]), ip6 };
        pod.sh(&format!(
            "ip link set lo up && ip addr add {}/24 dev eth0 && ip link set eth0 up && ip route add default via 10.77.0.1; \
             ip addr add {}/64 dev eth0 nodad",
            pod.ip, pod.ip6
        ));
        pod
    }
}

impl Pod {
    pub fn sh(&self, script: &str) {
        self.netns.run(|| sh(script)).unwrap();
    }

    /// The redirection that a node agent makes (reference/enrolment.md §2.4, without DNS).
    pub fn redirect(&self) {
        self.sh("ip route add local 0.0.0.0/0 dev lo table 100 && ip rule add fwmark 0x111/0xfff lookup 100 pref 32764");
        self.sh("ip -6 route add local ::/0 dev lo table 100 && ip -6 rule add fwmark 0x111/0xfff lookup 100 pref 32764 || test $(cat /proc/sys/net/ipv6/conf/lo/disable_ipv6) = 1");
        let rules = "
            table inet nat {
                chain prerouting { type nat hook prerouting priority -100; policy accept;
                    ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
                    ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
                }
                chain output { type nat hook output priority -100; policy accept;
                    meta l4proto tcp meta mark & 0xfff == 0x111 accept
                    oifname lo ip daddr != 127.0.0.1 accept
                    oifname lo ip6 daddr != ::1 accept
                    meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 redirect to :15001
                    meta l4proto tcp ip6 daddr != ::1 meta mark & 0xfff != 0x539 redirect to :15001
                }
            }
            table inet mangle {
                chain prerouting { type filter hook prerouting priority -150; policy accept;
                    meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
                }
                chain output { type route hook output priority -150; policy accept;
                    ct mark & 0xfff == 0x111 meta mark set ct mark
                }
            }";
        self.sh(&format!("printf '%s' '{rules}' | nft -f -"));
    }

    /// Listens on IPv4 and IPv6, the latter as far as the pod has it.
    pub fn listen(&self, port: u16) -> TcpListener {
        let listen = |socket: TcpSocket, any: IpAddr| {
            socket.set_reuseaddr(true).unwrap();
            socket.bind(SocketAddr::new(any, port))?;
            socket.listen(4096)
        };
        let both = || {
            let v6 = TcpSocket::new_v6().and_then(|socket| listen(socket, Ipv6Addr::UNSPECIFIED.into()));
            v6.or_else(|_| listen(TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into())).unwrap()
        };
        self.netns.run(both).unwrap()
    }

    pub async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let new = if to.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
        self.netns.run(new).unwrap()?.connect(to).await
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }
}

pub fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}
