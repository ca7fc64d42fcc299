//! The kinds this server has of its own: one table, from which routing, discovery, OpenAPI and checking follow.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, autoscaling::v2 as autoscaling,
    batch::v1 as batch, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    events::v1 as events, networking::v1 as networking, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;

/// Reads an object as its type and writes it back: what differs was not of the type.
pub type Check = fn(&Value) -> Result<Value, String>;

/// A row of the table.
pub struct Builtin {
    /// API group, "" for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Plural resource name.
    pub plural: &'static str,
    /// Short names, separated by spaces.
    pub short: &'static str,
    /// Whether `kubectl get all` shows it.
    pub in_all: bool,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Subresources, separated by spaces.
    pub subresources: &'static str,
    /// Fields that selectors may ask for besides name and namespace, separated by spaces.
    pub fields: &'static str,
    /// The typed check.
    pub check: Check,
}

fn typed<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    let object: T = serde_path_to_error::deserialize(value).map_err(|e| match e.path().to_string() {
        path if path == "." => e.inner().to_string(),
        path => format!("{path}: {}", e.inner()),
    })?;
    serde_json::to_value(object).map_err(|e| e.to_string())
}

macro_rules! kinds {
    ($($group:literal $version:literal $kind:literal $plural:literal [$short:literal] $scope:ident $all:ident
       sub[$sub:literal] fields[$fields:literal] $ty:ty;)*) => {
        &[$(Builtin {
            group: $group, version: $version, kind: $kind, plural: $plural, short: $short, in_all: $all,
            namespaced: $scope, subresources: $sub, fields: $fields, check: typed::<$ty>,
        }),*]
    };
}

const NAMESPACED: bool = true;
const CLUSTER: bool = false;
const ALL: bool = true;
const NO: bool = false;

