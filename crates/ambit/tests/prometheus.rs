//! The story of the mesh, end to end, by the commands that users type.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Client, ResourceExt};
use support::{MANIFESTS, TestLab, eventually, generations, pod, processes, text};

/// `cargo xtask demo --once --report FILE` without the building: every promise of the report holds, twice in a row, and
/// nothing is left behind.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_holds_what_it_promises() {
    let lab = TestLab::new("d");
    let report = lab.home().join("report.json");
    let output = lab.ambit(&["demo", "--once", "--name", &lab.name, "--report", report.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let targets = report["targets"].as_u64().unwrap();
    assert!(targets >= 14, "{report}");
    for (key, wanted) in [
        ("up", targets),
        ("mtls_before", 0),
        ("mtls_after", targets),
        ("plaintext_after", 0),
        ("pods_restarted", 0),
        ("scrapes_failed_while_enrolling", 0),
    ] {
        assert_eq!(report[key].as_u64(), Some(wanted), "{key} in {report}");
    }
    assert_eq!(
        (&report["wire_readable_before"], &report["wire_readable_after"]),
        (&true.into(), &false.into())
    );
    let rows = report["query"].as_array().unwrap();
    for workload in ["productpage-v1", "a-v1", "istio-egressgateway"] {
        let of = |row: &&serde_json::Value| row["destination_workload"] == workload;
        let policies: Vec<_> = rows.iter().filter(of).map(|row| &row["connection_security_policy"]).collect();
        // A scrape made while the labels took effect may have been plaintext, and stays in the counters for good; that
        // none came after is `plaintext_after`.
        assert!(policies.contains(&&serde_json::json!("mutual_tls")), "{workload} in {report}");
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

/// The four commands, and then everything that must not hurt.
#[tokio::test(flavor = "multi_thread")]
async fn two_labels_secure_every_scrape_and_nothing_that_dies_takes_one_with_it() {
    let lab = TestLab::new("p");
    lab.must(&["lab", "up", "--name", &lab.name, "-f", MANIFESTS]);
    lab.must(&["install", "--set", "profile=ambient"]);
    let client = lab.client().await;
    let prometheus = Prometheus::of(&client).await;
    prometheus.all_up().await;
    let before = generations(&client).await;
    lab.label("bookinfo", "ambient").await;
    lab.label("monitoring", "ambient").await;
    prometheus.all_mutual_tls().await;

    // Nobody was restarted for it.
    assert_eq!(generations(&client).await, before);

    // A stranger that comes now still gets its answers, and the metrics say that they were not encrypted.
    let stranger_name = pod(&client, "legacy", "batch").await.name_any();
    Api::<Pod>::namespaced(client.clone(), "legacy")
        .delete(&stranger_name, &Default::default())
        .await
        .unwrap();
    let stranger = r#"istio_tcp_received_bytes_total{source_workload="batch-v1",destination_workload="productpage-v1",reporter="destination"}"#;
    eventually("the stranger's calls in plaintext", || async {
        let series = prometheus.query(stranger).await?;
        let plain = |s: &&(BTreeMap<String, String>, f64)| {
            s.0["connection_security_policy"] == "unknown" && s.1 > 0.0
        };
        assert!(
            series.iter().all(|(labels, _)| labels["connection_security_policy"] != "mutual_tls"),
            "{series:?}"
        );
        series.iter().find(plain).map(|_| ()).ok_or_else(|| format!("{series:?}"))
    })
    .await;

    // The stranger's successor is the one that counts from here on.
    eventually("the stranger to be replaced", || async {
        let now = generations(&client).await;
        let successors = now.keys().filter(|name| name.starts_with("batch-v1") && **name != stranger_name);
        if successors.count() == 1 && !now.contains_key(&stranger_name) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await;
    let before = generations(&client).await;

    // The control plane or the agent dies: no scrape notices.
    for victim in ["control", "agent"] {
        let start = Instant::now();
        kill(&lab, victim).await;
        eventually(&format!("{victim} to come back"), || async { ready(&client).await }).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        prometheus.all_up().await;
        assert_eq!(
            prometheus.failures(start.elapsed()).await,
            0.0,
            "scrapes failed when {victim} was killed"
        );
    }

    // The proxy dies: scrapes resume by themselves.
    kill(&lab, "proxy").await;
    eventually("the proxies to come back", || async { ready(&client).await }).await;
    let resumed = Instant::now();
    prometheus.all_up().await;
    assert!(
        resumed.elapsed() < Duration::from_secs(15),
        "scrapes resumed only after {:?}",
        resumed.elapsed()
    );
    prometheus.all_mutual_tls().await;

    // The label goes: plaintext again, still without a restart.
    lab.label("bookinfo", "").await;
    eventually("productpage to leave the mesh", || async {
        let pod = pod(&client, "bookinfo", "productpage").await;
        match pod.annotations().get("ambient.istio.io/redirection") {
            None => Ok(()),
            Some(value) => Err(value.clone()),
        }
    })
    .await;
    prometheus.all_up().await;
    assert_eq!(generations(&client).await, before);

    // The mesh goes: everything works on, and nothing of it is left, nor any word that a policy is in force.
    let policies = policies(&client);
    let policy = serde_json::json!({ "metadata": { "name": "all" }, "spec": { "rules": [{}] } });
    policies.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await.unwrap();
    eventually("the policy to be accepted", || async { said(&policies).await.map(drop) }).await;
    lab.must(&["uninstall", "-y"]);
    assert_eq!(said(&policies).await, Err("nothing".to_owned()));
    assert!(Api::<Namespace>::all(client.clone()).get_opt("ambit-system").await.unwrap().is_none());
    prometheus.all_up().await;
    let maps = Api::<ConfigMap>::all(client.clone())
        .list(&ListParams::default().labels("istio.io/config=true"))
        .await;
    assert_eq!(maps.unwrap().iter().map(ResourceExt::name_any).collect::<Vec<_>>(), Vec::<String>::new());
    let annotated = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await.unwrap();
    let annotated =
        annotated.iter().filter(|pod| pod.annotations().contains_key("ambient.istio.io/redirection"));
    assert_eq!(annotated.map(ResourceExt::name_any).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(generations(&client).await, before);

    lab.must(&["lab", "down", "--name", &lab.name]);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

fn policies(client: &Client) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("security.istio.io", "v1", "AuthorizationPolicy");
    let resource = ApiResource::from_gvk_with_plural(&gvk, "authorizationpolicies");
    Api::namespaced_with(client.clone(), "legacy", &resource)
}

/// What is said of the policy.
async fn said(policies: &Api<DynamicObject>) -> Result<String, String> {
    let policy = policies.get("all").await.map_err(|error| error.to_string())?;
    let condition = &policy.data["status"]["conditions"][0]["type"];
    condition.as_str().map(str::to_owned).ok_or("nothing".to_owned())
}

async fn kill(lab: &TestLab, subcommand: &str) {
    let victims = processes(lab, subcommand);
    assert!(!victims.is_empty(), "no `ambit {subcommand}` runs in the lab");
    for pid in &victims {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    eventually("the killed processes to be replaced", || async {
        let now = processes(lab, subcommand);
        if now.len() == victims.len() && now.iter().all(|pid| !victims.contains(pid)) {
            Ok(())
        } else {
            Err(format!("{victims:?} became {now:?}"))
        }
    })
    .await;
}

/// Whether every pod of the mesh is ready.
async fn ready(client: &Client) -> Result<(), String> {
    let pods = Api::<Pod>::namespaced(client.clone(), "ambit-system");
    let pods = pods.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
    for pod in &pods {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let is_ready =
            |c: &k8s_openapi::api::core::v1::PodCondition| c.type_ == "Ready" && c.status == "True";
        if !conditions.into_iter().flatten().any(is_ready) {
            return Err(format!("{} is not ready", pod.name_any()));
        }
    }
    Ok(())
}

/// The real Prometheus of the demo.
struct Prometheus {
    pods: Api<Pod>,
    name: String,
}

impl Prometheus {
    async fn of(client: &Client) -> Self {
        let pods = Api::namespaced(client.clone(), "monitoring");
        let name = eventually("Prometheus to be there", || async {
            let list = pods
                .list(&ListParams::default().labels("app=prometheus"))
                .await
                .map_err(|e| e.to_string())?;
            list.items.first().map(ResourceExt::name_any).ok_or_else(|| "no pod".to_owned())
        })
        .await;
        Self { pods, name }
    }

    async fn get(&self, path: &str) -> Result<serde_json::Value, String> {
        let work = async {
            let mut forwarder = self.pods.portforward(&self.name, &[9090]).await?;
            let stream = forwarder.take_stream(9090).unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let request =
                http::Request::get(path).header("host", "prometheus").body(Empty::<bytes::Bytes>::new())?;
            let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
            driver.abort();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(serde_json::from_slice(&body)?)
        };
        match tokio::time::timeout(Duration::from_secs(10), work).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    async fn query(&self, query: &str) -> Result<Vec<(BTreeMap<String, String>, f64)>, String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}")).await?;
        let result = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
        let sample = |series: &serde_json::Value| {
            let labels = serde_json::from_value(series["metric"].clone()).ok()?;
            Some((labels, series["value"][1].as_str()?.parse().ok()?))
        };
        Ok(result.iter().filter_map(sample).collect())
    }

    /// Every application target is up.
    async fn all_up(&self) {
        eventually("every target to be up", || async {
            let answer = self.get("/api/v1/targets?state=active").await?;
            let targets = answer["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
            let pods: Vec<_> = targets.iter().filter(|target| target["labels"]["job"] == "pods").collect();
            match pods.iter().find(|target| target["health"] != "up") {
                Some(down) => Err(format!("{}: {}", down["labels"]["pod"], down["lastError"])),
                None if pods.len() < 14 => Err(format!("{} targets", pods.len())),
                None => Ok(()),
            }
        })
        .await;
    }

    /// Within the last seconds, both ends have counted bytes of every target over mutual TLS.
    async fn all_mutual_tls(&self) {
        eventually("every scrape to be mutual TLS at both ends", || async {
            let query = r#"count(sum by (destination_workload) (increase(istio_tcp_sent_bytes_total{source_workload="prometheus",connection_security_policy="mutual_tls",reporter="REPORTER"}[10s])) > 0)"#;
            for reporter in ["source", "destination"] {
                let samples = self.query(&query.replace("REPORTER", reporter)).await?;
                let secured = samples.first().map_or(0.0, |sample| sample.1);
                if secured < 14.0 {
                    return Err(format!("{secured} at the {reporter}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Scrapes of applications that failed within the last `window`.
    async fn failures(&self, window: Duration) -> f64 {
        let seconds = window.as_secs() + 1;
        let query = format!(
            "sum(count_over_time(up{{job=\"pods\"}}[{seconds}s])) - sum(sum_over_time(up{{job=\"pods\"}}[{seconds}s]))"
        );
        eventually("Prometheus to answer", || async {
            let samples = self.query(&query).await?;
            samples.first().map(|sample| sample.1).ok_or_else(|| "no samples".to_owned())
        })
        .await
    }
}
