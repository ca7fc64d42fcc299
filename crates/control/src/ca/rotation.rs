//! How a self-signed root is replaced without a refused connection.
//!
//! Three stages, kept in the Secret, so that any replica goes on where another stopped:
//!
//! 1. *distributing*: a new root is made and trusted everywhere beside the old one, which still signs. A proxy learns
//!    the roots with each certificate, so this lasts until every certificate of before has ended.
//! 2. *retiring*: the new root signs; the old one is still trusted until the last certificate it signed has ended.
//! 3. The old root is dropped.
//!
//! Everything here is a pure function of the Secret, the time and what is distributed.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;

use super::{Authority, AuthorityError};

/// Annotation: the stage.
pub const STAGE: &str = "ambit.io/ca-stage";
/// Annotation: since when, RFC 3339.
pub const SINCE: &str = "ambit.io/ca-stage-since";
/// Annotation: what somebody asks for, `rotate`, `next` or `cancel`.
pub const REQUEST: &str = "ambit.io/ca-request";
/// Annotation: the longest life of a certificate that was signed, in seconds.
pub const LONGEST: &str = "ambit.io/ca-longest-life";

const NEXT_CERTIFICATE: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
const OLD_CERTIFICATE: &str = "old-cert.pem";

/// Stage of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// None is under way.
    Settled,
    /// Both roots are trusted, the old one signs.
    Distributing,
    /// Both roots are trusted, the new one signs.
    Retiring,
}

impl Stage {
    /// The word in annotations, metrics and pages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Distributing => "distributing",
            Self::Retiring => "retiring",
        }
    }
}

/// Where a rotation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Stage.
    pub stage: Stage,
    /// Since when.
    pub since: SystemTime,
    /// What somebody asks for.
    pub request: Option<String>,
    /// The longest life of a certificate that was signed.
    pub longest: Duration,
}

impl Progress {
    /// As the Secret has it. A stage that is not understood is none: nothing is done for it.
    pub fn read(secret: &Secret) -> Self {
        let annotation = |name: &str| {
            secret.metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str)
        };
        let since = annotation(SINCE).and_then(|text| text.parse::<Timestamp>().ok());
        Self {
            stage: match annotation(STAGE) {
                Some("distributing") => Stage::Distributing,
                Some("retiring") => Stage::Retiring,
                _ => Stage::Settled,
            },
            since: since.map_or(SystemTime::UNIX_EPOCH, SystemTime::from),
            request: annotation(REQUEST).filter(|text| !text.is_empty()).map(str::to_string),
            longest: annotation(LONGEST)
                .and_then(|text| text.parse().ok())
                .map_or(Duration::ZERO, Duration::from_secs),
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a new root and have it trusted.
    Stage,
    /// Let the new root sign.
    Switch,
    /// Drop the old root.
    Retire,
    /// Drop the new root again.
    Cancel,
    /// Take away a request that makes no sense now.
    Refuse,
}

/// What is to be done now, if anything.
///
/// `wait` is the length of a stage; `distributed`: the roots of the Secret stand in every namespace; `aged`: the root
/// is near its end. `next` shortens the wait, but never goes on before the roots are distributed.
pub fn step(
    progress: &Progress,
    now: SystemTime,
    wait: Duration,
    distributed: bool,
    aged: bool,
) -> Option<Step> {
    let waited = now.duration_since(progress.since).is_ok_and(|since| since >= wait);
    match (progress.stage, progress.request.as_deref()) {
        (Stage::Settled, Some("rotate")) => Some(Step::Stage),
        (Stage::Settled, None) if aged => Some(Step::Stage),
        (Stage::Settled, None) => None,
        (Stage::Distributing, Some("cancel")) => Some(Step::Cancel),
        (Stage::Distributing, Some("next")) => distributed.then_some(Step::Switch),
        (Stage::Retiring, Some("next")) => Some(Step::Retire),
        (_, Some(_)) => Some(Step::Refuse),
        (Stage::Distributing, None) => (waited && distributed).then_some(Step::Switch),
        (Stage::Retiring, None) => waited.then_some(Step::Retire),
    }
}

/// The Secret after a step.
pub fn apply(
    secret: &Secret,
    step: Step,
    trust_domain: &str,
    now: SystemTime,
) -> Result<Secret, AuthorityError> {
    let mut secret = secret.clone();
    let data = secret.data.get_or_insert_default();
    let text = |data: &BTreeMap<String, ByteString>, key: &str| -> Result<String, AuthorityError> {
        let bytes = data.get(key).map(|bytes| bytes.0.clone()).unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| AuthorityError::Root(format!("{key} is not text")))
    };
    let put = |data: &mut BTreeMap<String, ByteString>, key: &str, text: String| {
        data.insert(key.into(), ByteString(text.into_bytes()));
    };
    let signer = text(data, "ca-cert.pem")?;
    let bundle = match text(data, "root-cert.pem")? {
        roots if roots.trim().is_empty() => signer.clone(),
        roots => roots,
    };
    let stage = match step {
        Step::Stage => {
            let next = Authority::self_signed(trust_domain, now)?;
            put(data, "root-cert.pem", join(&bundle, next.certificate()));
            put(data, NEXT_KEY, next.key());
            put(data, NEXT_CERTIFICATE, next.certificate().into());
            Some(Stage::Distributing)
        }
        Step::Switch => {
            let (certificate, key) = (text(data, NEXT_CERTIFICATE)?, text(data, NEXT_KEY)?);
            // What cannot sign must not become the signer.
            Authority::read(&certificate, &key, &bundle)?;
            put(data, OLD_CERTIFICATE, signer);
            put(data, "root-cert.pem", join(&bundle, &certificate));
            put(data, "ca-cert.pem", certificate);
            put(data, "ca-key.pem", key);
            data.remove(NEXT_CERTIFICATE);
            data.remove(NEXT_KEY);
            Some(Stage::Retiring)
        }
        Step::Retire => {
            let old = text(data, OLD_CERTIFICATE)?;
            put(data, "root-cert.pem", without(&bundle, &old, &signer));
            data.remove(OLD_CERTIFICATE);
            Some(Stage::Settled)
        }
        Step::Cancel => {
            let next = text(data, NEXT_CERTIFICATE)?;
            put(data, "root-cert.pem", without(&bundle, &next, &signer));
            data.remove(NEXT_CERTIFICATE);
            data.remove(NEXT_KEY);
            Some(Stage::Settled)
        }
        Step::Refuse => None,
    };
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.remove(REQUEST);
    match stage {
        None => {}
        Some(Stage::Settled) => {
            annotations.remove(STAGE);
            annotations.remove(SINCE);
        }
        Some(stage) => {
            annotations.insert(STAGE.into(), stage.word().into());
            let now = Timestamp::try_from(now).map_err(|error| AuthorityError::Root(error.to_string()))?;
            let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
            annotations.insert(SINCE.into(), whole.to_string());
        }
    }
    Ok(secret)
}

