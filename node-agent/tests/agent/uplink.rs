//! Joining, dialling in, answering through the tunnel, and coming back.

use std::path::Path;
use std::time::Duration;

use config::settings::node::{Node as NodeSettings, Settings, Wake};
use config::settings::proxy::{Log, LogFormat};
use config::tier::Tier;
use config::wire::node::TierState;
use config::wire::sse::{Decoder, Event};
use http_body_util::BodyExt;
use node_agent::app::{self, AppError, Signals};
use node_agent::hub::HubError;
use node_agent::identity::{Identity, Member};
use node_agent::join::{self, JoinError, JoinLink};
use node_agent::status;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::fake_proxy::{FakeProxy, Https, NODE, Told};
use crate::support::{PATIENCE, chunks, content, launcher, post, scripted, tiny_fast};

pub(crate) fn settings(state_dir: &Path) -> Settings {
    Settings {
        node: NodeSettings {
            name: "den".to_owned(),
            state_dir: state_dir.to_owned(),
            bind: "127.0.0.1:0".parse().expect("an address"),
            admin_listen: None,
            api_listen: None,
            memory_max: None,
            grace: Duration::from_secs(10),
            rekey: Duration::from_hours(24),
            carrier: true,
            mtu_max: 1_440,
            backend: config::settings::proxy::Backend::default(),
            refused_retry: Duration::from_mins(1),
            watts: None,
            metrics_compat: Vec::new(),
            wake: Wake::default(),
        },
        tiers: vec![tiny_fast()],
        log: Log {
            filter: "warn".to_owned(),
            format: LogFormat::Text,
        },
    }
}

/// A running agent.
pub(crate) struct Agent {
    stop: CancellationToken,
    task: JoinHandle<Result<(), AppError>>,
}

impl Agent {
    pub(crate) fn run(state_dir: &Path, link: Option<String>) -> Self {
        Self::with(settings(state_dir), link)
    }

    pub(crate) fn with(settings: Settings, link: Option<String>) -> Self {
        let stop = CancellationToken::new();
        let link = link.map(|link| JoinLink::parse(&link).expect("a link"));
        let task = tokio::spawn(app::run(
            settings,
            link,
            launcher(),
            Signals::only(stop.clone()),
        ));
        Self { stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let ended = timeout(PATIENCE, self.task).await.expect("stops in time");
        ended.expect("does not panic").expect("ends well");
    }
}

/// An agent whose model says `say`, a token each 20 ms.
fn run_scripted(state_dir: &Path, link: &str, say: &str, grace: Duration) -> Agent {
    let mut settings = settings(state_dir);
    settings.tiers = vec![scripted(Tier::Fast, &json!({"say": say, "step_ms": 20}))];
    settings.node.grace = grace;
    Agent::with(settings, Some(link.to_owned()))
}

fn is_ready(told: &Told) -> bool {
    let ready = |report: &config::wire::node::Report| report.tiers[0].state == TierState::Ready;
    told.reports.last().is_some_and(ready)
}

fn hello(stream: bool) -> serde_json::Value {
    json!({"model": "auto", "temperature": 0, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]})
}

