//! Real models: small enough for every test run, and known answers to compare with.

use std::fs;

use engine::Finish;
use engine::GenerateSpec;
use engine::LoadError;
use engine::LoadSpec;
use engine::Worker;
use serde_json::Value;

use crate::support::answer;
use crate::support::ask;
use crate::support::load;
use crate::support::models;
use crate::support::start;
use crate::support::tiny;

/// Single questions whose answers even the smallest model knows to the letter.
const KNOWN: [&str; 6] = ["capital", "define", "color", "opposite", "greet", "ident"];

fn known_questions(tier: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(models().join("evals.json")).expect("evals.json is there");
    let evals: Value = serde_json::from_str(&text).expect("it is JSON");
    let evals = evals.as_array().expect("a list");
    let fits = |eval: &&Value| {
        let for_tier = [tier, "any"].contains(&eval["tier"].as_str().unwrap_or_default());
        let single = eval["m"].as_array().is_some_and(|turns| turns.len() == 1)
            && eval.get("tools").is_none();
        for_tier && single && KNOWN.contains(&eval["k"].as_str().unwrap_or_default())
    };
    let pair = |eval: &Value| {
        let question = eval["m"][0][1].as_str().expect("a question");
        let want = eval["want"].as_str().expect("an answer");
        (question.to_owned(), want.to_owned())
    };
    evals.iter().filter(fits).map(pair).collect()
}

/// Asks all questions at once and says how many answers are right to the letter.
async fn right_answers(worker: &Worker, questions: &[(String, String)]) -> usize {
    let answers = questions
        .iter()
        .map(|(question, _want)| answer(worker, ask(question)));
    let answers = futures_util::future::join_all(answers).await;
    let right = answers
        .iter()
        .zip(questions)
        .filter(|(answer, (_question, want))| answer.text == *want);
    right.count()
}

#[tokio::test]
async fn the_models_answer_as_they_were_taught() {
    for tier in ["fast", "primary", "heavy"] {
        let mut spec = tiny(tier);
        spec.n_ctx = 512;
        spec.slots = 8;
        spec.queue_max = 512;
        spec.queue_per_principal_max = 512;
        let worker = start(spec).await;
        let questions = known_questions(tier);
        assert!(
            questions.len() >= 30,
            "{tier}: only {} questions",
            questions.len()
        );

        let right = right_answers(&worker, &questions).await;

        assert_eq!(right, questions.len(), "{tier}: some answers are wrong");
    }
}

#[tokio::test]
async fn a_model_describes_itself() {
    let (_worker, card) = load(tiny("fast")).await.expect("the model loads");

    assert_eq!(card.architecture, "llama");
    assert_eq!(
        (card.n_vocab, card.n_ctx, card.n_ctx_train),
        (1_024, 2_048, 2_048)
    );
    assert_eq!(card.quantization, "Q8_0");
    assert_eq!(card.eos_token, "<|im_end|>");
    assert_eq!(
        card.threads, 1,
        "a second thread would halve the speed of so small a model"
    );
    assert_eq!(card.parameters, 426_624);
    assert!(
        card.chat_template
            .is_some_and(|template| template.contains("im_start"))
    );
    assert!(!card.devices.is_empty());
}

#[tokio::test]
async fn answers_are_the_same_alone_and_in_a_batch() {
    let worker = start(LoadSpec {
        slots: 8,
        ..tiny("fast")
    })
    .await;
    let questions = [
        "Tell me a short story.",
        "What is a proxy?",
        "Hello",
        "Who are you?",
        "List three fruits.",
        "What is the capital of France?",
        "How are you?",
        "What is a token?",
    ];
    let mut alone = Vec::new();
    for question in questions {
        alone.push(answer(&worker, ask(question)).await.text);
    }

    let together = questions.map(|question| {
        // Another principal, so that no cache helps.
        let spec = GenerateSpec {
            principal: 7,
            ..ask(question)
        };
        answer(&worker, spec)
    });
    let together = futures_util::future::join_all(together).await;

    let together: Vec<String> = together.into_iter().map(|answer| answer.text).collect();
    assert_eq!(together, alone);
}

#[tokio::test]
async fn a_reused_prefix_gives_the_same_answer() {
    let worker = start(LoadSpec {
        slots: 1,
        ..tiny("fast")
    })
    .await;
    let fresh = answer(&worker, ask("What is the capital of France?")).await;

    let reused = answer(&worker, ask("What is the capital of France?")).await;

    assert!(reused.cached > 0, "the prompt was in the cache");
    assert_eq!(reused.text, fresh.text);
    assert_eq!(reused.finish(), Finish::Stop);
}

#[tokio::test]
async fn emoji_come_out_whole() {
    let worker = start(tiny("fast")).await;
    let text = fs::read_to_string(models().join("evals.json")).expect("evals.json is there");
    let evals: Vec<Value> = serde_json::from_str(&text).expect("it is a JSON list");
    let emoji = evals.iter().find(|eval| {
        eval["want"]
            .as_str()
            .is_some_and(|want| want.chars().any(|c| c > '\u{1F000}'))
    });
    let emoji = emoji.expect("some answer has an emoji");

    let said = answer(&worker, ask(emoji["m"][0][1].as_str().expect("a question"))).await;

    assert_eq!(Some(said.text.as_str()), emoji["want"].as_str());
    assert!(
        said.pieces.iter().all(|piece| !piece.contains('\u{FFFD}')),
        "{:?}",
        said.pieces
    );
}

#[tokio::test]
async fn broken_files_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = fs::read(tiny("fast").model_path).expect("the model is there");
    let half = &whole[..whole.len() / 2];
    for (name, bytes) in [
        ("empty", &[] as &[u8]),
        ("half", half),
        (
            "text",
            b"this is no model, but long enough to have a header",
        ),
    ] {
        let path = folder.path().join(format!("{name}.gguf"));
        fs::write(&path, bytes).expect("there is room");

        let refused = load(LoadSpec::new(&path)).await;

        let Err(LoadError::Model { reason, .. }) = &refused else {
            panic!("{name}: {refused:?}");
        };
        assert!(
            reason.len() > 10 && !reason.contains("no reason"),
            "{name}: {reason}"
        );
    }
    let missing = load(LoadSpec::new(folder.path().join("missing.gguf"))).await;
    assert!(
        matches!(&missing, Err(LoadError::Model { reason, .. }) if reason.contains("No such file")),
        "{missing:?}"
    );
}

#[tokio::test]
async fn a_context_beyond_the_training_is_cut_to_it() {
    let spec = LoadSpec {
        n_ctx: 2_000_000_000,
        ..tiny("fast")
    };

    let (_worker, card) = load(spec).await.expect("the model loads");

    assert_eq!(card.n_ctx, 2_048);
}
