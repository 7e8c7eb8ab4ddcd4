//! How far a download is: a bar with MB/s and time left on a terminal, one JSON event every five seconds elsewhere. Writes to the standard
//! error stream alone, so that a result on the standard output stays clean.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

const BAR_EVERY: Duration = Duration::from_millis(200);
/// Between two events where nobody watches, unless the command says otherwise.
pub const EVENT_EVERY: Duration = Duration::from_secs(5);
const BAR_CELLS: u64 = 24;
/// The rate is measured over about so long.
const RATE_OVER_SECS: f64 = 5.0;

/// Bytes done of all bytes; shared between the tasks of one download.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// So many bytes are there already, of so many.
    pub fn set(&self, done: u64, total: u64) {
        self.counts.done.store(done, Ordering::Relaxed);
        self.counts.total.store(total, Ordering::Relaxed);
    }

    /// More bytes came.
    pub fn add(&self, bytes: u64) {
        self.counts.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done.
    pub fn done(&self) -> u64 {
        self.counts.done.load(Ordering::Relaxed)
    }

    /// All bytes; 0 while unknown.
    pub fn total(&self) -> u64 {
        self.counts.total.load(Ordering::Relaxed)
    }

    /// Tells of it until the future is dropped: on a terminal all the time, else one event `every` so often.
    pub async fn show(&self, file: &str, every: Duration) {
        let terminal = std::io::stderr().is_terminal();
        let mut rate = Rate::new(self.done());
        loop {
            tokio::time::sleep(if terminal { BAR_EVERY } else { every }).await;
            let event = rate.event(file, self.done(), self.total());
            if terminal {
                tell(&format!("\r\x1b[2K{}", event.bar()));
            } else if let Ok(line) = serde_json::to_string(&event) {
                tell(&format!("{line}\n"));
            }
        }
    }
}

/// Ends the line of a bar.
pub fn end_line() {
    if std::io::stderr().is_terminal() {
        tell("\r\x1b[2K");
    }
}

/// Says something beside the result.
pub fn tell(text: &str) {
    let mut out = std::io::stderr().lock();
    // Nowhere left to say that nothing can be said.
    let _said = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

struct Rate {
    last: Instant,
    done: u64,
    bytes_per_second: f64,
}

impl Rate {
    fn new(done: u64) -> Self {
        Self {
            last: Instant::now(),
            done,
            bytes_per_second: 0.0,
        }
    }

    fn event<'a>(&mut self, file: &'a str, done: u64, total: u64) -> Event<'a> {
        let elapsed = self.last.elapsed().as_secs_f64().max(0.001);
        let now = float(done.saturating_sub(self.done)) / elapsed;
        let weight = if self.bytes_per_second > 0.0 {
            (elapsed / RATE_OVER_SECS).min(1.0)
        } else {
            1.0
        };
        self.bytes_per_second += weight * (now - self.bytes_per_second);
        self.last = Instant::now();
        self.done = done;
        let left = float(total.saturating_sub(done));
        let known = self.bytes_per_second >= 1.0 && total > 0;
        Event {
            kind: "download_progress",
            file,
            done,
            total,
            bytes_per_second: whole(self.bytes_per_second),
            eta_seconds: known.then(|| whole((left / self.bytes_per_second).ceil())),
        }
    }
}

#[derive(Debug, Serialize)]
struct Event<'a> {
    #[serde(rename = "event")]
    kind: &'static str,
    file: &'a str,
    done: u64,
    total: u64,
    bytes_per_second: u64,
    eta_seconds: Option<u64>,
}

impl Event<'_> {
    fn bar(&self) -> String {
        let cells = (self.done * BAR_CELLS)
            .checked_div(self.total)
            .unwrap_or(0)
            .min(BAR_CELLS);
        let bar: String = (0..BAR_CELLS)
            .map(|cell| if cell < cells { '█' } else { '·' })
            .collect();
        let percent = (self.done * 100).checked_div(self.total).unwrap_or(0);
        let eta = self.eta_seconds.map_or_else(|| "--:--".to_owned(), clock);
        format!(
            "{bar} {percent:>3} % {} of {}, {}/s, {eta} left, {}",
            size(self.done),
            size(self.total),
            size(self.bytes_per_second),
            self.file
        )
    }
}

fn clock(seconds: u64) -> String {
    if seconds < 3600 {
        format!("{:02}:{:02}", seconds / 60, seconds % 60)
    } else {
        format!("{}:{:02} h", seconds / 3600, seconds % 3600 / 60)
    }
}

/// `4.3 GB`, `12 MB`, in powers of ten as file managers and hubs show them.
pub fn size(bytes: u64) -> String {
    const STEPS: [(u64, &str); 4] = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ];
    for (step, name) in STEPS {
        if bytes >= step {
            let tenths = bytes / (step / 10);
            return if tenths >= 1000 {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes} B")
}

/// For rates and shares, where the last digits do not matter.
pub fn float(number: u64) -> f64 {
    let high = u32::try_from(number >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

/// The nearest whole number; 0 for what is none.
pub fn whole(number: f64) -> u64 {
    if !number.is_finite() || number <= 0.0 {
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "finite and above 0; a cast saturates"
    )]
    let whole = number.round() as u64;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_those_of_hubs() {
        for (bytes, want) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_500, "1.5 kB"),
            (4_300_000_000, "4.3 GB"),
            (120_000_000, "120 MB"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn an_event_names_rate_and_time_left() {
        let mut rate = Rate::new(0);
        let event = rate.event("a.gguf", 50, 100);
        assert!(event.bytes_per_second > 0 && event.eta_seconds.is_some());
        assert!(event.bar().contains(" 50 %"));
        let json = serde_json::to_value(event).expect("is JSON");
        assert_eq!(json["event"], "download_progress");
        assert_eq!(clock(3_661), "1:01 h");
    }
}