#[tokio::test]
async fn a_node_joins_dials_in_and_answers_through_the_tunnel_until_it_is_stopped() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::run(folder.path(), Some(proxy.link()));
    let told = proxy.wait_for("the tier is ready", is_ready).await;
    let report = told.reports.last().expect("a report");
    assert_eq!(report.node_id.as_str(), NODE);
    assert_eq!(
        report.tiers[0]
            .model
            .as_ref()
            .map(|model| model.id.as_str()),
        Some("tiny-fast")
    );
    let hashed = |told: &Told| {
        let model = told
            .reports
            .last()
            .and_then(|report| report.tiers[0].model.clone());
        model.is_some_and(|model| model.file_sha256.len() == 64)
    };
    proxy.wait_for("the hash of the model", hashed).await;

    let mut client = proxy.dial().await;
    let answer = client.chat(&hello(false)).await;
    assert_eq!(
        answer.text(),
        "Hello! How can I help you today?",
        "{}",
        answer.json
    );
    assert!(
        answer.json["system_fingerprint"]
            .as_str()
            .is_some_and(|text| text.starts_with("fp_"))
    );
    let events = client.stream("/v1/chat/completions", &hello(true)).await;
    assert_eq!(content(&chunks(&events)), answer.text());

    let status = status::ask(folder.path()).await.expect("a status");
    assert_eq!(
        (status.standing.as_str(), status.node_id.as_str()),
        ("connected", NODE)
    );

    agent.stop().await;
    let last = proxy.told().reports.pop().expect("reports");
    assert!(last.draining, "the proxy was told");
    assert!(
        status::ask(folder.path()).await.is_err(),
        "nobody answers any more"
    );
}

/// The events of a stream that is cut by the end of the agent.
async fn stream_over_the_end(proxy: &FakeProxy, agent: Agent) -> Vec<Event> {
    let mut client = proxy.dial().await;
    let response = client
        .send(post("/v1/chat/completions", &hello(true)))
        .await;
    let stopping = tokio::spawn(agent.stop());
    let body = timeout(PATIENCE, response.into_body().collect()).await;
    let body = body.expect("in time").expect("a whole body").to_bytes();
    stopping.await.expect("stops");
    let mut events = Vec::new();
    Decoder::default()
        .push(&body, &mut events)
        .expect("valid SSE");
    events
}

#[tokio::test]
async fn a_running_stream_finishes_within_the_grace() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let say = "a rather long answer that takes about a second";
    let agent = run_scripted(folder.path(), &proxy.link(), say, PATIENCE);
    proxy.wait_for("the tier is ready", is_ready).await;
    let events = stream_over_the_end(&proxy, agent).await;
    assert_eq!(content(&chunks(&events)), say);
}

#[tokio::test]
async fn a_stream_longer_than_the_grace_ends_with_an_error_event() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = run_scripted(
        folder.path(),
        &proxy.link(),
        &"x".repeat(4_000),
        Duration::ZERO,
    );
    proxy.wait_for("the tier is ready", is_ready).await;
    let events = stream_over_the_end(&proxy, agent).await;
    let last = events.last().expect("events");
    assert!(last.data.contains("tier_unavailable"), "{last:?}");
}

#[tokio::test]
async fn a_restarted_node_keeps_its_identity_and_takes_a_new_key() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::run(folder.path(), Some(proxy.link()));
    proxy
        .wait_for("a report", |told| !told.reports.is_empty())
        .await;
    agent.stop().await;
    let before = proxy.told();

    let agent = Agent::run(folder.path(), None);
    let count = before.reports.len();
    let after = proxy
        .wait_for("a report of the new start", |told| {
            told.reports.len() > count
        })
        .await;
    assert_eq!(after.identity, before.identity);
    let [first, second] = after.wireguard_keys.as_slice() else {
        panic!("one registration a start: {:?}", after.wireguard_keys);
    };
    assert_ne!(first, second);
    agent.stop().await;
}

#[tokio::test]
async fn a_node_comes_back_when_the_proxy_restarts() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::run(folder.path(), Some(proxy.link()));
    proxy.wait_for("the tier is ready", is_ready).await;
    proxy.restart_hub().await;
    let restarted = Instant::now();
    let count = proxy.told().reports.len();
    proxy
        .wait_for("a report after the restart", |told| {
            told.reports.len() > count
        })
        .await;
    assert!(
        restarted.elapsed() < Duration::from_secs(15),
        "took {:?}",
        restarted.elapsed()
    );
    let answer = proxy.dial().await.chat(&hello(false)).await;
    assert_eq!(answer.text(), "Hello! How can I help you today?");
    agent.stop().await;
}

