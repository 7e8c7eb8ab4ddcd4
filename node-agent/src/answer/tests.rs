use std::time::Instant;

use engine::Event;

use super::chat_stream::ChatStream;
use super::chat_whole::ChatWhole;
use super::*;
use crate::tools::format::{ThinkTags, ToolFormat};
use crate::tools::splitter::SplitRules;

fn rules() -> SplitRules {
    SplitRules {
        calls: Some(ToolFormat::Hermes),
        thoughts: Some(ThinkTags::THINK),
        ..SplitRules::default()
    }
}

fn envelope() -> Envelope {
    Envelope {
        id: "chatcmpl-1".to_owned(),
        created: 1_700_000_000,
        model: "tiny".to_owned(),
        fingerprint: Some("fp_0".to_owned()),
        include_usage: true,
        n: 1,
        watts: None,
        load_ms: None,
        dropped: 0,
        names_tokens: false,
        goes_on: false,
    }
}

fn piece(text: &str) -> Event {
    Event::Piece {
        text: text.to_owned(),
        tokens: 1,
        logprobs: Vec::new(),
        ids: Vec::new(),
    }
}

fn done(completion_tokens: u32) -> Event {
    Event::Done {
        finish: Finish::Stop,
        usage: engine::Usage {
            prompt_tokens: 9,
            completion_tokens,
            cached_tokens: 4,
            image_tokens: 0,
            audio_tokens: 0,
        },
        timings: engine::Timings {
            queue_ms: 0.0,
            prompt_ms: 2.0,
            predicted_ms: 8.0,
        },
    }
}

fn events() -> Vec<Event> {
    vec![
        Event::Started {
            prompt_tokens: 9,
            cached_tokens: 4,
            queue_ms: 0,
            told: Vec::new(),
        },
        piece("<think>so"),
        piece("</think>\n\nLet me "),
        piece("look.\n<tool_call>{\"name\": \"f\", "),
        piece("\"arguments\": {\"a\""),
        piece(": 1}}\n</tool_call>"),
        done(6),
    ]
}

/// The contract with the relay: bytes on the wire.
#[test]
fn a_stream_with_thoughts_text_and_a_call_reads_like_this() {
    let mut stream = ChatStream::new(envelope(), &rules(), 1);
    let mut out = Vec::new();
    for event in events() {
        stream.event(0, &event, &mut out, Instant::now());
    }
    stream.end(&mut out);
    insta::assert_snapshot!(String::from_utf8_lossy(&out));
}

#[test]
fn a_whole_answer_holds_the_same() {
    let mut whole = ChatWhole::new(envelope(), &rules(), 1);
    for event in events() {
        whole.event(0, &event);
    }
    let json = serde_json::to_string_pretty(&whole.finish()).expect("JSON");
    insta::assert_snapshot!(json);
}

#[test]
fn the_prompt_counts_once_for_all_answers_to_it() {
    let mut tally = Tally::default();
    for choice in 0..4 {
        let Event::Done { usage, timings, .. } = done(5) else {
            continue;
        };
        tally.add(choice, 2, usage, timings);
    }
    let usage = tally.usage();
    assert_eq!(
        (usage.prompt_tokens, usage.completion_tokens),
        (18, 20),
        "two prompts, two answers each"
    );
    let rate = tally.timings().predicted_per_second;
    assert!((rate - 2_500.0).abs() < 0.1, "{rate}");
}

#[test]
fn log_probabilities_of_text_held_back_wait_for_the_text() {
    let known = |text: &str| Event::Piece {
        text: text.to_owned(),
        tokens: 1,
        logprobs: vec![engine::TokenLogprob {
            chosen: engine::LogprobEntry {
                token: 1,
                bytes: text.as_bytes().to_vec(),
                logprob: -0.5,
            },
            top: Vec::new(),
        }],
        ids: Vec::new(),
    };
    let mut stream = ChatStream::new(envelope(), &rules(), 1);
    let mut out = Vec::new();
    for event in [known("a <tool"), known("box"), done(2)] {
        stream.event(0, &event, &mut out, Instant::now());
    }
    let text = String::from_utf8_lossy(&out);
    let counts: Vec<usize> = text
        .lines()
        .map(|line| line.matches("\"logprob\":").count())
        .filter(|count| *count > 0)
        .collect();
    assert_eq!(counts, [1, 1], "each token once: {text}");
}
