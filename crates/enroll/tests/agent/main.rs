//! The node agent as a whole: a Kubernetes API and a node proxy of the test's own, pods that are network namespaces,
//! and the real kernel between them. Each test runs in a namespace of its own, which is the agent's node.
//! Needs root, `nft` and `ip`.

mod api;
mod left;
mod places;
mod world;

use std::time::{Duration, Instant};

use enroll::firewall::{Backend, Variant};
use enroll::status::PodStatus;
use serde_json::json;
use world::{World, in_a_node};

const AMBIENT: &str = "ambient";

#[test]
fn a_running_pod_joins_and_leaves_by_its_namespaces_label() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", None);
        world.api.namespace("plain", None);
        world.pod("shop", "a", "10.77.1.2");
        world.pod("plain", "b", "10.77.2.2");
        world.start_proxy();
        world.start_agent();
        world.until("agent serves", |w| w.ready()).await;
        let untouched = world.traces("b");

        world.api.namespace("shop", Some(AMBIENT));
        world.until("a is enrolled", |w| w.annotation("a").as_deref() == Some("enabled")).await;
        assert!(world.redirected("a"));
        assert_eq!(world.proxy_has(), ["uid-a"]);
        assert!(world.probes().contains("10.77.1.2"));
        assert_eq!(world.traces("b"), untouched, "a pod that is not to be enrolled is not touched");

        world.api.namespace("shop", None);
        world.until("a has left", |w| w.proxy_has().is_empty() && !w.touched("a")).await;
        assert_eq!(world.annotation("a"), None);
        assert!(!world.probes().contains("10.77.1.2"));

        // In and out, and in again while it still leaves.
        world.api.namespace("shop", Some(AMBIENT));
        world.until("a is back", |w| w.annotation("a").as_deref() == Some("enabled")).await;
        world.api.namespace("shop", None);
        world.until("a leaves", |w| w.annotation("a").is_none()).await;
        world.api.namespace("shop", Some(AMBIENT));
        world.until("a is in again", |w| w.annotation("a").as_deref() == Some("enabled")).await;
        assert!(world.redirected("a") && world.probes().contains("10.77.1.2"));
        assert_eq!(world.proxy_has(), ["uid-a"]);
    });
}

#[test]
fn without_a_proxy_a_running_pod_is_left_alone_and_enrolled_when_one_comes() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.pod("shop", "a", "10.77.1.2");
        world.start_agent();
        world.until("agent serves", |w| w.ready()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!world.touched("a"));
        assert_eq!(world.annotation("a"), None);
        world.start_proxy();
        world.until("a is enrolled", |w| w.annotation("a").as_deref() == Some("enabled")).await;
        assert!(world.redirected("a"));
        // A proxy that goes away takes no rules with it: traffic waits, it does not leak.
        world.stop_proxy();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(world.redirected("a"));
        world.start_proxy();
        world.until("the new proxy has it", |w| w.proxy_has() == ["uid-a"]).await;
    });
}

#[test]
fn the_annotation_is_never_taken_as_proof() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.pod("shop", "a", "10.77.1.2");
        world.pod("shop", "late", "10.77.2.2");
        for name in ["a", "late"] {
            world.api.patch_pod(
                name,
                &json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}}),
            );
        }
        world.hide("late");
        world.start_proxy();
        world.start_agent();
        world.until("a has its rules again", |w| w.redirected("a")).await;
        world.until("nothing shows the other as protected", |w| w.annotation("late").is_none()).await;
        world.show("late");
        world.until("the other has its rules", |w| w.redirected("late")).await;
        world.until("and says so", |w| w.annotation("late").as_deref() == Some("enabled")).await;
        assert_eq!(world.proxy_has(), ["uid-a", "uid-late"]);
    });
}

