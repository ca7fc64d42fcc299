//! What one client has been told and what it is to be told next (reference/control-plane.md §3.5).
//!
//! Plain data: requests and snapshots go in, pushes come out. Policies are told before the workloads that name them,
//! and their removal after: a client skips a policy that it does not have, so the other order would open a gap.

use std::collections::{BTreeMap, VecDeque};

use tonic::Status;
use wire::type_url;
use wire::xds::{DeltaDiscoveryRequest, Node};

use super::demand::{self, Demand, Told};
use super::frame::Push;
use crate::auth::Caller;
use crate::state::{Changes, Name, Shelf, Snapshot, TooFarBehind};

/// One client's stream.
#[derive(Debug)]
pub struct Session {
    caller: Caller,
    /// Makes nonces of this stream unlike those of any other.
    salt: u64,
    sent: u64,
    node: Option<String>,
    /// The cluster's node that the client runs on.
    placed: Option<String>,
    address: Option<Subscription>,
    authorization: Option<Subscription>,
    /// Names the client asks for, when it does not follow all workloads and services.
    demand: Option<Demand>,
    outbox: VecDeque<Push>,
}

/// What a client was told of one type.
#[derive(Debug, Default)]
struct Subscription {
    /// Change it has been told up to.
    seen: u64,
    nonce: String,
}

/// What a request was, for metrics and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A subscription, answered.
    Subscribed,
    /// The last push was accepted.
    Acknowledged,
    /// The last push was refused, wholly or in part.
    Rejected(String),
    /// It answers a push that is not the last one.
    Stale,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address,
    Authorization,
}

impl Kind {
    fn parse(url: &str) -> Result<Self, Status> {
        match url {
            type_url::ADDRESS => Ok(Self::Address),
            type_url::AUTHORIZATION => Ok(Self::Authorization),
            other => Err(Status::invalid_argument(format!(
                "type {:?} is not served here; ask for {} or {}",
                other.chars().take(120).collect::<String>(),
                type_url::ADDRESS,
                type_url::AUTHORIZATION
            ))),
        }
    }

    fn url(self) -> &'static str {
        match self {
            Self::Address => type_url::ADDRESS,
            Self::Authorization => type_url::AUTHORIZATION,
        }
    }

    fn shelf(self, snapshot: &Snapshot) -> &Shelf {
        match self {
            Self::Address => &snapshot.addresses,
            Self::Authorization => &snapshot.policies,
        }
    }
}

impl Session {
    /// A stream that has said nothing yet. `salt` is random.
    pub fn new(caller: Caller, salt: u64) -> Self {
        Self {
            caller,
            salt,
            sent: 0,
            node: None,
            placed: None,
            address: None,
            authorization: None,
            demand: None,
            outbox: VecDeque::new(),
        }
    }

    /// Id of the client's node, once it has said it.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Whether the client has asked for workloads and not yet for policies: the answer may wait a moment for the
    /// policies to go first.
    pub fn wants_policies_first(&self, request: &DeltaDiscoveryRequest) -> bool {
        request.type_url == type_url::ADDRESS && self.address.is_none() && self.authorization.is_none()
    }

    /// Takes in a request. An error ends the stream.
    pub fn request(&mut self, request: DeltaDiscoveryRequest, snapshot: &Snapshot) -> Result<Heard, Status> {
        if self.node.is_none() {
            let node = request.node.as_ref().ok_or_else(|| {
                Status::invalid_argument("the first request of a stream must say which node it is")
            })?;
            check_node(&self.caller, node)?;
            self.node = Some(node.id.clone());
            self.placed = metadata(node, "NODE_NAME").map(str::to_string);
        }
        let kind = Kind::parse(&request.type_url)?;
        let Some(subscription) = self.subscription(kind) else {
            return self.subscribe(kind, request, snapshot);
        };
        if let Some(error) = request.error_detail {
            return Ok(Heard::Rejected(error.message));
        }
        let stale = !request.response_nonce.is_empty() && request.response_nonce != subscription.nonce;
        let named = |names: &[String]| names.iter().any(|name| name != "*");
        if !named(&request.resource_names_subscribe) && !named(&request.resource_names_unsubscribe) {
            return Ok(if stale { Heard::Stale } else { Heard::Acknowledged });
        }
        // Names count whichever push the request answers, and whoever asks gets an answer.
        self.update(snapshot)?;
        let shelf = kind.shelf(snapshot);
        let asked = request.resource_names_subscribe.iter().filter(|name| *name != "*");
        let told = match (kind, &mut self.demand) {
            (Kind::Address, Some(demand)) => {
                demand.drop(&request.resource_names_unsubscribe, shelf);
                let told = demand.ask(asked, shelf);
                within(demand)?;
                told
            }
            // Everything is sent anyway.
            _ => Demand::default().ask(asked, shelf),
        };
        self.push(kind, snapshot, told.resources, told.removed);
        Ok(Heard::Subscribed)
    }

