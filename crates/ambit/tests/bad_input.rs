//! One sentence that says what to do, a status that is not 0, and nothing half-made left behind.

mod support;

use std::net::TcpListener;
use std::process::Output;

use support::{AMBIT, TestLab, text};

/// The command failed, with a message that says `wanted` and no trace of a crash.
fn refused(output: &Output, wanted: &str) {
    let said = text(output);
    assert!(!output.status.success(), "{said}");
    assert!(said.to_lowercase().contains(&wanted.to_lowercase()), "expected {wanted:?} in: {said}");
    assert!(!said.contains("panicked") && !said.contains("stack backtrace"), "{said}");
}

#[test]
fn an_unknown_flag_is_named() {
    let lab = TestLab::new("x");
    refused(&lab.ambit(&["lab", "up", "--nonsense"]), "--nonsense");
    refused(&lab.ambit(&["frobnicate"]), "frobnicate");
}

#[test]
fn a_kubeconfig_that_points_nowhere_is_named() {
    let lab = TestLab::new("x");
    refused(&lab.ambit(&["install", "--kubeconfig", "/nonexistent/kubeconfig"]), "/nonexistent/kubeconfig");
    refused(&lab.ambit(&["install"]), "ambit lab up");

    // A server that is not there: bind a port and close it again, so that nobody listens.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let kubeconfig = lab.home().join("dead");
    std::fs::write(
        &kubeconfig,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: x, cluster: {{server: 'https://127.0.0.1:{port}'}}}}]\n\
             contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\nusers: [{{name: x, user: {{}}}}]\n"
        ),
    )
    .unwrap();
    refused(&lab.ambit(&["install", "--kubeconfig", kubeconfig.to_str().unwrap()]), &port.to_string());
}

#[test]
fn a_wrong_value_is_answered_with_the_right_ones() {
    let lab = TestLab::new("x");
    refused(&lab.ambit(&["install", "--set", "profile=demo"]), "ambient");
    refused(&lab.ambit(&["install", "--set", "nonsense=1"]), "known are");
}

#[test]
fn a_malformed_manifest_is_refused_before_anything_is_made() {
    let lab = TestLab::new("m");
    let manifest = lab.home().join("bad.yaml");
    std::fs::write(&manifest, "apiVersion: v1\nkind: Pod\nmetadata: [this is no map\n").unwrap();
    refused(&lab.ambit(&["lab", "up", "--name", &lab.name, "-f", manifest.to_str().unwrap()]), "bad.yaml");
    refused(&lab.ambit(&["lab", "up", "--name", &lab.name, "-f", "/nonexistent.yaml"]), "/nonexistent.yaml");
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn a_port_that_is_taken_is_named_and_nothing_is_left() {
    let lab = TestLab::new("t");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(&lab.ambit(&["lab", "up", "--name", &lab.name, "--port", &port]), &port);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn without_root_it_says_so() {
    let lab = TestLab::new("r");
    // The binary may stand where only root can look: a copy for everybody.
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("ambit");
    std::fs::copy(AMBIT, &copy).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = lab
        .command("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            copy.to_str().unwrap(),
            "lab",
            "up",
            "--name",
            &lab.name,
        ])
        .output()
        .unwrap();
    refused(&output, "root");
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

/// Root, but without the capabilities that matter, as in a container that was given none.
#[test]
fn without_its_capabilities_it_says_which_it_needs() {
    let lab = TestLab::new("c");
    let bare = |args: &[&str]| {
        let mut command = lab.command("setpriv");
        command.args(["--bounding-set=-sys_admin,-net_admin", "--inh-caps=-all", AMBIT]).args(args);
        command.env("NODE_NAME", "n").output().unwrap()
    };
    refused(&bare(&["lab", "up", "--name", &lab.name]), "CAP_SYS_ADMIN");
    refused(&bare(&["proxy"]), "SYS_ADMIN");
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn the_parts_of_the_mesh_say_what_they_miss_outside_a_cluster() {
    let lab = TestLab::new("o");
    refused(&lab.ambit(&["control"]), "service account");
    refused(&lab.ambit(&["agent"]), "node-name");
    refused(&lab.ambit(&["agent", "--node-name", "n"]), "service account");
}

#[test]
fn a_lab_name_that_makes_no_interface_name_is_refused() {
    let lab = TestLab::new("x");
    refused(&lab.ambit(&["lab", "up", "--name", "Not A Name"]), "name");
    refused(&lab.ambit(&["lab", "up", "--name", "a-very-long-name-for-a-lab-that-fits-nowhere"]), "name");
}
