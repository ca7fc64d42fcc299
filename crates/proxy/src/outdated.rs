//! Plaintext connections that would be tunnelled if they were made now.
//!
//! A destination may join the mesh a moment after a connection to it was opened. A client that keeps its connections
//! alive, as Prometheus does for as long as it scrapes, would go on in plaintext for ever. So such a connection is
//! ended, as any server may end a kept-alive connection, once it is idle: the last thing that moved was an answer, and
//! nothing has moved for a moment. The client dials anew, through the mesh. A request in flight is never cut.

use std::net::SocketAddr;
use std::time::Duration;

use mesh::{Call, Decision, NOTHING_RESOLVED, View, Workload, decide};
use tokio::time::sleep;

use crate::engine::Joined;
use crate::views::Views;

/// Quiet for so long after an answer is idle.
const QUIET: Duration = Duration::from_millis(200);

/// Waits until a call of `source` to `destination` would go through a tunnel.
pub(crate) async fn tunnelled(views: &Views, source: &Workload, destination: SocketAddr) {
    let would_be = |view: &View| {
        // Which endpoint the dice would choose makes no difference: one that takes tunnels is enough.
        let call = Call { source, destination, random: 0, resolved: &NOTHING_RESOLVED };
        matches!(decide(view, &call), Decision::Tunnel(_))
    };
    let mut changes = views.changes();
    while !would_be(&views.load()) {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Waits until nothing has moved for a moment after an answer.
pub(crate) async fn idle(joined: &Joined) {
    loop {
        let (last, answered) = joined.movement().last();
        let again = match look_again(last.elapsed(), answered) {
            None if !joined.is_waiting() => return,
            None => QUIET,
            Some(again) => again,
        };
        sleep(again).await;
    }
}

/// After how long it is worth looking (again); none: it has been quiet for `since` after an answer.
fn look_again(since: Duration, answered: bool) -> Option<Duration> {
    match QUIET.checked_sub(since) {
        None | Some(Duration::ZERO) => (!answered).then_some(QUIET),
        later => later,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_only_when_quiet_after_an_answer() {
        let long = Duration::from_secs(3600);
        assert!(look_again(long, false).is_some(), "a request is in flight, however long it takes");
        let moment = Duration::from_millis(50);
        assert_eq!(look_again(moment, true), Some(QUIET - moment), "it has just moved");
        assert_eq!(look_again(QUIET, true), None);
    }

    #[tokio::test]
    async fn a_destination_that_joins_the_mesh_is_noticed() {
        let pod = |name: &str, address: &str| {
            let identity = mesh::Identity::new("cluster.local", "default", name).unwrap();
            let mut workload = Workload::new(format!("Kubernetes//Pod/default/{name}"), name, identity);
            workload.addresses = vec![address.parse().unwrap()];
            workload
        };
        let (source, mut other) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
        let views = Views::default();
        let publish = |other: &Workload| {
            let mut view = View::default();
            view.insert_workload(other.clone());
            views.publish(view);
        };
        publish(&other);
        let waiting = tunnelled(&views, &source, "10.0.0.2:9080".parse().unwrap());
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        publish(&other);
        assert!(futures::poll!(&mut waiting).is_pending());
        other.tunnel = mesh::Tunnel::Hbone;
        publish(&other);
        waiting.await;
    }
}
