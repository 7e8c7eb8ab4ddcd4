//! Whatever of a prompt is reused, from wherever: the numbers the model computes stay the same.

use std::path::Path;

use engine::GenerateSpec;
use engine::LoadSpec;
use engine::Prompt;
use engine::Worker;

use crate::gguf_writer;
use crate::gguf_writer::Arch;
use crate::support::Answer;
use crate::support::answer;
use crate::support::ask;
use crate::support::start;
use crate::support::until;

/// Rounding differs with the place of a number in the cache, by less than this.
const ROUNDING: f32 = 2e-3;

fn spec(folder: &Path, arch: Arch) -> LoadSpec {
    LoadSpec {
        slots: 2,
        n_ctx: 2_048,
        // The cache keeps the window and one batch, so a small batch forgets sooner.
        batch: 64,
        ..LoadSpec::new(gguf_writer::write(folder, arch))
    }
}

/// `length` tokens of a conversation.
fn said(conversation: i32, length: i32) -> Vec<i32> {
    (0..length)
        .map(|index| 33 + (index * 7_919 + conversation * 31) % 200)
        .collect()
}

/// The first `common` tokens of a conversation, and then some of another.
fn parted(conversation: i32, common: i32, other: i32, rest: i32) -> Vec<i32> {
    let mut tokens = said(conversation, common);
    tokens.extend(said(other, rest));
    tokens
}

async fn go_on(worker: &Worker, tokens: Vec<i32>, salt: &str) -> Answer {
    let spec = GenerateSpec {
        prompt: Prompt::Tokens(tokens),
        max_tokens: Some(8),
        ignore_eos: true,
        logprobs: Some(5),
        cache_salt: Some(salt.to_owned()),
        ..ask("")
    };
    answer(worker, spec).await
}

/// What the model computes for a prompt that nobody has read before.
async fn fresh(folder: &Path, arch: Arch, tokens: Vec<i32>) -> Answer {
    let worker = start(spec(folder, arch)).await;
    let answer = go_on(&worker, tokens, "fresh").await;
    assert_eq!(answer.cached, 0);
    answer
}

fn assert_same(reused: &Answer, fresh: &Answer, what: &str) {
    assert_eq!(reused.text, fresh.text, "{what}");
    assert_eq!(reused.logprobs.len(), fresh.logprobs.len(), "{what}");
    for (left, right) in reused.logprobs.iter().zip(&fresh.logprobs) {
        assert_eq!(left.chosen.token, right.chosen.token, "{what}");
        for (left, right) in left.top.iter().zip(&right.top) {
            let apart = (left.logprob - right.logprob).abs();
            assert!(
                apart < ROUNDING,
                "{what}: log-probabilities are {apart} apart"
            );
        }
    }
}

#[tokio::test]
async fn a_prefix_that_is_reused_gives_the_same_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    for arch in Arch::ALL {
        let worker = start(spec(folder.path(), arch)).await;
        // Each turn goes on from, parts from or repeats what was read before, in both slots and through host memory.
        let turns = [
            said(1, 600),
            parted(1, 600, 2, 100),
            parted(1, 300, 3, 100),
            said(4, 500),
            parted(1, 300, 5, 200),
            said(6, 400),
            parted(1, 300, 7, 10),
            said(1, 600),
            parted(1, 50, 8, 30),
        ];
        let mut reused_tokens = Vec::new();
        for (turn, tokens) in turns.into_iter().enumerate() {
            let reused = go_on(&worker, tokens.clone(), "same").await;
            let fresh = fresh(folder.path(), arch, tokens).await;
            reused_tokens.push(reused.cached);
            let what = format!("{arch:?}, turn {turn}, {} tokens reused", reused.cached);
            assert_same(&reused, &fresh, &what);
        }
        assert!(reused_tokens[1] >= 600, "{arch:?}: {reused_tokens:?}");
        assert_eq!(reused_tokens[6], 300, "{arch:?}: {reused_tokens:?}");
        assert!(reused_tokens[7] >= 590, "{arch:?}: {reused_tokens:?}");
    }
}

