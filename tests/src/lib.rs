//! Floor 4: the harness of the end-to-end stories. Starts the real programs; fakes nothing that can be run.

pub mod client;
pub mod fake;
pub mod issuer;
pub mod node;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod shaper;
pub mod talk;
pub mod wait;

/// Says what a story measured, beside the test's own output.
pub fn tell(line: &str) {
    let line = format!("{line}\n");
    // Nobody may be listening.
    let _said = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
