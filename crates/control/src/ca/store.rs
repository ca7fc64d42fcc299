//! The root in its Secret (reference/control-plane.md §4.3).

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use super::Authority;
use crate::Error;

/// Name of the Secret with a self-signed root.
pub const SECRET: &str = "istio-ca-secret";
/// Its type.
pub const SECRET_TYPE: &str = "istio.io/ca-root";

/// The authority of the cluster: read from its Secret, or made and stored when there is none. When several replicas
/// make one at once, the first one stored is everybody's.
pub async fn load_or_create(
    client: &Client,
    namespace: &str,
    trust_domain: &str,
) -> Result<Authority, Error> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let name = format!("{namespace}/{SECRET}");
    let reading = || format!("read Secret {name}");
    let unusable = |reason: String| Error::Authority { secret: name.clone(), reason };
    if let Some(secret) = api.get_opt(SECRET).await.map_err(|error| Error::api(reading(), error))? {
        return read(&secret).map_err(unusable);
    }
    let authority = Authority::self_signed(trust_domain, SystemTime::now())
        .map_err(|error| unusable(format!("a new root could not be made: {error}")))?;
    match api.create(&PostParams::default(), &secret(namespace, &authority)).await {
        Ok(_) => {
            tracing::info!(secret = name, "new self-signed root certificate");
            Ok(authority)
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_conflict() => {
            let secret = api.get(SECRET).await.map_err(|error| Error::api(reading(), error))?;
            read(&secret).map_err(unusable)
        }
        Err(error) => Err(Error::api(format!("create Secret {name}"), error)),
    }
}

/// The Secret of an authority.
pub fn secret(namespace: &str, authority: &Authority) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.into()),
            namespace: Some(namespace.into()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/part-of".into(), "ambit".into())])),
            ..ObjectMeta::default()
        },
        type_: Some(SECRET_TYPE.into()),
        data: Some(BTreeMap::from([
            ("ca-cert.pem".into(), bytes(authority.certificate())),
            ("ca-key.pem".into(), bytes(&authority.key())),
            ("root-cert.pem".into(), bytes(authority.root_bundle())),
            ("cert-chain.pem".into(), bytes("")),
            ("key.pem".into(), bytes("")),
        ])),
        ..Secret::default()
    }
}

/// The data of a Secret as text.
pub fn texts(secret: &Secret) -> Result<BTreeMap<String, String>, String> {
    let text = |(key, bytes): (&String, &ByteString)| {
        let text = String::from_utf8(bytes.0.clone()).map_err(|_| format!("{key} is not text"))?;
        Ok((key.clone(), text))
    };
    secret.data.iter().flatten().map(text).collect()
}

/// The authority in a Secret. A root bundle that stands empty is the signing certificate itself.
pub fn read(secret: &Secret) -> Result<Authority, String> {
    let text = |key: &str| -> Result<&str, String> {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
        std::str::from_utf8(bytes.unwrap_or_default()).map_err(|_| format!("{key} is not text"))
    };
    let (certificate, key, roots) = (text("ca-cert.pem")?, text("ca-key.pem")?, text("root-cert.pem")?);
    if certificate.is_empty() || key.is_empty() {
        return Err("ca-cert.pem or ca-key.pem is missing".into());
    }
    Authority::read(certificate, key, if roots.is_empty() { certificate } else { roots })
        .map_err(|error| error.to_string())
}
