//! The whole proxy in one process: real TLS, real store, real UDP. Stories with real nodes are told elsewhere.

use std::path::Path;
use std::time::Duration;

use config::settings::load::{Machine, Outside, parse_proxy};
use config::settings::proxy::Settings;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::admin::client::AdminClient;
use crate::admin::words::KeyMade;

fn settings(state_dir: &Path) -> Settings {
    read(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nadmin_listen = \"off\"\nstate_dir = {state_dir:?}\n\
         [tunnel]\nlisten = \"127.0.0.1:0\"\n"
    ))
}

fn read(text: &str) -> Settings {
    let outside = Outside {
        variables: std::collections::BTreeMap::new(),
        read: &|_| Err(std::io::ErrorKind::NotFound.into()),
        machine: Machine::this(),
    };
    parse_proxy("test", text, &outside).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A running proxy and a client that trusts it.
struct Running {
    url: String,
    client: reqwest::Client,
    phase: watch::Sender<Phase>,
    run: JoinHandle<Result<Drained, AppError>>,
}

impl Running {
    async fn start(state_dir: &Path) -> Self {
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let app = App::start(settings(state_dir)).await.unwrap();
        let url = format!("https://{}", app.addresses()[0]);
        let phase = app.phase();
        let client = reqwest::Client::builder().danger_accept_invalid_certs(true);
        Self {
            url,
            client: client.build().unwrap(),
            phase,
            run: tokio::spawn(app.run()),
        }
    }

    async fn get(&self, path: &str, key: Option<&str>) -> (u16, String) {
        let request = self.client.get(format!("{}{path}", self.url));
        let request = match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn stop(self) -> Drained {
        self.phase.send_replace(Phase::Draining);
        let run = timeout(Duration::from_secs(10), self.run);
        run.await
            .expect("the proxy does not stop")
            .unwrap()
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_starts_serves_manages_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Running::start(folder.path()).await;
    assert_eq!(proxy.get("/healthz", None).await, (200, "ok".to_owned()));
    assert_eq!(
        proxy.get("/readyz", None).await.0,
        503,
        "no node has joined yet"
    );
    assert_eq!(proxy.get("/v1/models", None).await.0, 401);

    let mut admin = AdminClient::connect(folder.path()).await.unwrap();
    let made: KeyMade = admin
        .post("/admin/v1/keys", &json!({"name": "ada"}))
        .await
        .unwrap();
    let (status, models) = proxy.get("/v1/models", Some(&made.key)).await;
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("auto")));
    let path = format!("/admin/v1/keys/{}", made.record.id);
    let revoke = http::Request::delete(path)
        .body(bytes::Bytes::new())
        .unwrap();
    assert_eq!(admin.call(revoke).await.unwrap().status(), 200);
    assert_eq!(
        proxy.get("/v1/models", Some(&made.key)).await.0,
        401,
        "revoked keys end at once"
    );
    drop(admin);
    assert_eq!(proxy.stop().await.cut, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_proxy_keeps_its_keys_and_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let facts = async || {
        let app = App::start(settings(folder.path())).await.unwrap();
        let facts = (app.pin().unwrap(), app.tunnel.public_key());
        let phase = app.phase();
        let run = tokio::spawn(app.run());
        phase.send_replace(Phase::Stopping);
        run.await.unwrap().unwrap();
        facts
    };
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    assert_eq!(
        facts().await,
        facts().await,
        "nodes pin the one and dial the other"
    );
}

#[tokio::test]
async fn nodes_of_other_proxies_hear_of_this_one_only_under_an_address_that_leads_here() {
    let redis = "[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1\"\n";
    for (server, announced) in [
        ("", None),
        ("listen = [\"[::]:443\"]", None),
        ("listen = [\"127.0.0.1:443\"]", Some("https://127.0.0.1")),
        (
            "public_url = \"https://llm.example.org\"",
            Some("https://llm.example.org"),
        ),
    ] {
        let hubs = Hubs::default();
        let settings = read(&format!("[server]\n{server}\n{redis}"));
        introduce(&hubs, &settings, None);
        let named = hubs.list(tokio::time::Instant::now());
        let urls: Vec<&str> = named.iter().map(|place| place.url.as_str()).collect();
        assert_eq!(urls, Vec::from_iter(announced), "{server:?}");
    }
}
