//! What tokens cost: reserved before, counted by the model where it matters, charged as they were used.

use std::time::Duration;

use config::settings::plan::{Plan, Price, WhenUsedUp};
use config::tier::Tier::{Heavy, Primary};
use http::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::house::{House, Plans, to};
use super::node::{Act, answer, error};
use crate::store::ledger::RecordQuery;

fn everyone(figures: Plan) -> Plans {
    let mut plans = Plans::default();
    plans.limits.everyone = figures;
    plans
}

fn tokens_a_day(tokens: u64) -> Plan {
    Plan {
        tokens_per_day: Some(tokens),
        ..Plan::default()
    }
}

/// What is left of a limit, once all is settled.
pub(super) async fn left(house: &House, limit: &str) -> u64 {
    house.gateway.settle(Duration::from_secs(5)).await;
    let mut client = Client::sending(String::new());
    house.ask(Method::GET, "/api/user", &mut client).await;
    let profile = client.json();
    let limits = profile["limits"].as_array().unwrap().clone();
    let found = limits.iter().find(|state| state["name"] == limit);
    found.unwrap_or_else(|| panic!("no {limit} in {profile}"))["remaining"]
        .as_u64()
        .unwrap()
}

fn paths(house: &House, node: usize) -> Vec<String> {
    let seen = house.nodes[node].seen();
    let path = |head: &str| head.split(' ').nth(1).unwrap().to_owned();
    seen.iter().map(|seen| path(&seen.head)).collect()
}

#[tokio::test]
async fn far_from_a_limit_the_estimate_is_enough_and_what_was_used_is_charged() {
    let plans = everyone(tokens_a_day(100_000));
    let house = House::planned(
        plans,
        vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])],
    )
    .await;
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 200);
    assert_eq!(paths(&house, 0), ["/v1/chat/completions"]);
    let most = house.nodes[0].seen()[0]
        .header("x-hearth-max-tokens")
        .unwrap()
        .to_owned();
    assert_eq!(most, "512", "2,048 by default, and the context holds 512");
    assert_eq!(left(&house, "tokens-day").await, 100_000 - 7);
}

#[tokio::test]
async fn close_to_a_limit_the_model_s_own_tokenizer_counts_and_the_answer_gets_the_rest() {
    let counted = Act::Reply(200, json!({"prompt_tokens": 5}));
    let acts = vec![counted, Act::Reply(200, answer("hi"))];
    let house = House::planned(everyone(tokens_a_day(42)), vec![(&[Primary], acts)]).await;
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    assert_eq!(
        paths(&house, 0),
        ["/count/v1/chat/completions", "/v1/chat/completions"]
    );
    let most = house.nodes[0].seen()[1]
        .header("x-hearth-max-tokens")
        .unwrap()
        .to_owned();
    assert_eq!(most, "37");
    assert_eq!(left(&house, "tokens-day").await, 42 - 7);
}

#[tokio::test]
async fn close_to_a_limit_without_a_tokenizer_the_estimate_stands() {
    let acts = vec![Act::Reply(404, error("invalid_request_error", "not_found"))];
    let house = House::planned(everyone(tokens_a_day(42)), vec![(&[Primary], acts)]).await;
    let (client, record) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 429);
    assert_eq!(record.refusal, Some("never_fits"));
    assert_eq!(left(&house, "tokens-day").await, 42, "nothing was charged");
}

#[tokio::test]
async fn a_retry_of_what_was_not_served_is_charged_once() {
    let busy = Act::Reply(503, error("server_error", "overloaded"));
    let acts = vec![busy, Act::Reply(200, answer("hi"))];
    let plans = everyone(tokens_a_day(100_000));
    let house = House::planned(plans, vec![(&[Primary], acts)]).await;
    let (first, _) = house.chat(&to("primary")).await;
    assert_eq!(first.status.unwrap(), 503);
    assert_eq!(left(&house, "text-day").await, 100);
    let (second, _) = house.chat(&to("primary")).await;
    assert_eq!(second.status.unwrap(), 200);
    assert_eq!(left(&house, "text-day").await, 99);
    assert_eq!(left(&house, "tokens-day").await, 100_000 - 7);
}

