//! What `hearth-node status` shows: one JSON object from a socket in the state directory, so that it is never stale. Holds no secret.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::identity::Member;
use crate::report::back_end;
use crate::tiers::Tiers;
use crate::uplink::Standing;
use crate::uplink::house::{Line, Lines};
use crate::work::Work;

const SOCKET_FILE: &str = "agent.sock";
const EXCHANGE_MAX: Duration = Duration::from_secs(2);
/// Longer than a lost packet and its repeat take.
const SILENCE_SECS: f64 = 2.0;
const STATUS_BYTES_MAX: u64 = 256 * 1024;

/// The agent at one moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// Of this program.
    pub version: String,
    /// What the proxy calls this machine.
    pub node_id: String,
    /// What people call it.
    pub name: String,
    /// Its origin.
    pub proxy: String,
    /// `connected`, `registering`, `lost` or `refused`.
    pub standing: String,
    /// Why it is not connected.
    pub reason: Option<String>,
    /// The node takes no new work.
    pub draining: bool,
    /// Requests under way.
    pub requests_running: usize,
    /// The proxies of the house.
    #[serde(default)]
    pub proxies: Vec<ProxyStatus>,
    /// Six words of this machine's identity, the same as `hearth-proxy node list` shows.
    #[serde(default)]
    pub fingerprint: String,
    /// As in reports.
    pub tiers: Vec<config::wire::node::TierReport>,
}

/// The line to one proxy at one moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ProxyStatus {
    /// Its origin.
    pub url: String,
    /// As in [`Status::standing`].
    pub standing: String,
    /// Why it is not connected.
    pub reason: Option<String>,
    /// Its UDP address.
    pub endpoint: Option<String>,
    /// Age of the WireGuard session, seconds; `None`: there is none.
    pub handshake_age_secs: Option<f64>,
    /// Seconds since the last packet that was certainly its own; `None`: there was none.
    #[serde(default)]
    pub heard_secs_ago: Option<f64>,
    /// The way there and back inside the tunnel, milliseconds.
    pub round_trip_ms: Option<f64>,
    /// What brings the tunnel's datagrams: `udp`, or `wss` where no UDP gets through; `None`: there is no tunnel.
    #[serde(default)]
    pub carrier: Option<String>,
    /// The largest packet that the path carries inside the tunnel, bytes.
    #[serde(default)]
    pub mtu: Option<usize>,
    /// Who does TCP at this end: `netns` or `embedded`; `None`: there is no tunnel.
    #[serde(default)]
    pub back_end: Option<String>,
    /// Lost of the last 64 echoes there and back, percent; `None`: not measured yet.
    #[serde(default)]
    pub loss_percent: Option<f64>,
    /// Received inside the tunnel.
    pub rx_bytes: u64,
    /// Sent inside the tunnel.
    pub tx_bytes: u64,
}

impl ProxyStatus {
    /// Seconds for which a proxy that ought to speak has said nothing: what was measured before that is no news.
    pub fn silence_secs(&self) -> Option<f64> {
        let is_connected = self.standing == Standing::Connected.as_str();
        self.heard_secs_ago
            .filter(|silence| !is_connected && *silence > SILENCE_SECS)
    }

    fn of(line: &Line) -> Self {
        let standing = line.standing.borrow().clone();
        let window = line.window.lock().unwrap_or_else(PoisonError::into_inner);
        let back_end = window
            .as_ref()
            .map(|(tunnel, _)| back_end(tunnel).as_str().to_owned());
        let tunnel = window
            .as_ref()
            .and_then(|(tunnel, hub)| tunnel.peer_status(*hub));
        let tunnel = tunnel.as_ref();
        let round_trip = tunnel.and_then(|tunnel| tunnel.round_trip);
        let age = tunnel.and_then(|tunnel| tunnel.since_handshake);
        let endpoint = tunnel.and_then(|tunnel| tunnel.endpoint);
        Self {
            url: line.url.clone(),
            standing: standing.as_str().to_owned(),
            reason: standing.reason().map(str::to_owned),
            endpoint: endpoint.map(|endpoint| endpoint.to_string()),
            handshake_age_secs: age.map(|age| age.as_secs_f64()),
            heard_secs_ago: tunnel
                .and_then(|tunnel| tunnel.since_heard)
                .map(|age| age.as_secs_f64()),
            round_trip_ms: round_trip.map(|time| time.as_secs_f64() * 1_000.0),
            carrier: tunnel.map(|tunnel| tunnel.path.as_str().to_owned()),
            mtu: tunnel.map(|tunnel| tunnel.mtu),
            back_end,
            loss_percent: tunnel
                .and_then(|tunnel| tunnel.loss_per_mille)
                .map(|loss| f64::from(loss) / 10.0),
            rx_bytes: tunnel.map_or(0, |tunnel| tunnel.rx_bytes),
            tx_bytes: tunnel.map_or(0, |tunnel| tunnel.tx_bytes),
        }
    }
}

