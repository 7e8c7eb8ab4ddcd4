//! Many proxies, one Redis: one limit, exactly; and a Redis that dies and comes back.

use std::time::Duration;

use futures_util::future::join_all;
use tests::client::Client;
use tests::issuer::Issuer;
use tests::node::Node;
use tests::proxy::Proxy;
use tests::redis::Redis;
use tests::wait::until;

/// Each of three processes counted for itself: three times the limit.
#[tokio::test]
async fn seed_defect_6_three_proxies_on_one_redis_share_one_limit_exactly() {
    let issuer = Issuer::start().await;
    let redis = Redis::start().await;
    let build = || {
        Proxy::generous()
            .limit("text_per_day = 50")
            .trusting(&issuer)
            .counting_in(&redis)
    };
    let proxies = [
        build().start().await,
        build().start().await,
        build().start().await,
    ];
    let names = ["den", "attic", "cellar"];
    let _homes: Vec<Node> = names
        .iter()
        .zip(&proxies)
        .map(|(name, proxy)| Node::named(name).tier("fast").join(proxy))
        .collect();
    let token = issuer.token("ada");
    let doors: Vec<Client> = proxies
        .iter()
        .map(|proxy| proxy.stranger().with_bearer(&token))
        .collect();
    for (proxy, door) in proxies.iter().zip(&doors) {
        proxy.serves(door, &["fast"]).await;
    }

    let replies = join_all((0..90).map(|turn| doors[turn % 3].ask("fast", "Hello"))).await;

    let odd = replies
        .iter()
        .find(|reply| ![200, 429].contains(&reply.status));
    assert!(
        odd.is_none(),
        "nothing but answers and refusals, not {odd:?}"
    );
    assert_eq!(
        replies.iter().filter(|reply| reply.status == 200).count(),
        50,
        "one limit, not one each"
    );
}

#[tokio::test]
async fn redis_killed_refuses_at_once_and_back_again_counts_on() {
    let issuer = Issuer::start().await;
    let mut redis = Redis::start().await;
    let proxy = Proxy::generous()
        .limit("text_per_day = 4")
        .trusting(&issuer)
        .counting_in(&redis)
        .start()
        .await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let ada = proxy.stranger().with_bearer(&issuer.token("ada"));
    proxy.serves(&ada, &["fast"]).await;
    assert_eq!(ada.ask("fast", "Hello").await.status, 200);

    redis.kill();
    let started = std::time::Instant::now();
    let reply = ada.ask("fast", "Hello").await;
    assert_eq!(reply.status, 503, "policy `closed` refuses: {}", reply.body);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "and never hangs: {:?}",
        started.elapsed()
    );

    redis.restart().await;
    until(
        "the proxy counts again",
        Duration::from_secs(20),
        || async { (ada.ask("fast", "Hello").await.status == 200).then_some(()) },
    )
    .await;
    for _ in 0..2 {
        assert_eq!(ada.ask("fast", "Hello").await.status, 200);
    }
    assert_eq!(
        ada.ask("fast", "Hello").await.status,
        429,
        "what Redis had saved still counts"
    );
}
