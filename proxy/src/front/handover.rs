//! One proxy takes over from another on the same machine without refusing a connection: the old one passes its listening sockets over a
//! Unix socket in the state directory, drains and ends; the new one waits for that end, because store, tunnel and management socket
//! belong to one process, and accepts what queued up meanwhile. At its end the old one
//! says what keys its nodes have, so that no node must register again: from memory to memory. Closes nothing itself.
//!
//! New clients wait in the queues of the listeners while the old process finishes its answers, at most its grace: nobody is refused, and a long
//! stream makes the others wait. Two processes cannot serve at once yet, for three reasons. A node speaks in its newest WireGuard session
//! only: a second process with the same key would draw the packets of the streams that the first one carries. Those streams' TCP lies in the
//! first one's memory, or in its namespace. And the file of the embedded store has one owner, who alone can settle. Where the kernel
//! does TCP, the namespace could be handed on with its device, so that the old process keeps nothing but sockets, and settle through this pipe.
//! A house with two proxies on one Redis needs none of it: its nodes hold a tunnel to each, so one proxy after the other is replaced while the
//! other one serves.

use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::lifecycle::Phase;

/// The socket inside the state directory.
const SOCKET_NAME: &str = "upgrade.sock";
/// What the old proxy says first, and the version of this protocol; how many nodes report to it follows.
const HELLO: &str = "hearth-upgrade-1 ";
const HELLO_BYTES_MAX: usize = 64;
/// More than anybody listens on.
const LISTENERS_MAX: usize = 16;
/// Connections that may wait in the kernel while nobody accepts.
const BACKLOG: i32 = 4_096;
/// A hundred thousand nodes fit.
const ESTATE_BYTES_MAX: u64 = 64 << 20;
/// The first word comes at once.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// Beyond its grace the old proxy needs this long for its last settlements.
const MARGIN: Duration = Duration::from_secs(15);

/// Ends with this process and not before: so the next one knows.
static SUCCESSORS: Mutex<Vec<UnixStream>> = Mutex::new(Vec::new());

/// What was taken over.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets.
    pub listeners: Vec<TcpListener>,
    /// Nodes that reported to the old proxy.
    pub nodes: usize,
    /// What the old proxy gave at its end: secrets, from memory to memory.
    pub estate: Zeroizing<Vec<u8>>,
}

/// Gives something to whoever took the listeners, before this process ends. Without one nothing happens. Blocks shortly.
pub fn bequeath(estate: &[u8]) {
    let held = SUCCESSORS.lock().unwrap_or_else(PoisonError::into_inner);
    for mut successor in held.iter() {
        let given = successor
            .set_write_timeout(Some(HELLO_MAX))
            .and_then(|()| successor.write_all(estate));
        if let Err(error) = given {
            tracing::debug!(%error, "the next process does without what this one knew");
        }
    }
}

/// An offer to whoever comes next; removed with the value.
#[derive(Debug)]
pub struct Offer {
    socket: UnixListener,
    path: PathBuf,
}

impl Offer {
    /// Listens in the state directory.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // The state directory is closed to others, so nobody gets in before the mode is set.
        let socket = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { socket, path })
    }

    /// Passes the listeners to the first one who comes, and drains. `nodes` says how many report now.
    pub async fn serve(
        self,
        listeners: Vec<TcpListener>,
        nodes: impl Fn() -> usize,
        phase: watch::Sender<Phase>,
    ) {
        loop {
            let passed = match self.socket.accept().await {
                Ok((stream, _)) => stream
                    .into_std()
                    .and_then(|stream| pass(stream, &listeners, nodes())),
                Err(error) => Err(error),
            };
            match passed {
                Ok(()) => {
                    tracing::info!("another process takes over: draining");
                    phase.send_modify(|phase| *phase = (*phase).max(Phase::Draining));
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "another process wanted to take over and got nothing");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the upgrade socket was gone before");
        }
    }
}

fn pass(stream: UnixStream, listeners: &[TcpListener], nodes: usize) -> io::Result<()> {
    let fds: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other(format!(
            "{} listeners are more than the {LISTENERS_MAX} that can be passed on",
            fds.len()
        )));
    }
    let hello = format!("{HELLO}{nodes}\n");
    let hello = [IoSlice::new(hello.as_bytes())];
    sendmsg(&stream, &hello, &mut control, SendFlags::NOSIGNAL)?;
    let mut held = SUCCESSORS.lock().unwrap_or_else(PoisonError::into_inner);
    held.push(stream);
    Ok(())
}

/// Takes the listeners of the proxy that runs with this state directory, and waits until it has ended: at most its grace, and a little.
/// `None`: none runs. Blocks.
pub fn take_over(state_dir: &Path, grace: Duration) -> io::Result<Option<Inherited>> {
    let stream = match UnixStream::connect(state_dir.join(SOCKET_NAME)) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(HELLO_MAX))?;
    let inherited = receive(&stream)?;
    for listener in &inherited.listeners {
        // The same queue, longer: it holds what comes while nobody accepts.
        rustix::net::listen(listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
    }
    stream.set_read_timeout(Some(grace + MARGIN))?;
    tracing::info!(
        listeners = inherited.listeners.len(),
        "waiting for the old proxy to end"
    );
    let mut inherited = inherited;
    // The end of the stream is the end of the process.
    match (&stream)
        .take(ESTATE_BYTES_MAX)
        .read_to_end(&mut inherited.estate)
    {
        Ok(_) => Ok(Some(inherited)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(inherited)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the old proxy does not end: stop it, or wait longer than its grace",
        )),
        Err(error) => Err(error),
    }
}

fn receive(stream: &UnixStream) -> io::Result<Inherited> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; HELLO_BYTES_MAX];
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut listeners = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            listeners.extend(fds.map(TcpListener::from));
        }
    }
    let hello = bytes.get(..got.bytes).unwrap_or_default();
    let nodes = std::str::from_utf8(hello)
        .ok()
        .and_then(|hello| hello.strip_prefix(HELLO)?.trim_end().parse().ok());
    match nodes {
        Some(nodes) => Ok(Inherited {
            listeners,
            nodes,
            estate: Zeroizing::default(),
        }),
        None => Err(io::Error::other(
            "what runs there is no proxy of this version: restart it instead",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn listeners_pass_from_one_to_the_next_and_the_old_one_drains() {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (phase, seen) = watch::channel(Phase::Serving);
        let offer = Offer::bind(folder.path()).unwrap();
        let serving = tokio::spawn(offer.serve(vec![listener], || 3, phase));
        let path = folder.path().join(SOCKET_NAME);
        let taken = tokio::task::spawn_blocking(move || {
            let stream = UnixStream::connect(path).unwrap();
            receive(&stream).unwrap()
        });
        let taken = taken.await.unwrap();
        serving.await.unwrap();
        assert_eq!(*seen.borrow(), Phase::Draining);
        assert_eq!(taken.nodes, 3);
        assert_eq!(taken.listeners[0].local_addr().unwrap(), address);
        // It still listens, although the old one has closed its own.
        std::net::TcpStream::connect(address).unwrap();
        assert!(!folder.path().join(SOCKET_NAME).exists(), "one may come");
    }

    #[test]
    fn where_nobody_runs_nothing_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let taken = take_over(folder.path(), Duration::ZERO).unwrap();
        assert!(taken.is_none());
    }
}
