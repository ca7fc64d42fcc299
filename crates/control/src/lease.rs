//! Which replica does what only one may do: the holder of a Lease (reference/control-plane.md §3.8).
//!
//! A lease is taken over when it has stood unchanged for its whole duration *as seen from here*; clocks of other
//! machines are never compared with ours. Every write carries the version that was read, so of two replicas that try
//! at once one fails.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

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
        // Counted from before the write: that is as early as others can have seen it.
        let begun = Instant::now();
        match tokio::time::timeout(within(renewed, DEADLINE / 2), try_once(&api, name, &mut election)).await {
            Ok(Ok(true)) => {
                failing = false;
                renewed = Some(begun);
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
        if renewed.is_some_and(|at| at.elapsed() >= DEADLINE) {
            renewed = None;
            leading.send_replace(false);
            tracing::warn!(lease = name, "not leading any more: the lease could not be renewed");
        }
        tokio::select! {
            () = tokio::time::sleep(within(renewed, EVERY)) => {}
            _ = stop.changed() => break,
        }
    }
    if leading.send_replace(false) {
        let _ = tokio::time::timeout(Duration::from_secs(2), release(&api, name, &me)).await;
    }
}

/// So long, but not beyond the moment at which whoever renewed last must stop acting.
fn within(renewed: Option<Instant>, most: Duration) -> Duration {
    renewed.map_or(most, |at| most.min(DEADLINE.saturating_sub(at.elapsed())))
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    /// An API with one Lease in it, as one replica reaches it.
    #[derive(Clone, Default)]
    struct Fake {
        lease: Arc<Mutex<Option<Lease>>>,
        /// It takes requests and never answers.
        silent: Arc<AtomicBool>,
    }

    impl Fake {
        fn client(&self) -> Client {
            let fake = self.clone();
            let service = tower::service_fn(move |request: http::Request<Body>| {
                let fake = fake.clone();
                async move {
                    if fake.silent.load(Relaxed) {
                        std::future::pending::<()>().await;
                    }
                    // Rounds grow longer by it, as they do in the world.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let method = request.method().clone();
                    let sent = request.into_body().collect_bytes().await?;
                    let (status, body) = fake.answer(&method, &sent);
                    let response = http::Response::builder().status(status);
                    Ok::<_, tower::BoxError>(response.body(Body::from(serde_json::to_vec(&body)?))?)
                }
            });
            Client::new(service, "ambit-system")
        }

        fn answer(&self, method: &http::Method, sent: &[u8]) -> (u16, Value) {
            let refusal = |code: u16, reason: &str| {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
                    "reason": reason, "code": code,
                });
                (code, status)
            };
            let mut stands = self.lease.lock();
            if *method != http::Method::GET {
                let mut lease: Lease = serde_json::from_slice(sent).unwrap();
                let before = stands.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
                if before != lease.metadata.resource_version {
                    return refusal(409, "Conflict");
                }
                let next = before.map_or(1, |version| version.parse::<u64>().unwrap() + 1);
                lease.metadata.resource_version = Some(next.to_string());
                *stands = Some(lease);
            }
            match &*stands {
                Some(lease) => (200, serde_json::to_value(lease).unwrap()),
                None => refusal(404, "NotFound"),
            }
        }
    }

    /// One that takes part.
    struct Replica {
        api: Fake,
        leading: watch::Receiver<bool>,
        task: tokio::task::JoinHandle<()>,
        _stop: watch::Sender<bool>,
    }

    impl Replica {
        fn start(lease: &Arc<Mutex<Option<Lease>>>, me: &str) -> Self {
            let api = Fake { lease: lease.clone(), ..Fake::default() };
            let (leads, leading) = watch::channel(false);
            let (stop, stopped) = watch::channel(false);
            let task = lead(api.client(), "ambit-system".into(), "l", me.into(), leads, stopped);
            Self { api, leading, task: tokio::spawn(task), _stop: stop }
        }

        fn leads(&self) -> bool {
            *self.leading.borrow()
        }

        /// When it leads, or does so no more.
        async fn once(&mut self, leads: bool) -> Instant {
            let found = self.leading.wait_for(|leading| *leading == leads);
            tokio::time::timeout(Duration::from_secs(600), found)
                .await
                .expect("in time")
                .expect("it takes part");
            Instant::now()
        }

        /// The first of two to take part leads, and does so for as long as it renews. The second one looks so much
        /// later than the first.
        async fn two(later: Duration) -> (Self, Self) {
            let lease = Arc::default();
            let mut first = Self::start(&lease, "a");
            first.once(true).await;
            tokio::time::sleep(later).await;
            let second = Self::start(&lease, "b");
            tokio::time::sleep(DURATION * 4).await;
            assert_eq!((first.leads(), second.leads()), (true, false));
            (first, second)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_fell_silent_is_followed_once_its_lease_has_lapsed() {
        let (first, mut second) = Replica::two(Duration::from_secs(1)).await;
        let silent = Instant::now();
        first.task.abort();
        let waited = second.once(true).await - silent;
        assert!((DURATION - EVERY..=DURATION + EVERY * 2).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_the_api_does_not_answer_stops_well_before_it_is_followed() {
        // Whatever moment of its round the silence begins in, and whenever the other one looks.
        for offset in 0..30 {
            let (mut first, mut second) = Replica::two(EVERY * (offset * 7 % 30) / 30).await;
            tokio::time::sleep(EVERY * offset / 30).await;
            first.api.silent.store(true, Relaxed);
            let stopped = first.once(false).await;
            let followed = second.once(true).await;
            assert!(followed - stopped >= (DURATION - DEADLINE) / 2, "{:?} at {offset}", followed - stopped);
            // What it hears when the API answers again makes it no leader.
            first.api.silent.store(false, Relaxed);
            tokio::time::sleep(DURATION * 2).await;
            assert_eq!((first.leads(), second.leads()), (false, true));
        }
    }

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
