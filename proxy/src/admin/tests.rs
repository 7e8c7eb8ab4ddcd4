//! Management as the command line does it, over the real socket.

mod accounts;

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use config::ids::{RequestId, UserId};
use config::settings::proxy::Plan;
use config::tier::Tier;
use config::token::{Token, TokenKind};
use http::Request;
use policy::identity::Scope;
use policy::ledger::LedgerEntry;
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::client::{AdminClient, ClientError, read};
use super::server::AdminSocket;
use super::words::{
    AuditCheck, Invite, InviteOrder, KeyMade, KeyOrder, KeyView, NodeNow, NodeTunnel, NodeView,
    Page, Problem, Status, UsageView,
};
use super::*;
use crate::store::embedded::Embedded;
use crate::store::{NodeRecord, Store};

struct Desk {
    folder: TempDir,
    store: Arc<dyn Store>,
    revoked: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn tunnel() -> NodeTunnel {
    NodeTunnel {
        carrier: "udp".into(),
        address: Some("192.0.2.7:51820".into()),
        mtu: 1_420,
        back_end: Some("netns".into()),
        proxy_back_end: "netns".into(),
        handshake_age_secs: Some(12.5),
        heard_secs_ago: Some(0.25),
        round_trip_ms: Some(18.5),
        loss_percent: Some(1.5),
        received_bytes: 1_048_576,
        sent_bytes: 17,
        rejected: [("replayed".to_owned(), 2)].into(),
    }
}

impl Desk {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
        let revoked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (keys, nodes) = (Arc::clone(&revoked), Arc::clone(&revoked));
        let live = Live {
            started: Instant::now(),
            nodes: Box::new(|| {
                vec![NodeNow {
                    id: config::ids::NodeId::new("node_1"),
                    asleep: false,
                    outside: false,
                    seen_secs_ago: 1,
                    tiers: vec!["fast ready tiny-fast 0/4".into()],
                }]
            }),
            tunnel: Box::new(|id| (id.as_str() == "node_1").then(tunnel)),
            failing: Box::new(|| Box::pin(async { vec!["tiers"] })),
            key_revoked: Box::new(move |id| keys.lock().unwrap().push(id.to_string())),
            route: Box::new(|_asked| Err(policy::refusal::Refusal::Internal)),
            node_revoked: Box::new(move |id| nodes.lock().unwrap().push(id.to_string())),
        };
        let operations = Operations::new(
            Arc::clone(&store),
            "https://llm.example.org".into(),
            Some("sha256-PIN".into()),
            Some(live),
        );
        let stop = CancellationToken::new();
        let socket = AdminSocket::bind(folder.path()).await.unwrap();
        let task = tokio::spawn(socket.serve(
            Arc::new(Api::new(operations, ApiFacts::for_tests())),
            stop.clone(),
        ));
        Self {
            folder,
            store,
            revoked,
            stop,
            task,
        }
    }

    async fn client(&self) -> AdminClient {
        AdminClient::connect(self.folder.path()).await.unwrap()
    }

    async fn node(&self, id: &str, name: &str) {
        let node = NodeRecord {
            id: config::ids::NodeId::new(id),
            identity: id.into(),
            name: name.into(),
            tiers: None,
            wireguard_key: None,
            agent_version: "0.1.0".into(),
            join_token: "t".into(),
            created_unix: 100,
            registered_unix: None,
            last_seen_unix: None,
            revoked_unix: None,
            draining: false,
            pending: false,
            approved_unix: None,
            unmanaged: None,
        };
        self.store.put_node(&node).await.unwrap();
    }
}

async fn delete<T: serde::de::DeserializeOwned>(
    client: &mut AdminClient,
    path: &str,
) -> Result<T, ClientError> {
    let request = Request::delete(path).body(Bytes::new()).unwrap();
    read(&client.call(request).await?)
}

