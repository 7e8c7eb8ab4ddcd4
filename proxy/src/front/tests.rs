//! The edge over real TLS, with a toy handler in the gateway's place.

mod answers;
mod carriers;
mod desync;
mod ending;
mod harness;
mod leaving;
mod load_balancers;
