//! `[store]`: embedded, or one of the three ways to reach a Redis. Every mistake is told where it stands.

use std::str::FromStr;
use std::time::Duration;

use super::proxy::count;
use crate::settings::proxy::{Login, OnFailure, Redis, RedisTls, Servers, Store};
use crate::settings::read::Section;

/// Addresses of sentinels or of cluster nodes at most.
const ADDRESSES_MAX: usize = 64;
/// What only counts with `kind = "redis"`.
const REDIS_KEYS: [&str; 14] = [
    "url",
    "url_file",
    "sentinels",
    "master",
    "cluster",
    "username",
    "password",
    "password_file",
    "sentinel_username",
    "sentinel_password",
    "sentinel_password_file",
    "ca_file",
    "cert_file",
    "key_file",
];

/// Reads the section.
pub(super) fn store(mut section: Section<'_>) -> Store {
    let kinds = [("embedded", false), ("redis", true)];
    let kind = section.one_of("kind", &kinds);
    let kind_is_good = kind.is_some() || !section.was_given("kind");
    let is_redis = kind.unwrap_or(false);
    let prefix = section.checked_text("prefix", "1 to 64 letters, digits, _ - or :", |prefix| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':');
        (1..=64).contains(&prefix.len()) && prefix.chars().all(plain)
    });
    let servers = servers(&mut section, is_redis);
    let login = login(&mut section, "username", ("password", "password_file"));
    let tls = tls(&mut section);
    let timeout = section
        .millis("timeout_ms", 10..=10_000)
        .unwrap_or(Duration::from_millis(50));
    let modes = [
        ("closed", OnFailure::Closed),
        ("open", OnFailure::Open),
        ("lease", OnFailure::Lease),
    ];
    let on_failure = section.one_of("on_failure", &modes);
    let breaker_failures = section.integer("breaker_failures", 1..=1_000).unwrap_or(3);
    let wait_replicas = section.integer("wait_replicas", 0..=16).unwrap_or(0);
    let lease_percent = section.integer("lease_percent", 1..=100).unwrap_or(2);
    let leases_max = section
        .integer("leases_max", 1_000..=10_000_000)
        .map_or(100_000, count);
    let secret_key_file = section.path("secret_key_file");
    if wait_replicas > 0 && matches!(servers, Some(Servers::Cluster(_))) {
        section.problem(
            "wait_replicas",
            "not with cluster: a node's replicas cannot be waited for in the same call; set min-replicas-to-write in Redis",
        );
    }
    if kind_is_good && !is_redis {
        only_for_redis(&section);
    }
    section.close();
    let (true, Some(servers)) = (is_redis, servers) else {
        return Store::Embedded;
    };
    Store::Redis(Box::new(Redis {
        servers,
        login,
        tls,
        prefix: prefix.unwrap_or_else(|| "hearth".to_owned()),
        timeout,
        breaker_failures,
        wait_replicas,
        on_failure: on_failure.unwrap_or(OnFailure::Lease),
        lease_percent,
        leases_max,
        secret_key_file,
    }))
}

fn only_for_redis(section: &Section<'_>) {
    let given = REDIS_KEYS.into_iter().find(|key| section.was_given(key));
    if let Some(key) = given {
        let key = if key == "url_file" { "url" } else { key };
        section.secret_problem(key, "only for kind = \"redis\": set it, or remove this key");
    }
}

fn servers(section: &mut Section<'_>, is_redis: bool) -> Option<Servers> {
    let url = section.secret("url", "url_file");
    let good_url = url.as_ref().is_none_or(|url| {
        let url = url.expose();
        url.starts_with("redis://") || url.starts_with("rediss://")
    });
    if !good_url {
        section.secret_problem("url", "the value is not a redis:// or rediss:// URL");
    }
    let sentinels = addresses(section, "sentinels");
    let master = section.text("master");
    let sentinel_login = login(
        section,
        "sentinel_username",
        ("sentinel_password", "sentinel_password_file"),
    );
    let cluster = addresses(section, "cluster");
    if is_redis {
        one_way(section);
    }
    if let Some(addresses) = sentinels {
        if master.is_none() {
            section.missing("master", "the name of the primary in sentinel.conf");
        }
        return Some(Servers::Sentinels {
            addresses,
            master: master.unwrap_or_default(),
            login: sentinel_login,
        });
    }
    if master.is_some() {
        section.problem("master", "only with sentinels = [\"host:26379\", ...]");
    }
    cluster.map(Servers::Cluster).or(url.map(Servers::One))
}

/// Exactly one of the three ways.
fn one_way(section: &Section<'_>) {
    let url = section.was_given("url") || section.was_given("url_file");
    let (sentinels, cluster) = (section.was_given("sentinels"), section.was_given("cluster"));
    match u8::from(url) + u8::from(sentinels) + u8::from(cluster) {
        0 => section.missing(
            "url",
            "redis://HOST:PORT, env:NAME, or url_file = \"...\"; or sentinels = [...] and master, or cluster = [...]",
        ),
        1 => {}
        _ => section.problem(
            if cluster { "cluster" } else { "sentinels" },
            "url, sentinels and cluster are three ways to say where Redis is: keep one of them",
        ),
    }
}

/// `host:port`, as a list.
fn addresses(section: &mut Section<'_>, key: &'static str) -> Option<Vec<String>> {
    let want = "host:port, such as \"redis-1:6379\" or \"[fd00::1]:6379\"";
    let addresses: Vec<Address> = section.list(key, ADDRESSES_MAX, want)?;
    let addresses: Vec<String> = addresses.into_iter().map(|Address(text)| text).collect();
    (!addresses.is_empty()).then_some(addresses)
}

struct Address(String);

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let strange =
            |letter: char| letter.is_whitespace() || matches!(letter, '/' | '@' | '?' | '#');
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains(strange) || (host.contains(':') && !bracketed) {
            return Err(());
        }
        match port.parse() {
            Ok(1_u16..) => Ok(Self(text.to_owned())),
            Ok(0) | Err(_) => Err(()),
        }
    }
}

fn login(
    section: &mut Section<'_>,
    username: &'static str,
    (password, file): (&'static str, &'static str),
) -> Login {
    let login = Login {
        username: section.text(username),
        password: section.secret(password, file),
    };
    if login.username.is_some() && login.password.is_none() {
        section.missing(password, "the user's password, env:NAME, or a file with it");
    }
    login
}

fn tls(section: &mut Section<'_>) -> RedisTls {
    let on = section.boolean("tls").unwrap_or(false);
    let ca_file = section.path("ca_file");
    let (certificate, key) = (section.path("cert_file"), section.path("key_file"));
    let client = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) => {
            section.missing("key_file", "the private key of cert_file");
            None
        }
        (None, Some(_)) => {
            section.missing("cert_file", "the certificate of key_file");
            None
        }
        (None, None) => None,
    };
    RedisTls {
        on,
        ca_file,
        client,
    }
}
