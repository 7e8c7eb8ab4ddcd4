//! A home link in user space, for any kernel and without root: a UDP relay with rate, delay, queue, loss (also in bursts) and reordering, by a
//! seed. Each direction is a link of its own.
//!
//! `wire --listen ADDRESS --to ADDRESS [--mbit N] [--delay-ms N] [--queue-kb N] [--loss-ppm N] [--burst N] [--reorder-ppm N] [--reorder-ms N]
//! [--seed N]`. The first sender is the client; `--to` answers it. `--from ADDRESS` fixes our own port towards `--to`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Who the client is.
type Learns = watch::Sender<Option<SocketAddr>>;
type Knows = watch::Receiver<Option<SocketAddr>>;

/// IPv4 and UDP headers, which take their share of the rate.
const HEADERS: u64 = 28;
const DATAGRAM: usize = 2_048;
const SOCKET_BYTES: usize = 4 << 20;

#[derive(Clone, Copy)]
struct Weather {
    bits_per_second: u64,
    delay: Duration,
    queue_bytes: u64,
    loss_ppm: u64,
    burst: u64,
    reorder_ppm: u64,
    reorder: Duration,
}

/// Random numbers by a seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn one_in_a_million(&mut self, times: u64) -> bool {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % 1_000_000 < times
    }
}

/// One direction.
struct Way {
    weather: Weather,
    dice: Dice,
    /// When the link has sent everything that waits.
    free_at: Instant,
    losing: u64,
    number: u64,
    underway: BinaryHeap<Reverse<(Instant, u64)>>,
    datagrams: HashMap<u64, Vec<u8>>,
    spares: Vec<Vec<u8>>,
}

impl Way {
    fn new(weather: Weather, seed: u64) -> Self {
        Self {
            weather,
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            free_at: Instant::now(),
            losing: 0,
            number: 0,
            underway: BinaryHeap::new(),
            datagrams: HashMap::new(),
            spares: Vec::new(),
        }
    }

    /// Takes a datagram; false when it is lost.
    fn take(&mut self, datagram: &[u8], now: Instant) -> bool {
        let Weather {
            bits_per_second,
            delay,
            queue_bytes,
            loss_ppm,
            burst,
            reorder_ppm,
            reorder,
        } = self.weather;
        let waiting = self.free_at.saturating_duration_since(now);
        let queued = u64::try_from(waiting.as_nanos()).unwrap_or(u64::MAX) / 8
            * (bits_per_second / 1_000_000)
            / 1_000;
        let size = datagram.len() as u64 + HEADERS;
        if queued + size > queue_bytes {
            return false;
        }
        if self.losing == 0 && self.dice.one_in_a_million(loss_ppm / burst.max(1)) {
            self.losing = burst.max(1);
        }
        let takes = Duration::from_nanos(size * 8 * 1_000 / (bits_per_second / 1_000_000).max(1));
        self.free_at = self.free_at.max(now) + takes;
        if self.losing > 0 {
            self.losing -= 1;
            return false;
        }
        let mut at = self.free_at + delay;
        if self.dice.one_in_a_million(reorder_ppm) {
            at += reorder;
        }
        let mut room = self.spares.pop().unwrap_or_default();
        room.clear();
        room.extend_from_slice(datagram);
        self.number += 1;
        self.underway.push(Reverse((at, self.number)));
        self.datagrams.insert(self.number, room);
        true
    }

    fn next_at(&self) -> Option<Instant> {
        self.underway.peek().map(|Reverse((at, _))| *at)
    }

    fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_at()? > now {
            return None;
        }
        let Reverse((_, number)) = self.underway.pop()?;
        self.datagrams.remove(&number)
    }
}

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut options = HashMap::new();
    for pair in words.chunks(2) {
        let [name, value] = pair else {
            return Err(format!("{pair:?} needs a value").into());
        };
        options.insert(name.trim_start_matches('-').to_owned(), value.clone());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&options))
}

async fn run(options: &HashMap<String, String>) -> Result<(), Failure> {
    let number = |name: &str, default: u64| -> Result<u64, Failure> {
        Ok(options.get(name).map_or(Ok(default), |text| text.parse())?)
    };
    let address = |name: &str| -> Result<SocketAddr, Failure> {
        Ok(options
            .get(name)
            .ok_or_else(|| format!("--{name} is missing"))?
            .parse()?)
    };
    let weather = Weather {
        bits_per_second: number("mbit", 100)? * 1_000_000,
        delay: Duration::from_millis(number("delay-ms", 20)?),
        queue_bytes: number("queue-kb", 500)? * 1_000,
        loss_ppm: number("loss-ppm", 0)?,
        burst: number("burst", 1)?,
        reorder_ppm: number("reorder-ppm", 0)?,
        reorder: Duration::from_millis(number("reorder-ms", 3)?),
    };
    let to = address("to")?;
    let seed = number("seed", 1)?;
    let inside = bind(address("listen")?)?;
    let from = options.get("from").map_or("0.0.0.0:0", String::as_str);
    let outside = bind(from.parse()?)?;
    outside.connect(to).await?;
    let (client, known) = watch::channel(None);
    let lost = AtomicU64::new(0);
    let up = carry(
        (&inside, &outside),
        Way::new(weather, seed),
        (Some(&client), None),
        &lost,
    );
    let down = carry(
        (&outside, &inside),
        Way::new(weather, seed + 1),
        (None, Some(known)),
        &lost,
    );
    tokio::select! {
        failed = up => failed,
        failed = down => failed,
    }
}

/// A socket that drops nothing before the link's own queue does: a sender hands over 64 datagrams at once.
fn bind(address: SocketAddr) -> Result<UdpSocket, Failure> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(UdpSocket::from_std(socket.into())?)
}

/// Carries datagrams one way for ever.
async fn carry(
    (from, to): (&UdpSocket, &UdpSocket),
    mut way: Way,
    (learns, knows): (Option<&Learns>, Option<Knows>),
    lost: &AtomicU64,
) -> Result<(), Failure> {
    let mut room = vec![0; DATAGRAM];
    loop {
        let next = way.next_at();
        let wait = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = wait => {}
            ready = from.readable() => ready?,
        }
        let now = Instant::now();
        while let Ok((length, source)) = from.try_recv_from(&mut room) {
            if let Some(learns) = learns {
                learns.send_if_modified(|known| {
                    let is_new = *known != Some(source);
                    *known = Some(source);
                    is_new
                });
            }
            if !way.take(&room[..length], now) {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        let now = Instant::now();
        while let Some(datagram) = way.due(now) {
            // What cannot be sent is lost, as on any link.
            match &knows {
                None => drop(to.try_send(&datagram)),
                Some(knows) => {
                    let client = *knows.borrow();
                    if let Some(client) = client {
                        drop(to.try_send_to(&datagram, client));
                    }
                }
            }
            way.spares.push(datagram);
        }
    }
}
