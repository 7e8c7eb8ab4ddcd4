//! What a worker says it holds is what it holds: links come with the prompt that was read, go with the cache that was cut, and come back
//! in what survives in host memory and on disk.

use std::path::Path;

use engine::GenerateSpec;
use engine::LoadSpec;
use engine::Prompt;
use engine::Worker;
use tokio::time::timeout;

use crate::gguf_writer;
use crate::gguf_writer::Arch;
use crate::support::PATIENCE;
use crate::support::answer;
use crate::support::ask;
use crate::support::start;

fn spec(folder: &Path, prompt_cache_bytes: u64) -> LoadSpec {
    LoadSpec {
        slots: 2,
        n_ctx: 2_048,
        prompt_cache_bytes,
        ..LoadSpec::new(gguf_writer::write(folder, Arch::Llama))
    }
}

/// A conversation that nobody else has, so many tokens of it.
fn said(conversation: i32, length: i32) -> Vec<i32> {
    (0..length)
        .map(|index| 33 + (index * 7_919 + conversation * 31) % 200)
        .collect()
}

fn turn(conversation: i32, length: i32, links: &[u64]) -> GenerateSpec {
    GenerateSpec {
        prompt: Prompt::Tokens(said(conversation, length)),
        max_tokens: Some(4),
        ignore_eos: true,
        links: links.to_vec(),
        ..ask("")
    }
}

/// Waits until the worker holds exactly these, in whatever order.
async fn holds(worker: &Worker, links: &[u64]) {
    let mut held = worker.held();
    let is_so = |held: &std::sync::Arc<[u64]>| {
        let mut held = held.to_vec();
        held.sort_unstable();
        held == links
    };
    let found = timeout(PATIENCE, held.wait_for(is_so)).await;
    assert!(
        found.is_ok(),
        "{links:?} and not {:?}",
        worker.held().borrow()
    );
}

#[tokio::test]
async fn a_link_is_told_once_its_prompt_is_read_and_gone_once_it_is_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = start(spec(folder.path(), 0)).await;
    holds(&worker, &[]).await;
    answer(&worker, turn(1, 200, &[11])).await;
    holds(&worker, &[11]).await;
    answer(&worker, turn(1, 300, &[11, 12, 13])).await;
    holds(&worker, &[11, 12, 13]).await;
    // The newest conversation is told last.
    answer(&worker, turn(2, 200, &[21])).await;
    holds(&worker, &[11, 12, 13, 21]).await;
    assert_eq!(worker.held().borrow().last(), Some(&21));
    // Two slots and no memory besides: the third conversation takes the place of the one that was silent longest.
    answer(&worker, turn(3, 200, &[31])).await;
    holds(&worker, &[21, 31]).await;
    // A prompt that parts from the second one after its beginning leaves nothing of it.
    let parted = GenerateSpec {
        prompt: Prompt::Tokens([said(2, 100), said(9, 100)].concat()),
        ..turn(2, 200, &[22])
    };
    answer(&worker, parted).await;
    holds(&worker, &[22, 31]).await;
}

#[tokio::test]
async fn what_is_not_kept_is_not_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = start(spec(folder.path(), 0)).await;
    let forgotten = GenerateSpec {
        cache_prompt: false,
        ..turn(1, 200, &[11])
    };
    answer(&worker, forgotten).await;
    answer(&worker, turn(2, 200, &[21])).await;
    holds(&worker, &[21]).await;
}

#[tokio::test]
async fn conversations_in_host_memory_are_told_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = start(spec(folder.path(), 64 * 1024 * 1024)).await;
    let mut all = Vec::new();
    for conversation in 1..=6_i32 {
        let link = u64::from(conversation.unsigned_abs());
        answer(&worker, turn(conversation, 200, &[link])).await;
        all.push(link);
    }
    holds(&worker, &all).await;
    let back = answer(&worker, turn(1, 300, &[1, 101])).await;
    assert!(back.cached >= 200, "{}", back.cached);
    all.push(101);
    holds(&worker, &all).await;
}

#[tokio::test]
async fn links_survive_a_restart_with_their_prompts() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    std::fs::create_dir(&state).expect("a folder");
    let spec = || LoadSpec {
        state_dir: Some(state.clone()),
        ..spec(folder.path(), 64 * 1024 * 1024)
    };
    let worker = start(spec()).await;
    answer(&worker, turn(1, 200, &[11])).await;
    holds(&worker, &[11]).await;
    worker.shutdown().await;
    holds(&worker, &[]).await;
    let worker = start(spec()).await;
    holds(&worker, &[11]).await;
    assert!(answer(&worker, turn(1, 300, &[11, 12])).await.cached >= 200);
}
