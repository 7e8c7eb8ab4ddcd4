//! `doctor`: looks at everything between a client and an answer, in the order in which it is needed, and says for each thing what is wrong
//! and what to do; last it asks one real question, as a stranger with a key would. Changes nothing but that key, which it takes back.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use config::checkup::{Check, Verdict};
use config::settings::proxy::{IssuerKeys, Server, Settings, Store};
use config::wire::routing::{Routing, Timing};
use http::Method;
use serde_json::{Value, json};

use super::args::Output;
use super::reach::Reach;
use super::{CliError, print};
use crate::admin::client::{AdminClient, ClientError};
use crate::admin::words::{KeyMade, KeyOrder, KeyView, NodeView, Status};
use crate::auth;
use crate::front::tls::Certificates;
use crate::nodes::hubs::name;

/// One look over HTTPS.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// One answer: a model may have to be loaded first.
const ANSWER_MAX: Duration = Duration::from_mins(2);
/// The key of the question lives no longer than that, whatever becomes of this process.
const KEY_SECS: u64 = 180;
/// A certificate that ends sooner should have been renewed.
const CERTIFICATE_DAYS_WARN: i64 = 14;
const DAY_SECS: i64 = 86_400;
/// People wait for the first word no longer than that before they wonder.
const FIRST_WORD_WARN_MS: u64 = 3_000;
/// More than that is no clean line.
const LOSS_WARN_PERCENT: f64 = 5.0;
const MACHINES_SHOWN: usize = 20;

pub(super) async fn run(file: Option<&Path>, output: Output) -> Result<(), CliError> {
    let settings = super::settings(file)?;
    let checks = examined(file, &settings).await;
    if output == Output::Json {
        print::json(&checks)?;
    } else {
        checks
            .iter()
            .try_for_each(|check| print::line(&check.to_string()))?;
    }
    match checks
        .iter()
        .filter(|check| check.verdict == Verdict::Fail)
        .count()
    {
        0 => Ok(()),
        1 => Err(CliError::Failed("one check failed".into())),
        failed => Err(CliError::Failed(format!("{failed} checks failed"))),
    }
}

/// Looks at everything; stops where nothing behind can work.
async fn examined(file: Option<&Path>, settings: &Settings) -> Vec<Check> {
    let named = file.map_or_else(
        || "the defaults".to_owned(),
        |file| file.display().to_string(),
    );
    let mut checks = vec![Check::new(
        "settings",
        Verdict::Ok,
        format!("{named}: fine"),
    )];
    checks.extend(known_as(&settings.server));
    let mut reach = None;
    match AdminClient::connect(&settings.server.state_dir).await {
        Ok(proxy) => reach = Some(Reach::Running(proxy)),
        Err(ClientError::NotRunning(_)) => checks.push(Check::new(
            "proxy",
            Verdict::Fail,
            "does not run: start it with `hearth-proxy serve`; if it should run, its log says why not (`journalctl -u hearth-proxy`)",
        )),
        Err(error) => checks.push(Check::new("proxy", Verdict::Fail, error.to_string())),
    }
    if let Some(reach) = &mut reach {
        checks.extend(proxy(reach, settings).await);
    }
    for issuer in &settings.auth.issuers {
        checks.push(keys(issuer).await);
    }
    let Some(mut reach) = reach else {
        return checks;
    };
    let (https, client) = https(settings).await;
    checks.push(https);
    let machines: Result<Vec<NodeView>, CliError> = reach.all("/admin/v1/nodes").await;
    let can_answer = match machines {
        Ok(machines) => {
            checks.extend(machines_of(&machines));
            machines.iter().any(can_answer)
        }
        Err(error) => {
            checks.push(Check::new("machines", Verdict::Fail, error.to_string()));
            false
        }
    };
    if let (Some(client), true) = (client, can_answer) {
        checks.push(answer(&mut reach, (&client, settings)).await);
    }
    checks
}

