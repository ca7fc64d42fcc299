use super::*;

fn of_api(node: &str, annotated: bool) -> Explanation {
    Explanation {
        agent: None,
        no_agent: Some(
            "no node agent runs on node node1 (namespace ambit-system, label app=ambit-agent)".into(),
        ),
        status: PodStatus {
            namespace: "shop".into(),
            name: "a".into(),
            uid: "u-1".into(),
            node: node.into(),
            wanted: true,
            why: "its label istio.io/dataplane-mode is ambient".into(),
            enrolled: annotated,
            ..PodStatus::default()
        },
        events: vec![Said {
            time: None,
            reason: "NotEnrolled".into(),
            note: "no node proxy is connected".into(),
        }],
    }
}

#[test]
fn without_an_agent_only_what_the_api_shows_is_said_and_nothing_of_it_as_proven() {
    assert_eq!(
        text(&of_api("node1", true)),
        "\
pod         shop/a on node node1
in the mesh its annotation says so, which is no proof
wanted      yes: its label istio.io/dataplane-mode is ambient
no agent    no node agent runs on node node1 (namespace ambit-system, label app=ambit-agent); this is what the API alone \
         shows, judged by the usual rules
event       NotEnrolled: no node proxy is connected
"
    );
    let out = text(&of_api("", false));
    assert!(out.contains("shop/a on no node yet\n"), "{out}");
    assert!(out.contains("in the mesh its annotation does not say so\n"), "{out}");
    for unseen in ["rules ", "listeners", "node proxy  ", "probes", "plaintext"] {
        assert!(!out.contains(&format!("\n{unseen}")), "{unseen}: {out}");
    }
}

#[test]
fn for_programs_what_nobody_looked_at_is_absent_and_not_false() {
    let value = json(&of_api("node1", true)).unwrap();
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    for unseen in
        ["enrolled", "carried", "rules", "listeners", "probes", "olderConnections", "firewall", "changing"]
    {
        assert!(!keys.contains(&unseen), "{unseen}: {value}");
    }
    assert_eq!((&value["annotated"], &value["wanted"]), (&true.into(), &true.into()));
    assert!(value["noAgent"].as_str().unwrap().contains("no node agent runs"), "{value}");

    let seen = Explanation { agent: Some("ambit-agent-x".into()), no_agent: None, ..of_api("node1", true) };
    let value = json(&seen).unwrap();
    assert_eq!((&value["enrolled"], &value["carried"]), (&true.into(), &false.into()));
    assert!(text(&seen).contains("does not serve it"));
}
