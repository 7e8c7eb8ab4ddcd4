//! The gateway against nodes that misbehave: what the client sees, what the node was asked, what is charged and recorded.

mod asks;
mod client;
mod door;
mod hostile;
mod house;
mod limits;
mod migration;
mod node;
mod routes;
mod seed;
mod stream;
mod tokens;
mod whole;
