//! Starting workers and reading answers, always under a deadline.

#[cfg(feature = "llama")]
use std::path::PathBuf;
use std::time::Duration;

use engine::Event;
use engine::Finish;
use engine::GenerateSpec;
use engine::Generation;
use engine::LoadError;
use engine::LoadSpec;
use engine::ModelCard;
use engine::Refusal;
use engine::Sampling;
use engine::Script;
use engine::Stats;
use engine::TokenLogprob;
use engine::Usage;
use engine::Worker;
use tokio::time::timeout;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A whole answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) pieces: Vec<String>,
    pub(crate) tokens: u32,
    pub(crate) ids: Vec<i32>,
    /// How many of them came with each piece.
    pub(crate) piece_ids: Vec<usize>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) end: Option<Result<(Finish, Usage), Refusal>>,
    pub(crate) cached: u32,
}

impl Answer {
    pub(crate) fn finish(&self) -> Finish {
        match &self.end {
            Some(Ok((finish, _usage))) => *finish,
            other => panic!(
                "the answer did not end well: {other:?} after {:?}",
                self.text
            ),
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        match &self.end {
            Some(Ok((_finish, usage))) => *usage,
            other => panic!("the answer did not end well: {other:?}"),
        }
    }

    pub(crate) fn refusal(&self) -> &Refusal {
        match &self.end {
            Some(Err(refusal)) => refusal,
            other => panic!("the answer was not refused: {other:?} with {:?}", self.text),
        }
    }
}

pub(crate) async fn load(spec: LoadSpec) -> Result<(Worker, ModelCard), LoadError> {
    let program = env!("CARGO_BIN_EXE_hearth-worker");
    timeout(PATIENCE, Worker::spawn(program, [] as [&str; 0], spec))
        .await
        .expect("loading takes milliseconds")
}

pub(crate) async fn start(spec: LoadSpec) -> Worker {
    load(spec).await.expect("the model loads").0
}

pub(crate) async fn play(script: &Script) -> Worker {
    start(LoadSpec::new(script.path())).await
}

#[cfg(feature = "llama")]
pub(crate) fn tiny(tier: &str) -> LoadSpec {
    LoadSpec::new(models().join(format!("tiny-{tier}-q8_0.gguf")))
}

#[cfg(feature = "llama")]
pub(crate) fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/models")
}

/// A question in `ChatML`, answered greedily.
pub(crate) fn ask(question: &str) -> GenerateSpec {
    let prompt = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    GenerateSpec {
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        ..GenerateSpec::from_template(prompt)
    }
}

pub(crate) async fn next(generation: &mut Generation) -> Option<Event> {
    timeout(PATIENCE, generation.next())
        .await
        .expect("an event comes in time")
}

pub(crate) async fn answer(worker: &Worker, spec: GenerateSpec) -> Answer {
    let generation = match worker.generate(spec).await {
        Ok(generation) => generation,
        Err(refusal) => {
            return Answer {
                end: Some(Err(refusal)),
                ..Answer::default()
            };
        }
    };
    read(generation).await
}

pub(crate) async fn read(mut generation: Generation) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = next(&mut generation).await {
        assert!(answer.end.is_none(), "nothing follows the end");
        match event {
            Event::Started { cached_tokens, .. } => answer.cached = cached_tokens,
            Event::Piece {
                text,
                tokens,
                ids,
                logprobs,
            } => {
                // With its last tokens an answer is complete: nobody goes on from there.
                assert!(ids.is_empty() || usize::try_from(tokens).ok() == Some(ids.len()));
                answer.piece_ids.push(ids.len());
                answer.ids.extend(ids);
                answer.text.push_str(&text);
                answer.pieces.push(text);
                answer.tokens += tokens;
                answer.logprobs.extend(logprobs);
            }
            Event::Progress(_) => {}
            Event::Done { finish, usage, .. } => answer.end = Some(Ok((finish, usage))),
            Event::Refused(refusal) => answer.end = Some(Err(refusal)),
        }
    }
    assert!(answer.end.is_some(), "every answer has an end");
    answer
}

/// Reads events until the first piece, and returns its text.
pub(crate) async fn first_piece(generation: &mut Generation) -> String {
    loop {
        match next(generation).await {
            Some(Event::Piece { text, .. }) => return text,
            Some(Event::Started { .. } | Event::Progress(_)) => {}
            other => panic!("no piece came, but {other:?}"),
        }
    }
}

/// Waits until the worker's numbers are as wanted.
pub(crate) async fn until(worker: &Worker, wanted: impl Fn(&Stats) -> bool) -> Stats {
    let mut stats = worker.stats();
    let reached = timeout(PATIENCE, stats.wait_for(|stats| wanted(stats))).await;
    *reached
        .expect("the numbers come in time")
        .expect("the worker lives")
}
