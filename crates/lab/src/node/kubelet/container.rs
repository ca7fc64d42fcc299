//! From a container of a pod to what the runtime starts: environment, user, mounts, commands.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret};

use super::Context;
use crate::node::fields::{self, Facts};
use crate::node::runtime::bundle::{Bind, Bundle, Propagation};
use crate::node::runtime::caps;
use crate::node::runtime::env::{Env, expand};
use crate::node::runtime::images::{self, Image};
use crate::node::volumes::etc::EtcFiles;
use crate::node::volumes::{Volumes, fetch, payload};
use crate::node::{layout, volumes};

/// Where a pod's containers live: what its sandbox gave them.
#[derive(Clone)]
pub struct Home {
    /// Addresses of the pod.
    pub ips: Vec<std::net::IpAddr>,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its host name.
    pub hostname: String,
    /// Its files under `/etc`.
    pub etc: Arc<EtcFiles>,
    /// Its volumes.
    pub volumes: Arc<tokio::sync::Mutex<Volumes>>,
}

/// A container ready to be started.
pub struct Plan {
    /// For the runtime.
    pub bundle: Bundle,
    /// Directories of the image that must be writable.
    pub writable: Vec<String>,
    /// Where the container may leave a last word.
    pub termination: PathBuf,
}

/// Why a container cannot be started for now.
#[derive(Clone, Debug)]
pub struct Refused {
    /// In a word, as `kubectl get pods` shows it.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

fn bad(message: impl Into<String>) -> Refused {
    Refused { reason: "CreateContainerConfigError", message: message.into() }
}

/// Makes the plan of one container's run.
pub async fn plan(
    context: &Context,
    pod: &Pod,
    spec: &Container,
    home: &Home,
    id: &str,
    attempt: u32,
) -> Result<Plan, Refused> {
    let list = |l: &Option<Vec<String>>| l.clone().unwrap_or_default();
    let image_name = spec.image.as_deref().unwrap_or_default();
    let (image, words) = images::words(image_name, &list(&spec.command), &list(&spec.args))
        .map_err(|message| Refused { reason: "ErrImagePull", message })?;
    let facts = Facts { pod, pod_ips: &home.ips, host_ip: context.config.ip };
    let env = environment(context, spec, &facts, &home.hostname).await?;
    let user = user(pod, spec, &image)?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();

    let mut binds = etc_binds(&home.etc);
    binds.extend(home.volumes.lock().await.binds(spec, &env).map_err(|e| bad(format!("{e:#}")))?);
    if image.ambit {
        binds.push(Bind {
            source: context.config.binary.clone(),
            target: images::AMBIT.to_owned(),
            read_only: true,
            propagation: Propagation::None,
        });
    }
    let termination = last_word(uid, &spec.name, attempt, user).map_err(|e| bad(e.to_string()))?;
    binds.push(Bind {
        source: termination.clone(),
        target: spec.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned()),
        read_only: false,
        propagation: Propagation::None,
    });

    let pod_spec = pod.spec.clone().unwrap_or_default();
    let own = spec.security_context.as_ref();
    let privileged = own.and_then(|c| c.privileged).unwrap_or(false);
    let host_network = pod_spec.host_network.unwrap_or(false);
    let cwd = spec.working_dir.clone().filter(|d| !d.is_empty()).or_else(|| image.workdir.clone());
    let bundle = Bundle {
        args: words.iter().map(|w| expand(w, env.values())).collect(),
        env: env.lines(),
        cwd: cwd.unwrap_or_else(|| "/".to_owned()),
        user,
        groups: groups(pod),
        capabilities: caps::for_container(own, context.capabilities),
        no_new_privileges: own.and_then(|c| c.allow_privilege_escalation) == Some(false),
        privileged,
        read_only_root: own.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        host_pid: pod_spec.host_pid.unwrap_or(false),
        host_ipc: pod_spec.host_ipc.unwrap_or(false),
        hostname: Some(home.hostname.clone()),
        netns: home.netns.display().to_string(),
        cgroup: format!("{}/pod{uid}/{id}", context.config.cgroup()),
        sysctls: if host_network { BTreeMap::new() } else { sysctls(pod) },
        binds,
    };
    Ok(Plan { bundle, writable: image.dirs, termination })
}

