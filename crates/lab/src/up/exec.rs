//! Running a command in a pod, through the API like `kubectl exec`.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::AttachParams;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::answers::plainly;
use super::record::{Record, labs};
use super::{LabName, preflight};

/// What to run where.
#[derive(Clone, Debug)]
pub struct Exec {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container; none: the only or the default one.
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Runs a command in a pod of a lab with this process's standard streams; answers its exit status.
///
/// # Errors
/// If the lab is not up, or the command could not be started.
pub async fn exec(lab: &LabName, exec: &Exec) -> anyhow::Result<u8> {
    let record = Record::load(lab).filter(|record| record.process.is_alive());
    let Some(record) = record else { bail!(not_running(lab)) };
    let client = preflight::client(&record.kubeconfig).await?;
    let pods: Api<Pod> = Api::namespaced(client, &exec.namespace);
    let params = AttachParams {
        container: exec.container.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
        ..AttachParams::default()
    };
    let mut process = pods
        .exec(&exec.pod, &exec.command, &params)
        .await
        .map_err(plainly)
        .with_context(|| format!("cannot run a command in {}/{}", exec.namespace, exec.pod))?;
    let status = process.take_status().context("the API does not tell how the command ends")?;
    let input = process.stdin().map(|to| tokio::spawn(send_input(to)));
    let output = process.stdout().map(|from| tokio::spawn(copy(from, tokio::io::stdout())));
    let errors = process.stderr().map(|from| tokio::spawn(copy(from, tokio::io::stderr())));
    let status = status.await;
    for task in [output, errors].into_iter().flatten() {
        task.await??;
    }
    if let Some(input) = input {
        input.abort();
    }
    let status = status.context("the connection to the pod was lost")?;
    exit_code(&status)
}

/// Why nothing can be done with a lab.
pub fn not_running(lab: &LabName) -> String {
    let others: Vec<String> =
        labs().into_iter().filter(|other| other != lab).map(|other| other.to_string()).collect();
    let hint = if others.is_empty() {
        "start it with `ambit lab up`".to_owned()
    } else {
        format!("running labs are chosen with --name: {}", others.join(", "))
    };
    format!("the lab `{lab}` is not up: {hint}")
}

async fn send_input(mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    tokio::io::copy(&mut tokio::io::stdin(), &mut to).await?;
    to.shutdown().await
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> anyhow::Result<()> {
    tokio::io::copy(&mut from, &mut to).await?;
    to.flush().await.map_err(Into::into)
}

fn exit_code(status: &Status) -> anyhow::Result<u8> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let mut codes = causes.filter(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let code = codes.find_map(|cause| cause.message.as_deref()?.parse::<i32>().ok());
    match code {
        Some(code) => Ok(u8::try_from(code & 0xff).unwrap_or(1)),
        None => bail!("{}", status.message.as_deref().unwrap_or("the command could not be run")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: serde_json::Value) -> Status {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_exit_status_of_the_command_is_passed_on() {
        assert_eq!(exit_code(&status(serde_json::json!({"status": "Success"}))).unwrap(), 0);
        let failed = serde_json::json!({
            "status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated with exit code 7",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
        });
        assert_eq!(exit_code(&status(failed)).unwrap(), 7);
        let refused = serde_json::json!({"status": "Failure", "message": "no such program"});
        assert!(exit_code(&status(refused)).unwrap_err().to_string().contains("no such program"));
    }
}
