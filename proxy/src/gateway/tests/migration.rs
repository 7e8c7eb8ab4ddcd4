//! Streams that break off after their first content: another node with the same file goes on with them, or nobody does.

use std::time::Duration;

use config::settings::plan::Plan;
use config::tier::Tier::Primary;
use http::Method;
use policy::record::{AccessRecord, Ending};
use serde_json::{Value, json};

use super::client::Client;
use super::house::{House, Plans, stream_to};
use super::node::{Act, error, usage};
use super::tokens::left;

/// Looks for a twin for so long where there is none.
const PATIENCE: Duration = Duration::from_millis(300);

fn hasty() -> Plans {
    let mut plans = Plans::default();
    plans.routing.migration_patience = PATIENCE;
    plans.routing.idle_timeout = Duration::from_millis(300);
    plans
}

fn chunk(fingerprint: &str, delta: &Value, finish_reason: Option<&str>) -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny",
        "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "usage": null,
    })
    .to_string()
}

/// The first chunk of an answer; one that goes on has none.
fn role() -> String {
    chunk("fp_a", &json!({"role": "assistant", "content": ""}), None)
}

/// Text and the tokens that it is made of.
fn said(tokens: &[i32], text: &str) -> String {
    said_by("fp_a", tokens, text)
}

fn said_by(fingerprint: &str, tokens: &[i32], text: &str) -> String {
    let ids: Vec<String> = tokens.iter().map(ToString::to_string).collect();
    let chunk = chunk(fingerprint, &json!({"content": text}), None);
    format!(": tokens {}\ndata: {chunk}", ids.join(","))
}

fn unnamed(text: &str) -> String {
    chunk("fp_a", &json!({"content": text}), None)
}

fn finish() -> String {
    chunk("fp_a", &json!({}), Some("stop"))
}

fn done() -> String {
    "[DONE]".to_owned()
}

/// An answer of three tokens, from the one after `told` on.
fn rest(told: usize) -> Act {
    let pieces = [
        said(&[11], "one "),
        said(&[12], "two "),
        said(&[13], "three"),
    ];
    let pieces = pieces.into_iter().skip(told);
    Act::Stream(pieces.chain([finish(), usage(), done()]).collect())
}

/// Begins the answer and breaks off.
fn begins() -> Act {
    Act::Break(vec![role(), said(&[11], "one ")])
}

async fn house(plans: Plans, nodes: [Vec<Act>; 2]) -> House {
    let [one, other] = nodes;
    // Of two that are alike, the first is asked first.
    House::planned(plans, vec![(&[Primary], one), (&[Primary], other)]).await
}

/// Where the streams of both nodes were asked for, in the order of the nodes.
fn asked(house: &House) -> Vec<Vec<Value>> {
    let bodies = |index: usize| {
        let seen = house.nodes[index].seen();
        let asked = seen
            .into_iter()
            .filter(|seen| seen.head.contains("/chat/completions"));
        asked.map(|seen| seen.body).collect()
    };
    (0..house.nodes.len()).map(bodies).collect()
}

fn outcomes(record: &AccessRecord) -> Vec<&str> {
    let attempts = record.attempts.iter();
    attempts.map(|attempt| attempt.outcome.as_str()).collect()
}

fn assert_whole(client: &Client, name: &str) {
    assert_eq!(client.said(), "one two three", "{name}: {}", client.text());
    let events = client.events();
    assert_eq!(events.last().unwrap(), &json!("[DONE]"), "{name}");
    let roles = events
        .iter()
        .filter(|event| event["choices"][0]["delta"]["role"].is_string());
    assert_eq!(roles.count(), 1, "{name}");
    assert!(
        !client.text().contains(": tokens"),
        "{name}: tokens are between us"
    );
}

fn assert_broken(client: &Client, code: &str, name: &str) {
    let events = client.events();
    assert_eq!(
        events.last().unwrap()["error"]["code"],
        code,
        "{name}: {}",
        client.text()
    );
    assert!(!client.text().contains("[DONE]"), "{name}");
}

