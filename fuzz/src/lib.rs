//! The fuzz targets' common half; see `targets`.

#[path = "../targets/mod.rs"]
mod targets;

pub use targets::{ALL, Target, named};

/// Puts the target's examples into the corpus, the first directory on the command line, which is read after this.
pub fn begin(name: &str) {
    let corpus = std::env::args().skip(1).map(std::path::PathBuf::from).find(|path| path.is_dir());
    let Some(corpus) = corpus else { return };
    for (number, example) in (named(name).examples)().iter().enumerate() {
        let path = corpus.join(format!("example-{number}"));
        if let Err(error) = std::fs::write(&path, example) {
            eprintln!("{}: {error}; without it the search begins from less", path.display());
        }
    }
}
