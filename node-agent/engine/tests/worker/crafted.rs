//! Model files that somebody made up: cut anywhere, with wrong numbers, with other bytes. Whatever they do to a worker, its parent gets
//! an error or a model, in time, and nothing else happens to it.

use std::path::Path;
use std::time::Duration;

use engine::LoadError;
use engine::LoadSpec;
use engine::Worker;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::gguf_writer::Arch;
use super::gguf_writer::write;
use super::support::models;

/// A worker starts in 20 ms.
const EACH_MAX: Duration = Duration::from_secs(20);
/// At the same time.
const SIDE_BY_SIDE: usize = 4;
const MUTATIONS: usize = 200;

/// What came of a file; the reason may be anything, as long as there is one.
async fn try_load(path: std::path::PathBuf) -> Result<(), LoadError> {
    let program = env!("CARGO_BIN_EXE_hearth-worker");
    let spec = LoadSpec {
        slots: 1,
        n_ctx: 256,
        ..LoadSpec::new(path)
    };
    let spawned = Worker::spawn(program, [] as [&str; 0], spec);
    let loaded = timeout(EACH_MAX, spawned).await.expect("an end in time");
    let (worker, _card) = loaded?;
    worker.shutdown().await;
    Ok(())
}

async fn try_all(folder: &Path, files: Vec<Vec<u8>>) -> (usize, usize) {
    let (mut loaded, mut refused) = (0, 0);
    let mut running = JoinSet::new();
    let mut count = |result: Result<(), LoadError>| match result {
        Ok(()) => loaded += 1,
        Err(LoadError::Model { reason, .. } | LoadError::Crashed { reason }) => {
            assert!(!reason.is_empty(), "a refusal has a reason");
            refused += 1;
        }
        Err(LoadError::Memory { .. } | LoadError::Invalid { .. }) => refused += 1,
        Err(
            other @ (LoadError::Spawn { .. }
            | LoadError::Timeout { .. }
            | LoadError::Protocol { .. }),
        ) => {
            panic!("the parent was harmed: {other}")
        }
    };
    for (index, bytes) in files.into_iter().enumerate() {
        let path = folder.join(format!("{index}.gguf"));
        std::fs::write(&path, bytes).expect("the folder is writable");
        if running.len() == SIDE_BY_SIDE
            && let Some(done) = running.join_next().await
        {
            count(done.expect("the parent lives"));
        }
        running.spawn(try_load(path));
    }
    while let Some(done) = running.join_next().await {
        count(done.expect("the parent lives"));
    }
    (loaded, refused)
}

fn samples(folder: &Path) -> Vec<Vec<u8>> {
    let tiny = models().join("tiny-fast-q8_0.gguf");
    [
        write(folder, Arch::Gemma3),
        write(folder, Arch::Gemma4),
        tiny,
    ]
    .iter()
    .map(|path| std::fs::read(path).expect("readable"))
    .collect()
}

/// Xorshift: the same files in every run.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 16).expect("48 bits")
}

/// Changes some bytes of the header, where lengths, types and counts are.
fn mutated(sample: &[u8], state: &mut u64) -> Vec<u8> {
    const HEADER: usize = 24_000;
    const NASTY: [&[u8]; 6] = [
        &[0xff; 8],
        &[0; 8],
        &[0xff, 0xff, 0xff, 0x7f],
        &[0, 0, 0, 0, 0, 0, 0, 0x80],
        &[1],
        &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ];
    let mut bytes = sample.to_vec();
    for _change in 0..=next(state) % 4 {
        // The first kilobytes hold the numbers; what follows is mostly vocabulary.
        let within = if next(state).is_multiple_of(2) {
            1_500
        } else {
            HEADER
        };
        let at = next(state) % within.min(bytes.len() - 8);
        let nasty = NASTY[next(state) % NASTY.len()];
        bytes[at..at + nasty.len()].copy_from_slice(nasty);
    }
    bytes
}

#[tokio::test]
async fn changed_files_end_in_an_error_or_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let samples = samples(folder.path());
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let files = (0..MUTATIONS).map(|index| mutated(&samples[index % samples.len()], &mut state));

    let (loaded, refused) = try_all(folder.path(), files.collect()).await;

    assert_eq!(loaded + refused, MUTATIONS);
    assert!(
        refused > MUTATIONS / 4,
        "only {refused} were refused: the changes miss the header"
    );
}

#[tokio::test]
async fn files_cut_in_any_section_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = Vec::new();
    for sample in samples(folder.path()) {
        let length = sample.len();
        for cut in [
            0,
            3,
            4,
            8,
            16,
            24,
            40,
            200,
            1_000,
            5_000,
            length / 4,
            length / 2,
            length - 64,
            length - 1,
        ] {
            files.push(sample[..cut.min(length - 1)].to_vec());
        }
    }
    let all = files.len();

    assert_eq!(try_all(folder.path(), files).await, (0, all));
}

#[tokio::test]
async fn a_huge_context_is_refused_before_memory_is_touched() {
    let program = env!("CARGO_BIN_EXE_hearth-worker");
    let folder = tempfile::tempdir().expect("a folder");
    let mut bytes = std::fs::read(write(folder.path(), Arch::Llama)).expect("readable");
    let key = b"llama.context_length";
    let at = bytes
        .windows(key.len())
        .position(|window| window == key)
        .expect("it has one");
    let value = at + key.len() + 4;
    bytes[value..value + 4].copy_from_slice(&2_000_000_000_u32.to_le_bytes());
    let path = folder.path().join("huge.gguf");
    std::fs::write(&path, bytes).expect("written");
    // However many layers are meant for a GPU: there is none in most machines that run this.
    for (n_ctx, gpu_layers) in [
        (0, 0),
        (2_000_000_000, 0),
        (u32::MAX, 0),
        (500_000_000, 9_999),
    ] {
        if gpu_layers > 0 && cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan")) {
            continue;
        }
        let spec = LoadSpec {
            n_ctx,
            gpu_layers,
            slots: 1,
            ..LoadSpec::new(&path)
        };
        let spawned = Worker::spawn(program, [] as [&str; 0], spec);
        let error = timeout(EACH_MAX, spawned)
            .await
            .expect("in time")
            .expect_err("too large");
        assert!(
            matches!(error, LoadError::Memory { .. } | LoadError::Invalid { .. }),
            "{error:?}"
        );
    }
}
