//! Servers that cost money by the hour: whatever dies, fails or races, somebody stops them, once nobody needs them, and no request goes to
//! one that is being stopped.

use std::sync::Arc;
use std::time::Duration;

use config::settings::proxy::{Burst, Hook, Remote};
use config::tier::Tier::{Heavy, Primary};
use config::zone::Zone;
use policy::calendar::minute_of_day;
use policy::registry::ListedState;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::house::{House, Plans, to};
use super::node::{Act, answer};
use super::outside::{listed, plans, until};
use super::peer::{Peer, Says};
use crate::admin::server::now_unix_ms;
use crate::store::redis::tests::RedisServer;
use crate::store::{Embedded, Store};

fn burst(peer: &Peer, idle_ms: u64) -> Plans {
    cloud(peer, billed(peer, idle_ms))
}

fn billed(peer: &Peer, idle_ms: u64) -> Burst {
    Burst {
        start: Hook::Url(peer.url("/start")),
        stop: Some(Hook::Url(peer.url("/stop"))),
        key: None,
        ready_timeout: Duration::from_secs(20),
        takes: Duration::from_secs(5),
        idle_stop: Duration::from_millis(idle_ms),
        warm_hours: None,
        zone: Zone::default(),
        starts_per_hour: 10,
    }
}

fn cloud(peer: &Peer, burst: Burst) -> Plans {
    plans(vec![Remote {
        burst: Some(burst),
        ..peer.remote(Heavy)
    }])
}

async fn sleeping(takes: usize) -> Peer {
    Peer::asleep(Says::Whole(answer("awake")), takes).await
}

fn embedded() -> (TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(folder.path()).unwrap());
    (folder, store)
}

/// A proxy that dies while its start is under way.
async fn dies_in_a_start(store: &Arc<dyn Store>, peer: &Peer, plans: Plans) {
    let house = House::on(Arc::clone(store), plans, vec![]).await;
    listed(&house, "big", ListedState::Sleeping).await;
    let body = to("big");
    tokio::select! {
        _ = house.chat(&body) => panic!("it does not start"),
        () = until("it starts", || peer.starts() == 1) => {}
    }
}

#[tokio::test]
async fn a_start_that_nobody_finished_is_stopped_by_the_next_proxy() {
    let (_folder, store) = embedded();
    let peer = sleeping(usize::MAX).await;
    dies_in_a_start(&store, &peer, burst(&peer, 300)).await;
    assert!(peer.is_on(), "it costs money, and nobody knows");

    let next = House::on(store, burst(&peer, 300), vec![]).await;

    until("it is stopped", || !peer.is_on()).await;
    until("nobody thinks it runs", || {
        next.metrics
            .render()
            .contains("burst_running{node=\"cloud\"} 0")
    })
    .await;
    assert_eq!((peer.starts(), peer.stops()), (1, 1));
}

#[tokio::test]
async fn a_start_that_nobody_finished_serves_the_next_proxy_when_it_is_done() {
    let (_folder, store) = embedded();
    let peer = sleeping(usize::MAX).await;
    dies_in_a_start(&store, &peer, burst(&peer, 3_000)).await;

    let next = House::on(store, burst(&peer, 3_000), vec![]).await;
    peer.takes(1);
    listed(&next, "big", ListedState::Ready).await;
    let (client, _) = next.chat(&to("big")).await;

    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    assert_eq!(peer.starts(), 1, "it was started already");
    until("it is stopped", || !peer.is_on()).await;
}

#[tokio::test]
async fn a_request_waits_for_the_start_that_a_dead_proxy_began() {
    let (_folder, store) = embedded();
    let peer = sleeping(usize::MAX).await;
    dies_in_a_start(&store, &peer, burst(&peer, 3_000)).await;

    let next = House::on(store, burst(&peer, 3_000), vec![]).await;
    listed(&next, "big", ListedState::Sleeping).await;
    let body = to("big");
    let rises = async {
        sleep(Duration::from_millis(100)).await;
        peer.takes(1);
    };
    let ((client, _), ()) = tokio::join!(next.chat(&body), rises);

    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    assert_eq!(peer.starts(), 1, "one machine, one bill");
}

#[tokio::test]
async fn a_stop_that_fails_is_tried_until_it_works() {
    let (_folder, store) = embedded();
    let peer = sleeping(0).await;
    let house = House::on(Arc::clone(&store), burst(&peer, 200), vec![]).await;
    listed(&house, "big", ListedState::Sleeping).await;
    peer.stops_fail(2);
    let (client, _) = house.chat(&to("big")).await;
    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    until("a stop failed", || {
        let said = house.metrics.render();
        said.contains("burst_running{node=\"cloud\"} 1")
            && said.contains("burst_stop_failures{node=\"cloud\"} 1")
    })
    .await;
    until("it is stopped", || !peer.is_on()).await;
    assert_eq!(peer.stops(), 3);
    until("nobody thinks it runs", || {
        let said = house.metrics.render();
        said.contains("burst_running{node=\"cloud\"} 0")
            && said.contains("burst_stop_failures{node=\"cloud\"} 0")
    })
    .await;
    assert_eq!(store.bursts().await.unwrap(), []);
}

