//! `hearth-node doctor`: looks at everything between this machine and its proxy, in the order in which it is needed, and says for each what
//! is wrong and what to do. Changes nothing; while the agent runs it asks the agent and opens no tunnel of its own: the proxy would take that
//! for the agent, and cut what runs.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use config::checkup::{Check, Verdict};
use config::settings::node::Settings;
use config::wire::node::BackEnd;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;
use tunnel::{PathKind, Peer, PeerStatus, PrivateKey, Tunnel};

use crate::hub::{Hub, HubError};
use crate::identity::{Identity, Member, StateError, StateLock};
use crate::join::Pin;
use crate::register::Place;
use crate::report::back_end;
use crate::status::{self, ProxyStatus, Status};
use crate::uplink;

const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// From the first handshake to a session, where the path is clear.
const SESSION_MAX: Duration = Duration::from_secs(6);
/// WireGuard renews a session after two minutes; three later it is dead.
const HANDSHAKE_AGE_MAX: f64 = 180.0;
/// A person would notice it in every answer.
const ROUND_TRIP_WARN_MS: f64 = 250.0;
/// More than that is no clean line; TCP's own repairs become visible.
const LOSS_WARN_PERCENT: f64 = 5.0;
/// Certificates are the first to mind.
const CLOCK_WARN: Duration = Duration::from_secs(30);
const CLOCK_FAIL: Duration = Duration::from_hours(24);
/// Overlay packets of 1,280 bytes and the headers around them: WireGuard 32, UDP 8, IPv6 40.
const MTU_WANTED: u32 = 1_360;

fn check(what: &'static str, verdict: Verdict, said: impl Into<String>) -> Check {
    Check::new(what, verdict, said)
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
    let status = status::ask(state_dir).await;
    if let Ok(status) = &status {
        checks.extend(asked(status));
    }
    let mut outside = Vec::new();
    let is_up = reached(&member, &hub, &mut outside).await;
    if status.is_ok_and(|status| serves_through_another(&status, &member.proxy)) {
        outside = outside.into_iter().map(softened).collect();
        checks.extend(outside);
        return checks;
    }
    checks.extend(outside);
    if !checks.iter().any(|check| check.what == "agent") {
        checks.extend(agentless(settings, &member, is_up.then_some(&hub)).await);
    }
    checks
}

/// Whether the proxy that this machine joined is there, whatever runs here.
async fn reached(member: &Member, hub: &Hub, checks: &mut Vec<Check>) -> bool {
    let Some(address) = dns(&member.proxy, checks).await else {
        return false;
    };
    checks.push(path(address).await);
    https(member, hub, checks).await
}

/// Whether the agent is connected to a proxy other than this one.
fn serves_through_another(status: &Status, proxy: &str) -> bool {
    let mut proxies = status.proxies.iter();
    proxies.any(|other| other.standing == "connected" && other.url != proxy)
}

/// What is wrong with one of several proxies stops nothing.
fn softened(check: Check) -> Check {
    if check.verdict != Verdict::Fail {
        return check;
    }
    let said = format!("{}; the agent serves through another proxy", check.said);
    Check {
        verdict: Verdict::Warn,
        said,
        ..check
    }
}

/// What there is to see where no agent answers; `hub` if it can be asked.
async fn agentless(settings: &Settings, member: &Member, hub: Option<&Hub>) -> Vec<Check> {
    let state_dir = &settings.node.state_dir;
    // Held to the end: an agent that starts meanwhile would be cut off by our registration.
    let _lock = match StateLock::take_existing(state_dir) {
        Ok(lock) => lock,
        Err(StateError::Taken(_)) => {
            let said = format!(
                "an agent runs with {} but does not answer, so its tunnel is left alone: ask as the same user, or see its log (`journalctl -u hearth-node`)",
                state_dir.display()
            );
            return vec![check("agent", Verdict::Fail, said)];
        }
        Err(error) => return vec![check("agent", Verdict::Fail, error.to_string())],
    };
    let said = "no agent runs: start it with `hearth-node run`; if it should run, its log says why not (`journalctl -u hearth-node`)";
    let mut checks = vec![check("agent", Verdict::Warn, said)];
    // A registration over HTTPS comes first.
    if let Some(hub) = hub {
        checks.extend(tried(settings, member, hub).await);
    }
    checks
}

