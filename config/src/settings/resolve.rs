//! From sections to settings: one function a section, defaults beside the bounds, then the rules between keys.

use std::net::{IpAddr, SocketAddr};

use super::proxy::{Log, LogFormat};
use super::read::Section;

mod issuer;
mod limits;
pub(super) mod node;
pub(super) mod proxy;
mod remote;
mod store;
mod tls;
mod wake;

const FORMATS: [(&str, LogFormat); 3] = [
    ("auto", LogFormat::Auto),
    ("json", LogFormat::Json),
    ("text", LogFormat::Text),
];

/// `[log]`, the same on both sides.
fn log(mut section: Section<'_>) -> Log {
    let log = Log {
        filter: section.text("filter").unwrap_or_else(|| "info".to_owned()),
        format: section
            .one_of("format", &FORMATS)
            .unwrap_or(LogFormat::Auto),
    };
    section.close();
    log
}

/// The host of `https://host[:port]`, if it is nothing more than that.
fn origin_host<'a>(url: &'a str, schemes: &[&str]) -> Option<&'a str> {
    let authority = schemes.iter().find_map(|scheme| url.strip_prefix(scheme))?;
    let (host, port) = split_port(authority)?;
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    (port_is_good && is_host(host)).then_some(host)
}

/// Splits `host:port`; the host of an IPv6 address comes without its brackets.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after {
            "" => Some((host, None)),
            _ => Some((host, Some(after.strip_prefix(':')?))),
        };
    }
    Some(match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    })
}

/// A name of the domain name system, or an address.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.parse::<IpAddr>().is_ok() || (host.len() <= 253 && host.split('.').all(label))
}

/// `https://...`, or `http://` on this machine.
fn is_safe_url(url: &str) -> bool {
    let printable = url.len() <= 2048 && url.chars().all(|c| c.is_ascii_graphic());
    let host_of = |rest: &str| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        split_port(authority).map(|(host, _)| host.to_owned())
    };
    if !printable {
        return false;
    }
    if let Some(rest) = url.strip_prefix("https://") {
        return host_of(rest).is_some_and(|host| is_host(&host));
    }
    url.strip_prefix("http://")
        .and_then(host_of)
        .is_some_and(|host| {
            host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        })
}

/// How a listener is reached: an unspecified address becomes this machine's own name.
fn url_of_listener(listener: SocketAddr) -> String {
    let host = match listener.ip() {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    match listener.port() {
        443 => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_origins_have_a_host() {
        let cases = [
            ("https://llm.example.org", Some("llm.example.org")),
            ("https://llm.example.org:8443", Some("llm.example.org")),
            ("https://[2001:db8::1]:8443", Some("2001:db8::1")),
            ("https://203.0.113.7", Some("203.0.113.7")),
            ("https://llm.example.org/", None),
            ("https://me@llm.example.org", None),
            ("https://llm.example.org:0", None),
            ("https://llm.example.org:99999", None),
            ("https://-x.org", None),
            ("https://a..b", None),
            ("http://llm.example.org", None),
            ("https://", None),
            ("https://[::1]x", None),
        ];
        for (url, want) in cases {
            assert_eq!(origin_host(url, &["https://"]), want, "{url}");
        }
    }

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for url in [
            "https://id.example.org/jwks?x=1",
            "http://127.0.0.1:8080/jwks",
            "http://localhost/jwks",
            "http://[::1]:80/x",
        ] {
            assert!(is_safe_url(url), "{url}");
        }
        for url in [
            "http://id.example.org/jwks",
            "http://127.0.0.1@id.example.org/jwks",
            "http://localhost.example.org/",
            "ftp://localhost/",
            "file:///etc/passwd",
            "https://a b/",
            "https:///x",
        ] {
            assert!(!is_safe_url(url), "{url}");
        }
    }
}
