//! `[[remote]]` of the proxy's settings. An address that would carry prompts or a key in the clear across the internet is refused here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::limits::price_of;
use super::proxy::secs;
use super::{is_host, split_port};
use crate::settings::proxy::{Burst, Fields, Hook, MaxTokensField, Remote, RemoteUrl, Server};
use crate::settings::read::Section;
use crate::settings::remote::is_private;
use crate::tier::Tier;
use crate::zone::Zone;

/// Remote tiers of one proxy.
const REMOTES_MAX: usize = 64;
const TIERS: [(&str, Tier); 3] = [
    ("fast", Tier::Fast),
    ("primary", Tier::Primary),
    ("heavy", Tier::Heavy),
];
const FIELDS: [(&str, Fields); 2] = [("all", Fields::All), ("openai", Fields::OpenAi)];
const MAX_TOKENS: [(&str, MaxTokensField); 2] = [
    ("max_tokens", MaxTokensField::MaxTokens),
    ("max_completion_tokens", MaxTokensField::MaxCompletionTokens),
];
const MODALITIES: [&str; 4] = ["image", "audio", "embedding", "rerank"];
const NAME: &str =
    "1 to 32 lower-case letters, digits, - or .: the node's name in answers and metrics";
const URL: &str = "an address such as \"https://api.example.org/v1\" or \"http://192.168.1.20:11434/v1\", without a user, a query or a slash at its end";
const MODEL: &str = "1 to 256 printable characters";
/// A request that waited for a start has so long left for its answer, unless the settings say otherwise.
const ANSWER_SECS: u64 = 60;
const WARM_HOURS: &str =
    "hours of the day such as \"08:00-23:00\", by the clocks of limits.time_zone";
/// The program and its arguments.
const ARGUMENTS_MAX: usize = 64;

/// All `[[remote]]`. `zone`: where clocks hang.
pub(super) fn remotes(root: &mut Section<'_>, server: &Server, zone: Zone) -> Vec<Remote> {
    let mut names = BTreeSet::new();
    let mut remotes = Vec::new();
    for section in root.sections("remote", REMOTES_MAX) {
        remotes.extend(remote(section, &mut names, (server, zone)));
    }
    remotes
}

fn remote(
    mut section: Section<'_>,
    names: &mut BTreeSet<String>,
    (server, zone): (&Server, Zone),
) -> Option<Remote> {
    let name = section.checked_text("name", NAME, is_name);
    section.missing("name", NAME);
    if let Some(name) = &name
        && !names.insert(name.clone())
    {
        section.problem("name", format!("\"{name}\" comes twice: each has its own"));
    }
    let tier = section.one_of("tier", &TIERS);
    section.missing("tier", "fast, primary or heavy");
    let url = section.get_url("url");
    section.missing("url", URL);
    let plain = section.boolean("plain_http").unwrap_or(false);
    let url = url.filter(|url| is_private_enough(&section, "url", (url, plain)));
    let key = section.secret("key", "key_file");
    let local = section.boolean("local");
    let price = prices(&mut section);
    let burst = burst(section.section("burst"), plain, (server, zone));
    let remote = Remote {
        name: name.unwrap_or_default(),
        tier: tier.unwrap_or(Tier::Primary),
        plain_http: plain,
        key,
        model: section.checked_text("model", MODEL, is_model),
        model_id: section.checked_text("model_id", MODEL, is_model),
        context: section.integer("context", 64..=16_777_216),
        slots: section.integer("slots", 1..=10_000).unwrap_or(4),
        queue_max: section.integer("queue_max", 0..=100_000).unwrap_or(16),
        modalities: modalities(&mut section),
        local: local.unwrap_or_else(|| url.as_ref().is_some_and(|url| is_at_home(&url.host))),
        fields: section.one_of("fields", &FIELDS).unwrap_or_default(),
        max_tokens_field: section
            .one_of("max_tokens_field", &MAX_TOKENS)
            .unwrap_or_default(),
        ca_file: section.path("ca_file"),
        connect_timeout: secs(&mut section, "connect_timeout_secs", 1, 60, 5),
        health_every: secs(&mut section, "health_secs", 1, 3600, 10),
        health_timeout: secs(&mut section, "health_timeout_secs", 1, 60, 5),
        price,
        burst,
        url: url?,
    };
    if remote.ca_file.is_some() && !remote.url.tls {
        section.problem("ca_file", "means nothing without an https:// address");
    }
    if remote.price.is_some() && remote.model.is_none() && remote.model_id.is_none() {
        section.problem(
            "price",
            "set model or model_id too: a price belongs to a model's name",
        );
    }
    if remote.burst.is_some() && remote.model.is_none() && remote.model_id.is_none() {
        section.problem(
            "burst",
            "set model or model_id too: a server that sleeps cannot tell what it has",
        );
    }
    section.close();
    Some(remote)
}

