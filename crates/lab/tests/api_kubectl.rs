//! The API server as kubectl sees it. Where kubectl is not installed there is nothing to see, and it says so.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use lab::api::{Config, Server};
use tempfile::TempDir;

struct Lab {
    _server: Server,
    _runtime: tokio::runtime::Runtime,
    directory: TempDir,
}

impl Lab {
    /// None when there is no kubectl.
    fn start() -> Option<Lab> {
        if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
            eprintln!("kubectl is not installed: not tested");
            return None;
        }
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let service_cidr = "10.96.0.0/16".parse().expect("a range");
        let config = Config { listeners: vec![listener], sans: Vec::new(), service_cidr };
        let server = runtime.block_on(Server::start(config)).expect("starts");
        let directory = tempfile::tempdir().expect("a directory");
        let kubeconfig = serde_json::to_string(&server.admin_kubeconfig("lab")).expect("a kubeconfig");
        std::fs::write(directory.path().join("kubeconfig"), kubeconfig).expect("written");
        let lab = Lab { _server: server, _runtime: runtime, directory };
        lab.ok("create namespace web");
        lab.ok("create serviceaccount default -n web");
        Some(lab)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.args(words.split_whitespace());
        command.arg("--request-timeout=20s");
        command.env("KUBECONFIG", self.directory.path().join("kubeconfig"));
        command.env("HOME", self.directory.path());
        command
    }

    fn run(&self, words: &str, input: &str) -> Output {
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("kubectl reads");
        child.wait_with_output().expect("kubectl ends")
    }

    fn ok_with(&self, words: &str, input: &str) -> String {
        let output = self.run(words, input);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {words}: {error}");
        assert!(!error.contains("Warning") && !error.contains("warning"), "kubectl {words}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn ok(&self, words: &str) -> String {
        self.ok_with(words, "")
    }

    fn refused(&self, words: &str, input: &str) -> String {
        let output = self.run(words, input);
        assert!(!output.status.success(), "kubectl {words} should have been refused");
        String::from_utf8(output.stderr).expect("text")
    }
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: web, labels: {app: web}}
spec: {containers: [{name: web, image: nginx}]}
"#;

