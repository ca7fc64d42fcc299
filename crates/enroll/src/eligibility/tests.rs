use super::*;

fn pod(change: impl FnOnce(&mut serde_json::Value)) -> Pod {
    let mut value = serde_json::json!({
        "metadata": {"name": "a", "namespace": "shop", "labels": {"app": "a"}, "annotations": {}},
        "spec": {"containers": []},
        "status": {"phase": "Running"},
    });
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn rules() -> Rules {
    Rules::new(&default_selectors(), &["kube-system".to_owned()], "ambit-system").unwrap()
}

#[test]
fn each_rule_of_eligibility_has_its_reason() {
    let ambient = labels(&[(MODE_LABEL, "ambient")]);
    let plain = Labels::new();
    let out = |reason| Verdict::Not(reason);
    let cases: Vec<(&str, Pod, &Labels, Verdict)> = vec![
        ("namespace labelled", pod(|_| ()), &ambient, Verdict::Enrol),
        ("nothing labelled", pod(|_| ()), &plain, out(Reason::NotSelected)),
        (
            "pod labelled alone",
            pod(|p| p["metadata"]["labels"][MODE_LABEL] = "ambient".into()),
            &plain,
            Verdict::Enrol,
        ),
        (
            "pod opted out of a labelled namespace",
            pod(|p| p["metadata"]["labels"][MODE_LABEL] = "none".into()),
            &ambient,
            out(Reason::OptedOut),
        ),
        (
            "a label of another value counts as nothing",
            pod(|p| p["metadata"]["labels"][MODE_LABEL] = "Ambient".into()),
            &plain,
            out(Reason::NotSelected),
        ),
        ("host network", pod(|p| p["spec"]["hostNetwork"] = true.into()), &ambient, out(Reason::HostNetwork)),
        (
            "sidecar, even with an empty status",
            pod(|p| p["metadata"]["annotations"][SIDECAR_ANNOTATION] = "".into()),
            &ambient,
            out(Reason::Sidecar),
        ),
        (
            "excluded namespace",
            pod(|p| p["metadata"]["namespace"] = "kube-system".into()),
            &ambient,
            out(Reason::ExcludedNamespace),
        ),
        (
            "a node proxy, whatever its labels",
            pod(|p| {
                p["metadata"]["namespace"] = "ambit-system".into();
                p["metadata"]["labels"] = serde_json::json!({"app": "ztunnel", MODE_LABEL: "ambient"});
            }),
            &ambient,
            out(Reason::NodeProxy),
        ),
        (
            "an application that is merely called like it",
            pod(|p| p["metadata"]["labels"]["app"] = "ztunnel".into()),
            &ambient,
            Verdict::Enrol,
        ),
        (
            "a pod of the mesh labelled none",
            pod(|p| {
                p["metadata"]["namespace"] = "ambit-system".into();
                p["metadata"]["labels"][MODE_LABEL] = "none".into();
            }),
            &ambient,
            out(Reason::OptedOut),
        ),
        ("finished", pod(|p| p["status"]["phase"] = "Succeeded".into()), &ambient, out(Reason::Finished)),
        ("failed", pod(|p| p["status"]["phase"] = "Failed".into()), &ambient, out(Reason::Finished)),
        (
            "no labels at all in a labelled namespace",
            pod(|p| p["metadata"]["labels"] = serde_json::Value::Null),
            &ambient,
            Verdict::Enrol,
        ),
    ];
    for (name, pod, namespace, expected) in cases {
        assert_eq!(judge(&rules(), &pod, namespace), expected, "{name}");
    }
}

#[test]
fn no_selector_selects_nobody_and_an_empty_one_everybody() {
    let none = Rules::new(&[], &[], "m").unwrap();
    let all = Rules::new(&[SelectorPair::default()], &[], "m").unwrap();
    assert_eq!(judge(&none, &pod(|_| ()), &Labels::new()), Verdict::Not(Reason::NotSelected));
    assert_eq!(judge(&all, &pod(|_| ()), &Labels::new()), Verdict::Enrol);
}

#[test]
fn a_namespace_is_enrolled_by_its_own_labels_only() {
    let rules = rules();
    assert!(rules.namespace_is_enrolled("shop", &labels(&[(MODE_LABEL, "ambient")])));
    assert!(!rules.namespace_is_enrolled("kube-system", &labels(&[(MODE_LABEL, "ambient")])));
    assert!(!rules.namespace_is_enrolled("shop", &Labels::new()));
}

#[test]
fn a_selector_that_cannot_be_understood_is_named() {
    let bad: Vec<SelectorPair> = serde_json::from_value(serde_json::json!([
        {}, {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}
    ]))
    .unwrap();
    assert!(Rules::new(&bad, &[], "m").unwrap_err().to_string().contains("selector 1"));
}
