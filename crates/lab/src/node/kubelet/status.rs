//! The status of a pod: a pure function of its object, its containers and what was reported before.

use std::net::IpAddr;
use std::time::Instant;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::state::{Container, Ended, PodState, Role, Run};

/// What the status is made from.
#[derive(Debug)]
pub struct View<'a> {
    /// The pod as it is wanted.
    pub pod: &'a Pod,
    /// Its containers.
    pub state: &'a PodState,
    /// Its addresses; they stay after the sandbox is gone.
    pub ips: &'a [IpAddr],
    /// The address of the node.
    pub host_ip: IpAddr,
    /// Whether its sandbox stands.
    pub sandbox: bool,
    /// Whether it is being ended.
    pub terminating: bool,
    /// When the node first saw it.
    pub start: Timestamp,
    /// A reason and message for the pod as a whole (deadline exceeded).
    pub verdict: Option<(&'a str, &'a str)>,
}

/// Makes the status. `before` is the one reported last: what has not changed keeps its time.
pub fn status(view: &View<'_>, before: &PodStatus, now: Timestamp, instant: Instant) -> PodStatus {
    let phase = match view.verdict {
        Some(_) => "Failed",
        None => final_phase(view, instant),
    };
    let over = matches!(phase, "Succeeded" | "Failed");
    let initialized = view.state.initialized();
    let mains: Vec<&Container> = view.state.containers.iter().filter(|c| c.role == Role::Main).collect();
    let unready: Vec<&str> = mains
        .iter()
        .chain(view.state.containers.iter().filter(|c| c.role == Role::Sidecar).collect::<Vec<_>>().iter())
        .filter(|c| view.terminating || !is_ready(c))
        .map(|c| c.name.as_str())
        .collect();
    let containers_ready = !over && initialized && unready.is_empty();
    let gates_open = view.pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten()).all(|gate| {
        let conditions = view.pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == gate.condition_type && c.status == "True")
    });
    let not_ready = if over {
        ("PodCompleted", String::new())
    } else if containers_ready {
        ("ReadinessGatesNotReady", "a readiness gate is not open".to_owned())
    } else {
        ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
    };
    let plain = ("", String::new());
    let conditions = [
        ("PodReadyToStartContainers", view.sandbox, plain.clone()),
        (
            "Initialized",
            initialized,
            if initialized {
                plain.clone()
            } else {
                ("ContainersNotInitialized", "init containers are not done".into())
            },
        ),
        ("Ready", containers_ready && gates_open, not_ready.clone()),
        ("ContainersReady", containers_ready, not_ready),
        ("PodScheduled", true, plain),
    ];
    let of = |role: fn(Role) -> bool,
              specs: Vec<&k8s_openapi::api::core::v1::Container>|
     -> Vec<ContainerStatus> {
        let states = view.state.containers.iter().filter(|c| role(c.role));
        states.zip(specs).map(|(c, spec)| container(view, c, spec)).collect()
    };
    let spec = view.pod.spec.as_ref();
    let init =
        of(|r| r != Role::Main, spec.iter().flat_map(|s| s.init_containers.iter().flatten()).collect());
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions.map(|(kind, is, why)| condition(kind, is, why, before, now)).into()),
        container_statuses: Some(of(|r| r == Role::Main, spec.iter().flat_map(|s| &s.containers).collect())),
        init_container_statuses: (!init.is_empty()).then_some(init),
        host_ip: Some(view.host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: view.host_ip.to_string() }]),
        pod_ip: view.ips.first().map(ToString::to_string),
        pod_ips: (!view.ips.is_empty())
            .then(|| view.ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        start_time: Some(Time(view.start)),
        qos_class: view
            .pod
            .status
            .as_ref()
            .and_then(|s| s.qos_class.clone())
            .or_else(|| Some(qos(view.pod).into())),
        reason: view.verdict.map(|(reason, _)| reason.to_owned()),
        message: view.verdict.map(|(_, message)| message.to_owned()),
        observed_generation: view.pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// While a pod is being ended its containers end whatever the policy says: the phase is then decided by how.
fn final_phase(view: &View<'_>, now: Instant) -> &'static str {
    if !view.terminating {
        return view.state.phase(now);
    }
    let mut mains = view.state.containers.iter().filter(|c| c.role == Role::Main).peekable();
    let mut failed = false;
    for container in &mut mains {
        match &container.run {
            Run::Ended(ended) => failed |= ended.code != 0,
            Run::Waiting { .. } if container.last.is_none() => failed = true,
            Run::Waiting { .. } => failed |= container.last.as_ref().is_some_and(|l| l.code != 0),
            Run::Starting | Run::Running { .. } => {
                return if view.state.initialized() { "Running" } else { "Pending" };
            }
        }
    }
    if view.sandbox {
        return if view.state.initialized() { "Running" } else { "Pending" };
    }
    if failed { "Failed" } else { "Succeeded" }
}

fn is_ready(container: &Container) -> bool {
    matches!(container.run, Run::Running { ready: true, started: true, .. })
}

fn condition(
    kind: &str,
    is: bool,
    (reason, message): (&str, String),
    before: &PodStatus,
    now: Timestamp,
) -> PodCondition {
    let status = if is { "True" } else { "False" };
    let old = before.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
    let some = |text: &str| (!is && !text.is_empty()).then(|| text.to_owned());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: some(reason),
        message: some(&message),
        last_transition_time: old.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        ..PodCondition::default()
    }
}

fn container(
    view: &View<'_>,
    container: &Container,
    spec: &k8s_openapi::api::core::v1::Container,
) -> ContainerStatus {
    let (mut state, id) = match &container.run {
        Run::Waiting { reason, message } => (waiting(reason, message.clone()), None),
        Run::Starting => (waiting("ContainerCreating", None), None),
        Run::Running { id, since, .. } => {
            let running = ContainerStateRunning { started_at: Some(Time(*since)) };
            (ContainerState { running: Some(running), ..Default::default() }, Some(id.clone()))
        }
        Run::Ended(ended) => (terminated(ended), Some(ended.id.clone())),
    };
    let mut last = container.last.as_ref().map(terminated);
    if let (Run::Ended(ended), Some(_), false) = (&container.run, container.not_before, view.terminating)
        && restarts(view.state, container, ended)
    {
        let message = format!("back-off restarting failed container {}", container.name);
        state = waiting("CrashLoopBackOff", Some(message));
        last = Some(terminated(ended));
    }
    let id = id.or_else(|| container.last.as_ref().map(|l| l.id.clone())).filter(|id| !id.is_empty());
    ContainerStatus {
        name: container.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        image_id: format!("ambit-lab://{}", spec.image.as_deref().unwrap_or_default()),
        container_id: id.map(|id| format!("runc://{id}")),
        ready: match container.role {
            Role::Init => matches!(&container.run, Run::Ended(e) if e.code == 0),
            _ => !view.terminating && is_ready(container),
        },
        started: Some(matches!(container.run, Run::Running { started: true, .. })),
        restart_count: container.restarts as i32,
        state: Some(state),
        last_state: last,
        ..ContainerStatus::default()
    }
}

fn restarts(state: &PodState, container: &Container, ended: &Ended) -> bool {
    use super::state::Restart;
    match (container.role, state.restart) {
        (Role::Sidecar, _) => true,
        (Role::Init, Restart::Never) | (Role::Main, Restart::Never) => false,
        (Role::Main, Restart::Always) => true,
        (Role::Init, _) | (Role::Main, Restart::OnFailure) => ended.code != 0,
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn terminated(ended: &Ended) -> ContainerState {
    let terminated = ContainerStateTerminated {
        container_id: (!ended.id.is_empty()).then(|| format!("runc://{}", ended.id)),
        exit_code: ended.code,
        reason: Some(ended.reason.clone()),
        message: ended.message.clone(),
        started_at: ended.since.map(Time),
        finished_at: Some(Time(ended.at)),
        ..Default::default()
    };
    ContainerState { terminated: Some(terminated), ..Default::default() }
}

fn qos(pod: &Pod) -> &'static str {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let mut any = false;
    let mut all = true;
    for resources in containers.map(|c| c.resources.as_ref()) {
        let limits = resources.and_then(|r| r.limits.as_ref());
        let requests = resources.and_then(|r| r.requests.as_ref());
        any |= limits.is_some_and(|m| !m.is_empty()) || requests.is_some_and(|m| !m.is_empty());
        all &= ["cpu", "memory"].iter().all(|name| {
            let limit = limits.and_then(|m| m.get(*name));
            limit.is_some() && requests.is_none_or(|r| r.get(*name).is_none_or(|q| Some(q) == limit))
        });
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests;
