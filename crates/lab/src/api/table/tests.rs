use serde_json::json;

use super::age::duration;
use super::*;

#[test]
fn ages_read_as_kubectl_writes_them() {
    for (seconds, want) in [
        (-5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (9 * 3600, "9h"),
        (2 * 86_400, "2d"),
        (2 * 86_400 + 3600, "2d1h"),
        (30 * 86_400, "30d"),
        (800 * 86_400, "2y70d"),
    ] {
        assert_eq!(duration(seconds), want, "{seconds}");
    }
}

#[test]
fn printer_columns_find_fields_elements_and_conditions() {
    let object = json!({
        "spec": {"host": "a", "ports": [1, 2]}, "metadata": {"labels": {"a.b/c": "x"}},
        "status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Done", "status": "True"}]},
    });
    for (path, want) in [
        (".spec.host", json!("a")),
        (".spec.ports[1]", json!(2)),
        (".spec.ports[-1]", json!(2)),
        (".spec.ports[*]", json!(1)),
        (r".metadata.labels.a\.b/c", json!("x")),
        (".metadata.labels['a.b/c']", json!("x")),
        (r#".status.conditions[?(@.type=="Done")].status"#, json!("True")),
        ("{.status.conditions[?(@.type=='Ready')].status}", json!("False")),
    ] {
        assert_eq!(jsonpath::find(&object, path), Some(want), "{path}");
    }
    for nothing in [".spec.gone", ".spec.ports[9]", ".spec.ports[", "[", ".", "spec", ".spec.ports[?(x)]"] {
        assert_eq!(jsonpath::find(&object, nothing), None, "{nothing}");
    }
}

#[test]
fn every_row_has_a_cell_for_every_column() {
    use crate::api::registry::Registry;
    let registry = Registry::new(std::iter::empty());
    for kind in registry.kinds() {
        let table = of(kind, [&json!({"metadata": {"name": "x"}})].into_iter(), Include::None, true);
        let (columns, cells) = (array_at(&table, "/columnDefinitions"), array_at(&table, "/rows/0/cells"));
        assert_eq!(columns.len(), cells.len(), "{}", kind.resource);
    }
}

#[test]
fn a_pod_is_described_by_what_its_containers_do() {
    let registry = crate::api::registry::Registry::new(std::iter::empty());
    let kind = registry.find("", "v1", "pods").expect("built in");
    let status = |pod: Value| {
        let table = of(&kind, [&pod].into_iter(), Include::None, true);
        str_at(&table, "/rows/0/cells/2").to_owned()
    };
    let container =
        |state: Value| json!({"status": {"phase": "Running", "containerStatuses": [{"state": state}]}});
    assert_eq!(status(container(json!({"running": {}}))), "Running");
    assert_eq!(status(container(json!({"waiting": {"reason": "CrashLoopBackOff"}}))), "CrashLoopBackOff");
    assert_eq!(status(container(json!({"terminated": {"exitCode": 3}}))), "ExitCode:3");
    let leaving =
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
    assert_eq!(status(leaving), "Terminating");
    let init = json!({"spec": {"initContainers": [{}, {}]}, "status": {"phase": "Pending", "initContainerStatuses": [
        {"state": {"terminated": {"exitCode": 0}}}, {"state": {"running": {}}},
    ]}});
    assert_eq!(status(init), "Init:1/2");
}
