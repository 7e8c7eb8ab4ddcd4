//! The decode loop: mail in, one step for all slots, events out; again.
//!
//! Everything happens between two steps, so a cancelled job takes part in no further one, and no lock exists. A write to
//! the agent may block; the agent's reader never does, so that is only ever for a moment.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::Instant;

use scheduler::BatchPlan;
use scheduler::Job;
use scheduler::JobId;
use scheduler::JobTimes;
use scheduler::Meter;
use scheduler::Pacer;
use scheduler::Part;
use scheduler::Phase;
use scheduler::Queue;
use scheduler::Slot;
use scheduler::SlotId;
use scheduler::Slots;
use scheduler::Token;
use scheduler::plan;

use super::Mail;
use super::ahead::Ahead;
use super::answer::Answer;
use super::answer::Next;
use super::guess::Guesser;
use super::intake;
use super::media;
use super::outbox::Outbox;
use super::progress::Reporter;
use super::reuse::Reuse;
use super::saved::Saved;
use super::warm::Warm;
use super::watchdog::Watchdog;
use crate::engine::Engine;
use crate::engine::EngineFault;
use crate::protocol;
use crate::protocol::FromWorker;
use crate::protocol::ToWorker;
use crate::spec::Event;
use crate::spec::Finish;
use crate::spec::GenerateSpec;
use crate::spec::LoadSpec;
use crate::spec::Refusal;
use crate::spec::Stats;
use crate::spec::Usage;

/// How often speeds are reported while nothing else changes.
const STATS_EVERY: Duration = Duration::from_millis(500);
/// A large batch on a slow CPU takes minutes at worst; longer than this, a driver hangs.
const COMPUTE_MAX: Duration = Duration::from_mins(5);
/// Everything else takes milliseconds, unless a grammar explodes.
const THINK_MAX: Duration = Duration::from_secs(20);
/// A worker without any deadline looks up this often; nothing depends on it.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// A loaded model at work.
pub(super) struct Server<'engine> {
    engine: &'engine mut dyn Engine,
    queue: Queue<Answer>,
    slots: Slots<Answer>,
    pacer: Pacer,
    plan: BatchPlan,
    reuse: Reuse,
    guesser: Guesser,
    ahead: Ahead,
    saved: Option<Saved>,
    outbox: Outbox,
    seed_default: Option<u64>,
    meters: Meters,
    progress: Reporter,
    warm: Warm,
    reported: Stats,
    reported_at: Instant,
    /// Something has changed since, and it is to be told even if nothing more happens.
    stale: bool,
    open: bool,
    watchdog: Watchdog,
}

#[derive(Default)]
struct Meters {
    made: Meter,
    /// Made in this step.
    made_now: usize,
    read: Meter,
    cached_tokens: u64,
}

impl<'engine> Server<'engine> {
    /// Prepares to serve an agent at the other end of `stream`.
    pub(super) fn new(
        engine: &'engine mut dyn Engine,
        spec: &LoadSpec,
        stream: UnixStream,
        watchdog: Watchdog,
    ) -> Self {
        let stall_max = Duration::from_millis(u64::from(spec.stall_max_ms));
        Self {
            queue: Queue::new(spec.queue_max.max(1), spec.queue_per_principal_max.max(1)),
            slots: Slots::new(engine.card().slots),
            pacer: Pacer::new(stall_max, engine.batch_max()),
            plan: BatchPlan::default(),
            reuse: Reuse::new(spec.prompt_cache_bytes, engine),
            guesser: Guesser::new(spec, engine),
            ahead: Ahead::new(),
            saved: Saved::open(spec),
            outbox: Outbox::new(stream),
            seed_default: spec.seed_default,
            meters: Meters::default(),
            progress: Reporter::new(),
            warm: Warm::new(Instant::now()),
            reported: Stats::default(),
            reported_at: Instant::now(),
            stale: false,
            open: true,
            watchdog,
            engine,
        }
    }

