//! The proxy's sections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::limits::{limits, prices};
use super::remote::remotes;
use super::store::store;
use super::tls::tls;
use super::{is_host, issuer, log, origin_host, split_port, url_of_listener};
use crate::settings::classifier::{Classifier, Weights};
use crate::settings::proxy::{
    Approve, Auth, Backend, Hedge, Issuer, Plan, Routing, Server, Settings, Tunnel, Usage,
    WakePatience,
};
use crate::settings::read::{Loopback, Section};
use crate::tier::Tier;

const SOCKET: &str = "an address with port such as 0.0.0.0:8443 or [::]:8443";
pub(super) const BACKENDS: [(&str, Backend); 3] = [
    ("auto", Backend::Auto),
    ("netns", Backend::Netns),
    ("embedded", Backend::Embedded),
];
const APPROVES: [(&str, Approve); 2] = [("auto", Approve::Auto), ("manual", Approve::Manual)];
const YEAR_SECS: u64 = 366 * 86_400;

/// Everything. Missing and wrong values are noted in the document; what comes back then is not used.
pub(in crate::settings) fn settings(mut root: Section<'_>) -> Settings {
    let server = server(root.section("server"));
    let tls = tls(root.section("tls"), &server);
    let limits = limits(root.section("limits"));
    let settings = Settings {
        tunnel: tunnel(root.section("tunnel")),
        auth: auth(root.section("auth"), &limits.plans),
        prices: prices(root.section("prices")),
        usage: usage(root.section("usage")),
        store: store(root.section("store")),
        routing: routing(root.section("routing"), &server),
        remotes: remotes(&mut root, &server, limits.time_zone),
        log: log(root.section("log")),
        server,
        tls,
        limits,
    };
    root.close();
    settings
}

/// `[usage]`.
fn usage(mut section: Section<'_>) -> Usage {
    const DAY: u64 = 86_400;
    let mut days = |key, default: u64| {
        let days: u64 = section.integer(key, 1..=36_500).unwrap_or(default);
        Duration::from_secs(days * DAY)
    };
    let usage = Usage {
        retention: days("retention_days", 400),
        records_retention: days("records_retention_days", 90),
    };
    section.close();
    usage
}

fn server(mut section: Section<'_>) -> Server {
    let default_listen = || vec![SocketAddr::from(([0, 0, 0, 0], 8443))];
    let listen = section
        .list("listen", 16, SOCKET)
        .unwrap_or_else(default_listen);
    let first = listen.first().copied();
    if section.was_given("listen") && listen.is_empty() {
        section.problem("listen", "empty: at least one address is needed");
    }
    let unique: BTreeSet<&SocketAddr> = listen.iter().collect();
    if unique.len() < listen.len() {
        section.problem("listen", "an address comes twice");
    }
    let admin_listen = section.loopback("admin_listen").map_or_else(
        || Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
        Loopback::address,
    );
    if admin_listen.is_some_and(|admin| listen.contains(&admin)) {
        section.problem("admin_listen", "the same address as in listen");
    }
    let server = Server {
        listen,
        admin_listen,
        state_dir: section
            .path("state_dir")
            .unwrap_or_else(|| PathBuf::from("/var/lib/hearth-proxy")),
        public_url: public_url(&mut section, first),
        cors_origins: cors_origins(&mut section),
        trusted_proxies: section
            .list("trusted_proxies", 256, "a range such as 10.0.0.0/8")
            .unwrap_or_default(),
        proxy_protocol: section
            .list("proxy_protocol", 256, "a range such as 10.0.0.0/8")
            .unwrap_or_default(),
        grace: secs(&mut section, "grace_secs", 0, 3600, 30),
        head_timeout: secs(&mut section, "head_timeout_secs", 1, 300, 10),
        body_timeout: secs(&mut section, "body_timeout_secs", 1, 3600, 30),
        keepalive_timeout: secs(&mut section, "keepalive_timeout_secs", 1, 3600, 60),
        write_timeout: secs(&mut section, "write_timeout_secs", 1, 3600, 30),
        request_timeout: secs(&mut section, "request_timeout_secs", 1, 86_400, 600),
        body_max: section
            .bytes("body_max_bytes", 1024..=1 << 30)
            .unwrap_or(4 << 20),
        media_body_max: section
            .bytes("media_body_max_bytes", 1024..=1 << 30)
            .unwrap_or(32 << 20),
        connections_max: section
            .integer("connections_max", 1..=1_000_000)
            .map_or(10_000, count),
        connections_per_ip_max: section
            .integer("connections_per_ip_max", 1..=1_000_000)
            .map_or(256, count),
        threads: section
            .integer("threads", 1..=1024)
            .map_or(section.outside().machine.cores, count),
    };
    server_rules(&section, &server);
    section.close();
    server
}

