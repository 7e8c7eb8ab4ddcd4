//! What this machine has: memory, GPUs, cores, and how fast memory is read. Looks, changes nothing; starts `nvidia-smi` at most.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::progress::{float, whole};

const MIB: u64 = 1024 * 1024;
/// Larger than the caches of desktop processors.
const BANDWIDTH_BYTES: usize = 128 * 1024 * 1024;
const BANDWIDTH_FOR: Duration = Duration::from_millis(200);
const TOOL_MAX: Duration = Duration::from_secs(5);

/// A graphics card.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Gpu {
    /// As its driver names it.
    pub name: String,
    /// Its memory.
    pub total_bytes: u64,
    /// What is free of it.
    pub free_bytes: u64,
}

/// A machine.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Machine {
    /// Memory.
    pub ram_total_bytes: u64,
    /// What programs may still take.
    pub ram_available_bytes: u64,
    /// Cores that this process may use.
    pub cores: u64,
    /// Bytes that all cores together read from memory in a second; 0 = not measured.
    pub memory_bytes_per_second: u64,
    /// Cards with memory of their own.
    pub gpus: Vec<Gpu>,
    /// A small board, such as a Raspberry Pi.
    pub board: Option<String>,
}

impl Machine {
    /// Looks at this machine; takes a quarter of a second.
    pub fn this() -> Self {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let board = fs::read_to_string("/proc/device-tree/model").ok();
        let total = field(&memory, "MemTotal")
            .or_else(total_of_mac)
            .unwrap_or(0);
        let mut gpus = nvidia();
        gpus.extend(amd(Path::new("/sys/class/drm")));
        Self {
            ram_total_bytes: total,
            ram_available_bytes: field(&memory, "MemAvailable").unwrap_or(total / 2),
            cores: u64::try_from(cores).unwrap_or(1),
            memory_bytes_per_second: bandwidth(cores.min(16)),
            gpus,
            board: board.map(|model| model.trim_end_matches('\0').to_owned()),
        }
    }

    /// Free memory of all cards.
    pub fn vram_free(&self) -> u64 {
        self.gpus.iter().map(|gpu| gpu.free_bytes).sum()
    }
}

/// Memory that programs may still take, without looking at anything else; `None` where the system does not say.
pub fn ram_available() -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// Memory that a process has now, files that it maps among it; `None` where the system does not say.
pub fn resident(pid: u32) -> Option<u64> {
    field(
        &fs::read_to_string(format!("/proc/{pid}/status")).ok()?,
        "VmRSS",
    )
}

/// Bytes of its own program that this process maps: a worker runs the same one. `None` where the system does not say.
pub fn own_program() -> Option<u64> {
    static BYTES: OnceLock<Option<u64>> = OnceLock::new();
    *BYTES.get_or_init(|| program(std::process::id()))
}

/// Bytes of its program that a process maps; `None` where the system does not say.
pub fn program(pid: u32) -> Option<u64> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let bytes = mapped(&maps, program.to_str()?);
    (bytes > 0).then_some(bytes)
}