    /// Serves until the agent is gone or says so.
    pub(super) fn run(&mut self, inbox: &Receiver<Mail>) -> io::Result<()> {
        let card = Box::new(self.engine.card().clone());
        self.outbox.send(&FromWorker::Loaded {
            version: protocol::VERSION,
            card,
        })?;
        self.restore();
        while self.open {
            self.watchdog.allow(THINK_MAX);
            let now = Instant::now();
            self.expire(now)?;
            self.fill_slots(now)?;
            self.guesser.guess(self.engine, &mut self.slots);
            let prefill_max = self.prefill_max();
            let batch_max = self.engine.batch_max();
            let reading = self.read_media(now)?;
            plan(&self.slots, batch_max, prefill_max, &mut self.plan);
            let idle = self.plan.is_empty() && !reading;
            if !self.plan.is_empty() {
                self.step(now)?;
            }
            self.report_stats(now)?;
            self.warm
                .report((&self.slots, &self.reuse), &mut self.outbox, now)?;
            self.progress
                .report((&self.queue, &self.slots), &mut self.outbox, now)?;
            // The agent may be stopped in a debugger; that is no reason to die.
            self.watchdog.rest();
            self.outbox.flush()?;
            let first = if idle { self.wait(inbox) } else { None };
            self.watchdog.allow(THINK_MAX);
            for mail in first.into_iter().chain(inbox.try_iter()) {
                self.take(mail)?;
            }
        }
        self.watchdog.allow(THINK_MAX);
        if let Some(saved) = &self.saved {
            saved.save(self.engine, &self.slots, &mut self.reuse);
        }
        Ok(())
    }

    fn restore(&mut self) {
        self.watchdog.allow(COMPUTE_MAX);
        if let Some(saved) = &self.saved {
            saved.restore(self.engine, &mut self.reuse);
        }
    }

    /// Prompt tokens in the next step.
    fn prefill_max(&self) -> usize {
        let running = self.slots.iter().any(makes_tokens);
        let reading = self.slots.iter().filter(|slot| {
            let work = slot.work();
            work.is_some_and(|work| matches!(work.phase, Phase::Prefill { .. }))
        });
        let before = reading.map(|slot| slot.cached().len()).max();
        self.pacer.budget(running, before.unwrap_or(0))
    }

