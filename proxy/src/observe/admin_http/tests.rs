//! The loopback listener over real TCP.

use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Client;
use reqwest::header::HOST as HOST_HEADER;

use super::*;

struct Listener {
    url: String,
    broken: Arc<AtomicBool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn listener() -> Listener {
    // Another test may have been first.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let broken = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&broken);
    let metrics = Arc::new(Metrics::new());
    metrics.refresh_with(|metrics| metrics.nodes_ready(3));
    let pages = Pages {
        metrics,
        failing: Box::new(move || {
            let failing = if seen.load(Ordering::Relaxed) {
                vec!["store"]
            } else {
                Vec::new()
            };
            Box::pin(async move { failing })
        }),
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, Arc::new(pages), stop.clone()));
    Listener {
        url,
        broken,
        stop,
        task,
    }
}

#[tokio::test]
async fn metrics_are_fresh_and_typed() {
    let listener = listener().await;
    let answer = reqwest::get(format!("{}/metrics", listener.url))
        .await
        .unwrap();
    assert_eq!(answer.headers()[CONTENT_TYPE], METRICS_TYPE);
    let text = answer.text().await.unwrap();
    assert!(
        text.contains("hearth_nodes_ready 3") && text.ends_with("# EOF\n"),
        "{text}"
    );
}

#[tokio::test]
async fn readiness_names_what_fails() {
    let listener = listener().await;
    let url = format!("{}/readyz", listener.url);
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 200);
    listener.broken.store(true, Ordering::Relaxed);
    let answer = reqwest::get(&url).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.text().await.unwrap().contains("\"store\""));
    let alive = reqwest::get(format!("{}/healthz", listener.url))
        .await
        .unwrap();
    assert_eq!(alive.text().await.unwrap(), "ok");
}

#[tokio::test]
async fn other_names_verbs_and_paths_are_refused() {
    let listener = listener().await;
    let client = Client::new();
    let url = format!("{}/metrics", listener.url);
    for host in [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "192.168.1.1",
    ] {
        let answer = client
            .get(&url)
            .header(HOST_HEADER, host)
            .send()
            .await
            .unwrap();
        assert!(matches!(answer.status().as_u16(), 400 | 403), "{host}");
    }
    for host in ["localhost:9464", "LOCALHOST", "[::1]:1"] {
        let answer = client
            .get(&url)
            .header(HOST_HEADER, host)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{host}");
    }
    assert_eq!(client.post(&url).send().await.unwrap().status(), 405);
    let elsewhere = client.get(format!("{}/v1/keys", listener.url)).send().await;
    assert_eq!(elsewhere.unwrap().status(), 404);
}

#[tokio::test]
async fn it_stops_when_told() {
    let listener = listener().await;
    listener.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), listener.task)
        .await
        .unwrap()
        .unwrap();
}
