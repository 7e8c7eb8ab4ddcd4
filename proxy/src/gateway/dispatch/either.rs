//! The beginning of an answer in whatever form it comes: as a stream, or whole. Asks for streams wherever one can be carried on.

use serde_json::Value;

use super::{Form, Opened, Tries};
use crate::gateway::events::{NodeEvents, Piece};
use crate::nodes::upstream::Fault;
use policy::refusal::Refusal;

/// An answer that has begun.
pub enum Begun {
    /// A stream, and its chunks up to the first with content.
    Stream(Opened, Box<NodeEvents>, Vec<Piece>),
    /// All of it.
    Whole(Opened, Value),
}

impl Begun {
    /// Who gives it.
    pub const fn opened(&self) -> &Opened {
        match self {
            Self::Stream(opened, _, _) | Self::Whole(opened, _) => opened,
        }
    }
}

impl Tries<'_> {
    /// The answer of the first step that gives one.
    pub async fn either(&mut self) -> Result<Begun, Refusal> {
        match self.job.form {
            Form::Whole => {
                let (opened, value) = self.whole().await?;
                Ok(Begun::Whole(opened, value))
            }
            Form::Stream | Form::Gathered => self.begin().await,
        }
    }

    /// The stream of the first step that gives one: its chunks up to the first with content, and what follows.
    pub async fn stream(&mut self) -> Result<(Opened, NodeEvents, Vec<Piece>), Refusal> {
        loop {
            match self.begin().await? {
                Begun::Stream(opened, events, first) => return Ok((opened, *events, first)),
                Begun::Whole(opened, _) => self.failed(opened, Fault::Nonsense.into())?,
            }
        }
    }

    async fn begin(&mut self) -> Result<Begun, Refusal> {
        loop {
            let patience = self.dispatcher.rules.first_byte_timeout;
            let (opened, hope) = self.take(patience).await?;
            if let Some(begun) = self.first_content(opened, hope).await? {
                return Ok(begun);
            }
        }
    }
}