#[tokio::test]
async fn a_twin_goes_on_token_for_token_with_the_same_id_time_and_seed() {
    let house = house(hasty(), [vec![begins()], vec![rest(1)]]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_whole(&client, "broken");
    let (one, other) = (house.nodes[0].seen(), house.nodes[1].seen());
    assert_eq!((one.len(), other.len()), (1, 1));
    let mut resumed = other[0].body.clone();
    let begun = resumed.as_object_mut().unwrap().remove("_resume");
    assert_eq!(begun, Some(json!({"tokens": [11]})));
    assert_eq!(resumed, one[0].body, "nothing else differs");
    assert!(resumed["seed"].is_u64(), "the client sent none: {resumed}");
    for name in [
        "x-hearth-completion-id",
        "x-hearth-created",
        "x-hearth-tokens",
        "x-hearth-max-tokens",
    ] {
        let value = one[0].header(name);
        assert!(
            value.is_some() && value == other[0].header(name),
            "{name}: {value:?}"
        );
    }
    assert_eq!(
        (record.outcome, outcomes(&record)),
        (Ending::Ok, vec!["broken", "ok"])
    );
    let events = client.events();
    let routing = &events[events.len() - 2]["_routing"];
    assert_eq!(routing["node"], "home-3");
    assert_eq!(
        routing["attempts"][0],
        json!({"tier": "primary", "node": "home-2", "outcome": "broken"})
    );
}

#[tokio::test]
async fn every_way_to_break_off_is_survived() {
    let begun = || vec![role(), said(&[11], "one ")];
    let with = |event: String| [begun(), vec![event]].concat();
    for act in [
        Act::Stream(begun()),
        Act::Stream(with(done())),
        Act::Stream(with("nonsense".to_owned())),
        Act::Stream(with(error("server_error", "worker_gone").to_string())),
        Act::Stream(with(error("server_error", "tier_unavailable").to_string())),
        Act::Hang(begun()),
        // Within a token that becomes more than one chunk: the twin says all of it again.
        Act::Break(with(unnamed("tw"))),
        // The end was begun and not ended.
        Act::Hang(with(unnamed("two three"))),
    ] {
        let name = format!("{act:?}");
        let house = house(hasty(), [vec![act], vec![rest(1)]]).await;

        let (client, record) = house.chat(&stream_to("primary")).await;

        assert_whole(&client, &name);
        assert_eq!(record.outcome, Ending::Ok, "{name}");
        assert_eq!(
            asked(&house)[1][0]["_resume"],
            json!({"tokens": [11]}),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_node_that_stalls_is_left_at_once() {
    let stalls = Act::Hang(vec![role(), said(&[11], "one ")]);
    let house = house(hasty(), [vec![stalls], vec![rest(1)]]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    house.nodes[0].was_left().await;
    assert_whole(&client, "stalled");
    assert_eq!(outcomes(&record), ["timed_out", "ok"]);
}

#[tokio::test]
async fn an_answer_may_be_carried_on_four_times_and_no_more() {
    let one_more = |token: i32| Act::Break(vec![said(&[token], "more ")]);
    let acts = vec![
        one_more(2),
        one_more(3),
        one_more(4),
        one_more(5),
        one_more(6),
    ];
    let mut plans = hasty();
    plans.routing.breaker_failures = 100;
    let house = house(plans, [vec![begins(), one_more(7)], acts]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_broken(&client, "upstream_error", "the fifth time");
    assert_eq!(outcomes(&record), ["broken"; 5]);
    assert_eq!(client.said(), format!("one {}", "more ".repeat(4)));
    let total: usize = asked(&house).iter().map(Vec::len).sum();
    assert_eq!(total, 5);
}

#[tokio::test]
async fn an_answer_that_gets_on_may_be_carried_on_as_often_as_it_must() {
    let many = |at: i32| {
        let tokens: Vec<i32> = (at..at + 40).collect();
        Act::Break(vec![said(&tokens, "more ")])
    };
    let acts: Vec<Act> = (1..8)
        .map(|time| many(time * 100))
        .chain([rest(1)])
        .collect();
    let mut plans = hasty();
    plans.routing.breaker_failures = 100;
    let house = House::planned(plans, vec![(&[Primary], [vec![begins()], acts].concat())]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    let said = format!("one {}two three", "more ".repeat(7));
    assert_eq!(client.said(), said, "{}", client.text());
    assert_eq!(outcomes(&record).len(), 9);
}

/// The node dies between the last chunk and the count.
#[tokio::test]
async fn an_answer_that_is_all_there_but_for_its_count_is_counted_by_a_twin() {
    let pieces = [
        role(),
        said(&[11], "one "),
        said(&[12], "two "),
        said(&[13], "three"),
        finish(),
    ];
    let uncounted = || Act::Break(pieces.to_vec());
    let house_with = async |one: Vec<Act>, twin: Vec<Act>| house(hasty(), [one, twin]).await;
    let house_of = async |twin: Vec<Act>| house_with(vec![uncounted(), Act::Die], twin).await;
    let house = house_of(vec![rest(3)]).await;
    let mut body = stream_to("primary");
    body["stream_options"] = json!({"include_usage": true});

    let (client, record) = house.chat(&body).await;

    assert_whole(&client, "counted by a twin");
    assert_eq!(
        asked(&house)[1][0]["_resume"],
        json!({"tokens": [11, 12, 13]})
    );
    assert_eq!(outcomes(&record), ["broken", "ok"]);
    let used = record.usage.expect("counted");
    assert!(!used.estimated, "{used:?}");
    let finishes = client.events().into_iter();
    let finishes = finishes.filter(|event| event["choices"][0]["finish_reason"].is_string());
    assert_eq!(finishes.count(), 1, "{}", client.text());

    // The last text came without its tokens: the twin says it, and nobody hears it twice.
    let loose = vec![
        role(),
        said(&[11], "one "),
        said(&[12], "two "),
        unnamed("three"),
        finish(),
    ];
    let house = house_with(vec![Act::Break(loose), Act::Die], vec![rest(2)]).await;
    let (client, record) = house.chat(&body).await;
    assert_whole(&client, "said by a twin");
    assert!(!record.usage.expect("counted").estimated);

    // Nobody can count it: the client has it all the same.
    let house = house_of(vec![Act::Die, Act::Die, Act::Die]).await;
    let (client, record) = house.chat(&body).await;
    assert_whole(&client, "estimated");
    assert!(record.usage.expect("estimated").estimated);
}

#[tokio::test]
async fn a_twin_that_would_write_something_else_is_refused() {
    let stranger = Act::Stream(vec![
        said_by("fp_b", &[12], "zwei"),
        finish(),
        usage(),
        done(),
    ]);
    let house = house(hasty(), [vec![begins(), Act::Die], vec![stranger]]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_broken(&client, "upstream_error", "a stranger");
    assert_eq!(
        (client.said(), record.outcome),
        ("one ".to_owned(), Ending::Broken)
    );
    assert_eq!(asked(&house)[1].len(), 1, "once is enough to know it");
}

#[tokio::test]
async fn without_a_twin_the_client_hears_of_it_when_our_patience_ends() {
    let plans = hasty();
    let house = House::planned(plans, vec![(&[Primary], vec![begins(), Act::Die])]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_broken(&client, "upstream_error", "alone");
    assert_eq!(outcomes(&record), ["broken"]);
    let (last, _) = client.chunks.last().unwrap();
    assert!(*last >= PATIENCE, "{last:?}");
}

#[tokio::test]
async fn a_node_that_is_back_in_time_goes_on_with_its_own_answer() {
    let busy = Act::Reply(503, error("server_error", "tier_unavailable"));
    let acts = vec![begins(), busy, rest(1)];
    let mut plans = hasty();
    plans.routing.migration_patience = Duration::from_secs(5);
    let house = House::planned(plans, vec![(&[Primary], acts)]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_whole(&client, "back");
    assert_eq!(outcomes(&record), ["broken", "ok"]);
}

#[tokio::test]
async fn what_nobody_can_go_on_with_breaks_at_once() {
    let mut off = hasty();
    off.routing.migration_patience = Duration::ZERO;
    let begun = vec![role(), said(&[11], "one ")];
    let fails = |kind: &str, code: &str| {
        Act::Stream([begun.clone(), vec![error(kind, code).to_string()]].concat())
    };
    let two = json!({"n": 2});
    let none = json!({});
    for (plans, act, extra, name) in [
        (off, begins(), &none, "switched off"),
        (
            hasty(),
            Act::Break(vec![role(), unnamed("one ")]),
            &none,
            "no tokens named",
        ),
        (
            hasty(),
            fails("invalid_request_error", "invalid_value"),
            &none,
            "the caller's fault",
        ),
        (
            hasty(),
            fails("server_error", "timeout"),
            &none,
            "the time is over",
        ),
        (hasty(), begins(), &two, "two answers"),
    ] {
        let house = house(plans, [vec![act], vec![rest(1)]]).await;
        let mut body = stream_to("primary");
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());

        let (client, record) = house.chat(&body).await;

        assert_broken(&client, "upstream_error", name);
        assert_eq!(
            (client.said().as_str(), outcomes(&record)),
            ("one ", vec!["broken"]),
            "{name}"
        );
        assert!(asked(&house)[1].is_empty(), "{name}");
        let named = house.nodes[0].seen()[0].header("x-hearth-tokens").is_some();
        assert_eq!(named, name != "two answers", "{name}");
    }
}

#[tokio::test]
async fn what_came_before_a_break_is_sent_where_nobody_goes_on() {
    let begun = vec![role(), said(&[11], "one "), unnamed("tw")];
    let house = House::planned(
        hasty(),
        vec![(&[Primary], vec![Act::Break(begun), Act::Die])],
    )
    .await;

    let (client, _) = house.chat(&stream_to("primary")).await;

    assert_eq!(client.said(), "one tw");
    assert_broken(&client, "upstream_error", "alone");
}

#[tokio::test]
async fn an_answer_of_two_nodes_is_charged_once() {
    let mut plans = hasty();
    plans.limits.everyone = Plan {
        tokens_per_day: Some(100_000),
        ..Plan::default()
    };
    let house = house(plans, [vec![begins()], vec![rest(1)]]).await;
    let mut body = stream_to("primary");
    body["stream_options"] = json!({"include_usage": true});

    let (client, _) = house.chat(&body).await;

    let events = client.events();
    assert_eq!(events[events.len() - 2]["usage"]["total_tokens"], 7);
    assert_eq!(left(&house, "tokens-day").await, 100_000 - 7);
    assert_eq!(left(&house, "text-day").await, 99);
    let entries = house.ledger().await;
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!((entry.tokens_in, entry.tokens_out), (5, 2));
    assert_eq!(
        entry.node.as_ref().unwrap().as_str(),
        "node_0000000000000003"
    );
}

#[tokio::test]
async fn a_client_that_leaves_during_the_search_is_charged_for_what_it_was_told() {
    let mut plans = hasty();
    plans.routing.migration_patience = Duration::from_secs(30);
    let begun = vec![role(), said(&[11, 12, 13, 14, 15], "one")];
    let acts = vec![
        Act::Break(begun),
        Act::Reply(503, error("server_error", "tier_unavailable")),
    ];
    let house = House::planned(plans, vec![(&[Primary], acts)]).await;
    let mut client = Client::sending(stream_to("primary").to_string()).leaving_after(1);

    let record = house
        .ask(Method::POST, "/v1/chat/completions", &mut client)
        .await;

    assert_eq!((record.status, record.outcome), (499, Ending::ClientGone));
    assert_eq!(record.usage.unwrap().completion_tokens, 5);
    house.gateway.settle(Duration::from_secs(5)).await;
    let entries = house.ledger().await;
    assert_eq!((entries.len(), entries[0].tokens_out), (1, 5));
}

#[tokio::test]
async fn silence_during_the_search_is_filled_with_comments() {
    let mut plans = hasty();
    plans.routing.migration_patience = Duration::from_secs(5);
    plans.routing.idle_timeout = Duration::from_secs(5);
    plans.routing.commit_after = Duration::from_millis(50);
    plans.routing.keepalive = Duration::from_millis(50);
    let slow = Act::Slowly(
        Duration::from_millis(200),
        vec![
            said(&[12], "two "),
            said(&[13], "three"),
            finish(),
            usage(),
            done(),
        ],
    );
    let house = house(plans, [vec![begins()], vec![slow]]).await;

    let (client, _) = house.chat(&stream_to("primary")).await;

    assert_whole(&client, "slow");
    assert!(client.text().contains(": keep-alive"), "{}", client.text());
}

#[tokio::test]
async fn a_silent_node_is_asked_whether_it_lives_and_left_if_not() {
    let alive = Act::Reply(200, json!({"status": "ok"}));
    let slow = |after| {
        Act::Slowly(
            Duration::from_millis(after),
            vec![
                role(),
                said(&[11], "one "),
                said(&[12], "two "),
                said(&[13], "three"),
                finish(),
                usage(),
                done(),
            ],
        )
    };
    let stalled = Act::Hang(vec![role(), said(&[11], "one ")]);
    for (acts, survives) in [
        (vec![slow(120), alive], true),
        (vec![stalled, Act::Die], false),
    ] {
        let mut plans = hasty();
        plans.routing.idle_timeout = Duration::from_secs(30);
        plans.routing.stall_after = Duration::from_millis(50);
        let house = house(plans, [acts, vec![rest(1)]]).await;

        let (client, record) = house.chat(&stream_to("primary")).await;

        assert_whole(&client, "silent");
        let wanted = if survives {
            vec!["ok"]
        } else {
            vec!["broken", "ok"]
        };
        assert_eq!(outcomes(&record), wanted);
        let seen = house.nodes[0].seen();
        assert!(
            seen.iter().any(|seen| seen.head.starts_with("GET /health")),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_stands_still_goes_on_elsewhere_though_its_node_lives() {
    let pause = Duration::from_millis(5);
    let pieces = (1..=6).map(|token| said(&[token], "more "));
    let begun: Vec<String> = std::iter::once(role()).chain(pieces).collect();
    let stalls = vec![
        Act::Stall(pause, begun),
        Act::Reply(200, json!({"status": "ok"})),
    ];
    let mut plans = hasty();
    plans.routing.idle_timeout = Duration::from_secs(30);
    plans.routing.stall_after = Duration::from_millis(100);
    let house = house(plans, [stalls, vec![rest(2)]]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_eq!(client.said(), format!("{}three", "more ".repeat(6)));
    assert_eq!(outcomes(&record), ["broken", "ok"]);
    house.nodes[0].was_left().await;
}

#[tokio::test]
async fn an_answer_that_stands_still_is_waited_for_where_nobody_else_could_go_on() {
    let pause = Duration::from_millis(5);
    let pieces = (1..=6).map(|token| said(&[token], "more "));
    let begun: Vec<String> = std::iter::once(role()).chain(pieces).collect();
    let alive = Act::Reply(200, json!({"status": "ok"}));
    let mut plans = hasty();
    plans.routing.idle_timeout = Duration::from_millis(600);
    plans.routing.stall_after = Duration::from_millis(50);
    let acts = vec![Act::Stall(pause, begun), alive];
    let house = House::planned(plans, vec![(&[Primary], acts)]).await;

    let (_, record) = house.chat(&stream_to("primary")).await;

    assert_eq!(outcomes(&record), ["timed_out"]);
}