/// Whether the proxy answers over HTTPS, and how its clock is.
async fn https(member: &Member, hub: &Hub, checks: &mut Vec<Check>) -> bool {
    let began = Instant::now();
    match hub.time().await {
        Ok(server_ms) => {
            let took = began.elapsed();
            let said = format!("{} answers in {} ms", member.proxy, took.as_millis());
            checks.push(check("https", Verdict::Ok, said));
            checks.push(clock(server_ms, SystemTime::now(), took));
            true
        }
        Err(error @ HubError::Unreachable { .. }) => {
            let said = format!(
                "{error}: does it run (there: `hearth-proxy status`), and do the firewalls let TCP to that port through?"
            );
            checks.push(check("https", Verdict::Fail, said));
            false
        }
        Err(error) => {
            checks.push(check("https", Verdict::Fail, error.to_string()));
            false
        }
    }
}

/// What the agent says of itself and of each of its proxies.
fn asked(status: &Status) -> Vec<Check> {
    let verdict = if status.standing == "connected" {
        Verdict::Ok
    } else {
        Verdict::Fail
    };
    let mut said = status.standing.clone();
    if let Some(reason) = &status.reason {
        said = format!("{said}: {reason}");
    }
    let mut checks = vec![check("agent", verdict, said)];
    let mut back_ends = status
        .proxies
        .iter()
        .filter_map(|proxy| proxy.back_end.as_deref());
    checks.extend(back_ends.next().map(told_back_end));
    for proxy in &status.proxies {
        let found = running(proxy);
        if serves_through_another(status, &proxy.url) {
            checks.extend(found.into_iter().map(softened));
        } else {
            checks.extend(found);
        }
    }
    checks
}

/// Who does TCP in the tunnel, and what that means.
fn told_back_end(name: &str) -> Check {
    let explained = match name {
        "netns" => BackEnd::Netns.explained(),
        "embedded" => BackEnd::Embedded.explained(),
        other => other,
    };
    check("back-end", Verdict::Ok, explained)
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
    let url = &proxy.url;
    let endpoint = proxy.endpoint.as_deref().unwrap_or("its tunnel port");
    let Some(age) = proxy.handshake_age_secs else {
        let reason = proxy.reason.as_deref().unwrap_or("not registered yet");
        let said = format!("{url}: none ({reason}); {NO_UDP}");
        return vec![check("handshake", Verdict::Fail, said)];
    };
    if age > HANDSHAKE_AGE_MAX {
        let said = format!("{url}: the last one with {endpoint} was {age:.0} s ago: {NO_UDP}");
        return vec![check("handshake", Verdict::Fail, said)];
    }
    if let Some(silence) = proxy.silence_secs() {
        let said = format!("{url}: nothing heard from {endpoint} for {silence:.0} s; {NO_UDP}");
        return vec![check("udp", Verdict::Fail, said)];
    }
    let is_carried = proxy.carrier.as_deref() == Some(PathKind::Carried.as_str());
    let udp = if is_carried {
        let said = format!(
            "{url}: UDP does not get through, so the tunnel goes over HTTPS and everything takes longer; {NO_UDP}"
        );
        check("udp", Verdict::Warn, said)
    } else {
        check("udp", Verdict::Ok, format!("{url}: reaches {endpoint}"))
    };
    let handshake = format!("{url}: {age:.0} s ago");
    let mut checks = vec![udp, check("handshake", Verdict::Ok, handshake)];
    let measured = (proxy.round_trip_ms, proxy.loss_percent);
    checks.push(round_trip(url, measured));
    checks.extend(proxy.mtu.map(|mtu| {
        let said = format!("{url}: packets of up to {mtu} bytes get through");
        check("path", Verdict::Ok, said)
    }));
    checks
}

