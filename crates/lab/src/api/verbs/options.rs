//! What a write may be told by its query: dry run, field manager, field validation.

use super::Call;
use crate::api::failure::Failure;

/// What to do about fields that the kind does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Drop them.
    Ignore,
    /// Drop them and say so.
    Warn,
    /// Refuse the object.
    Strict,
}

/// Options common to creates, updates and patches.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Say what would happen, and change nothing.
    pub dry_run: bool,
    /// Who is written into `managedFields`.
    pub manager: String,
    /// What to do about unknown fields.
    pub unknown: Unknown,
    /// Take fields that others own (server-side apply only).
    pub force: bool,
}

impl WriteOptions {
    /// Those of a call.
    pub fn of(call: &Call) -> Result<WriteOptions, Failure> {
        let unknown = match call.params.get("fieldValidation") {
            "Ignore" => Unknown::Ignore,
            "" | "Warn" => Unknown::Warn,
            "Strict" => Unknown::Strict,
            other => {
                return Err(Failure::bad_request(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        Ok(WriteOptions {
            dry_run: dry_run(call.params.get("dryRun"))?,
            manager: manager(call),
            unknown,
            force: call.params.flag("force"),
        })
    }
}

/// Reads `dryRun`.
pub fn dry_run(text: &str) -> Result<bool, Failure> {
    match text {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(Failure::bad_request(format!(
            "dryRun: Unsupported value: {other:?}: supported values: \"All\""
        ))),
    }
}

/// The named field manager, or the program that calls.
fn manager(call: &Call) -> String {
    let named = call.params.get("fieldManager");
    if !named.is_empty() {
        return named.to_owned();
    }
    let agent = call.headers.get(http::header::USER_AGENT).and_then(|h| h.to_str().ok()).unwrap_or("");
    let program: String = agent.split('/').next().unwrap_or("").chars().take(128).collect();
    if program.is_empty() { "unknown".into() } else { program }
}