#[test]
fn a_new_pod_is_enrolled_before_it_starts_or_does_not_start() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.api.namespace("plain", None);
        world.start_proxy();
        world.start_agent();
        world.until("agent serves", |w| w.ready()).await;
        // The pod has no address in its status yet, and the watch has not brought it.
        world.new_pod("shop", "a", "10.77.1.2");
        assert_eq!(world.cni_add("shop", "a", "10.77.1.2").await.status, 0);
        assert!(world.redirected("a"));
        assert_eq!(world.annotation("a").as_deref(), Some("enabled"));
        assert!(world.probes().contains("10.77.1.2"));

        world.new_pod("plain", "b", "10.77.2.2");
        assert_eq!(world.cni_add("plain", "b", "10.77.2.2").await.status, 0);
        assert!(!world.touched("b"));

        world.refuse("uid-c", "15008 is taken");
        world.new_pod("shop", "c", "10.77.3.2");
        let outcome = world.cni_add("shop", "c", "10.77.3.2").await;
        assert_eq!(outcome.status, 1);
        assert!(outcome.stdout.unwrap()["details"].as_str().unwrap().contains("15008 is taken"));
        assert!(!world.touched("c"));
        assert_eq!(world.cni_add("shop", "nobody", "10.77.3.2").await.status, 1);
    });
}

#[test]
fn a_finished_pod_gives_up_its_address_and_its_late_delete_takes_nothing() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.pod("shop", "job", "10.77.1.2");
        world.start_proxy();
        world.start_agent();
        world.until("job is enrolled", |w| w.annotation("job").as_deref() == Some("enabled")).await;
        world.api.patch_pod("job", &json!({"status": {"phase": "Succeeded", "podIP": null, "podIPs": null}}));
        world.until("job has left", |w| w.proxy_has().is_empty() && w.annotation("job").is_none()).await;
        world.unplug("job");
        world.pod("shop", "new", "10.77.1.2");
        world.until("new is enrolled", |w| w.annotation("new").as_deref() == Some("enabled")).await;
        world.api.delete_pod("job");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(world.probes().contains("10.77.1.2 comment \"uid-new\""), "{}", world.probes());
    });
}

#[test]
fn an_agent_that_is_replaced_leaves_pods_as_they_are_and_one_that_is_removed_gives_them_back() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.pod("shop", "a", "10.77.1.2");
        world.start_proxy();
        world.start_agent();
        world.until("a is enrolled", |w| w.annotation("a").as_deref() == Some("enabled")).await;
        world.until("the plugin is installed", |w| w.conflist().contains("ambit-cni")).await;
        world.stop_agent().await;
        assert!(world.redirected("a"));
        assert!(world.probes().contains("10.77.1.2"));
        assert!(world.conflist().contains("ambit-cni"));
        // Its successor forgets nothing, also what changed while nobody watched.
        world.pod("shop", "b", "10.77.2.2");
        world.start_agent();
        world.until("b is enrolled", |w| w.annotation("b").as_deref() == Some("enabled")).await;
        world.api.remove_daemonset();
        world.stop_agent().await;
        assert!(!world.touched("a") && !world.touched("b"));
        assert_eq!(world.annotation("a"), None);
        assert_eq!(world.probes(), "");
        assert!(!world.conflist().contains("ambit-cni"));
        assert_eq!(std::fs::read_dir(world.run_dir()).unwrap().count(), 0);
    });
}

#[test]
fn ipv6_only_and_dual_stack_pods_join_like_any_other() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.pod("shop", "six", "fd77:9::2");
        world.pod("shop", "dual", "10.77.1.2");
        world.address("dual", "fd77:8::2");
        let both = json!([{"ip": "10.77.1.2"}, {"ip": "fd77:8::2"}]);
        world.api.patch_pod("dual", &json!({"status": {"podIPs": both}}));
        world.start_proxy();
        world.start_agent();
        for name in ["six", "dual"] {
            world.until("it is enrolled", |w| w.annotation(name).as_deref() == Some("enabled")).await;
            assert!(world.redirected(name), "{name}");
        }
        for ip in ["fd77:9::2", "10.77.1.2", "fd77:8::2"] {
            assert!(world.probes().contains(ip), "{ip} in {}", world.probes());
        }
        world.api.namespace("shop", None);
        world.until("both have left", |w| !w.touched("six") && !w.touched("dual")).await;
    });
}

