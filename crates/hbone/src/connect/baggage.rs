//! The `baggage` header: which workload sends, in labels.

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;
use mesh::{Workload, WorkloadType};

/// What a proxy says of the workload it speaks for. Only a description: nothing of it is proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Baggage {
    pub cluster: Option<Arc<str>>,
    pub namespace: Option<Arc<str>>,
    pub workload: Option<(WorkloadType, Arc<str>)>,
    pub service: Option<Arc<str>>,
    pub version: Option<Arc<str>>,
    pub region: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
}

impl Baggage {
    /// The description of `workload`.
    pub fn of(workload: &Workload) -> Self {
        let some = |text: &Arc<str>| (!text.is_empty()).then(|| text.clone());
        Self {
            cluster: some(&workload.cluster),
            namespace: some(&workload.namespace),
            workload: some(&workload.workload_name).map(|name| (workload.workload_type, name)),
            service: some(&workload.canonical_name),
            version: some(&workload.canonical_revision),
            region: some(&workload.locality.region),
            zone: some(&workload.locality.zone),
        }
    }

    /// Reads all `baggage` headers of a message; nothing when there is none or one is not visible ASCII.
    pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Self> {
        let mut found = None;
        for header in headers {
            let text = header.to_str().ok()?;
            let baggage: &mut Self = found.get_or_insert_default();
            for part in text.split(',') {
                let mut pair = part.split('=');
                let (Some(key), Some(value)) = (pair.next(), pair.next()) else { continue };
                baggage.set(key.trim(), value.trim());
            }
        }
        found
    }

    fn set(&mut self, key: &str, value: &str) {
        let value: Option<Arc<str>> = (!value.is_empty()).then(|| value.into());
        let kind = |kind| value.clone().map(|name| (kind, name));
        match key {
            "k8s.cluster.name" => self.cluster = value,
            "k8s.namespace.name" => self.namespace = value,
            "k8s.deployment.name" => self.workload = kind(WorkloadType::Deployment),
            "k8s.cronjob.name" => self.workload = kind(WorkloadType::CronJob),
            "k8s.pod.name" => self.workload = kind(WorkloadType::Pod),
            "k8s.job.name" => self.workload = kind(WorkloadType::Job),
            "service.name" => self.service = value,
            "service.version" => self.version = value,
            "cloud.region" => self.region = value,
            "cloud.availability_zone" => self.zone = value,
            _ => {}
        }
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut put = |key: fmt::Arguments<'_>, value: Option<&Arc<str>>| match value {
            Some(value) => {
                write!(f, "{separator}{key}={value}")?;
                separator = ",";
                Ok(())
            }
            None => Ok(()),
        };
        put(format_args!("k8s.cluster.name"), self.cluster.as_ref())?;
        put(format_args!("k8s.namespace.name"), self.namespace.as_ref())?;
        if let Some((kind, name)) = &self.workload {
            put(format_args!("k8s.{}.name", kind.word()), Some(name))?;
        }
        put(format_args!("service.name"), self.service.as_ref())?;
        put(format_args!("service.version"), self.version.as_ref())?;
        put(format_args!("cloud.region"), self.region.as_ref())?;
        put(format_args!("cloud.availability_zone"), self.zone.as_ref())
    }
}
