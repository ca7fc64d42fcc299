//! An authority that was made elsewhere and plugged in: Secret `cacerts`, or the same files in a directory
//! (reference/control-plane.md §4.3).

use std::collections::BTreeMap;
use std::path::Path;

use super::Authority;

/// Name of the Secret.
pub const SECRET: &str = "cacerts";

/// Reads the files of either layout; none when there is none of them.
///
/// With `tls.crt` it is the layout of a TLS Secret, as cert-manager writes it: `tls.crt` (signing certificate and
/// intermediates), `tls.key`, `ca.crt`. Otherwise `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem`. Part
/// of them is an error: to go on with a self-signed root instead would split the mesh.
pub fn read(files: &BTreeMap<String, String>) -> Result<Option<Authority>, String> {
    let file = |name: &str| files.get(name).map(String::as_str).filter(|text| !text.trim().is_empty());
    let crl = file("ca-crl.pem");
    let names: &[&str] = if file("tls.crt").is_some() {
        &["tls.crt", "tls.key", "ca.crt"]
    } else {
        &["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"]
    };
    let missing: Vec<&str> = names.iter().filter(|name| file(name).is_none()).copied().collect();
    if missing.len() == names.len() {
        return Ok(None);
    }
    if !missing.is_empty() {
        return Err(format!("incomplete signing CA bundle: {} missing", missing.join(", ")));
    }
    let text = |index: usize| names.get(index).and_then(|name| file(name)).unwrap_or_default();
    let (certificate, key, roots) = (text(0), text(1), text(2));
    let chain = if names.len() == 4 { text(3) } else { certificate };
    Authority::read_with(certificate, key, roots, chain, crl).map(Some).map_err(|error| error.to_string())
}

/// Reads the files of a directory; those that are not there are left out.
pub fn files(directory: &Path) -> std::io::Result<BTreeMap<String, String>> {
    const NAMES: [&str; 8] = [
        "tls.crt",
        "tls.key",
        "ca.crt",
        "ca-cert.pem",
        "ca-key.pem",
        "root-cert.pem",
        "cert-chain.pem",
        "ca-crl.pem",
    ];
    let mut found = BTreeMap::new();
    for name in NAMES {
        match std::fs::read_to_string(directory.join(name)) {
            Ok(text) => drop(found.insert(name.to_string(), text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether one authority may follow another while connections are open: the roots of one hold those of the other.
/// Otherwise proxies with certificates of the one would refuse those of the other.
pub fn may_follow(old: &Authority, new: &Authority) -> bool {
    let (old, new) = (old.roots(), new.roots());
    old.iter().all(|root| new.contains(root)) || new.iter().all(|root| old.contains(root))
}
