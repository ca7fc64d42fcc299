use super::*;

#[test]
fn a_sub_path_stays_inside_its_volume() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
    assert!(sub_path(dir.path(), "out", false).unwrap_err().to_string().contains("out of the volume"));
    assert!(sub_path(dir.path(), "../x", false).is_err());
    assert!(sub_path(dir.path(), "new", true).is_err());
    assert!(sub_path(dir.path(), "new/deep", false).unwrap().is_dir());
}
