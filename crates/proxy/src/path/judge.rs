//! What is asked of an inbound connection before and while it is carried, and how a connection ends.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hbone::Forwarded;
use mesh::{Connection, Service, Verdict, View, Workload, authorize, dry_run, unproven};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::failure::Failure;
use crate::flows::Flow;
use crate::pods::Pod;
use crate::pods::connections::Registration;

/// How long a connection waits for policies that its workload names and nobody knows yet.
const POLICY_WAIT: Duration = Duration::from_secs(2);

/// The service that the client says it called. Without a word of one the call was to the workload itself: no
/// service is guessed, so that both ends report alike.
pub(super) fn called_service<'a>(
    view: &'a View,
    workload: &Workload,
    forwarded: Option<&Forwarded>,
) -> Option<&'a Arc<Service>> {
    let host = forwarded?.host.as_deref()?;
    let service = view.service_by_hostname(host, &workload.namespace)?;
    workload.services.contains_key(&service.key).then_some(service)
}

/// Whether the policies allow the connection; waits, bounded, for policies that are not known yet.
pub(super) async fn permit(context: &Context, pod: &Pod, connection: &Connection) -> Result<(), Failure> {
    let node = context.config.node.as_deref();
    let judge = |view: &View| pod.find(view, node).map(|workload| authorize(view, &workload, connection));
    let settled = |view: &View| judge(view).filter(|verdict| !matches!(verdict, Verdict::Unknown(_)));
    let verdict = match settled(&context.views.load()) {
        Some(verdict) => Some(verdict),
        None => context.views.wait(POLICY_WAIT, settled).await,
    };
    try_out(context, pod, connection);
    let verdict = verdict.or_else(|| judge(&context.views.load()));
    let verdict = verdict.unwrap_or_else(|| Verdict::Unknown(Vec::new()));
    log_verdict(context, connection, &verdict);
    if verdict.is_allowed() {
        return Ok(());
    }
    let view = context.views.load();
    let workload = pod.find(&view, node);
    let unproven = workload.and_then(|workload| unproven(&view, &workload, connection, &verdict));
    Err(Failure::Denied(verdict, unproven))
}

/// Counts and logs what policies that are only tried out would have done.
fn try_out(context: &Context, pod: &Pod, connection: &Connection) {
    let view = context.views.load();
    let Some(workload) = pod.find(&view, context.config.node.as_deref()) else { return };
    for outcome in dry_run(&view, &workload, connection) {
        context.flows.dry_run(&outcome);
        let policy = outcome.policy().map(|policy| &**policy);
        let identity = connection.identity.as_ref().map(ToString::to_string);
        let (src, dst, identity) = (connection.source_ip, connection.destination, identity.as_deref());
        let outcome = outcome.word();
        tracing::info!(policy, outcome, %src, src.identity = identity, %dst, "dry-run policy");
    }
}

fn log_verdict(context: &Context, connection: &Connection, verdict: &Verdict) {
    let identity = connection.identity.as_ref().map(ToString::to_string);
    let (src, dst, identity) = (connection.source_ip, connection.destination, identity.as_deref());
    if context.config.log_verdicts {
        tracing::info!(%verdict, %src, src.identity = identity, %dst, "policies");
    } else {
        tracing::debug!(%verdict, %src, src.identity = identity, %dst, "policies");
    }
}

/// Copies until the end, or until policies or the client's certificate no longer allow it.
pub(super) async fn until_revoked(
    listed: &mut Registration,
    revoked: &CancellationToken,
    peer: SocketAddr,
    copy: impl Future<Output = std::io::Result<()>>,
) -> Result<(), Failure> {
    tokio::select! {
        biased;
        () = revoked.cancelled() => Err(Failure::Revoked(peer)),
        result = copy => result.map_err(Failure::Copy),
        verdict = listed.revoked() => Err(Failure::PolicyChange(verdict)),
    }
}

/// Closes the flow. That an end reset the connection is its right, and no failure of ours.
pub(super) fn finish(flow: &Flow, result: &Result<(), Failure>) {
    match result {
        Ok(()) => flow.close(Ok(())),
        Err(Failure::Copy(error)) if ended_by_peer(error) => flow.close(Ok(())),
        Err(failure) => flow.close(Err(failure)),
    }
}

fn ended_by_peer(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
}
