//! Writing a projected volume so that a reader sees either all of the old files or all of the new ones.
//!
//! Files lie in a directory of their own, `..data` is a link to it that is swapped by rename, and what the
//! container sees are links through `..data`: the layout that programs which watch their configuration expect.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::payload::Files;

const DATA: &str = "..data";

/// Makes `dir` show `files`; answers whether anything changed. `group` owns the files when it is given.
pub fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    let current = fs::read_link(dir.join(DATA)).ok().map(|link| dir.join(link));
    if current.as_ref().is_some_and(|at| holds(at, files)) {
        return Ok(false);
    }
    let fresh = dir.join(format!("..{}", crate::node::sandbox::random_hex(8)));
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let path = fresh.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &file.content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        if group.is_some() {
            chown(&path, None, group)?;
        }
    }
    let next = dir.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(fresh.file_name().unwrap_or_default(), &next)?;
    fs::rename(&next, dir.join(DATA))?;
    relink(dir, files)?;
    if let Some(old) = current {
        fs::remove_dir_all(old)?;
    }
    Ok(true)
}

/// Makes the visible names: a link for each first part of a path, and none for what is gone.
fn relink(dir: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        let link = dir.join(name);
        if !link.is_symlink() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    Ok(())
}

fn holds(at: &Path, files: &Files) -> bool {
    let mut seen = 0;
    let mut todo: Vec<PathBuf> = vec![at.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { return false };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                todo.push(entry.path());
            } else {
                seen += 1;
            }
        }
    }
    seen == files.len()
        && files.iter().all(|(path, file)| fs::read(at.join(path)).is_ok_and(|c| c == file.content))
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;

    fn files(of: &[(&str, &str)]) -> Files {
        of.iter()
            .map(|(p, c)| ((*p).to_owned(), File { content: c.as_bytes().to_vec(), mode: 0o640 }))
            .collect()
    }

    #[test]
    fn an_update_replaces_all_files_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = |p: &str| fs::read_to_string(dir.path().join(p)).ok();
        assert!(write(dir.path(), &files(&[("a", "1"), ("d/x", "2")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("d/x").as_deref()), (Some("1"), Some("2")));
        let before = fs::read_link(dir.path().join(DATA)).unwrap();

        assert!(write(dir.path(), &files(&[("a", "9"), ("b", "3")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("b").as_deref(), read("d/x")), (Some("9"), Some("3"), None));
        assert!(!dir.path().join(before).exists(), "the old files are gone");
        assert!(!dir.path().join("d").is_symlink());
    }

    #[test]
    fn the_same_files_are_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &files(&[("a", "1")]), None).unwrap());
        assert!(!write(dir.path(), &files(&[("a", "1")]), None).unwrap());
        assert!(write(dir.path(), &files(&[("a", "1"), ("b", "")]), None).unwrap());
    }

    #[test]
    fn permissions_are_those_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files(&[("a", "1")]), None).unwrap();
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }
}
