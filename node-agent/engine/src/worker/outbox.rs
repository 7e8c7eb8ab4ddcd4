//! Frames on their way to the agent, written once per step: a system call for a whole step costs what one for a token would.

use std::io;
use std::io::Write;
use std::os::unix::net::UnixStream;

use scheduler::JobId;

use crate::protocol;
use crate::protocol::FromWorker;
use crate::spec::Event;
use crate::spec::Refusal;

/// What was said and not sent yet.
pub(super) struct Outbox {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Outbox {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
        }
    }

    pub(super) fn send(&mut self, frame: &FromWorker) -> io::Result<()> {
        protocol::encode(frame, &mut self.bytes)
    }

    pub(super) fn event(&mut self, job: JobId, event: Event) -> io::Result<()> {
        self.send(&FromWorker::Event { job: job.0, event })
    }

    pub(super) fn refuse(&mut self, job: JobId, refusal: Refusal) -> io::Result<()> {
        self.event(job, Event::Refused(refusal))
    }

    pub(super) fn fault(&mut self, job: JobId, reason: &str) -> io::Result<()> {
        let reason = reason.to_owned();
        self.refuse(job, Refusal::EngineFault { reason })
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            self.stream.write_all(&self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}
