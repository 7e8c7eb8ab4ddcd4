//! Decides which token of which request a model computes next. Pure: no llama.cpp, no tokio, no clock, no I/O.
//!
//! A request becomes a [`Job`], waits in the [`Queue`], takes a [`Slot`] (one sequence of the model), is read in chunks
//! (prefill), then makes one token per step (decode). [`plan`] puts the work of all slots into one [`BatchPlan`];
//! [`TextAssembler`] turns the bytes of tokens into text. Time always comes in as an argument.
//!
//! This crate does not tokenise, compute, sample or send anything.

mod drafting;
mod job;
mod links;
mod ngram;
mod pacer;
mod plan;
mod prefix;
mod prompts;
mod queue;
mod slots;
mod stats;
mod text;

pub use drafting::Drafting;
pub use fair::Class;
pub use job::Admission;
pub use job::Job;
pub use job::JobId;
pub use job::Principal;
pub use job::Token;
pub use job::TooLong;
pub use job::Wall;
pub use job::admit;
pub use links::Links;
pub use links::newest;
pub use ngram::NgramIndex;
pub use pacer::Pacer;
pub use plan::BatchPlan;
pub use plan::Part;
pub use plan::PlannedToken;
pub use plan::plan;
pub use prefix::KvState;
pub use prefix::Rollback;
pub use prefix::common_prefix;
pub use prefix::reusable;
pub use prompts::Kept;
pub use prompts::Prompts;
pub use queue::Queue;
pub use queue::QueueFull;
pub use slots::Phase;
pub use slots::Slot;
pub use slots::SlotId;
pub use slots::Slots;
pub use slots::Work;
pub use stats::JobTimes;
pub use stats::Meter;
pub use text::TextAssembler;
