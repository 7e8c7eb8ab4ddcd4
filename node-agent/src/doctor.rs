//! `hearth-node doctor`: looks at everything between this machine and its proxy, in the order in which it is needed, and says for each what
//! is wrong and what to do. Changes nothing; while the agent runs it asks the agent and opens no tunnel of its own.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use config::settings::node::Settings;
use serde::Serialize;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;
use tunnel::{PathKind, Peer, PeerStatus, PrivateKey, Tunnel};

use crate::hub::Hub;
use crate::identity::{Identity, Member};
use crate::join::Pin;
use crate::register::Place;
use crate::status::{self, ProxyStatus};

const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// From the first handshake to a session, where the path is clear.
const SESSION_MAX: Duration = Duration::from_secs(6);
/// WireGuard renews a session after two minutes; three later it is dead.
const HANDSHAKE_AGE_MAX: f64 = 180.0;
/// A person would notice it in every answer.
const ROUND_TRIP_WARN_MS: f64 = 250.0;
/// Certificates are the first to mind.
const CLOCK_WARN: Duration = Duration::from_secs(30);
const CLOCK_FAIL: Duration = Duration::from_hours(24);
/// Overlay packets of 1,280 bytes and the headers around them: WireGuard 32, UDP 8, IPv6 40.
const MTU_WANTED: u32 = 1_360;

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub said: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<5} {:<11} {}", self.verdict, self.what, self.said)
    }
}

fn check(what: &'static str, verdict: Verdict, said: impl Into<String>) -> Check {
    Check {
        what,
        verdict,
        said: said.into(),
    }
}

/// Looks at everything; stops where nothing behind can work.
pub async fn examine(settings: &Settings) -> Vec<Check> {
    let mut checks = Vec::new();
    let state_dir = &settings.node.state_dir;
    let member = match Member::load(state_dir) {
        Ok(Some(member)) => member,
        Ok(None) => {
            checks.push(check(
                "joined",
                Verdict::Fail,
                "this machine belongs to no proxy: run `hearth-node join LINK` with the link of `hearth-proxy node invite`",
            ));
            return checks;
        }
        Err(error) => {
            checks.push(check("joined", Verdict::Fail, error.to_string()));
            return checks;
        }
    };
    let words = config::fingerprint::words(&member.node_id).unwrap_or_default();
    let said = format!("{} as {} ({words})", member.proxy, member.node_id);
    checks.push(check("joined", Verdict::Ok, said));
    let hub = match Hub::new(&member.proxy, member.pin.as_deref().and_then(Pin::parse)) {
        Ok(hub) => hub,
        Err(error) => {
            checks.push(check("joined", Verdict::Fail, error.to_string()));
            return checks;
        }
    };
    let Some(address) = dns(&member.proxy, &mut checks).await else {
        return checks;
    };
    checks.push(path(address).await);
    let began = Instant::now();
    match hub.time().await {
        Ok(server_ms) => {
            let took = began.elapsed();
            let said = format!("{} answers in {} ms", member.proxy, took.as_millis());
            checks.push(check("https", Verdict::Ok, said));
            checks.push(clock(server_ms, SystemTime::now(), took));
        }
        Err(error) => checks.push(check("https", Verdict::Fail, error.to_string())),
    }
    if let Ok(status) = status::ask(state_dir).await {
        let verdict = if status.standing == "connected" {
            Verdict::Ok
        } else {
            Verdict::Fail
        };
        let reason = status.reason.unwrap_or_default();
        checks.push(check(
            "agent",
            verdict,
            format!("{} {reason}", status.standing),
        ));
        checks.extend(status.proxies.iter().flat_map(running));
    } else {
        let said = "no agent runs; start it with `hearth-node run` (tried without it below)";
        checks.push(check("agent", Verdict::Warn, said));
        checks.extend(tried(settings, &member, &hub).await);
    }
    checks
}