/// Whether machines elsewhere can use the proxy's address; silent if they can.
fn known_as(server: &Server) -> Option<Check> {
    let warning = name::warning(server)?;
    Some(Check::new("address", Verdict::Warn, warning))
}

/// How the running proxy sees itself, and its store.
async fn proxy(reach: &mut Reach, settings: &Settings) -> Vec<Check> {
    let status: Status = match reach.get("/admin/v1/status").await {
        Ok(status) => status,
        Err(error) => return vec![Check::new("proxy", Verdict::Fail, error.to_string())],
    };
    let running = match status.failing.as_slice() {
        [] => Check::new(
            "proxy",
            Verdict::Ok,
            format!("{} runs and is ready", status.version),
        ),
        failing => {
            let said = format!(
                "{} runs and is not ready: {}",
                status.version,
                failing.join(", ")
            );
            Check::new("proxy", Verdict::Warn, said)
        }
    };
    let kind = match &settings.store {
        Store::Embedded => "embedded",
        Store::Redis { .. } => "Redis",
    };
    let store = if status.store == "ok" {
        Check::new(
            "store",
            Verdict::Ok,
            format!("{kind}, answers; keys: {}", status.keys),
        )
    } else {
        let said = format!(
            "{kind}: {}; see [store] in the settings and `on_failure`",
            status.store
        );
        Check::new("store", Verdict::Fail, said)
    };
    let mut checks = vec![running, store];
    for burst in status.bursts.iter().filter(|burst| burst.stop_failures > 0) {
        let said = format!(
            "could not be stopped ({} tries) and costs money: stop it yourself, and look at its stop hook",
            burst.stop_failures
        );
        checks.push(Check::new(burst.name.clone(), Verdict::Fail, said));
    }
    checks
}

async fn keys(issuer: &config::settings::proxy::Issuer) -> Check {
    let name = &issuer.issuer;
    match auth::keys_of(issuer).await {
        Ok(0) => Check::new(
            "issuer",
            Verdict::Fail,
            format!(
                "{name} has no key of the algorithms allowed ({})",
                issuer.algorithms.join(", ")
            ),
        ),
        Ok(count) => Check::new("issuer", Verdict::Ok, format!("{name}: {count} keys")),
        Err(why) => {
            let source = match &issuer.keys {
                IssuerKeys::Discovery => "its discovery document",
                IssuerKeys::Url(_) => "jwks_url",
                IssuerKeys::File(_) => "jwks_file",
            };
            let said = format!("{name}: {why}; nobody can sign in with it until {source} answers");
            Check::new("issuer", Verdict::Fail, said)
        }
    }
}

/// Whether clients find the proxy at its public address, and a client that does.
async fn https(settings: &Settings) -> (Check, Option<reqwest::Client>) {
    let url = &settings.server.public_url;
    let certificate = match Certificates::from_settings(&settings.tls, &settings.server.state_dir) {
        Ok(certificate) => certificate,
        Err(error) => return (Check::new("https", Verdict::Fail, error.to_string()), None),
    };
    let is_own = certificate.pin().is_some();
    let (days, note) = lasts(&certificate, is_own);
    let public = client(url, is_own, None);
    let took = match &public {
        Ok(client) => look(client, url).await,
        Err(error) => Err(error.clone()),
    };
    match took {
        Ok(took) => {
            let verdict = if days.is_some_and(|days| days < CERTIFICATE_DAYS_WARN) {
                Verdict::Warn
            } else {
                Verdict::Ok
            };
            let said = format!("{url} answers in {} ms; {note}", took.as_millis());
            (Check::new("https", verdict, said), public.ok())
        }
        Err(why) => {
            let said = format!("{url} does not answer from here: {why}");
            at_home(settings, (is_own, said)).await
        }
    }
}

