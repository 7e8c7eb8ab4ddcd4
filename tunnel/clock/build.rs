//! Tells the tunnel's tests that boringtun's clock is theirs.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(mock_clock)");
    println!("cargo::rustc-cfg=mock_clock");
    println!("cargo::rerun-if-changed=build.rs");
}
