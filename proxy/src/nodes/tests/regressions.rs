//! What once went wrong between a node, the store and this proxy.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use config::ids::NodeId;
use config::tier::Tier::{Fast, Heavy};
use config::wire::node::{RegisterReply, TierState, Unmanaged};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tunnel::{Peer, PrivateKey, Tunnel};

use super::home::{Home, code, ready, told};
use super::hub::Hub;
use super::{Again, in_session, restarted};
use crate::nodes::endpoints::{Endpoints, Heard};
use crate::nodes::peers::{AdmitError, Arrival};
use crate::store::redis::tests::RedisServer;

/// A server without an agent is looked at every 5 s, and may take 5 s for its answer.
const LOOKS: Duration = Duration::from_secs(30);
const REVOKED_UNIX: i64 = 1_800_000_000;

#[tokio::test]
async fn revoked_machines_take_nobodys_place() {
    let hub = Hub::start().await;
    let mut ids = Vec::new();
    for seed in 1..=2 {
        let (id, _) = Home::new(seed).join(&hub, &hub.invite(None).await).await;
        ids.push(NodeId::new(id.as_str()));
    }
    let third = Home::new(3);
    let refused = third.enroll(&hub, &hub.invite(None).await).await;
    assert_eq!(code(&refused), "nodes_max_reached");

    hub.store.revoke_node(&ids[0], REVOKED_UNIX).await.unwrap();
    hub.peers.throw_out(&ids[0]).await;
    third.join(&hub, &hub.invite(None).await).await;
    let refused = Home::new(4).enroll(&hub, &hub.invite(None).await).await;
    assert_eq!(code(&refused), "nodes_max_reached", "two that may be in");
}

#[tokio::test]
async fn a_registration_that_was_under_way_when_its_node_was_revoked_lets_nobody_in() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (id, _) = home.join(&hub, &hub.invite(None).await).await;
    let id = NodeId::new(id.as_str());
    // As the desk read it, a moment before somebody revoked the node.
    let record = hub.store.node(&id).await.unwrap().unwrap();
    hub.store.revoke_node(&id, REVOKED_UNIX).await.unwrap();
    hub.peers.throw_out(&id).await;

    let (_, shared) = tunnel::kem::answer(home.asking.public()).unwrap();
    let start = home.start.clone();
    let admitted = hub.peers.admit(&record, Arrival { start, shared }).await;
    assert!(
        matches!(admitted, Err(AdmitError::Revoked)),
        "{:?}",
        admitted.map(drop)
    );
    assert!(hub.members.member(&id).is_none());
    assert_eq!(
        code(&home.register(&hub, id.as_str()).await),
        "node_revoked"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_report_to_a_draining_proxy_and_hear_that_it_goes() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (id, reply) = home.join(&hub, &hub.invite(None).await).await;
    let node = home.dial(&reply).await;
    let token = &reply.agent_token;
    let said = told(&node, token, &ready(&id, 1, &[Fast])).await;
    assert!(!said.draining);
    hub.reports.drain();
    let said = told(&node, token, &ready(&id, 2, &[Fast])).await;
    assert!(said.draining);
    assert_eq!(hub.ready_tiers(), [Fast], "its running answers go on");
}

