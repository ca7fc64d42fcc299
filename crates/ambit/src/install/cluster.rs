//! Reaching the cluster, and handling objects of any kind in it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::{ApiCapabilities, Scope};
use kube::{Client, Config};

/// Where the cluster is: the usual flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClusterArgs {
    /// Kubeconfig file (default: $KUBECONFIG, then ~/.kube/config)
    #[arg(long, short = 'c', value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig (default: its current one)
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl ClusterArgs {
    /// A client that has spoken with the API server once, so that a wrong address is known at once.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path)
                    .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await?
            }
            None => Config::from_kubeconfig(&options).await.context(
                "no usable kubeconfig: set KUBECONFIG, give --kubeconfig PATH, or start a lab with `ambit lab up`",
            )?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        let url = config.cluster_url.clone();
        let client = Client::try_from(config)?;
        let version = tokio::time::timeout(Duration::from_secs(10), client.apiserver_version()).await;
        version
            .map_err(|_| anyhow!("no answer within 10 s"))
            .and_then(|version| version.map_err(Into::into))
            .with_context(|| format!("cannot reach the Kubernetes API at {url}: is the cluster running?"))?;
        Ok(client)
    }
}

/// Objects of any kind, their resource looked up once a kind.
pub struct Objects {
    client: Client,
    kinds: HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>,
}

impl Objects {
    /// Objects of the cluster behind `client`.
    pub fn new(client: Client) -> Self {
        Self { client, kinds: HashMap::new() }
    }

    /// The client of the cluster.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The API that serves objects like `object`.
    pub async fn api_for(&mut self, object: &DynamicObject) -> anyhow::Result<Api<DynamicObject>> {
        let types = object.types.as_ref().context("an object without apiVersion and kind")?;
        let gvk = GroupVersionKind::try_from(types)?;
        if !self.kinds.contains_key(&gvk) {
            let found = kube::discovery::pinned_kind(&self.client, &gvk).await;
            let found = found
                .with_context(|| format!("the cluster does not know {} {}", types.api_version, types.kind))?;
            self.kinds.insert(gvk.clone(), found);
        }
        let (resource, capabilities) = &self.kinds[&gvk];
        let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
        Ok(match capabilities.scope {
            Scope::Cluster => Api::all_with(self.client.clone(), resource),
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, resource),
        })
    }
}

/// How an object is called in messages.
pub fn label(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("object", |types| &types.kind);
    format!("{kind} {}", object.metadata.name.as_deref().unwrap_or("?"))
}
