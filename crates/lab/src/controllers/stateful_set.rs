//! StatefulSet: pods with stable names, made and renewed in order.
//!
//! A partition holds back the renewal of lower ordinals, but a pod that has to be made anew is always made of the
//! current template: earlier templates are not kept.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume};
use kube::ResourceExt;
use kube::api::PostParams;

use super::daemon_set::HASH_LABEL;
use super::hub::{Change, Hub, Key};
use super::objects::{self, owner_name, write_status};
use super::{children, pods};

mod order;

use order::{Action, Member, Order};

/// Keeps the members of StatefulSets.
pub struct Controller;

impl super::Controller for Controller {
    const NAME: &'static str = "statefulset";

    fn keys(&self, _: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::StatefulSet(set) => vec![Key::of(&set.metadata)],
            Change::Pod(pod) => owner_name(&pod.metadata, "StatefulSet")
                .map(|owner| vec![Key::new(pod.namespace().unwrap_or_default(), owner)])
                .unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let api = hub.api::<StatefulSet>(&key.namespace);
        let Some(mut set) = api.get_opt(&key.name).await? else { return Ok(None) };
        let Some(spec) = set.spec.clone() else { return Ok(None) };
        let Some(selector) = objects::selector(Some(&spec.selector)) else { return Ok(None) };
        let revision = format!("{}-{}", key.name, objects::hash(&spec.template, 0)?);
        let now = objects::now();
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let mut mine = children::owned_or_adopted(hub, &set, &selector).await?;
        let members = |pods: &[Pod]| -> Vec<Member> {
            pods.iter().filter_map(|pod| describe(pod, &key.name, &revision, min_ready, &now)).collect()
        };

        if set.metadata.deletion_timestamp.is_none() {
            let actions = order::plan(&order_of(&spec), &members(&mine));
            let acted = !actions.is_empty();
            for action in actions {
                match action {
                    Action::Create(ordinal) => {
                        let pod = pod_for(&set, &spec, &revision, ordinal);
                        claim_volumes(hub, &set, &spec, &pod.name_any()).await?;
                        children::create_for(hub, &set, vec![pod]).await?;
                    }
                    Action::Delete(ordinal) => {
                        let name = format!("{}-{ordinal}", key.name);
                        children::remove(hub, mine.iter().filter(|pod| pod.name_any() == name)).await?;
                    }
                }
            }
            if acted {
                mine = children::owned_or_adopted(hub, &set, &selector).await?;
            }
        }

        let before = set.status.clone().unwrap_or_default();
        let after = status(&before, &members(&mine), &revision, set.metadata.generation);
        set.status = Some(after.clone());
        write_status(&api, &set, &before, &after).await?;
        let waits = mine.iter().filter_map(|pod| pods::available_in(pod, min_ready, &now));
        Ok(waits.filter(|wait| !wait.is_zero()).min())
    }
}

fn order_of(spec: &StatefulSetSpec) -> Order {
    let strategy = spec.update_strategy.as_ref();
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let on_delete = strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete");
    let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
    Order {
        first: spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0),
        replicas: spec.replicas.unwrap_or(1),
        parallel: spec.pod_management_policy.as_deref() == Some("Parallel"),
        renew_from: (!on_delete).then_some(partition),
    }
}

fn describe(
    pod: &Pod,
    set: &str,
    revision: &str,
    min_ready: i32,
    now: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
) -> Option<Member> {
    let ordinal = pod.name_any().strip_prefix(set)?.strip_prefix('-')?.parse().ok()?;
    Some(Member {
        ordinal,
        current: pod.labels().get(HASH_LABEL).is_some_and(|label| label == revision),
        ready: pods::is_ready(pod),
        available: pods::available_in(pod, min_ready, now).is_some_and(|wait| wait.is_zero()),
        terminating: pods::is_terminating(pod),
        finished: pods::is_finished(pod),
    })
}

fn pod_for(set: &StatefulSet, spec: &StatefulSetSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = children::from_template(set, &spec.template);
    let name = format!("{}-{ordinal}", set.name_any());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), revision.into());
    labels.insert("statefulset.kubernetes.io/pod-name".into(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".into(), ordinal.to_string());
    pod.metadata.generate_name = None;
    let of_pod = pod.spec.get_or_insert_default();
    of_pod.hostname = Some(name.clone());
    of_pod.subdomain = spec.service_name.clone().filter(|name| !name.is_empty());
    let volumes = of_pod.volumes.get_or_insert_default();
    for template in spec.volume_claim_templates.iter().flatten() {
        let volume = template.name_any();
        volumes.retain(|known| known.name != volume);
        volumes.push(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: format!("{volume}-{name}"),
                read_only: None,
            }),
            name: volume,
            ..Volume::default()
        });
    }
    pod.metadata.name = Some(name);
    pod
}

/// Claims outlive their pods, so one that is there already is the one to use.
async fn claim_volumes(
    hub: &Hub,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    pod: &str,
) -> anyhow::Result<()> {
    let api = hub.api::<PersistentVolumeClaim>(&set.namespace().unwrap_or_default());
    for template in spec.volume_claim_templates.iter().flatten() {
        let mut claim = template.clone();
        claim.metadata.name = Some(format!("{}-{pod}", template.name_any()));
        claim.metadata.namespace = set.namespace();
        claim.status = None;
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        match api.create(&PostParams::default(), &claim).await {
            Ok(_) => {}
            Err(error) if objects::is_already_there(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn status(
    before: &StatefulSetStatus,
    members: &[Member],
    revision: &str,
    generation: Option<i64>,
) -> StatefulSetStatus {
    let members: Vec<&Member> = members.iter().filter(|member| !member.finished).collect();
    let count = |what: fn(&Member) -> bool| {
        i32::try_from(members.iter().filter(|member| what(member)).count()).unwrap_or(i32::MAX)
    };
    let (all, updated) = (count(|_| true), count(|member| member.current && !member.terminating));
    let renewed = updated == all && count(|member| member.ready) == all;
    let current = before.current_revision.clone().filter(|_| !renewed).unwrap_or_else(|| revision.into());
    StatefulSetStatus {
        replicas: all,
        ready_replicas: Some(count(|member| member.ready && !member.terminating)),
        available_replicas: Some(count(|member| member.available && !member.terminating)),
        updated_replicas: Some(updated),
        current_replicas: Some(if current == revision { updated } else { all - updated }),
        current_revision: Some(current),
        update_revision: Some(revision.into()),
        observed_generation: generation,
        ..before.clone()
    }
}