#[test]
fn annotations_that_change_change_the_rules_of_a_running_pod() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.pod("shop", "a", "10.77.1.2");
        world.start_proxy();
        world.start_agent();
        world.until("a is enrolled", |w| w.annotation("a").as_deref() == Some("enabled")).await;
        let rules = world.traces("a");
        assert!(rules.contains("redirect to :15006") && !rules.contains("redirect to :15053"));
        let annotate = |world: &World, ingress: serde_json::Value, dns: serde_json::Value| {
            let annotations = json!({"ambient.istio.io/bypass-inbound-capture": ingress, "ambient.istio.io/dns-capture": dns});
            world.api.patch_pod("a", &json!({"metadata": {"annotations": annotations}}));
        };
        annotate(world, json!("true"), json!("true"));
        world
            .until("they count", |w| {
                let rules = w.traces("a");
                !rules.contains("redirect to :15006") && rules.contains("redirect to :15053")
            })
            .await;
        // What nobody understands counts as not there.
        annotate(world, json!("perhaps"), json!(null));
        let plain = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        world.until("they count no more", |w| plain(&w.traces("a")) == plain(&rules)).await;
    });
}

#[test]
fn a_pod_that_a_proxy_cannot_take_holds_up_nobody_and_is_forgotten_with_its_object() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.refuse("uid-bad", "15008 is taken");
        world.pod("shop", "bad", "10.77.99.2");
        let good: Vec<String> = (0..10).map(|n| format!("good{n}")).collect();
        for (n, name) in good.iter().enumerate() {
            world.pod("shop", name, &format!("10.77.{n}.2"));
        }
        world.start_proxy();
        world.start_agent();
        for name in &good {
            world.until("it is enrolled", |w| w.annotation(name).as_deref() == Some("enabled")).await;
        }
        assert_eq!(world.annotation("bad"), None, "nothing shows it as protected");
        world.api.delete_pod("bad");
        world.unplug("bad");
        // A new one is served at once, and a proxy that comes anew hears nothing of the bad one.
        world.stop_proxy();
        world.start_proxy();
        world.pod("shop", "new", "10.77.98.2");
        world.until("the new one is enrolled", |w| w.annotation("new").as_deref() == Some("enabled")).await;
        assert_eq!(world.proxy_has().len(), 11);
    });
}

#[test]
fn the_agent_says_of_each_pod_why_it_is_in_or_out_and_what_is_there() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.api.namespace("plain", None);
        world.pod("shop", "a", "10.77.1.2");
        world.pod("shop", "out", "10.77.2.2");
        world.api.patch_pod("out", &json!({"metadata": {"labels": {"istio.io/dataplane-mode": "none"}}}));
        world.pod("plain", "own", "10.77.3.2");
        world.api.patch_pod("own", &json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}}));
        world.pod("plain", "b", "10.77.4.2");
        world.start_proxy();
        world.start_agent();
        for name in ["a", "own"] {
            world.until("it is enrolled", |w| w.annotation(name).as_deref() == Some("enabled")).await;
        }
        // The last step comes after the annotation.
        let mut a = world.status("shop", "a").await.unwrap();
        while a.changing {
            tokio::time::sleep(Duration::from_millis(10)).await;
            a = world.status("shop", "a").await.unwrap();
        }
        assert!(a.wanted && a.enrolled && a.carried && a.problem.is_none(), "{a:?}");
        assert_eq!(a.why, "the label istio.io/dataplane-mode of its namespace is ambient");
        assert_eq!(a.rules, ["inet istio-ambient-nat", "inet istio-ambient-mangle"]);
        assert_eq!(a.probes, ["10.77.1.2".parse::<std::net::IpAddr>().unwrap()]);
        let since = a.since.expect("it is known since when");
        assert_eq!(
            world.status("plain", "own").await.unwrap().why,
            "its label istio.io/dataplane-mode is ambient"
        );
        for (namespace, name, why) in [
            ("shop", "out", "its label istio.io/dataplane-mode is none"),
            ("plain", "b", "neither it nor its namespace is labelled istio.io/dataplane-mode=ambient"),
        ] {
            let status = world.status(namespace, name).await.unwrap();
            assert!(!status.wanted && !status.enrolled && status.rules.is_empty(), "{status:?}");
            assert_eq!(status.why, why);
        }
        assert!(
            world.status("shop", "nobody").await.unwrap_err().contains("no pod shop/nobody on node node1")
        );
        // A successor knows since when, and names what keeps a pod out.
        world.stop_agent().await;
        world.refuse("uid-c", "15008 is taken");
        world.pod("shop", "c", "10.77.5.2");
        world.start_agent();
        world.until("the successor serves", |w| w.proxy_has().contains(&"uid-a".to_owned())).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        // Until the proxy has come to the successor too, it is the proxy that is missing.
        let refused = |c: &PodStatus| c.problem.as_ref().is_some_and(|why| why.contains("15008 is taken"));
        let c = loop {
            match world.status("shop", "c").await {
                Ok(c) if refused(&c) => break c,
                said => assert!(Instant::now() < deadline, "{said:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(c.wanted && !c.enrolled);
        assert_eq!(world.status("shop", "a").await.unwrap().since, Some(since));
    });
}

