//! Waking a machine that sleeps: which network cards it has, who may send the packet, and the words between proxy and neighbour. Types
//! only; nothing here sends anything.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::NodeId;

/// Path on a node under which the proxy asks it to wake a neighbour.
pub const WAKE_PATH: &str = "/wake";
/// The port that magic packets go to unless the settings say otherwise: "discard" (RFC 863).
pub const WAKE_PORT: u16 = 9;
/// Network cards of one machine.
pub const MACS_MAX: usize = 8;
/// Networks that a machine says it is on.
pub const NETWORKS_MAX: usize = 8;

/// The address of a network card (EUI-48).
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Mac([u8; 6]);

/// The text is no address of a network card.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("six bytes such as 3c:7c:3f:12:34:56, of one card: not a group, not all zeros")]
pub struct NoMac;

impl Mac {
    /// Its bytes.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// An address of one card: a group's address or none at all wakes nobody.
    pub const fn of_card(bytes: [u8; 6]) -> Option<Self> {
        let [first, ..] = bytes;
        let is_group = first & 1 == 1;
        let is_nothing = matches!(bytes, [0, 0, 0, 0, 0, 0]);
        if is_group || is_nothing {
            return None;
        }
        Some(Self(bytes))
    }
}

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Self, NoMac> {
        six_bytes(text).and_then(Self::of_card).ok_or(NoMac)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_bytes(self.0, f)
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a card set to `SecureOn` wants at the end of the packet. Shown to nobody.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct SecureOn([u8; 6]);

/// The text is no password.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("six bytes such as 01:23:45:67:89:ab")]
pub struct NoPassword;

impl SecureOn {
    /// Its bytes.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for SecureOn {
    type Err = NoPassword;

    fn from_str(text: &str) -> Result<Self, NoPassword> {
        six_bytes(text).map(Self).ok_or(NoPassword)
    }
}

impl fmt::Debug for SecureOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecureOn(..)")
    }
}

impl Serialize for SecureOn {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        struct Shown([u8; 6]);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_bytes(self.0, f)
            }
        }
        to.collect_str(&Shown(self.0))
    }
}

impl<'de> Deserialize<'de> for SecureOn {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a node says about sleeping and waking, beside its tiers. A node that says nothing of it can neither be woken nor wakes others.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct WakeReport {
    /// Cards that wake this machine; empty: it cannot be woken.
    pub macs: Vec<Mac>,
    /// Where packets for it go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Ipv4Addr>,
    /// And to which port; 0: [`WAKE_PORT`].
    pub port: u16,
    /// The password of its card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_on: Option<SecureOn>,
    /// How long it takes from the packet to its first report, seconds; 0 when nobody has measured it.
    pub takes_secs: u32,
    /// It sends packets for its neighbours.
    pub wakes_others: bool,
    /// The name of its place, where the settings give one: nodes of one place are neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Its networks, as `192.168.1.0/24`.
    pub networks: Vec<String>,
}

impl WakeReport {
    /// Whether the machine can be woken at all.
    pub const fn can_be_woken(&self) -> bool {
        !self.macs.is_empty()
    }

    /// The port that its packets go to.
    pub const fn port(&self) -> u16 {
        if self.port == 0 { WAKE_PORT } else { self.port }
    }
}

/// `POST /wake`: a neighbour is to be woken. Only the hub of the tunnel can say so, and it names only cards that a registered node
/// reported as its own.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WakeOrder {
    /// Who is asleep.
    pub node_id: NodeId,
    /// Its cards, at most [`MACS_MAX`].
    pub macs: Vec<Mac>,
    /// Where the sleeper said that packets for it go; `None`: to this node's own networks.
    pub broadcast: Option<Ipv4Addr>,
    /// To which port.
    pub port: u16,
    /// The password of its card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_on: Option<SecureOn>,
}

/// Answer to a [`WakeOrder`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WakeReply {
    /// Packets that were sent.
    pub packets: u32,
}

/// Whether a packet to this address stays in a network at home (RFC 1918, RFC 3927, RFC 919).
pub const fn is_lan(address: Ipv4Addr) -> bool {
    address.is_private()
        || address.is_link_local()
        || address.is_loopback()
        || address.is_broadcast()
}

fn six_bytes(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut bytes = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut bytes {
        let part = parts.next()?;
        let is_hex = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| is_hex)?;
    }
    parts.next().is_none().then_some(bytes)
}

fn write_bytes(bytes: [u8; 6], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, byte) in bytes.iter().enumerate() {
        let separator = if index == 0 { "" } else { ":" };
        write!(f, "{separator}{byte:02x}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_both_spellings_and_written_in_one() {
        for text in ["3c:7c:3f:12:34:56", "3C-7C-3F-12-34-56"] {
            let mac: Mac = text.parse().expect("an address");
            assert_eq!(mac.to_string(), "3c:7c:3f:12:34:56");
        }
    }

    #[test]
    fn groups_nothing_and_other_texts_are_no_addresses() {
        for text in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "3c:7c:3f:12:34",
            "3c:7c:3f:12:34:56:78",
            "3c:7c:3f:12:34:5",
            "3c:7c:3f:12:34:+5",
            "3c7c3f123456",
            "",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(NoMac), "{text}");
        }
    }

    #[test]
    fn a_password_is_never_shown_and_travels_whole() {
        let password: SecureOn = "01:23:45:67:89:ab".parse().expect("a password");
        assert_eq!(format!("{password:?}"), "SecureOn(..)");
        let json = serde_json::to_string(&password).expect("serialises");
        assert_eq!(json, r#""01:23:45:67:89:ab""#);
        let back: SecureOn = serde_json::from_str(&json).expect("reads");
        assert_eq!(back, password);
    }

    #[test]
    fn a_report_without_a_word_about_waking_says_no() {
        let report: WakeReport = serde_json::from_str("{}").expect("reads");
        assert!(!report.can_be_woken() && !report.wakes_others);
        assert_eq!(report.port(), WAKE_PORT);
    }
}
