//! Prefix reuse in a model with a sliding window, where going back too far gives wrong logits without any error.

use std::path::PathBuf;

use engine::GenerateSpec;
use engine::LoadSpec;
use engine::Prompt;
use engine::Worker;

use crate::support::Answer;
use crate::support::answer;
use crate::support::ask;
use crate::support::start;

fn window() -> LoadSpec {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/window.gguf");
    LoadSpec {
        slots: 1,
        // The cache keeps the window and one batch, so a small batch forgets sooner.
        batch: 64,
        ..LoadSpec::new(path)
    }
}

/// The same `length` tokens every time, then a few others.
async fn continue_prefix(worker: &Worker, length: i32, principal: u64) -> Answer {
    let mut tokens: Vec<i32> = (0..length).map(|index| 300 + index * 7_919 % 600).collect();
    tokens.extend([5, 6, 7]);
    let spec = GenerateSpec {
        prompt: Prompt::Tokens(tokens),
        max_tokens: Some(8),
        ignore_eos: true,
        logprobs: Some(1),
        principal,
        ..ask("")
    };
    answer(worker, spec).await
}

fn assert_same(reused: &Answer, fresh: &Answer, what: &str) {
    assert_eq!(reused.logprobs.len(), 8, "{what}");
    assert_eq!(reused.logprobs, fresh.logprobs, "{what}");
}

#[tokio::test]
async fn reuse_never_changes_the_logits() {
    let worker = start(window()).await;
    // Forward, a little back, far back, and back within the window.
    for (nobody, (first, then, reuse)) in (100..).zip([
        (900, 950, Some(true)),
        // Depends on how much more than its window the cache happens to hold.
        (900, 890, None),
        (900, 300, Some(false)),
        (40, 30, Some(true)),
    ]) {
        let what = format!("after {first} tokens a prompt that shares {then}");
        continue_prefix(&worker, first, 1).await;
        let reused = continue_prefix(&worker, then, 1).await;
        let fresh = continue_prefix(&worker, then, nobody).await;

        assert_eq!(fresh.cached, 0);
        assert_same(&reused, &fresh, &what);
        let known = reuse.unwrap_or(reused.cached > 0);
        assert_eq!(
            reused.cached > 0,
            known,
            "{what}: {} tokens were reused",
            reused.cached
        );
    }
}
