//! Embeds the built web UI. What is in `ui-dist/` is compiled in; without it a page that says so takes its place.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dist = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("ui-dist");
    println!("cargo:rerun-if-changed=build.rs");
    let mut files = Vec::new();
    if dist.is_dir() {
        println!("cargo:rerun-if-changed=ui-dist");
        collect(&dist, &mut files)?;
    }
    files.sort();
    let mut code = String::from("pub(super) static FILES: &[(&str, &[u8])] = &[\n");
    for file in &files {
        let name =
            file.strip_prefix(&dist)?.to_str().ok_or("a file of the UI has a name that is no UTF-8")?;
        println!("cargo:rerun-if-changed={}", file.display());
        writeln!(code, "    ({:?}, include_bytes!({:?})),", name.replace('\\', "/"), file)?;
    }
    code.push_str("];\n");
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("ui.rs"), code)?;
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() {
            collect(&path, files)?;
        } else if !hidden {
            files.push(path);
        }
    }
    Ok(())
}