/// Every kind that is stored and can be created, read, watched, changed and deleted.
#[rustfmt::skip]
pub static BUILTINS: &[Builtin] = kinds! {
    "" "v1" "Namespace" "namespaces" ["ns"] CLUSTER NO sub["status finalize"] fields["status.phase"] core::Namespace;
    "" "v1" "Node" "nodes" ["no"] CLUSTER NO sub["status"] fields["spec.unschedulable"] core::Node;
    "" "v1" "Pod" "pods" ["po"] NAMESPACED ALL sub["status log exec attach portforward binding eviction ephemeralcontainers"]
        fields["spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName spec.hostNetwork status.phase status.podIP status.nominatedNodeName"] core::Pod;
    "" "v1" "Service" "services" ["svc"] NAMESPACED ALL sub["status"] fields["spec.clusterIP spec.type"] core::Service;
    "" "v1" "Endpoints" "endpoints" ["ep"] NAMESPACED NO sub[""] fields[""] core::Endpoints;
    "" "v1" "ConfigMap" "configmaps" ["cm"] NAMESPACED NO sub[""] fields[""] core::ConfigMap;
    "" "v1" "Secret" "secrets" [""] NAMESPACED NO sub[""] fields["type"] core::Secret;
    "" "v1" "ServiceAccount" "serviceaccounts" ["sa"] NAMESPACED NO sub["token"] fields[""] core::ServiceAccount;
    "" "v1" "Event" "events" ["ev"] NAMESPACED NO sub[""]
        fields["involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath reason reportingComponent source type"] core::Event;
    "" "v1" "PersistentVolume" "persistentvolumes" ["pv"] CLUSTER NO sub["status"] fields[""] core::PersistentVolume;
    "" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" ["pvc"] NAMESPACED NO sub["status"] fields[""] core::PersistentVolumeClaim;
    "" "v1" "ResourceQuota" "resourcequotas" ["quota"] NAMESPACED NO sub["status"] fields[""] core::ResourceQuota;
    "" "v1" "LimitRange" "limitranges" ["limits"] NAMESPACED NO sub[""] fields[""] core::LimitRange;
    "" "v1" "ReplicationController" "replicationcontrollers" ["rc"] NAMESPACED ALL sub["status scale"] fields["status.replicas"] core::ReplicationController;
    "" "v1" "PodTemplate" "podtemplates" [""] NAMESPACED NO sub[""] fields[""] core::PodTemplate;
    "apps" "v1" "Deployment" "deployments" ["deploy"] NAMESPACED ALL sub["status scale"] fields[""] apps::Deployment;
    "apps" "v1" "ReplicaSet" "replicasets" ["rs"] NAMESPACED ALL sub["status scale"] fields["status.replicas"] apps::ReplicaSet;
    "apps" "v1" "DaemonSet" "daemonsets" ["ds"] NAMESPACED ALL sub["status"] fields[""] apps::DaemonSet;
    "apps" "v1" "StatefulSet" "statefulsets" ["sts"] NAMESPACED ALL sub["status scale"] fields[""] apps::StatefulSet;
    "apps" "v1" "ControllerRevision" "controllerrevisions" [""] NAMESPACED NO sub[""] fields[""] apps::ControllerRevision;
    "batch" "v1" "Job" "jobs" [""] NAMESPACED ALL sub["status"] fields["status.successful"] batch::Job;
    "batch" "v1" "CronJob" "cronjobs" ["cj"] NAMESPACED ALL sub["status"] fields[""] batch::CronJob;
    "discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" [""] NAMESPACED NO sub[""] fields[""] discovery::EndpointSlice;
    "rbac.authorization.k8s.io" "v1" "Role" "roles" [""] NAMESPACED NO sub[""] fields[""] rbac::Role;
    "rbac.authorization.k8s.io" "v1" "RoleBinding" "rolebindings" [""] NAMESPACED NO sub[""] fields[""] rbac::RoleBinding;
    "rbac.authorization.k8s.io" "v1" "ClusterRole" "clusterroles" [""] CLUSTER NO sub[""] fields[""] rbac::ClusterRole;
    "rbac.authorization.k8s.io" "v1" "ClusterRoleBinding" "clusterrolebindings" [""] CLUSTER NO sub[""] fields[""] rbac::ClusterRoleBinding;
    "coordination.k8s.io" "v1" "Lease" "leases" [""] NAMESPACED NO sub[""] fields[""] coordination::Lease;
    "events.k8s.io" "v1" "Event" "events" ["ev"] NAMESPACED NO sub[""] fields["regarding.kind regarding.namespace regarding.name regarding.uid reason reportingController type"] events::Event;
    "policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" ["pdb"] NAMESPACED NO sub["status"] fields[""] policy::PodDisruptionBudget;
    "networking.k8s.io" "v1" "NetworkPolicy" "networkpolicies" ["netpol"] NAMESPACED NO sub[""] fields[""] networking::NetworkPolicy;
    "networking.k8s.io" "v1" "Ingress" "ingresses" ["ing"] NAMESPACED NO sub["status"] fields[""] networking::Ingress;
    "networking.k8s.io" "v1" "IngressClass" "ingressclasses" [""] CLUSTER NO sub[""] fields[""] networking::IngressClass;
    "networking.k8s.io" "v1" "ServiceCIDR" "servicecidrs" [""] CLUSTER NO sub["status"] fields[""] networking::ServiceCIDR;
    "autoscaling" "v2" "HorizontalPodAutoscaler" "horizontalpodautoscalers" ["hpa"] NAMESPACED ALL sub["status"] fields[""] autoscaling::HorizontalPodAutoscaler;
    "scheduling.k8s.io" "v1" "PriorityClass" "priorityclasses" ["pc"] CLUSTER NO sub[""] fields[""] scheduling::PriorityClass;
    "storage.k8s.io" "v1" "StorageClass" "storageclasses" ["sc"] CLUSTER NO sub[""] fields[""] storage::StorageClass;
    "storage.k8s.io" "v1" "CSINode" "csinodes" [""] CLUSTER NO sub[""] fields[""] storage::CSINode;
    "storage.k8s.io" "v1" "CSIDriver" "csidrivers" [""] CLUSTER NO sub[""] fields[""] storage::CSIDriver;
    "admissionregistration.k8s.io" "v1" "MutatingWebhookConfiguration" "mutatingwebhookconfigurations" [""] CLUSTER NO sub[""] fields[""] admission::MutatingWebhookConfiguration;
    "admissionregistration.k8s.io" "v1" "ValidatingWebhookConfiguration" "validatingwebhookconfigurations" [""] CLUSTER NO sub[""] fields[""] admission::ValidatingWebhookConfiguration;
    "admissionregistration.k8s.io" "v1" "ValidatingAdmissionPolicy" "validatingadmissionpolicies" [""] CLUSTER NO sub["status"] fields[""] admission::ValidatingAdmissionPolicy;
    "admissionregistration.k8s.io" "v1" "ValidatingAdmissionPolicyBinding" "validatingadmissionpolicybindings" [""] CLUSTER NO sub[""] fields[""] admission::ValidatingAdmissionPolicyBinding;
    "apiextensions.k8s.io" "v1" "CustomResourceDefinition" "customresourcedefinitions" ["crd crds"] CLUSTER NO sub["status"] fields[""] apiextensions::CustomResourceDefinition;
    "apiregistration.k8s.io" "v1" "APIService" "apiservices" [""] CLUSTER NO sub["status"] fields[""] apiregistration::APIService;
};

/// A question that is answered and not stored: (group, version, kind, plural, namespaced).
pub static REVIEWS: &[(&str, &str, &str, &str, bool)] = &[
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", false),
    ("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", false),
    ("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", false),
    ("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", true),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
    ("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
];

/// Kind, group and version of a subresource's own objects, where they differ from the parent's.
pub fn subresource_kind(subresource: &str) -> Option<(&'static str, &'static str, &'static str)> {
    match subresource {
        "scale" => Some(("autoscaling", "v1", "Scale")),
        "token" => Some(("authentication.k8s.io", "v1", "TokenRequest")),
        "eviction" => Some(("policy", "v1", "Eviction")),
        "binding" => Some(("", "v1", "Binding")),
        "exec" => Some(("", "v1", "PodExecOptions")),
        "attach" => Some(("", "v1", "PodAttachOptions")),
        "portforward" => Some(("", "v1", "PodPortForwardOptions")),
        _ => None,
    }
}

/// Verbs of a subresource.
pub fn subresource_verbs(subresource: &str) -> &'static [&'static str] {
    match subresource {
        "log" => &["get"],
        "exec" | "attach" | "portforward" => &["create", "get"],
        "token" | "eviction" | "binding" => &["create"],
        "finalize" => &["update"],
        _ => &["get", "patch", "update"],
    }
}

/// Verbs of everything that is stored.
pub const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