    /// Waits for mail or the next deadline.
    fn wait(&self, inbox: &Receiver<Mail>) -> Option<Mail> {
        let report_at = self.stale.then(|| self.reported_at + STATS_EVERY);
        let deadlines = [
            self.queue.poll_timeout(),
            self.slots.poll_timeout(),
            self.warm.poll_timeout(),
            report_at,
        ];
        let next = deadlines.into_iter().flatten().min();
        let left = next.map_or(WAIT_MAX, |next| {
            next.saturating_duration_since(Instant::now())
        });
        match inbox.recv_timeout(left) {
            Ok(mail) => Some(mail),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Mail::Closed),
        }
    }

    fn take(&mut self, mail: Mail) -> io::Result<()> {
        match mail {
            Mail::Closed | Mail::Frame(ToWorker::Shutdown | ToWorker::Load { .. }) => {
                self.open = false;
                Ok(())
            }
            Mail::Frame(ToWorker::Generate { job, spec }) => self.accept(JobId(job), &spec),
            Mail::Frame(ToWorker::Cancel { job }) => self.cancel(JobId(job)),
            Mail::Frame(ToWorker::Credit { job, pieces }) => {
                self.add_credit(JobId(job), pieces);
                Ok(())
            }
            Mail::Frame(ToWorker::Tokenize {
                call,
                text,
                add_special,
                parse_special,
            }) => {
                let tokens = self.engine.tokenize(&text, add_special, parse_special);
                let tokens = tokens.into_iter().map(|token| token.0).collect();
                self.outbox.send(&FromWorker::Tokens { call, tokens })
            }
            Mail::Frame(ToWorker::Detokenize { call, tokens }) => {
                let mut bytes = Vec::new();
                for token in tokens {
                    self.engine.append_piece(Token(token), true, &mut bytes);
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                self.outbox.send(&FromWorker::Text { call, text })
            }
            Mail::Frame(ToWorker::Embed { call, .. }) => {
                let refusal = Refusal::Invalid {
                    param: "model".to_owned(),
                    reason: "this model makes text, not vectors; ask a tier with kind = \"embedding\" or \"rerank\"".to_owned(),
                };
                let result = Err(refusal.into());
                self.outbox.send(&FromWorker::Embedded { call, result })
            }
        }
    }

    fn accept(&mut self, id: JobId, spec: &GenerateSpec) -> io::Result<()> {
        let now = Instant::now();
        let job = match intake::prepare(id, spec, &*self.engine, self.seed_default, now) {
            Ok(job) => job,
            Err(refusal) => return self.outbox.refuse(id, refusal),
        };
        if !job.payload.media.is_empty() && self.media_bytes() > media::WAITING_BYTES_MAX {
            let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
            return self.outbox.refuse(id, Refusal::QueueFull { waiting });
        }
        // Whoever waits already goes first, so the queue is only used when there is no slot.
        self.fill_slots(now)?;
        let (refused, waiting) = match self.queue.push(job) {
            Ok(None) => return self.fill_slots(now),
            // Whoever had the most waiting makes room.
            Ok(Some(displaced)) => (displaced.id, self.queue.len()),
            Err(full) => (id, full.waiting),
        };
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        self.outbox
            .refuse(refused, Refusal::QueueFull { waiting })?;
        self.fill_slots(now)
    }

    /// Ends a job and says what it used. One that is not known has had its end.
    fn cancel(&mut self, id: JobId) -> io::Result<()> {
        let usage = if let Some(slot) = self.slots.find(id) {
            let job = self.release(slot);
            job.map(|job| job.payload.usage())
        } else {
            // It waited, so nothing of it was read.
            self.queue.remove(id).map(|_job| Usage::default())
        };
        let cancelled = usage.map(|usage| FromWorker::Cancelled { job: id.0, usage });
        cancelled.map_or(Ok(()), |frame| self.outbox.send(&frame))
    }

    fn add_credit(&mut self, id: JobId, pieces: u32) {
        let slot = self.slots.find(id);
        if let Some(work) = slot.and_then(|slot| self.slots.work_mut(slot)) {
            work.job.payload.add_credit(pieces);
            work.paused = work.job.payload.must_pause();
        }
    }

    fn expire(&mut self, now: Instant) -> io::Result<()> {
        for job in self.queue.expire(now) {
            self.outbox.refuse(job.id, Refusal::DeadlineExceeded)?;
        }
        for slot in self.slots.expired(now) {
            let Some(mut job) = self.release(slot) else {
                continue;
            };
            if job.payload.has_begun() {
                let (piece, _end) = job.payload.end(Finish::Deadline);
                self.finish(&job, piece, Finish::Deadline, now)?;
            } else {
                self.outbox.refuse(job.id, Refusal::DeadlineExceeded)?;
            }
        }
        Ok(())
    }

    /// Gives idle slots to waiting jobs.
    fn fill_slots(&mut self, now: Instant) -> io::Result<()> {
        while self.slots.busy() < self.slots.iter().len() {
            let Some(cells) = self.queue.peek().map(|job| job.cells) else {
                return Ok(());
            };
            // Whoever is next waits for room, and nobody overtakes: a large request would otherwise wait forever.
            if self.slots.cells_promised() + cells > self.engine.kv_tokens_max() {
                return Ok(());
            }
            let Some(mut job) = self.queue.pop() else {
                return Ok(());
            };
            let Some(mut place) = self.reuse.place(self.engine, &mut self.slots, &job) else {
                self.outbox.fault(job.id, "no slot is idle")?;
                continue;
            };
            if job.payload.media.whole(place.kept) < place.kept {
                // Two pictures that look alike to a hash are as good as impossible, and cost no more than time.
                self.empty(place.slot);
                place.kept = 0;
            }
            let solid = job.payload.media.places();
            self.reuse
                .make_room(self.engine, &mut self.slots, (cells, place.slot));
            self.meters.cached_tokens += u64::try_from(place.kept).unwrap_or(0);
            let started = job
                .payload
                .start(place.kept, JobTimes::started(job.arrived, now));
            self.outbox.event(job.id, started)?;
            if let Err(job) = self.slots.begin(place.slot, job, place.kept) {
                self.outbox.fault(job.id, "its slot was taken")?;
            }
            if let Some(work) = self.slots.work_mut(place.slot) {
                work.halt = place.halt;
                work.solid = solid;
            }
        }
        Ok(())
    }

    /// Reads at most one picture or sound, so that running answers go on between two of them. Says whether there was one.
    fn read_media(&mut self, now: Instant) -> io::Result<bool> {
        self.watchdog.allow(COMPUTE_MAX);
        let read = media::read_next(self.engine, &mut self.slots);
        self.watchdog.allow(THINK_MAX);
        let Some((slot, read)) = read else {
            return Ok(false);
        };
        tracing::debug!(slot = slot.0, elapsed = ?now.elapsed(), "read a picture or sound");
        match read {
            Ok(()) => self.reuse.has_read(self.engine, &self.slots, slot),
            Err(fault) => {
                if let Some(job) = self.slots.release(slot) {
                    self.outbox.fault(job.id, &fault.reason)?;
                }
                self.empty(slot);
            }
        }
        Ok(true)
    }

    /// Bytes of pictures and sounds that were not read yet.
    fn media_bytes(&self) -> usize {
        let working = self
            .slots
            .iter()
            .filter_map(Slot::work)
            .map(|work| &work.job);
        let jobs = working.chain(self.queue.iter());
        jobs.map(|job| job.payload.media.bytes()).sum()
    }

    /// Computes the plan and moves every answer in it on.
    fn step(&mut self, now: Instant) -> io::Result<()> {
        self.watchdog.allow(COMPUTE_MAX);
        let computed = self.engine.decode(&self.plan);
        self.watchdog.allow(THINK_MAX);
        if let Err(fault) = computed {
            return self.fail(&fault);
        }
        self.slots.commit(&self.plan);
        self.ahead.choose(self.engine, &mut self.slots, &self.plan);
        self.meters.made_now = 0;
        for index in 0..self.plan.parts().len() {
            if let Some(part) = self.plan.parts().get(index).copied() {
                if part.prefill {
                    self.reuse.has_read(self.engine, &self.slots, part.slot);
                }
                self.advance(part)?;
            }
        }
        let elapsed = now.elapsed();
        self.pacer.observe(&self.plan, elapsed);
        self.meters.made.observe(self.meters.made_now, elapsed);
        self.meters.read.observe(self.plan.prefill_len(), elapsed);
        Ok(())
    }

    /// Chooses the tokens of one answer: one, or as many as its guesses were right and one more.
    fn advance(&mut self, part: Part) -> io::Result<()> {
        let drafted = if part.prefill { 0 } else { part.len - 1 };
        let mut accepted = 0;
        for output in part.outputs() {
            let Some((id, piece, next)) = self.choose(part.slot, output) else {
                return Ok(());
            };
            if let Next::Token(token) = &next {
                let guess = self
                    .plan
                    .tokens()
                    .get(output + 1)
                    .filter(|_guess| accepted < drafted);
                let right = guess.is_some_and(|guess| guess.token == *token);
                let paused = self
                    .slots
                    .work_mut(part.slot)
                    .is_some_and(|work| work.paused);
                if right && !paused {
                    accepted += 1;
                    piece.map_or(Ok(()), |piece| self.outbox.event(id, piece))?;
                    continue;
                }
            }
            self.guesser.observe(drafted, accepted);
            if accepted < drafted && !self.take_back(part, accepted)? {
                return Ok(());
            }
            return self.go_on(part.slot, id, piece, next);
        }
        Ok(())
    }

    /// Chooses a token of an answer from the logits at `output`.
    fn choose(&mut self, slot: SlotId, output: usize) -> Option<(JobId, Option<Event>, Next)> {
        let work = self.slots.work_mut(slot)?;
        let id = work.job.id;
        let answer = &mut work.job.payload;
        let before = answer.made();
        let (piece, next) = if let Some(logits) = self.engine.logits(output) {
            answer.advance(logits, &*self.engine, Instant::now())
        } else {
            let reason = "no logits".to_owned();
            (None, Next::Refuse(Refusal::EngineFault { reason }))
        };
        work.paused = answer.must_pause();
        // Its own count, so that all answers together are what is reported.
        let made = answer.made().saturating_sub(before);
        self.meters.made_now += usize::try_from(made).unwrap_or(0);
        Some((id, piece, next))
    }

    /// Removes wrong guesses from a slot's cache; if that fails, its job is refused.
    fn take_back(&mut self, part: Part, accepted: usize) -> io::Result<bool> {
        let held = self
            .slots
            .get(part.slot)
            .map_or(0, |slot| slot.cached().len());
        let right = held.saturating_sub(part.len - 1 - accepted);
        if self.engine.keep_prefix(part.slot, right) {
            self.slots.truncate(part.slot, right);
            return Ok(true);
        }
        if let Some(job) = self.slots.release(part.slot) {
            self.outbox
                .fault(job.id, "a guess could not be taken back")?;
        }
        self.empty(part.slot);
        Ok(false)
    }

    fn go_on(
        &mut self,
        slot: SlotId,
        id: JobId,
        piece: Option<Event>,
        next: Next,
    ) -> io::Result<()> {
        match next {
            Next::Token(token) => {
                self.slots.chose(slot, token);
                piece.map_or(Ok(()), |piece| self.outbox.event(id, piece))
            }
            Next::End(finish) => match self.release(slot) {
                Some(job) => self.finish(&job, piece, finish, Instant::now()),
                None => Ok(()),
            },
            Next::Refuse(refusal) => {
                drop(self.release(slot));
                self.outbox.refuse(id, refusal)
            }
        }
    }

    fn finish(
        &mut self,
        job: &Job<Answer>,
        piece: Option<Event>,
        finish: Finish,
        now: Instant,
    ) -> io::Result<()> {
        if let Some(piece) = piece {
            self.outbox.event(job.id, piece)?;
        }
        self.outbox.event(job.id, job.payload.done(finish, now))
    }

    /// Takes the job out of a slot; its cache stays unless the job asked otherwise.
    fn release(&mut self, slot: SlotId) -> Option<Job<Answer>> {
        let job = self.slots.release(slot)?;
        if !job.payload.cache_prompt {
            self.empty(slot);
        }
        Some(job)
    }

    /// Refuses every job whose cache can no longer be trusted.
    fn fail(&mut self, fault: &EngineFault) -> io::Result<()> {
        tracing::warn!(reason = %fault.reason, "a step failed");
        let planned: Vec<SlotId> = self.plan.parts().iter().map(|part| part.slot).collect();
        let all: Vec<SlotId> = self.slots.iter().map(Slot::id).collect();
        for slot in all {
            if fault.caches_intact && !planned.contains(&slot) {
                continue;
            }
            if let Some(job) = self.slots.release(slot) {
                self.outbox.fault(job.id, &fault.reason)?;
            }
            self.empty(slot);
        }
        Ok(())
    }

    fn empty(&mut self, slot: SlotId) {
        // Keeping nothing always succeeds.
        let _emptied = self.engine.keep_prefix(slot, 0);
        self.slots.forget(slot);
    }

    fn report_stats(&mut self, now: Instant) -> io::Result<()> {
        let card = self.engine.card();
        let (drafted_tokens_total, accepted_tokens_total) = self.guesser.totals();
        let stats = Stats {
            slots: card.slots,
            slots_busy: u16::try_from(self.slots.busy()).unwrap_or(u16::MAX),
            queue_depth: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            tokens_per_second: self.meters.made.per_second(),
            prompt_tokens_per_second: self.meters.read.per_second(),
            kv_tokens: u64::try_from(self.slots.cached_tokens()).unwrap_or(u64::MAX),
            kv_tokens_max: u64::try_from(self.engine.kv_tokens_max()).unwrap_or(u64::MAX),
            prompt_tokens_total: self.meters.read.total(),
            cached_tokens_total: self.meters.cached_tokens,
            completion_tokens_total: self.meters.made.total(),
            prompt_hits_total: self.reuse.hits(),
            prompt_moves_total: self.reuse.moves(),
            prompt_cache_bytes: u64::try_from(self.reuse.bytes()).unwrap_or(u64::MAX),
            drafted_tokens_total,
            accepted_tokens_total,
        };
        let moved = stats.slots_busy != self.reported.slots_busy
            || stats.queue_depth != self.reported.queue_depth;
        let due = now.saturating_duration_since(self.reported_at) >= STATS_EVERY
            && stats != self.reported;
        if moved || due {
            self.reported = stats;
            self.reported_at = now;
            self.warm.touch();
            self.outbox.send(&FromWorker::Stats(stats))?;
        }
        self.stale = stats != self.reported;
        Ok(())
    }
}

fn makes_tokens(slot: &Slot<Answer>) -> bool {
    slot.work()
        .is_some_and(|work| matches!(work.phase, Phase::Decode { .. }) && !work.paused)
}