#[tokio::test]
async fn what_stops_answering_while_it_is_paid_for_is_stopped_too() {
    let (_folder, store) = embedded();
    let peer = sleeping(0).await;
    let house = House::on(store, burst(&peer, 5_000), vec![]).await;
    listed(&house, "big", ListedState::Sleeping).await;
    let (client, _) = house.chat(&to("big")).await;
    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    // Its server crashed; the machine under it goes on.
    peer.takes(usize::MAX);
    peer.crashes();
    listed(&house, "big", ListedState::Sleeping).await;
    assert!(peer.is_on());
    until("it is stopped", || !peer.is_on()).await;
}

#[tokio::test]
async fn a_request_that_comes_in_the_middle_of_a_stop_gets_a_fresh_start() {
    let (_folder, store) = embedded();
    let peer = sleeping(0).await;
    let one = House::on(Arc::clone(&store), burst(&peer, 400), vec![]).await;
    let other = House::on(store, burst(&peer, 400), vec![]).await;
    for house in [&one, &other] {
        listed(house, "big", ListedState::Sleeping).await;
    }
    peer.lingers(3);
    let (client, _) = one.chat(&to("big")).await;
    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    until("it is being stopped", || peer.stops() == 1).await;
    // It still lists its model, as a machine that shuts down does.
    let body = to("big");
    let (here, there) = tokio::join!(one.chat(&body), other.chat(&body));
    for (client, record) in [here, there] {
        let said = client.text();
        assert_eq!(client.status.unwrap(), 200, "{said} {record:?}");
    }
    assert_eq!(peer.late(), 0, "nobody asks what is being stopped");
    assert_eq!(peer.starts(), 2, "one starter at a time");
}

#[tokio::test]
async fn of_two_proxies_on_one_redis_one_starts_and_the_last_user_stops() {
    let redis = RedisServer::start().await;
    let peer = sleeping(1).await;
    let one = House::on(redis.store().await, burst(&peer, 1_500), vec![]).await;
    let other = House::on(redis.store().await, burst(&peer, 1_500), vec![]).await;
    for house in [&one, &other] {
        listed(house, "big", ListedState::Sleeping).await;
    }
    let body = to("big");
    let ((here, _), (there, _)) = tokio::join!(one.chat(&body), other.chat(&body));
    for client in [here, there] {
        assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    }
    assert_eq!(peer.starts(), 1, "one starter at a time");
    // The other one goes on, for longer than this one waits.
    let until_then = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until_then {
        let (client, _) = other.chat(&body).await;
        assert_eq!(client.status.unwrap(), 200, "{}", client.text());
        sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(peer.stops(), 0, "somebody uses it");
    until("the last one stops it", || !peer.is_on()).await;
    assert_eq!((peer.starts(), peer.stops(), peer.late()), (1, 1, 0));
}

#[tokio::test]
async fn a_server_that_cannot_be_stopped_still_serves() {
    let (_folder, store) = embedded();
    let peer = sleeping(0).await;
    let house = House::on(
        store,
        burst(&peer, 300),
        vec![(&[Primary], vec![Act::Reply(200, answer("warm"))])],
    )
    .await;
    listed(&house, "big", ListedState::Sleeping).await;
    peer.stops_fail(usize::MAX);
    let (first, _) = house.chat(&to("heavy")).await;
    assert_eq!(first.json()["_routing"]["node"], "cloud");
    until("a stop failed", || peer.stops() >= 1).await;
    let (second, _) = house.chat(&to("heavy")).await;
    assert_eq!(second.json()["_routing"]["node"], "cloud");
    peer.stops_fail(0);
    until("it is stopped in the end", || !peer.is_on()).await;
}

#[tokio::test]
async fn in_its_hours_a_server_runs_though_nobody_asks_and_comes_back_when_it_went_away() {
    let (_folder, store) = embedded();
    let peer = sleeping(1).await;
    let warm = Burst {
        warm_hours: Some("00:00-24:00".parse().unwrap()),
        ..billed(&peer, 200)
    };
    let house = House::on(store, cloud(&peer, warm), vec![]).await;
    listed(&house, "big", ListedState::Ready).await;
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(
        (peer.starts(), peer.stops()),
        (1, 0),
        "seven times as long as it is kept otherwise"
    );

    peer.is_taken_away();
    until("it is started again", || peer.starts() == 2).await;
    listed(&house, "big", ListedState::Ready).await;
    assert_eq!(peer.stops(), 0);
}

#[tokio::test]
async fn out_of_its_hours_a_server_sleeps_until_it_is_wanted() {
    let (_folder, store) = embedded();
    let peer = sleeping(1).await;
    let now = minute_of_day(Zone::default(), now_unix_ms());
    let later = |hours: u16| {
        let minute = (now + hours * 60) % 1_440;
        format!("{:02}:{:02}", minute / 60, minute % 60)
    };
    let hours = format!("{}-{}", later(2), later(4));
    let warm = Burst {
        warm_hours: Some(hours.parse().unwrap()),
        ..billed(&peer, 200)
    };
    let house = House::on(store, cloud(&peer, warm), vec![]).await;
    listed(&house, "big", ListedState::Sleeping).await;
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(peer.starts(), 0);

    let (client, _) = house.chat(&to("big")).await;
    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    until("it is stopped", || peer.stops() == 1).await;
}