fn server_rules(section: &Section<'_>, server: &Server) {
    if server.media_body_max < server.body_max {
        let message = format!(
            "{} is below body_max_bytes ({}): media requests carry text too",
            server.media_body_max, server.body_max
        );
        section.problem("media_body_max_bytes", message);
    }
    if server.body_timeout > server.request_timeout {
        section.problem(
            "body_timeout_secs",
            "above request_timeout_secs, which covers the whole request",
        );
    }
    if server.connections_per_ip_max > server.connections_max
        && section.was_given("connections_per_ip_max")
    {
        section.problem("connections_per_ip_max", "above connections_max");
    }
}

fn public_url(section: &mut Section<'_>, first: Option<SocketAddr>) -> String {
    let want = "https://HOST or https://HOST:PORT, without a path or a trailing slash";
    section
        .checked_text("public_url", want, |url| {
            origin_host(url, &["https://"]).is_some()
        })
        .unwrap_or_else(|| first.map(url_of_listener).unwrap_or_default())
}

fn cors_origins(section: &mut Section<'_>) -> Vec<String> {
    let origins: Vec<String> = section
        .list("cors_origins", 256, "an origin")
        .unwrap_or_default();
    for origin in &origins {
        if origin != "*" && origin_host(origin, &["https://", "http://"]).is_none() {
            let message = format!(
                "{origin:?} is not an origin such as https://app.example.org, without a trailing slash, or *"
            );
            section.problem("cors_origins", message);
        }
    }
    origins
}

fn tunnel(mut section: Section<'_>) -> Tunnel {
    let heartbeat = secs(&mut section, "heartbeat_secs", 1, 300, 4);
    let silent_after = secs(&mut section, "silent_after_secs", 2, 3600, 9);
    if silent_after < heartbeat.saturating_mul(2) {
        let message = "less than twice heartbeat_secs: one late report would take the node out";
        section.problem("silent_after_secs", message);
    }
    let want = "a host with port such as llm.example.org:51820";
    let endpoint = section.checked_text("endpoint", want, |text| {
        split_port(text).is_some_and(|(host, port)| {
            is_host(host)
                && port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
        })
    });
    let tunnel = Tunnel {
        listen: section
            .parsed("listen", "an address with port such as 0.0.0.0:51820")
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 51_820))),
        endpoint,
        heartbeat,
        silent_after,
        nodes_max: section
            .integer("nodes_max", 1..=100_000)
            .map_or(1000, count),
        backend: section.one_of("backend", &BACKENDS).unwrap_or_default(),
        approve: section
            .one_of("approve", &APPROVES)
            .unwrap_or(Approve::Auto),
        unseen_days: section.integer("unseen_days", 1..=3650).unwrap_or(90),
        carrier: section.boolean("carrier").unwrap_or(true),
        mtu_max: section.integer("mtu_max", 1200..=1500).map_or(1440, count),
    };
    section.close();
    tunnel
}

fn auth(mut section: Section<'_>, plans: &BTreeMap<String, Plan>) -> Auth {
    let mut issuers: Vec<Issuer> = Vec::new();
    for inner in section.sections("issuers", 64) {
        let issuer = issuer::issuer(inner, plans);
        for known in issuers.iter().filter(|known| known.issuer == issuer.issuer) {
            if issuer.issuer.is_empty() {
                continue;
            }
            if known
                .audiences
                .iter()
                .any(|one| issuer.audiences.contains(one))
            {
                let message = format!(
                    "the issuer {:?} comes twice for one audience",
                    issuer.issuer
                );
                section.problem("issuers", message);
            } else if known.tenant != issuer.tenant {
                let message = format!(
                    "the issuer {:?} has two tenants: its users would belong to both",
                    issuer.issuer
                );
                section.problem("issuers", message);
            }
        }
        issuers.push(issuer);
    }
    let auth = Auth {
        azure_header: section.boolean("azure_header").unwrap_or(false),
        stale: secs(&mut section, "stale_secs", 0, 3600, 30),
        issuers,
    };
    section.close();
    auth
}

