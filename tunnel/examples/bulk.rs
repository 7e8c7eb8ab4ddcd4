//! Measures a tunnel: bulk transfer in both directions and small request round trips.
//!
//! `bulk` alone runs hub and node in one process over loopback. In two processes, also in two network
//! namespaces: `bulk --role node --bind 10.0.0.2:0 --hub 10.0.0.1:51820` and then
//! `bulk --role hub --bind 10.0.0.1:51820`. The hub dials, measures, prints one JSON line and ends;
//! the node serves until it is killed. "down" is node to hub.
//!
//! Options: `--mib N` per direction (256), `--requests N` (3000), `--bytes N` per request (256),
//! `--streams N` bulk streams at once (1), `--mtu N` (1280), `--buffer N` bytes (262144),
//! `--udp-buffer N` bytes (4194304), `--backend auto|netns|embedded` (embedded),
//! `--threads N` runtime workers (2), `--dials N` connections one after the other (500),
//! `--soak-secs N` seconds of a small request every 50 ms afterwards (0; more than 120 cross a rekey).
//!
//! The keys are fixed and public: never use them for anything but measuring.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{Backend, Bounds, Peer, PresharedKey, PrivateKey, Settings, Stream, Tunnel};

const HUB: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1);
const NODE: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 2);
const HUB_KEY: [u8; 32] = [1; 32];
const NODE_KEY: [u8; 32] = [2; 32];
const SHARED: [u8; 32] = [3; 32];
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_mins(1);
const CHUNK: usize = 64 * 1024;
const ECHO: u8 = b'E';
const SINK: u8 = b'S';
const SOURCE: u8 = b'G';

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Options(HashMap<String, String>);

impl Options {
    fn read() -> Result<Self, Failure> {
        let mut options = HashMap::new();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .ok_or_else(|| format!("unexpected {word}"))?;
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a value"))?;
            options.insert(name.to_owned(), value);
        }
        Ok(Self(options))
    }

    fn get<T: FromStr>(&self, name: &str, default: T) -> Result<T, Failure> {
        match self.0.get(name) {
            Some(text) => text
                .parse()
                .map_err(|_| format!("--{name} cannot be {text}").into()),
            None => Ok(default),
        }
    }

    fn backend(&self) -> Result<Backend, Failure> {
        let name = self.get("backend", "embedded".to_owned())?;
        Backend::parse(&name).ok_or_else(|| format!("--backend cannot be {name}").into())
    }

    fn bounds(&self) -> Result<Bounds, Failure> {
        let default = Bounds::default();
        Ok(Bounds {
            mtu: self.get("mtu", default.mtu)?,
            tcp_buffer_bytes: self.get("buffer", default.tcp_buffer_bytes)?,
            udp_buffer_bytes: self.get("udp-buffer", default.udp_buffer_bytes)?,
            ..default
        })
    }
}

fn main() -> Result<(), Failure> {
    if tunnel::netns::helper_main().is_some() {
        return Ok(());
    }
    let options = Options::read()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.get("threads", 2)?)
        .enable_all()
        .build()?;
    runtime.block_on(run(&options))
}

async fn run(options: &Options) -> Result<(), Failure> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let bind = options.get("bind", any)?;
    match options.get("role", "both".to_owned())?.as_str() {
        "hub" => measure(&hub(bind, options).await?, options).await,
        "node" => serve(&node(bind, options.get("hub", any)?, options).await?).await,
        "both" => {
            let hub = hub(bind, options).await?;
            let node = node(any, hub.local_addr(), options).await?;
            tokio::spawn(async move { serve(&node).await });
            measure(&hub, options).await
        }
        other => Err(format!("--role is hub, node or both, not {other}").into()),
    }
}

async fn hub(bind: SocketAddr, options: &Options) -> Result<Tunnel, Failure> {
    let mut settings = Settings::new(bind, PrivateKey::from_bytes(HUB_KEY), HUB);
    settings.bounds = options.bounds()?;
    settings.backend = options.backend()?;
    let hub = Tunnel::start(settings).await?;
    hub.set_peer(Peer {
        public_key: PrivateKey::from_bytes(NODE_KEY).public_key(),
        preshared_key: Some(PresharedKey::from_bytes(SHARED)),
        address: NODE,
        endpoint: None,
        keepalive: None,
        initiates: false,
    })
    .await?;
    Ok(hub)
}

async fn node(bind: SocketAddr, hub: SocketAddr, options: &Options) -> Result<Tunnel, Failure> {
    let mut settings = Settings::new(bind, PrivateKey::from_bytes(NODE_KEY), NODE);
    settings.bounds = options.bounds()?;
    settings.backend = options.backend()?;
    let node = Tunnel::start(settings).await?;
    node.set_peer(Peer {
        public_key: PrivateKey::from_bytes(HUB_KEY).public_key(),
        preshared_key: Some(PresharedKey::from_bytes(SHARED)),
        address: HUB,
        endpoint: Some(hub),
        keepalive: Some(Duration::from_secs(15)),
        initiates: true,
    })
    .await?;
    Ok(node)
}

