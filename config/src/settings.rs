//! What an operator can set: read from a file and the environment into the resolved types of [`proxy`] and [`node`]. Every problem
//! is found before any is reported; nobody downstream checks again.

pub mod classifier;
pub mod load;
pub mod node;
pub mod plan;
pub mod problem;
pub mod proxy;
mod read;
pub mod remote;
mod resolve;
pub mod store;
mod syntax;