#[tokio::test]
async fn a_fallback_is_charged_to_the_tier_that_answered() {
    let mut plans = everyone(Plan {
        heavy_tokens_per_day: Some(10_000),
        primary_tokens_per_day: Some(20_000),
        ..Plan::default()
    });
    let price = |output| Price {
        output,
        ..Price::default()
    };
    plans
        .prices
        .models
        .insert("heavy".to_owned(), price(9_000_000));
    plans
        .prices
        .models
        .insert("primary".to_owned(), price(1_000_000));
    let broken = vec![Act::Reply(500, error("server_error", "internal_error"))];
    let nodes: Vec<(&[_], _)> = vec![
        (&[Heavy], broken),
        (&[Primary], vec![Act::Reply(200, answer("hi"))]),
    ];
    let house = House::planned(plans, nodes).await;
    let (client, record) = house.chat(&to("heavy")).await;
    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    assert_eq!(record.fallback.as_deref(), Some("heavy->primary"));
    assert_eq!(left(&house, "tokens-day-heavy").await, 10_000);
    assert_eq!(left(&house, "tokens-day-primary").await, 20_000 - 7);
    let entries = house.ledger().await;
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (
            entries[0].tier,
            entries[0].tokens_in,
            entries[0].tokens_out,
            entries[0].micros
        ),
        (Some(Primary), 5, 2, 2)
    );
}

#[tokio::test]
async fn a_tier_without_budget_is_left_out_of_the_way_round() {
    let plans = everyone(Plan {
        primary_tokens_per_day: Some(3),
        ..Plan::default()
    });
    let broken = vec![Act::Reply(500, error("server_error", "internal_error"))];
    let nodes: Vec<(&[_], _)> = vec![
        (&[Heavy], broken),
        (&[Primary], vec![Act::Reply(404, Value::Null)]),
    ];
    let house = House::planned(plans, nodes).await;
    let (client, _) = house.chat(&to("heavy")).await;
    assert_eq!(client.status.unwrap(), 502, "{}", client.text());
    let asked = paths(&house, 1);
    assert!(
        !asked.contains(&"/v1/chat/completions".to_owned()),
        "{asked:?}"
    );
}

#[tokio::test]
async fn when_the_heavy_budget_is_gone_the_plan_says_whether_a_smaller_tier_answers() {
    for (when, status) in [(WhenUsedUp::Downgrade, 200), (WhenUsedUp::Refuse, 429)] {
        let plans = everyone(Plan {
            heavy_tokens_per_day: Some(3),
            when_heavy_is_used_up: Some(when),
            ..Plan::default()
        });
        let nodes: Vec<(&[_], _)> = vec![
            (&[Heavy], vec![Act::Reply(404, Value::Null)]),
            (&[Primary], vec![Act::Reply(200, answer("hi"))]),
        ];
        let house = House::planned(plans, nodes).await;
        let (client, _) = house.chat(&to("heavy")).await;
        assert_eq!(
            client.status.unwrap(),
            status,
            "{when:?}: {}",
            client.text()
        );
        if status == 200 {
            let routing = client.json()["_routing"].clone();
            assert_eq!(routing["fallback"], "heavy->primary");
            assert_eq!(routing["reason"], "requested; tokens-day-heavy is used up");
        }
    }
}

#[tokio::test]
async fn a_request_that_a_node_refuses_costs_a_request_and_no_token() {
    let wrong = Act::Reply(400, error("invalid_request_error", "invalid_value"));
    let house = House::planned(
        everyone(tokens_a_day(100_000)),
        vec![(&[Primary], vec![wrong])],
    )
    .await;
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 400);
    assert_eq!(left(&house, "text-day").await, 99);
    assert_eq!(left(&house, "tokens-day").await, 100_000);
}

impl House {
    /// Every line of the books.
    pub(super) async fn ledger(&self) -> Vec<policy::ledger::LedgerEntry> {
        let query = RecordQuery::of(policy::identity::Tenant::default());
        let store = self.store();
        let page = store.records(&query).await.unwrap();
        page.entries
    }
}
