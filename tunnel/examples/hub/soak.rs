//! A house of fifty nodes to which everything happens for as long as one likes. Everybody must be back in every calm, and nothing may have grown.

use std::alloc::System;
use std::time::Duration;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use tunnel::Backend;

use crate::figures::print;

#[path = "../../tests/soak/events.rs"]
mod events;
#[path = "../../tests/soak/house.rs"]
mod house;
#[path = "../../tests/soak/life.rs"]
mod life;
#[path = "../../tests/soak/wire.rs"]
mod wire;

use house::Ground;
use life::{Plan, live};

/// Counts what the heap holds, in some nanoseconds an allocation.
#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NODES: u16 = 50;
/// Things happen for so long between two calms.
const ROUND: Duration = Duration::from_secs(10);
/// A round with its calm.
const ROUND_SECONDS: u32 = 15;

fn held() -> u64 {
    let stats = HEAP.stats();
    (stats.bytes_allocated - stats.bytes_deallocated) as u64
}

/// `seed`: of a story that is to be repeated.
pub(crate) async fn run(seconds: u32, seed: Option<u64>) {
    let seed = seed.unwrap_or_else(rand::random);
    print(&format!("seed {seed}"));
    let plan = Plan {
        ground: Ground {
            backend: Backend::Embedded,
            helper: None,
        },
        nodes: NODES,
        rounds: (seconds / ROUND_SECONDS).max(2),
        round: ROUND,
        seed,
        held,
    };
    print(&live(plan).await);
}