impl Section<'_> {
    fn get_url(&mut self, key: &'static str) -> Option<RemoteUrl> {
        let text = self.checked_text(key, URL, |text| url(text).is_some())?;
        url(&text)
    }
}

/// What a million tokens cost.
fn prices(section: &mut Section<'_>) -> Option<crate::settings::plan::Price> {
    let price = section.section("price");
    price_of(price)
}

fn modalities(section: &mut Section<'_>) -> Vec<String> {
    let want = "image, audio, embedding or rerank";
    let given: Vec<String> = section
        .list("modalities", MODALITIES.len(), want)
        .unwrap_or_default();
    for kind in &given {
        if !MODALITIES.contains(&kind.as_str()) {
            section.problem("modalities", format!("{kind:?} is not {want}"));
        }
    }
    given
}

/// The tier sleeps until it is wanted.
fn burst(mut section: Section<'_>, plain: bool, (server, zone): (&Server, Zone)) -> Option<Burst> {
    let start = hook(&mut section, ("start_url", "start_command"), plain);
    let stop = hook(&mut section, ("stop_url", "stop_command"), plain);
    let key = section.secret("key", "key_file");
    let ready = ["ready_timeout_secs", "takes_secs", "idle_stop_secs"];
    // Whoever waits for a start that fails must still hear of it, and one that succeeds still has to answer.
    let request_secs = server.request_timeout.as_secs();
    let ready_secs = request_secs.saturating_sub(ANSWER_SECS).clamp(5, 600);
    let ready_timeout = secs(&mut section, "ready_timeout_secs", 5, 600, ready_secs);
    let takes_secs = ready_timeout.as_secs().clamp(1, 60);
    let takes = secs(&mut section, "takes_secs", 1, 600, takes_secs);
    let idle_stop = secs(&mut section, "idle_stop_secs", 10, 86_400, 900);
    let starts_per_hour = section.integer("starts_per_hour", 1..=3600).unwrap_or(6);
    let warm_hours = section.parsed("warm_hours", WARM_HOURS);
    if start.is_none() {
        let others = [
            "stop_url",
            "stop_command",
            "key",
            "starts_per_hour",
            "warm_hours",
        ];
        let given = ready.into_iter().chain(others);
        for key in given.filter(|key| section.was_given(key)) {
            let message = "means nothing without start_url or start_command";
            if key == "key" {
                section.secret_problem(key, message);
            } else {
                section.problem(key, message);
            }
        }
    }
    if start.is_some() && takes > ready_timeout {
        section.problem(
            "takes_secs",
            "above ready_timeout_secs: every start would count as failed",
        );
    }
    if start.is_some()
        && section.was_given("ready_timeout_secs")
        && ready_timeout >= server.request_timeout
    {
        section.problem(
            "ready_timeout_secs",
            format!(
                "{} is not below server.request_timeout_secs, {request_secs}, which covers the whole request: the client would give up first; by default it is {ready_secs}",
                ready_timeout.as_secs()
            ),
        );
    }
    section.close();
    Some(Burst {
        start: start?,
        stop,
        key,
        ready_timeout,
        takes,
        idle_stop,
        warm_hours,
        zone,
        starts_per_hour,
    })
}