fn routing(mut section: Section<'_>, server: &Server) -> Routing {
    let request_secs = server.request_timeout.as_secs().max(1);
    let routing = Routing {
        auto_models: section
            .list("auto_models", 64, "a model name")
            .unwrap_or_else(|| vec!["auto".to_owned()]),
        heavy_from: section.float("heavy_from", 0.0..=1.0).unwrap_or(0.66),
        fast_to: section.float("fast_to", 0.0..=1.0).unwrap_or(0.33),
        breaker_failures: section.integer("breaker_failures", 1..=1000).unwrap_or(3),
        breaker_window: secs(&mut section, "breaker_window_secs", 1, 3600, 30),
        breaker_open: secs(&mut section, "breaker_open_secs", 1, 3600, 30),
        breaker_probe: secs(&mut section, "breaker_probe_secs", 1, 3600, 60),
        connect_timeout: secs(&mut section, "connect_timeout_secs", 1, 60, 3),
        first_byte_timeout: secs(&mut section, "first_byte_timeout_secs", 1, YEAR_SECS, 120),
        idle_timeout: secs(&mut section, "idle_timeout_secs", 1, 3600, 60),
        silence: section
            .millis("silence_ms", 0..=60_000)
            .unwrap_or(Duration::from_millis(250)),
        silence_patience: section
            .millis("silence_patience_ms", 100..=60_000)
            .unwrap_or(Duration::from_millis(500)),
        stall_after: section
            .millis("stall_after_ms", 0..=60_000)
            .unwrap_or(Duration::from_secs(2)),
        migration_patience: secs(&mut section, "migration_patience_secs", 0, 300, 10),
        commit_after: section
            .millis("commit_after_ms", 0..=30_000)
            .unwrap_or(Duration::from_secs(3)),
        keepalive: secs(&mut section, "keepalive_secs", 1, 55, 15),
        fallback: section.boolean("fallback").unwrap_or(true),
        pool_max: section.integer("pool_max", 0..=1024).map_or(128, count),
        queue_max: section.integer("queue_max", 0..=10_000).map_or(64, count),
        queue_wait: secs(&mut section, "queue_wait_secs", 0, 600, 60),
        wake: wake(&mut section),
        classifier: classifier(section.section("classifier")),
        hedge: hedge(section.section("hedge")),
    };
    if routing.fast_to >= routing.heavy_from {
        let message = format!(
            "{} is not below heavy_from ({}): nothing would be left for the primary tier",
            routing.fast_to, routing.heavy_from
        );
        section.problem("fast_to", message);
    }
    if routing.first_byte_timeout.as_secs() > request_secs
        && section.was_given("first_byte_timeout_secs")
    {
        section.problem(
            "first_byte_timeout_secs",
            "above server.request_timeout_secs, which covers the whole request",
        );
    }
    for name in &routing.auto_models {
        if name.parse::<Tier>().is_ok() {
            let message =
                format!("{name:?} names a tier: a request for it is not left to the classifier");
            section.problem("auto_models", message);
        }
    }
    section.close();
    routing
}

/// `[routing.hedge]`.
fn hedge(mut section: Section<'_>) -> Hedge {
    let default = Hedge::default();
    let tiers = section.list("tiers", 3, "fast, primary or heavy");
    let tiers = tiers.map_or(default.tiers, |names| {
        let tiers: Vec<Tier> = names
            .iter()
            .filter_map(|name: &String| name.parse().ok())
            .collect();
        if tiers.len() != names.len() {
            section.problem("tiers", "tiers are fast, primary and heavy");
        }
        tiers
    });
    let hedge = Hedge {
        enabled: section.boolean("enabled").unwrap_or(default.enabled),
        budget_percent: section
            .integer("budget_percent", 1..=100)
            .unwrap_or(default.budget_percent),
        min_samples: section
            .integer("min_samples", 1..=1_000)
            .unwrap_or(default.min_samples),
        tiers,
        prompt_tokens_max: section
            .integer("prompt_tokens_max", 1..=1_000_000)
            .unwrap_or(default.prompt_tokens_max),
    };
    section.close();
    hedge
}

/// `[routing.classifier]`
fn classifier(mut section: Section<'_>) -> Classifier {
    let default = Classifier::default();
    let mut weights = section.section("weights");
    let classifier = Classifier {
        weights: Weights::read(|rule| weights.float(rule, -1.0..=1.0)),
        second_opinion: section
            .boolean("second_opinion")
            .unwrap_or(default.second_opinion),
        second_opinion_margin: section
            .float("second_opinion_margin", 0.0..=0.5)
            .unwrap_or(default.second_opinion_margin),
        second_opinion_patience: section
            .millis("second_opinion_ms", 10..=10_000)
            .unwrap_or(default.second_opinion_patience),
    };
    weights.close();
    section.close();
    classifier
}

/// How long each class waits for a sleeping tier.
fn wake(section: &mut Section<'_>) -> WakePatience {
    let default = WakePatience::default();
    let mut patience = |key, default: Duration| section.secs(key, 0..=3600).unwrap_or(default);
    WakePatience {
        interactive: patience("wake_interactive_secs", default.interactive),
        normal: patience("wake_normal_secs", default.normal),
        batch: patience("wake_batch_secs", default.batch),
    }
}

pub(super) fn secs(
    section: &mut Section<'_>,
    key: &'static str,
    from: u64,
    to: u64,
    default: u64,
) -> Duration {
    section
        .secs(key, from..=to)
        .unwrap_or(Duration::from_secs(default))
}

/// Every bound of the settings fits.
pub(super) fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
