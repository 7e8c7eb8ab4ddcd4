//! A node's whole life against a real tunnel over loopback UDP: enrol, register, report, serve, leave.

mod home;
mod hub;
mod regressions;

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::tier::Tier::{Fast, Heavy};
use config::token::{Token, TokenKind};
use config::wire::node::{
    CarrierProof, EnrollReply, HUB_ADDRESS, RegisterReply, VERSION, carrier_message, enroll_message,
};
use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::kem::Asking;
use tunnel::{PrivateKey, Tunnel};

use self::home::{Home, code, ready, report};
pub(crate) use self::hub::routing;
use self::hub::{Hub, NOW_MS, PATIENCE, SECRETS, facts};
use super::endpoints::{Endpoints, Heard};
use super::members::Members;
use super::peers::{HubKeys, Peers, Rooms};
use super::register::{Desk, NodeReply};
use super::upstream::{Fault, Upstream};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_reports_serves_and_is_thrown_out() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let token = hub.invite(None).await;
    let (id, reply) = home.join(&hub, &token).await;
    let tunnel = home.dial(&reply).await;

    assert_eq!(
        report(&tunnel, &reply.agent_token, &ready(&id, 1, &[Fast, Heavy])).await,
        StatusCode::OK
    );
    assert_eq!(hub.ready_tiers(), [Fast, Heavy]);

    let mut answer = hub.ask(reply.address).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body.collect(100).await.unwrap(), b"{}");
    assert_eq!(
        hub.upstream.idle(reply.address),
        1,
        "the connection waits for the next request"
    );

    let node = config::ids::NodeId::new(id.as_str());
    hub.store.revoke_node(&node, 1_800_000_000).await.unwrap();
    hub.peers.sync().await.unwrap();
    assert!(hub.members.member(&node).is_none() && hub.ready_tiers().is_empty());
    assert!(
        hub.ask(reply.address).await.is_err(),
        "no way to it any more"
    );
    assert_eq!(code(&home.register(&hub, &id).await), "node_revoked");
    assert_eq!(code(&home.enroll(&hub, &token).await), "node_revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_for_itself_only() {
    let hub = Hub::start().await;
    let (home, other) = (Home::new(1), Home::new(2));
    let (id, reply) = home.join(&hub, &hub.invite(Some(vec![Fast])).await).await;
    let (other_id, _) = other.join(&hub, &hub.invite(None).await).await;
    let tunnel = home.dial(&reply).await;
    let token = &reply.agent_token;

    assert_eq!(
        report(&tunnel, "wrong", &ready(&id, 1, &[Fast])).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        report(&tunnel, token, &ready(&other_id, 1, &[Fast])).await,
        StatusCode::FORBIDDEN
    );
    assert!(hub.ready_tiers().is_empty());
    assert_eq!(
        report(&tunnel, token, &ready(&id, 1, &[Fast, Heavy])).await,
        StatusCode::OK
    );
    assert_eq!(hub.ready_tiers(), [Fast], "it was not invited for more");
    assert_eq!(
        report(&tunnel, token, &ready(&id, 1, &[Fast])).await,
        StatusCode::CONFLICT,
        "an old one again"
    );

    let thief = Home {
        wireguard: PrivateKey::from_bytes(home.wireguard.to_bytes()),
        ..Home::new(2)
    };
    assert_eq!(
        code(&thief.register(&hub, &other_id).await),
        "wireguard_key_taken"
    );
    let mirror = Home {
        wireguard: PrivateKey::from_bytes([3; 32]),
        ..Home::new(2)
    };
    assert_eq!(
        code(&mirror.register(&hub, &other_id).await),
        "wireguard_key_taken",
        "the hub's own key"
    );
    assert_eq!(code(&other.register(&hub, &id).await), "signature_invalid");
    assert_eq!(
        code(&other.register(&hub, "node_nobody").await),
        "node_unknown"
    );
}

