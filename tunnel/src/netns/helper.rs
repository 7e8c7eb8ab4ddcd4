//! The helper process: makes the namespace and sockets in it, and nothing else. It holds no key, reads no file but the kernel's, and ends when the
//! program that started it closes the line.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::HELPER_WORD;
use super::entrance::{receive, tell};
use super::hello::{Answer, Ask, How, MESSAGE_BYTES_MAX, SOCKETS_MAX};

/// The device's name inside the namespace.
const DEVICE: &str = "hearth%d";
/// In a namespace of its own everything is reached through the device.
const EVERYTHING: u8 = 0;
/// Beside the host's own routes only our overlay is: its addresses share this much.
const OVERLAY: u8 = 48;
/// What the kernel's TCP is told in the namespace. Where the system does not let us, its defaults stay.
const TUNING: [(&str, &str); 8] = [
    // Buffers grow to this, in each direction: 4 Gbit/s at 8 ms, 100 Mbit/s at 300 ms.
    // What they begin with must not make a sender wait that knows how fast the path is, nor one whose first burst has lost a packet: all that
    // comes behind it is kept until then.
    ("ipv4/tcp_rmem", "4096 3145728 4194304"),
    // What fits the first size to send is a request, more is bulk: a prompt of 64,000 tokens is 256 KiB.
    ("ipv4/tcp_wmem", "4096 262144 4194304"),
    // A pooled connection keeps its speed over a pause.
    ("ipv4/tcp_slow_start_after_idle", "0"),
    // 12 bytes of 1,380. What they guard against, old packets whose numbers fit again (RFC 7323, section 5), a session lets nobody replay.
    ("ipv4/tcp_timestamps", "0"),
    // A lost last packet is repeated after this and a round trip; the delay of acknowledgements follows it (since Linux 6.11).
    ("ipv4/tcp_rto_min_us", "40000"),
    // One stream's loss says nothing about the next.
    ("ipv4/tcp_no_metrics_save", "1"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
];
/// A new address is ready within milliseconds.
const ADDRESS_MAX: Duration = Duration::from_secs(3);
const ADDRESS_POLL: Duration = Duration::from_millis(1);
/// States of `/proc/net/tcp6` in which bytes or our end are still to be acknowledged: FIN-WAIT-1, LAST-ACK, CLOSING.
const DELIVERING: [&str; 3] = ["04", "09", "0B"];

/// Is the helper when this program was started as one, and returns its exit status at its end; `None` otherwise. Must be the very first thing a
/// program does: a process that has threads cannot enter a user namespace.
pub fn helper_main() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != HELPER_WORD || words.next().is_some() {
        return None;
    }
    let line = io::stdin();
    Some(match serve(line.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn serve(line: BorrowedFd<'_>) -> io::Result<()> {
    // Whoever stops the whole service stops the program; the helper goes when that has closed its streams.
    SigSet::all().thread_block()?;
    match question(line)? {
        Some((Ask::Begin { address, mtu }, _)) => match begin(address, mtu) {
            Ok((device, how)) => {
                let doors = doors(how)?;
                let mut rights = vec![device.as_fd()];
                rights.extend(doors.iter().map(AsFd::as_fd));
                answer(line, &Answer::Ready(how), &rights)?;
            }
            Err(answered) => return answer(line, &answered, &[]),
        },
        Some((Ask::Enter, doors)) => match enter(&doors) {
            Ok(()) => answer(line, &Answer::Sockets, &[])?,
            Err(error) => {
                return answer(line, &failed(&error, "entering the namespace again"), &[]);
            }
        },
        Some(_) | None => return Ok(()),
    }
    while let Some((ask, _)) = question(line)? {
        reply(line, ask)?;
    }
    Ok(())
}

/// What lets another helper into the namespace, should this one be killed.
fn doors(how: How) -> io::Result<Vec<OwnedFd>> {
    let names: &[&str] = match how {
        How::UserNamespace => &["user", "net"],
        How::Namespace => &["net"],
        How::Shared => &[],
    };
    names
        .iter()
        .map(|name| std::fs::File::open(format!("/proc/self/ns/{name}")).map(OwnedFd::from))
        .collect()
}

/// The user namespace first: it lets us into the other.
fn enter(doors: &[OwnedFd]) -> io::Result<()> {
    for door in doors {
        setns(door, CloneFlags::empty())?;
    }
    Ok(())
}

fn reply(line: BorrowedFd<'_>, ask: Ask) -> io::Result<()> {
    let made = match ask {
        Ask::Sockets(count) => (0..usize::from(count).min(SOCKETS_MAX))
            .map(|_| socket())
            .collect::<io::Result<Vec<_>>>(),
        Ask::Listen { port, backlog } => listener(port, backlog).map(|socket| vec![socket]),
        Ask::Lingering(address) => {
            let count = lingering(address);
            return answer(line, &Answer::Lingering(count), &[]);
        }
        Ask::Begin { .. } | Ask::Enter => Err(io::ErrorKind::AlreadyExists.into()),
    };
    match made {
        Ok(sockets) => {
            let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            answer(line, &Answer::Sockets, &descriptors)
        }
        Err(error) => answer(line, &failed(&error, "socket"), &[]),
    }
}

/// Enters a namespace by the first way that is open, and makes the device.
fn begin(address: Ipv6Addr, mtu: u16) -> Result<(SyncDevice, How), Answer> {
    let (how, prefix, denied) = match enter_user_namespace() {
        Ok(()) => (How::UserNamespace, EVERYTHING, None),
        Err(no_user) => match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => (How::Namespace, EVERYTHING, None),
            Err(_) => (How::Shared, OVERLAY, Some(no_user)),
        },
    };
    if how != How::Shared {
        for (name, value) in TUNING {
            // Speed, not correctness.
            drop(std::fs::write(format!("/proc/sys/net/{name}"), value));
        }
    }
    let device = device(address, mtu, prefix).map_err(|error| match denied {
        Some(no_user) => failed(
            &error,
            &format!("user namespaces are denied ({no_user}), and a TUN device without one"),
        ),
        None => failed(&error, "the TUN device (/dev/net/tun)"),
    })?;
    Ok((device, how))
}

fn enter_user_namespace() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    // From here on there is no way back: a half-made namespace still is one, only its device may fail.
    drop(std::fs::write("/proc/self/setgroups", "deny"));
    std::fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
    std::fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))
}

