use super::*;

fn file(name: &str, text: &str) -> (String, Vec<u8>) {
    (name.to_owned(), text.as_bytes().to_vec())
}

const BRIDGE: &str =
    r#"{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"bridge"},{"type":"istio-cni","x":1}]}"#;

#[test]
fn the_first_valid_file_by_name_is_chosen() {
    let list = select(vec![
        file("20-b.conflist", BRIDGE),
        file("10-empty.conflist", r#"{"name":"e","plugins":[]}"#),
        file("05-broken.json", "{"),
        file("00-notes.txt", BRIDGE),
        file("30-c.conf", r#"{"name":"c","type":"ptp"}"#),
    ])
    .unwrap();
    assert_eq!((list.name.as_str(), list.plugins.len()), ("b", 2));
}

#[test]
fn a_single_plugin_is_a_list_of_one() {
    let list = select(vec![file("c.conf", r#"{"name":"c","cniVersion":"0.4.0","type":"ptp"}"#)]).unwrap();
    assert_eq!((list.version.as_str(), list.plugin(0)), ("0.4.0", "ptp"));
}

#[test]
fn an_unusable_directory_says_why() {
    let why = select(vec![file("10-empty.conflist", r#"{"name":"e","plugins":[]}"#)]).unwrap_err();
    assert_eq!(why.as_deref(), Some("10-empty.conflist: no plugins"));
    assert_eq!(select(vec![]).unwrap_err(), None);
}

#[test]
fn a_plugin_cannot_name_a_path() {
    assert!(NetworkList::parse("x.conf", br#"{"name":"x","type":"../../bin/sh"}"#).is_err());
}

#[test]
fn a_plugin_gets_name_version_and_the_result_before_it() {
    let list = NetworkList::parse("b.conflist", BRIDGE.as_bytes()).unwrap();
    let input = list.input(1, Some(&json!({"ips": []})));
    assert_eq!(
        input,
        json!({"type":"istio-cni","x":1,"name":"b","cniVersion":"1.0.0","prevResult":{"ips":[]}})
    );
}

#[test]
fn the_list_a_node_starts_with_is_valid() {
    let text = default_list(&"10.244.1.0/24".parse().unwrap());
    let list = NetworkList::parse("10-ambit-lab.conflist", text.as_bytes()).unwrap();
    assert_eq!(list.plugin(0), "bridge");
}

#[test]
fn addresses_come_without_their_prefix() {
    let result = json!({"ips":[{"address":"10.244.1.5/24","gateway":"10.244.1.1"},{"address":"nonsense"}]});
    assert_eq!(addresses(&result), ["10.244.1.5".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_complaint_is_what_the_plugin_said() {
    assert_eq!(complaint(br#"{"code":7,"msg":"no proxy","details":"socket"}"#, b""), "no proxy; socket");
    assert_eq!(complaint(b"", b"exec format error\n"), "exec format error");
    assert_eq!(complaint(b"", b""), "it said nothing");
}