async fn dns(proxy: &str, checks: &mut Vec<Check>) -> Option<SocketAddr> {
    let authority = proxy.trim_start_matches("https://");
    let name = match authority.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_owned(),
        Some(_) | None => format!("{authority}:443"),
    };
    let began = Instant::now();
    let failed = |why: String| {
        let said = format!(
            "{authority} has no address ({why}): check the name and this machine's resolver"
        );
        check("dns", Verdict::Fail, said)
    };
    match timeout(RESOLVE_MAX, lookup_host(name)).await {
        Ok(Ok(found)) => {
            let found: Vec<SocketAddr> = found.collect();
            let first = found.first().copied();
            let shown: Vec<String> = found.iter().map(|one| one.ip().to_string()).collect();
            checks.push(match first {
                Some(_) => {
                    let (list, ms) = (shown.join(", "), began.elapsed().as_millis());
                    check(
                        "dns",
                        Verdict::Ok,
                        format!("{authority} is {list}, in {ms} ms"),
                    )
                }
                None => failed("an empty answer".to_owned()),
            });
            first
        }
        Ok(Err(error)) => {
            checks.push(failed(error.to_string()));
            None
        }
        Err(_) => {
            checks.push(failed("no answer in 5 s".to_owned()));
            None
        }
    }
}

/// What the first link on the way to the proxy carries.
async fn path(to: SocketAddr) -> Check {
    let own = async {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(to).await?;
        socket.local_addr()
    };
    let own = match own.await {
        Ok(own) => own.ip(),
        Err(error) => {
            let said = format!("no route to {}: {error}", to.ip());
            return check("route", Verdict::Fail, said);
        }
    };
    match mtu_of(own) {
        Some((name, mtu)) if mtu < MTU_WANTED => {
            let said = format!(
                "{name} carries {mtu} bytes, packets of the tunnel need {MTU_WANTED}: they are cut into pieces or lost; raise the MTU of {name}"
            );
            check("mtu", Verdict::Warn, said)
        }
        Some((name, mtu)) => check("mtu", Verdict::Ok, format!("{name} carries {mtu} bytes")),
        None => check("mtu", Verdict::Ok, format!("unknown; leaving from {own}")),
    }
}

/// The name of the interface with this address: IPv6 from the kernel's list, IPv4 by the route that covers it.
fn interface_of(own: IpAddr) -> Option<String> {
    if own.is_loopback() {
        return Some("lo".to_owned());
    }
    match own {
        IpAddr::V6(own) => {
            let wanted = format!("{:032x}", own.to_bits());
            let list = std::fs::read_to_string("/proc/net/if_inet6").ok()?;
            let line = list.lines().find(|line| line.starts_with(&wanted))?;
            line.split_whitespace().last().map(str::to_owned)
        }
        IpAddr::V4(own) => {
            let table = std::fs::read_to_string("/proc/net/route").ok()?;
            let own = u32::from_ne_bytes(own.octets());
            let covers = |line: &&str| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
                let (network, mask) = (number(1), number(7).filter(|mask| *mask != 0));
                mask.is_some_and(|mask| network == Some(own & mask))
            };
            let line = table.lines().skip(1).find(covers)?;
            line.split_whitespace().next().map(str::to_owned)
        }
    }
}

/// The interface with this address and its MTU, where the system tells.
fn mtu_of(own: IpAddr) -> Option<(String, u32)> {
    let name = interface_of(own)?;
    let file = format!("/sys/class/net/{name}/mtu");
    let mtu = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    Some((name, mtu))
}

/// The tunnel itself does not mind the clock, certificates and logs do.
fn clock(server_ms: u64, now: SystemTime, took: Duration) -> Check {
    let Some(server) = UNIX_EPOCH.checked_add(Duration::from_millis(server_ms)) else {
        return check("clock", Verdict::Warn, "the proxy does not tell its time");
    };
    if server_ms == 0 {
        return check(
            "clock",
            Verdict::Warn,
            "the proxy is older and does not tell its time",
        );
    }
    let (word, off) = match now.duration_since(server) {
        Ok(ahead) => ("ahead of", ahead.saturating_sub(took)),
        Err(behind) => ("behind", behind.duration()),
    };
    let said = format!("{} ms {word} the proxy's", off.as_millis());
    if off >= CLOCK_FAIL {
        let said = format!(
            "{said}: certificates cannot be checked; set the time (`timedatectl set-ntp true`)"
        );
        return check("clock", Verdict::Fail, said);
    }
    if off >= CLOCK_WARN {
        let said = format!("{said}: switch on time synchronisation (`timedatectl set-ntp true`)");
        return check("clock", Verdict::Warn, said);
    }
    check("clock", Verdict::Ok, said)
}