#[test]
fn apply_get_describe_label_annotate_patch_and_delete() {
    let Some(lab) = Lab::start() else { return };
    let created = lab.ok_with("apply -f -", WEB);
    assert_eq!(created, "deployment.apps/web created\nservice/web created\npod/one created\n");
    assert!(lab.ok_with("apply -f -", WEB).lines().all(|l| l.ends_with("unchanged")));
    let pods = lab.ok("get pods -n web -o wide");
    let words: Vec<&str> = pods.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(&words[..4], ["one", "0/1", "Pending", "0"]);
    assert!(pods.starts_with("NAME   READY   STATUS    RESTARTS   AGE   IP       NODE"), "{pods}");
    assert!(lab.ok("get all -n web").contains("deployment.apps/web   0/1"));
    assert!(lab.ok("describe pod one -n web").contains("kube-api-access-"));
    assert!(lab.ok("describe deployment,service web -n web").contains("25% max unavailable"));
    lab.ok("label namespace web istio.io/dataplane-mode=ambient");
    assert!(lab.ok("get namespace -l istio.io/dataplane-mode=ambient").contains("web"));
    lab.ok("label namespace web istio.io/dataplane-mode-");
    lab.ok("annotate pod one -n web note=x");
    lab.ok(r#"patch service web -n web -p {"spec":{"ports":[{"port":80,"targetPort":8080}]}}"#);
    lab.ok(r#"patch service web -n web --type=merge -p {"metadata":{"labels":{"a":"b"}}}"#);
    lab.ok(
        r#"patch service web -n web --type=json -p [{"op":"add","path":"/metadata/labels/c","value":"d"}]"#,
    );
    let shown =
        lab.ok("get service web -n web -o jsonpath={.spec.ports[*]['name','targetPort']}/{.metadata.labels}");
    assert_eq!(shown, r#"http 8080/{"a":"b","c":"d"}"#);
    lab.ok("scale deployment web -n web --replicas=3");
    lab.ok("set image deployment/web -n web web=nginx:2");
    assert!(lab.refused("apply --server-side -f -", WEB).contains("conflict with \"kubectl-set\""));
    lab.ok_with("apply --server-side --force-conflicts -f -", WEB);
    assert!(lab.ok("get deployment web -n web -o yaml").contains("replicas: 3"));
    assert!(lab.ok("delete pod one -n web").starts_with("pod \"one\" deleted"));
    assert!(lab.refused("get pod one -n web", "").contains("pods \"one\" not found"));
}

#[test]
fn kubectl_creates_what_it_sends_as_protobuf() {
    let Some(lab) = Lab::start() else { return };
    for words in [
        "create configmap c --from-literal=k=v",
        "create secret generic s --from-literal=k=v",
        "create deployment d --image=nginx:1 --replicas=2 --port=80",
        "create service clusterip d --tcp=80:8080",
        "create job j --image=busybox -- true",
        "create role r --verb=get --resource=pods",
        "create rolebinding r --role=r --serviceaccount=web:default",
        "create poddisruptionbudget p --selector=app=d --min-available=1",
        "create quota q --hard=pods=3",
        "create ingress i --rule=a.example/*=d:80",
        "run p --image=nginx --port=80",
    ] {
        lab.ok(&format!("{words} -n web"));
    }
    let replicas = "jsonpath={.spec.replicas}/{.spec.template.spec.containers[0].ports[0].containerPort}";
    assert_eq!(lab.ok(&format!("get deployment d -n web -o {replicas}")), "2/80");
    assert_eq!(lab.ok("get secret s -n web -o jsonpath={.data.k}"), "dg==");
    assert_eq!(
        lab.ok("get ingress i -n web -o jsonpath={.spec.rules[0].http.paths[0].backend.service.name}"),
        "d"
    );
    let token = lab.ok("create token default -n web");
    assert_eq!(token.trim().split('.').count(), 3);
    assert!(lab.ok("auth can-i delete pods").starts_with("yes"));
    assert!(lab.ok("auth whoami").contains("kubernetes-admin"));
}

#[test]
fn bad_manifests_are_refused_with_what_is_wrong() {
    let Some(lab) = Lab::start() else { return };
    let pod =
        |rest: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: x, namespace: web}}, {rest}}}");
    for (manifest, complaint) in [
        (pod("spec: {foo: 1, containers: [{name: a, image: b}]}"), "unknown field \"spec.foo\""),
        (pod("spec: {containers: []}"), "spec.containers: Required value"),
        (pod("spec: {containers: [{name: A_B, image: b}]}"), "spec.containers[0].name: Invalid value"),
        (pod("spec: {containers: nonsense}"), "cannot be handled as a Pod"),
        (pod("spec: {containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /x}]}]}"), "Not found: \"v\""),
        (pod("spec: {serviceAccountName: nobody, containers: [{name: a, image: b}]}"), "serviceaccount \"nobody\" not found"),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: Bad_Name, namespace: web}}".into(), "RFC 1123 subdomain"),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: nowhere}}".into(), "namespaces \"nowhere\" not found"),
        ("{apiVersion: v1, kind: Nonsense, metadata: {name: x}}".into(), "no matches for kind \"Nonsense\""),
        ("{apiVersion: v1, kind: Service, metadata: {name: x, namespace: web}, spec: {ports: [{port: 70000}]}}".into(), "must be between 1 and 65535"),
    ] {
        for verb in ["create", "apply"] {
            let error = lab.refused(&format!("{verb} -f -"), &manifest);
            assert!(error.contains(complaint), "{verb} {manifest}: {error}");
        }
    }
}

#[test]
fn get_w_shows_changes_as_rows() {
    let Some(lab) = Lab::start() else { return };
    lab.ok_with("apply -f -", WEB);
    let mut watching =
        lab.command("get pods -n web -w").stdout(Stdio::piped()).spawn().expect("kubectl runs");
    let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("no end").expect("text");
    assert!(next().starts_with("NAME"));
    assert!(next().starts_with("one"));
    lab.ok("run two --image=nginx -n web");
    let second = next();
    watching.kill().expect("killed");
    watching.wait().expect("ended");
    assert!(second.starts_with("two"), "{second}");
}

#[test]
fn a_crd_shows_up_in_discovery_with_its_columns() {
    let Some(lab) = Lab::start() else { return };
    lab.ok_with(
        "apply -f -",
        r#"{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: things.example.com}, spec: {
          group: example.com, scope: Namespaced, names: {plural: things, singular: thing, kind: Thing, shortNames: [th]},
          versions: [{name: v1, served: true, storage: true,
            schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}},
            additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]}]}}"#,
    );
    lab.ok("wait --for=condition=Established crd/things.example.com --timeout=10s");
    let thing =
        "{apiVersion: example.com/v1, kind: Thing, metadata: {name: t, namespace: web}, spec: {size: 3}}";
    lab.ok_with("apply -f -", thing);
    lab.ok_with("apply -f -", &thing.replace('3', "4"));
    let shown = lab.ok("get th -n web");
    let words: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(words, ["NAME", "SIZE", "t", "4"]);
    let bad = thing.replace("size: 3", "length: 3");
    assert!(lab.refused("apply -f -", &bad).contains("unknown field \"spec.length\""));
}
