//! What the machine draws and how hot it is, as far as its sensors tell: RAPL and hwmon under /sys, `nvidia-smi` where there is one, and
//! the owner's word where there is nothing. Never guesses: what is unknown stays unknown.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Energy counters are read over at least this long: they move in steps of a millisecond.
const SPAN_MIN: Duration = Duration::from_millis(250);
/// Asking the driver of a GPU takes a tenth of a second.
const GPU_AGE_MAX: Duration = Duration::from_secs(5);
/// Folders looked at under one of /sys.
const SENSORS_MAX: usize = 64;
const NVIDIA: &str = "nvidia-smi";

/// The sensors of this machine.
#[derive(Debug)]
pub struct Power {
    root: PathBuf,
    fallback_watts: Option<f32>,
    energy: Mutex<Energy>,
    gpu: Arc<Mutex<Gpu>>,
    asking_gpu: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Energy {
    /// When, and the counters' microjoules then.
    last: Option<(Instant, u64)>,
    watts: Option<f64>,
}

#[derive(Debug, Default)]
struct Gpu {
    at: Option<Instant>,
    absent: bool,
    reading: Reading,
}

/// What the sensors say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Processors and GPUs together.
    pub watts: Option<f64>,
    /// The hottest sensor.
    pub celsius: Option<f64>,
}

impl Power {
    /// The sensors under `root`, which is `/` outside of tests. `fallback_watts` counts where they say nothing.
    pub fn new(root: impl Into<PathBuf>, fallback_watts: Option<f32>) -> Self {
        let root = root.into();
        let absent = root != Path::new("/");
        Self {
            root,
            fallback_watts,
            energy: Mutex::default(),
            gpu: Arc::new(Mutex::new(Gpu {
                absent,
                ..Gpu::default()
            })),
            asking_gpu: Arc::default(),
        }
    }

    /// What the sensors say now. Takes well below a millisecond.
    pub fn read(&self, now: Instant) -> Reading {
        let gpu = self.gpu(now);
        let (chip_watts, celsius) = self.hwmon();
        let parts = [self.rapl(now), gpu.watts, chip_watts];
        let known = parts.iter().flatten().count() > 0;
        let sum: f64 = parts.into_iter().flatten().sum();
        let celsius = [celsius, gpu.celsius].into_iter().flatten();
        Reading {
            watts: known
                .then_some(sum)
                .or_else(|| self.fallback_watts.map(f64::from)),
            celsius: celsius.reduce(f64::max),
        }
    }

    /// Watts of all processor packages over the time since the last look.
    fn rapl(&self, now: Instant) -> Option<f64> {
        let zones = folders(&self.root.join("sys/class/powercap"));
        let packages = zones.iter().filter(|zone| is_package(zone));
        let energies: Vec<u64> = packages
            .filter_map(|zone| number(&zone.join("energy_uj")))
            .collect();
        if energies.is_empty() {
            return None;
        }
        let total = energies
            .iter()
            .fold(0_u64, |sum, one| sum.wrapping_add(*one));
        let mut energy = self.energy.lock().unwrap_or_else(PoisonError::into_inner);
        match energy.last {
            None => energy.last = Some((now, total)),
            Some((then, before)) => {
                let span = now.saturating_duration_since(then);
                if span >= SPAN_MIN {
                    // A counter that turned over tells nothing this time.
                    energy.watts = total
                        .checked_sub(before)
                        .map(|micro| precise(micro) / 1e6 / span.as_secs_f64())
                        .or(energy.watts);
                    energy.last = Some((now, total));
                }
            }
        }
        energy.watts
    }

    /// Watts of graphics chips that tell in hwmon, and the hottest sensor of all.
    fn hwmon(&self) -> (Option<f64>, Option<f64>) {
        let mut watts = None;
        let mut hottest: Option<f64> = None;
        for chip in folders(&self.root.join("sys/class/hwmon")) {
            let name = fs::read_to_string(chip.join("name")).unwrap_or_default();
            let power = ["power1_average", "power1_input"]
                .into_iter()
                .find_map(|file| number(&chip.join(file)));
            if name.trim() == "amdgpu"
                && let Some(micro) = power
            {
                watts = Some(watts.unwrap_or(0.0) + precise(micro) / 1e6);
            }
            for sensor in 1..=8 {
                if let Some(milli) = number(&chip.join(format!("temp{sensor}_input"))) {
                    let celsius = precise(milli) / 1e3;
                    hottest = Some(hottest.map_or(celsius, |most| most.max(celsius)));
                }
            }
        }
        (watts, hottest)
    }