/// The variables of a container in Kubernetes' order: the image's, the API server's address, `envFrom`, `env`.
async fn environment(
    context: &Context,
    spec: &Container,
    facts: &Facts<'_>,
    hostname: &str,
) -> Result<Env, Refused> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut env = Env::default();
    env.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    env.set("HOSTNAME", hostname);
    let (host, port) = context.api_service().await;
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    env.set("KUBERNETES_SERVICE_HOST", &host);
    env.set("KUBERNETES_SERVICE_PORT", &port);
    env.set("KUBERNETES_SERVICE_PORT_HTTPS", &port);
    env.set("KUBERNETES_PORT", format!("tcp://{bracketed}:{port}"));
    for source in spec.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        let data = if let Some(map) = &source.config_map_ref {
            let optional = map.optional.unwrap_or(false);
            fetch::<ConfigMap>(&context.client, namespace, &map.name, optional)
                .await
                .map(|m| m.map(|m| payload::config_map(&m)))
        } else if let Some(secret) = &source.secret_ref {
            let optional = secret.optional.unwrap_or(false);
            fetch::<Secret>(&context.client, namespace, &secret.name, optional)
                .await
                .map(|s| s.map(|s| payload::secret(&s)))
        } else {
            Ok(None)
        };
        for (key, value) in data.map_err(|e| bad(format!("{e:#}")))?.into_iter().flatten() {
            if let Ok(value) = String::from_utf8(value) {
                env.set(format!("{prefix}{key}"), value);
            }
        }
    }
    for variable in spec.env.iter().flatten() {
        if variable.value_from.is_none() {
            env.set_expanded(&variable.name, variable.value.as_deref().unwrap_or(""));
        } else if let Some(value) = value(context, spec, facts, variable).await? {
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env)
}

/// The value of a variable that has a source; `None` when it comes from an optional key that is missing.
async fn value(
    context: &Context,
    spec: &Container,
    facts: &Facts<'_>,
    variable: &EnvVar,
) -> Result<Option<String>, Refused> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or("default");
    let Some(from) = &variable.value_from else { return Ok(None) };
    let (data, key, what, optional) = if let Some(field) = &from.field_ref {
        return fields::field(facts, &field.field_path).map(Some).map_err(bad);
    } else if let Some(resource) = &from.resource_field_ref {
        return fields::resource(facts.pod, Some(spec), resource, super::node_object::capacity)
            .map(Some)
            .map_err(bad);
    } else if let Some(map) = &from.config_map_key_ref {
        let optional = map.optional.unwrap_or(false);
        let found = fetch::<ConfigMap>(&context.client, namespace, &map.name, optional).await;
        (
            found.map(|m| m.map(|m| payload::config_map(&m))),
            &map.key,
            format!("configmap {:?}", map.name),
            optional,
        )
    } else if let Some(secret) = &from.secret_key_ref {
        let optional = secret.optional.unwrap_or(false);
        let found = fetch::<Secret>(&context.client, namespace, &secret.name, optional).await;
        (
            found.map(|s| s.map(|s| payload::secret(&s))),
            &secret.key,
            format!("secret {:?}", secret.name),
            optional,
        )
    } else {
        return Err(bad(format!("variable {:?} has a source the lab does not know", variable.name)));
    };
    let data = data.map_err(|e| bad(format!("{e:#}")))?;
    match data.and_then(|d| d.get(key).cloned()) {
        Some(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| bad(format!("key {key:?} of {what} is no text and cannot be a variable"))),
        None if optional => Ok(None),
        None => Err(bad(format!("couldn't find key {key} in {what}"))),
    }
}

/// The user and group a container runs as.
fn user(pod: &Pod, spec: &Container, image: &Image) -> Result<(u32, u32), Refused> {
    let own = spec.security_context.as_ref();
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let id = |n: i64| u32::try_from(n).map_err(|_| bad(format!("{n} is no user or group")));
    let wanted_user = own.and_then(|c| c.run_as_user).or_else(|| of_pod.and_then(|c| c.run_as_user));
    let wanted_group = own.and_then(|c| c.run_as_group).or_else(|| of_pod.and_then(|c| c.run_as_group));
    let of_image = image.user.unwrap_or((0, 0));
    let user = wanted_user.map(id).transpose()?.unwrap_or(of_image.0);
    let group = match wanted_group {
        Some(group) => id(group)?,
        None if wanted_user.is_some() => 0,
        None => of_image.1,
    };
    let not_root = own.and_then(|c| c.run_as_non_root).or_else(|| of_pod.and_then(|c| c.run_as_non_root));
    if user == 0 && not_root == Some(true) {
        return Err(bad(format!(
            "container {:?} has runAsNonRoot and its image runs as root: set runAsUser",
            spec.name
        )));
    }
    Ok((user, group))
}

