use serde_json::json;

use super::*;

fn selects(labels: &str, fields: &str) -> bool {
    let pod = json!({
        "metadata": {"name": "a", "namespace": "n", "labels": {"app": "web", "tier": "3", "example.com/x": ""}},
        "spec": {"nodeName": "one", "hostNetwork": true},
    });
    Selector::parse(labels, fields).expect("parses").matches(&pod)
}

#[test]
fn label_selectors_mean_what_kubectl_means() {
    for yes in [
        "",
        "app=web",
        "app==web",
        "app!=db",
        "app in (db, web)",
        "app notin (db)",
        "app",
        "!gone",
        "gone!=x",
        "app=web,tier>2",
        "tier<4",
        "example.com/x=",
        "gone notin (a,b),app in (web)",
    ] {
        assert!(selects(yes, ""), "{yes}");
    }
    for no in [
        "app=db",
        "app!=web",
        "!app",
        "gone",
        "tier>3",
        "tier<3",
        "app notin (web)",
        "gone=",
        "app=web,tier=4",
    ] {
        assert!(!selects(no, ""), "{no}");
    }
}

#[test]
fn field_selectors_read_dotted_paths_and_take_missing_as_empty() {
    for yes in [
        "metadata.name=a",
        "spec.nodeName==one",
        "spec.nodeName!=two",
        "status.phase=",
        "spec.hostNetwork=true",
    ] {
        assert!(selects("", yes), "{yes}");
    }
    assert!(!selects("", "metadata.name=a,spec.nodeName=two"));
}

#[test]
fn nonsense_is_a_bad_request() {
    for labels in ["a b=c(", "app in web", "a in (b", "=x", "a=b=c", "a>x", "!"] {
        assert_eq!(Selector::parse(labels, "").expect_err(labels).code, 400, "{labels}");
    }
    assert_eq!(Selector::parse("", "nonsense").expect_err("no operator").code, 400);
}
