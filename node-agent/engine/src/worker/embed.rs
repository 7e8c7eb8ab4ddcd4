//! The loop of a worker that turns texts into numbers: mail in, one call of the model with texts of everybody who waits, answers out.
//!
//! Askers take turns, text by text, so that a long list holds up nobody for longer than one call. No text outlives its answer.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::time::Instant;

use scheduler::Meter;
use scheduler::Token;

use super::Mail;
use super::outbox::Outbox;
use super::watchdog::Watchdog;
use crate::check;
use crate::engine::Embedder;
use crate::protocol;
use crate::protocol::FromWorker;
use crate::protocol::ToWorker;
use crate::spec::EmbedError;
use crate::spec::EmbedInput;
use crate::spec::Embedded;
use crate::spec::LoadSpec;
use crate::spec::Refusal;
use crate::spec::Stats;

const COMPUTE_MAX: Duration = Duration::from_mins(5);
const THINK_MAX: Duration = Duration::from_secs(20);

/// A loaded model at work.
pub(super) struct Desk<'engine> {
    embedder: &'engine mut dyn Embedder,
    waiting: VecDeque<Asked>,
    queue_max: usize,
    outbox: Outbox,
    watchdog: Watchdog,
    read: Meter,
    reported: Stats,
    open: bool,
}

/// A question with some texts.
struct Asked {
    call: u64,
    texts: Vec<Vec<Token>>,
    /// Texts of which numbers are known or being made.
    begun: usize,
    vectors: Vec<Vec<f32>>,
}

impl<'engine> Desk<'engine> {
    /// Prepares to serve an agent at the other end of `stream`.
    pub(super) fn new(
        embedder: &'engine mut dyn Embedder,
        spec: &LoadSpec,
        stream: UnixStream,
        watchdog: Watchdog,
    ) -> Self {
        Self {
            embedder,
            waiting: VecDeque::new(),
            queue_max: spec.queue_max.max(1),
            outbox: Outbox::new(stream),
            watchdog,
            read: Meter::default(),
            reported: Stats::default(),
            open: true,
        }
    }

    /// Serves until the agent is gone or says so.
    pub(super) fn run(&mut self, inbox: &Receiver<Mail>) -> io::Result<()> {
        let card = Box::new(self.embedder.card().clone());
        self.outbox.send(&FromWorker::Loaded {
            version: protocol::VERSION,
            card,
        })?;
        while self.open {
            self.report()?;
            self.watchdog.rest();
            self.outbox.flush()?;
            let first = if self.waiting.is_empty() {
                Some(inbox.recv().unwrap_or(Mail::Closed))
            } else {
                None
            };
            self.watchdog.allow(THINK_MAX);
            for mail in first.into_iter().chain(inbox.try_iter()) {
                self.take(mail)?;
            }
            self.step()?;
        }
        Ok(())
    }

