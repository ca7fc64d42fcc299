//! Applying the components in order, each ready before the next.

use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use tokio::time::{Instant, timeout_at};

use super::cluster::{Objects, label};
use super::render::Component;
use super::{FIELD_MANAGER, MANAGED_BY};

/// Applies `components` and waits for each to be ready, at most until `readiness` has passed altogether. `progress`
/// is told when a component is ready.
pub async fn apply(
    client: Client,
    components: &[Component],
    readiness: Duration,
    mut progress: impl FnMut(&Component),
) -> anyhow::Result<()> {
    let deadline = Instant::now() + readiness;
    let mut objects = Objects::new(client);
    for component in components {
        for object in &component.objects {
            apply_one(&mut objects, object)
                .await
                .with_context(|| format!("cannot apply {}", label(object)))?;
        }
        for object in &component.objects {
            wait_ready(&mut objects, object, deadline).await?;
        }
        progress(component);
    }
    Ok(())
}

async fn apply_one(objects: &mut Objects, object: &DynamicObject) -> anyhow::Result<()> {
    let api = objects.api_for(object).await?;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if is_kind(object, "CustomResourceDefinition") {
        // One that somebody else brought, an Istio that is already there, stays as it is.
        let present = api.get_opt(name).await?;
        let ours = |present: &DynamicObject| {
            present
                .metadata
                .labels
                .as_ref()
                .is_some_and(|l| l.get(MANAGED_BY.0).is_some_and(|v| v == MANAGED_BY.1))
        };
        if present.is_some_and(|present| !ours(&present)) {
            return Ok(());
        }
    }
    api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await?;
    Ok(())
}

async fn wait_ready(objects: &mut Objects, object: &DynamicObject, deadline: Instant) -> anyhow::Result<()> {
    let ready: fn(&DynamicObject) -> bool = match object.types.as_ref().map(|types| types.kind.as_str()) {
        Some("CustomResourceDefinition") => established,
        Some("Deployment") => deployment_ready,
        Some("DaemonSet") => daemon_set_ready,
        _ => return Ok(()),
    };
    let api = objects.api_for(object).await?;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let condition = |object: Option<&DynamicObject>| object.is_some_and(ready);
    match timeout_at(deadline, await_condition(api.clone(), name, condition)).await {
        Ok(result) => {
            result.with_context(|| format!("while waiting for {}", label(object)))?;
            Ok(())
        }
        Err(_) => bail!("{} is not ready in time: {}", label(object), describe(&api, name).await),
    }
}

async fn describe(api: &Api<DynamicObject>, name: &str) -> String {
    let namespace = |object: &DynamicObject| object.metadata.namespace.clone().unwrap_or_default();
    match api.get(name).await {
        Ok(object) => format!(
            "status {}; look at `kubectl describe pods -n {}` and at the logs of its pods",
            object.data.get("status").unwrap_or(&serde_json::Value::Null),
            namespace(&object)
        ),
        Err(error) => error.to_string(),
    }
}

fn is_kind(object: &DynamicObject, kind: &str) -> bool {
    object.types.as_ref().is_some_and(|types| types.kind == kind)
}

fn established(object: &DynamicObject) -> bool {
    let conditions = object.data["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Established" && c["status"] == "True"))
}

fn observed(object: &DynamicObject) -> bool {
    object.data["status"]["observedGeneration"].as_i64() >= object.metadata.generation
}

fn deployment_ready(object: &DynamicObject) -> bool {
    let wanted = object.data["spec"]["replicas"].as_i64().unwrap_or(1);
    let status = &object.data["status"];
    observed(object)
        && status["updatedReplicas"].as_i64() == Some(wanted)
        && status["availableReplicas"].as_i64() == Some(wanted)
        && status["replicas"].as_i64() == Some(wanted)
}

/// All nodes that should run one run the present version of it, ready. A cluster without nodes has nothing to wait for.
fn daemon_set_ready(object: &DynamicObject) -> bool {
    let status = &object.data["status"];
    let wanted = status["desiredNumberScheduled"].as_i64();
    observed(object)
        && wanted.is_some()
        && status["updatedNumberScheduled"].as_i64().unwrap_or(0) == wanted.unwrap_or(0)
        && status["numberReady"].as_i64().unwrap_or(0) == wanted.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: serde_json::Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_daemon_set_is_ready_when_every_node_runs_its_present_version() {
        let with = |generation: i64, ready: i64| {
            object(serde_json::json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "x", "generation": generation},
                "status": {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
                           "numberReady": ready}
            }))
        };
        assert!(daemon_set_ready(&with(2, 2)));
        assert!(!daemon_set_ready(&with(2, 1)));
        assert!(!daemon_set_ready(&with(3, 2)), "the new version has not been looked at");
    }

    #[test]
    fn a_deployment_is_ready_when_no_old_replica_is_left() {
        let with = |replicas: i64| {
            object(serde_json::json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "generation": 1},
                "spec": {"replicas": 1},
                "status": {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": 1, "availableReplicas": 1}
            }))
        };
        assert!(deployment_ready(&with(1)));
        assert!(!deployment_ready(&with(2)));
    }
}