/// Adds up the ranges of a `maps` table (proc(5)) that belong to a file.
fn mapped(maps: &str, file: &str) -> u64 {
    let sizes = maps.lines().filter_map(|line| {
        let range = line.strip_suffix(file)?.split_whitespace().next()?;
        let (from, to) = range.split_once('-')?;
        let at = |text| u64::from_str_radix(text, 16).ok();
        at(to)?.checked_sub(at(from)?)
    });
    sizes.fold(0, u64::saturating_add)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn total_of_mac() -> Option<u64> {
    output("sysctl", &["-n", "hw.memsize"])?.trim().parse().ok()
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let began = Instant::now();
    loop {
        match child.try_wait().ok()? {
            Some(status) => {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut child.stdout.take()?, &mut text).ok()?;
                return status.success().then_some(text);
            }
            None if began.elapsed() > TOOL_MAX => {
                let _killed = child.kill();
                let _ended = child.wait();
                return None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn nvidia() -> Vec<Gpu> {
    let query = [
        "--query-gpu=name,memory.total,memory.free",
        "--format=csv,noheader,nounits",
    ];
    output("nvidia-smi", &query)
        .map(|text| nvidia_of(&text))
        .unwrap_or_default()
}

fn nvidia_of(text: &str) -> Vec<Gpu> {
    let one = |line: &str| {
        let mut parts = line.rsplitn(3, ',');
        let free: u64 = parts.next()?.trim().parse().ok()?;
        let total: u64 = parts.next()?.trim().parse().ok()?;
        Some(Gpu {
            name: parts.next()?.trim().to_owned(),
            total_bytes: total * MIB,
            free_bytes: free * MIB,
        })
    };
    text.lines().filter_map(one).collect()
}

fn amd(folder: &Path) -> Vec<Gpu> {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let cards = fs::read_dir(folder).into_iter().flatten().flatten();
    let one = |entry: fs::DirEntry| {
        let device = entry.path().join("device");
        let total = number(&device.join("mem_info_vram_total"))?;
        let used = number(&device.join("mem_info_vram_used"))?;
        // An integrated one borrows from the RAM that is counted already.
        (total >= 2048 * MIB).then(|| Gpu {
            name: format!("AMD {}", entry.file_name().to_string_lossy()),
            total_bytes: total,
            free_bytes: total.saturating_sub(used),
        })
    };
    cards
        .filter(|entry| !entry.file_name().to_string_lossy().contains('-'))
        .filter_map(one)
        .collect()
}

/// Reads more than the caches hold, with all cores, for a moment.
fn bandwidth(threads: usize) -> u64 {
    let words = BANDWIDTH_BYTES / 8 / threads.max(1);
    let began = Instant::now();
    let rates = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|_thread| scope.spawn(move || reading(words)))
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap_or(0.0))
            .sum::<f64>()
    });
    tracing::debug!(
        ms = began.elapsed().as_millis(),
        "memory bandwidth measured"
    );
    whole(rates)
}

fn reading(words: usize) -> f64 {
    let buffer: Vec<u64> = (0..u64::try_from(words).unwrap_or(0)).collect();
    let began = Instant::now();
    let mut bytes = 0_u64;
    let mut sum = 0_u64;
    while began.elapsed() < BANDWIDTH_FOR {
        sum = buffer.iter().fold(sum, |sum, word| sum.wrapping_add(*word));
        bytes += u64::try_from(words * 8).unwrap_or(0);
    }
    std::hint::black_box(sum);
    float(bytes) / began.elapsed().as_secs_f64().max(0.001)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_program_is_the_sum_of_its_ranges() {
        let maps = "1000-3000 r--p 0 08:01 7      /bin/worker\n3000-8000 r-xp 2000 08:01 7      /bin/worker\n\
                    9000-a000 rw-p 0 00:00 0\na000-b000 r-xp 0 08:01 9 /lib/libc.so\n";
        assert_eq!(mapped(maps, "/bin/worker"), 0x7000);
        assert_eq!(mapped(maps, "/bin/other"), 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_program_knows_its_size() {
        assert!(own_program() > Some(1024 * 1024));
    }

    #[test]
    fn a_driver_and_the_kernel_are_read() {
        let gpus = nvidia_of("NVIDIA GeForce GTX 1650, 4096, 3700\nNVIDIA H200, 143771, 143000\n");
        assert_eq!(gpus.len(), 2);
        assert_eq!(gpus.first().map(|gpu| gpu.total_bytes), Some(4096 * MIB));
        assert_eq!(nvidia_of("No devices were found"), []);
        assert_eq!(
            field(
                "MemTotal:       16 kB\nMemAvailable:    5 kB\n",
                "MemAvailable"
            ),
            Some(5 * 1024)
        );
    }

    #[test]
    fn this_machine_has_memory_and_reads_it() {
        let machine = Machine::this();
        assert!(machine.cores >= 1 && machine.memory_bytes_per_second > 0);
        assert!(machine.ram_total_bytes >= machine.ram_available_bytes);
    }
}