    fn take(&mut self, mail: Mail) -> io::Result<()> {
        match mail {
            Mail::Closed | Mail::Frame(ToWorker::Shutdown | ToWorker::Load { .. }) => {
                self.open = false;
                Ok(())
            }
            Mail::Frame(ToWorker::Embed { call, inputs }) => self.accept(call, &inputs),
            Mail::Frame(ToWorker::Cancel { job }) => {
                self.waiting.retain(|asked| asked.call != job);
                Ok(())
            }
            Mail::Frame(ToWorker::Generate { job, .. }) => {
                let refusal = Refusal::Invalid {
                    param: "model".to_owned(),
                    reason: "this model makes vectors, not text; ask another tier".to_owned(),
                };
                self.outbox.refuse(scheduler::JobId(job), refusal)
            }
            Mail::Frame(ToWorker::Credit { .. }) => Ok(()),
            Mail::Frame(ToWorker::Tokenize {
                call,
                text,
                add_special,
                parse_special,
            }) => {
                let tokens = self.embedder.tokenize(&text, add_special, parse_special);
                let tokens = tokens.into_iter().map(|token| token.0).collect();
                self.outbox.send(&FromWorker::Tokens { call, tokens })
            }
            Mail::Frame(ToWorker::Detokenize { call, tokens }) => {
                let mut bytes = Vec::new();
                for token in tokens {
                    self.embedder.append_piece(Token(token), &mut bytes);
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                self.outbox.send(&FromWorker::Text { call, text })
            }
        }
    }

    fn accept(&mut self, call: u64, inputs: &[EmbedInput]) -> io::Result<()> {
        if self.waiting.len() >= self.queue_max {
            let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
            let refusal = Refusal::QueueFull { waiting };
            return self.answer(call, Err(refusal.into()));
        }
        match self.read(inputs) {
            Ok(texts) => {
                self.waiting.push_back(Asked {
                    call,
                    vectors: Vec::with_capacity(texts.len()),
                    texts,
                    begun: 0,
                });
                Ok(())
            }
            Err(error) => self.answer(call, Err(error)),
        }
    }

    fn read(&self, inputs: &[EmbedInput]) -> Result<Vec<Vec<Token>>, EmbedError> {
        check::embed(inputs)?;
        let blame = |index: usize, refusal: Refusal| EmbedError {
            input: u32::try_from(index).ok(),
            refusal,
        };
        let card = self.embedder.card();
        let ranks = card.vectors.is_some_and(|vectors| vectors.ranks);
        let most = self.embedder.tokens_max();
        let read = inputs.iter().enumerate().map(|(index, input)| {
            let invalid = |reason: String| {
                let param = "input".to_owned();
                blame(index, Refusal::Invalid { param, reason })
            };
            let tokens = match input {
                EmbedInput::Pair { query, document } if ranks => {
                    self.embedder.pair(query, document)
                }
                EmbedInput::Text(text) if !ranks => self.embedder.tokenize(text, true, false),
                EmbedInput::Tokens(tokens) if !ranks => known(tokens, card.n_vocab)
                    .ok_or_else(|| invalid(format!("a token is not below {}", card.n_vocab)))?,
                EmbedInput::Pair { .. } => {
                    return Err(invalid(
                        "this model places texts; it does not rank them".to_owned(),
                    ));
                }
                EmbedInput::Text(_) | EmbedInput::Tokens(_) => {
                    return Err(invalid(
                        "this model ranks documents; it does not place texts".to_owned(),
                    ));
                }
            };
            if tokens.is_empty() {
                return Err(invalid("it has no tokens".to_owned()));
            }
            if tokens.len() > most {
                let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
                let refusal = Refusal::ContextLengthExceeded {
                    prompt_tokens: number(tokens.len()),
                    max_tokens: None,
                    n_ctx: number(most),
                };
                return Err(blame(index, refusal));
            }
            Ok(tokens)
        });
        read.collect()
    }

    /// Takes texts of all who wait in turns, as many as fit, and computes them.
    fn step(&mut self) -> io::Result<()> {
        let (owners, texts) = self.gather();
        if texts.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let tokens = texts.iter().map(Vec::len).sum();
        self.watchdog.allow(COMPUTE_MAX);
        let made = self.embedder.embed(&texts);
        self.watchdog.allow(THINK_MAX);
        self.read.observe(tokens, began.elapsed());
        match made {
            Ok(vectors) => {
                for (call, vector) in owners.into_iter().zip(vectors) {
                    self.give(call, vector)?;
                }
            }
            Err(reason) => self.fail(&owners, &reason)?,
        }
        Ok(())
    }

    fn gather(&mut self) -> (Vec<u64>, Vec<Vec<Token>>) {
        let (mut owners, mut texts, mut tokens) = (Vec::new(), Vec::new(), 0);
        let mut took = true;
        while took {
            took = false;
            for asked in &mut self.waiting {
                let Some(text) = asked.texts.get(asked.begun) else {
                    continue;
                };
                let fits = tokens + text.len() <= self.embedder.tokens_max();
                if texts.len() >= self.embedder.texts_max() || !fits {
                    // Whoever is next waits for room, and nobody overtakes.
                    return (owners, texts);
                }
                tokens += text.len();
                owners.push(asked.call);
                texts.push(text.clone());
                asked.begun += 1;
                took = true;
            }
        }
        (owners, texts)
    }

    fn give(&mut self, call: u64, vector: Vec<f32>) -> io::Result<()> {
        let Some(place) = self.waiting.iter().position(|asked| asked.call == call) else {
            return Ok(());
        };
        let Some(asked) = self.waiting.get_mut(place) else {
            return Ok(());
        };
        asked.vectors.push(vector);
        if asked.vectors.len() < asked.texts.len() {
            return Ok(());
        }
        let Some(asked) = self.waiting.remove(place) else {
            return Ok(());
        };
        let count = |text: &Vec<Token>| u32::try_from(text.len()).unwrap_or(u32::MAX);
        let embedded = Embedded {
            tokens: asked.texts.iter().map(count).collect(),
            vectors: asked.vectors,
        };
        self.answer(call, Ok(embedded))
    }

    fn fail(&mut self, owners: &[u64], reason: &str) -> io::Result<()> {
        tracing::warn!(reason, "a call failed");
        let (failed, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|asked| owners.contains(&asked.call));
        self.waiting = waiting;
        let failed: VecDeque<Asked> = failed;
        for asked in failed {
            let reason = reason.to_owned();
            let refusal = Refusal::EngineFault { reason };
            self.answer(asked.call, Err(refusal.into()))?;
        }
        Ok(())
    }

    fn answer(&mut self, call: u64, result: Result<Embedded, EmbedError>) -> io::Result<()> {
        self.outbox.send(&FromWorker::Embedded { call, result })
    }

    fn report(&mut self) -> io::Result<()> {
        let tokens_max = u64::try_from(self.embedder.tokens_max()).unwrap_or(u64::MAX);
        let stats = Stats {
            slots: 1,
            slots_busy: u16::from(!self.waiting.is_empty()),
            queue_depth: u32::try_from(self.waiting.len().saturating_sub(1)).unwrap_or(u32::MAX),
            prompt_tokens_per_second: self.read.per_second(),
            prompt_tokens_total: self.read.total(),
            kv_tokens_max: tokens_max,
            ..Stats::default()
        };
        if stats != self.reported {
            self.reported = stats;
            self.outbox.send(&FromWorker::Stats(stats))?;
        }
        Ok(())
    }
}

fn known(tokens: &[i32], n_vocab: u32) -> Option<Vec<Token>> {
    let known = |token: &i32| u32::try_from(*token).is_ok_and(|id| id < n_vocab);
    let all = tokens.iter().all(known);
    all.then(|| tokens.iter().copied().map(Token).collect())
}