/// An address or a program, not both.
fn hook(
    section: &mut Section<'_>,
    (address, program): (&'static str, &'static str),
    plain: bool,
) -> Option<Hook> {
    let given = section.get_url(address);
    let given = given.filter(|url| is_private_enough(section, address, (url, plain)));
    let command: Option<Vec<String>> =
        section.list(program, ARGUMENTS_MAX, "a program or an argument");
    if let Some(command) = &command {
        let absolute = command.first().is_some_and(|path| path.starts_with('/'));
        if !absolute {
            section.problem(
                program,
                "the first item is the whole path of a program, such as /usr/local/bin/gpu-up: no shell looks for it",
            );
        }
        if section.was_given(address) {
            section.problem(program, format!("{address} is set too: set one of them"));
        }
    }
    given.map(Hook::Url).or_else(|| command.map(Hook::Command))
}

/// Notes a problem when prompts and the key would cross networks of others in the clear.
fn is_private_enough(section: &Section<'_>, key: &str, (url, plain): (&RemoteUrl, bool)) -> bool {
    if url.tls || plain || is_at_home(&url.host) {
        return true;
    }
    let message = format!(
        "{url} is neither https:// nor a private address: prompts and the key would cross other people's networks in the clear; use https://, or set plain_http = true if a tunnel of yours protects them"
    );
    section.problem(key, message);
    false
}

/// A private address, or a name that means one (RFC 6762, RFC 8375).
pub(super) fn is_at_home(host: &str) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        return is_private(address);
    }
    let host = host.to_ascii_lowercase();
    host == "localhost"
        || [".localhost", ".local", ".home.arpa"]
            .into_iter()
            .any(|end| host.ends_with(end))
}

fn url(text: &str) -> Option<RemoteUrl> {
    if text.len() > 2_048 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let (tls, rest) = match text.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix("http://")?),
    };
    if rest.contains(['@', '?', '#', '\\', '"', '<', '>', '%']) {
        return None;
    }
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (host, port) = split_port(authority)?;
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None if tls => 443,
        None => 80,
    };
    let is_plain_path = !path.ends_with('/') && !path.split('/').any(|part| part == "..");
    (is_host(host) && is_plain_path).then(|| RemoteUrl {
        tls,
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

fn is_name(name: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    (1..=32).contains(&name.len()) && name.bytes().all(plain)
}

fn is_model(id: &str) -> bool {
    (1..=256).contains(&id.len()) && !id.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_addresses_are_taken() {
        for (text, want) in [
            (
                "https://api.example.org/v1",
                Some("https://api.example.org/v1"),
            ),
            ("https://api.example.org", Some("https://api.example.org")),
            (
                "https://api.example.org:443/v1",
                Some("https://api.example.org/v1"),
            ),
            ("http://[fd00::1]:8080/v1", Some("http://[fd00::1]:8080/v1")),
            (
                "http://192.168.1.20:11434/v1",
                Some("http://192.168.1.20:11434/v1"),
            ),
            ("http://me:secret@host/v1", None),
            ("https://host/v1/", None),
            ("https://host/../v1", None),
            ("https://host/v1?key=1", None),
            ("https://host/v1#x", None),
            ("https://host:0/v1", None),
            ("ftp://host/v1", None),
            ("https://", None),
            ("https://a b/v1", None),
        ] {
            let found = url(text).map(|url| url.to_string());
            assert_eq!(found.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn home_is_where_no_router_of_the_internet_leads() {
        for host in [
            "127.0.0.1",
            "::1",
            "10.0.0.4",
            "192.168.1.20",
            "172.16.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "localhost",
            "gpu.local",
            "gpu.home.arpa",
        ] {
            assert!(is_at_home(host), "{host}");
        }
        for host in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2001:db8::1",
            "api.example.org",
            "local",
            "localhost.example.org",
            "::ffff:8.8.8.8",
        ] {
            assert!(!is_at_home(host), "{host}");
        }
    }
}
