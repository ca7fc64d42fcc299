//! The ServiceAccount admission: every pod runs as an account that exists, and finds its token mounted.

use serde_json::{Value, json};

use crate::api::failure::Failure;
use crate::api::object::{array_at, map_mut, name, namespace, str_at};
use crate::api::store::Inner;

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour and seven seconds, by which the real server tells the tokens it injected from others.
const TOKEN_SECONDS: i64 = 3607;

/// Gives a new pod its account and, unless it declines, the volume with its token.
pub fn admit(tx: &Inner, pod: &mut Value) -> Result<(), Failure> {
    // Mirror pods are the kubelet's own and run as nobody.
    if pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
        return Ok(());
    }
    let mut account_name = str_at(pod, "/spec/serviceAccountName").to_owned();
    if account_name.is_empty() {
        account_name = "default".into();
        let spec = map_mut(pod, "spec");
        spec.insert("serviceAccountName".into(), "default".into());
        spec.insert("serviceAccount".into(), "default".into());
    }
    let (pod_name, pod_namespace) = (name(pod).to_owned(), namespace(pod).to_owned());
    let account = tx.get("serviceaccounts", &pod_namespace, &account_name).ok_or_else(|| {
        let why = format!(
            "error looking up service account {pod_namespace}/{account_name}: serviceaccount {account_name:?} not found"
        );
        Failure::forbidden("pods", &pod_name, &why)
    })?;
    if array_at(pod, "/spec/imagePullSecrets").is_empty()
        && let Some(secrets) =
            account.get("imagePullSecrets").filter(|s| s.as_array().is_some_and(|s| !s.is_empty()))
    {
        let secrets = secrets.clone();
        map_mut(pod, "spec").insert("imagePullSecrets".into(), secrets);
    }
    let says = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_bool);
    let wanted = says(pod, "/spec/automountServiceAccountToken")
        .or_else(|| says(&account, "/automountServiceAccountToken"))
        .unwrap_or(true);
    if wanted {
        mount(pod);
    }
    Ok(())
}

fn mount(pod: &mut Value) {
    let existing = array_at(pod, "/spec/volumes")
        .iter()
        .map(|v| str_at(v, "/name"))
        .find(|name| name.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(|| format!("kube-api-access-{}", suffix()));
    let spec = map_mut(pod, "spec");
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Value::Array(mounts) = mounts else { continue };
            if mounts.iter().all(|m| str_at(m, "/mountPath") != MOUNT) {
                mounts.push(json!({ "name": volume, "readOnly": true, "mountPath": MOUNT }));
                mounted = true;
            }
        }
    }
    if !mounted || existing.is_some() {
        return;
    }
    if let Value::Array(volumes) = spec.entry("volumes").or_insert_with(|| json!([])) {
        volumes.push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                    { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                    { "downwardAPI": { "items": [{
                        "path": "namespace",
                        "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                    }] } },
                ],
            },
        }));
    }
}

fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}
