//! What this machine has: physical cores and free memory, as far as the system tells.

use std::collections::HashSet;
use std::fs;
use std::thread;

/// Below this size a model is so quick that a second thread costs more than it brings (measured: half the speed).
const SINGLE_THREAD_BYTES: u64 = 64 * 1024 * 1024;

/// How many threads suit a model: one for a tiny one, else all physical cores but one, which the rest of the machine needs.
pub(crate) fn threads_for(model_bytes: u64) -> u16 {
    if model_bytes < SINGLE_THREAD_BYTES {
        return 1;
    }
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let physical = physical_cores().unwrap_or(usable).min(usable);
    u16::try_from(physical.saturating_sub(1).max(1)).unwrap_or(u16::MAX)
}

/// Memory that can be used without swapping, in bytes.
pub(crate) fn memory_available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn physical_cores() -> Option<usize> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let mut cores = HashSet::new();
    let mut package = "";
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match key.trim() {
            "physical id" => package = value.trim(),
            "core id" => {
                cores.insert((package, value.trim()));
            }
            _other => {}
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_at_least_one_thread() {
        assert_eq!(threads_for(500_000), 1);
        assert!(threads_for(u64::MAX) >= 1);
    }
}
