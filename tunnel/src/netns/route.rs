//! How many packets a new stream may send before the first acknowledgement: a metric of the namespace's only route (rtnetlink(7)). Nothing else
//! about routes is done here.

use std::io::{self, Read as _, Write as _};

use socket2::{Domain, Protocol, Socket, Type};

/// Packets: a prompt of 40 KB leaves at once, where the usual ten packets (RFC 6928) take two round trips more. It is 18 ms of a 20 Mbit/s uplink.
const FIRST_WINDOW: u32 = 32;
const AF_NETLINK: i32 = 16;
const AF_INET6: u8 = 10;
/// `RTM_NEWROUTE`.
const NEW_ROUTE: u16 = 24;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_REPLACE`: the route must be there.
const REPLACE: u16 = 0x1 | 0x4 | 0x100;
/// `NLMSG_ERROR`, which an acknowledgement is too: its number is zero.
const ANSWER: u16 = 2;
/// Table `RT_TABLE_MAIN`, protocol `RTPROT_KERNEL`, scope `RT_SCOPE_UNIVERSE`, type `RTN_UNICAST`.
const ROUTE: [u8; 4] = [254, 2, 0, 1];
/// `RTA_OIF`, `RTA_PRIORITY`, `RTA_METRICS` and in it `RTAX_INITCWND`.
const DEVICE: u16 = 4;
const PRIORITY: u16 = 6;
const METRICS: u16 = 8;
const INITIAL_WINDOW: u16 = 11;
/// What the kernel gives the route of an address (`IP6_RT_PRIO_ADDRCONF`).
const ADDRESS_PRIORITY: u32 = 256;
const HEADER_BYTES: usize = 16;

/// Widens the first window of every stream through a device whose address reaches everything.
pub(super) fn widen(device: u32) -> io::Result<()> {
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(0)))?;
    socket.write_all(&message(device))?;
    let mut answer = [0; 512];
    let length = socket.read(&mut answer)?;
    verdict(answer.get(..length).unwrap_or_default())
}

fn message(device: u32) -> Vec<u8> {
    let mut message = vec![0; HEADER_BYTES];
    // Any destination, any source, no type of service.
    message.extend([AF_INET6, 0, 0, 0]);
    message.extend(ROUTE);
    message.extend([0; 4]);
    message.extend(attribute(DEVICE, &device.to_ne_bytes()));
    message.extend(attribute(PRIORITY, &ADDRESS_PRIORITY.to_ne_bytes()));
    let metric = attribute(INITIAL_WINDOW, &FIRST_WINDOW.to_ne_bytes());
    message.extend(attribute(METRICS, &metric));
    let length = u32::try_from(message.len()).unwrap_or_default();
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&NEW_ROUTE.to_ne_bytes());
    message[6..8].copy_from_slice(&REPLACE.to_ne_bytes());
    message
}

/// Contents of a multiple of four bytes.
fn attribute(kind: u16, contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(contents.len() + 4).unwrap_or_default();
    let head = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    [&head, contents].concat()
}

fn verdict(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|bytes| [bytes[0], bytes[1]]);
    let number = answer
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
        .map(i32::from_ne_bytes);
    match (kind.map(u16::from_ne_bytes), number) {
        (Some(ANSWER), Some(0)) => Ok(()),
        (Some(ANSWER), Some(number)) => Err(io::Error::from_raw_os_error(-number)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_as_long_as_it_says_and_so_is_every_attribute() {
        let message = message(7);
        let length = u32::from_ne_bytes(message[..4].try_into().unwrap());
        assert_eq!(message.len(), usize::try_from(length).unwrap());
        let mut at = HEADER_BYTES + 12;
        let mut kinds = Vec::new();
        while at < message.len() {
            let number = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
            kinds.push(number(at + 2));
            at += usize::from(number(at));
        }
        assert_eq!(
            (kinds, at),
            (vec![DEVICE, PRIORITY, METRICS], message.len())
        );
    }

    /// The kernel reads it, finds no such device, and says so.
    #[test]
    fn a_device_that_is_not_there_is_refused() {
        let refused = widen(u32::MAX >> 1).unwrap_err();
        assert!(refused.raw_os_error().is_some(), "{refused}");
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        for answer in [&[][..], &[0; 8], &[0; 40]] {
            assert!(verdict(answer).is_err());
        }
    }
}
