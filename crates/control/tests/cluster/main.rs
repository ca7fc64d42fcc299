//! The whole control plane against a real Kubernetes API (the lab's, in this process), as a node proxy sees it.

mod authority;
mod outage;
mod proxy;
mod replicas;
mod status;
mod world;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1 as core;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};
use wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use wire::type_url::{ADDRESS, AUTHORIZATION};
use wire::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

use proxy::{Proxy, certificate};
use world::Cluster;

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must come, and no longer than is reasonable.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen in time"))
}

const WEB: &str = "Kubernetes//Pod/shop/web-0";
const PROXY: &str = "Kubernetes//Pod/ambit-system/proxy-n1";
const SERVICE: &str = "shop/web.shop.svc.cluster.local";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_proxy_gets_the_mesh_its_changes_and_certificates() {
    let mut cluster = Cluster::start().await;
    let token = cluster.proxy_token().await;
    let channel = cluster.connect().await;
    let mut proxy = Proxy::connect(channel.clone(), &token, BTreeMap::new()).await.unwrap();

    // Both types are answered, policies first, even when there are none.
    assert_eq!(proxy.next().await.unwrap().type_url, AUTHORIZATION);
    assert_eq!(proxy.next().await.unwrap().type_url, ADDRESS);
    for name in [WEB, PROXY, SERVICE] {
        assert!(proxy.addresses.contains_key(name), "{name} in {:?}", proxy.addresses.keys());
    }
    let (_, address) = &proxy.addresses[WEB];
    let Ok(wire::Address::Workload(workload)) = address.clone().try_into() else { panic!("{address:?}") };
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(workload.tunnel, mesh::Tunnel::Hbone);
    assert_eq!(workload.services.values().next().unwrap()[0].target_port, 8080);

    // A change, a new pod and a removal come as they happen.
    let pods = Api::<core::Pod>::namespaced(cluster.client.clone(), "shop");
    cluster.pod("shop", "web-1", "web", "10.0.0.4").await;
    proxy.until("a new workload", |proxy| proxy.addresses.contains_key("Kubernetes//Pod/shop/web-1")).await;
    pods.delete("web-1", &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    proxy.until("a removal", |proxy| !proxy.addresses.contains_key("Kubernetes//Pod/shop/web-1")).await;

    // Certificates: for what runs on the node, and for nothing else.
    let (answer, key) =
        certificate(channel.clone(), &token, "spiffe://cluster.local/ns/shop/sa/web").await.unwrap();
    assert_eq!(answer.cert_chain.last().unwrap(), &cluster.root("shop").await);
    usable_both_ways(&answer.cert_chain, &key);
    let refused =
        certificate(channel.clone(), &token, "spiffe://cluster.local/ns/shop/sa/idle").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);

    // The workload API is for node proxies only, and tokens must be for us.
    let web = cluster.token("shop", "web", Some("web-0"), "istio-ca").await;
    let denied = Proxy::connect(channel.clone(), &web, BTreeMap::new()).await.err().unwrap();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    let other = cluster.token("ambit-system", "ambit-proxy", Some("proxy-n1"), "someone-else").await;
    let unknown = Proxy::connect(channel.clone(), &other, BTreeMap::new()).await.err().unwrap();
    assert_eq!(unknown.code(), tonic::Code::Unauthenticated);

    // After a restart the root is the same, what the client has is not sent again, what is gone is said.
    let mut known: BTreeMap<String, String> =
        proxy.addresses.iter().map(|(name, (version, _))| (name.clone(), version.clone())).collect();
    known.insert("Kubernetes//Pod/shop/long-gone".into(), "1".into());
    let root = cluster.root("shop").await;
    cluster.halt().await;
    cluster.run();
    assert_eq!(cluster.root("shop").await, root);
    let mut proxy = Proxy::connect(cluster.connect().await, &token, known).await.unwrap();
    proxy.next().await.unwrap();
    let first = proxy.next().await.unwrap();
    assert_eq!((first.type_url.as_str(), first.resources.len()), (ADDRESS, 0));
    assert_eq!(first.removed_resources, ["Kubernetes//Pod/shop/long-gone"]);
    cluster.halt().await;
    cluster.api.shutdown().await;
}