fn groups(pod: &Pod) -> Vec<u32> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let further = context.iter().flat_map(|c| c.supplemental_groups.iter().flatten());
    further
        .chain(context.iter().filter_map(|c| c.fs_group.as_ref()))
        .filter_map(|g| u32::try_from(*g).ok())
        .collect()
}

fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    context
        .iter()
        .flat_map(|c| c.sysctls.iter().flatten())
        .map(|s| (s.name.clone(), s.value.clone()))
        .collect()
}

fn etc_binds(etc: &EtcFiles) -> Vec<Bind> {
    [("/etc/hosts", &etc.hosts), ("/etc/hostname", &etc.hostname), ("/etc/resolv.conf", &etc.resolv_conf)]
        .into_iter()
        .map(|(target, source)| Bind {
            source: source.clone(),
            target: target.to_owned(),
            read_only: false,
            propagation: Propagation::None,
        })
        .collect()
}

/// The file a container may write a last word into.
fn last_word(uid: &str, container: &str, attempt: u32, user: (u32, u32)) -> std::io::Result<PathBuf> {
    let dir = Path::new(layout::PODS).join(uid).join("containers").join(container);
    fs::create_dir_all(&dir)?;
    let file = dir.join(format!("termination-{attempt}"));
    fs::write(&file, "")?;
    std::os::unix::fs::chown(&file, Some(user.0), Some(user.1))?;
    if attempt > 0 {
        let _ = fs::remove_file(dir.join(format!("termination-{}", attempt - 1)));
    }
    Ok(file)
}

/// The log of a container's run.
pub fn log_path(pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    log_dir(pod).join(container).join(format!("{attempt}.log"))
}

/// Where all logs of a pod are.
pub fn log_dir(pod: &Pod) -> PathBuf {
    let meta = &pod.metadata;
    let part = |p: &Option<String>| p.clone().unwrap_or_default();
    Path::new(layout::POD_LOGS).join(format!(
        "{}_{}_{}",
        part(&meta.namespace),
        part(&meta.name),
        part(&meta.uid)
    ))
}

/// The host name of a pod.
pub fn hostname(pod: &Pod, node: &str) -> String {
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.host_network).unwrap_or(false) {
        return node.to_owned();
    }
    let name = spec
        .and_then(|s| s.hostname.clone())
        .filter(|h| !h.is_empty())
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The sources of a pod's volumes.
pub fn sources<'a>(context: &'a Context, pod: &'a Pod, ips: &'a [std::net::IpAddr]) -> volumes::Sources<'a> {
    volumes::Sources {
        client: &context.client,
        facts: Facts { pod, pod_ips: ips, host_ip: context.config.ip },
        capacity: &super::node_object::capacity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn user_of(spec: serde_json::Value, image: &str) -> Result<(u32, u32), String> {
        let pod = pod(spec);
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        user(&pod, &container, &images::resolve(image).unwrap_or_default()).map_err(|r| r.message)
    }

    #[test]
    fn the_container_decides_before_the_pod_before_the_image() {
        let both = json!({"securityContext": {"runAsUser": 1, "runAsGroup": 2},
            "containers": [{"name": "a", "securityContext": {"runAsUser": 3}}]});
        assert_eq!(user_of(both, "x"), Ok((3, 2)));
        assert_eq!(user_of(json!({"containers": [{"name": "a"}]}), "prom/prometheus"), Ok((65534, 65534)));
        let user_only = json!({"containers": [{"name": "a", "securityContext": {"runAsUser": 3}}]});
        assert_eq!(user_of(user_only, "prom/prometheus"), Ok((3, 0)));
    }

    #[test]
    fn root_is_refused_where_the_pod_forbids_it() {
        let spec = json!({"containers": [{"name": "a", "securityContext": {"runAsNonRoot": true}}]});
        assert!(user_of(spec.clone(), "nginx").unwrap_err().contains("runAsNonRoot"));
        assert!(user_of(spec, "prom/prometheus").is_ok());
    }

    #[test]
    fn a_pod_is_called_by_its_name_or_its_nodes() {
        assert_eq!(hostname(&pod(json!({"containers": []})), "node-1"), "p");
        assert_eq!(hostname(&pod(json!({"containers": [], "hostname": "h"})), "node-1"), "h");
        assert_eq!(hostname(&pod(json!({"containers": [], "hostNetwork": true})), "node-1"), "node-1");
    }
}
