//! One load over one link, so that only the link differs: bulk both ways, requests, a stream of tokens, and such a stream beside a bulk upload.
//!
//! `link serve KIND LISTEN [NODE]` (with the node's address the hub calls it by itself, as one that was restarted does) and `link drive KIND ADDRESS [--name value]…`. KIND is `netns` or `embedded` (Hearth's tunnel; LISTEN and ADDRESS are
//! the hub's UDP addresses) or `tcp` (whatever carries TCP: a kernel, another tunnel). `drive` prints one JSON line. The figures are those
//! of processes on one machine: their clocks and `/proc` are shared. `link crypto` prints what encryption alone costs at both ends.
//!
//! Options of `drive`: `--mib N` per direction (64; 0: none), `--requests N` of 8 KiB answered with 200 B (0), `--pings N` of 64 B (0), `--tokens N`
//! one each 20 ms (0), `--beside 1` tokens beside a bulk upload (0), `--pids A,B` whose CPU time counts too (none), `--down-only 1` no upload (0),
//! `--bulk-secs N` at most for each bulk transfer (20), `--gap-secs N` pings without a pause for so long, to find the longest gap (0),
//! `--bind ADDRESS` our own UDP address.
//!
//! The keys are fixed and public: never use them for anything but measuring.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tunnel::{Backend, Peer, PrivateKey, Settings, Tunnel};

const PORT: u16 = 7000;
const PIECE: usize = 64 * 1024;
const REQUEST: usize = 8 * 1024;
const ANSWER: usize = 200;
const TOKEN: usize = 64;
/// The largest packet inside a session over IPv4, and what IPv6 and TCP take of it.
const PACKET: usize = 1_440;
const HEADERS: usize = 60;
const PACKETS: u64 = 2_000_000;
const TOKEN_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(30);
/// A transfer that takes longer is measured by what it has moved.
const BULK_MAX: Duration = Duration::from_secs(20);
const HUB: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1);
const NODE: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 2);

type Failure = Box<dyn std::error::Error + Send + Sync>;

trait Link: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

fn main() -> Result<(), Failure> {
    if tunnel::netns::helper_main().is_some() {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    match words.as_slice() {
        [role, kind, at] if role == "serve" => runtime.block_on(serve(kind, at.parse()?, None)),
        [role, kind, at, node] if role == "serve" => {
            runtime.block_on(serve(kind, at.parse()?, Some(node.parse()?)))
        }
        [role, kind, at, options @ ..] if role == "drive" => {
            runtime.block_on(drive(kind, at.parse()?, &Options::read(options)?))
        }
        [role] if role == "crypto" => crypto(),
        _ => Err(
            "link serve KIND LISTEN, link drive KIND ADDRESS [--name value]…, or link crypto"
                .into(),
        ),
    }
}

/// CPU seconds to seal and open a gigabyte of a stream, cut into packets as on Ethernet over IPv4: what no tunnel of this cipher goes below.
fn crypto() -> Result<(), Failure> {
    let failed = |_| "the cipher refused its own packet";
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(failed)?;
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let mut packet = vec![7; PACKET + CHACHA20_POLY1305.tag_len()];
    let here = [std::process::id()];
    let before = cpu_seconds(&here);
    for _ in 0..PACKETS {
        let tag = key
            .seal_in_place_separate_tag(nonce(), Aad::empty(), &mut packet[..PACKET])
            .map_err(failed)?;
        packet[PACKET..].copy_from_slice(tag.as_ref());
        key.open_in_place(nonce(), Aad::empty(), &mut packet)
            .map_err(failed)?;
    }
    let spent = cpu_seconds(&here) - before;
    let moved = gigabytes(PACKETS * (PACKET - HEADERS) as u64);
    show(&[format!("\"crypto_s_per_gb\":{:.2}", spent / moved)]);
    Ok(())
}

struct Options(HashMap<String, String>);

impl Options {
    fn read(words: &[String]) -> Result<Self, Failure> {
        let mut options = HashMap::new();
        for pair in words.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{pair:?} needs a value").into());
            };
            let name = name.strip_prefix("--").ok_or("options begin with --")?;
            options.insert(name.to_owned(), value.clone());
        }
        Ok(Self(options))
    }

    fn number(&self, name: &str) -> Result<u64, Failure> {
        Ok(self.0.get(name).map_or(Ok(0), |text| text.parse())?)
    }

    fn pids(&self) -> Vec<u32> {
        let text = self.0.get("pids").map_or("", String::as_str);
        text.split(',').filter_map(|pid| pid.parse().ok()).collect()
    }
}

