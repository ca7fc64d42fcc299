//! Under an istiod: state, certificates, policies, and all of it again after its death.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use crate::support::eventually;
use crate::traffic::{answering, ask, pair, refused};
use crate::world::{MESH, NAMESPACE, OUTSIDE, PORT, World, has_policy, has_workload};

async fn scale(world: &World, replicas: usize) {
    let sets = Api::<Deployment>::namespaced(world.client.clone(), MESH);
    let patch = json!({"spec": {"replicas": replicas}});
    sets.patch("ambit-control", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    eventually("istiod to be scaled", || async {
        let ready = sets.get("ambit-control").await.unwrap().status.and_then(|status| status.ready_replicas);
        let alive = world.foreign("istiod").len();
        if ready.unwrap_or(0) as usize == replicas && alive == replicas {
            Ok(())
        } else {
            Err(format!("{ready:?} ready, {alive} alive"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an istiod in AMBIT_FOREIGN_ISTIOD"]
async fn a_proxy_takes_its_state_certificates_and_policies_from_an_istiod() {
    let world = World::new("isd").await;
    world.hand_control_to_istiod().await;
    let a = world.start(NAMESPACE, 1, "a").await;
    let b = world.start(NAMESPACE, 2, "b").await;
    let outsider = world.start(OUTSIDE, 1, "x").await;
    let _answering = [answering(a.listen(PORT)), answering(b.listen(PORT))];
    for (from, to) in [(&a, &b), (&b, &a)] {
        world
            .all_know("both pods as parts of the mesh", |dump| {
                let all = dump["workloads"].as_array().into_iter().flatten();
                all.filter(|one| one["namespace"] == NAMESPACE && one["protocol"] == "HBONE").count() == 2
            })
            .await;
        assert_eq!(ask(from, to.at(PORT), "by address").await.unwrap(), "BY ADDRESS");
        let service = world.service(to).await;
        assert_eq!(ask(from, service, "by service").await.unwrap(), "BY SERVICE");
        let [client, server] =
            [from, to].map(|at| format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{}", at.name));
        eventually("both ends to name both identities", || async {
            let log = world.log("app=ztunnel").await;
            for direction in ["outbound", "inbound"] {
                let words = [
                    format!("src.identity=\"{client}\""),
                    format!("dst.identity=\"{server}\""),
                    format!("direction=\"{direction}\""),
                ];
                let calls =
                    log.lines().filter(|line| words.iter().all(|word| line.contains(word.as_str()))).count();
                if calls < 2 {
                    return Err(format!("{calls} {direction} calls of {client} to {server} in\n{log}"));
                }
            }
            Ok(())
        })
        .await;
    }

    // DENY, tried out and then in force.
    let of_a =
        json!([{"from": [{"source": {"principals": [format!("cluster.local/ns/{NAMESPACE}/sa/a")]}}]}]);
    let deny = json!({"selector": {"matchLabels": {"app": "b"}}, "action": "DENY", "rules": of_a});
    world.apply("AuthorizationPolicy", "no-a", json!({"istio.io/dry-run": "true"}), deny.clone()).await;
    world.all_know("the policy that is tried out", |dump| has_policy(dump, "no-a")).await;
    assert_eq!(ask(&a, b.at(PORT), "tried").await.unwrap(), "TRIED");
    let metrics = world.ask_proxies(15020, "/metrics").await.concat();
    let counted = format!("ambit_policy_dry_run_total{{policy=\"{NAMESPACE}/no-a\",outcome=\"denied\"}} 1");
    assert!(metrics.contains(&counted), "{metrics}");
    world.apply("AuthorizationPolicy", "no-a", json!({}), deny).await;
    eventually("a to be denied", || async {
        let answer = ask(&a, b.at(PORT), "denied").await;
        if refused(&answer) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert!(world.log("app=ztunnel").await.contains(&format!("explicitly denied by: {NAMESPACE}/no-a")));
    world.remove("AuthorizationPolicy", "no-a").await;
    world.all_know("the policy to be forgotten", |dump| !has_policy(dump, "no-a")).await;

    // ALLOW, and STRICT.
    let allow = json!({"selector": {"matchLabels": {"app": "a"}}, "action": "ALLOW", "rules": of_a});
    world.apply("AuthorizationPolicy", "only-a", json!({}), allow).await;
    world.all_know("the policy of a", |dump| has_policy(dump, "only-a")).await;
    let answer = ask(&b, a.at(PORT), "not allowed").await;
    assert!(refused(&answer), "{answer:?}");
    assert_eq!(ask(&outsider, b.at(PORT), "plain").await.unwrap(), "PLAIN");
    world.apply("PeerAuthentication", "default", json!({}), json!({"mtls": {"mode": "STRICT"}})).await;
    world.all_know("STRICT", |dump| has_policy(dump, "istio_converted_static_strict")).await;
    let answer = ask(&outsider, b.at(PORT), "plain").await;
    assert!(refused(&answer), "{answer:?}");
    assert_eq!(ask(&a, b.at(PORT), "mutual").await.unwrap(), "MUTUAL");

    let log = world.log("app=ambit-control").await;
    let wrong: Vec<_> =
        log.lines().filter(|line| line.contains("ACK ERROR") || line.contains("NACK")).collect();
    assert!(wrong.is_empty(), "what istiod sent was rejected: {wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an istiod in AMBIT_FOREIGN_ISTIOD"]
async fn a_running_mesh_changes_to_an_istiod_and_outlives_its_deaths() {
    let world = World::new("isc").await;
    let a = world.start(NAMESPACE, 1, "a").await;
    let b = world.start(NAMESPACE, 2, "b").await;
    let leaves = world.start(NAMESPACE, 1, "leaves").await;
    let _answering = answering(b.listen(PORT));
    let listener = b.listen(9000);
    let (mut client, mut server) = pair(&a, b.at(9000), &listener).await;

    // It finds our root and goes on with it: certificates of before and after are of one mesh.
    world.hand_control_to_istiod().await;
    let c = world.start(NAMESPACE, 1, "c").await;
    assert_eq!(ask(&c, b.at(PORT), "old and new").await.unwrap(), "OLD AND NEW");

    scale(&world, 0).await;
    world.delete(&leaves.name).await;
    assert_eq!(ask(&a, b.at(PORT), "nobody rules").await.unwrap(), "NOBODY RULES");
    scale(&world, 1).await;
    world.all_know("what went meanwhile to be forgotten", |dump| !has_workload(dump, "leaves")).await;

    world.kill("istiod").await;
    let late = world.start(NAMESPACE, 2, "late").await;
    assert_eq!(ask(&late, b.at(PORT), "late").await.unwrap(), "LATE");
    client.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still", "the connection from before is the same");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an istiod in AMBIT_FOREIGN_ISTIOD"]
async fn an_istiod_that_is_given_another_root_divides_the_mesh_only_until_the_nodes_hear_of_it() {
    let world = World::new("isr").await;
    world.hand_control_to_istiod().await;
    let a = world.start(NAMESPACE, 1, "a").await;
    let b = world.start(NAMESPACE, 2, "b").await;
    let _answering = answering(b.listen(PORT));
    let listener = b.listen(9000);
    let (mut client, mut server) = pair(&a, b.at(9000), &listener).await;

    let key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = root.self_signed(&key).unwrap().pem();
    let files = json!({"ca-cert.pem": root, "ca-key.pem": key.serialize_pem(), "cert-chain.pem": root,
        "root-cert.pem": root});
    let secret = json!({"metadata": {"name": "cacerts"}, "stringData": files});
    scale(&world, 0).await;
    let secrets = Api::<Secret>::namespaced(world.client.clone(), MESH);
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    scale(&world, 1).await;

    // Its first certificate is of the other root, b's of the old one: nobody restarts anything.
    let fresh = world.start(NAMESPACE, 1, "fresh").await;
    eventually("old and new to understand one another", || async {
        match ask(&fresh, b.at(PORT), "one mesh").await {
            Ok(answer) if answer == "ONE MESH" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let log = world.log("app=ztunnel").await;
    assert!(log.contains("the authority's roots have changed"), "{log}");
    assert_eq!(ask(&a, b.at(PORT), "as before").await.unwrap(), "AS BEFORE");
    client.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still", "the connection from before is the same");
}