    /// First request of a type: always answered, with everything the client does not have.
    fn subscribe(
        &mut self,
        kind: Kind,
        request: DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<Heard, Status> {
        let everything = |names: &[String]| names.iter().any(|name| name == "*");
        let wildcard = request.resource_names_subscribe.is_empty()
            || (everything(&request.resource_names_subscribe)
                && !everything(&request.resource_names_unsubscribe));
        if !wildcard && kind == Kind::Authorization {
            return Err(Status::invalid_argument("policies are sent as a whole; ask for them without names"));
        }
        // What the client already follows is brought up to the same moment, so that workloads never name a policy
        // that was left behind.
        self.update(snapshot)?;
        let shelf = kind.shelf(snapshot);
        let known: BTreeMap<String, String> = request.initial_resource_versions;
        let Told { resources, removed } = if wildcard {
            catch_up(shelf, known)
        } else {
            let asked = request.resource_names_subscribe.iter().filter(|name| *name != "*");
            let (demand, told) = Demand::open(self.placed.as_deref(), asked, known, shelf);
            let told = within(&demand).map(|()| told)?;
            self.demand = Some(demand);
            told
        };
        let subscription = Subscription { seen: snapshot.change, nonce: String::new() };
        match kind {
            Kind::Address => self.address = Some(subscription),
            Kind::Authorization => self.authorization = Some(subscription),
        }
        self.push(kind, snapshot, resources, removed);
        Ok(Heard::Subscribed)
    }

    /// Takes in a newer snapshot: what changed since the client was last told goes to the outbox.
    pub fn update(&mut self, snapshot: &Snapshot) -> Result<(), Status> {
        let mut since = |kind: Kind| -> Result<Changes, TooFarBehind> {
            let Some(subscription) = self.subscription(kind) else { return Ok(Changes::default()) };
            let seen = std::mem::replace(&mut subscription.seen, snapshot.change);
            kind.shelf(snapshot).since(seen)
        };
        let behind = |error: TooFarBehind| Status::unavailable(error.to_string());
        let policies = since(Kind::Authorization).map_err(behind)?;
        let mut addresses = since(Kind::Address).map_err(behind)?;
        let addresses = match &mut self.demand {
            Some(demand) => demand.filter(addresses, &snapshot.addresses),
            None => {
                addresses.updated.append(&mut addresses.again);
                Told { resources: addresses.updated, removed: addresses.removed }
            }
        };
        let mut push = |kind, resources: Vec<_>, removed: Vec<_>| {
            if !resources.is_empty() || !removed.is_empty() {
                self.push(kind, snapshot, resources, removed);
            }
        };
        push(Kind::Authorization, policies.updated, Vec::new());
        push(Kind::Address, addresses.resources, addresses.removed);
        push(Kind::Authorization, policies.again, policies.removed);
        Ok(())
    }

    /// The next push, if there is one.
    pub fn take(&mut self) -> Option<Push> {
        self.outbox.pop_front()
    }

    /// Whether there is something to be told.
    pub fn has_news(&self) -> bool {
        !self.outbox.is_empty()
    }

    fn subscription(&mut self, kind: Kind) -> Option<&mut Subscription> {
        match kind {
            Kind::Address => self.address.as_mut(),
            Kind::Authorization => self.authorization.as_mut(),
        }
    }

    fn push(
        &mut self,
        kind: Kind,
        snapshot: &Snapshot,
        resources: Vec<std::sync::Arc<crate::state::Resource>>,
        removed: Vec<Name>,
    ) {
        self.sent += 1;
        let nonce = format!("{:016x}-{}", self.salt, self.sent);
        if let Some(subscription) = self.subscription(kind) {
            subscription.nonce.clone_from(&nonce);
        }
        self.outbox.push_back(Push {
            version: snapshot.change.to_string(),
            type_url: kind.url(),
            nonce,
            resources,
            removed,
            aliases: kind == Kind::Address && self.demand.is_some(),
        });
    }
}

/// Whether a client asks for no more names than a mesh can have.
fn within(demand: &Demand) -> Result<(), Status> {
    if demand.asked() <= demand::MOST {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "more than {} names asked for on one stream; follow everything instead (unset XDS_ON_DEMAND)",
        demand::MOST
    )))
}

/// What a client that follows everything does not have.
fn catch_up(shelf: &Shelf, mut known: BTreeMap<String, String>) -> Told {
    let missing = shelf
        .iter()
        .filter(|resource| known.remove(&*resource.name).is_none_or(|version| version != *resource.version));
    let resources = missing.cloned().collect();
    Told { resources, removed: known.into_keys().map(Name::from).collect() }
}

/// A text of a node's metadata, if it is there and not empty.
fn metadata<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) => Some(text.as_str()).filter(|text| !text.is_empty()),
        _ => None,
    }
}

/// A client may only speak for a proxy of its own namespace and account (reference/control-plane.md §3.3).
fn check_node(caller: &Caller, node: &Node) -> Result<(), Status> {
    // `type~ip~pod.namespace~namespace.svc.domain`
    let parts: Vec<&str> = node.id.split('~').collect();
    let from_id = match parts[..] {
        [_, _, _, domain] => domain.split('.').next(),
        _ => {
            return Err(Status::invalid_argument(
                "the node id must be of the form type~ip~pod.namespace~namespace.svc.domain",
            ));
        }
    };
    let namespace = metadata(node, "NAMESPACE").or(from_id).unwrap_or_default();
    let account = metadata(node, "SERVICE_ACCOUNT");
    if namespace != &*caller.account.namespace
        || account.is_some_and(|account| account != &*caller.account.name)
    {
        return Err(Status::permission_denied(format!(
            "{} speaks for a proxy of namespace {namespace} and account {}",
            caller.account,
            account.unwrap_or("(none said)")
        )));
    }
    Ok(())
}