/// What the agent says about its line to one proxy.
fn running(proxy: &ProxyStatus) -> Vec<Check> {
    let mut checks = Vec::new();
    let endpoint = proxy.endpoint.clone().unwrap_or_default();
    match proxy.handshake_age_secs {
        Some(age) if age > HANDSHAKE_AGE_MAX => {
            let said = format!("the last one with {endpoint} was {age:.0} s ago: {NO_UDP}");
            checks.push(check("handshake", Verdict::Fail, said));
        }
        Some(age) => {
            checks.push(shaken(proxy, age));
        }
        None => {
            let reason = proxy.reason.clone().unwrap_or_default();
            let said = format!("none with {}: {reason}; {NO_UDP}", proxy.url);
            checks.push(check("handshake", Verdict::Fail, said));
        }
    }
    checks.push(round_trip(proxy.round_trip_ms));
    if let (Some(mtu), Some(_)) = (proxy.mtu, proxy.handshake_age_secs) {
        let said = format!("packets of up to {mtu} bytes get through to {}", proxy.url);
        checks.push(check("path", Verdict::Ok, said));
    }
    checks
}

/// A session there is, and which way it goes.
fn shaken(proxy: &ProxyStatus, age: f64) -> Check {
    if proxy.carrier.as_deref() == Some(PathKind::Carried.as_str()) {
        let said = format!(
            "{age:.0} s ago, over HTTPS ({}): UDP does not get through, so everything takes longer; {NO_UDP}",
            proxy.url
        );
        return check("handshake", Verdict::Warn, said);
    }
    let endpoint = proxy.endpoint.clone().unwrap_or_default();
    let said = format!("with {endpoint} {age:.0} s ago, over UDP ({})", proxy.url);
    check("handshake", Verdict::Ok, said)
}

const NO_UDP: &str = "if the proxy runs, some firewall drops UDP: allow it to the proxy's tunnel port (51820 unless changed), there inbound and here outbound";

fn round_trip(ms: Option<f64>) -> Check {
    match ms {
        Some(ms) if ms > ROUND_TRIP_WARN_MS => {
            let said = format!("{ms:.0} ms: every answer starts that late; is the line busy?");
            check("round trip", Verdict::Warn, said)
        }
        Some(ms) => check(
            "round trip",
            Verdict::Ok,
            format!("{ms:.1} ms inside the tunnel"),
        ),
        None => check("round trip", Verdict::Warn, "not measured"),
    }
}

/// A registration and a handshake of our own, while no agent runs.
async fn tried(settings: &Settings, member: &Member, hub: &Hub) -> Vec<Check> {
    let failed = |what, error: String| vec![check(what, Verdict::Fail, error)];
    let identity = match Identity::open(&settings.node.state_dir) {
        Ok(identity) => identity,
        Err(error) => return failed("identity", error.to_string()),
    };
    let key = PrivateKey::generate();
    let start = format!("{:032x}", rand::random::<u128>());
    let registered = hub
        .register(&identity, (&member.node_id, &start), key.public_key())
        .await;
    let (reply, shared) = match registered {
        Ok(registered) => registered,
        Err(error) => return failed("register", error.to_string()),
    };
    let (host, bind) = (hub.host().unwrap_or_default(), settings.node.bind);
    let place = Place::from_reply(reply, (&shared, key.public_key()), &host, bind, 0).await;
    let place = match place {
        Ok(place) => place,
        Err(error) => return failed("register", error.to_string()),
    };
    let endpoint = place.hub.endpoint.map(|endpoint| endpoint.to_string());
    let endpoint = endpoint.unwrap_or_default();
    let tunnel = Tunnel::start(tunnel::Settings::new(bind, key, place.address)).await;
    let tunnel = match tunnel {
        Ok(tunnel) => tunnel,
        Err(error) => return failed("tunnel", error.to_string()),
    };
    let back_end = format!("{:?}", tunnel.backend()).to_lowercase();
    let mut checks = vec![check("back-end", Verdict::Ok, back_end)];
    let shaken = met(&tunnel, place.hub, &endpoint).await;
    let is_blocked = shaken.iter().any(|check| check.verdict == Verdict::Fail);
    checks.extend(shaken);
    tunnel.shutdown().await;
    if is_blocked && settings.node.carrier {
        checks.push(match hub.open_carrier(&identity, &member.node_id).await {
            Ok(_opened) => {
                let said = "HTTPS takes the tunnel where UDP does not get through: the node will work, more slowly";
                check("carrier", Verdict::Warn, said)
            }
            Err(error) => check("carrier", Verdict::Fail, error.to_string()),
        });
    }
    checks
}

