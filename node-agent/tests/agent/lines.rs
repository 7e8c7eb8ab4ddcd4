//! What a line to a proxy bears: lost sessions, proxies that go or stall, several names, several proxies.

use std::path::Path;
use std::time::Duration;

use config::settings::node::Settings;
use config::tier::Tier;
use node_agent::doctor::{self, Check, Verdict};
use node_agent::status::{self, Status};
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::fake_proxy::{FakeProxy, Https, Told};
use crate::support::{PATIENCE, scripted};
use crate::uplink::{Agent, settings};

/// Of an agent whose model is ready at once and never changes.
fn quick(state_dir: &Path) -> Settings {
    let mut settings = settings(state_dir);
    settings.tiers = vec![scripted(Tier::Fast, &json!({"say": "fine"}))];
    settings
}

fn has_reported(told: &Told) -> bool {
    !told.reports.is_empty()
}

/// Waits for so many more reports; how long that took.
async fn more_reports(proxy: &FakeProxy, more: usize) -> Duration {
    let (began, before) = (Instant::now(), proxy.told().reports.len());
    let enough = |told: &Told| told.reports.len() >= before + more;
    proxy.wait_for("more reports", enough).await;
    began.elapsed()
}

async fn status_until(state_dir: &Path, fact: impl Fn(&Status) -> bool) -> Status {
    let reached = timeout(PATIENCE, async {
        loop {
            let status = status::ask(state_dir).await.expect("a status");
            if fact(&status) {
                break status;
            }
            tokio::task::yield_now().await;
        }
    });
    reached.await.expect("the status comes to that")
}

fn found<'c>(checks: &'c [Check], what: &str) -> &'c Check {
    let mut checks = checks.iter();
    let found = checks.find(|check| check.what == what);
    found.unwrap_or_else(|| panic!("nothing is said of {what}"))
}

