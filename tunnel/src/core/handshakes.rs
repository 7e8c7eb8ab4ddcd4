//! Handshakes that peers begin: through the gate, to the workbench, and to the session.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::Core;
use crate::drops::DropReason;
use crate::path::Path;
use crate::wg::PeerId;
use crate::wg::bench::{Claim, Done, Job};
use crate::wg::gate::Admission;

impl Core {
    /// Takes an initiation off the wire.
    pub(super) fn initiation(
        &mut self,
        source: Path,
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), DropReason> {
        let under_way = self.bench.under_way();
        match self.gate.admit(source, datagram, (under_way, now))? {
            Admission::Examine(claim) => {
                if let Some(outcome) = self.guess(claim, now) {
                    return outcome;
                }
                let identity = Arc::clone(self.gate.identity());
                self.submit(Job::Examine(claim, identity))?;
                self.take_own_work(now);
                Ok(())
            }
            Admission::Prove(cookie) => {
                self.outbox.push_copy(source, &cookie);
                Err(DropReason::Limited)
            }
        }
    }

    /// A running session that is renewed from where its peer is heard from needs nobody to find out whose it is: that saves a key
    /// agreement of four. `None`: somebody else, or nobody known.
    fn guess(&mut self, claim: Claim, now: Instant) -> Option<Result<(), DropReason>> {
        let source = self.paths.hash_one(claim.source);
        let id = self.by_path.get(&source).copied()?;
        let session = &self.members.get(&id)?.session;
        if !session.is_established() {
            return None;
        }
        let session_id = session.id();
        match self.deliver(session_id, &claim.datagram(), now) {
            Err(DropReason::Unauthentic) => None,
            outcome => Some(self.blame(session_id, outcome)),
        }
    }

    /// Remembers where a peer is heard from.
    pub(super) fn expect(&mut self, id: PeerId) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if !member.session.paths_mut().take_moved() {
            return;
        }
        let path = member.session.paths().current();
        let path = path.map(|path| self.paths.hash_one(path));
        if member.expected == path {
            return;
        }
        let before = std::mem::replace(&mut member.expected, path);
        if let Some(before) = before
            && self.by_path.get(&before) == Some(&id)
        {
            self.by_path.remove(&before);
        }
        if let Some(path) = path {
            self.by_path.insert(path, id);
        }
    }

    /// Ready when the workbench has done something; give it to [`Core::handle_done`].
    pub(crate) fn poll_done(&mut self, context: &mut Context<'_>) -> Poll<Done> {
        self.bench.poll_done(context)
    }

    /// Something more that the workbench has done.
    pub(crate) fn next_done(&mut self) -> Option<Done> {
        self.bench.take()
    }

    /// Goes on with what the workbench has done.
    pub(crate) fn handle_done(&mut self, done: Done, now: Instant) {
        let outcome = match done {
            Done::Examined(claim, Some(key)) => match self.by_key.get(&key.to_bytes()).copied() {
                Some(session) => self.respond(session, claim, now),
                None => Err(DropReason::UnknownPeer),
            },
            Done::Examined(_, None) => Err(DropReason::Unauthentic),
            Done::Responded(claim, session_id, returned) => {
                let id = self.member_of(session_id);
                let member = self.members.get_mut(&id);
                let session = member.and_then(|member| member.session_mut(session_id));
                let Some(session) = session else {
                    // Forgotten meanwhile, and its state with it.
                    return;
                };
                let outcome = session.take_back(returned, claim.source, (&mut self.outbox, now));
                let is_call = outcome.is_ok() && session.peer().initiates;
                if is_call {
                    self.windows.calls.send_modify(|calls| *calls += 1);
                }
                self.follow_up(id, None, now);
                self.blame(session_id, outcome)
            }
        };
        if let Err(reason) = outcome {
            self.windows.drops.count(reason);
        }
    }

    /// Answers an initiation: at the workbench while there is no session that would have to wait for it, here otherwise.
    fn respond(
        &mut self,
        session_id: PeerId,
        claim: Claim,
        now: Instant,
    ) -> Result<(), DropReason> {
        let id = self.member_of(session_id);
        if self.bench.has_room()
            && let Some(member) = self.members.get_mut(&id)
            && let Some(session) = member.session_mut(session_id)
            && let Some(loan) = session.lend(now)
        {
            return self.submit(Job::Respond(claim, session_id, loan));
        }
        let outcome = self.deliver(session_id, &claim.datagram(), now);
        self.blame(session_id, outcome)
    }

    fn submit(&mut self, job: Job) -> Result<(), DropReason> {
        if !self.bench.has_room() {
            return Err(DropReason::Limited);
        }
        self.bench.submit(job);
        Ok(())
    }

    /// Without threads, work is done as soon as it is submitted.
    fn take_own_work(&mut self, now: Instant) {
        while self.bench.is_own()
            && let Some(done) = self.bench.take()
        {
            self.handle_done(done, now);
        }
    }
}