/// Whether the hub, which listens at `endpoint`, shakes hands with this tunnel, and how far it is.
async fn met(tunnel: &Tunnel, hub: Peer, endpoint: &str) -> Vec<Check> {
    let address = hub.address;
    let shown = |is_there: fn(&PeerStatus) -> bool| async move {
        while !tunnel.peer_status(address).as_ref().is_some_and(is_there) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let session = async {
        tunnel.set_peer(hub).await?;
        shown(|status| status.since_handshake.is_some()).await;
        tunnel.echo(address).await?;
        shown(|status| status.round_trip.is_some()).await;
        Ok::<(), tunnel::Error>(())
    };
    let done = timeout(SESSION_MAX, session).await;
    let status = tunnel.peer_status(address);
    let has_session = status
        .as_ref()
        .is_some_and(|status| status.since_handshake.is_some());
    let (verdict, said) = match done {
        Ok(Err(error)) => (Verdict::Fail, error.to_string()),
        _ if has_session => (Verdict::Ok, format!("with {endpoint}, over UDP")),
        _ => (Verdict::Fail, format!("none with {endpoint}: {NO_UDP}")),
    };
    let mut checks = vec![check("handshake", verdict, said)];
    if has_session {
        let time = status.and_then(|status| status.round_trip);
        checks.push(round_trip(time.map(|time| time.as_secs_f64() * 1_000.0)));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn a_clock_is_judged_by_how_far_it_is_off_in_either_direction() {
        const NOW: u64 = 1_800_000_000_000;
        let took = Duration::from_millis(20);
        for (here, verdict) in [
            (NOW, Verdict::Ok),
            (NOW + 40_000, Verdict::Warn),
            (NOW - 40_000, Verdict::Warn),
            (0, Verdict::Fail),
            (NOW + 10 * 365 * 86_400_000, Verdict::Fail),
        ] {
            let check = clock(NOW, at(here), took);
            assert_eq!(check.verdict, verdict, "{check}");
        }
        assert_eq!(clock(0, at(NOW), took).verdict, Verdict::Warn);
        assert_eq!(clock(u64::MAX, at(NOW), took).verdict, Verdict::Fail);
    }

    #[test]
    fn a_line_without_a_session_says_which_firewall_to_open() {
        let mut proxy = ProxyStatus {
            url: "https://a".to_owned(),
            standing: "lost".to_owned(),
            reason: Some("no answer in time".to_owned()),
            endpoint: None,
            handshake_age_secs: None,
            round_trip_ms: None,
            carrier: None,
            mtu: None,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let checks = running(&proxy);
        assert_eq!(checks[0].verdict, Verdict::Fail);
        assert!(checks[0].said.contains("51820"), "{}", checks[0]);
        proxy.handshake_age_secs = Some(20.0);
        proxy.round_trip_ms = Some(300.0);
        let verdicts: Vec<Verdict> = running(&proxy).iter().map(|one| one.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warn]);
        proxy.carrier = Some("wss".to_owned());
        proxy.mtu = Some(1_280);
        let checks = running(&proxy);
        assert_eq!(checks[0].verdict, Verdict::Warn, "{}", checks[0]);
        assert!(checks[0].said.contains("HTTPS"), "{}", checks[0]);
        assert!(checks[2].said.contains("1280"), "{}", checks[2]);
    }

    #[tokio::test]
    async fn loopback_has_an_mtu_and_a_wrong_name_no_address() {
        let here = path("127.0.0.1:443".parse().expect("an address")).await;
        assert_eq!(here.verdict, Verdict::Ok, "{here}");
        let mut checks = Vec::new();
        let found = dns("https://nowhere.invalid", &mut checks).await;
        assert_eq!((found, checks[0].verdict), (None, Verdict::Fail));
    }
}
