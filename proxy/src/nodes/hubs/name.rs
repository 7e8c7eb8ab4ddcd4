//! Whether machines elsewhere find this proxy under the address that it gives them. Judges settings alone: asks no name server, dials nobody.

use std::net::IpAddr;

use config::settings::proxy::Server;

/// What is wrong with the address that join links and the other proxies' nodes get, and what to do. `None`: it leads here, or nobody but this
/// machine is served.
pub fn warning(server: &Server) -> Option<String> {
    let is_for_others = |listen: &&std::net::SocketAddr| !listen.ip().to_canonical().is_loopback();
    let listen = server.listen.iter().find(is_for_others)?;
    let url = &server.public_url;
    leads_back(url).then(|| {
        format!(
            "the proxy listens on {listen} and calls itself {url}, which every other machine takes for itself: join links work on this machine alone. Set [server] public_url to the address under which the others reach it, such as \"https://llm.example.org\", and restart"
        )
    })
}

/// Whoever dials it reaches itself.
fn leads_back(url: &str) -> bool {
    let url = url.parse::<http::Uri>().ok();
    let host = url.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) => ip.is_loopback() || ip.is_unspecified(),
        Err(_not_an_address) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use config::settings::load::{Machine, Outside, parse_proxy};

    use super::*;

    fn warned(lines: &str) -> Option<String> {
        let outside = Outside {
            variables: std::collections::BTreeMap::new(),
            read: &|_| Err(std::io::ErrorKind::NotFound.into()),
            machine: Machine::this(),
        };
        let settings = parse_proxy("test", &format!("[server]\n{lines}\n"), &outside);
        warning(
            &settings
                .unwrap_or_else(|problems| panic!("{problems}"))
                .server,
        )
    }

    #[test]
    fn a_proxy_for_others_that_calls_itself_localhost_is_told_and_one_machine_alone_is_not() {
        for lines in [
            "",
            "listen = [\"[::]:443\"]",
            "listen = [\"127.0.0.1:8443\", \"0.0.0.0:9443\"]",
            "public_url = \"https://localhost:8443\"",
            "public_url = \"https://127.0.0.1\"\nlisten = [\"192.0.2.1:443\"]",
            "public_url = \"https://[::1]:8443\"",
        ] {
            let said = warned(lines).unwrap_or_else(|| panic!("nothing said of {lines:?}"));
            assert!(said.contains("Set [server] public_url"), "{said}");
        }
        for lines in [
            "listen = [\"127.0.0.1:8443\"]",
            "listen = [\"[::1]:8443\", \"127.0.0.2:8443\"]",
            "listen = [\"192.0.2.1:443\"]",
            "public_url = \"https://llm.example.org\"",
            "public_url = \"https://127.0.0.1:8443\"\nlisten = [\"127.0.0.1:8443\"]",
        ] {
            assert_eq!(warned(lines), None, "{lines:?}");
        }
    }
}