#[tokio::test]
async fn a_join_token_lets_one_identity_in_however_often_it_asks() {
    let hub = Hub::start().await;
    let token = hub.invite(None).await;
    let home = Home::new(1);
    let first = home.enroll(&hub, &token).await;
    assert_eq!(
        (first.status, home.enroll(&hub, &token).await),
        (StatusCode::CREATED, first.clone())
    );
    assert_eq!(
        code(&Home::new(2).enroll(&hub, &token).await),
        "join_token_used"
    );
    let unknown = Token::generate(TokenKind::Join);
    assert_eq!(
        code(&Home::new(2).enroll(&hub, &unknown).await),
        "join_token_unknown"
    );
    let wrong_kind = Token::generate(TokenKind::Client);
    assert_eq!(
        code(&Home::new(2).enroll(&hub, &wrong_kind).await),
        "join_token_malformed"
    );
    let late = hub.invite(None).await;
    let reply = {
        let home = Home::new(2);
        let nonce = hub.nonce();
        let signature = home.sign(&enroll_message(late.id(), &home.identity(), &nonce));
        let request = json!({
            "version": VERSION, "token": late.reveal().expose(), "identity": home.identity(),
            "name": "attic", "nonce": nonce, "signature": signature,
        });
        hub.desk
            .enroll(request.to_string().as_bytes(), NOW_MS + 61_000)
            .await
    };
    assert_eq!(code(&reply), "nonce_expired");
}

/// The hub's side again, as a new process would build it: same key, same port, same store and file.
struct Again {
    tunnel: Tunnel,
    peers: Arc<Peers>,
    members: Arc<Members>,
    desk: Desk,
}

async fn restarted(hub: &Hub, bind: std::net::SocketAddr, file: &std::path::Path) -> Again {
    let key = PrivateKey::from_bytes([3; 32]);
    let tunnel = Tunnel::start(tunnel::Settings::new(bind, key, HUB_ADDRESS))
        .await
        .unwrap();
    let members = Arc::new(Members::default());
    let rooms = Rooms {
        upstream: Upstream::new(Arc::new(tunnel.clone()), 4),
        fleet: Arc::clone(&hub.fleet),
        members: Arc::clone(&members),
    };
    let keys = HubKeys {
        secret: [1; 32],
        public_key: tunnel.public_key().to_string(),
    };
    let peers = Peers::new(tunnel.clone(), Arc::clone(&hub.store), rooms, keys);
    let peers = Arc::new(peers.remembering(Endpoints::open(file.to_owned())));
    let store = Arc::clone(&hub.store);
    let desk = Desk::new(store, Arc::clone(&peers), &SECRETS, facts(&tunnel));
    Again {
        tunnel,
        peers,
        members,
        desk,
    }
}

