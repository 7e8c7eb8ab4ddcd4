//! What this process and its helper say to each other: one message a datagram of a `SOCK_SEQPACKET` pair. Pure: no I/O here.

use std::net::Ipv6Addr;

/// No message is longer.
pub(super) const MESSAGE_BYTES_MAX: usize = 512;
/// Sockets handed over at once.
pub(super) const SOCKETS_MAX: usize = 16;

/// What is asked of the helper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ask {
    /// Enter the namespace and make the TUN; always the first.
    Begin { address: Ipv6Addr, mtu: u16 },
    /// Enter the namespace that another helper has made, through the descriptors that come along; instead of [`Ask::Begin`].
    Enter,
    /// So many unconnected sockets.
    Sockets(u8),
    /// One listening socket.
    Listen { port: u16, backlog: u16 },
    /// Connections with this address that no program holds any more and that still have bytes to deliver.
    Lingering(Ipv6Addr),
}

/// Where the TUN is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum How {
    /// In a user and a network namespace of its own.
    UserNamespace,
    /// In a network namespace of its own, made by root.
    Namespace,
    /// In the namespace of this process: it may make devices but no namespaces.
    Shared,
}

/// What the helper answers. Descriptors travel beside it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// With the TUN and what lets another helper in: the user namespace's and the network namespace's descriptors, where there are such.
    Ready(How),
    /// With the sockets asked for.
    Sockets,
    Lingering(u32),
    /// With what the system said: its number, and in words what was tried.
    Failed(i32, String),
}

impl Ask {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        match self {
            Self::Begin { address, mtu } => {
                bytes.push(b'B');
                bytes.extend(address.octets());
                bytes.extend(mtu.to_be_bytes());
            }
            Self::Enter => bytes.push(b'E'),
            Self::Sockets(count) => bytes.extend([b'S', count]),
            Self::Listen { port, backlog } => {
                bytes.push(b'L');
                bytes.extend(port.to_be_bytes());
                bytes.extend(backlog.to_be_bytes());
            }
            Self::Lingering(address) => {
                bytes.push(b'O');
                bytes.extend(address.octets());
            }
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            b'B' => Some(Self::Begin {
                address: address(rest.get(..16)?)?,
                mtu: number(rest.get(16..)?)?,
            }),
            b'E' => Some(Self::Enter),
            b'S' => Some(Self::Sockets(*rest.first()?)),
            b'L' => Some(Self::Listen {
                port: number(rest.get(..2)?)?,
                backlog: number(rest.get(2..)?)?,
            }),
            b'O' => Some(Self::Lingering(address(rest)?)),
            _ => None,
        }
    }
}

impl Answer {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Self::Ready(how) => bytes.extend([
                b'R',
                match how {
                    How::UserNamespace => 0,
                    How::Namespace => 1,
                    How::Shared => 2,
                },
            ]),
            Self::Sockets => bytes.push(b'S'),
            Self::Lingering(count) => {
                bytes.push(b'O');
                bytes.extend(count.to_be_bytes());
            }
            Self::Failed(number, text) => {
                bytes.push(b'F');
                bytes.extend(number.to_be_bytes());
                bytes.extend(text.bytes().take(MESSAGE_BYTES_MAX - 8));
            }
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            b'R' => Some(Self::Ready(match rest.first()? {
                0 => How::UserNamespace,
                1 => How::Namespace,
                2 => How::Shared,
                _ => return None,
            })),
            b'S' => Some(Self::Sockets),
            b'O' => Some(Self::Lingering(u32::from_be_bytes(rest.try_into().ok()?))),
            b'F' => Some(Self::Failed(
                i32::from_be_bytes(rest.get(..4)?.try_into().ok()?),
                String::from_utf8_lossy(rest.get(4..)?).into_owned(),
            )),
            _ => None,
        }
    }
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
}

fn number(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let address = Ipv6Addr::new(0xfd48, 1, 2, 3, 4, 5, 6, 7);
        let asks = [
            Ask::Begin { address, mtu: 1280 },
            Ask::Enter,
            Ask::Sockets(16),
            Ask::Listen {
                port: 9000,
                backlog: 512,
            },
            Ask::Lingering(address),
        ];
        for ask in asks {
            assert_eq!(Ask::parse(&ask.to_bytes()), Some(ask));
        }
        let answers = [
            Answer::Ready(How::UserNamespace),
            Answer::Ready(How::Namespace),
            Answer::Ready(How::Shared),
            Answer::Sockets,
            Answer::Lingering(7),
            Answer::Failed(1, "unshare".to_owned()),
        ];
        for answer in answers {
            assert_eq!(Answer::parse(&answer.to_bytes()), Some(answer));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop((Ask::parse(&bytes), Answer::parse(&bytes)));
        }
    }
}