/// The same without the way through the public network: whether the proxy itself is at fault.
async fn at_home(
    settings: &Settings,
    (is_own, said): (bool, String),
) -> (Check, Option<reqwest::Client>) {
    let url = &settings.server.public_url;
    let listen = settings.server.listen.first().map(|listen| {
        let ip = if listen.ip().is_unspecified() {
            IpAddr::from([127, 0, 0, 1])
        } else {
            listen.ip()
        };
        SocketAddr::new(ip, listen.port())
    });
    let here = client(url, is_own, listen);
    if let (Ok(client), Some(listen)) = (&here, listen)
        && look(client, url).await.is_ok()
    {
        let said = format!(
            "{said}; the proxy answers at {listen}: check the name's DNS, the port ([server] public_url) and the firewall. Some routers do not let their own network in by the public address; try from elsewhere"
        );
        return (Check::new("https", Verdict::Warn, said), here.ok());
    }
    let said = format!("{said}; nor at [server] listen: the proxy's log says why");
    (Check::new("https", Verdict::Fail, said), None)
}

/// How long the certificate lasts, days, and a word about it.
fn lasts(certificate: &Certificates, is_own: bool) -> (Option<i64>, String) {
    let now = crate::admin::server::now_unix_ms() / 1_000;
    let expires = certificate.expires_unix();
    let days = expires.map(|at| (at - i64::try_from(now).unwrap_or(i64::MAX)) / DAY_SECS);
    let lasts = days.map_or_else(String::new, |days| format!(" for {days} days"));
    let note = match (is_own, days) {
        (true, _) => {
            format!("its own certificate{lasts}: machines pin it, browsers warn; see [tls]")
        }
        (false, Some(days)) if days < CERTIFICATE_DAYS_WARN => {
            format!(
                "its certificate ends in {days} days: renew it, then `systemctl reload hearth-proxy`"
            )
        }
        (false, _) => format!("certificate good{lasts}"),
    };
    (days, note)
}

/// A client of the public address; `to`: wherever that name leads.
fn client(url: &str, is_own: bool, to: Option<SocketAddr>) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(LOOK_MAX)
        .timeout(ANSWER_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        // It is ours: whoever has another one behind this address is seen by machines, which pin it.
        .tls_danger_accept_invalid_certs(is_own);
    let host = reqwest::Url::parse(url).ok();
    let host = host.as_ref().and_then(|url| url.host_str());
    if let (Some(host), Some(to)) = (host, to) {
        builder = builder.resolve(host, to);
    }
    builder.build().map_err(|error| error.to_string())
}

async fn look(client: &reqwest::Client, url: &str) -> Result<Duration, String> {
    let began = Instant::now();
    let asked = client
        .get(format!("{url}/healthz"))
        .timeout(LOOK_MAX)
        .send();
    let answer = asked.await.map_err(|error| causes(&error))?;
    if answer.status() == reqwest::StatusCode::OK {
        return Ok(began.elapsed());
    }
    Err(format!(
        "it answers {}, so somebody else may be there",
        answer.status()
    ))
}

/// An error with what is behind it: the outer one alone says nothing.
fn causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        said = format!("{said}: {cause}");
        next = cause.source();
    }
    said
}

/// A line for each machine, those that need somebody first.
fn machines_of(machines: &[NodeView]) -> Vec<Check> {
    let mut lines: Vec<Check> = machines
        .iter()
        .filter(|machine| machine.state != "revoked")
        .map(machine)
        .collect();
    if lines.is_empty() {
        return vec![Check::new(
            "machines",
            Verdict::Fail,
            "none has joined: `hearth-proxy node invite` prints a link, `hearth-node join LINK` at home takes it",
        )];
    }
    lines.sort_by_key(|line| std::cmp::Reverse(line.verdict));
    let more = lines.len().saturating_sub(MACHINES_SHOWN);
    lines.truncate(MACHINES_SHOWN);
    if more > 0 {
        let said = format!("and {more} more like these: `hearth-proxy node list` has all");
        lines.push(Check::new("machines", Verdict::Ok, said));
    }
    lines
}

