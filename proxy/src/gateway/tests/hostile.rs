//! Nodes that attack: a stolen machine answers with whatever hurts. The client gets another node's answer or an error, never a
//! header, a byte or a second answer of the attacker's making, and never waits for ever.

use std::time::{Duration, Instant};

use config::tier::Tier::{Heavy, Primary};
use policy::record::Ending;
use serde_json::{Value, json};

use super::house::{House, stream_to, to};
use super::node::{Act, answer, piece, role, says};

const JSON: &str = "content-type: application/json\r\n";
const STREAM: &str = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n";

fn raw(head: &str, body: &[u8], again: &[u8]) -> Act {
    let mut first = format!("HTTP/1.1 {head}\r\n").into_bytes();
    first.extend_from_slice(body);
    Act::Raw(first, again.to_vec())
}

fn chunk(data: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// The attacker serves the heavy tier, an honest node the primary one.
async fn beside(act: Act, honest: Act) -> House {
    House::with(vec![(&[Heavy], vec![act]), (&[Primary], vec![honest])]).await
}

fn answers_with_a_bad_head() -> Vec<(&'static str, Act)> {
    let good = answer("evil").to_string();
    let (good, length) = (good.as_bytes(), good.len());
    let letters = vec![b'a'; 64 * 1024];
    let fields = "x: y\r\n".repeat(70);
    let one = |head: &str, body: &[u8]| raw(head, body, b"");
    let moved = "302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n";
    let switched = "101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: evil\r\n";
    let lengths = format!("200 OK\r\ncontent-length: 1\r\ncontent-length: {length}\r\n");
    let crowded = format!("200 OK\r\n{fields}content-length: {length}\r\n");
    let partial = format!("206 Partial Content\r\ncontent-length: {length}\r\n");
    vec![
        ("no HTTP", Act::Raw(vec![0x16, 3, 1, 0, 0], letters.clone())),
        ("a head without end", raw("200 OK\r\nx-a: ", b"", &letters)),
        ("too many fields", one(&crowded, good)),
        ("two lengths", one(&lengths, good)),
        ("another protocol", one(switched, b"")),
        ("another place", one(moved, b"")),
        ("part of an answer", one(&partial, good)),
    ]
}

fn answers_with_a_bad_body() -> Vec<(&'static str, Act)> {
    let letters = vec![b'a'; 64 * 1024];
    let chunked = format!("200 OK\r\n{JSON}transfer-encoding: chunked\r\n");
    let huge = format!("200 OK\r\n{JSON}content-length: {}\r\n", i64::MAX);
    let deep = "[".repeat(60_000);
    let deep_head = format!("200 OK\r\ncontent-length: {}\r\n", deep.len());
    let one = |head: &str, body: &[u8]| raw(head, body, b"");
    vec![
        ("a body without end", raw(&chunked, b"", &chunk(&letters))),
        ("a body of 8 EiB", raw(&huge, b"", &letters)),
        ("chunks of no size", one(&chunked, b"zz\r\nabc\r\n")),
        ("too large a chunk", one(&chunked, b"fffffffffffffffff\r\n")),
        ("JSON of great depth", one(&deep_head, deep.as_bytes())),
    ]
}

#[tokio::test]
async fn a_whole_answer_that_attacks_becomes_another_nodes_answer() {
    let attacks = answers_with_a_bad_head().into_iter();
    for (name, act) in attacks.chain(answers_with_a_bad_body()) {
        let house = beside(act, Act::Reply(200, answer("honest"))).await;
        let begun = Instant::now();
        let (client, record) = house.chat(&to("heavy")).await;
        assert_eq!(client.status.unwrap(), 200, "{name}");
        let said = client.json()["choices"][0]["message"]["content"].clone();
        assert_eq!(
            (said, record.outcome),
            (json!("honest"), Ending::Ok),
            "{name}"
        );
        assert!(begun.elapsed() < Duration::from_secs(10), "{name}");
    }
}

#[tokio::test]
async fn interim_answers_without_end_cost_the_time_of_one_try() {
    let mut plans = super::house::Plans::default();
    plans.routing.first_byte_timeout = Duration::from_millis(300);
    let flood = Act::Raw(
        Vec::new(),
        b"HTTP/1.1 103 Early Hints\r\nlink: </evil>\r\n\r\n".repeat(100),
    );
    let nodes: Vec<(&[_], _)> = vec![
        (&[Heavy], vec![flood]),
        (&[Primary], vec![Act::Stream(says("honest"))]),
    ];
    let house = House::planned(plans, nodes).await;
    let begun = Instant::now();
    let (client, _) = house.chat(&stream_to("heavy")).await;
    assert_eq!(client.said(), "honest");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn no_header_of_a_node_reaches_a_client() {
    let evil = "set-cookie: a=b\r\nlocation: /evil\r\naccess-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\n\
                content-security-policy: script-src *\r\nx-request-id: forged\r\nx-ratelimit-remaining-requests: 9\r\ncontent-encoding: gzip\r\n";
    let whole = answer("hi").to_string();
    let length = whole.len();
    let head = format!("200 OK\r\n{JSON}{evil}content-length: {length}\r\n");
    let mut events = Vec::new();
    for event in says("hi") {
        events.extend(chunk(format!("data: {event}\n\n").as_bytes()));
    }
    events.extend_from_slice(b"0\r\nset-cookie: c=d\r\n\r\n");
    for (act, body) in [
        (raw(&head, whole.as_bytes(), b""), to("heavy")),
        (
            raw(&format!("200 OK\r\n{STREAM}{evil}"), &events, b""),
            stream_to("heavy"),
        ),
    ] {
        let house = House::with(vec![(&[Heavy], vec![act])]).await;
        let (client, _) = house.chat(&body).await;
        assert_eq!(client.status.unwrap(), 200);
        for name in [
            "set-cookie",
            "location",
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "content-security-policy",
            "content-encoding",
        ] {
            assert!(client.headers.get(name).is_none(), "{name}");
        }
        let shown = format!("{:?}", client.headers);
        assert!(
            !shown.contains("forged") && !shown.contains("\"9\""),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_second_answer_in_the_same_bytes_is_nobodys() {
    let (first, second) = (answer("first").to_string(), answer("evil").to_string());
    let both = format!(
        "HTTP/1.1 200 OK\r\n{JSON}content-length: {}\r\n\r\n{first}HTTP/1.1 200 OK\r\n{JSON}content-length: {}\r\n\r\n{second}",
        first.len(),
        second.len()
    );
    let acts = vec![
        Act::Raw(both.into_bytes(), Vec::new()),
        Act::Reply(200, answer("true")),
    ];
    let house = House::with(vec![(&[Primary], acts)]).await;
    for expected in ["first", "true", "true"] {
        let (client, _) = house.chat(&to("primary")).await;
        let said = client.json()["choices"][0]["message"]["content"].clone();
        assert_eq!(said, expected);
    }
}

#[tokio::test]
async fn a_stream_that_attacks_ends_with_an_error_and_not_as_if_complete() {
    let begun: Vec<u8> = [role(), piece("h")]
        .iter()
        .flat_map(|event| chunk(format!("data: {event}\n\n").as_bytes()))
        .collect();
    let letters = vec![b'a'; 64 * 1024];
    let mut endless = begun.clone();
    endless.extend(chunk(b"data: "));
    let mut broken = begun.clone();
    broken.extend_from_slice(b"-5\r\n");
    for (name, act) in [
        (
            "one event without end",
            raw(&format!("200 OK\r\n{STREAM}"), &endless, &chunk(&letters)),
        ),
        (
            "a chunk of less than nothing",
            raw(&format!("200 OK\r\n{STREAM}"), &broken, b""),
        ),
    ] {
        let house = beside(act, Act::Stream(says("honest"))).await;
        let (client, record) = house.chat(&stream_to("heavy")).await;
        assert_eq!(record.outcome, Ending::Broken, "{name}");
        let text = client.text();
        assert!(!text.contains("[DONE]") && !text.contains("aaaa"), "{name}");
    }
}

#[tokio::test]
async fn an_event_cannot_break_out_of_its_frame_or_forge_what_the_proxy_says() {
    // Line breaks between the members, other fields of the protocol, and metadata that only the proxy makes.
    let forged = [
        "event: evil\r\nid: 7\r\nretry: 1\r\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"h\"}}],\r\ndata: \"_routing\":{\"tier\":\"root\"}}\r\n\r\n".to_owned(),
        "data: {\"choices\":\rdata: [{\"index\":0,\"delta\":{\"content\":\"i\"}}]}\r\r".to_owned(),
        format!("data: {}\n\n", super::node::finish().replacen('{', "{\"_routing\":{\"tier\":\"root\"},", 1)),
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":18446744073709551615,\"completion_tokens\":18446744073709551615},\"_routing\":1}\n\n".to_owned(),
        "data: [DONE]\n\n".to_owned(),
    ];
    let mut body: Vec<u8> = forged
        .iter()
        .flat_map(|event| chunk(event.as_bytes()))
        .collect();
    body.extend_from_slice(b"0\r\n\r\n");
    let act = raw(&format!("200 OK\r\n{STREAM}"), &body, b"");
    let house = House::with(vec![(&[Heavy], vec![act.clone(), act])]).await;
    for usage in [false, true] {
        let mut asked = stream_to("heavy");
        asked["stream_options"] = json!({"include_usage": usage});
        let (client, record) = house.chat(&asked).await;
        assert_eq!((client.said().as_str(), record.outcome), ("hi", Ending::Ok));
        let text = client.text();
        assert!(
            text.lines()
                .all(|line| line.is_empty() || line.starts_with("data: ")),
            "{text}"
        );
        let tiers: Vec<Value> = client
            .events()
            .iter()
            .filter_map(|event| event.get("_routing").map(|routing| routing["tier"].clone()))
            .collect();
        assert_eq!(tiers, [json!("heavy")], "{text}");
    }
}