const NO_UDP: &str = "if the proxy runs, some firewall drops UDP: allow it to the proxy's tunnel port (51820 unless changed), there inbound and here outbound";

fn round_trip(url: &str, (ms, loss): (Option<f64>, Option<f64>)) -> Check {
    let what = "round trip";
    let Some(ms) = ms else {
        let said = format!("{url}: not measured yet; ask again in a few seconds");
        return check(what, Verdict::Warn, said);
    };
    let lost = loss.map_or_else(String::new, |loss| format!(", {loss:.1} % lost"));
    let said = format!("{url}: {ms:.1} ms inside the tunnel{lost}");
    if loss.is_some_and(|loss| loss > LOSS_WARN_PERCENT) {
        let said = format!("{said}: answers stutter; is it a weak Wi-Fi, or a line that is full?");
        return check(what, Verdict::Warn, said);
    }
    if ms > ROUND_TRIP_WARN_MS {
        let said = format!("{said}: every answer starts that late; is the line busy?");
        return check(what, Verdict::Warn, said);
    }
    check(what, Verdict::Ok, said)
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
    let mut wanted = tunnel::Settings::new(bind, key, place.address);
    wanted.backend = uplink::wanted(settings.node.backend);
    let tunnel = match Tunnel::start(wanted).await {
        Ok(tunnel) => tunnel,
        Err(error) => return failed("tunnel", error.to_string()),
    };
    let mut checks = vec![told_back_end(back_end(&tunnel).as_str())];
    let shaken = met(&tunnel, place.hub, (&member.proxy, &endpoint)).await;
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
async fn met(tunnel: &Tunnel, hub: Peer, (url, endpoint): (&str, &str)) -> Vec<Check> {
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
        _ if has_session => (Verdict::Ok, format!("{url}: with {endpoint}, over UDP")),
        _ => (
            Verdict::Fail,
            format!("{url}: none with {endpoint}: {NO_UDP}"),
        ),
    };
    let mut checks = vec![check("handshake", verdict, said)];
    if has_session {
        let time = status.and_then(|status| status.round_trip);
        let ms = time.map(|time| time.as_secs_f64() * 1_000.0);
        checks.push(round_trip(url, (ms, None)));
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
            heard_secs_ago: None,
            round_trip_ms: None,
            carrier: None,
            mtu: None,
            back_end: Some("netns".to_owned()),
            loss_percent: None,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let checks = running(&proxy);
        assert_eq!(checks[0].verdict, Verdict::Fail);
        for word in ["https://a", "no answer in time", "51820"] {
            assert!(checks[0].said.contains(word), "{word}: {}", checks[0]);
        }
        proxy.handshake_age_secs = Some(20.0);
        proxy.heard_secs_ago = Some(15.0);
        let silent = running(&proxy);
        assert_eq!((silent.len(), silent[0].verdict), (1, Verdict::Fail));
        assert!(silent[0].said.contains("for 15 s"), "{}", silent[0]);
        proxy.standing = "connected".to_owned();
        proxy.round_trip_ms = Some(300.0);
        let verdicts: Vec<Verdict> = running(&proxy).iter().map(|one| one.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Ok, Verdict::Warn]);
        proxy.round_trip_ms = Some(20.0);
        proxy.loss_percent = Some(7.5);
        let lossy = running(&proxy).remove(2);
        assert_eq!(lossy.verdict, Verdict::Warn, "{lossy}");
        assert!(lossy.said.contains("7.5 % lost"), "{lossy}");
        proxy.carrier = Some("wss".to_owned());
        proxy.mtu = Some(1_280);
        let checks = running(&proxy);
        assert_eq!(checks[0].verdict, Verdict::Warn, "{}", checks[0]);
        assert!(checks[0].said.contains("HTTPS"), "{}", checks[0]);
        assert!(checks[3].said.contains("1280"), "{}", checks[3]);
        proxy.handshake_age_secs = Some(200.0);
        let old = running(&proxy).remove(0);
        assert_eq!(old.verdict, Verdict::Fail, "{old}");
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
