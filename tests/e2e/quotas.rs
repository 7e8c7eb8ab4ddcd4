//! What it may cost: tokens and money are reserved before, charged as they were used, and never exceeded.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::client::{Client, Reply};
use tests::node::{Node, slow};
use tests::proxy::Proxy;
use tests::redis::Redis;
use tests::wait::until;

/// A question whose answer is as long as it may be.
fn endless(model: &str, most: u64) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "temperature": 0,
        "max_tokens": most,
        "ignore_eos": true,
    })
}

fn used(reply: &Reply, what: &str) -> u64 {
    let usage = reply.json()["usage"][what].as_u64();
    usage.unwrap_or_else(|| panic!("no {what}: {}", reply.body))
}

/// A client with a new key of its own, made with these options.
fn key(proxy: &Proxy, name: &str, options: &[&str]) -> Client {
    let mut arguments = vec!["key", "create", "--name", name];
    arguments.extend(options);
    let made = proxy.manage(&arguments);
    let key = made["key"].as_str().expect("a key is printed");
    proxy.stranger().with_bearer(key)
}

/// Tokens of the question as the model counts them.
async fn prompt_tokens(proxy: &Proxy, model: &str) -> u64 {
    let reply = proxy.friend().complete(endless(model, 1)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    used(&reply, "prompt_tokens")
}

/// The sums of this person once they have so many requests.
async fn totals(client: &Client, requests: u64) -> Value {
    until("the books have it", Duration::from_secs(10), || async {
        let reply = client.get("/v1/usage").await;
        let totals = reply.json()["totals"].clone();
        (totals["requests"] == requests).then_some(totals)
    })
    .await
}

/// What is left of a limit.
async fn remaining(client: &Client, limit: &str) -> u64 {
    let profile = client.get("/api/user").await.json();
    let limits = profile["limits"].as_array().expect("limits").clone();
    let found = limits.iter().find(|state| state["name"] == limit);
    found.unwrap_or_else(|| panic!("no {limit} in {profile}"))["remaining"]
        .as_u64()
        .expect("a number")
}

#[tokio::test]
async fn with_37_tokens_left_an_answer_has_37_and_says_why() {
    let proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    let prompt = prompt_tokens(&proxy, "fast").await;
    let budget = (prompt + 37).to_string();

    let small = key(
        &proxy,
        "small",
        &["--key-alone", "--tokens-per-day", &budget],
    );
    let reply = small.complete(endless("fast", 200)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(used(&reply, "completion_tokens"), 37);
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "length");
    let reason = reply.routing()["reason"].to_string();
    assert!(
        reason.contains("stopped at the limit key-tokens-day"),
        "{reason}"
    );
    assert_eq!(reply.header("x-ratelimit-remaining-tokens"), "0");

    let refused = small.complete(endless("fast", 200)).await;
    assert_eq!(
        (refused.status, refused.code()),
        (429, "insufficient_quota".to_owned())
    );

    let other = key(
        &proxy,
        "other",
        &["--key-alone", "--tokens-per-day", &budget],
    );
    let mut body = endless("fast", 200);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let transcript = other.stream_body(body).await.collect().await;
    assert_eq!(transcript.finish_reason().as_deref(), Some("length"));
    assert_eq!(transcript.usage()["completion_tokens"], 37);
    let reason = transcript.routing()["reason"].to_string();
    assert!(reason.contains("key-tokens-day"), "{reason}");
}

#[tokio::test]
async fn an_answer_shorter_than_reserved_gives_the_rest_back() {
    let proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    let ada = key(&proxy, "ada", &["--key-alone", "--tokens-per-day", "10000"]);

    let reply = ada.complete(endless("fast", 20)).await;
    let spent = used(&reply, "total_tokens");
    totals(&ada, 1).await;
    assert_eq!(remaining(&ada, "key-tokens-day").await, 10_000 - spent);
}

#[tokio::test]
async fn a_family_s_budget_bounds_its_members_together_and_is_spent_to_the_last_token() {
    let proxy = Proxy::generous()
        .sections(
            "[limits.plans.household]\ntokens_per_day = 400\n[limits.groups.family]\nplan = \"household\"",
        )
        .start()
        .await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    let family = ["ada", "ben", "cleo"]
        .map(|name| key(&proxy, name, &["--owner", name, "--group", "family"]));

    let replies =
        join_all((0..24).map(|turn| family[turn % 3].complete(endless("fast", 30)))).await;
    let answered = || replies.iter().filter(|reply| reply.status == 200);
    let spent: u64 = answered().map(|reply| used(reply, "total_tokens")).sum();
    let refused = replies.iter().find(|reply| reply.status == 429);
    let refused = refused.expect("400 tokens are not enough for all");
    assert!(refused.body.contains("your group's"), "{}", refused.body);
    assert!(spent <= 400, "{spent}");

    // One after the other until nothing more fits: not even a prompt with one token.
    let prompt = used(answered().next().expect("an answer"), "prompt_tokens");
    until("the budget is spent", Duration::from_secs(20), || async {
        let reply = family[0].complete(endless("fast", 30)).await;
        (reply.status == 429).then_some(())
    })
    .await;
    let left = remaining(&family[1], "group-tokens-day").await;
    assert!(left <= prompt, "{left} left, and a prompt has {prompt}");
}

#[tokio::test]
async fn an_answer_that_was_cut_off_is_charged_for_what_was_made() {
    let proxy = Proxy::start().await;
    let mut home = Node::named("den")
        .tier_from("fast", &slow(400, 5), 2)
        .join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    let streaming = key(&proxy, "streaming", &["--owner", "streaming"]);
    let waiting = key(&proxy, "waiting", &["--owner", "waiting"]);

    let mut stream = streaming.stream("fast", "Talk for a long time.").await;
    for _ in 0..5 {
        stream.data().await.expect("the stream starts");
    }
    drop(stream);
    let charged = totals(&streaming, 1).await["tokens_out"].clone();
    let made = made_by(&mut home, 1).await;
    assert_eq!(charged, made[0], "the books say what the node made");

    let asking = tokio::spawn({
        let waiting = waiting.clone();
        async move { waiting.ask("fast", "Talk for a long time.").await }
    });
    until("the node is at work", Duration::from_secs(5), || async {
        home.metric("hearth_node_slots_busy")
            .await
            .filter(|busy| *busy > 0.5)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    asking.abort();
    let charged = totals(&waiting, 1).await["tokens_out"].clone();
    let made = made_by(&mut home, 2).await;
    assert_eq!(
        charged, made[1],
        "and so they do of an answer that nobody saw"
    );
    assert!(made[1] > 0, "{made:?}");
}

/// Answer tokens of each request as the node logged them, once there are so many.
async fn made_by(home: &mut Node, requests: usize) -> Vec<u64> {
    until("the node logs its requests", Duration::from_secs(5), || {
        let log = home.process().log();
        async move {
            let counts = log
                .lines()
                .filter(|line| line.contains("completion_tokens"))
                .filter_map(|line| {
                    let (_, rest) = line.split_once("completion_tokens")?;
                    let digits: String = rest
                        .chars()
                        .skip_while(|letter| !letter.is_ascii_digit())
                        .take_while(char::is_ascii_digit)
                        .collect();
                    digits.parse().ok()
                });
            let counts: Vec<u64> = counts.collect();
            (counts.len() >= requests).then_some(counts)
        }
    })
    .await
}

#[tokio::test]
async fn when_the_heavy_budget_is_gone_a_smaller_tier_answers_and_says_so() {
    let plan = |when| {
        format!(
            "[limits.plans.{when}]\nheavy_tokens_per_day = 5\nwhen_heavy_is_used_up = \"{when}\""
        )
    };
    let proxy = Proxy::generous()
        .sections(&plan("downgrade"))
        .sections(&plan("refuse"))
        .start()
        .await;
    let _home = Node::whole().join(&proxy);
    proxy
        .serves(&proxy.friend(), &["fast", "primary", "heavy"])
        .await;

    let going_on = key(&proxy, "ada", &["--owner", "ada", "--plan", "downgrade"]);
    let reply = going_on.ask("heavy", "Hello").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let routing = reply.routing();
    assert_eq!(
        (&routing["tier"], &routing["fallback"]),
        (&json!("primary"), &json!("heavy->primary"))
    );
    let reason = routing["reason"].to_string();
    assert!(reason.contains("tokens-day-heavy is used up"), "{reason}");

    let refused = key(&proxy, "ben", &["--owner", "ben", "--plan", "refuse"]);
    let refused = refused.ask("heavy", "Hello").await;
    assert_eq!(refused.status, 429, "{}", refused.body);
}

#[tokio::test]
async fn money_is_a_budget_like_any_other() {
    let proxy = Proxy::generous()
        .sections(
            "[limits.plans.pocket]\nmoney_per_day = 0.0001\n[prices.models.fast]\ninput = 0.0\noutput = 2.0\n\
             [prices.cloud.fast]\ninput = 0.0\noutput = 20.0",
        )
        .start()
        .await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;

    let child = key(&proxy, "child", &["--owner", "child", "--plan", "pocket"]);
    let reply = child.complete(endless("fast", 200)).await;
    assert_eq!(
        used(&reply, "completion_tokens"),
        50,
        "100 millionths at 2 a token"
    );
    let totals = totals(&child, 1).await;
    assert_eq!(
        (&totals["micros"], &totals["cloud_micros"]),
        (&json!(100), &json!(1_000))
    );
    assert_eq!(child.complete(endless("fast", 200)).await.status, 429);
}

#[tokio::test]
async fn what_a_killed_proxy_had_reserved_comes_back_after_its_lease() {
    let redis = Redis::start().await;
    let build = || {
        Proxy::generous()
            .limit("lease_secs = 10")
            .limit("concurrent_per_user = 3")
            .counting_in(&redis)
    };
    let (mut left, right) = (build().start().await, build().start().await);
    let _den = Node::named("den")
        .tier_from("fast", &slow(4_000, 5), 4)
        .join(&left);
    let made = left.manage(&[
        "key",
        "create",
        "--name",
        "ada",
        "--key-alone",
        "--tokens-per-day",
        "100000",
    ]);
    let bearer = made["key"].as_str().expect("a key");
    let (here, there) = (
        left.stranger().with_bearer(bearer),
        right.stranger().with_bearer(bearer),
    );
    left.serves(&here, &["fast"]).await;

    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = here.stream("fast", "Talk for a long time.").await;
        stream.data().await.expect("the stream starts");
        streams.push(stream);
    }
    assert!(remaining(&there, "key-tokens-day").await < 100_000);
    left.kill();

    until("all of it is back", Duration::from_secs(25), || async {
        (remaining(&there, "key-tokens-day").await == 100_000).then_some(())
    })
    .await;
}
