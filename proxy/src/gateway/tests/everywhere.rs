//! An answer that is cut after every token and within every byte of it: whoever goes on, the client reads the same events.

use std::sync::Arc;
use std::time::Duration;

use config::tier::Tier::Primary;
use policy::record::Ending;
use serde_json::{Value, json};

use super::client::Client;
use super::house::{House, Plans, stream_to};
use super::node::{Act, Script, usage};

fn chunk(delta: &Value, finish_reason: Option<&str>) -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny",
        "system_fingerprint": "fp_a",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "usage": null,
    })
    .to_string()
}

fn script(pieces: Vec<(Vec<i32>, Value)>, finish_reason: &str) -> Arc<Script> {
    let pieces = pieces.into_iter();
    Arc::new(Script {
        role: chunk(&json!({"role": "assistant", "content": ""}), None),
        pieces: pieces
            .map(|(tokens, delta)| (tokens, chunk(&delta, None)))
            .collect(),
        tail: vec![
            chunk(&json!({}), Some(finish_reason)),
            usage(),
            "[DONE]".to_owned(),
        ],
    })
}

/// Sixty-four tokens, a word each.
fn words() -> Arc<Script> {
    let word = |at: i32| (vec![at], json!({"content": format!("word{at} ")}));
    script((100..164).map(word).collect(), "stop")
}

/// Letters that take more than one token each: a chunk comes when its letter is whole.
fn letters() -> Arc<Script> {
    let letters = "Grüße, 世界! 🐙🇨🇭 e\u{301}".chars().enumerate();
    let letter = |(at, letter): (usize, char)| {
        let at = i32::try_from(at).unwrap() * 4;
        let tokens = (at..at + i32::try_from(letter.len_utf8()).unwrap()).collect();
        (tokens, json!({"content": letter.to_string()}))
    };
    script(letters.map(letter).collect(), "stop")
}

/// A call whose arguments come in pieces.
fn call() -> Arc<Script> {
    let first = json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]});
    let arguments = ["{", "\"pl", "ace\"", ":", "\"Zür", "ich\"", "}"];
    let more = arguments.iter().zip(10..).map(|(text, token)| {
        let function = json!({"arguments": text});
        (
            vec![token],
            json!({"tool_calls": [{"index": 0, "function": function}]}),
        )
    });
    let pieces = std::iter::once((vec![1, 2, 3], first)).chain(more);
    script(pieces.collect(), "tool_calls")
}

/// An object of a schema.
fn object() -> Arc<Script> {
    let texts = [
        "{\"", "name", "\":", " \"A", "da", "\",", "\"age", "\":", "36", "}",
    ];
    let pieces = texts.iter().zip(1..);
    let pieces = pieces.map(|(text, token)| (vec![token], json!({"content": text})));
    script(pieces.collect(), "stop")
}

fn plans() -> Plans {
    let mut plans = Plans::default();
    plans.routing.migration_patience = Duration::from_secs(5);
    plans.routing.breaker_failures = 1_000;
    plans
}

/// Everything but what may differ: which nodes were at work, and how long it took.
fn events(client: &Client) -> Vec<Value> {
    let mut events = client.events();
    for event in &mut events {
        if let Some(members) = event.as_object_mut() {
            members.remove("_routing");
            members.remove("id");
            members.remove("created");
        }
    }
    events
}

async fn asked(acts: [Act; 2]) -> (Vec<Value>, Ending, House) {
    let [one, other] = acts;
    let nodes: Vec<(&[config::tier::Tier], Vec<Act>)> =
        vec![(&[Primary], vec![one]), (&[Primary], vec![other])];
    let house = House::planned(plans(), nodes).await;
    let (client, record) = house.chat(&stream_to("primary")).await;
    (events(&client), record.outcome, house)
}

/// Cut after so many bytes of the node's answer, carried on by the other node.
async fn cut_at(script: &Arc<Script>, bytes: usize) -> (Vec<Value>, Ending, House) {
    let whole = Act::Twin(Arc::clone(script), None);
    asked([Act::Twin(Arc::clone(script), Some(bytes)), whole]).await
}

async fn unbroken(script: &Arc<Script>) -> Vec<Value> {
    let whole = || Act::Twin(Arc::clone(script), None);
    let (events, outcome, _) = asked([whole(), whole()]).await;
    assert_eq!(outcome, Ending::Ok);
    events
}

#[tokio::test]
async fn an_answer_cut_after_any_of_its_tokens_is_the_unbroken_one() {
    for (name, script) in [
        ("words", words()),
        ("letters", letters()),
        ("call", call()),
        ("object", object()),
    ] {
        let unbroken = unbroken(&script).await;
        for told in 0..=script.pieces.len() {
            let bytes = script.ends_after(told);
            let (events, outcome, house) = cut_at(&script, bytes).await;
            assert_eq!(outcome, Ending::Ok, "{name}, {told} told");
            assert_eq!(events, unbroken, "{name}, {told} told");
            let resumed = house.nodes[1].seen();
            let tokens = |seen: &Value| seen.pointer("/_resume/tokens").cloned();
            let wanted: Vec<i32> = script.pieces[..told]
                .iter()
                .flat_map(|(tokens, _)| tokens.clone())
                .collect();
            if told > 0 {
                assert_eq!(tokens(&resumed[0].body), Some(json!(wanted)), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_cut_within_any_of_its_bytes_is_the_unbroken_one() {
    for (name, script) in [("letters", letters()), ("call", call())] {
        let unbroken = unbroken(&script).await;
        let end = script.ends_after(script.pieces.len());
        // Every fifth byte of a chunk in the middle, so that a letter is cut at each of its bytes in one chunk or another, and a step
        // through the rest that falls on no boundary again and again.
        let chunk = script.ends_after(2)..script.ends_after(3);
        let places = (0..end).step_by(127).chain(chunk.step_by(5));
        for bytes in places {
            let (events, outcome, _) = cut_at(&script, bytes).await;
            assert_eq!(outcome, Ending::Ok, "{name}, cut at {bytes}");
            assert_eq!(events, unbroken, "{name}, cut at {bytes}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_again_and_again_is_the_unbroken_one() {
    let script = words();
    let unbroken = unbroken(&script).await;
    for first in [1, 20, 63] {
        let cut = |bytes| Act::Twin(Arc::clone(&script), Some(bytes));
        // Each goes on for a few tokens and is lost again; the fourth says the rest.
        let nodes: Vec<(&[config::tier::Tier], Vec<Act>)> = vec![
            (
                &[Primary],
                vec![
                    cut(script.ends_after(first)),
                    cut(500),
                    Act::Twin(Arc::clone(&script), None),
                ],
            ),
            (&[Primary], vec![cut(700), cut(900)]),
        ];
        let house = House::planned(plans(), nodes).await;
        let (client, record) = house.chat(&stream_to("primary")).await;
        assert_eq!(record.outcome, Ending::Ok, "{first}: {:?}", record.attempts);
        assert_eq!(events(&client), unbroken, "{first}");
    }
}
