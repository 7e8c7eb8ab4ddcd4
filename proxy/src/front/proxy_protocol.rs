//! The PROXY protocol, versions 1 and 2: a load balancer in front says whose connection it hands on. Read from configured
//! ranges only, where it must be there; anything else than one well-formed header ends the connection. Bounded; the deadline
//! is the caller's. Believes nothing else that the header says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Begins every header of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1, line end included.
const V1_BYTES_MAX: usize = 107;
/// Longest rest of a version 2 header that we read: addresses and type-length-values such as the TLS names of a load balancer.
const V2_BYTES_MAX: usize = 2_048;
/// Type of the CRC-32C of the whole header.
const TYPE_CRC32C: u8 = 3;

/// Why a connection is closed instead of believed.
#[derive(Debug, Error)]
pub(super) enum ProxyHeaderError {
    #[error("no PROXY protocol header, though the range is in server.proxy_protocol")]
    Missing,
    #[error("malformed PROXY protocol header: {0}")]
    Malformed(&'static str),
    #[error("the connection ended within the PROXY protocol header")]
    Cut(#[from] std::io::Error),
}

/// Reads the header that begins a connection. `None`: the load balancer speaks for itself (a health check), or names no
/// address; then its own counts.
pub(super) async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await?;
    if first == SIGNATURE {
        return read_v2(stream).await;
    }
    if first.starts_with(b"PROXY ") {
        return read_v1(stream, &first).await;
    }
    Err(ProxyHeaderError::Missing)
}

async fn read_v1<S: AsyncRead + Unpin>(
    stream: &mut S,
    first: &[u8],
) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let mut line = first.to_vec();
    // Byte by byte: whatever follows the line belongs to TLS.
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_BYTES_MAX {
            return Err(ProxyHeaderError::Malformed(
                "a line of version 1 without an end",
            ));
        }
        line.push(stream.read_u8().await?);
    }
    parse_v1(&line)
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`
fn parse_v1(line: &[u8]) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let malformed = || ProxyHeaderError::Malformed("not a line of version 1");
    let line = std::str::from_utf8(line).map_err(|_| malformed())?;
    let line = line.strip_suffix("\r\n").ok_or_else(malformed)?;
    if line.contains(['\r', '\n']) {
        return Err(malformed());
    }
    let words: Vec<&str> = line.split(' ').collect();
    let [_, family, rest @ ..] = words.as_slice() else {
        return Err(malformed());
    };
    if *family == "UNKNOWN" {
        return Ok(None);
    }
    let [source, destination, source_port, destination_port] = rest else {
        return Err(malformed());
    };
    let (source, destination) = match *family {
        "TCP4" => (
            source.parse::<Ipv4Addr>().map(IpAddr::V4),
            destination.parse::<Ipv4Addr>().map(IpAddr::V4),
        ),
        "TCP6" => (
            source.parse::<Ipv6Addr>().map(IpAddr::V6),
            destination.parse::<Ipv6Addr>().map(IpAddr::V6),
        ),
        _ => return Err(malformed()),
    };
    let (Ok(source), Ok(_)) = (source, destination) else {
        return Err(malformed());
    };
    let port = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (Some(port), Some(_)) = (port(source_port), port(destination_port)) else {
        return Err(malformed());
    };
    Ok(Some(SocketAddr::new(source, port)))
}

async fn read_v2<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [version, family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > V2_BYTES_MAX {
        return Err(ProxyHeaderError::Malformed("longer than 2,048 bytes"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    let source = parse_v2(version, family, &rest)?;
    let addresses = address_bytes(family).unwrap_or(0).min(length);
    check_sum(fixed, &rest, addresses)?;
    Ok(source)
}

fn parse_v2(version: u8, family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let is_local = match version {
        0x20 => true,
        0x21 => false,
        _ => {
            return Err(ProxyHeaderError::Malformed(
                "neither LOCAL nor PROXY of version 2",
            ));
        }
    };
    let known = address_bytes(family).ok_or(ProxyHeaderError::Malformed("an unknown family"))?;
    if is_local {
        return Ok(None);
    }
    let addresses = rest
        .get(..known)
        .ok_or(ProxyHeaderError::Malformed("shorter than its addresses"))?;
    // Over UDP or without addresses nothing came to this TCP listener from where it says.
    match (family, addresses) {
        (0x11, [a, b, c, d, _, _, _, _, high, low, ..]) => {
            let port = u16::from_be_bytes([*high, *low]);
            Ok(Some((Ipv4Addr::new(*a, *b, *c, *d), port).into()))
        }
        (0x21, addresses) => Ok(v6_source(addresses)),
        (_, _) => Ok(None),
    }
}

fn v6_source(addresses: &[u8]) -> Option<SocketAddr> {
    let (source, rest) = addresses.split_first_chunk::<16>()?;
    let (_, ports) = rest.split_first_chunk::<16>()?;
    let (port, _) = ports.split_first_chunk::<2>()?;
    Some((Ipv6Addr::from(*source), u16::from_be_bytes(*port)).into())
}

/// How many bytes the addresses of a family and protocol take; `None` for what the specification does not name.
const fn address_bytes(family: u8) -> Option<usize> {
    match family {
        0x00 => Some(0),
        0x11 | 0x12 => Some(12),
        0x21 | 0x22 => Some(36),
        0x31 | 0x32 => Some(216),
        _ => None,
    }
}

/// Walks the type-length-values behind the addresses: they must fit, and a check sum among them must be right.
fn check_sum(fixed: [u8; 4], rest: &[u8], addresses: usize) -> Result<(), ProxyHeaderError> {
    let mut at = addresses;
    while let Some([kind, high, low]) = rest.get(at..at + 3).and_then(|head| head.first_chunk()) {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest
            .get(at + 3..at + 3 + length)
            .ok_or(ProxyHeaderError::Malformed(
                "a value that leaves the header",
            ))?;
        if *kind == TYPE_CRC32C {
            let told = value.first_chunk::<4>().filter(|_| length == 4).ok_or(
                ProxyHeaderError::Malformed("a check sum that is not four bytes"),
            )?;
            let zeros = at + 3..at + 7;
            let all = SIGNATURE.iter().copied().chain(fixed).chain(
                rest.iter()
                    .enumerate()
                    .map(|(index, byte)| if zeros.contains(&index) { 0 } else { *byte }),
            );
            if crc32c(all) != u32::from_be_bytes(*told) {
                return Err(ProxyHeaderError::Malformed("a wrong check sum"));
            }
        }
        at += 3 + length;
    }
    if at == rest.len() {
        return Ok(());
    }
    Err(ProxyHeaderError::Malformed("bytes behind the last value"))
}

/// CRC-32C (Castagnoli), reflected.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let mask = (crc & 1).wrapping_neg();
            crc = (crc >> 1) ^ (0x82F6_3B78 & mask);
        }
    }
    !crc
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header of version 2 for a TCP connection from this address.
    pub(in crate::front) fn v2(source: SocketAddr, values: &[u8]) -> Vec<u8> {
        let (family, addresses) = match source {
            SocketAddr::V4(source) => {
                let mut all = source.ip().octets().to_vec();
                all.extend([127, 0, 0, 1]);
                (0x11, all)
            }
            SocketAddr::V6(source) => {
                let mut all = source.ip().octets().to_vec();
                all.extend(Ipv6Addr::LOCALHOST.octets());
                (0x21, all)
            }
        };
        let mut rest = addresses;
        rest.extend(source.port().to_be_bytes());
        rest.extend(443_u16.to_be_bytes());
        rest.extend(values);
        let mut header = SIGNATURE.to_vec();
        header.extend([0x21, family]);
        header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend(rest);
        header
    }

    async fn of(bytes: &[u8]) -> Result<Option<SocketAddr>, ProxyHeaderError> {
        let mut stream = bytes;
        read(&mut stream).await
    }

    fn source(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn both_versions_name_the_client() {
        for text in ["203.0.113.7:4711", "[2001:db8::7]:4711"] {
            let found = of(&v2(source(text), &[])).await.unwrap();
            assert_eq!(found, Some(source(text)));
        }
        let v1: [(&[u8], Option<SocketAddr>); 4] = [
            (
                b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n",
                Some(source("203.0.113.7:4711")),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n",
                Some(source("[2001:db8::7]:4711")),
            ),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN ff:ff 1 2 3\r\n", None),
        ];
        for (line, want) in v1 {
            assert_eq!(of(line).await.unwrap(), want, "{}", line.escape_ascii());
        }
    }

    #[tokio::test]
    async fn what_follows_the_header_is_left_for_tls() {
        let mut bytes = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n\x16\x03\x01".to_vec();
        let mut stream = bytes.as_slice();
        read(&mut stream).await.unwrap();
        assert_eq!(stream, b"\x16\x03\x01");
        bytes = v2(source("203.0.113.7:1"), &[]);
        bytes.push(0x16);
        let mut stream = bytes.as_slice();
        read(&mut stream).await.unwrap();
        assert_eq!(stream, [0x16]);
    }

    #[tokio::test]
    async fn a_load_balancer_may_speak_for_itself() {
        let mut local = SIGNATURE.to_vec();
        local.extend([0x20, 0x00, 0, 0]);
        assert_eq!(of(&local).await.unwrap(), None);
        let mut unix = SIGNATURE.to_vec();
        unix.extend([0x21, 0x31, 0, 216]);
        unix.extend([0; 216]);
        assert_eq!(of(&unix).await.unwrap(), None);
    }

    #[tokio::test]
    async fn malformed_headers_are_refused() {
        let good = v2(source("203.0.113.7:1"), &[]);
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            bad
        };
        let mut cut = good.clone();
        cut.truncate(20);
        let cases: Vec<Vec<u8>> = vec![
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00".to_vec(),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 127.0.0.1 4711\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 127.0.0.1 +711 443\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 127.0.0.1 65536 443\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 ::1 1 443\r\n".to_vec(),
            b"PROXY TCP5 203.0.113.7 127.0.0.1 1 443\r\n".to_vec(),
            b"PROXY  TCP4 203.0.113.7 127.0.0.1 1 443\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 127.0.0.1 1 443 x\r\n".to_vec(),
            format!("PROXY TCP4 {}\r\n", "1".repeat(200)).into_bytes(),
            with(12, 0x31),
            with(12, 0x22),
            with(13, 0x41),
            with(14, 0xff),
            with(15, 11),
            with(15, 14),
            cut,
            b"PROXY TCP4 203.0".to_vec(),
            Vec::new(),
        ];
        for bad in cases {
            let found = of(&bad).await;
            assert!(found.is_err(), "{} is {found:?}", bad.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_wrong_check_sum_is_refused() {
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xE306_9283);
        let mut header = v2(source("203.0.113.7:1"), &[3, 0, 4, 0, 0, 0, 0]);
        let sum = crc32c(header.iter().copied());
        let at = header.len() - 4;
        header[at..].copy_from_slice(&sum.to_be_bytes());
        assert!(of(&header).await.unwrap().is_some());
        header[at] ^= 1;
        assert!(of(&header).await.is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_no_other_address_than_the_header_s_comes_out(
            soup in prop::collection::vec(any::<u8>(), 0..300),
            version in 0x1f_u8..0x23,
            family in any::<u8>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut header = SIGNATURE.to_vec();
            header.extend([version, family]);
            header.extend(u16::try_from(soup.len()).unwrap().to_be_bytes());
            header.extend(&soup);
            if let Ok(Some(found)) = runtime.block_on(of(&header)) {
                prop_assert!(version == 0x21 && matches!(family, 0x11 | 0x21));
                let octets = match found.ip() {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                prop_assert!(soup.starts_with(&octets));
            }
            let _plain = runtime.block_on(of(&soup));
        }
    }
}