#[tokio::test]
async fn two_salts_never_share_and_one_salt_shares_between_principals() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = start(spec(folder.path(), Arch::Llama)).await;
    assert_eq!(go_on(&worker, said(1, 500), "a").await.cached, 0);

    for (salt, other) in [("b", 2), ("", 3), ("A", 4), ("a ", 5)] {
        let probe = go_on(&worker, parted(1, 400, other, 50), salt).await;
        assert_eq!(probe.cached, 0, "{salt:?} found what \"a\" had read");
    }
    let other_principal = GenerateSpec {
        prompt: Prompt::Tokens(parted(1, 400, 6, 50)),
        principal: 99,
        cache_salt: Some("a".to_owned()),
        max_tokens: Some(1),
        ..ask("")
    };
    assert_eq!(answer(&worker, other_principal).await.cached, 400);

    // Nobody's salt is somebody's principal.
    let unsalted = GenerateSpec {
        prompt: Prompt::Tokens(said(1, 500)),
        principal: 99,
        max_tokens: Some(1),
        ..ask("")
    };
    assert_eq!(answer(&worker, unsalted).await.cached, 0);
}

#[tokio::test]
async fn host_memory_stays_within_its_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let bound = 2 * 1024 * 1024;
    let worker = start(LoadSpec {
        prompt_cache_bytes: bound,
        ..spec(folder.path(), Arch::Llama)
    })
    .await;
    for conversation in 0..20 {
        go_on(&worker, said(conversation * 3, 900), "same").await;
    }
    let stats = until(&worker, |stats| stats.prompt_cache_bytes > 0).await;
    assert!(stats.prompt_cache_bytes <= bound, "{stats:?}");
}

#[tokio::test]
async fn a_prompt_survives_a_restart() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    std::fs::create_dir(&state).expect("a folder");
    for arch in [Arch::Llama, Arch::Gemma3] {
        let spec = LoadSpec {
            state_dir: Some(state.clone()),
            ..spec(folder.path(), arch)
        };
        let before = start(spec.clone()).await;
        let fresh = go_on(&before, parted(1, 500, 2, 30), "same").await;
        before.shutdown().await;
        let files: Vec<_> = std::fs::read_dir(&state).expect("it is there").collect();
        assert!(files.len() >= 2, "{files:?}");
        for file in files {
            let mode = file
                .expect("a file")
                .metadata()
                .expect("a file")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }

        let after = start(spec.clone()).await;
        let reused = go_on(&after, parted(1, 500, 2, 30), "same").await;

        assert!(reused.cached >= 500, "{arch:?}: {}", reused.cached);
        assert_same(&reused, &fresh, arch.name());
        assert_eq!(
            go_on(&after, parted(1, 500, 2, 30), "other").await.cached,
            0
        );
        after.shutdown().await;

        corrupt(&state);
        let broken = start(spec).await;
        let read = go_on(&broken, parted(1, 500, 2, 30), "same").await;
        assert_eq!(read.cached, 0, "{arch:?}: a broken file is not used");
        assert_same(&read, &fresh, arch.name());
    }
}

/// Changes one byte in every saved state.
fn corrupt(state: &Path) {
    for file in std::fs::read_dir(state).expect("it is there") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|kind| kind == "state") {
            let mut bytes = std::fs::read(&path).expect("readable");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).expect("writable");
        }
    }
}

#[tokio::test]
async fn one_cache_for_all_slots_is_never_overfilled() {
    let folder = tempfile::tempdir().expect("a folder");
    for arch in [Arch::Llama, Arch::Gemma4] {
        let worker = start(LoadSpec {
            slots: 4,
            kv_unified: true,
            kv_tokens: Some(2_048),
            ..spec(folder.path(), arch)
        })
        .await;
        let asked =
            (0..12).map(|number| go_on(&worker, parted(number % 3, 700, number, 100), "same"));
        let answers = futures_util::future::join_all(asked).await;
        for (number, answer) in answers.iter().enumerate() {
            assert_eq!(answer.usage().completion_tokens, 8, "{arch:?} {number}");
        }
        let too_long = go_on(&worker, said(1, 2_045), "same").await;
        assert_eq!(too_long.refusal().as_str(), "context_length_exceeded");
    }
}
