//! `hostPath` volumes: a node's own paths can be written, whatever else is the host's can only be read.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::node::runtime::bundle::tidy;

/// Directories that are private to a node.
const OWN: [&str; 7] = ["/run", "/etc", "/opt", "/var", "/proc", "/sys", "/dev"];

/// Whether a path belongs to the node alone.
pub fn is_own(path: &str) -> bool {
    let path = tidy(path);
    OWN.iter().any(|own| Path::new(&path).starts_with(own))
}

/// Checks a path against the type a pod asks for, and makes it where the type says so.
pub fn prepare(path: &str, kind: &str) -> Result<(PathBuf, bool), String> {
    let own = is_own(path);
    let at = PathBuf::from(tidy(path));
    let make_directory = |at: &Path| {
        if own {
            fs::create_dir_all(at).map_err(|e| format!("hostPath {path}: cannot be made: {e}"))
        } else {
            Err(format!("hostPath {path} does not exist, and the lab changes nothing of the host there"))
        }
    };
    let meta = fs::metadata(&at).ok();
    let is = |what: &str, fits: bool| {
        if fits { Ok(()) } else { Err(format!("hostPath {path} is not a {what}")) }
    };
    let Some(meta) = meta else {
        match kind {
            "" | "DirectoryOrCreate" => make_directory(&at)?,
            "FileOrCreate" if own => {
                fs::File::create(&at).map_err(|e| format!("hostPath {path}: cannot be made: {e}"))?;
            }
            _ => return Err(format!("hostPath {path} does not exist (type {kind:?})")),
        }
        return Ok((at, !own));
    };
    match kind {
        "Directory" | "DirectoryOrCreate" => is("directory", meta.is_dir())?,
        "File" | "FileOrCreate" => is("file", meta.is_file())?,
        "Socket" => is("socket", meta.file_type().is_socket())?,
        "CharDevice" => is("character device", meta.file_type().is_char_device())?,
        "BlockDevice" => is("block device", meta.file_type().is_block_device())?,
        _ => {}
    }
    Ok((at, !own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_paths_can_be_written() {
        for path in ["/run/netns", "/var/run/netns", "/etc/cni/net.d", "/opt/cni/bin", "/proc", "/var/lib/x"]
        {
            assert!(is_own(path), "{path}");
        }
        for path in ["/", "/usr/bin", "/home/x", "/var/../usr", "/runner"] {
            assert!(!is_own(path), "{path}");
        }
    }

    #[test]
    fn nothing_is_made_on_the_host() {
        let error = prepare("/usr/ambit-never-there", "DirectoryOrCreate").unwrap_err();
        assert!(error.contains("changes nothing of the host"), "{error}");
        assert!(!Path::new("/usr/ambit-never-there").exists());
    }

    #[test]
    fn the_type_is_checked() {
        assert_eq!(prepare("/usr", "Directory").unwrap(), (PathBuf::from("/usr"), true));
        assert!(prepare("/usr", "File").unwrap_err().contains("not a file"));
        assert!(prepare("/dev/null", "CharDevice").is_ok());
    }
}
