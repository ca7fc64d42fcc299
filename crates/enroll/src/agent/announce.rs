//! The annotation that says whether a pod is in the mesh. The control plane and everybody else read it.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};

use crate::eligibility::REDIRECTION_ANNOTATION;

/// How long one change may take.
const API_PATIENCE: Duration = Duration::from_secs(10);

/// Sets or removes the annotation of `namespace`/`name`; a pod that is gone needs no removal.
pub(super) async fn set_annotation(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    value: Option<&str>,
) -> anyhow::Result<()> {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let patch = serde_json::json!({"metadata": {"annotations": {REDIRECTION_ANNOTATION: value}}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    let change = api.patch_status(name, &params, &patch);
    match tokio::time::timeout(API_PATIENCE, change).await.context("the API server did not answer in time")? {
        Err(kube::Error::Api(status)) if status.code == 404 && value.is_none() => Ok(()),
        result => result.map(|_| ()).context("its annotation cannot be written"),
    }
}
