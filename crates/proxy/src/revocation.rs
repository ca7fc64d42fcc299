//! Reads the certificate revocation lists, and reads them again when their file has changed.

use std::path::Path;

use hbone::tls::Revocations;

use crate::files;

/// Puts the lists of `path` in force; why that cannot be done.
pub(crate) fn load(path: &Path, revocations: &Revocations) -> Result<Vec<u8>, String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let lists = revocations.replace(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    tracing::info!(path = %path.display(), lists, "revocation lists are in force");
    Ok(text)
}

/// Follows the file, for ever. While it cannot be read or understood the last lists stay in force.
pub(crate) async fn follow(path: &Path, revocations: &Revocations, mut current: Vec<u8>) {
    let mut said = String::new();
    loop {
        let error = match files::changed(path, Some(&current)).await {
            Ok(text) => match revocations.replace(&text) {
                Ok(lists) => {
                    tracing::info!(path = %path.display(), lists, "revocation lists have changed");
                    (current, said) = (text, String::new());
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if error != said {
            tracing::error!(path = %path.display(), error, "revocation lists cannot be read, the last ones stay");
            said = error;
        }
    }
}
