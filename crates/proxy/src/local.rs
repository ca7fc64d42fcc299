//! Workloads, services and policies that come from a file (`LOCAL_XDS_PATH`) or a variable (`LOCAL_XDS`): in addition to
//! those of a control plane, or instead of one. Read once, at the start.

use crate::config::Local;

/// Reads what is configured; why it cannot be read, with the variable named.
pub(crate) async fn load(from: Option<&Local>) -> Result<wire::Local, String> {
    let (variable, text) = match from {
        None => return Ok(wire::Local::default()),
        Some(Local::Text(text)) => ("LOCAL_XDS".to_owned(), text.clone()),
        Some(Local::File(path)) => {
            let variable = format!("LOCAL_XDS_PATH={}", path.display());
            let read = tokio::fs::read_to_string(path).await;
            let text = read.map_err(|error| format!("{variable} cannot be read: {error}"))?;
            (variable, text)
        }
    };
    // A large mesh takes its time.
    let parsed = tokio::task::spawn_blocking(move || wire::Local::parse(&text)).await;
    let parsed = parsed.map_err(|error| format!("{variable}: {error}"))?;
    let local = parsed.map_err(|error| format!("{variable} cannot be understood: {error}"))?;
    let (workloads, services, policies) = (local.workloads.len(), local.services.len(), local.policies.len());
    tracing::info!(from = variable, workloads, services, policies, "local mesh");
    Ok(local)
}