#[tokio::test]
async fn a_node_that_the_hub_forgot_registers_again() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::run(folder.path(), Some(proxy.link()));
    proxy
        .wait_for("a report", |told| !told.reports.is_empty())
        .await;
    proxy.forget_registration();
    proxy
        .wait_for("a second registration", |told| {
            told.wireguard_keys.len() == 2
        })
        .await;
    let count = proxy.told().reports.len();
    proxy
        .wait_for("a report", |told| told.reports.len() > count)
        .await;
    let keys = proxy.told().wireguard_keys;
    assert_eq!(keys[0], keys[1], "the session was repaired, not replaced");
    agent.stop().await;
}

#[tokio::test]
async fn a_node_registers_again_after_ten_seconds_of_silence() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::run(folder.path(), Some(proxy.link()));
    proxy
        .wait_for("a report", |told| !told.reports.is_empty())
        .await;
    proxy.stop_hub().await;
    proxy
        .wait_for("a second registration", |told| {
            told.wireguard_keys.len() >= 2
        })
        .await;
    proxy.start_hub().await;
    let count = proxy.told().reports.len();
    proxy
        .wait_for("a report", |told| told.reports.len() > count)
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_revoked_node_says_so_once_and_stops_cleanly() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let agent = Agent::run(folder.path(), Some(proxy.link()));
    proxy
        .wait_for("a report", |told| !told.reports.is_empty())
        .await;
    proxy.refuse(Some("node_revoked"));
    proxy.forget_registration();
    let refused = timeout(PATIENCE, async {
        loop {
            let status = status::ask(folder.path()).await.expect("a status");
            if status.standing == "refused" {
                break status;
            }
            tokio::task::yield_now().await;
        }
    });
    let status = refused.await.expect("is refused");
    assert!(
        status
            .reason
            .is_some_and(|reason| reason.contains("revoked"))
    );
    agent.stop().await;
}

async fn join_once(link: &str, state_dir: &Path) -> Result<Member, JoinError> {
    let identity = Identity::open(state_dir).expect("an identity");
    let link = JoinLink::parse(link).expect("a link");
    let joined = join::join(&link, &identity, "den", state_dir).await?;
    Ok(joined.member)
}

#[tokio::test]
async fn joining_twice_is_joining_once_and_every_refusal_has_its_words() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let first = join_once(&proxy.link(), folder.path())
        .await
        .expect("joins");
    let again = join_once(&proxy.link(), folder.path())
        .await
        .expect("joins again");
    assert_eq!(first, again);
    assert_eq!(Member::load(folder.path()).expect("reads"), Some(first));
    for (code, want) in [
        ("join_token_used", "used already"),
        ("join_token_expired", "expired"),
        ("join_token_unknown", "does not know this join link"),
        ("join_token_malformed", "damaged"),
        ("something_new", "something_new"),
    ] {
        proxy.refuse(Some(code));
        let error = join_once(&proxy.link(), folder.path())
            .await
            .expect_err("refused");
        assert!(error.to_string().contains(want), "{code}: {error}");
    }
    proxy.https(Https::Away);
    let error = join_once(&proxy.link(), folder.path()).await;
    let error = error.expect_err("refused").to_string();
    assert!(
        error.contains("the store is away (store_away)"),
        "its own sentence: {error}"
    );
}

#[tokio::test]
async fn only_the_pinned_key_is_trusted() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let other = proxy.link_with("sha256-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
    let error = join_once(&other, folder.path()).await.expect_err("refused");
    assert!(
        matches!(error, JoinError::Hub(HubError::WrongKey { .. })),
        "{error}"
    );
    let link = proxy.link();
    let unpinned = link.split('&').next().expect("a link");
    let error = join_once(unpinned, folder.path())
        .await
        .expect_err("refused");
    assert!(
        matches!(error, JoinError::Hub(HubError::Untrusted { .. })),
        "{error}"
    );
    assert_eq!(Member::load(folder.path()).expect("no file"), None);
    assert!(proxy.told().identity.is_none(), "the token never left");
}