async fn serve(node: &Tunnel) -> Result<(), Failure> {
    let listener = node.listen(PORT).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A stream that fails is the hub's to report.
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: Stream) -> io::Result<()> {
    let kind = stream.read_u8().await?;
    let mut chunk = vec![0x5a; CHUNK];
    match kind {
        SOURCE => {
            let mut left = stream.read_u64().await?;
            while left > 0 {
                let now = left.min(CHUNK as u64);
                stream
                    .write_all(&chunk[..usize::try_from(now).unwrap_or(CHUNK)])
                    .await?;
                left -= now;
            }
        }
        SINK => {
            let mut total = 0;
            loop {
                match stream.read(&mut chunk).await? {
                    0 => break,
                    len => total += len as u64,
                }
            }
            stream.write_u64(total).await?;
        }
        _ => loop {
            match stream.read(&mut chunk).await? {
                0 => break,
                len => stream.write_all(&chunk[..len]).await?,
            }
        },
    }
    stream.shutdown().await
}

#[expect(clippy::print_stdout, reason = "the result is the output")]
async fn measure(hub: &Tunnel, options: &Options) -> Result<(), Failure> {
    let bytes = options.get("mib", 256u64)? << 20;
    let streams = options.get("streams", 1u64)?.max(1);
    let requests = options.get("requests", 3000usize)?.max(1);
    let size = options.get("bytes", 256usize)?.max(1);

    let cpu = cpu_seconds();
    let down = transfer(hub, streams, bytes / streams, pull).await?;
    let up = transfer(hub, streams, bytes / streams, push).await?;
    let cpu = cpu_seconds() - cpu;
    let trips = round_trips(hub, requests, size).await?;
    let dials = options.get("dials", 500u32)?.max(1);
    let dials = f64::from(dials) / dial_often(hub, dials).await?.as_secs_f64();
    let soak = Duration::from_secs(options.get("soak-secs", 0)?);
    let slowest = soak_for(hub, soak).await?;
    let at = |share: usize| trips[(trips.len() - 1) * share / 1000].as_secs_f64() * 1e6;
    println!(
        "{{\"stack\":\"{}\",\"down_mbit\":{down:.0},\"up_mbit\":{up:.0},\"streams\":{streams},\
         \"cpu_secs_per_gb\":{:.2},\"rtt_p50_us\":{:.0},\"rtt_p99_us\":{:.0},\"rtt_max_us\":{:.0},\"dials_per_sec\":{dials:.0},\"soak_max_ms\":{:.1}}}",
        hub.backend().name(),
        cpu / (2.0 * gigabytes(bytes)),
        at(500),
        at(990),
        at(1000),
        slowest.as_secs_f64() * 1e3,
    );
    hub.shutdown().await;
    Ok(())
}

/// Mbit/s over all streams together.
async fn transfer<F>(
    hub: &Tunnel,
    streams: u64,
    bytes: u64,
    one: impl Fn(Stream, u64) -> F,
) -> Result<f64, Failure>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut tasks = tokio::task::JoinSet::new();
    let mut open = Vec::new();
    for _ in 0..streams {
        open.push(hub.connect(NODE, PORT, PATIENCE).await?);
    }
    let began = Instant::now();
    for stream in open {
        tasks.spawn(one(stream, bytes));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(gigabytes(bytes * streams) * 8000.0 / began.elapsed().as_secs_f64())
}

async fn pull(mut stream: Stream, bytes: u64) -> io::Result<()> {
    stream.write_u8(SOURCE).await?;
    stream.write_u64(bytes).await?;
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match stream.read(&mut chunk).await? {
            0 => break,
            len => total += len as u64,
        }
    }
    complete(total, bytes)
}

async fn push(mut stream: Stream, bytes: u64) -> io::Result<()> {
    stream.write_u8(SINK).await?;
    let chunk = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(CHUNK as u64);
        stream
            .write_all(&chunk[..usize::try_from(now).unwrap_or(CHUNK)])
            .await?;
        left -= now;
    }
    stream.shutdown().await?;
    complete(stream.read_u64().await?, bytes)
}

fn complete(got: u64, expected: u64) -> io::Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{got} bytes instead of {expected}"
    )))
}

/// The sorted times of small requests on one kept connection.
async fn round_trips(hub: &Tunnel, count: usize, size: usize) -> Result<Vec<Duration>, Failure> {
    let mut stream = hub.connect(NODE, PORT, PATIENCE).await?;
    stream.write_u8(ECHO).await?;
    let request = vec![7; size];
    let mut reply = vec![0; size];
    let mut trips = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        stream.write_all(&request).await?;
        stream.read_exact(&mut reply).await?;
        trips.push(began.elapsed());
    }
    trips.sort_unstable();
    Ok(trips)
}

/// Connects, asks one byte and closes, again and again.
async fn dial_often(hub: &Tunnel, times: u32) -> Result<Duration, Failure> {
    let began = Instant::now();
    for _ in 0..times {
        let mut stream = hub.connect(NODE, PORT, PATIENCE).await?;
        stream.write_all(&[ECHO, 1]).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut Vec::new()).await?;
    }
    Ok(began.elapsed())
}

/// The slowest of small requests on one connection over a long time.
async fn soak_for(hub: &Tunnel, long: Duration) -> Result<Duration, Failure> {
    let mut stream = hub.connect(NODE, PORT, PATIENCE).await?;
    stream.write_u8(ECHO).await?;
    let mut slowest = Duration::ZERO;
    let end = Instant::now() + long;
    while Instant::now() < end {
        let began = Instant::now();
        stream.write_u8(1).await?;
        stream.read_u8().await?;
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(slowest)
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// User and system time of this process, zero where `/proc` does not tell.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = |field: usize| {
        stat.rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(field))
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or_default()
    };
    // Fields 14 and 15 of proc(5), counted after the name; a tick is 10 ms on every Linux.
    (ticks(11) + ticks(12)) / 100.0
}
