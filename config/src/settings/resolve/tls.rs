//! `[tls]`: where the certificate comes from.

use super::{is_host, origin_host};
use crate::settings::proxy::{Server, Tls};
use crate::settings::read::Section;

/// How the certificate comes; the first word is what `[tls] mode` says.
#[derive(Clone, Copy, PartialEq)]
enum TlsMode {
    Files,
    SelfSigned,
}

/// `[tls]`.
pub(super) fn tls(mut section: Section<'_>, server: &Server) -> Tls {
    let words = [
        ("self-signed", TlsMode::SelfSigned),
        ("files", TlsMode::Files),
    ];
    let mode = section.one_of("mode", &words);
    let cert_file = section.path("cert_file");
    let key_file = section.path("key_file");
    let names = section.list::<String>("names", 64, "a name or an address");
    let mode_is_wrong = mode.is_none() && section.was_given("mode");
    let files_given = section.was_given("cert_file") || section.was_given("key_file");
    let mode = mode.unwrap_or(if files_given {
        TlsMode::Files
    } else {
        TlsMode::SelfSigned
    });
    if !mode_is_wrong {
        tls_rules(&section, mode);
    }
    let tls = match (mode, cert_file, key_file) {
        (TlsMode::Files, Some(cert_file), Some(key_file)) => Tls::Files {
            cert_file,
            key_file,
        },
        (TlsMode::Files | TlsMode::SelfSigned, _, _) => Tls::SelfSigned {
            names: certificate_names(&section, names, server),
        },
    };
    section.close();
    tls
}

fn tls_rules(section: &Section<'_>, mode: TlsMode) {
    match mode {
        TlsMode::Files => {
            section.missing("cert_file", "a PEM file with the chain, leaf first");
            section.missing("key_file", "a PEM file with the private key");
            if section.was_given("names") {
                section.problem(
                    "names",
                    "only for mode = \"self-signed\": the files have their own names",
                );
            }
        }
        TlsMode::SelfSigned => {
            for key in ["cert_file", "key_file"] {
                if section.was_given(key) {
                    section.problem(key, "only for mode = \"files\"");
                }
            }
        }
    }
}

fn certificate_names(
    section: &Section<'_>,
    names: Option<Vec<String>>,
    server: &Server,
) -> Vec<String> {
    let Some(names) = names else {
        let host = origin_host(&server.public_url, &["https://"]).unwrap_or("localhost");
        let mut names = vec![host.to_owned()];
        for own in ["localhost", "127.0.0.1", "::1"] {
            if own != host {
                names.push(own.to_owned());
            }
        }
        return names;
    };
    if names.is_empty() {
        section.problem("names", "empty: at least one name is needed");
    }
    for name in &names {
        let plain = name.strip_prefix("*.").unwrap_or(name);
        if !is_host(plain) {
            section.problem("names", format!("{name:?} is not a name or an address"));
        }
    }
    names
}
