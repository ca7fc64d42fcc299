use super::remembered::{Record, Remembered};
use super::*;

const UID: &str = "0b7e2f6a-1c9d-4e7b-9a53-9d3a1f0c2b11";
const OTHER: &str = "aaaaaaaa-1c9d-4e7b-9a53-9d3a1f0c2b11";

#[test]
fn the_pod_of_a_process_is_read_from_its_cgroup() {
    let under = UID.replace('-', "_");
    let cases = [
        (format!("0::/kubepods/burstable/pod{UID}/4f2a"), Some(UID)),
        (format!("0::/kubepods.slice/kubepods-pod{under}.slice/cri-containerd-4f2a.scope"), Some(UID)),
        (format!("0::/ambit-lab/node1/pod{UID}/c0ffee"), Some(UID)),
        (format!("12:cpu:/pod{UID}/x\n1:name=systemd:/pod{UID}/x\n0::/"), Some(UID)),
        (format!("12:cpu:/pod{UID}/x\n1:name=systemd:/pod{OTHER}/x"), None),
        (format!("0::/kubepods/pod{UID}/a/pod{OTHER}/b"), Some(UID)),
        (format!("0::/kubepods/xpod{UID}/a"), None),
        (format!("0::/kubepods/pod{UID}0/a"), None),
        ("0::/user.slice/podium.scope".to_owned(), None),
        ("0::/pod\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}".to_owned(), None),
        ("nonsense".to_owned(), None),
        (String::new(), None),
    ];
    for (text, expected) in cases {
        assert_eq!(pod_of_cgroup(&text).as_deref(), expected, "{text}");
    }
}

#[test]
fn a_command_name_cannot_forge_the_start_time() {
    let rest = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!(start_time(&format!("7 (a) 1 2 3) {rest}")), Some(22));
    assert_eq!(start_time("7 (a"), None);
}

#[tokio::test]
async fn what_is_remembered_survives_and_nonsense_counts_as_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let record = Record {
        namespace: "shop".into(),
        name: "a".into(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        path: Some("/run/netns/x".into()),
        ino: 7,
        dev: 4,
        since: Some(7),
        written_by: vec!["nftables".into()],
    };
    Remembered::load(dir.path()).put(UID, record.clone()).await.unwrap();
    let again = Remembered::load(dir.path());
    assert_eq!(again.get(UID), Some(record));
    again.remove(UID).await.unwrap();
    assert!(Remembered::load(dir.path()).all().is_empty());
    std::fs::write(dir.path().join("pods.json"), b"{\"x\":").unwrap();
    assert!(Remembered::load(dir.path()).all().is_empty());
}