/// Fixed, public keys: this measures and protects nothing.
fn key(side: u8) -> PrivateKey {
    PrivateKey::from_bytes([side; 32])
}

async fn tunnel(
    kind: &str,
    bind: SocketAddr,
    is_hub: bool,
    hub: Option<SocketAddr>,
) -> Result<Tunnel, Failure> {
    let (own, address, other, other_address) = if is_hub {
        (1, HUB, 2, NODE)
    } else {
        (2, NODE, 1, HUB)
    };
    let mut settings = Settings::new(bind, key(own), address);
    settings.backend = Backend::parse(kind).ok_or("KIND is netns, embedded or tcp")?;
    let tunnel = Tunnel::start(settings).await?;
    tunnel
        .set_peer(Peer {
            public_key: key(other).public_key(),
            preshared_key: None,
            address: other_address,
            endpoint: hub,
            keepalive: hub.map(|_| Duration::from_secs(15)),
            initiates: hub.is_some(),
        })
        .await?;
    Ok(tunnel)
}

async fn serve(kind: &str, listen: SocketAddr, node: Option<SocketAddr>) -> Result<(), Failure> {
    if kind == "tcp" {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(answer(stream));
        }
    }
    let tunnel = tunnel(kind, listen, true, node).await?;
    let listener = tunnel.listen(PORT).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(answer(stream));
    }
}