    /// What the driver said last; asked again in a thread of its own when that is old.
    fn gpu(&self, now: Instant) -> Reading {
        let gpu = self.gpu.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = gpu.reading;
        let fresh = gpu
            .at
            .is_some_and(|at| now.saturating_duration_since(at) < GPU_AGE_MAX);
        if fresh || gpu.absent {
            return reading;
        }
        drop(gpu);
        if !self.asking_gpu.swap(true, Ordering::Relaxed) {
            let (gpu, asking) = (self.gpu.clone(), self.asking_gpu.clone());
            std::thread::spawn(move || {
                let found = ask_driver();
                let mut gpu = gpu.lock().unwrap_or_else(PoisonError::into_inner);
                gpu.at = Some(Instant::now());
                gpu.absent = found.is_none();
                gpu.reading = found.unwrap_or_default();
                drop(gpu);
                asking.store(false, Ordering::Relaxed);
            });
        }
        reading
    }
}

fn ask_driver() -> Option<Reading> {
    let output = Command::new(NVIDIA)
        .args([
            "--query-gpu=power.draw,temperature.gpu",
            "--format=csv,noheader,nounits",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(parse_driver(&String::from_utf8_lossy(&output.stdout)))
}

/// One line a GPU: watts, degrees. `[N/A]` is none.
fn parse_driver(text: &str) -> Reading {
    let mut reading = Reading::default();
    for line in text.lines() {
        let mut fields = line
            .split(',')
            .map(|field| field.trim().parse::<f64>().ok());
        let (watts, celsius) = (fields.next().flatten(), fields.next().flatten());
        reading.watts = match (reading.watts, watts) {
            (Some(sum), Some(more)) => Some(sum + more),
            (known, None) => known,
            (None, more) => more,
        };
        reading.celsius = [reading.celsius, celsius]
            .into_iter()
            .flatten()
            .reduce(f64::max);
    }
    reading
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let entries = entries.filter_map(Result::ok).take(SENSORS_MAX);
    entries.map(|entry| entry.path()).collect()
}

/// `intel-rapl:0` is a package; `intel-rapl:0:0` a part of it, and `intel-rapl-mmio:0` the same again.
fn is_package(zone: &Path) -> bool {
    let name = zone.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix("intel-rapl:"))
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "differences and temperatures are far below 2^52"
)]
const fn precise(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn energy_over_time_is_watts_and_the_hottest_sensor_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let (cpu, part) = (
            "sys/class/powercap/intel-rapl:0/energy_uj",
            "sys/class/powercap/intel-rapl:0:0/energy_uj",
        );
        put(root, cpu, "1000000\n");
        put(root, part, "900000\n");
        put(root, "sys/class/hwmon/hwmon0/temp1_input", "41500\n");
        put(root, "sys/class/hwmon/hwmon1/temp2_input", "63000\n");
        put(root, "sys/class/hwmon/hwmon1/name", "amdgpu\n");
        put(root, "sys/class/hwmon/hwmon1/power1_average", "30000000\n");
        let power = Power::new(root, Some(99.0));
        let start = Instant::now();
        assert_eq!(power.read(start).watts, Some(30.0), "the chip's own sensor");
        put(root, cpu, "21000000\n");

        let reading = power.read(start + Duration::from_secs(2));

        assert_eq!(reading.watts, Some(40.0), "20 J in 2 s, and 30 W");
        assert_eq!(reading.celsius, Some(63.0));
        put(root, cpu, "5\n");
        let turned = power.read(start + Duration::from_secs(3));
        assert_eq!(turned.watts, Some(40.0), "a counter that turned over");
    }

    #[test]
    fn without_sensors_the_owners_word_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = Instant::now();
        let told = Power::new(folder.path(), Some(65.0)).read(now);
        assert_eq!(told.watts, Some(65.0));
        let silent = Power::new(folder.path(), None).read(now);
        assert_eq!(silent, Reading::default());
    }

    #[test]
    fn what_a_driver_does_not_know_is_left_out() {
        let reading = parse_driver("120.5, 61\n[N/A], 70\n30.0, [N/A]\n");
        assert_eq!(reading.watts, Some(150.5));
        assert_eq!(reading.celsius, Some(70.0));
    }
}