fn machine(machine: &NodeView) -> Check {
    let name = machine.name.clone();
    if machine.state == "pending" {
        let said = format!(
            "waits to be let in: compare its six words ({}), then `hearth-proxy node approve {name}`",
            machine.fingerprint
        );
        return Check::new(name, Verdict::Warn, said);
    }
    let Some(now) = &machine.now else {
        let said = "is not there: on that machine `hearth-node doctor` says why";
        return Check::new(name, Verdict::Fail, said);
    };
    let tiers = now.tiers.join(", ");
    if now.asleep {
        return Check::new(
            name,
            Verdict::Ok,
            "sleeps, and is woken by whoever needs it",
        );
    }
    if !can_answer(machine) {
        return Check::new(
            name,
            Verdict::Fail,
            format!("has no tier that is ready: {tiers}"),
        );
    }
    if machine.draining {
        let said = format!("takes no new work (`hearth-proxy node undrain {name}`): {tiers}");
        return Check::new(name, Verdict::Warn, said);
    }
    let Some(tunnel) = &machine.tunnel else {
        return Check::new(name, Verdict::Ok, tiers);
    };
    let trip = tunnel
        .round_trip_ms
        .map_or_else(String::new, |ms| format!(", {ms:.1} ms there and back"));
    let lost = tunnel.loss_percent.unwrap_or_default();
    if lost > LOSS_WARN_PERCENT {
        let said = format!(
            "{}{trip}, loses {lost:.0} % of its packets; {tiers}",
            tunnel.carrier
        );
        return Check::new(name, Verdict::Warn, said);
    }
    Check::new(
        name,
        Verdict::Ok,
        format!("{}{trip}; {tiers}", tunnel.carrier),
    )
}

/// Whether one of its tiers says that it is ready, or sleeps until it is wanted.
fn can_answer(machine: &NodeView) -> bool {
    let words = |tier: &String| tier.split(' ').nth(1).map(str::to_owned);
    let tiers = machine.now.iter().flat_map(|now| now.tiers.iter());
    let mut states = tiers.filter_map(words);
    states.any(|state| state == "ready" || state == "sleeping")
}

/// One question over the public way, with a key that nobody else has.
async fn answer(reach: &mut Reach, (client, settings): (&reqwest::Client, &Settings)) -> Check {
    let order = KeyOrder {
        name: "doctor".to_owned(),
        expires_secs: Some(KEY_SECS),
        ..KeyOrder::default()
    };
    let made: KeyMade = match reach.create("/admin/v1/keys", &order, None).await {
        Ok(made) => made,
        Err(error) => return Check::new("answer", Verdict::Fail, format!("no key: {error}")),
    };
    let asked = ask(client, (&settings.server.public_url, &made.key)).await;
    let path = format!("/admin/v1/keys/{}", made.record.id);
    let taken: Result<KeyView, CliError> = reach.send(Method::DELETE, &path, None::<&()>).await;
    if let Err(error) = taken {
        tracing::debug!(%error, "the key of the question ends by itself");
    }
    match asked {
        Ok(routing) => answered(&routing),
        Err(why) => Check::new("answer", Verdict::Fail, why),
    }
}

async fn ask(client: &reqwest::Client, (url, key): (&str, &str)) -> Result<Routing, String> {
    let body = json!({
        "model": "auto",
        "messages": [{"role": "user", "content": "Say one word."}],
        "max_tokens": 8,
        "temperature": 0,
    });
    let asked = client
        .post(format!("{url}/v1/chat/completions"))
        .bearer_auth(key)
        .json(&body)
        .send();
    let answer = asked.await.map_err(|error| causes(&error))?;
    let status = answer.status();
    let body: Value = answer.json().await.map_err(|error| causes(&error))?;
    if status != reqwest::StatusCode::OK {
        let why = body["error"]["message"]
            .as_str()
            .unwrap_or("without a reason");
        return Err(format!("a question is answered with {status}: {why}"));
    }
    let routing = body["_routing"].clone();
    serde_json::from_value(routing).map_err(|error| format!("an answer without _routing: {error}"))
}

