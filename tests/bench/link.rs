//! One load over one link: bulk bytes down and up, and small round trips. The same program drives Hearth's tunnel and kernel TCP over
//! another tunnel, so that only the link differs. Prints one JSON line.

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tunnel::{Peer, PrivateKey, PublicKey, Settings, Tunnel};

const PORT: u16 = 7000;
const PIECE: usize = 64 * 1024;
const PING: usize = 64;
const HUB: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1);
const NODE: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 2);

type Failure = Box<dyn std::error::Error + Send + Sync>;

trait Link: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

/// Answers one connection: `d` and a length: sends so many bytes; `u` and a length: takes so many; `p`: echoes until the end.
async fn answer(mut link: impl Link) -> Result<(), Failure> {
    let mut piece = vec![7; PIECE];
    loop {
        let Ok(kind) = link.read_u8().await else {
            return Ok(());
        };
        let mut left = usize::try_from(link.read_u64().await?)?;
        match kind {
            b'd' => {
                while left > 0 {
                    let length = left.min(PIECE);
                    link.write_all(&piece[..length]).await?;
                    left -= length;
                }
            }
            b'u' => {
                while left > 0 {
                    let length = left.min(PIECE);
                    link.read_exact(&mut piece[..length]).await?;
                    left -= length;
                }
                link.write_u8(1).await?;
            }
            _ => {
                for _ in 0..left {
                    link.read_exact(&mut piece[..PING]).await?;
                    link.write_all(&piece[..PING]).await?;
                    link.flush().await?;
                }
            }
        }
        link.flush().await?;
    }
}

async fn order(link: &mut impl Link, kind: u8, amount: usize) -> Result<(), Failure> {
    link.write_u8(kind).await?;
    link.write_u64(u64::try_from(amount)?).await?;
    link.flush().await?;
    Ok(())
}

/// Bytes a second as Mbit/s.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabits(bytes: usize, took: Duration) -> f64 {
    (bytes as f64) * 8.0 / took.as_secs_f64() / 1e6
}

async fn drive(
    mut link: impl Link,
    bytes: usize,
    pings: usize,
) -> Result<serde_json::Value, Failure> {
    let mut piece = vec![7; PIECE];
    let started = Instant::now();
    order(&mut link, b'd', bytes).await?;
    let mut left = bytes;
    while left > 0 {
        left -= link.read(&mut piece[..left.min(PIECE)]).await?.max(1);
    }
    let down = megabits(bytes, started.elapsed());

    let started = Instant::now();
    order(&mut link, b'u', bytes).await?;
    let mut left = bytes;
    while left > 0 {
        let length = left.min(PIECE);
        link.write_all(&piece[..length]).await?;
        left -= length;
    }
    link.flush().await?;
    link.read_u8().await?;
    let up = megabits(bytes, started.elapsed());

    order(&mut link, b'p', pings).await?;
    let mut trips = Vec::with_capacity(pings);
    for _ in 0..pings {
        let started = Instant::now();
        link.write_all(&piece[..PING]).await?;
        link.flush().await?;
        link.read_exact(&mut piece[..PING]).await?;
        trips.push(started.elapsed().as_micros());
    }
    trips.sort_unstable();
    let at = |share: usize| trips.get(pings * share / 1000).copied().unwrap_or_default();
    Ok(
        json!({"down_mbit": down.round(), "up_mbit": up.round(), "p50_us": at(500), "p99_us": at(990)}),
    )
}

/// Both ends know both keys: they come from the seeds 1 and 2, on loopback or in namespaces of the benchmark only.
fn keys() -> (PrivateKey, PrivateKey) {
    (
        PrivateKey::from_bytes([1; 32]),
        PrivateKey::from_bytes([2; 32]),
    )
}

fn peer(public_key: PublicKey, address: Ipv6Addr, endpoint: Option<SocketAddr>) -> Peer {
    Peer {
        public_key,
        preshared_key: None,
        address,
        endpoint,
        keepalive: Some(Duration::from_secs(15)),
        initiates: endpoint.is_some(),
    }
}

async fn serve(over: &str, at: SocketAddr) -> Result<(), Failure> {
    if over == "tcp" {
        let listener = TcpListener::bind(at).await?;
        loop {
            let (link, _) = listener.accept().await?;
            link.set_nodelay(true)?;
            tokio::spawn(answer(link));
        }
    }
    let (hub, node) = keys();
    let node = node.public_key();
    let tunnel = Tunnel::start(Settings::new(at, hub, HUB)).await?;
    tunnel.set_peer(peer(node, NODE, None)).await?;
    let listener = tunnel.listen(PORT).await?;
    loop {
        let (link, _) = listener.accept().await?;
        tokio::spawn(answer(link));
    }
}

async fn measure(
    over: &str,
    at: SocketAddr,
    bytes: usize,
    pings: usize,
) -> Result<serde_json::Value, Failure> {
    if over == "tcp" {
        let link = TcpStream::connect(at).await?;
        link.set_nodelay(true)?;
        return drive(link, bytes, pings).await;
    }
    let (hub, node) = keys();
    let any: SocketAddr = if at.is_ipv4() {
        "0.0.0.0:0".parse()?
    } else {
        "[::]:0".parse()?
    };
    let tunnel = Tunnel::start(Settings::new(any, node, NODE)).await?;
    tunnel
        .set_peer(peer(hub.public_key(), HUB, Some(at)))
        .await?;
    let link = tunnel.connect(HUB, PORT, Duration::from_secs(10)).await?;
    drive(link, bytes, pings).await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", over, at] => serve(over, at.parse()?).await,
        ["drive", over, at, megabytes, pings] => {
            let figures = measure(
                over,
                at.parse()?,
                megabytes.parse::<usize>()? << 20,
                pings.parse()?,
            )
            .await?;
            writeln!(std::io::stdout(), "{figures}")?;
            Ok(())
        }
        _ => Err(
            "usage: bench-link serve tcp|tunnel ADDRESS | drive tcp|tunnel ADDRESS MEGABYTES PINGS"
                .into(),
        ),
    }
}
