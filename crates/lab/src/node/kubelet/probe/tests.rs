use super::*;
use serde_json::json;

fn probe(value: serde_json::Value) -> Probe {
    serde_json::from_value(value).unwrap()
}

fn observe(tracker: &mut Tracker, answers: &[bool]) -> Vec<Option<bool>> {
    answers.iter().map(|a| tracker.observe(*a)).collect()
}

#[test]
fn a_change_needs_as_many_answers_in_a_row_as_its_threshold() {
    let mut tracker = Tracker::new(&probe(json!({"successThreshold": 2, "failureThreshold": 3})));
    assert_eq!(observe(&mut tracker, &[true, false, true, true]), [None, None, None, Some(true)]);
    assert_eq!(observe(&mut tracker, &[false, false, true, false, false]), [None; 5]);
    assert_eq!(observe(&mut tracker, &[false, false]), [Some(false), None]);
}

#[test]
fn a_port_is_a_number_or_a_name_of_the_container() {
    let container: Container =
        serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}))
            .unwrap();
    let get = |port: serde_json::Value| super::port(&serde_json::from_value(port).unwrap(), &container);
    assert_eq!(get(json!(80)), Ok(80));
    assert_eq!(get(json!("web")), Ok(8080));
    assert_eq!(get(json!("81")), Ok(81));
    assert!(get(json!("nope")).is_err());
    assert!(get(json!(70000)).is_err());
}

#[test]
fn a_pod_that_was_never_ready_is_asked_more_often_than_its_period() {
    let period = Duration::from_secs(10);
    let mut pace = Pace::new(Kind::Readiness, period);
    let waits: Vec<_> = (0..12).map(|_| pace.next(false)).collect();
    assert!(waits[0] == EAGER && waits.is_sorted() && waits[11] == Duration::from_secs(2), "{waits:?}");
    assert_eq!(pace.next(true), period);
    assert_eq!(pace.next(false), period);
    assert_eq!(Pace::new(Kind::Liveness, period).next(false), period);
}

async fn answer(status: &'static str) -> (Result<(), String>, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let n = stream.read(&mut request).await.unwrap();
        stream
            .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok").as_bytes())
            .await
            .unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    let target = Target {
        netns: NetNs::current().unwrap(),
        ip: address.ip(),
        container: Container::default(),
        id: String::new(),
    };
    let probe = probe(json!({"httpGet": {"port": address.port(), "path": "/healthz?x=1",
        "httpHeaders": [{"name": "Host", "value": "example.org"}]}}));
    let result = ask(&probe, &target, Duration::from_secs(5)).await;
    (result, server.await.unwrap())
}

#[tokio::test]
async fn an_http_probe_asks_as_a_kubelet_does() {
    let (result, request) = answer("200 OK").await;
    assert_eq!(result, Ok(()));
    assert!(request.starts_with("GET /healthz?x=1 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("host: example.org\r\n") && request.contains("kube-probe"), "{request}");
}

#[tokio::test]
async fn an_http_status_of_400_and_above_is_a_failure() {
    assert_eq!(answer("302 Found").await.0, Ok(()));
    assert!(answer("503 Service Unavailable").await.0.unwrap_err().contains("503"));
}

#[tokio::test]
async fn a_closed_port_is_a_failure_that_names_the_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = connect(&NetNs::current().unwrap(), address).await.unwrap_err();
    assert!(error.contains(&address.to_string()), "{error}");
}