#[tokio::test]
async fn a_hub_that_lost_its_session_hears_of_its_node_without_a_registration() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::with(quick(folder.path()), Some(proxy.link()));
    proxy.wait_for("a report", has_reported).await;
    proxy.restart_hub_with_its_node().await;
    let took = more_reports(&proxy, 1).await;
    let registrations = proxy.told().wireguard_keys.len();
    assert_eq!(
        registrations, 1,
        "the session came back by itself, {took:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn two_lost_reports_force_a_handshake_before_a_registration_is_tried() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::with(quick(folder.path()), Some(proxy.link()));
    proxy.wait_for("a report", has_reported).await;
    proxy.mute_reports();
    let renewed = timeout(PATIENCE, async {
        let mut before = proxy.session_age().expect("a session");
        loop {
            tokio::task::yield_now().await;
            // For a moment there may be none, and a beginning may take two.
            let age = proxy.session_age().unwrap_or(before);
            if age + Duration::from_secs(3) < before {
                break before;
            }
            before = age;
        }
    });
    let age = renewed.await.expect("a handshake");
    let registrations = proxy.told().wireguard_keys.len();
    assert_eq!(registrations, 1, "a registration comes later: {age:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_draining_proxy_hears_of_its_node_every_second() {
    let proxy = FakeProxy::start().await;
    proxy.drain();
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::with(quick(folder.path()), Some(proxy.link()));
    proxy.wait_for("a report", has_reported).await;
    let took = more_reports(&proxy, 4).await;
    assert!(took < Duration::from_secs(15), "{took:?} and not minutes");
    agent.stop().await;
}

#[tokio::test]
async fn while_a_proxy_owes_an_answer_about_a_new_key_reports_go_on() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let mut settings = quick(folder.path());
    settings.node.rekey = Duration::from_secs(1);
    let agent = Agent::with(settings, Some(proxy.link()));
    proxy.wait_for("a report", has_reported).await;
    proxy.https(Https::Stalled);
    let is_stalled = |told: &Told| told.put_off > 0;
    proxy.wait_for("a registration", is_stalled).await;
    let took = more_reports(&proxy, 4).await;
    // A node that is silent for nine seconds is taken out of the table.
    assert!(took < Duration::from_secs(8), "{took:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_new_key_that_the_proxy_cannot_take_now_is_tried_again_and_the_node_is_not_lost() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let mut settings = quick(folder.path());
    (settings.node.rekey, settings.node.refused_retry) =
        (Duration::from_secs(1), Duration::from_secs(1));
    let agent = Agent::with(settings, Some(proxy.link()));
    proxy.wait_for("a report", has_reported).await;
    proxy.https(Https::Away);
    for times in 1..=3 {
        let is_put_off = |told: &Told| told.put_off >= times;
        proxy.wait_for("a registration", is_put_off).await;
        let status = status::ask(folder.path()).await.expect("a status");
        assert_eq!(
            (status.standing.as_str(), status.reason),
            ("connected", None)
        );
    }
    let before = proxy.told().wireguard_keys.len();
    proxy.https(Https::Well);
    let is_renewed = |told: &Told| told.wireguard_keys.len() > before;
    let keys = proxy.wait_for("a new key", is_renewed).await.wireguard_keys;
    assert_ne!(keys.first(), keys.last());
    more_reports(&proxy, 2).await;
    agent.stop().await;
}

#[tokio::test]
async fn the_hub_reaches_the_agents_port_and_no_other() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::with(quick(folder.path()), Some(proxy.link()));
    proxy.wait_for("a report", has_reported).await;
    assert!(proxy.connect(8080).await.is_ok());
    for port in [22, 80, 8090, 9000] {
        let refused = timeout(PATIENCE * 2, proxy.connect(port)).await;
        assert!(refused.expect("in time").is_err(), "port {port} is open");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_proxy_joined_by_its_address_and_known_by_a_name_has_one_line() {
    let proxy = FakeProxy::start().await;
    proxy.tell_of("one", vec![proxy.place("localhost", "one")]);
    let folder = tempfile::tempdir().expect("folder");
    let mut link = Some(proxy.link());
    for starts in 1..=2 {
        let agent = Agent::with(quick(folder.path()), link.take());
        let enough = |told: &Told| told.wireguard_keys.len() >= starts;
        proxy.wait_for("a registration", enough).await;
        more_reports(&proxy, 4).await;
        let status = status::ask(folder.path()).await.expect("a status");
        assert_eq!(status.proxies.len(), 1, "{:?}", status.proxies);
        agent.stop().await;
        let keys = proxy.told().wireguard_keys.len();
        assert_eq!(keys, starts, "one registration each start");
    }
    let kept = std::fs::read_to_string(folder.path().join("hubs.json")).expect("is kept");
    assert!(
        kept.contains("localhost") && !kept.contains("\"one\""),
        "{kept}"
    );
}

#[tokio::test]
async fn a_node_of_two_proxies_is_well_while_the_one_joined_answers_no_https() {
    let (near, other) = (FakeProxy::start().await, FakeProxy::start().await);
    let house = vec![
        near.place("127.0.0.1", "near"),
        other.place("127.0.0.1", "other"),
    ];
    near.tell_of("near", house.clone());
    other.tell_of("other", house);
    let folder = tempfile::tempdir().expect("folder");
    let settings = quick(folder.path());
    let agent = Agent::with(settings.clone(), Some(near.link()));
    let told = near.wait_for("a report", has_reported).await;
    other.know(told.identity.expect("enrolled"));
    let both = |status: &Status| {
        let connected = |proxy: &&status::ProxyStatus| proxy.standing == "connected";
        status.proxies.iter().filter(connected).count() == 2
    };
    status_until(folder.path(), both).await;
    near.stop_https();
    let checks = timeout(PATIENCE, doctor::examine(&settings)).await;
    let checks = checks.expect("in time");
    let agent_at = checks.iter().position(|check| check.what == "agent");
    let https_at = checks.iter().position(|check| check.what == "https");
    assert!(agent_at < https_at, "the agent is asked first: {checks:?}");
    let https = found(&checks, "https");
    assert_eq!(https.verdict, Verdict::Warn, "{https}");
    assert!(https.said.contains("another proxy"), "{https}");
    near.stop_hub().await;
    let only_other = |status: &Status| {
        let mut proxies = status.proxies.iter();
        proxies.any(|proxy| proxy.standing == "lost" && proxy.silence_secs().is_some())
    };
    status_until(folder.path(), only_other).await;
    let checks = timeout(PATIENCE, doctor::examine(&settings)).await;
    let failed = |check: &Check| check.verdict == Verdict::Fail;
    let failed: Vec<Check> = checks
        .expect("in time")
        .into_iter()
        .filter(failed)
        .collect();
    assert!(failed.is_empty(), "one of two is enough: {failed:?}");
    agent.stop().await;
}

#[tokio::test]
async fn the_doctor_leaves_an_agent_alone_that_runs_and_does_not_answer() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let settings = quick(folder.path());
    let agent = Agent::with(settings.clone(), Some(proxy.link()));
    proxy.wait_for("a report", has_reported).await;
    status_until(folder.path(), |_| true).await;
    std::fs::remove_file(folder.path().join("agent.sock")).expect("it has one");
    let checks = timeout(PATIENCE, doctor::examine(&settings)).await;
    let checks = checks.expect("in time");
    let found = found(&checks, "agent");
    assert_eq!(found.verdict, Verdict::Fail, "{found}");
    assert!(
        found.said.contains("runs") && found.said.contains("does not answer"),
        "{found}"
    );
    let registrations = proxy.told().wireguard_keys.len();
    assert_eq!(registrations, 1, "it would cut what runs");
    agent.stop().await;
}
