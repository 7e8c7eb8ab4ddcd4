//! Sampling rules, grammars and log-probabilities with a real model.

use engine::Finish;
use engine::GenerateSpec;
use engine::Grammar;
use engine::LoadSpec;
use engine::Refusal;
use engine::Sampling;
use serde_json::Value;
use serde_json::json;

use crate::support::answer;
use crate::support::ask;
use crate::support::start;
use crate::support::tiny;

fn hot(seed: u64) -> Sampling {
    Sampling {
        temperature: 1.5,
        seed: Some(seed),
        ..Sampling::default()
    }
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text() {
    let worker = start(tiny("fast")).await;
    let draw = |seed| {
        let spec = GenerateSpec {
            sampling: hot(seed),
            max_tokens: Some(60),
            ignore_eos: true,
            ..ask("Tell me a short story.")
        };
        answer(&worker, spec)
    };

    let first = draw(1).await;
    let again = draw(1).await;
    let other = draw(2).await;

    assert_eq!(first.text, again.text);
    assert_ne!(first.text, other.text);
    assert_eq!(
        first.usage().completion_tokens,
        60,
        "an answer that ignores the end goes on to its limit"
    );
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text_whatever_else_is_served() {
    let worker = start(LoadSpec {
        slots: 8,
        ..tiny("primary")
    })
    .await;
    let draw = |seed, principal| {
        let spec = GenerateSpec {
            sampling: hot(seed),
            max_tokens: Some(120),
            ignore_eos: true,
            principal,
            ..ask("Tell me a short story.")
        };
        answer(&worker, spec)
    };
    let mut alone = Vec::new();
    for seed in 0..8 {
        alone.push(draw(seed, 1).await.text);
    }

    let together = futures_util::future::join_all((0..8).map(|seed| draw(seed, 2))).await;

    let together: Vec<String> = together.into_iter().map(|answer| answer.text).collect();
    assert_eq!(together, alone);
}

#[tokio::test]
async fn a_stop_string_cuts_a_real_answer() {
    let worker = start(tiny("fast")).await;
    let whole = answer(&worker, ask("What is the capital of France?")).await;
    assert_eq!(whole.text, "The capital of France is Paris.");

    let cut = answer(
        &worker,
        GenerateSpec {
            stop: vec!["of Fr".to_owned()],
            ..ask("What is the capital of France?")
        },
    )
    .await;

    assert_eq!(
        (cut.text.as_str(), cut.finish()),
        ("The capital ", Finish::StopString)
    );
}

#[tokio::test]
async fn a_schema_forces_json_whatever_the_question() {
    let worker = start(tiny("fast")).await;
    let schema = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "size": {"enum": ["small", "large"]}
        },
        "required": ["city", "size"],
        "additionalProperties": false
    });
    for sampling in [ask("").sampling, hot(3)] {
        let spec = GenerateSpec {
            grammar: Some(Grammar::JsonSchema(schema.clone())),
            sampling,
            max_tokens: Some(400),
            ..ask("Tell me a short story.")
        };

        let said = answer(&worker, spec).await;

        assert_eq!(said.finish(), Finish::Stop, "{}", said.text);
        let value: Value = serde_json::from_str(&said.text).expect("the answer is JSON");
        assert!(
            value["city"].is_string()
                && ["small", "large"].contains(&value["size"].as_str().unwrap_or_default()),
            "{value}"
        );
    }
}

#[tokio::test]
async fn a_grammar_ends_the_answer_when_it_is_complete() {
    let worker = start(tiny("fast")).await;
    for ignore_eos in [false, true] {
        let spec = GenerateSpec {
            grammar: Some(Grammar::Gbnf("root ::= \"yes\" | \"no\"".to_owned())),
            ignore_eos,
            ..ask("What is a proxy?")
        };
        let said = answer(&worker, spec).await;
        assert!(["yes", "no"].contains(&said.text.as_str()), "{}", said.text);
        assert_eq!(said.finish(), Finish::Stop);
    }
}