/// The PEM blocks of a text, each trimmed.
fn blocks(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END)
        .map(str::trim)
        .filter(|block| block.ends_with(END))
        .map(str::to_string)
        .collect()
}

fn join(bundle: &str, certificate: &str) -> String {
    let mut all = blocks(bundle);
    for block in blocks(certificate) {
        if !all.contains(&block) {
            all.push(block);
        }
    }
    all.join("\n") + "\n"
}

/// A bundle without a certificate; the signer's own stays in any case.
fn without(bundle: &str, certificate: &str, signer: &str) -> String {
    let gone = blocks(certificate);
    let kept: Vec<String> = blocks(bundle).into_iter().filter(|block| !gone.contains(block)).collect();
    join(&kept.join("\n"), signer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::store;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn asked(secret: &mut Secret, request: &str) {
        secret.metadata.annotations.get_or_insert_default().insert(REQUEST.into(), request.into());
    }

    fn next(secret: &Secret, now: SystemTime, distributed: bool) -> Option<Step> {
        step(&Progress::read(secret), now, DAY, distributed, false)
    }

    #[test]
    fn a_new_root_is_trusted_everywhere_before_it_signs_and_the_old_one_until_its_last_certificate_ended() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut secret = store::secret("ambit-system", &Authority::self_signed("td", start).unwrap());
        let old = store::read(&secret).unwrap();
        assert_eq!(next(&secret, start, true), None);

        asked(&mut secret, "rotate");
        assert_eq!(next(&secret, start, true), Some(Step::Stage));
        secret = apply(&secret, Step::Stage, "td", start).unwrap();
        let both = store::read(&secret).unwrap();
        assert_eq!((both.certificate(), both.roots().len()), (old.certificate(), 2));
        assert!(Progress::read(&secret).request.is_none());

        // Neither time alone nor distribution alone is enough.
        assert_eq!(next(&secret, start + DAY / 2, true), None);
        assert_eq!(next(&secret, start + DAY, false), None);
        assert_eq!(next(&secret, start + DAY, true), Some(Step::Switch));
        let switched = start + DAY;
        secret = apply(&secret, Step::Switch, "td", switched).unwrap();
        let new = store::read(&secret).unwrap();
        assert_ne!(new.certificate(), old.certificate());
        assert_eq!(new.roots(), both.roots());

        assert_eq!(next(&secret, switched + DAY / 2, true), None);
        assert_eq!(next(&secret, switched + DAY, true), Some(Step::Retire));
        secret = apply(&secret, Step::Retire, "td", switched + DAY).unwrap();
        let settled = store::read(&secret).unwrap();
        assert_eq!((settled.certificate(), settled.roots().len()), (new.certificate(), 1));
        assert_eq!(Progress::read(&secret).stage, Stage::Settled);
        let keys: Vec<&str> = secret.data.as_ref().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "key.pem", "root-cert.pem"]);
    }

    #[test]
    fn whoever_is_in_a_hurry_waits_for_the_roots_all_the_same() {
        let start = SystemTime::now();
        let mut secret = store::secret("ambit-system", &Authority::self_signed("td", start).unwrap());
        secret = apply(&secret, Step::Stage, "td", start).unwrap();
        asked(&mut secret, "next");
        assert_eq!(next(&secret, start, false), None);
        assert_eq!(next(&secret, start, true), Some(Step::Switch));
    }

    #[test]
    fn a_rotation_can_be_called_off_as_long_as_the_old_root_signs() {
        let start = SystemTime::now();
        let first = store::secret("ambit-system", &Authority::self_signed("td", start).unwrap());
        let mut staged = apply(&first, Step::Stage, "td", start).unwrap();
        asked(&mut staged, "cancel");
        assert_eq!(next(&staged, start, true), Some(Step::Cancel));
        let cancelled = apply(&staged, Step::Cancel, "td", start).unwrap();
        let (before, after) = (store::read(&first).unwrap(), store::read(&cancelled).unwrap());
        assert_eq!((after.roots(), after.certificate()), (before.roots(), before.certificate()));
        let mut switched = apply(&staged, Step::Switch, "td", start).unwrap();
        asked(&mut switched, "cancel");
        assert_eq!(next(&switched, start, true), Some(Step::Refuse));
    }

    #[test]
    fn a_root_near_its_end_is_replaced_unasked() {
        let secret = store::secret("ambit-system", &Authority::self_signed("td", SystemTime::now()).unwrap());
        assert_eq!(step(&Progress::read(&secret), SystemTime::now(), DAY, true, true), Some(Step::Stage));
    }
}
