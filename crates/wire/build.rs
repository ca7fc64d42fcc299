//! Compiles the protobuf files with a compiler written in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["discovery", "workload", "authorization", "ca", "zds", "flow"]
        .map(|name| format!("proto/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["proto"])?;
    // Sorted maps: the bytes of a resource, and so its version, are the same in every replica.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