fn device(address: Ipv6Addr, mtu: u16, prefix: u8) -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new()
        .name(DEVICE)
        .offload(true)
        .mtu(mtu)
        .build_sync()?;
    device.add_address_v6(address, prefix)?;
    if prefix == EVERYTHING {
        // Speed, not correctness.
        drop(device.if_index().and_then(super::route::widen));
    }
    await_address(address)?;
    Ok(device)
}

/// The kernel finishes an address in the background; until then nothing can be sent from it.
fn await_address(address: Ipv6Addr) -> io::Result<()> {
    let give_up = Instant::now() + ADDRESS_MAX;
    loop {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        match socket.bind(&SocketAddrV6::new(address, 0, 0, 0).into()) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable && Instant::now() < give_up =>
            {
                std::thread::sleep(ADDRESS_POLL);
            }
            outcome => return outcome,
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?.into())
}

fn listener(port: u16, backlog: u16) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into())?;
    socket.listen(i32::from(backlog))?;
    Ok(socket.into())
}

/// Connections with an address that still deliver.
fn lingering(address: Ipv6Addr) -> u32 {
    // Four words of the machine's byte order in hexadecimal.
    let octets = address.octets();
    let word = |at: usize| {
        u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    };
    let wanted = format!(
        "{:08X}{:08X}{:08X}{:08X}",
        word(0),
        word(4),
        word(8),
        word(12)
    );
    let table = std::fs::read_to_string("/proc/self/net/tcp6").unwrap_or_default();
    let count = table
        .lines()
        .filter(|line| {
            let mut fields = line.split_ascii_whitespace().skip(2);
            let is_theirs = fields
                .next()
                .is_some_and(|remote| remote.starts_with(&wanted));
            is_theirs
                && fields
                    .next()
                    .is_some_and(|state| DELIVERING.contains(&state))
        })
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The next question; `None`: the line is closed.
fn question(line: BorrowedFd<'_>) -> io::Result<Option<(Ask, Vec<OwnedFd>)>> {
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let (length, descriptors) = receive(line, &mut bytes)?;
    let ask = bytes.get(..length).and_then(Ask::parse);
    Ok(ask.map(|ask| (ask, descriptors)))
}

fn answer(line: BorrowedFd<'_>, answer: &Answer, rights: &[BorrowedFd<'_>]) -> io::Result<()> {
    tell(line, &answer.to_bytes(), rights)
}

fn failed(error: &io::Error, tried: &str) -> Answer {
    match error.raw_os_error() {
        Some(number) => Answer::Failed(number, tried.to_owned()),
        None => Answer::Failed(Errno::IO.raw_os_error(), format!("{tried} ({error})")),
    }
}
