//! A thousand streams of one person over three proxies and one Redis, with clients that leave and a proxy that is killed: never more is
//! billed than the limit, and nothing stays reserved.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tests::client::Client;
use tests::node::{Node, slow};
use tests::proxy::{Builder, Proxy};
use tests::redis::Redis;
use tests::wait::until;

const STREAMS: usize = 1_000;
/// Letters of an answer, each a token of the scripted engine.
const ANSWER: u64 = 50;

fn proxies(redis: &Redis) -> Builder {
    Proxy::generous()
        .limit("lease_secs = 10")
        .limit("concurrent_per_user = 2000")
        .server("connections_per_ip_max = 4000")
        .counting_in(redis)
}

/// How one stream ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Ended {
    status: u16,
    /// Tokens that the answer says it used; 0 when it was not read to its end.
    tokens: u64,
}

/// Streams one answer; leaves after so many events if the story says so. A node with full hands is asked again.
async fn stream(client: Client, leave_after: Option<usize>) -> Ended {
    let body = json!({
        "model": "fast",
        "messages": [{"role": "user", "content": "Talk."}],
        "max_tokens": ANSWER,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    for _ in 0..200 {
        let Some(mut stream) = client.try_stream(body.clone()).await else {
            return Ended::default();
        };
        if stream.status == 503 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        if let (Some(events), 200) = (leave_after, stream.status) {
            for _ in 0..events {
                stream.data().await;
            }
            return Ended {
                status: 200,
                tokens: 0,
            };
        }
        let status = stream.status;
        let transcript = stream.collect().await;
        let whole = transcript.finish_reason().is_some();
        let tokens = transcript.usage()["total_tokens"].as_u64();
        return Ended {
            status,
            tokens: tokens.filter(|_| whole).unwrap_or(0),
        };
    }
    panic!("the nodes were busy for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_never_bill_more_than_the_limit_and_leave_nothing_reserved() {
    let redis = Redis::start().await;
    let mut left = proxies(&redis).start().await;
    let others = [proxies(&redis).start().await, proxies(&redis).start().await];
    let answer = slow(usize::try_from(ANSWER).expect("small") / 5, 4);
    let homes = [&left, &others[0], &others[1]];
    let homes = homes.map(|proxy| {
        Node::named("den")
            .tier_from("fast", &answer, 64)
            .join(proxy)
    });
    let limit = 30_000;
    let made = left.manage(&[
        "key",
        "create",
        "--name",
        "ada",
        "--key-alone",
        "--tokens-per-day",
        &limit.to_string(),
    ]);
    let key = made["key"].as_str().expect("a key");
    let doors = [&left, &others[0], &others[1]].map(|proxy| proxy.stranger().with_bearer(key));
    for (proxy, door) in [&left, &others[0], &others[1]].into_iter().zip(&doors) {
        proxy.serves(door, &["fast"]).await;
    }

    let mut streams: FuturesUnordered<_> = (0..STREAMS)
        .map(|turn| {
            let leaves = (turn % 5 == 0).then_some(turn % 17);
            tokio::spawn(stream(doors[turn % 3].clone(), leaves))
        })
        .collect();
    let mut ended = Vec::new();
    while let Some(one) = streams.next().await {
        ended.push(one.expect("a client does not panic"));
        if ended.len() == STREAMS / 4 {
            left.kill();
        }
    }

    let told: u64 = ended.iter().map(|one| one.tokens).sum();
    assert!(told <= limit, "{told} tokens were told to clients");
    assert!(
        ended.iter().any(|one| one.status == 429),
        "the limit is reached: {} ended at 200",
        ended.iter().filter(|one| one.status == 200).count()
    );
    // The lease of what the killed proxy had reserved, and a moment.
    let (used, billed) = until(
        "nothing stays reserved",
        Duration::from_secs(30),
        || async {
            let (used, billed) = (used(&doors[1]).await, billed(&doors[2]).await);
            (used == billed).then_some((used, billed))
        },
    )
    .await;
    assert!(billed <= limit, "{billed} tokens were billed");
    assert!(
        billed >= told,
        "{billed} billed, {told} told: nothing is lost"
    );
    assert_eq!(used, billed);
    drop(homes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_requests_exactly_as_many_pass_as_the_limit_says() {
    let redis = Redis::start().await;
    let build = || proxies(&redis).limit("text_per_day = 300").start();
    let proxies = [build().await, build().await, build().await];
    let answer = slow(1, 1);
    let homes: Vec<Node> = proxies
        .iter()
        .map(|proxy| {
            Node::named("den")
                .tier_from("fast", &answer, 64)
                .join(proxy)
        })
        .collect();
    let (_, key) = proxies[0].key("ada");
    let doors: Vec<Client> = proxies
        .iter()
        .map(|proxy| proxy.stranger().with_bearer(&key))
        .collect();
    for (proxy, door) in proxies.iter().zip(&doors) {
        proxy.serves(door, &["fast"]).await;
    }
    let streams = (0..STREAMS).map(|turn| tokio::spawn(stream(doors[turn % 3].clone(), None)));
    let ended: Vec<Ended> = streams
        .collect::<FuturesUnordered<_>>()
        .map(|one| one.expect("a client does not panic"))
        .collect()
        .await;
    let with = |status| ended.iter().filter(|one| one.status == status).count();
    assert_eq!((with(200), with(429)), (300, 700));
    drop(homes);
}

/// Tokens that count against the key's limit now: settled and reserved.
async fn used(client: &Client) -> u64 {
    let profile = client.get("/api/user").await.json();
    let limits = profile["limits"].as_array().cloned().unwrap_or_default();
    let found = limits
        .iter()
        .find(|state| state["name"] == "key-tokens-day")
        .unwrap_or_else(|| panic!("no limit in {profile}"));
    found["used"].as_u64().expect("a number")
}

/// Tokens in the books.
async fn billed(client: &Client) -> u64 {
    let totals = client.get("/v1/usage").await.json()["totals"].clone();
    let of = |name: &str| totals[name].as_u64().unwrap_or(0);
    of("tokens_in") + of("tokens_out")
}
