//! The authority of a running control plane: plugged in, replaced, rotated.

use control::ca::Authority;
use k8s_openapi::ByteString;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::*;

const SECRET: &str = "istio-ca-secret";
const WEB_IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/web";

impl Cluster {
    fn secrets(&self) -> Api<core::Secret> {
        Api::namespaced(self.client.clone(), "ambit-system")
    }

    async fn ask(&self, request: &str) {
        let patch = json!({ "metadata": { "annotations": { "ambit.io/ca-request": request } } });
        self.secrets().patch(SECRET, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    async fn stage(&self, wanted: &'static str) {
        let reached = move |secret: Option<&core::Secret>| {
            let annotations =
                secret.and_then(|secret| secret.metadata.annotations.clone()).unwrap_or_default();
            annotations.get("ambit.io/ca-stage").map_or("settled", String::as_str) == wanted
                && !annotations.contains_key("ambit.io/ca-request")
        };
        let secrets = self.secrets();
        soon(wanted, await_condition(secrets, SECRET, reached)).await.unwrap();
    }

    /// Until exactly these roots stand in namespace shop.
    async fn roots_are(&self, bundle: &str) -> String {
        let wanted = all(bundle);
        let maps = Api::<core::ConfigMap>::namespaced(self.client.clone(), "shop");
        let right = |map: Option<&core::ConfigMap>| {
            map.and_then(|map| map.data.as_ref()).is_some_and(|data| all(&data["root-cert.pem"]) == wanted)
        };
        let map = soon("the roots", await_condition(maps, "istio-ca-root-cert", right)).await.unwrap();
        map.unwrap().data.unwrap()["root-cert.pem"].clone()
    }

    /// Until exactly this revocation list stands in a namespace.
    async fn list_is(&self, namespace: &str, wanted: &str) {
        let maps = Api::<core::ConfigMap>::namespaced(self.client.clone(), namespace);
        let right = |map: Option<&core::ConfigMap>| {
            map.and_then(|map| map.data.as_ref()).is_some_and(|data| data["ca-crl.pem"] == wanted)
        };
        soon("the list", await_condition(maps, "istio-ca-crl", right)).await.unwrap();
    }

    /// Waits until the root certificate of a namespace has so many roots.
    async fn roots(&self, count: usize) -> String {
        let api = Api::<core::ConfigMap>::namespaced(self.client.clone(), "shop");
        let enough = move |map: Option<&core::ConfigMap>| {
            map.and_then(|map| map.data.as_ref()?.get("root-cert.pem"))
                .is_some_and(|text| all(text).len() == count)
        };
        let map =
            soon("the roots", await_condition(api, "istio-ca-root-cert", enough)).await.unwrap().unwrap();
        map.data.unwrap()["root-cert.pem"].clone()
    }
}

fn all(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

/// A workload's certificate and what its proxy trusts.
struct Held {
    chain: Vec<CertificateDer<'static>>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Held {
    async fn new(cluster: &Cluster, token: &str) -> Self {
        let (answer, _) = certificate(cluster.connect().await, token, WEB_IDENTITY).await.unwrap();
        let (roots, chain) = answer.cert_chain.split_last().unwrap();
        Self { chain: chain.iter().flat_map(|pem| all(pem)).collect(), trusted: all(roots) }
    }

    /// The first one that is as it should be.
    async fn once(cluster: &Cluster, token: &str, right: impl Fn(&Held) -> bool) -> Self {
        soon("a certificate of this stage", async {
            loop {
                let held = Self::new(cluster, token).await;
                if right(&held) {
                    return held;
                }
            }
        })
        .await
    }

    fn accepts(&self, peer: &Held) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(self.trusted.iter().cloned());
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let now = rustls_pki_types::UnixTime::now();
        verifier.verify_client_cert(&peer.chain[0], &peer.chain[1..], now).is_ok()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_rotated_and_no_two_certificates_ever_refuse_each_other() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut cluster = Cluster::start().await;
    cluster.root("shop").await;
    cluster.halt().await;
    cluster.stage = Some(Duration::from_secs(3600));
    cluster.run();
    let token = cluster.proxy_token().await;
    let before = Held::new(&cluster, &token).await;
    assert_eq!(before.trusted.len(), 1);

    cluster.ask("rotate").await;
    cluster.stage("distributing").await;
    cluster.roots(2).await;
    let distributing = Held::once(&cluster, &token, |held| held.trusted.len() == 2).await;
    // As long as certificates of before are about, the old root signs.
    assert!(before.accepts(&distributing) && distributing.accepts(&before));

    cluster.ask("next").await;
    cluster.stage("retiring").await;
    // The Secret says so before each replica has heard of it.
    let retiring = Held::once(&cluster, &token, |held| !before.accepts(held)).await;
    assert!(distributing.accepts(&retiring) && retiring.accepts(&distributing));
    assert!(retiring.accepts(&before));

    // A fresh replica goes on where this one stopped.
    cluster.halt().await;
    cluster.run();
    cluster.ask("next").await;
    cluster.stage("settled").await;
    let root = cluster.roots(1).await;
    let settled = Held::once(&cluster, &token, |held| held.trusted.len() == 1).await;
    assert_eq!(settled.trusted, all(&root));
    assert!(settled.accepts(&retiring) && retiring.accepts(&settled));
    assert!(!settled.accepts(&before), "the old root is gone");
    cluster.halt().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_secret_of_the_root_comes_back_with_the_same_root() {
    let mut cluster = Cluster::start().await;
    let root = cluster.root("shop").await;
    cluster.secrets().delete(SECRET, &kube::api::DeleteParams::default()).await.unwrap();
    let back = |secret: Option<&core::Secret>| secret.is_some();
    let secret = soon("the Secret", await_condition(cluster.secrets(), SECRET, back)).await.unwrap().unwrap();
    assert_eq!(secret.data.unwrap()["root-cert.pem"].0, root.as_bytes());
    cluster.halt().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugged_in_authority_is_used_and_followed_but_never_one_that_would_cut_the_mesh() {
    let mut cluster = Cluster::start().await;
    let own = cluster.root("shop").await;
    cluster.halt().await;
    // The key of a root of ours is only in its Secret; two such Secrets are two authorities.
    let made = cluster.secrets().get(SECRET).await.unwrap().data.unwrap();
    let text = |key: &str| made[key].clone();
    let plugged = |roots: ByteString| {
        BTreeMap::from([
            ("ca-cert.pem".to_string(), text("ca-cert.pem")),
            ("ca-key.pem".to_string(), text("ca-key.pem")),
            ("cert-chain.pem".to_string(), text("ca-cert.pem")),
            ("root-cert.pem".to_string(), roots),
        ])
    };
    let mut secret = json!({ "metadata": { "name": "cacerts", "namespace": "ambit-system" } });
    secret["data"] = serde_json::to_value(plugged(text("root-cert.pem"))).unwrap();
    cluster.ensure::<core::Secret>(Some("ambit-system"), secret).await;
    cluster.secrets().delete(SECRET, &kube::api::DeleteParams::default()).await.unwrap();
    cluster.run();
    let token = cluster.proxy_token().await;
    assert_eq!(Held::new(&cluster, &token).await.trusted, all(&own));
    assert!(cluster.secrets().get_opt(SECRET).await.unwrap().is_none(), "no root of our own beside it");

    // A further root is trusted at once.
    let other = Authority::self_signed("cluster.local", std::time::SystemTime::now()).unwrap();
    let replace = |data: BTreeMap<String, ByteString>| {
        let secrets = cluster.secrets();
        async move {
            let patch = json!({ "data": data });
            secrets.patch("cacerts", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        }
    };
    replace(plugged(ByteString(format!("{own}{}", other.root_bundle()).into_bytes()))).await;
    cluster.roots(2).await;
    // Half of it is no reason to stop, nor to use it.
    let mut half = plugged(ByteString(own.clone().into_bytes()));
    half.insert("ca-key.pem".into(), ByteString(b"no key".to_vec()));
    replace(half).await;
    replace(plugged(ByteString(own.clone().into_bytes()))).await;
    assert_eq!(all(&cluster.roots(1).await), all(&own));
    cluster.halt().await;
}

/// A directory as the kubelet fills it from a Secret of cert-manager: files change in place while it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_in_files_is_used_and_followed_when_they_change() {
    let cluster = Cluster::bare().await;
    let own = cluster.root("shop").await;
    let made = cluster.secrets().get(SECRET).await.unwrap().data.unwrap();
    let directory = std::env::temp_dir().join(format!("ambit-ca-{:016x}", rand::random::<u64>()));
    std::fs::create_dir(&directory).unwrap();
    // Another than the one in the Secret, so that it shows which one is used.
    let upstream = Authority::self_signed("cluster.local", std::time::SystemTime::now()).unwrap();
    let stored = control::ca::store::secret("x", &upstream);
    let stored = control::ca::store::texts(&stored).unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    write("tls.crt", &stored["ca-cert.pem"]);
    write("tls.key", &stored["ca-key.pem"]);
    write("ca.crt", upstream.root_bundle());

    let config = control::Config { ca_directory: Some(directory.clone()), ..cluster.config() };
    let replica = super::replicas::Replica::with(&cluster, "control-a", 1, config);
    assert_eq!(all(&cluster.roots_are(upstream.root_bundle()).await), all(upstream.root_bundle()));
    let token = cluster.proxy_token().await;
    let channel = cluster.connect_to(&replica).await;
    let (answer, key) =
        certificate(channel.clone(), &token, "spiffe://cluster.local/ns/shop/sa/web").await.unwrap();
    assert_eq!(all(answer.cert_chain.last().unwrap()), all(upstream.root_bundle()));
    usable_both_ways(&answer.cert_chain, &key);

    // A key of another certificate is not used; a further root is.
    write("tls.key", std::str::from_utf8(&made["ca-key.pem"].0).unwrap());
    certificate(channel, &token, "spiffe://cluster.local/ns/shop/sa/web").await.unwrap();
    write("tls.key", &stored["ca-key.pem"]);
    let both = format!("{}{own}", upstream.root_bundle());
    write("ca.crt", &both);
    cluster.roots_are(&both).await;
    std::fs::remove_dir_all(&directory).unwrap();
}

/// A revocation list reaches every namespace with the roots, and is followed; without any, the map is there and empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_list_stands_in_every_namespace_and_is_followed() {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod,
    };
    let mut cluster = Cluster::start().await;
    cluster.list_is("shop", "").await;
    cluster.halt().await;

    let now = std::time::SystemTime::now();
    let days = |days: u64| (now + Duration::from_secs(days * 86_400)).into();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = days(100);
    let root = params.self_signed(&key).unwrap().pem();
    let revoked = |number: u64| {
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: days(10),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&Issuer::from_params(&params, &key)).unwrap().pem().unwrap()
    };
    let (first, second) = (revoked(1), revoked(2));
    let directory = std::env::temp_dir().join(format!("ambit-crl-{:016x}", rand::random::<u64>()));
    std::fs::create_dir(&directory).unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    for name in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        write(name, &root);
    }
    write("ca-key.pem", &key.serialize_pem());
    write("ca-crl.pem", &first);
    let config = control::Config { ca_directory: Some(directory.clone()), ..cluster.config() };
    let _replica = super::replicas::Replica::with(&cluster, "control-a", 1, config);
    cluster.list_is("shop", &first).await;
    cluster.list_is("kube-system", &first).await;
    write("ca-crl.pem", &second);
    cluster.list_is("shop", &second).await;
    // One that is none does not take the last good one away.
    write("ca-crl.pem", "no list");
    cluster.ensure::<core::Namespace>(None, json!({ "metadata": { "name": "late" } })).await;
    cluster.list_is("late", &second).await;
    std::fs::remove_dir_all(&directory).unwrap();
}
