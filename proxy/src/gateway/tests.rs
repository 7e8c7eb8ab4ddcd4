//! The gateway against nodes that misbehave: what the client sees, what the node was asked, what is charged and recorded.

mod asks;
mod burst;
mod classify;
mod client;
mod continuity;
mod door;
mod everywhere;
mod hedge;
mod hostile;
mod house;
mod limits;
mod migration;
mod node;
mod outside;
mod patience;
mod peer;
mod routes;
mod seed;
mod stream;
mod tokens;
mod whole;
