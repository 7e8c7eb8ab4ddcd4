//! A house to which everything happens, for some seconds. For hours: `cargo run --release -p tunnel --example hub -- soak SECONDS`.

#![cfg(target_os = "linux")]

#[cfg(test)]
mod events;
#[cfg(test)]
mod house;
#[cfg(test)]
mod life;
#[cfg(test)]
mod wire;

#[cfg(test)]
mod stories {
    use std::alloc::System;
    use std::io::Write as _;
    use std::time::Duration;

    use tunnel::Backend;

    use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

    use crate::house::Ground;
    use crate::life::{Plan, live};

    #[global_allocator]
    static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

    fn held() -> u64 {
        let stats = HEAP.stats();
        (stats.bytes_allocated - stats.bytes_deallocated) as u64
    }

    /// The seed is another one every time, and said: `HEARTH_SEED` repeats a story, as far as threads and sockets let it.
    fn plan(backend: Backend, nodes: u16) -> Plan {
        let seed = std::env::var("HEARTH_SEED").ok();
        let seed = seed.and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(rand::random);
        tell(&format!("seed {seed}"));
        Plan {
            ground: Ground {
                backend,
                helper: Some(env!("CARGO_BIN_EXE_hearth-netns").into()),
            },
            nodes,
            rounds: 2,
            round: Duration::from_secs(2),
            seed,
            held,
        }
    }

    fn tell(line: &str) {
        // Nowhere left to say that nothing can be said.
        drop(writeln!(std::io::stderr(), "{line}"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whatever_happens_to_fifty_nodes_all_are_back_and_nothing_has_grown() {
        tell(&live(plan(Backend::Embedded, 50)).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_same_is_true_where_the_hub_has_the_kernels_tcp() {
        tell(&live(plan(Backend::Auto, 20)).await);
    }
}