/// Answers one connection. Commands are a letter and a number.
async fn answer(mut link: impl Link) -> Result<(), Failure> {
    let mut piece = vec![7; PIECE];
    while let Ok(kind) = link.read_u8().await {
        let number = link.read_u64().await?;
        match kind {
            b'd' => send(&mut link, &piece, usize::try_from(number)?).await?,
            b'u' => {
                take(&mut link, &mut piece, usize::try_from(number)?).await?;
                link.write_u8(1).await?;
            }
            // Takes a request, answers it.
            b'r' => {
                link.read_exact(&mut piece[..REQUEST]).await?;
                link.write_all(&piece[..ANSWER]).await?;
            }
            b'p' => {
                link.read_exact(&mut piece[..TOKEN]).await?;
                link.write_all(&piece[..TOKEN]).await?;
            }
            b't' => tell(&mut link, number).await?,
            // Who am I.
            b'i' => link.write_u32(std::process::id()).await?,
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Sends so many bytes.
async fn send(link: &mut impl Link, piece: &[u8], mut left: usize) -> Result<(), Failure> {
    while left > 0 {
        let length = left.min(piece.len());
        link.write_all(&piece[..length]).await?;
        left -= length;
    }
    Ok(())
}

/// Takes so many bytes.
async fn take(link: &mut impl Link, piece: &mut [u8], mut left: usize) -> Result<(), Failure> {
    while left > 0 {
        let room = left.min(piece.len());
        match link.read(&mut piece[..room]).await? {
            0 => return Err("the other side has gone".into()),
            taken => left -= taken,
        }
    }
    Ok(())
}

/// Sends tokens, each with the time at which it was sent.
async fn tell(link: &mut impl Link, count: u64) -> Result<(), Failure> {
    for _ in 0..count {
        let mut token = [0; TOKEN];
        token[..8].copy_from_slice(&now_us().to_be_bytes());
        link.write_all(&token).await?;
        tokio::time::sleep(TOKEN_EVERY).await;
    }
    Ok(())
}

fn now_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Connects to the other side.
enum Dial {
    Tcp(SocketAddr),
    Tunnel(Tunnel),
}

impl Dial {
    async fn dial(&self) -> Result<Box<dyn Link>, Failure> {
        Ok(match self {
            Self::Tcp(at) => {
                let stream = TcpStream::connect(at).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Tunnel(tunnel) => Box::new(tunnel.connect(HUB, PORT, PATIENCE).await?),
        })
    }
}

async fn drive(kind: &str, at: SocketAddr, options: &Options) -> Result<(), Failure> {
    let dial = if kind == "tcp" {
        Dial::Tcp(at)
    } else {
        let any = if at.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let bind = options.0.get("bind").map_or(any, String::as_str);
        Dial::Tunnel(tunnel(kind, bind.parse()?, false, Some(at)).await?)
    };
    let mut figures = vec![format!("\"kind\":\"{kind}\"")];
    let mut link = dial.dial().await?;
    link.write_u8(b'i').await?;
    link.write_u64(0).await?;
    let mut pids = options.pids();
    pids.extend([link.read_u32().await?, std::process::id()]);
    drop(link);
    figures.extend(transfers(&dial, options, &pids).await?);
    latencies(&dial, options, &mut figures).await?;
    show(&figures);
    Ok(())
}

/// Requests, pings, tokens, gaps: whatever is asked for.
async fn latencies(
    dial: &Dial,
    options: &Options,
    figures: &mut Vec<String>,
) -> Result<(), Failure> {
    for (name, letter, size, back) in [
        ("request", b'r', REQUEST, ANSWER),
        ("ping", b'p', TOKEN, TOKEN),
    ] {
        let count = options.number(&format!("{name}s"))?;
        if count > 0 {
            let times = ask(dial, letter, count, (size, back)).await?;
            figures.push(shares(name, times));
        }
    }
    let tokens = options.number("tokens")?;
    if tokens > 0 {
        figures.push(shares("token", listen(dial, tokens).await?));
        if options.number("beside")? > 0 {
            figures.push(shares("beside", beside(dial, tokens).await?));
        }
    }
    let long = options.number("gap-secs")?;
    if long > 0 {
        let gap = gap(dial, Duration::from_secs(long)).await;
        figures.push(format!("\"gap_ms\":{}", gap.as_millis()));
    }
    Ok(())
}

/// Bulk, one way after the other, and what it costs.
async fn transfers(
    dial: &Dial,
    options: &Options,
    pids: &[u32],
) -> Result<Option<String>, Failure> {
    let bytes = options.number("mib")? << 20;
    if bytes == 0 {
        return Ok(None);
    }
    let long = Duration::from_secs(options.number("bulk-secs")?);
    let long = if long.is_zero() { BULK_MAX } else { long };
    let before = cpu_seconds(pids);
    let (down, down_mbit) = bulk(dial, b'd', bytes, long).await?;
    let (up, up_mbit) = if options.number("down-only")? > 0 {
        (0, 0.0)
    } else {
        bulk(dial, b'u', bytes, long).await?
    };
    let cpu = (cpu_seconds(pids) - before) / gigabytes(down + up).max(1e-9);
    Ok(Some(format!(
        "\"down_mbit\":{down_mbit:.1},\"up_mbit\":{up_mbit:.1},\"cpu_s_per_gb\":{cpu:.2}"
    )))
}

#[expect(clippy::print_stdout, reason = "the result is the output")]
fn show(figures: &[String]) {
    println!("{{{}}}", figures.join(","));
}

/// Moves bytes one way for a while; bytes moved and Mbit/s.
async fn bulk(dial: &Dial, way: u8, bytes: u64, long: Duration) -> Result<(u64, f64), Failure> {
    let mut link = dial.dial().await?;
    link.write_u8(way).await?;
    link.write_u64(bytes).await?;
    let began = Instant::now();
    let mut moved = 0;
    let mut piece = vec![7; PIECE];
    let moving = async {
        while moved < bytes {
            let room = usize::try_from((bytes - moved).min(PIECE as u64)).unwrap_or(PIECE);
            let length = if way == b'd' {
                link.read(&mut piece[..room]).await?
            } else {
                link.write(&piece[..room]).await?
            };
            if length == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
            }
            moved += length as u64;
        }
        if way == b'u' {
            link.read_u8().await?;
        }
        Ok(())
    };
    // What has not arrived by then counts as moved only where it was read here.
    if let Ok(done) = tokio::time::timeout(long, moving).await {
        done?;
    }
    let mbit = gigabytes(moved) * 8000.0 / began.elapsed().as_secs_f64();
    Ok((moved, mbit))
}

/// One request after the other on a kept connection; microseconds each.
async fn ask(
    dial: &Dial,
    letter: u8,
    count: u64,
    (size, back): (usize, usize),
) -> Result<Vec<u64>, Failure> {
    let mut link = dial.dial().await?;
    let mut request = vec![letter];
    request.extend([0; 8]);
    request.resize(9 + size, 7);
    let mut room = vec![0; back];
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        link.write_all(&request).await?;
        link.read_exact(&mut room).await?;
        times.push(u64::try_from(began.elapsed().as_micros())?);
    }
    Ok(times)
}

/// Hears tokens; microseconds from there to here each.
async fn listen(dial: &Dial, count: u64) -> Result<Vec<u64>, Failure> {
    let mut link = dial.dial().await?;
    link.write_u8(b't').await?;
    link.write_u64(count).await?;
    let mut times = Vec::new();
    for _ in 0..count {
        let mut token = [0; TOKEN];
        link.read_exact(&mut token).await?;
        let mut stamp = [0; 8];
        stamp.copy_from_slice(&token[..8]);
        times.push(now_us().saturating_sub(u64::from_be_bytes(stamp)));
    }
    Ok(times)
}

/// Tokens that share their way with a transfer which takes all that the link has.
async fn beside(dial: &Dial, count: u64) -> Result<Vec<u64>, Failure> {
    let mut bulk = dial.dial().await?;
    bulk.write_u8(b'd').await?;
    bulk.write_u64(1 << 40).await?;
    let mut piece = vec![0; PIECE];
    let taking = async move {
        loop {
            match bulk.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    let hearing = async {
        // The transfer has filled the queue by then.
        tokio::time::sleep(Duration::from_secs(2)).await;
        listen(dial, count).await
    };
    tokio::select! {
        () = taking => Err("the transfer ended".into()),
        times = hearing => times,
    }
}

/// The longest time without an answer, over connections that are made anew when they break.
async fn gap(dial: &Dial, long: Duration) -> Duration {
    let end = Instant::now() + long;
    let mut answered = Instant::now();
    let mut longest = Duration::ZERO;
    while Instant::now() < end {
        let pinging = async {
            let mut link = tokio::time::timeout(Duration::from_millis(200), dial.dial()).await??;
            let mut ping = vec![b'p'];
            ping.resize(9 + TOKEN, 0);
            let mut room = [0; TOKEN];
            while Instant::now() < end {
                link.write_all(&ping).await?;
                let back = link.read_exact(&mut room);
                tokio::time::timeout(Duration::from_millis(200), back).await??;
                longest = longest.max(answered.elapsed());
                answered = Instant::now();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<(), Failure>(())
        };
        // A connection that broke: the next one tells.
        let _broken = pinging.await.is_err();
    }
    // Whoever never came back counts to the end.
    longest.max(answered.elapsed())
}

fn shares(name: &str, mut times: Vec<u64>) -> String {
    times.sort_unstable();
    let at = |share: usize| {
        times
            .get((times.len().saturating_sub(1)) * share / 1000)
            .copied()
            .unwrap_or(0)
    };
    format!(
        "\"{name}_p50_us\":{},\"{name}_p99_us\":{},\"{name}_max_us\":{}",
        at(500),
        at(990),
        at(1000)
    )
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// User and system time of processes, zero where `/proc` does not tell.
fn cpu_seconds(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<f64>().ok());
        // Fields 14 and 15 of proc(5), counted after the name; a tick is 10 ms on every Linux.
        (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
    };
    pids.iter().map(of).sum()
}
