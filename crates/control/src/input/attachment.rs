//! What an object asks for in the way of waypoints (reference/control-plane.md §1.6).

use std::sync::Arc;

use super::{Key, Labels};

/// What an object asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Label `istio.io/use-waypoint`.
    pub wants: Wants,
    /// A second waypoint that takes a share.
    pub canary: Option<Key>,
    /// Its share in percent, as written.
    pub canary_weight: Option<String>,
    /// Whether ingress gateways go through the waypoint too, when it is said.
    pub ingress: Option<bool>,
    /// It was made for a waypoint and never has one itself.
    pub managed: bool,
}

/// Which waypoint an object asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wants {
    /// It says nothing: its namespace decides.
    #[default]
    Inherit,
    /// It wants none, whatever its namespace says.
    Nothing,
    /// This one.
    Waypoint(Key),
}

impl Attachment {
    /// From the labels and annotations of an object of a namespace.
    pub fn read(labels: Option<&Labels>, annotations: Option<&Labels>, namespace: &Arc<str>) -> Self {
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        let gateway = |name: &str, place: &str| {
            let place = label(place).filter(|place| !place.is_empty());
            Key::new(place.map_or_else(|| namespace.clone(), Arc::from), name)
        };
        let wants = match label("istio.io/use-waypoint") {
            None | Some("") => Wants::Inherit,
            Some("none") => Wants::Nothing,
            Some(name) => Wants::Waypoint(gateway(name, "istio.io/use-waypoint-namespace")),
        };
        Self {
            wants,
            canary: label("istio.io/use-waypoint-canary")
                .filter(|name| !name.is_empty())
                .map(|name| gateway(name, "istio.io/use-waypoint-canary-namespace")),
            canary_weight: annotations
                .and_then(|annotations| annotations.get("istio.io/use-waypoint-canary-weight"))
                .cloned(),
            ingress: label("istio.io/ingress-use-waypoint").and_then(truth),
            managed: matches!(
                label("gateway.istio.io/managed"),
                Some("istio.io-mesh-controller" | "istio.io-eastwest-controller")
            ),
        }
    }

    /// Whether it names this waypoint, in whatever role.
    pub fn names(&self, waypoint: &Key) -> bool {
        matches!(&self.wants, Wants::Waypoint(key) if key == waypoint)
            || self.canary.as_ref() == Some(waypoint)
    }
}

/// Truth as Go's `strconv.ParseBool` reads it, which is what users know.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
