//! Small things about any object: owners, selectors, conditions, percentages, and writes that change something.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The present moment as the API writes it (whole seconds).
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The owner that manages an object, if one does.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object with this UID manages `meta`.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The name of the managing owner, if it is of this kind.
pub fn owner_name<'a>(meta: &'a ObjectMeta, kind: &str) -> Option<&'a str> {
    controller_of(meta).filter(|owner| owner.kind == kind).map(|owner| owner.name.as_str())
}

/// A reference by which `owner` manages a child.
pub fn owned_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A label selector ready to match; one that is malformed or missing matches nothing (`None`).
pub fn selector(selector: Option<&LabelSelector>) -> Option<Selector> {
    Selector::try_from(selector?.clone()).ok()
}

/// Whether `selector` matches the labels of `meta`.
pub fn selects(selector: &Selector, meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().map_or_else(|| selector.selects_all(), |labels| selector.matches(labels))
}

/// A number or a percentage of `total`; percentages are rounded up for surge, down for unavailability.
pub fn share(value: Option<&IntOrString>, default: &str, total: i32, round_up: bool) -> i32 {
    let text = match value {
        Some(IntOrString::Int(count)) => return (*count).max(0),
        Some(IntOrString::String(text)) => text.as_str(),
        None => default,
    };
    let Some(percent) = text.strip_suffix('%').and_then(|percent| percent.parse::<i64>().ok()) else {
        return text.parse().unwrap_or(0);
    };
    let product = percent.max(0).saturating_mul(i64::from(total));
    let count = if round_up { (product + 99) / 100 } else { product / 100 };
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A short name for the content of a value: the same value, the same name, in letters that spell no word.
pub fn hash<T: Serialize>(value: &T, collisions: i32) -> anyhow::Result<String> {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    // Through `Value` without order, so that the order of fields and map entries does not matter.
    let mut text = serde_json::to_string(&sorted(serde_json::to_value(value)?))?;
    if collisions > 0 {
        text.push_str(&collisions.to_string());
    }
    // FNV-1a: stable between versions of the compiler, unlike the standard hasher.
    let mut sum = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut name = String::new();
    for _ in 0..10 {
        name.push(char::from(LETTERS[usize::try_from(sum % 27).unwrap_or_default()]));
        sum /= 27;
    }
    Ok(name)
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            entries.into_iter().map(|(name, value)| (name, sorted(value))).collect()
        }
        serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// Whether an error only says that somebody else was faster: the next look will see what they did.
pub fn is_race(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status))
        if matches!(status.code, 404 | 409))
}

/// Whether the API said that the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the API said that an object of that name is there already.
pub fn is_already_there(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

/// Deletes this very object, not a successor of the same name; one that is gone is fine.
pub async fn delete<K>(
    api: &Api<K>,
    name: &str,
    uid: Option<String>,
    params: DeleteParams,
) -> anyhow::Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    let params = params.preconditions(Preconditions { uid, resource_version: None });
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        // Another object has taken the name: ours is gone.
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Replaces the status of `object`, which carries the new one already, unless it is equal to `before`.
pub async fn write_status<K, S>(api: &Api<K>, object: &K, before: &S, after: &S) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    S: PartialEq,
{
    if before == after {
        return Ok(());
    }
    api.replace_status(&object.name_any(), &PostParams::default(), object).await?;
    Ok(())
}