async fn in_session(tunnel: &Tunnel, address: Ipv6Addr) {
    let give_up = Instant::now() + PATIENCE;
    while tunnel
        .peer_status(address)
        .is_none_or(|status| status.since_handshake.is_none() || status.since_heard.is_none())
    {
        assert!(Instant::now() < give_up, "waited in vain for a session");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_hub_calls_an_idle_node_which_registers_and_is_back_with_a_new_post_quantum_key()
 {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (id, reply) = home.join(&hub, &hub.invite(None).await).await;
    let bind = hub.tunnel.local_addr();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("endpoints.json");
    // The node has no reason to speak: no report, no stream, and a session younger than its rekey.
    let node = home.dial(&reply).await;
    in_session(&hub.tunnel, reply.address).await;
    let heard = hub.tunnel.peer_status(reply.address).unwrap();
    let heard = Heard {
        endpoint: heard.endpoint.unwrap(),
        wireguard_key: heard.public_key.to_string(),
    };
    let note = vec![(config::ids::NodeId::new(id.as_str()), Some(heard))];
    Endpoints::open(file.clone()).note(note).await;
    hub.tunnel.shutdown().await;

    let mut calls = node.calls();
    let began = Instant::now();
    let again = restarted(&hub, bind, &file).await;
    again.peers.sync().await.unwrap();
    assert!(
        again.members.all().is_empty(),
        "no key of it lies in the store"
    );
    again.peers.open();
    calls.changed().await.unwrap();
    let called = began.elapsed();
    let registered = home.register_at(&again.desk, &hub.nonce(), &id).await;
    let reply: RegisterReply = serde_json::from_slice(&registered.body).unwrap();
    node.renew_peer(home.peer(&reply), None).await.unwrap();
    in_session(&again.tunnel, reply.address).await;
    let took = began.elapsed();
    assert!(
        took <= Duration::from_millis(1500),
        "called after {called:?}, back after {took:?}"
    );
    let line = format!("called after {called:?}, back after {took:?}\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_takes_over_goes_on_with_the_keys_of_the_one_before() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (id, reply) = home.join(&hub, &hub.invite(None).await).await;
    let bind = hub.tunnel.local_addr();
    let _node = home.dial(&reply).await;
    in_session(&hub.tunnel, reply.address).await;
    let estate = hub.peers.estate("the one before".to_owned()).await;
    hub.tunnel.shutdown().await;
    let folder = tempfile::tempdir().unwrap();
    let again = restarted(&hub, bind, &folder.path().join("endpoints.json")).await;
    let before = again.peers.inherit(&estate).await;
    assert_eq!(before.as_deref(), Some("the one before"));
    in_session(&again.tunnel, reply.address).await;
    let member = again.members.at(reply.address).unwrap();
    assert_eq!(member.id.as_str(), id);
    assert_eq!(member.agent_token.expose(), &reply.agent_token);
    let sent = again.tunnel.counters();
    assert_eq!(sent.bad_mac + sent.unauthentic, 0, "{sent:?}");
    assert_eq!(again.peers.inherit(b"nonsense").await, None);
    assert_eq!(
        again.peers.inherit(b"[]").await,
        None,
        "of an earlier version"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_of_the_same_start_takes_over_without_a_cut_and_another_start_cuts() {
    let hub = Hub::start().await;
    let mut home = Home::new(1);
    let (id, reply) = home.join(&hub, &hub.invite(None).await).await;
    let node = home.dial(&reply).await;
    in_session(&hub.tunnel, reply.address).await;
    let listener = node.listen(7777).await.unwrap();
    let patience = Duration::from_secs(5);
    let stream = hub.tunnel.connect(reply.address, 7777, patience);
    let (mut near, (mut far, _)) = tokio::join!(async { stream.await.unwrap() }, async {
        listener.accept().await.unwrap()
    });
    for turn in 0..5u8 {
        home.wireguard = PrivateKey::generate();
        home.asking = Asking::new();
        let registered = home.register(&hub, &id).await;
        let again: RegisterReply = serde_json::from_slice(&registered.body).unwrap();
        assert_eq!(again.agent_token, reply.agent_token, "one token a start");
        assert_ne!(again.preshared_key, reply.preshared_key);
        let key = PrivateKey::from_bytes(home.wireguard.to_bytes());
        node.renew_peer(home.peer(&again), Some(key)).await.unwrap();
        near.write_all(&[turn; 1000]).await.unwrap();
        let mut bytes = [0; 1000];
        far.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, [turn; 1000]);
        until_key(&hub.tunnel, reply.address, home.wireguard.public_key()).await;
        far.write_all(&bytes).await.unwrap();
        near.read_exact(&mut bytes).await.unwrap();
    }
    // The agent has died and begins anew.
    home.start = format!("{:032x}", 5);
    let registered = home.register(&hub, &id).await;
    assert_eq!(registered.status, StatusCode::OK);
    let rest = near.read(&mut [0; 10]).await;
    assert!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
}

async fn until_key(tunnel: &Tunnel, address: Ipv6Addr, key: tunnel::PublicKey) {
    let give_up = Instant::now() + PATIENCE;
    while tunnel
        .peer_status(address)
        .is_none_or(|status| status.public_key != key)
    {
        assert!(Instant::now() < give_up, "waited in vain for the new key");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_node_that_waits_gets_no_peer_and_comes_in_when_it_is_approved() {
    let hub = Hub::start().await;
    let token = hub.invite_as(None, (1, Some(true))).await;
    let home = Home::new(1);
    let enrolled: EnrollReply =
        serde_json::from_slice(&home.enroll(&hub, &token).await.body).unwrap();
    assert!(!enrolled.approved);
    let id = enrolled.node_id.as_str();
    assert_eq!(code(&home.register(&hub, id).await), "node_pending");
    assert!(hub.members.all().is_empty());
    let again: EnrollReply = serde_json::from_slice(&home.enroll(&hub, &token).await.body).unwrap();
    assert!(!again.approved, "asking again does not help");

    let mut record = hub.store.node(&enrolled.node_id).await.unwrap().unwrap();
    record.pending = false;
    hub.store.put_node(&record).await.unwrap();
    assert_eq!(home.register(&hub, id).await.status, StatusCode::OK);
    assert_eq!(hub.members.all().len(), 1);
    let again: EnrollReply = serde_json::from_slice(&home.enroll(&hub, &token).await.body).unwrap();
    assert!(again.approved);
}

#[tokio::test]
async fn a_link_for_several_machines_has_each_of_them_wait_unless_it_says_otherwise() {
    let hub = Hub::start().await;
    for (seed, approve, approved) in [(1, None, false), (2, Some(false), true)] {
        let token = hub.invite_as(None, (3, approve)).await;
        let reply = Home::new(seed).enroll(&hub, &token).await;
        let enrolled: EnrollReply = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(enrolled.approved, approved, "{approve:?}");
    }
}

#[tokio::test]
async fn a_node_that_nobody_saw_for_ninety_days_waits_again_and_one_that_was_seen_never_does() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (id, _) = home.join(&hub, &hub.invite(None).await).await;
    let id = config::ids::NodeId::new(id.as_str());
    let now_unix = i64::try_from(NOW_MS / 1_000).unwrap();
    let mut record = hub.store.node(&id).await.unwrap().unwrap();
    record.created_unix = now_unix - 1_000 * 86_400;
    record.registered_unix = Some(now_unix - 800 * 86_400);
    record.last_seen_unix = Some(now_unix - 89 * 86_400);
    hub.store.put_node(&record).await.unwrap();
    assert_eq!(
        home.register(&hub, id.as_str()).await.status,
        StatusCode::OK
    );
    record.last_seen_unix = Some(now_unix - 91 * 86_400);
    hub.store.put_node(&record).await.unwrap();
    assert_eq!(
        code(&home.register(&hub, id.as_str()).await),
        "node_pending"
    );
    let record = hub.store.node(&id).await.unwrap().unwrap();
    assert!(record.pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_machines_with_one_link_for_one_at_once_and_exactly_one_gets_in() {
    let hub = Arc::new(Hub::start().await);
    let token = hub.invite(None).await;
    let tries: Vec<_> = (0..50u8)
        .map(|seed| {
            let (hub, token) = (Arc::clone(&hub), token.clone());
            tokio::spawn(async move { Home::new(seed).enroll(&hub, &token).await })
        })
        .collect();
    let mut codes = std::collections::BTreeMap::<String, u32>::new();
    for reply in tries {
        *codes.entry(code_or_ok(&reply.await.unwrap())).or_default() += 1;
    }
    assert_eq!(codes.remove("201 Created"), Some(1), "{codes:?}");
    assert_eq!(codes.remove("join_token_used"), Some(49), "{codes:?}");
    assert_eq!(hub.store.nodes().await.unwrap().len(), 1);
}

fn code_or_ok(reply: &NodeReply) -> String {
    if reply.status.is_success() {
        return reply.status.to_string();
    }
    code(reply)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_falls_silent_is_out_and_its_requests_end() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (id, reply) = home.join(&hub, &hub.invite(None).await).await;
    let tunnel = home.dial(&reply).await;
    report(&tunnel, &reply.agent_token, &ready(&id, 1, &[Fast])).await;
    let silent = hub.fleet.expire(Instant::now() + Duration::from_secs(16));
    assert_eq!(silent.len(), 1);
    assert!(hub.ready_tiers().is_empty());

    let mut answer = hub.ask(reply.address).await.unwrap();
    hub.upstream.cut(reply.address);
    let rest = answer.body.collect(100).await;
    assert!(
        matches!(rest, Err(Fault::Lost) | Ok(_)),
        "it ends at once: {rest:?}"
    );
    assert_eq!(hub.upstream.idle(reply.address), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_registered_node_that_signs_opens_a_carrier_and_it_ends_with_the_node() {
    let hub = Hub::start().await;
    let (home, other) = (Home::new(1), Home::new(2));
    let (id, _) = home.join(&hub, &hub.invite(None).await).await;
    let node = config::ids::NodeId::new(id.as_str());
    let from = (std::net::Ipv4Addr::LOCALHOST.into(), NOW_MS);
    let proof = |signer: &Home, nonce: String| {
        let signature = signer.sign(&carrier_message(&node, &nonce));
        let node_id = node.clone();
        CarrierProof {
            node_id,
            nonce,
            signature,
        }
        .to_header()
    };
    for (shown, reason) in [
        (None, "carrier_proof_missing"),
        (Some("Bearer hk_1".to_owned()), "carrier_proof_missing"),
        (Some(proof(&home, "old".to_owned())), "nonce_expired"),
        (Some(proof(&other, hub.nonce())), "signature_invalid"),
    ] {
        let refused = hub.desk.carry(shown.as_deref(), from).await.err();
        assert_eq!(refused.and_then(|reply| reply.refusal), Some(reason));
    }
    let first = hub.desk.carry(Some(&proof(&home, hub.nonce())), from).await;
    let first = first.expect("a carrier").end;
    let second = hub.desk.carry(Some(&proof(&home, hub.nonce())), from).await;
    let second = second.expect("another one").end;
    assert!(first.is_cancelled(), "one a node");
    assert!(!second.is_cancelled());
    hub.store.revoke_node(&node, 1_800_000_000).await.unwrap();
    hub.peers.sync().await.unwrap();
    assert!(second.is_cancelled());
    let refused = hub.desk.carry(Some(&proof(&home, hub.nonce())), from).await;
    let refused = refused.err().and_then(|reply| reply.refusal);
    assert_eq!(refused, Some("node_revoked"));
}