/// Makes [`Status`].
#[derive(Debug)]
pub struct Teller {
    /// Who we are.
    pub member: Member,
    /// How we stand with the proxy.
    pub standing: watch::Receiver<Standing>,
    /// The proxies of the house, the nearest first once their distance is known.
    pub lines: Lines,
    /// What we serve.
    pub tiers: std::sync::Arc<Tiers>,
    /// What we do.
    pub work: Work,
}

impl Teller {
    fn tell(&self) -> Status {
        let standing = self.standing.borrow().clone();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut proxies: Vec<ProxyStatus> = lines.iter().map(ProxyStatus::of).collect();
        drop(lines);
        nearest_first(&mut proxies);
        Status {
            proxies,
            fingerprint: config::fingerprint::words(&self.member.node_id).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_id: self.member.node_id.to_string(),
            name: self.member.name.clone(),
            proxy: self.member.proxy.clone(),
            standing: standing.as_str().to_owned(),
            reason: standing.reason().map(str::to_owned),
            draining: self.work.is_draining(),
            requests_running: self.work.running(),
            tiers: self
                .tiers
                .rooms()
                .iter()
                .map(|room| room.report())
                .collect(),
        }
    }

    /// Answers everybody who connects, until dropped. A folder with too long a name has no socket; the agent runs without.
    pub async fn serve(self, state_dir: PathBuf) {
        let path = state_dir.join(SOCKET_FILE);
        let listener = match listen(&path) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "`hearth-node status` will not work");
                return;
            }
        };
        loop {
            let Ok((mut stream, _from)) = listener.accept().await else {
                tokio::time::sleep(EXCHANGE_MAX).await;
                continue;
            };
            let bytes = serde_json::to_vec(&self.tell()).unwrap_or_default();
            // A slow reader delays other readers only.
            let _slow = timeout(EXCHANGE_MAX, stream.write_all(&bytes)).await;
        }
    }
}

/// By the round trip inside the tunnel; where it is not known comes last.
fn nearest_first(proxies: &mut [ProxyStatus]) {
    let distance = |proxy: &ProxyStatus| proxy.round_trip_ms.unwrap_or(f64::INFINITY);
    proxies.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // The state directory is locked by us, so a socket that is there is left over.
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // The folder is ours alone already; whoever opens it must not open this with it.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Asks the agent that runs with `state_dir`.
pub async fn ask(state_dir: &Path) -> io::Result<Status> {
    let exchange = async {
        let stream = UnixStream::connect(state_dir.join(SOCKET_FILE)).await?;
        let mut bytes = Vec::new();
        stream
            .take(STATUS_BYTES_MAX)
            .read_to_end(&mut bytes)
            .await?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    };
    match timeout(EXCHANGE_MAX, exchange).await {
        Ok(status) => status,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_proxy_is_shown_first_and_one_of_unknown_distance_last() {
        let proxy = |url: &str, round_trip_ms| ProxyStatus {
            url: url.to_owned(),
            standing: "connected".to_owned(),
            reason: None,
            endpoint: None,
            handshake_age_secs: None,
            heard_secs_ago: None,
            round_trip_ms,
            carrier: None,
            mtu: None,
            back_end: None,
            loss_percent: None,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let mut proxies = [
            proxy("unknown", None),
            proxy("far", Some(180.0)),
            proxy("near", Some(4.0)),
        ];
        nearest_first(&mut proxies);
        let shown = proxies.map(|proxy| proxy.url);
        assert_eq!(shown, ["near", "far", "unknown"]);
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_even_where_one_was_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET_FILE);
        for _ in 0..2 {
            let _listener = listen(&path).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
