//! Sixteen answers at once, coming and going at random, each the same as alone: to the last bit of its log-probabilities as long as a step
//! computes one token of an answer. Guessing ahead and one memory for all slots compute several rows of attention at once, which llama.cpp
//! sums in another order: log-probabilities then move by up to a twentieth, and where two tokens are closer than that, either may come.

use std::time::Duration;

use engine::GenerateSpec;
use engine::LoadSpec;
use engine::Worker;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::Answer;
use crate::support::answer;
use crate::support::ask;
use crate::support::next;
use crate::support::start;
use crate::support::tiny;

const STREAMS: usize = 16;
const STARTS: [&str; 3] = [
    "",
    "You are a pirate who answers everything in one short line and loves the sea. ",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on and on in the sun. ",
];
const QUESTIONS: [&str; 6] = [
    "What is the capital of France?",
    "Tell me a short story.",
    "List three fruits.",
    "What is a token?",
    "How are you?",
    "Who are you?",
];

/// One stream: what it asks, when it comes, and after how many events its reader leaves.
#[derive(Clone, Debug)]
struct Stream {
    start: usize,
    question: usize,
    tokens: u32,
    after_us: u64,
    leaves: Option<usize>,
    principal: u64,
}

fn stream() -> impl Strategy<Value = Stream> {
    let leaves = prop::option::weighted(0.3, 0_usize..20);
    let parts = (
        0..STARTS.len(),
        0..QUESTIONS.len(),
        1_u32..60,
        0_u64..20_000,
        leaves,
        0_u64..3,
    );
    parts.prop_map(
        |(start, question, tokens, after_us, leaves, principal)| Stream {
            start,
            question,
            tokens,
            after_us,
            leaves,
            principal,
        },
    )
}

fn spec(stream: &Stream) -> GenerateSpec {
    let text = format!("{}{}", STARTS[stream.start], QUESTIONS[stream.question]);
    GenerateSpec {
        max_tokens: Some(stream.tokens),
        logprobs: Some(2),
        ignore_eos: true,
        principal: stream.principal,
        ..ask(&text)
    }
}

/// The answer of a stream, or nothing if its reader left.
async fn run(worker: &Worker, stream: Stream) -> Option<Answer> {
    tokio::time::sleep(Duration::from_micros(stream.after_us)).await;
    let Some(events) = stream.leaves else {
        return Some(answer(worker, spec(&stream)).await);
    };
    let mut generation = worker.generate(spec(&stream)).await.expect("there is room");
    for _event in 0..events {
        if next(&mut generation).await.is_none() {
            break;
        }
    }
    None
}

/// Largest difference of log-probabilities before the answers part, and how close the best two tokens were where they did.
fn compare(together: &Answer, alone: &Answer) -> (f32, Option<f32>) {
    let mut moved = 0.0_f32;
    for (ours, theirs) in together.logprobs.iter().zip(&alone.logprobs) {
        if ours.chosen.token != theirs.chosen.token {
            let gap = theirs.top[0].logprob - theirs.top[1].logprob;
            return (moved, Some(gap));
        }
        moved = moved.max((ours.chosen.logprob - theirs.chosen.logprob).abs());
    }
    (moved, None)
}

#[test]
fn sixteen_interleaved_answers_are_each_the_same_as_alone() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    // One token at a time is exact; rows of attention side by side are not, by so much.
    for (ngram, kv_unified, slack) in [(false, false, 1e-4), (true, true, 0.1)] {
        let shared = LoadSpec {
            slots: 8,
            n_ctx: 512,
            ngram,
            kv_unified,
            ..tiny("fast")
        };
        let (together, alone) = runtime.block_on(async {
            (
                start(shared).await,
                start(LoadSpec {
                    slots: 1,
                    prompt_cache_bytes: 0,
                    ..tiny("fast")
                })
                .await,
            )
        });
        let config = ProptestConfig {
            cases: 12,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let mut runner = TestRunner::new(config);
        let streams = prop::collection::vec(stream(), STREAMS);
        let held = runner.run(&streams, |streams| {
            runtime.block_on(async {
                let running = streams.iter().map(|stream| run(&together, stream.clone()));
                let answers = join_all(running).await;
                for (stream, ours) in streams.iter().zip(answers) {
                    let Some(ours) = ours else { continue };
                    let lonely = GenerateSpec {
                        cache_prompt: false,
                        ..spec(stream)
                    };
                    let expected = answer(&alone, lonely).await;
                    let (moved, parted) = compare(&ours, &expected);
                    prop_assert!(moved < slack, "{stream:?}: {moved}");
                    match parted {
                        None => prop_assert_eq!(ours.text, expected.text),
                        Some(gap) => prop_assert!(gap < slack, "{stream:?}: {gap}"),
                    }
                }
                Ok(())
            })
        });
        held.expect("every answer is the same as alone");
    }
}
