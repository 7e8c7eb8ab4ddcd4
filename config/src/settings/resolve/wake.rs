//! `[wake]` of the node's settings.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::settings::node::Wake;
use crate::settings::read::Section;
use crate::wire::wake::{MACS_MAX, Mac, WAKE_PORT, is_lan};

const SITE: &str = "1 to 32 lower-case letters, digits or -";

/// Sleeping and waking.
pub(super) fn wake(mut section: Section<'_>) -> Wake {
    let macs: Vec<Mac> = section
        .list(
            "macs",
            MACS_MAX,
            "the address of a network card such as 3c:7c:3f:12:34:56",
        )
        .unwrap_or_default();
    let secure_on = section.secret("secure_on", "secure_on_file");
    let secure_on = secure_on.and_then(|text| {
        let password = text.expose().parse().ok();
        if password.is_none() {
            section.secret_problem(
                "secure_on",
                "the value is not six bytes such as 01:23:45:67:89:ab",
            );
        }
        password
    });
    let broadcast: Option<Ipv4Addr> = section.parsed(
        "broadcast",
        "the broadcast address of the machine's network, such as 192.168.1.255",
    );
    if broadcast.is_some_and(|address| !is_lan(address)) {
        section.problem(
            "broadcast",
            "not an address of a network at home: packets go to private networks alone",
        );
    }
    let takes = section.secs("takes_secs", 1..=600);
    let port = section.integer("port", 1..=u16::MAX);
    if macs.is_empty() && !section.was_given("macs") {
        let dependent = ["broadcast", "secure_on"];
        for key in dependent.into_iter().filter(|key| section.was_given(key)) {
            section.secret_problem(key, "means nothing without macs");
        }
    }
    let site = section.checked_text("site", SITE, |site| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=32).contains(&site.len()) && site.bytes().all(plain)
    });
    let wake = Wake {
        macs,
        broadcast,
        port: port.unwrap_or(WAKE_PORT),
        secure_on,
        takes: takes.unwrap_or(Duration::from_mins(1)),
        wakes_others: section.boolean("wakes_others").unwrap_or(false),
        site,
    };
    section.close();
    wake
}
