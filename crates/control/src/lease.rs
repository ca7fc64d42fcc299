//! Which replica does what only one may do: the holder of a Lease (reference/control-plane.md §3.8).
//!
//! A lease is taken over when it has stood unchanged for its whole duration *as seen from here*; clocks of other
//! machines are never compared with ours. Every write carries the version that was read, so of two replicas that try
//! at once one fails.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

/// How long a lease holds without renewal.
const DURATION: Duration = Duration::from_secs(15);
/// Without a successful renewal for this long we stop acting, well before anybody may take over.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(3);

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    Renew,
    TakeOver,
    Wait,
}

/// What one replica has seen of a lease.
#[derive(Debug)]
struct Election {
    me: String,
    /// Holder and renewal as last seen, and since when they stand so.
    seen: Option<(Option<String>, Option<MicroTime>, Instant)>,
}

impl Election {
    fn step(&mut self, lease: Option<&LeaseSpec>, now: Instant) -> Step {
        let Some(spec) = lease else { return Step::Create };
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        if holder.as_ref() == Some(&self.me) {
            return Step::Renew;
        }
        if holder.is_none() {
            return Step::TakeOver;
        }
        let same = self
            .seen
            .as_ref()
            .is_some_and(|(seen, renewed, _)| *seen == holder && *renewed == spec.renew_time);
        if !same {
            self.seen = Some((holder, spec.renew_time.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, _, since)| *since);
        let duration = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(DURATION, Duration::from_secs);
        if now.saturating_duration_since(since) > duration { Step::TakeOver } else { Step::Wait }
    }
}

/// Takes part in the election for `name` and tells in `leading` whether we lead, until `stop`; then lets go.
pub(crate) async fn lead(
    client: Client,
    namespace: String,
    name: &'static str,
    me: String,
    leading: watch::Sender<bool>,
    mut stop: watch::Receiver<bool>,
) {
    let api = Api::<Lease>::namespaced(client, &namespace);
    let mut election = Election { me: me.clone(), seen: None };
    let mut renewed: Option<Instant> = None;
    let mut failing = false;
    loop {
        match tokio::time::timeout(DEADLINE / 2, try_once(&api, name, &mut election)).await {
            Ok(Ok(true)) => {
                failing = false;
                renewed = Some(Instant::now());
                if !leading.send_replace(true) {
                    tracing::info!(lease = name, "leading");
                }
            }
            Ok(Ok(false)) => {
                failing = false;
                renewed = None;
                leading.send_replace(false);
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(lease = name, %error, "cannot hold the lease, trying again");
                }
            }
            Err(_) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(lease = name, "the API does not answer about the lease, trying again");
                }
            }
        }
        if renewed.is_some_and(|at| at.elapsed() > DEADLINE) {
            renewed = None;
            leading.send_replace(false);
            tracing::warn!(lease = name, "not leading any more: the lease could not be renewed");
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = stop.changed() => break,
        }
    }
    if leading.send_replace(false) {
        let _ = tokio::time::timeout(Duration::from_secs(2), release(&api, name, &me)).await;
    }
}

/// One round; whether we lead after it.
async fn try_once(api: &Api<Lease>, name: &str, election: &mut Election) -> Result<bool, kube::Error> {
    let found = api.get_opt(name).await?;
    let step = election.step(found.as_ref().and_then(|lease| lease.spec.as_ref()), Instant::now());
    let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
    let params = PostParams::default();
    let written = match (step, found) {
        (Step::Wait, _) => return Ok(false),
        (Step::Create, None) => {
            let spec = spec(&election.me, now.clone(), now, 0);
            let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
            api.create(&params, &Lease { metadata, spec: Some(spec) }).await
        }
        // A lease without a spec is nobody's.
        (Step::Create, Some(mut lease)) => {
            lease.spec = Some(spec(&election.me, now.clone(), now, 0));
            api.replace(name, &params, &lease).await
        }
        (Step::Renew, Some(mut lease)) => {
            if let Some(spec) = &mut lease.spec {
                spec.renew_time = Some(now);
                spec.lease_duration_seconds = Some(DURATION.as_secs() as i32);
            }
            api.replace(name, &params, &lease).await
        }
        (Step::TakeOver, Some(mut lease)) => {
            let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
            lease.spec = Some(spec(&election.me, now.clone(), now, transitions.saturating_add(1)));
            api.replace(name, &params, &lease).await
        }
        (Step::Renew | Step::TakeOver, None) => return Ok(false),
    };
    match written {
        Ok(_) => Ok(true),
        // Somebody else was faster.
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

fn spec(me: &str, acquired: MicroTime, renewed: MicroTime, transitions: i32) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(me.into()),
        lease_duration_seconds: Some(DURATION.as_secs() as i32),
        acquire_time: Some(acquired),
        renew_time: Some(renewed),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

/// Lets go, so that another replica leads at once.
async fn release(api: &Api<Lease>, name: &str, me: &str) -> Result<(), kube::Error> {
    let mut lease = api.get(name).await?;
    if let Some(spec) = &mut lease.spec
        && spec.holder_identity.as_deref() == Some(me)
    {
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        api.replace(name, &PostParams::default(), &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, renewed: i64) -> LeaseSpec {
        let at = MicroTime(k8s_openapi::jiff::Timestamp::from_second(renewed).unwrap());
        spec(holder, at.clone(), at, 0)
    }

    #[test]
    fn a_lease_is_taken_over_only_after_it_stood_still_for_its_whole_duration() {
        let mut election = Election { me: "a".into(), seen: None };
        let start = Instant::now();
        assert_eq!(election.step(Some(&held_by("b", 1)), start), Step::Wait);
        assert_eq!(election.step(Some(&held_by("b", 1)), start + DURATION), Step::Wait);
        assert_eq!(election.step(Some(&held_by("b", 2)), start + DURATION + DURATION), Step::Wait);
        let later = start + DURATION * 3 + Duration::from_secs(1);
        assert_eq!(election.step(Some(&held_by("b", 2)), later), Step::TakeOver);
    }

    #[test]
    fn a_holder_with_a_wrong_clock_is_not_robbed() {
        let mut election = Election { me: "a".into(), seen: None };
        assert_eq!(election.step(Some(&held_by("b", -1_000_000)), Instant::now()), Step::Wait);
    }

    #[test]
    fn an_absent_or_released_lease_is_free_and_ours_is_renewed() {
        let mut election = Election { me: "a".into(), seen: None };
        assert_eq!(election.step(None, Instant::now()), Step::Create);
        assert_eq!(election.step(Some(&held_by("", 1)), Instant::now()), Step::TakeOver);
        assert_eq!(election.step(Some(&held_by("a", 1)), Instant::now()), Step::Renew);
    }
}