fn answered(routing: &Routing) -> Check {
    let took = routing.ttft_ms.unwrap_or(routing.latency_ms);
    let timing = routing.timing.unwrap_or_default();
    let Timing {
        edge_ms,
        wake_ms,
        tunnel_ms,
        queue_ms,
        prefill_ms,
        decode_ms,
        cold: _,
    } = timing;
    let said = format!(
        "{} on {} said {} tokens in {} ms, the first after {took} ms: edge {edge_ms:.0}, waking {wake_ms:.0}, tunnel {tunnel_ms:.0}, queue {queue_ms:.0}, reading {prefill_ms:.0}, writing {decode_ms:.0}",
        routing.model, routing.node, routing.tokens, routing.latency_ms
    );
    let verdict = if took > FIRST_WORD_WARN_MS && !timing.cold {
        Verdict::Warn
    } else {
        Verdict::Ok
    };
    Check::new("answer", verdict, said)
}

#[cfg(test)]
mod tests {
    use config::ids::NodeId;
    use config::settings::load::{Machine, Outside, parse_proxy};

    use super::*;
    use crate::admin::words::NodeNow;

    fn view(state: &str, tiers: &[&str]) -> NodeView {
        let now = NodeNow {
            id: NodeId::new("node_den"),
            seen_secs_ago: 1,
            asleep: false,
            outside: false,
            tiers: tiers.iter().map(|&tier| tier.to_owned()).collect(),
        };
        NodeView {
            name: "den".to_owned(),
            state: state.to_owned(),
            fingerprint: "six words".to_owned(),
            ..NodeView::outside(now)
        }
    }

    #[test]
    fn a_proxy_that_others_cannot_find_under_its_own_address_is_told() {
        let outside = Outside {
            variables: std::collections::BTreeMap::new(),
            read: &|_| Err(std::io::ErrorKind::NotFound.into()),
            machine: Machine::this(),
        };
        let line = |text: &str| {
            let settings = parse_proxy("test", text, &outside).unwrap();
            known_as(&settings.server)
        };
        let line_of_defaults = line("").expect("a line");
        assert_eq!(line_of_defaults.verdict, Verdict::Warn);
        assert!(line_of_defaults.said.contains("public_url"));
        let quickstart = "[server]\nlisten = [\"127.0.0.1:8443\"]\n";
        assert!(line(quickstart).is_none(), "one machine alone");
    }

    #[test]
    fn each_machine_has_a_line_that_says_what_to_do() {
        let ready = view("approved", &["fast ready tiny-fast 0/4"]);
        let absent = NodeView {
            now: None,
            ..view("approved", &[])
        };
        let drained = NodeView {
            draining: true,
            ..ready.clone()
        };
        for (view, verdict, says) in [
            (ready, Verdict::Ok, "tiny-fast"),
            (absent, Verdict::Fail, "hearth-node doctor"),
            (drained, Verdict::Warn, "undrain den"),
            (view("pending", &[]), Verdict::Warn, "node approve den"),
            (
                view("approved", &["fast down - 0/0 (no such file)"]),
                Verdict::Fail,
                "no such file",
            ),
        ] {
            let line = machine(&view);
            assert_eq!(line.verdict, verdict, "{line}");
            assert!(line.said.contains(says), "{line}");
        }
    }

    #[test]
    fn a_house_without_machines_is_told_how_one_joins_and_a_large_one_is_cut_short() {
        let revoked = view("revoked", &[]);
        let lines = machines_of(&[revoked]);
        assert_eq!((lines.len(), lines[0].verdict), (1, Verdict::Fail));
        assert!(lines[0].said.contains("node invite"), "{}", lines[0]);

        let mut many = vec![view("approved", &["fast ready m 0/1"]); 40];
        many[39].now = None;
        let lines = machines_of(&many);
        assert_eq!(lines.len(), MACHINES_SHOWN + 1);
        assert_eq!(lines[0].verdict, Verdict::Fail, "trouble comes first");
    }
}