async fn ask(
    client: &mut AdminClient,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String, serde_json::Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Bytes::copy_from_slice(body.as_bytes());
    let answer = client.call(request.body(body).unwrap()).await.unwrap();
    let tag = answer
        .headers()
        .get("etag")
        .and_then(|tag| tag.to_str().ok());
    let value = serde_json::from_slice(answer.body()).unwrap_or_default();
    (
        answer.status().as_u16(),
        tag.unwrap_or_default().to_owned(),
        value,
    )
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_creation_with_a_name_happens_once() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let once = [JSON, ("idempotency-key", "first")];
    let at = ("POST", "/admin/v1/keys");
    let (status, _, first) = ask(&mut client, at, &once, r#"{"name":"a"}"#).await;
    let (_, _, again) = ask(&mut client, at, &once, r#"{"name":"a"}"#).await;
    assert_eq!(
        (status, &first),
        (201, &again),
        "the same key and the same secret"
    );
    let (status, _, other) = ask(&mut client, at, &once, r#"{"name":"b"}"#).await;
    assert_eq!(status, 409, "{other}");
    assert_eq!(desk.store.keys().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_change_must_know_what_it_changes() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let made: KeyMade = client.post("/admin/v1/keys", &order("a")).await.unwrap();
    let path = format!("/admin/v1/keys/{}", made.record.id);
    let (_, tag, _) = ask(&mut client, ("GET", &path), &[], "").await;
    let patch = r#"{"name":"b","tiers":["fast"]}"#;
    let (status, ..) = ask(&mut client, ("PATCH", &path), &[JSON], patch).await;
    assert_eq!(status, 428);
    let known = [JSON, ("if-match", tag.as_str())];
    let (status, new_tag, key) = ask(&mut client, ("PATCH", &path), &known, patch).await;
    assert_eq!((status, key["name"].as_str()), (200, Some("b")));
    let (status, _, problem) = ask(&mut client, ("PATCH", &path), &known, patch).await;
    let problem: Problem = serde_json::from_value(problem).unwrap();
    assert_eq!((status, problem.status), (412, 412));
    let known = [JSON, ("if-match", new_tag.as_str())];
    let (_, _, key) = ask(&mut client, ("PATCH", &path), &known, r#"{"tiers":null}"#).await;
    assert!(
        key["tiers"].is_null() && key["name"] == "b",
        "null takes it away, silence does not"
    );
}

#[tokio::test]
async fn lists_come_in_pages() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    for name in 0..7 {
        let made: KeyMade = client
            .post("/admin/v1/keys", &order(&format!("k{name}")))
            .await
            .unwrap();
        assert!(!made.key.is_empty());
    }
    let (mut path, mut seen) = ("/admin/v1/keys?limit=3".to_owned(), Vec::new());
    loop {
        let page: Page<KeyView> = client.get(&path).await.unwrap();
        assert!(page.data.len() <= 3);
        seen.extend(page.data.into_iter().map(|key| key.id));
        let Some(cursor) = page.next_cursor else {
            break;
        };
        path = format!("/admin/v1/keys?limit=3&cursor={cursor}");
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 7);
    for wrong in [
        "limit=0",
        "limit=x",
        "cursor=",
        "colour=1",
        "limit=1&limit=2",
    ] {
        let path = format!("/admin/v1/keys?{wrong}");
        assert_eq!(
            ask(&mut client, ("GET", &path), &[], "").await.0,
            400,
            "{wrong}"
        );
    }
    for (invented, status) in [("%21", 400), ("____", 404)] {
        let path = format!("/admin/v1/keys?cursor={invented}");
        let told = ask(&mut client, ("GET", &path), &[], "").await.0;
        assert_eq!(told, status, "no such page: {invented:?}");
    }
}

#[tokio::test]
async fn every_act_is_written_down_without_secrets() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let made: KeyMade = client.post("/admin/v1/keys", &order("a")).await.unwrap();
    let path = format!("/admin/v1/keys/{}/rotate", made.record.id);
    let rotated: KeyMade = client.post(&path, &json!({"grace_secs": 0})).await.unwrap();
    assert_ne!(made.key, rotated.key);
    let lines = desk.store.audit(0, 10).await.unwrap();
    let acts: Vec<&str> = lines.iter().map(|line| line.act.action.as_str()).collect();
    assert_eq!(acts, ["key.create", "key.rotate"]);
    assert!(lines[0].act.actor.starts_with("uid:") && lines[0].act.from == "admin.sock");
    let text = serde_json::to_string(&lines).unwrap();
    for key in [&made.key, &rotated.key] {
        let secret = Token::parse(key).unwrap();
        assert!(!text.contains(secret.secret().expose().as_str()));
    }
    assert!(!text.contains("secret_hash"));
    let check: AuditCheck = client.get("/admin/v1/audit/verify").await.unwrap();
    assert!(check.is_whole && check.lines == 2 && check.head == lines[1].hash);
}

#[tokio::test]
async fn usage_is_summed_by_person_key_and_model_and_exported() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let entry = |id: u8, user: &str, model: &str| LedgerEntry {
        at_unix_ms: 1_795_229_100_000,
        day: "2026-11-21".into(),
        model: Some(model.into()),
        tokens_in: 10,
        tokens_out: 5,
        micros: 3,
        ..LedgerEntry::new(
            format!("{id:032}"),
            RequestId::new("req_1"),
            UserId::new(user),
        )
    };
    let entries = [
        entry(1, "ada", "tiny"),
        entry(2, "ada", "large"),
        entry(3, "bob", "tiny"),
    ];
    desk.store.append(&entries).await.unwrap();
    let days = "from=2026-11-20&to=2026-11-21";
    let all: UsageView = client
        .get(&format!("/admin/v1/usage?{days}"))
        .await
        .unwrap();
    assert_eq!(
        (all.data.len(), all.totals.requests, all.totals.tokens_in),
        (2, 3, 30)
    );
    let path = format!("/admin/v1/usage?{days}&by=model&user=ada&per=total");
    let ada: UsageView = client.get(&path).await.unwrap();
    let models: Vec<_> = ada
        .data
        .iter()
        .map(|row| row.value.as_deref().unwrap())
        .collect();
    assert_eq!((models, ada.totals.tokens_out), (vec!["large", "tiny"], 10));
    let path = format!("/admin/v1/usage?{days}&by=user&per=month");
    let people: UsageView = client.get(&path).await.unwrap();
    assert_eq!(people.data[0].period, "2026-11");
    let path = format!("/admin/v1/usage/records?{days}&user=ada&limit=1");
    let page: Page<LedgerEntry> = client.get(&path).await.unwrap();
    assert_eq!(page.data, entries[..1]);
    let path = format!("{path}&cursor={}", page.next_cursor.unwrap());
    let page: Page<LedgerEntry> = client.get(&path).await.unwrap();
    assert_eq!(page.data, entries[1..2]);
    let gone = desk
        .store
        .forget_usage(&config::ids::Tenant::default(), &UserId::new("ada"))
        .await;
    assert_eq!(
        gone.unwrap(),
        2 + 2 + 4,
        "entries, sums of the person, sums with a model"
    );
    let all: UsageView = client
        .get(&format!("/admin/v1/usage?{days}"))
        .await
        .unwrap();
    assert_eq!(all.totals.requests, 3, "the sums of everybody stay");
}

#[tokio::test]
async fn old_usage_goes_and_what_is_kept_stays() {
    let desk = Desk::open().await;
    let entry = |day: &str, at: u64| LedgerEntry {
        at_unix_ms: at,
        day: day.into(),
        ..LedgerEntry::new(
            format!("{at:032}"),
            RequestId::new("req_1"),
            UserId::new("ada"),
        )
    };
    let entries = [
        entry("2025-09-30", 100),
        entry("2025-10-16", 200),
        entry("2025-10-17", 300),
    ];
    desk.store.append(&entries).await.unwrap();
    let keep = crate::store::ledger::Keep {
        records_from_ms: 300,
        sums_from_day: "2025-10-17".into(),
    };
    // Two entries; all and user of two days, and of September.
    assert_eq!(desk.store.prune(&keep).await.unwrap(), 2 + 4 + 2);
    assert_eq!(desk.store.prune(&keep).await.unwrap(), 0);
    let everything = crate::store::ledger::RecordQuery::of(config::ids::Tenant::default());
    let left = desk.store.records(&everything).await.unwrap();
    assert_eq!(left.entries, entries[2..]);
}

fn order(name: &str) -> KeyOrder {
    KeyOrder {
        name: name.into(),
        ..KeyOrder::default()
    }
}

#[tokio::test]
async fn a_key_is_made_listed_without_its_secret_and_revoked() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let mut wanted = order("laptop");
    wanted.tiers = Some(vec![Tier::Fast]);
    wanted.expires_secs = Some(60);
    wanted.plan = Plan {
        concurrent: Some(2),
        ..Plan::default()
    };
    let made: KeyMade = client.post("/admin/v1/keys", &wanted).await.unwrap();
    let token = Token::parse(&made.key).unwrap();
    assert_eq!(token.kind(), TokenKind::Client);
    assert_eq!(
        made.record.owner.as_str(),
        "laptop",
        "the name is the owner where none is named"
    );
    assert_eq!(made.record.scopes, Scope::CLIENT);
    assert_eq!(
        made.record.expires_unix,
        Some(made.record.created_unix + 60)
    );

    let listed: Page<KeyView> = client.get("/admin/v1/keys").await.unwrap();
    assert_eq!(listed.data, [made.record]);
    let file = std::fs::read(desk.folder.path().join("store.redb")).unwrap();
    let secret = token.secret().expose().as_bytes();
    assert!(
        !file.windows(secret.len()).any(|bytes| bytes == secret),
        "the secret is on disk"
    );

    let path = format!("/admin/v1/keys/{}", made.key);
    let gone: KeyView = delete(&mut client, &path).await.unwrap();
    assert!(gone.revoked_unix.is_some(), "a whole key names itself too");
    assert_eq!(*desk.revoked.lock().unwrap(), [token.id()]);
    let status: Status = client.get("/admin/v1/status").await.unwrap();
    assert_eq!((status.keys, status.store.as_str()), (0, "ok"));
    assert_eq!(status.failing, ["tiers"]);
}

#[tokio::test]
async fn an_administrators_key_may_everything() {
    let desk = Desk::open().await;
    let mut wanted = order("root");
    wanted.admin = true;
    let made: KeyMade = desk
        .client()
        .await
        .post("/admin/v1/keys", &wanted)
        .await
        .unwrap();
    assert!(made.key.starts_with("hearth_ak_"));
    assert_eq!(made.record.scopes, Scope::ALL);
}

#[tokio::test]
async fn a_join_link_holds_address_token_and_pin() {
    let desk = Desk::open().await;
    let wanted = InviteOrder {
        uses: Some(3),
        expires_secs: Some(600),
        ..InviteOrder::default()
    };
    let invite: Invite = desk
        .client()
        .await
        .post("/admin/v1/join-tokens", &wanted)
        .await
        .unwrap();
    let token = Token::parse(&invite.token).unwrap();
    assert_eq!(token.kind(), TokenKind::Join);
    let want = format!(
        "https://llm.example.org/join#{}&pin=sha256-PIN",
        invite.token
    );
    assert_eq!(invite.link, want);
    let kept = desk.store.join_tokens().await.unwrap();
    assert_eq!((kept[0].id.as_str(), kept[0].uses_max), (token.id(), 3));
    assert_eq!(kept[0].expires_unix, kept[0].created_unix + 600);
}

#[tokio::test]
async fn nodes_are_listed_and_cut_off_by_id_or_by_a_name_that_one_has() {
    let desk = Desk::open().await;
    for (id, name) in [("node_1", "den"), ("node_2", "attic"), ("node_3", "attic")] {
        desk.node(id, name).await;
    }
    let mut client = desk.client().await;
    let nodes: Page<NodeView> = client.get("/admin/v1/nodes").await.unwrap();
    let nodes = nodes.data;
    assert!(nodes[0].now.is_some() && nodes[1].now.is_none());
    assert_eq!(
        (&nodes[0].tunnel, &nodes[1].tunnel),
        (&Some(tunnel()), &None)
    );
    let ambiguous = delete::<NodeView>(&mut client, "/admin/v1/nodes/attic").await;
    assert!(
        ambiguous
            .unwrap_err()
            .to_string()
            .contains("2 nodes are called attic")
    );
    for name in ["node_2", "attic", "den"] {
        let path = format!("/admin/v1/nodes/{name}");
        let gone: NodeView = delete(&mut client, &path).await.unwrap();
        assert!(gone.revoked_unix.is_some());
    }
    assert_eq!(
        *desk.revoked.lock().unwrap(),
        ["node_2", "node_3", "node_1"]
    );
    let missing = delete::<NodeView>(&mut client, "/admin/v1/nodes/cellar").await;
    assert!(missing.unwrap_err().to_string().contains("no node cellar"));
}

#[tokio::test]
async fn senseless_orders_are_refused_with_a_reason() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let keys = [
        (json!({"name": ""}), "has 0 characters: from 1 to 64"),
        (json!({"name": "a\u{1b}[2J"}), "control characters"),
        (
            json!({"name": "x".repeat(65)}),
            "has 65 characters: from 1 to 64",
        ),
        (
            json!({"name": "a", "expires_secs": 0}),
            "expires_secs is 0: from 1 to",
        ),
        (
            json!({"name": "a", "expires_secs": u64::MAX}),
            "expires_secs is",
        ),
        (
            json!({"name": "a", "scopes": ["root"]}),
            "the order is wrong",
        ),
        (json!({"name": "a", "colour": 1}), "the order is wrong"),
        (
            json!({"name": "a", "models": vec!["m"; 65]}),
            "models has 65 entries: 64 at most",
        ),
        (json!("a"), "the order is wrong"),
    ];
    for (order, why) in keys {
        let error = client
            .post::<KeyMade>("/admin/v1/keys", &order)
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains(why), "{error} instead of {why}");
    }
    for order in [
        json!({"uses": 0}),
        json!({"uses": 1_001}),
        json!({"expires_secs": 9_999_999}),
    ] {
        assert!(
            client
                .post::<Invite>("/admin/v1/join-tokens", &order)
                .await
                .is_err(),
            "{order}"
        );
    }
    for key in ["no%20such%20key!", "..%2F..%2Fetc", "zzzzzzzzzz"] {
        let path = format!("/admin/v1/keys/{key}");
        assert!(
            delete::<KeyView>(&mut client, &path).await.is_err(),
            "{key}"
        );
    }
    let big = "x".repeat(100_000);
    assert!(
        client
            .post::<KeyMade>("/admin/v1/keys", &big)
            .await
            .is_err()
    );
    assert!(client.get::<Status>("/admin/v1/elsewhere").await.is_err());
    assert!(desk.store.keys().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_for_one_proxy() {
    let desk = Desk::open().await;
    let path = desk.folder.path().join(SOCKET_NAME);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        AdminSocket::bind(desk.folder.path()).await.is_err(),
        "two proxies share a socket"
    );
    desk.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), desk.task)
        .await
        .unwrap()
        .unwrap();
    assert!(!path.exists(), "a stopped proxy leaves its socket");
    let dialled = AdminClient::connect(desk.folder.path()).await;
    assert!(matches!(dialled, Err(ClientError::NotRunning(_))));
}

#[tokio::test]
async fn a_socket_left_by_a_crash_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SOCKET_NAME);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let dialled = AdminClient::connect(folder.path()).await;
    assert!(matches!(dialled, Err(ClientError::NotRunning(_))));
    AdminSocket::bind(folder.path()).await.unwrap();
}
