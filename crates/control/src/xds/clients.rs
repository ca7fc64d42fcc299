//! Who is connected and how far each has come, for `/debug/syncz`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// All connected clients.
#[derive(Debug, Default)]
pub struct Clients {
    all: Mutex<BTreeMap<u64, Seen>>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Seen {
    proxy: String,
    types: BTreeMap<&'static str, Told>,
}

/// What a client was told of one type. Nonces rather than versions: two pushes of one state are two.
#[derive(Debug, Default)]
struct Told {
    sent: String,
    acknowledged: String,
    at: i64,
    error: String,
}

/// A connected client; listed as long as it lives.
#[derive(Debug)]
pub struct Listed {
    clients: Arc<Clients>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.clients.all.lock().remove(&self.number);
    }
}

impl Listed {
    fn told(&self, type_url: &'static str, change: impl FnOnce(&mut Told)) {
        if let Some(seen) = self.clients.all.lock().get_mut(&self.number) {
            change(seen.types.entry(type_url).or_default());
        }
    }

    /// The client has said which node it is.
    pub fn named(&self, node: &str) {
        if let Some(seen) = self.clients.all.lock().get_mut(&self.number)
            && seen.proxy.is_empty()
        {
            // `type~ip~pod.namespace~domain`
            node.split('~').nth(2).unwrap_or(node).clone_into(&mut seen.proxy);
        }
    }

    /// A push went out at a moment, seconds since 1970.
    pub fn sent(&self, type_url: &'static str, nonce: &str, at: i64) {
        self.told(type_url, |told| {
            nonce.clone_into(&mut told.sent);
            told.at = at;
        });
    }

    /// The last push was accepted, or refused with an error.
    pub fn answered(&self, type_url: &'static str, error: Option<&str>) {
        self.told(type_url, |told| match error {
            Some(error) => error.clone_into(&mut told.error),
            None => {
                told.acknowledged.clone_from(&told.sent);
                told.error.clear();
            }
        });
    }
}

impl Clients {
    /// A client has connected.
    pub fn list(self: &Arc<Self>) -> Listed {
        let number = self.next.fetch_add(1, Relaxed);
        self.all.lock().insert(number, Seen::default());
        Listed { clients: self.clone(), number }
    }

    /// The page: an entry a client, as istiod writes it (reference/control-plane.md §3.9).
    pub fn page(&self, cluster: &str) -> Value {
        let told = |told: &Told| {
            let at = k8s_openapi::jiff::Timestamp::from_second(told.at).unwrap_or_default().to_string();
            json!({ "sent": told.sent, "acked": told.acknowledged, "sentTime": at, "lastError": told.error })
        };
        let all = self.all.lock();
        let entries = all.values().map(|seen| {
            let types: serde_json::Map<String, Value> =
                seen.types.iter().map(|(url, one)| (url.to_string(), told(one))).collect();
            json!({
                "cluster_id": cluster, "proxy": seen.proxy, "proxy_type": "ztunnel",
                "istio_version": "", "resources": types,
            })
        });
        entries.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_listed_with_what_it_was_sent_and_took_until_it_goes() {
        let clients: Arc<Clients> = Arc::default();
        let one = clients.list();
        one.named("ztunnel~10.0.0.2~ztunnel-x.ambit-system~ambit-system.svc.cluster.local");
        one.sent(wire::type_url::ADDRESS, "n1", 0);
        let page = clients.page("Kubernetes");
        assert_eq!(page[0]["proxy"], "ztunnel-x.ambit-system");
        let told = |page: &Value| page[0]["resources"][wire::type_url::ADDRESS].clone();
        assert_eq!((told(&page)["sent"].as_str(), told(&page)["acked"].as_str()), (Some("n1"), Some("")));
        one.answered(wire::type_url::ADDRESS, Some("bad"));
        assert_eq!(told(&clients.page("c"))["lastError"], "bad");
        one.answered(wire::type_url::ADDRESS, None);
        assert_eq!(told(&clients.page("c"))["acked"], "n1");
        drop(one);
        assert_eq!(clients.page("c"), json!([]));
    }
}