/// The chain works as client and as server certificate under its own root, with the key of the request.
fn usable_both_ways(chain: &[String], key: &rcgen::KeyPair) {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (leaf, root) = (certificate(&chain[0]), certificate(&chain[1]));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots.clone())).build().unwrap();
    verifier.verify_client_cert(&leaf, &[], UnixTime::now()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let parsed = rustls::server::ParsedCertificate::try_from(&leaf).unwrap();
    let algorithms = provider.signature_verification_algorithms.all;
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &roots,
        &[],
        UnixTime::now(),
        algorithms,
    )
    .unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = provider.key_provider.load_private_key(key).unwrap();
    rustls::sign::CertifiedKey::new(vec![leaf], key).keys_match().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_certificate_comes_back_when_somebody_changes_or_deletes_it() {
    let mut cluster = Cluster::start().await;
    let root = cluster.root("shop").await;
    let maps = Api::<core::ConfigMap>::namespaced(cluster.client.clone(), "shop");
    let wrong = json!({ "data": { "root-cert.pem": "wrong" } });
    maps.patch("istio-ca-root-cert", &PatchParams::default(), &Patch::Merge(&wrong)).await.unwrap();
    let right = |map: Option<&core::ConfigMap>| {
        map.and_then(|map| map.data.as_ref()).is_some_and(|data| data["root-cert.pem"] == root)
    };
    soon("the repair", await_condition(maps.clone(), "istio-ca-root-cert", right)).await.unwrap();
    maps.delete("istio-ca-root-cert", &kube::api::DeleteParams::default()).await.unwrap();
    soon("the return", await_condition(maps, "istio-ca-root-cert", right)).await.unwrap();
    cluster.ensure::<core::Namespace>(None, json!({ "metadata": { "name": "new" } })).await;
    assert_eq!(cluster.root("new").await, root);
    cluster.halt().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_one_sentence_that_says_what_to_do() {
    let mut cluster = Cluster::start().await;
    cluster.root("shop").await;
    let error =
        soon("the error", control::run(cluster.config(), cluster.client.clone(), std::future::pending()))
            .await
            .unwrap_err()
            .to_string();
    let port = cluster.ports.grpc.to_string();
    assert!(error.contains(&port) && error.contains("--grpc-port"), "{error}");
    cluster.halt().await;
}

/// A schema that takes anything, under the name of a policy of Istio.
fn definition(kind: &str, plural: &str) -> Value {
    json!({
        "metadata": { "name": format!("{plural}.security.istio.io") },
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced",
            "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_followed_as_long_as_their_definitions_are_there() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
    let mut cluster = Cluster::start().await;
    let token = cluster.proxy_token().await;
    let mut proxy = Proxy::connect(cluster.connect().await, &token, BTreeMap::new()).await.unwrap();
    proxy.until("the mesh", |proxy| proxy.addresses.contains_key(WEB)).await;

    let gvk = GroupVersionKind::gvk("security.istio.io", "v1", "PeerAuthentication");
    let resource = ApiResource::from_gvk_with_plural(&gvk, "peerauthentications");
    let peers = Api::<DynamicObject>::namespaced_with(cluster.client.clone(), "shop", &resource);
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": "shop" }, "spec": { "mtls": { "mode": "STRICT" } },
    });
    let strict: DynamicObject = serde_json::from_value(strict).unwrap();
    let name = "ambit-system/istio_converted_static_strict";
    let lists_it = |proxy: &Proxy| {
        let Some((_, address)) = proxy.addresses.get(WEB) else { return false };
        let Ok(wire::Address::Workload(workload)) = address.clone().try_into() else { return false };
        workload.policies.iter().any(|policy| &**policy == name)
    };
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    for round in 0..3 {
        for (kind, plural) in
            [("AuthorizationPolicy", "authorizationpolicies"), ("PeerAuthentication", "peerauthentications")]
        {
            cluster.ensure::<CustomResourceDefinition>(None, definition(kind, plural)).await;
        }
        soon("the kind", async {
            while let Err(error) = peers.create(&PostParams::default(), &strict).await {
                assert!(matches!(&error, kube::Error::Api(status) if status.is_not_found()), "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let demanded = |proxy: &Proxy| proxy.policies.contains_key(name) && lists_it(proxy);
        proxy.until("mutual TLS demanded", demanded).await;
        let whole = kube::api::DeleteParams::default();
        if round == 0 {
            peers.delete("default", &whole).await.unwrap();
        } else {
            // With its definition goes the object, and both may come again.
            let definition = "peerauthentications.security.istio.io";
            definitions.delete(definition, &whole).await.unwrap();
            soon("the end of the definition", async {
                while definitions.get_opt(definition).await.unwrap().is_some() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        let released = |proxy: &Proxy| !proxy.policies.contains_key(name) && !lists_it(proxy);
        proxy.until("mutual TLS released", released).await;
    }
    cluster.halt().await;
}

/// A certificate of this mesh says who calls as a token does. It is bound to no pod, so that nobody else's certificate is
/// to be had by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_proxy_may_show_its_certificate_in_place_of_a_token() {
    let mut cluster = Cluster::start().await;
    let token = cluster.proxy_token().await;
    let own = "spiffe://cluster.local/ns/ambit-system/sa/ambit-proxy";
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let with = async |identity: &str| {
        let (answer, key) = certificate(cluster.connect().await, &token, identity).await.unwrap();
        let (_, chain) = answer.cert_chain.split_last().unwrap();
        let identity = tonic::transport::Identity::from_pem(chain.concat(), key.serialize_pem());
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(cluster.root("shop").await))
            .domain_name("istiod.istio-system.svc")
            .identity(identity);
        let endpoint = Endpoint::from_shared(format!("https://{}:{}", cluster.bind, cluster.ports.grpc));
        soon("a connection", endpoint.unwrap().tls_config(tls).unwrap().connect()).await.unwrap()
    };
    let channel = with(own).await;
    let mut proxy = Proxy::connect(channel.clone(), "no token", BTreeMap::new()).await.unwrap();
    proxy.until("the mesh", |proxy| proxy.addresses.contains_key(WEB)).await;
    let refused = certificate(channel, "no token", web).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    // Whoever is no node proxy may not read the mesh, however well it proves who it is.
    let refused = Proxy::connect(with(web).await, "no token", BTreeMap::new()).await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    cluster.halt().await;
}