#[test]
fn a_node_that_changes_its_tools_leaves_nothing_of_the_earlier_ones() {
    let legacy = Backend::Iptables(Variant::Legacy);
    if let Err(why) = legacy.works() {
        eprintln!("skipped: no iptables-legacy here ({why})");
        return;
    }
    in_a_node(async move |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.pod("shop", "a", "10.77.1.2");
        world.start_proxy();
        world.start_agent();
        world.until("a is enrolled", |w| w.annotation("a").as_deref() == Some("enabled")).await;
        world.until("nftables", |w| w.redirected("a") && !w.chains("a")).await;
        world.stop_agent().await;
        world.firewall = legacy;
        world.start_agent();
        world.until("iptables alone", |w| w.chains("a") && !w.traces("a").contains("istio-ambient")).await;
        assert_eq!(world.probes(), "", "the node's earlier table has gone");
        world.stop_agent().await;
        world.firewall = Backend::Nft;
        world.start_agent();
        world.until("nftables again", |w| w.redirected("a") && !w.chains("a")).await;
        world.until("its probes too", |w| w.probes().contains("10.77.1.2")).await;
        // And an end by other tools than the beginning.
        world.stop_agent().await;
        world.firewall = legacy;
        world.api.namespace("shop", None);
        world.start_agent();
        world.until("a has left", |w| !w.touched("a") && !w.chains("a")).await;
    });
}

#[test]
fn a_plugin_in_a_configuration_of_its_own_enrols_by_what_the_namespace_shows() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.start_proxy();
        world.start_agent();
        world.until("agent serves", |w| w.ready()).await;
        world.new_pod("shop", "a", "10.77.1.2");
        let outcome = world.cni_add("shop", "a", "").await;
        assert_eq!(outcome.status, 0, "{outcome:?}");
        assert!(world.redirected("a"));
        assert!(world.probes().contains("10.77.1.2"));
    });
}

#[test]
fn a_pod_that_is_in_by_its_own_label_waits_for_an_agent_that_is_away() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("plain", None);
        world.api.namespace("other", None);
        world.pod("plain", "a", "10.77.1.2");
        world.api.patch_pod("a", &json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}}));
        world.start_proxy();
        world.start_agent();
        world.until("a is enrolled", |w| w.annotation("a").as_deref() == Some("enabled")).await;
        // The one that is there goes, its successor comes while no agent is there.
        world.api.delete_pod("a");
        world.until("a has gone", |w| w.proxy_has().is_empty()).await;
        world.api.namespace("third", Some(AMBIENT));
        world
            .until("the list was written anew", |w| {
                let known = enroll::cni::Known::read(&enroll::config::known_file(&w.run_dir()));
                known.is_some_and(|known| known.namespaces.contains("third"))
            })
            .await;
        world.stop_agent().await;
        // Nobody else can be asked: the list alone decides.
        std::fs::remove_file(enroll::config::access_file(&world.run_dir())).unwrap();
        world.new_pod("plain", "b", "10.77.2.2");
        world.api.patch_pod("b", &json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}}));
        let outcome = world.cni_add("plain", "b", "10.77.2.2").await;
        assert_eq!((outcome.status, &outcome.stdout.unwrap()["code"]), (1, &json!(11)));
        world.new_pod("other", "c", "10.77.3.2");
        assert_eq!(world.cni_add("other", "c", "10.77.3.2").await.status, 0, "nobody else waits");
        world.start_agent();
        // The runtime asks again until somebody answers.
        let mut outcome = world.cni_add("plain", "b", "10.77.2.2").await;
        for _ in 0..200 {
            if outcome.status == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            outcome = world.cni_add("plain", "b", "10.77.2.2").await;
        }
        assert_eq!(outcome.status, 0, "{outcome:?}");
        assert!(world.redirected("b"), "before its first packet");
    });
}
