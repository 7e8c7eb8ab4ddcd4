//! How large and how fast a hub is. Prints one line of JSON a run.
//!
//! ```text
//! cargo run --release -p tunnel --example hub -- idle 10000    memory and CPU of idle peers, start
//! cargo run --release -p tunnel --example hub -- storm 1000    nodes that all come back at once
//! cargo run --release -p tunnel --example hub -- flood 2000    streams beside a flood of handshakes
//! cargo run --release -p tunnel --example hub -- shards        one driver against two
//! cargo run --release -p tunnel --example hub -- soak 3600     everything that can happen to fifty nodes; a seed behind it repeats a story
//! ```
//!
//! The hub is alone in its process, but for `soak`; what it talks with runs in children of it.

#[cfg(target_os = "linux")]
mod crowd;
#[cfg(target_os = "linux")]
mod figures;
#[cfg(target_os = "linux")]
mod flood;
#[cfg(target_os = "linux")]
mod idle;
#[cfg(target_os = "linux")]
mod nodes;
#[cfg(target_os = "linux")]
mod shards;
#[cfg(target_os = "linux")]
mod soak;
#[cfg(target_os = "linux")]
mod storm;

#[cfg(target_os = "linux")]
fn main() {
    // As many threads as cores for what moves bytes, one for what waits.
    let moves = matches!(
        std::env::args().nth(1).as_deref(),
        Some("flood" | "shards" | "nodes" | "soak")
    );
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(if moves { 2 } else { 1 })
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(run());
}

#[cfg(target_os = "linux")]
async fn run() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize| arguments.get(at).map_or("", String::as_str);
    let number = |at: usize, default: u32| word(at).parse().unwrap_or(default);
    match word(0) {
        "crowd" => crowd::run(word(1), word(2), number(3, 1)).await,
        "nodes" => nodes::run(word(1), word(2), number(3, 1), number(4, 0)).await,
        "flooder" => flood::throw(word(1), word(2), number(3, 2_000)),
        "idle" => idle::run(number(1, 10_000), number(2, 60)).await,
        "soak" => soak::run(number(1, 60), word(2).parse().ok()).await,
        "storm" => storm::run(number(1, 1_000)).await,
        "flood" => flood::run(number(1, 2_000)).await,
        "shards" => shards::run(number(1, 4)).await,
        other => panic!("unknown: {other:?}; say idle, storm, flood, shards or soak"),
    }
}

/// The figures come from `/proc`.
#[cfg(not(target_os = "linux"))]
fn main() {}
