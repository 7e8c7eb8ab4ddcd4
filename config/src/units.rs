//! Figures with units, as people write them: durations, sizes, rates, address ranges. Pure text to types.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

/// A text is no figure of this unit.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not {want}")]
pub struct UnitError {
    text: String,
    want: &'static str,
}

impl UnitError {
    fn new(text: &str, want: &'static str) -> Self {
        Self {
            text: text.chars().take(60).collect(),
            want,
        }
    }

    /// What would be right.
    pub const fn want(&self) -> &'static str {
        self.want
    }
}

const DURATION: &str = "a duration such as 250ms, 30s, 15m, 12h or 30d";
const BYTES: &str = "a size in bytes such as 4096, 512KiB, 4MiB or 1GB";
const RATE: &str = "a rate such as 5/s, 30/min, 600/h or 100/day";
const RANGE: &str =
    "an address or a range such as 10.0.0.0/8 or fd00::/8, without bits set after the prefix";

/// Splits `30min` into `30` and `min`.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, unit.trim()))
}

/// Reads `250ms`, `30s`, `15m`, `12h`, `30d`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = || UnitError::new(text, DURATION);
    let (count, unit) = split(text).ok_or_else(error)?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(error()),
    };
    let total = count.checked_mul(millis).ok_or_else(error)?;
    Ok(Duration::from_millis(total))
}

/// Writes a duration in the largest unit that divides it; [`parse_duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
    ] {
        if millis != 0 && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

/// A number of bytes: `4096`, `512KiB`, `4MiB`, `1GB`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ByteSize(pub u64);

const BINARY: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError::new(text, BYTES);
        let (count, unit) = split(text).ok_or_else(error)?;
        let size = match unit {
            "" | "B" => 1,
            "kB" | "KB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            other => BINARY
                .iter()
                .find(|(name, _)| *name == other)
                .map(|(_, size)| *size)
                .ok_or_else(error)?,
        };
        count.checked_mul(size).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, size) in BINARY {
            if self.0 != 0 && self.0.is_multiple_of(size) {
                return write!(f, "{}{name}", self.0 / size);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// So many in a period: `30/min`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Rate {
    /// How many, at least 1.
    pub count: u32,
    /// In this time.
    pub period: Duration,
}

const PERIODS: [(&str, u64); 9] = [
    ("s", 1),
    ("sec", 1),
    ("second", 1),
    ("min", 60),
    ("m", 60),
    ("minute", 60),
    ("h", 3600),
    ("hour", 3600),
    ("day", 86_400),
];

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError::new(text, RATE);
        let (count, period) = text.split_once('/').ok_or_else(error)?;
        let count: u32 = count.trim().parse().map_err(|_not_a_number| error())?;
        let secs = PERIODS
            .iter()
            .find(|(name, _)| *name == period.trim())
            .map(|(_, secs)| *secs)
            .ok_or_else(error)?;
        if count == 0 {
            return Err(error());
        }
        Ok(Self {
            count,
            period: Duration::from_secs(secs),
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.period.as_secs();
        let name = ["s", "min", "h", "day"]
            .into_iter()
            .find(|name| PERIODS.contains(&(*name, secs)));
        match name {
            Some(name) => write!(f, "{}/{name}", self.count),
            None => write!(f, "{}/{secs}s", self.count),
        }
    }
}

/// An address range. An IPv4-mapped IPv6 address counts as the IPv4 address that it is, on both sides.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Cidr {
    /// First address.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl Cidr {
    /// Whether the address is inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(range), IpAddr::V4(address)) => {
                let mask = mask4(self.prefix);
                range.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(range), IpAddr::V6(address)) => {
                let mask = mask6(self.prefix);
                range.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Ones for the first `prefix` bits.
fn mask4(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(prefix.min(128)))
        .unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError::new(text, RANGE);
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(prefix)),
        };
        let address: IpAddr = address.parse().map_err(|_not_an_address| error())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            // "+8" and "08" parse as numbers but are nobody's prefix.
            Some(digits) => digits
                .parse::<u8>()
                .ok()
                .filter(|prefix| *prefix <= bits && prefix.to_string() == digits)
                .ok_or_else(error)?,
        };
        let cidr = match address {
            IpAddr::V6(v6) if prefix >= 96 && v6.to_ipv4_mapped().is_some() => Self {
                address: address.to_canonical(),
                prefix: prefix - 96,
            },
            IpAddr::V4(_) | IpAddr::V6(_) => Self { address, prefix },
        };
        if cidr.first() != cidr.address {
            return Err(error());
        }
        Ok(cidr)
    }
}

impl Cidr {
    fn first(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                Ipv4Addr::from_bits(address.to_bits() & mask4(self.prefix)).into()
            }
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & mask6(self.prefix)).into()
            }
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        let cases = [
            ("250ms", Some(250)),
            ("30s", Some(30_000)),
            ("15m", Some(900_000)),
            (" 15 min ", Some(900_000)),
            ("12h", Some(43_200_000)),
            ("30d", Some(2_592_000_000)),
            ("30", None),
            ("s", None),
            ("-1s", None),
            ("1.5h", None),
            ("1w", None),
            ("99999999999999999999s", None),
            ("99999999999999999d", None),
            ("", None),
        ];
        for (text, want) in cases {
            let got = parse_duration(text).ok();
            assert_eq!(got, want.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn sizes_are_read() {
        let cases = [
            ("4096", Some(4096)),
            ("4MiB", Some(4 << 20)),
            ("1GB", Some(1_000_000_000)),
            ("512 KiB", Some(512 << 10)),
            ("4mib", None),
            ("-1", None),
            ("99999999999999TiB", None),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse().ok(), want.map(ByteSize), "{text}");
        }
    }

    #[test]
    fn rates_are_read_and_written() {
        for text in ["5/s", "30/min", "600/h", "100/day"] {
            let rate: Rate = text.parse().expect("parses");
            assert_eq!(rate.to_string(), text);
        }
        for text in ["0/s", "30", "x/min", "5/fortnight", "-5/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_contain_what_they_should() {
        let cases = [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("fd00::/8", "fd48::1", true),
            ("fd00::/8", "fe80::1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
        ];
        for (range, address, want) in cases {
            let range: Cidr = range.parse().expect("a range");
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(range.contains(address), want, "{range} {address}");
        }
    }

    #[test]
    fn ranges_with_stray_bits_or_bad_prefixes_are_refused() {
        for text in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/",
            "fd00::1/8",
            "x",
            "",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn written_durations_are_read_back(millis in 0..u64::MAX / 2) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn written_sizes_are_read_back(bytes in any::<u64>()) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            drop(parse_duration(&text));
            drop(text.parse::<ByteSize>());
            drop(text.parse::<Rate>());
            drop(text.parse::<Cidr>());
        }
    }
}
