use super::*;

struct Running {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn start(name: &str, calls: Vec<http::Uri>) -> Running {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let config = Config { name: name.into(), port: address.port(), calls, every: Duration::from_millis(5) };
    let task = tokio::spawn(serve(config, listener, stop.clone()));
    Running { address, stop, task }
}

impl Running {
    async fn get(&self, path: &str) -> String {
        let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{}{path}", self.address).parse().unwrap();
        let body = client.get(uri).await.unwrap().into_body().collect().await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn it_answers_and_its_metrics_carry_a_line_that_is_recognised_anywhere() {
    let app = start("productpage", Vec::new()).await;
    assert!(app.get("/metrics").await.contains("app_secret_orders_total{service=\"productpage\"} 1\n"));
    assert_eq!(app.get("/").await, "productpage answered request 1\n");
    assert_eq!(app.get("/healthz").await, "ok\n");
    let metrics = app.get("/metrics").await;
    assert!(metrics.contains("app_requests_total{service=\"productpage\"} 1\n"), "{metrics}");
    app.end().await;
}

#[tokio::test]
async fn it_calls_the_others_and_counts_how_that_went() {
    let callee = start("details", Vec::new()).await;
    let unused = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let nowhere = unused.local_addr().unwrap();
    drop(unused);
    let uri = |address: std::net::SocketAddr| format!("http://{address}/").parse::<http::Uri>().unwrap();
    let caller = start("productpage", vec![uri(callee.address), uri(nowhere)]).await;
    let wanted = [format!("{}\",result=\"ok\"", callee.address), format!("{nowhere}\",result=\"failed\"")];
    let seen = async {
        loop {
            let metrics = caller.get("/metrics").await;
            if wanted.iter().all(|wanted| metrics.contains(wanted)) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap();
    caller.end().await;
    callee.end().await;
}

#[test]
fn names_cannot_break_the_format() {
    let metrics = Metrics::new("a\"b\\c\nd");
    assert!(metrics.to_string().contains("{service=\"a\\\"b\\\\c\\nd\"}"));
}