#[tokio::test]
async fn bad_grammars_are_refused_and_the_worker_lives() {
    let worker = start(tiny("fast")).await;
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000));
    let mut nested = json!({"type": "string"});
    for _level in 0..200 {
        nested = json!({"type": "array", "items": nested});
    }
    let letter = worker
        .tokenize("a", false, false)
        .await
        .expect("the worker lives");
    let bad = [
        Grammar::Gbnf("root ::= ".to_owned() + "\"a"),
        Grammar::Gbnf("other ::= \"a\"".to_owned()),
        Grammar::Gbnf("root ::= root \"a\"".to_owned()),
        Grammar::Gbnf("root ::= \"a\"{999999999}".to_owned()),
        Grammar::Gbnf(deep),
        Grammar::Gbnf("root ::= \"\0\"".to_owned()),
        Grammar::Gbnf("root ::= ((\"a\"?){40}){40} \"b\"".to_owned()),
        // In twice as many ways after every letter; this is only seen while it is followed.
        Grammar::Gbnf("root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"z\"".to_owned()),
        Grammar::JsonSchema(nested),
        Grammar::JsonSchema(json!({"type": "no such type"})),
        Grammar::JsonSchema(json!({"$ref": "https://example.com/schema.json"})),
    ];
    for grammar in bad {
        let name: String = format!("{grammar:?}").chars().take(60).collect();
        let spec = GenerateSpec {
            grammar: Some(grammar),
            sampling: Sampling {
                logit_bias: vec![(letter[0], 100.0)],
                ..ask("").sampling
            },
            ..ask("Hello")
        };
        let refused = answer(&worker, spec).await;
        assert!(
            matches!(refused.refusal(), Refusal::BadGrammar { .. }),
            "{name}: {:?}",
            refused.refusal()
        );
    }

    assert_eq!(
        answer(&worker, ask("Hello")).await.text,
        "Hello! How can I help you today?"
    );
}

#[tokio::test]
async fn log_probabilities_come_with_every_token() {
    let worker = start(tiny("fast")).await;
    let spec = GenerateSpec {
        logprobs: Some(3),
        ..ask("What is the capital of France?")
    };

    let said = answer(&worker, spec).await;

    let bytes: Vec<u8> = said
        .logprobs
        .iter()
        .flat_map(|logprob| logprob.chosen.bytes.clone())
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), said.text);
    assert_eq!(
        said.logprobs.len(),
        usize::try_from(said.usage().completion_tokens - 1).expect("small")
    );
    for logprob in &said.logprobs {
        assert_eq!(logprob.top.len(), 3);
        assert_eq!(
            logprob.top[0], logprob.chosen,
            "a greedy answer takes the best token"
        );
        assert!(logprob.chosen.logprob <= 0.0 && logprob.top[1].logprob <= logprob.top[0].logprob);
    }
}

#[tokio::test]
async fn a_bias_changes_the_answer() {
    let worker = start(tiny("fast")).await;
    let paris = worker
        .tokenize(" Paris", false, false)
        .await
        .expect("the worker lives");
    let mut spec = ask("What is the capital of France?");
    spec.sampling.logit_bias = vec![(paris[0], -100.0)];
    spec.max_tokens = Some(40);

    let said = answer(&worker, spec).await;

    assert_ne!(said.text, "The capital of France is Paris.");
    assert!(
        said.text.starts_with("The capital of France is"),
        "{}",
        said.text
    );
}

#[tokio::test]
async fn extreme_but_valid_rules_do_no_harm() {
    let worker = start(tiny("fast")).await;
    let rules = [
        Sampling {
            temperature: 100.0,
            top_k: 1,
            ..hot(1)
        },
        Sampling {
            top_p: 0.0,
            min_p: 1.0,
            typical_p: 0.0,
            ..hot(1)
        },
        Sampling {
            repeat_penalty: 100.0,
            repeat_last_n: Some(u32::MAX),
            presence_penalty: 100.0,
            frequency_penalty: -100.0,
            ..hot(1)
        },
        Sampling {
            logit_bias: (0..1_024).map(|token| (token, -100.0)).collect(),
            ..hot(1)
        },
        Sampling {
            logit_bias: vec![(i32::MAX, 1.0), (i32::MIN, 1.0)],
            repeat_last_n: Some(0),
            ..hot(1)
        },
    ];
    for sampling in rules {
        let spec = GenerateSpec {
            sampling: sampling.clone(),
            max_tokens: Some(30),
            ..ask("Hello")
        };
        let said = answer(&worker, spec).await;
        assert!(
            said.end.as_ref().is_some_and(Result::is_ok),
            "{sampling:?}: {:?}",
            said.end
        );
    }
}