#[tokio::test]
async fn a_registered_node_knows_which_proxy_it_registered_at() {
    let (hub, other) = (Hub::start().await, Hub::start().await);
    let mut proxies = Vec::new();
    for hub in [&hub, &other] {
        let (_, reply) = Home::new(1).join(hub, &hub.invite(None).await).await;
        proxies.push(reply.proxy);
    }
    assert!(proxies.iter().all(|proxy| !proxy.is_empty()));
    assert_ne!(proxies[0], proxies[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_for_a_moment_does_not_make_the_hub_forget_whom_it_called() {
    let redis = RedisServer::start().await;
    let hub = Hub::start_on(redis.store().await).await;
    let home = Home::new(1);
    let (id, reply) = home.join(&hub, &hub.invite(None).await).await;
    let id = NodeId::new(id.as_str());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("endpoints.json");
    let heard = Heard {
        endpoint: ([127, 0, 0, 1], 9).into(),
        wireguard_key: home.wireguard.public_key().to_string(),
    };
    let note = vec![(id.clone(), Some(heard))];
    Endpoints::open(file.clone()).note(note).await;
    let bind = hub.tunnel.local_addr();
    hub.tunnel.shutdown().await;

    let Again { tunnel, peers, .. } = restarted(&hub, bind, &file).await;
    peers.sync().await.unwrap();
    assert!(tunnel.peer_status(reply.address).is_some(), "it is called");
    redis.signal("-STOP");
    let away = peers.sync().await;
    redis.signal("-CONT");
    assert!(away.is_err(), "a store that does not answer");

    let give_up = Instant::now() + LOOKS;
    while hub.store.revoke_node(&id, REVOKED_UNIX).await.is_err() {
        assert!(Instant::now() < give_up, "the store is not back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    peers.sync().await.unwrap();
    assert!(
        tunnel.peer_status(reply.address).is_none(),
        "who was called and then revoked is no peer any more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_an_agent_that_stops_answering_takes_its_tier_down_though_its_tunnel_lives()
 {
    let hub = Hub::start().await;
    let server = Unmanaged {
        tier: Heavy,
        port: 11_434,
        model: None,
    };
    let home = Home {
        unmanaged: Some(server),
        ..Home::new(1)
    };
    let (_, reply) = home.join(&hub, &hub.invite(None).await).await;
    let silent = Arc::new(AtomicBool::new(false));
    let _station = station(&home, &reply, &silent).await;
    in_session(&hub.tunnel, reply.address).await;
    until_heavy(&hub, TierState::Ready).await;
    silent.store(true, Ordering::Relaxed);
    until_heavy(&hub, TierState::Down).await;
    let heard = hub.tunnel.peer_status(reply.address).unwrap().since_heard;
    assert!(
        heard.unwrap() < Duration::from_secs(5),
        "it lives: {heard:?}"
    );
    silent.store(false, Ordering::Relaxed);
    until_heavy(&hub, TierState::Ready).await;
}

async fn until_heavy(hub: &Hub, wanted: TierState) {
    let give_up = Instant::now() + LOOKS;
    let state = || {
        hub.fleet.with(|router| {
            let mut heavy = router.registry().of_tier(Heavy);
            heavy.next().map(|backend| backend.tier.state)
        })
    };
    while state() != Some(wanted) {
        assert!(Instant::now() < give_up, "{:?}, not {wanted:?}", state());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A server that speaks `OpenAI`'s API behind a stock WireGuard, and stops answering when it is told.
async fn station(home: &Home, reply: &RegisterReply, silent: &Arc<AtomicBool>) -> Tunnel {
    let bind = ([127, 0, 0, 1], 0).into();
    let key = PrivateKey::from_bytes(home.wireguard.to_bytes());
    let tunnel = Tunnel::start(tunnel::Settings::new(bind, key, reply.address))
        .await
        .unwrap();
    let hub = Peer {
        preshared_key: None,
        ..home.peer(reply)
    };
    tunnel.set_peer(hub).await.unwrap();
    let port = home.unmanaged.as_ref().unwrap().port;
    let listener = tunnel.listen(port).await.unwrap();
    let silent = Arc::clone(silent);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let silent = Arc::clone(&silent);
            let service = service_fn(move |_: Request<Incoming>| models(Arc::clone(&silent)));
            let io = TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    tunnel
}

async fn models(silent: Arc<AtomicBool>) -> Result<Response<Full<Bytes>>, Infallible> {
    if silent.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    let list = Bytes::from_static(b"{\"data\":[{\"id\":\"big\"}]}");
    Ok(Response::new(Full::new(list)))
}
