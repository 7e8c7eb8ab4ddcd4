//! Chooses the next tokens of several answers at the same time, in several threads.
//!
//! With 262,144 tokens a choice takes a tenth of a millisecond; sixteen of them, one after the other, would take as long as a
//! small model computes. With a small vocabulary a thread costs more than it saves.

use std::thread;

use scheduler::BatchPlan;
use scheduler::Slots;

use super::answer::Answer;
use super::answer::Choice;
use crate::engine::Engine;

/// Below this many logits for each thread, threads are not worth their start.
const LOGITS_MIN: usize = 256 * 1024;
/// More do not help: the logits come through one memory.
const THREADS_MAX: usize = 8;

/// How many choices are made at the same time.
pub(super) struct Ahead {
    threads: usize,
}

impl Ahead {
    /// Looks at the machine.
    pub(super) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads: cores.min(THREADS_MAX),
        }
    }

    /// Makes the first choice of every answer in a plan that was computed, if it pays.
    pub(super) fn choose(&self, engine: &dyn Engine, slots: &mut Slots<Answer>, plan: &BatchPlan) {
        let n_vocab = usize::try_from(engine.card().n_vocab).unwrap_or(0);
        let due = plan
            .parts()
            .iter()
            .filter(|part| !part.outputs().is_empty());
        let due = due.count();
        let threads = self.threads.min(due * n_vocab / LOGITS_MIN).min(due);
        if threads < 2 {
            return;
        }
        let mut choices: Vec<(Choice<'_>, &[f32])> = Vec::with_capacity(due);
        for (slot, work) in slots.works_mut() {
            let mut parts = plan.parts().iter();
            let part = parts.find(|part| part.slot == slot && !part.outputs().is_empty());
            let logits = part.and_then(|part| engine.logits(part.outputs().start));
            if let Some(logits) = logits {
                choices.push((work.job.payload.choice(), logits));
            }
        }
        run(choices, threads);
    }
}

fn run(mut choices: Vec<(Choice<'_>, &[f32])>, threads: usize) {
    let each = choices.len().div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        while choices.len() > each {
            let part = choices.split_off(choices.len() - each);
            // A thread that cannot be started leaves its answers to be chosen later, one after the other.
            let started = thread::Builder::new().spawn_scoped(scope, || make(part));
            if let Err(error) = started {
                tracing::debug!(%error, "no thread for sampling");
            }
        }
        make(choices);
    });
}

fn make(choices: Vec<(Choice<'_>, &[f32])>) {
    for (choice, logits) in choices {
        choice.make(logits);
    }
}
