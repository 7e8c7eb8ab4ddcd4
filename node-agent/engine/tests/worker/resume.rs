//! An answer that one worker has begun goes on in another one as if nothing had happened, wherever it was cut.

use engine::Dry;
use engine::Finish;
use engine::GenerateSpec;
use engine::Grammar;
use engine::Mirostat;
use engine::MirostatVersion;
use engine::Refusal;
use engine::Resume;
use engine::Sampling;
use engine::Worker;
use serde_json::json;

use crate::support::Answer;
use crate::support::answer;
use crate::support::ask;
use crate::support::start;
use crate::support::tiny;

const TOKENS: u32 = 64;

fn seeded(temperature: f32) -> Sampling {
    Sampling {
        temperature,
        seed: Some(42),
        ..Sampling::default()
    }
}

/// What was told when the answer had so many tokens.
fn told(whole: &Answer, tokens: usize) -> &str {
    let (mut made, mut end) = (0, 0);
    for (text, ids) in whole.pieces.iter().zip(&whole.piece_ids) {
        made += ids;
        if made > tokens {
            break;
        }
        end += text.len();
    }
    whole.text.get(..end).expect("pieces are whole characters")
}

/// Cuts an answer at every token, and lets the other worker go on.
async fn cut_everywhere(one: &Worker, other: &Worker, spec: GenerateSpec) -> Answer {
    let whole = answer(one, spec.clone()).await;
    let usage = whole.usage();
    for cut in 1..whole.ids.len() {
        let (begun, rest) = whole.ids.split_at(cut);
        let spec = GenerateSpec {
            resume: Some(Resume {
                tokens: begun.to_vec(),
            }),
            ..spec.clone()
        };
        let resumed = answer(other, spec).await;
        assert_eq!(resumed.ids, rest, "cut at {cut} of {:?}", whole.text);
        let expected = whole.text.strip_prefix(told(&whole, cut));
        assert_eq!(Some(resumed.text.as_str()), expected, "cut at {cut}");
        assert_eq!(resumed.finish(), whole.finish(), "cut at {cut}");
        assert_eq!(
            (
                resumed.usage().prompt_tokens,
                resumed.usage().completion_tokens
            ),
            (usage.prompt_tokens, usage.completion_tokens),
            "cut at {cut}"
        );
    }
    whole
}

#[tokio::test]
async fn an_answer_goes_on_the_same_wherever_it_is_cut() {
    let one = start(tiny("fast")).await;
    let other = start(tiny("fast")).await;
    let careful = Sampling {
        repeat_penalty: 1.2,
        presence_penalty: 0.3,
        dry: Some(Dry {
            multiplier: 0.8,
            ..Dry::default()
        }),
        xtc_probability: 0.3,
        top_p: 0.95,
        ..seeded(1.0)
    };
    for sampling in [seeded(0.0), seeded(1.0), careful] {
        let spec = GenerateSpec {
            sampling,
            ignore_eos: true,
            max_tokens: Some(TOKENS),
            ..ask("Tell me a story.")
        };
        let whole = cut_everywhere(&one, &other, spec).await;
        assert_eq!(whole.finish(), Finish::Length);
        assert_eq!(whole.usage().completion_tokens, TOKENS);
    }
}

#[tokio::test]
async fn a_cut_may_lie_within_a_character_or_a_stop_string() {
    let one = start(tiny("fast")).await;
    let other = start(tiny("fast")).await;
    let spec = GenerateSpec {
        grammar: Some(Grammar::Gbnf(
            "root ::= \"日本 😀 é and so on until the END of it\"".to_owned(),
        )),
        stop: vec!["END of".to_owned()],
        ..ask("Hello")
    };
    let whole = cut_everywhere(&one, &other, spec).await;
    assert_eq!(whole.text, "日本 😀 é and so on until the ");
    assert_eq!(whole.finish(), Finish::StopString);
    assert!(
        whole.ids.len() > whole.pieces.len(),
        "something was held back"
    );
}

#[tokio::test]
async fn a_cut_may_lie_within_json_or_a_tool_call() {
    let one = start(tiny("fast")).await;
    let other = start(tiny("fast")).await;
    let schema = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "rating": {"type": "integer"}},
        "required": ["city", "rating"],
    });
    let call = "root ::= \"<tool_call>\" [\\n]? \"{\\\"name\\\": \\\"get_weather\\\", \\\"arguments\\\": {\\\"city\\\": \\\"\" [A-Za-z]{1,9} \"\\\"}}\" [\\n]? \"</tool_call>\"";
    for grammar in [Grammar::JsonSchema(schema), Grammar::Gbnf(call.to_owned())] {
        for sampling in [seeded(0.0), seeded(1.0)] {
            let spec = GenerateSpec {
                sampling,
                grammar: Some(grammar.clone()),
                max_tokens: Some(TOKENS),
                ..ask("What is the weather in Paris?")
            };
            let whole = cut_everywhere(&one, &other, spec).await;
            assert!(whole.ids.len() > 5, "{}", whole.text);
        }
    }
}

#[tokio::test]
async fn what_cannot_go_on_is_refused() {
    let worker = start(tiny("fast")).await;
    let paris = worker
        .tokenize(" Paris", false, false)
        .await
        .expect("the worker lives");
    let resumed = |tokens: Vec<i32>| GenerateSpec {
        resume: Some(Resume { tokens }),
        max_tokens: Some(16),
        ..ask("What is the capital of France?")
    };
    let mirostat = Sampling {
        mirostat: Some(Mirostat {
            version: MirostatVersion::Two,
            tau: 5.0,
            eta: 0.1,
        }),
        ..seeded(1.0)
    };
    let bad = [
        resumed(vec![-1]),
        resumed(vec![1_000_000]),
        resumed([paris[0]; 16].to_vec()),
        GenerateSpec {
            stop: vec!["Paris".to_owned()],
            ..resumed(paris.clone())
        },
        GenerateSpec {
            grammar: Some(Grammar::Gbnf("root ::= \"x\"".to_owned())),
            ..resumed(vec![paris[0]])
        },
        GenerateSpec {
            sampling: mirostat,
            ..resumed(vec![paris[0]])
        },
    ];
    for spec in bad {
        let refused = answer(&worker, spec).await;
        let Refusal::Invalid { param, .. } = refused.refusal() else {
            panic!("{:?}", refused.refusal());
        };
        assert_eq!(param, "resume");
    }
    let nothing = answer(&worker, resumed(Vec::new())).await;
    assert_eq!(nothing.text, "The capital of France is Paris.");
}
