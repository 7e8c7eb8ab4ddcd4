//! Management as the command line does it, over the real socket.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use config::settings::proxy::Plan;
use config::tier::Tier;
use config::token::{Token, TokenKind};
use policy::identity::Scope;
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::client::{AdminClient, ClientError};
use super::server::AdminSocket;
use super::words::{Invite, InviteOrder, KeyMade, KeyOrder, KeyView, NodeNow, NodeView, Status};
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
                    seen_secs_ago: 1,
                    tiers: vec!["fast ready tiny-fast 0/4".into()],
                }]
            }),
            failing: Box::new(|| Box::pin(async { vec!["tiers"] })),
            key_revoked: Box::new(move |id| keys.lock().unwrap().push(id.to_string())),
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
        let task = tokio::spawn(socket.serve(Arc::new(operations), stop.clone()));
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
        };
        self.store.put_node(&node).await.unwrap();
    }
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
    let made: KeyMade = client.post("/v1/keys", &wanted).await.unwrap();
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

    let listed: Vec<KeyView> = client.get("/v1/keys").await.unwrap();
    assert_eq!(listed, [made.record]);
    let file = std::fs::read(desk.folder.path().join("store.redb")).unwrap();
    let secret = token.secret().expose().as_bytes();
    assert!(
        !file.windows(secret.len()).any(|bytes| bytes == secret),
        "the secret is on disk"
    );

    let gone: KeyView = client.post("/v1/keys/revoke", &made.key).await.unwrap();
    assert!(gone.revoked_unix.is_some(), "a whole key names itself too");
    assert_eq!(*desk.revoked.lock().unwrap(), [token.id()]);
    let status: Status = client.get("/v1/status").await.unwrap();
    assert_eq!((status.keys, status.store.as_str()), (0, "ok"));
    assert_eq!(status.failing, ["tiers"]);
}

#[tokio::test]
async fn an_administrators_key_may_everything() {
    let desk = Desk::open().await;
    let mut wanted = order("root");
    wanted.admin = true;
    let made: KeyMade = desk.client().await.post("/v1/keys", &wanted).await.unwrap();
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
        .post("/v1/invites", &wanted)
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
    let nodes: Vec<NodeView> = client.get("/v1/nodes").await.unwrap();
    assert!(nodes[0].now.is_some() && nodes[1].now.is_none());
    let ambiguous = client.post::<NodeView>("/v1/nodes/revoke", &"attic").await;
    assert!(
        ambiguous
            .unwrap_err()
            .to_string()
            .contains("2 nodes are called attic")
    );
    for name in ["node_2", "attic", "den"] {
        let gone: NodeView = client.post("/v1/nodes/revoke", &name).await.unwrap();
        assert!(gone.revoked_unix.is_some());
    }
    assert_eq!(
        *desk.revoked.lock().unwrap(),
        ["node_2", "node_3", "node_1"]
    );
    let missing = client.post::<NodeView>("/v1/nodes/revoke", &"cellar").await;
    assert!(missing.unwrap_err().to_string().contains("no node cellar"));
}

#[tokio::test]
async fn senseless_orders_are_refused_with_a_reason() {
    let desk = Desk::open().await;
    let mut client = desk.client().await;
    let keys = [
        (json!({"name": ""}), "1 to 64 characters"),
        (json!({"name": "a\u{1b}[2J"}), "control characters"),
        (json!({"name": "x".repeat(65)}), "1 to 64 characters"),
        (json!({"name": "a", "expires_secs": 0}), "a life of 0 s"),
        (json!({"name": "a", "expires_secs": u64::MAX}), "a life of"),
        (
            json!({"name": "a", "scopes": ["root"]}),
            "the order is wrong",
        ),
        (json!({"name": "a", "colour": 1}), "the order is wrong"),
        (json!({"name": "a", "models": vec!["m"; 65]}), "65 models"),
        (json!("a"), "the order is wrong"),
    ];
    for (order, why) in keys {
        let error = client
            .post::<KeyMade>("/v1/keys", &order)
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
            client.post::<Invite>("/v1/invites", &order).await.is_err(),
            "{order}"
        );
    }
    for key in ["", "no such key!", "../../etc/passwd"] {
        assert!(
            client
                .post::<KeyView>("/v1/keys/revoke", &key)
                .await
                .is_err(),
            "{key}"
        );
    }
    let big = "x".repeat(100_000);
    assert!(
        client
            .post::<KeyView>("/v1/keys/revoke", &big)
            .await
            .is_err()
    );
    assert!(client.get::<Status>("/v1/elsewhere").await.is_err());
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
