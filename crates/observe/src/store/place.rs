//! Ends of flows as the store keeps them: one place a pod (or address), whoever describes it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::{End, Text};

/// What tells one place from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PlaceKey {
    /// Namespace and pod.
    Pod(Text, Text),
    /// Namespace and workload, where nobody knows the pod.
    Workload(Text, Text),
    /// Only an address is known.
    Address(IpAddr),
    /// Nothing is known.
    Unknown,
}

/// A place, with its names in the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What proxies say of it.
    pub end: End,
    /// `pod:NAMESPACE/POD` or `out:ADDRESS`.
    pub id: Text,
    /// `wl:NAMESPACE/WORKLOAD` or `out:ADDRESS`.
    pub workload_id: Text,
    /// `ns:NAMESPACE` or [`OUTSIDE`].
    pub namespace_id: Text,
}

/// All that lies outside, at the level of namespaces.
pub const OUTSIDE: &str = "out:*";

/// Number of a place.
pub type PlaceId = u32;

impl PlaceKey {
    /// The key of an end.
    pub fn of(end: &End) -> Self {
        if end.namespace.is_empty() || (end.pod.is_empty() && end.workload.is_empty()) {
            end.address.map_or(Self::Unknown, Self::Address)
        } else if end.pod.is_empty() {
            Self::Workload(end.namespace.clone(), end.workload.clone())
        } else {
            Self::Pod(end.namespace.clone(), end.pod.clone())
        }
    }
}

impl Place {
    /// An end with its names.
    pub fn new(end: End) -> Self {
        let (id, workload_id, namespace_id) = match PlaceKey::of(&end) {
            PlaceKey::Pod(namespace, pod) => {
                let workload = if end.workload.is_empty() { &pod } else { &end.workload };
                (id2("pod", &namespace, &pod), id2("wl", &namespace, workload), id1("ns", &namespace))
            }
            PlaceKey::Workload(namespace, workload) => {
                let id = id2("wl", &namespace, &workload);
                (id.clone(), id, id1("ns", &namespace))
            }
            PlaceKey::Address(ip) => {
                let id: Text = format!("out:{ip}").into();
                (id.clone(), id, OUTSIDE.into())
            }
            PlaceKey::Unknown => ("out:unknown".into(), "out:unknown".into(), OUTSIDE.into()),
        };
        Self { end, id, workload_id, namespace_id }
    }

    /// Whether it has a namespace: a pod or workload rather than an address.
    pub fn is_inside(&self) -> bool {
        &*self.namespace_id != OUTSIDE
    }

    /// For people: `namespace/pod`, or the address.
    pub fn name(&self) -> String {
        match PlaceKey::of(&self.end) {
            PlaceKey::Pod(namespace, name) | PlaceKey::Workload(namespace, name) => {
                format!("{namespace}/{name}")
            }
            PlaceKey::Address(ip) => ip.to_string(),
            PlaceKey::Unknown => "unknown".into(),
        }
    }
}

/// `kind:part`, the part percent-encoded.
pub fn id1(kind: &str, part: &str) -> Text {
    let mut id = format!("{kind}:");
    encode(&mut id, part);
    id.into()
}

/// `kind:a/b`, the parts percent-encoded.
pub fn id2(kind: &str, a: &str, b: &str) -> Text {
    let mut id = format!("{kind}:");
    encode(&mut id, a);
    id.push('/');
    encode(&mut id, b);
    id.into()
}

/// Kubernetes names need no encoding; hostile ones must not change the shape of an id.
fn encode(id: &mut String, part: &str) {
    use std::fmt::Write;
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            id.push(char::from(byte));
        } else {
            let _ = write!(id, "%{byte:02X}");
        }
    }
}

/// All places, counted by the pairs that use them.
#[derive(Debug, Default)]
pub struct Places {
    by_key: HashMap<PlaceKey, PlaceId>,
    slots: Vec<Option<(Arc<Place>, u32)>>,
    free: Vec<PlaceId>,
}

impl Places {
    /// The place of an end, whose knowledge is added; one more use.
    pub fn acquire(&mut self, end: &End) -> PlaceId {
        let key = PlaceKey::of(end);
        if let Some(&id) = self.by_key.get(&key) {
            self.learn(id, end);
            if let Some(Some((_, uses))) = self.slots.get_mut(id as usize) {
                *uses += 1;
            }
            return id;
        }
        let slot = Some((Arc::new(Place::new(end.clone())), 1));
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as PlaceId
            }
        };
        self.by_key.insert(key, id);
        id
    }

    /// Adds what an end knows to a place that is there.
    pub fn learn(&mut self, id: PlaceId, end: &End) {
        let Some(Some((place, _))) = self.slots.get_mut(id as usize) else { return };
        let old = &place.end;
        let newer = |new: &Text, old: &Text| if new.is_empty() { old.clone() } else { new.clone() };
        let merged = End {
            cluster: newer(&end.cluster, &old.cluster),
            namespace: old.namespace.clone(),
            pod: old.pod.clone(),
            workload: newer(&end.workload, &old.workload),
            workload_type: newer(&end.workload_type, &old.workload_type),
            canonical_name: newer(&end.canonical_name, &old.canonical_name),
            canonical_revision: newer(&end.canonical_revision, &old.canonical_revision),
            node: newer(&end.node, &old.node),
            address: end.address.or(old.address),
            enrolled: end.enrolled,
        };
        if merged != *old {
            *place = Arc::new(Place::new(merged));
        }
    }

    /// One use less; a place that nobody uses is forgotten.
    pub fn release(&mut self, id: PlaceId) {
        let Some(slot) = self.slots.get_mut(id as usize) else { return };
        let Some((place, uses)) = slot else { return };
        *uses -= 1;
        if *uses == 0 {
            self.by_key.remove(&PlaceKey::of(&place.end));
            *slot = None;
            self.free.push(id);
        }
    }

    /// The place with a number.
    pub fn get(&self, id: PlaceId) -> Option<&Arc<Place>> {
        self.slots.get(id as usize)?.as_ref().map(|(place, _)| place)
    }

    /// The number of a place.
    pub fn find(&self, key: &PlaceKey) -> Option<PlaceId> {
        self.by_key.get(key).copied()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_key.len()
    }

    /// Memory on the heap, estimated.
    pub fn heap_bytes(&self) -> usize {
        let texts = |place: &Place| {
            let end = &place.end;
            let ids = place.id.len() + place.workload_id.len() + place.namespace_id.len();
            ids + end.pod.len() + end.workload.len() + 8 * 16
        };
        let places =
            self.slots.iter().flatten().map(|(place, _)| size_of::<Place>() + texts(place)).sum::<usize>();
        places + self.by_key.capacity() * (size_of::<PlaceKey>() + 8) + self.slots.capacity() * 16
    }
}
