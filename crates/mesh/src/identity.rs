//! SPIFFE identities.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A SPIFFE identity, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cheap to clone: the parts are shared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// Why a text is no SPIFFE identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct IdentityError {
    /// What was given.
    pub text: String,
}

impl Identity {
    /// An identity from its parts. Parts are refused when empty or when they would change the URI's shape.
    pub fn new(
        trust_domain: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Result<Self, IdentityError> {
        let identity = Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        };
        let parts = [&identity.trust_domain, &identity.namespace, &identity.service_account];
        if parts.iter().all(|part| is_part(part)) {
            Ok(identity)
        } else {
            Err(IdentityError { text: identity.to_string() })
        }
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The text that policies compare principals with: the URI without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// Printable ASCII without what separates the parts of a URI; at most 253 bytes, as DNS names are.
fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 253
        && part.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'%' | b'\\'))
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || IdentityError { text: text.chars().take(512).collect() };
        let parts: Vec<&str> = text.strip_prefix("spiffe://").ok_or_else(error)?.split('/').collect();
        match parts[..] {
            [trust_domain, "ns", namespace, "sa", service_account] => {
                Self::new(trust_domain, namespace, service_account).map_err(|_| error())
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_identity_prints_as_it_was_read() {
        let text = "spiffe://cluster.local/ns/monitoring/sa/prometheus";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.namespace(), "monitoring");
        assert_eq!(identity.service_account(), "prometheus");
        assert_eq!(identity.to_string(), text);
        assert_eq!(identity.principal(), "cluster.local/ns/monitoring/sa/prometheus");
    }

    #[test]
    fn what_is_not_an_identity_is_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "https://td/ns/a/sa/b",
            "spiffe://td/sa/b/ns/a",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a b/sa/c",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,300}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }
}
