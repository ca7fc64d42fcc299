use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A field of length-delimited type.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
    out.extend(bytes);
    out
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &meta), field(2, raw), field(3, b""), field(4, b"")].concat()
}

#[test]
fn a_namespace_as_kubectl_sends_it() {
    let metadata = [field(1, b"web"), field(2, b""), field(8, b""), vec![7 << 3, 0]].concat();
    let body =
        envelope("v1", "Namespace", &[field(1, &metadata), field(2, b""), field(3, &field(1, b""))].concat());
    let want = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "web"}, "spec": {}, "status": {}});
    assert_eq!(decode(&body).expect("readable"), want);
}

#[test]
fn maps_bytes_inlined_messages_and_explicit_zeros() {
    let entry = [field(1, b"k"), field(2, b"v")].concat();
    let body = envelope("v1", "Secret", &field(2, &entry));
    assert_eq!(decode(&body).expect("readable")["data"], json!({"k": "dg=="}));
    // apps/v1 Deployment { spec { replicas: 0, minReadySeconds: 0 } }
    let body = envelope("apps/v1", "Deployment", &field(2, &[1 << 3, 0, 5 << 3, 0]));
    assert_eq!(decode(&body).expect("readable")["spec"], json!({"replicas": 0}));
    // core/v1 Pod { spec { volumes { name: "a", volumeSource { emptyDir {} } } } }
    let volume = [field(1, b"a"), field(2, &field(2, b""))].concat();
    let body = envelope("v1", "Pod", &field(2, &field(1, &volume)));
    assert_eq!(decode(&body).expect("readable")["spec"]["volumes"], json!([{"name": "a", "emptyDir": {}}]));
}

#[test]
fn every_message_that_the_table_mentions_is_in_it() {
    for (name, message) in MESSAGES.iter() {
        for field in message.values().filter(|f| f.of.len() > 1) {
            assert!(MESSAGES.contains_key(field.of), "{name}.{} is of {}", field.name, field.of);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..120)) {
        for (api_version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "DeleteOptions")] {
            let _ = decode(&envelope(api_version, kind, &raw[..raw.len().min(100)]));
        }
        let _ = decode(&raw);
        let _ = decode(&[MAGIC, &raw].concat());
    }
}
