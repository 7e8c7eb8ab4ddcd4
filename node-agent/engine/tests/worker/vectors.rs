//! Models for vectors, adapters and holes: the real worker with tiny models.

use engine::EmbedInput;
use engine::LoadError;
use engine::LoadSpec;
use engine::Lora;
use engine::Pooling;
use engine::Refusal;
use engine::Task;

use super::gguf_writer::Arch;
use super::gguf_writer::Extra;
use super::gguf_writer::write;
use super::gguf_writer::write_lora;
use super::gguf_writer::write_with;
use super::support::answer;
use super::support::ask;
use super::support::load;
use super::support::start;
use super::support::tiny;
use super::support::until;

fn embedding() -> LoadSpec {
    LoadSpec {
        task: Task::Embed(None),
        ..tiny("fast")
    }
}

fn text(text: &str) -> EmbedInput {
    EmbedInput::Text(text.to_owned())
}

fn cosine(left: &[f32], right: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
}

#[tokio::test]
async fn texts_about_the_same_lie_closer() {
    let (worker, card) = load(embedding()).await.expect("loads");
    let width = card.vectors.expect("it makes vectors").width;
    let texts = [
        "What is a proxy?",
        "What is a reverse proxy?",
        "Tell me a story about a fox.",
    ];

    let made = worker
        .embed(texts.map(text).to_vec())
        .await
        .expect("vectors");

    assert!(
        made.vectors
            .iter()
            .all(|vector| vector.len() == width as usize)
    );
    assert!(made.tokens.iter().all(|tokens| *tokens > 2));
    let near = cosine(&made.vectors[0], &made.vectors[1]);
    let far = cosine(&made.vectors[0], &made.vectors[2]);
    assert!(near > far + 0.1, "{near} against {far}");
}

#[tokio::test]
async fn a_vector_does_not_depend_on_what_else_is_asked() {
    let worker = start(embedding()).await;
    let texts: Vec<EmbedInput> = (0..100)
        .map(|n| text(&"word ".repeat(1 + n % 17)))
        .collect();
    let all = worker.embed(texts.clone()).await.expect("vectors");
    assert_eq!(all.vectors.len(), 100);
    for at in [0, 16, 41, 99] {
        let alone = worker
            .embed(vec![texts[at].clone()])
            .await
            .expect("a vector");
        let same = cosine(&alone.vectors[0], &all.vectors[at]);
        assert!(same > 0.999, "{at}: {same}");
    }
    let (left, right) = tokio::join!(
        worker.embed(texts.clone()),
        worker.embed(vec![texts[3].clone()])
    );
    assert_eq!(left.expect("vectors").tokens, all.tokens);
    assert_eq!(right.expect("a vector").tokens, [all.tokens[3]]);
}

#[tokio::test]
async fn what_cannot_be_embedded_is_named_with_its_numbers() {
    let worker = start(LoadSpec {
        n_ctx: 64,
        ..embedding()
    })
    .await;
    let long = worker
        .embed(vec![text("a"), text(&"word ".repeat(200))])
        .await;
    let long = long.expect_err("too long");
    assert_eq!(long.input, Some(1));
    assert!(
        matches!(long.refusal, Refusal::ContextLengthExceeded { n_ctx: 64, prompt_tokens, .. } if prompt_tokens > 64),
        "{long:?}"
    );
    let unknown = worker
        .embed(vec![EmbedInput::Tokens(vec![5, 9_999_999])])
        .await;
    assert_eq!(unknown.expect_err("no such token").input, Some(0));
    let asked = answer(&worker, ask("hello")).await;
    assert!(matches!(asked.refusal(), Refusal::Invalid { param, .. } if param == "model"));
    let chat = start(tiny("fast")).await;
    let refused = chat.embed(vec![text("a")]).await.expect_err("a chat model");
    assert!(matches!(refused.refusal, Refusal::Invalid { param, .. } if param == "model"));
}

#[tokio::test]
async fn an_abandoned_list_costs_nothing_more() {
    let worker = start(embedding()).await;
    let texts: Vec<EmbedInput> = (0..256).map(|_| text(&"word ".repeat(200))).collect();
    let asked = tokio::time::timeout(std::time::Duration::from_millis(5), worker.embed(texts));
    assert!(asked.await.is_err(), "256 long texts take longer");
    until(&worker, |stats| stats.slots_busy == 0).await;
    assert_eq!(
        worker
            .embed(vec![text("a")])
            .await
            .expect("a vector")
            .tokens
            .len(),
        1
    );
}

#[tokio::test]
async fn pooling_comes_from_the_file_unless_the_settings_say_otherwise() {
    let folder = tempfile::tempdir().expect("a folder");
    let extra = Extra {
        pooling: Some(3),
        ..Extra::default()
    };
    let path = write_with(folder.path(), Arch::Qwen3, "last", extra);
    let mut vectors = Vec::new();
    for pooling in [None, Some(Pooling::Last), Some(Pooling::Mean)] {
        let worker = start(LoadSpec {
            task: Task::Embed(pooling),
            ..LoadSpec::new(&path)
        })
        .await;
        let made = worker
            .embed(vec![text("one two three")])
            .await
            .expect("a vector");
        vectors.extend(made.vectors);
    }
    assert!(cosine(&vectors[0], &vectors[1]) > 0.999);
    assert!(cosine(&vectors[0], &vectors[2]) < 0.999);
}

#[tokio::test]
async fn a_ranking_model_gives_each_pair_a_number_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let extra = Extra {
        pooling: Some(4),
        classifier: true,
        ..Extra::default()
    };
    let path = write_with(folder.path(), Arch::Qwen3, "rank", extra);
    let spec = LoadSpec {
        task: Task::Rerank,
        ..LoadSpec::new(&path)
    };
    let (worker, card) = load(spec).await.expect("loads");
    assert!(card.vectors.is_some_and(|vectors| vectors.ranks));
    let pair = |document: &str| EmbedInput::Pair {
        query: "what?".to_owned(),
        document: document.to_owned(),
    };
    let made = worker
        .embed(vec![pair("this"), pair("something else"), pair("this")])
        .await
        .expect("ranks");
    let scores: Vec<f32> = made.vectors.iter().flatten().copied().collect();
    assert_eq!(scores.len(), 3, "one number for each");
    assert!((scores[0] - scores[2]).abs() < 1e-3, "{scores:?}");
    assert!((scores[0] - scores[1]).abs() > 1e-6, "{scores:?}");
    let alone = worker.embed(vec![text("a")]).await.expect_err("no pair");
    assert_eq!(alone.input, Some(0));

    let plain = load(LoadSpec {
        task: Task::Rerank,
        ..tiny("fast")
    })
    .await;
    let error = plain.expect_err("no ranking model").to_string();
    assert!(error.contains("pooling_type"), "{error}");
    let wrong = load(LoadSpec {
        task: Task::Embed(None),
        ..LoadSpec::new(&path)
    })
    .await;
    assert!(
        wrong
            .expect_err("a ranking model")
            .to_string()
            .contains("rerank")
    );
}

async fn said(path: &std::path::Path, lora: Option<Lora>) -> String {
    let spec = LoadSpec {
        lora,
        ..LoadSpec::new(path)
    };
    let worker = start(spec).await;
    let mut asked = ask("abc");
    asked.max_tokens = Some(24);
    asked.ignore_eos = true;
    answer(&worker, asked).await.text
}

#[tokio::test]
async fn an_adapter_changes_answers_as_much_as_its_scale() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = write(folder.path(), Arch::Llama);
    let path = write_lora(folder.path(), 64);
    let with = |scale| {
        let path = path.clone();
        Some(Lora { path, scale })
    };
    let plain = said(&model, None).await;
    assert_eq!(
        said(&model, with(0.0)).await,
        plain,
        "a scale of 0 is nothing"
    );
    assert_ne!(said(&model, with(1.0)).await, plain);
}

#[tokio::test]
async fn an_adapter_that_does_not_fit_is_a_clear_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, "GGUF is not this").expect("written");
    let model = write(folder.path(), Arch::Llama);
    for path in [
        write_lora(folder.path(), 32),
        broken,
        folder.path().join("missing.gguf"),
        model.clone(),
    ] {
        let loaded = load(LoadSpec {
            lora: Some(Lora {
                path: path.clone(),
                scale: 1.0,
            }),
            ..LoadSpec::new(&model)
        })
        .await;
        match loaded {
            Err(LoadError::Model {
                path: named,
                reason,
            }) => {
                assert_eq!(named, path.display().to_string());
                assert!(reason.contains("adapter"), "{reason}");
            }
            other => panic!("{other:?} for {}", path.display()),
        }
    }
}

#[tokio::test]
async fn the_tokens_around_a_hole_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let extra = Extra {
        fim: true,
        ..Extra::default()
    };
    let path = write_with(folder.path(), Arch::Llama, "code", extra);
    let (_worker, card) = load(LoadSpec::new(&path)).await.expect("loads");
    let fim = card.fim.expect("it fills holes");
    assert_eq!((fim.prefix, fim.suffix, fim.middle), (257, 258, 259));
    let (_worker, card) = load(tiny("fast")).await.expect("loads");
    assert_eq!(card.fim, None);
}
