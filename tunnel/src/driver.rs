//! The only loop of the tunnel: waits for the socket, a command, a stream or a timer, lets the core
//! work, and sends what comes out. Nothing is decided here.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Sleep;

use crate::carrier::{Carried, Carrier};
use crate::core::{Core, Windows};
use crate::error::Error;
use crate::keys::PrivateKey;
use crate::netns::Tun;
use crate::netstack::backlog::Backlog;
use crate::path::Path;
use crate::peer::Peer;
use crate::quic::WayReply;
use crate::socket::Socket;
use crate::stream::Stream;
use crate::wg::bench::Done;

/// Receive calls between two rounds of sending; each takes up to 16 x 64 KiB.
const RECEIVES_PER_ROUND: usize = 2;
/// Datagrams of carriers between two rounds of sending.
const CARRIED_PER_ROUND: usize = 64;
/// Packets of the kernel, of up to 64 KiB each, between two rounds of sending.
const READS_PER_ROUND: usize = 4;
/// Handshakes finished between two rounds of sending; one that a running session must take itself costs 0.2 ms.
const HANDSHAKES_PER_ROUND: usize = 8;
/// Packets of the kernel that still leave when a peer is removed: a reset for each stream it may have.
const DRAIN_READS: usize = 4_096;

type Reply<T> = oneshot::Sender<T>;

/// What a handle asks of the driver.
pub(crate) enum Command {
    SetPeer(Box<Peer>, Reply<Result<(), Error>>),
    RenewPeer(Box<(Peer, Option<PrivateKey>)>, Reply<Result<(), Error>>),
    RemovePeer(Ipv6Addr, Reply<bool>),
    /// How to reach a port of a peer, with the stream already begun where that is QUIC.
    Way(Ipv6Addr, u16, WayReply),
    Connect(Ipv6Addr, u16, Reply<Result<Stream, Error>>),
    Listen(u16, Reply<Result<Arc<Backlog>, Error>>),
    Handshake(Ipv6Addr, Reply<Result<(), Error>>),
    Streams(Ipv6Addr, Reply<usize>),
    Echo(Ipv6Addr, Reply<Result<(), Error>>),
    WatchCarrier(Ipv6Addr, Reply<Result<watch::Receiver<bool>, Error>>),
    OpenCarrier(Ipv6Addr, IpAddr, Reply<Result<Carrier, Error>>),
    ShutDown(Reply<()>),
}

/// The task that owns the core and the socket.
pub(crate) struct Driver {
    core: Core,
    socket: Socket,
    /// Where the kernel's packets come from, when it does TCP.
    tun: Option<Tun>,
    windows: Windows,
    /// What carriers bring.
    carried: Option<mpsc::Receiver<Carried>>,
    commands: mpsc::Receiver<Command>,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Instant>,
}

/// Why the driver woke up.
enum Wake {
    Datagrams,
    Kernel,
    Carried(Carried),
    Command(Option<Command>),
    Ring,
    Handshake(Box<Done>),
    Timer,
}

/// Whether to go on.
enum Then {
    Continue,
    Stop(Option<Reply<()>>),
}

/// When the runtime ends, or the driver fails, nobody must wait for it in vain.
impl Drop for Driver {
    fn drop(&mut self) {
        self.core.shut_down(Instant::now());
    }
}

impl Driver {
    pub(crate) fn new(
        core: Core,
        (socket, tun): (Socket, Option<Tun>),
        windows: Windows,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let now = Instant::now();
        Self {
            core,
            socket,
            tun,
            carried: windows.carriers.take_inbound(),
            windows,
            commands,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            timer_at: None,
        }
    }

    /// Runs until every handle is gone or one asks to stop.
    pub(crate) async fn run(mut self) {
        let reply = loop {
            self.core.set_segments_max(self.socket.segments_max());
            let wake = poll_fn(|context| self.poll_wake(context)).await;
            if let Then::Stop(reply) = self.handle(wake) {
                break reply;
            }
            self.send_all().await;
            // Nothing above waits while there is work; let other tasks run too.
            tokio::task::consume_budget().await;
        };
        self.core.shut_streams(Instant::now());
        self.drain_kernel(Instant::now());
        self.send_all().await;
        self.core.shut_down(Instant::now());
        self.send_all().await;
        if let Some(reply) = reply {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(());
        }
    }

    fn poll_wake(&mut self, context: &mut Context<'_>) -> Poll<Wake> {
        if let Poll::Ready(command) = self.commands.poll_recv(context) {
            return Poll::Ready(Wake::Command(command));
        }
        if self.socket.poll_readable(context).is_ready() {
            return Poll::Ready(Wake::Datagrams);
        }
        if let Some(tun) = &self.tun
            && tun.poll_readable(context).is_ready()
        {
            return Poll::Ready(Wake::Kernel);
        }
        if let Some(carried) = &mut self.carried
            && let Poll::Ready(Some(first)) = carried.poll_recv(context)
        {
            return Poll::Ready(Wake::Carried(first));
        }
        if self.core.has_work() || self.windows.doorbell.poll_rung(context).is_ready() {
            return Poll::Ready(Wake::Ring);
        }
        if let Poll::Ready(done) = self.core.poll_done(context) {
            return Poll::Ready(Wake::Handshake(Box::new(done)));
        }
        let Some(at) = self.core.poll_timeout() else {
            return Poll::Pending;
        };
        if self.timer_at != Some(at) {
            self.timer_at = Some(at);
            self.timer.as_mut().reset(at.into());
        }
        self.timer.as_mut().poll(context).map(|()| Wake::Timer)
    }

    fn handle(&mut self, wake: Wake) -> Then {
        let now = Instant::now();
        match wake {
            Wake::Datagrams => self.receive(now),
            Wake::Carried(first) => self.take_carried(first, now),
            Wake::Command(Some(command)) => return self.command(command, now),
            Wake::Command(None) => return Then::Stop(None),
            Wake::Handshake(done) => self.finish_handshakes(*done, now),
            Wake::Ring | Wake::Timer | Wake::Kernel => {}
        }
        self.read_kernel(now);
        self.core.handle_ring();
        self.core.handle_timeout(now);
        Then::Continue
    }

    /// A few at a time: data goes between them.
    fn finish_handshakes(&mut self, first: Done, now: Instant) {
        self.core.handle_done(first, now);
        for _ in 1..HANDSHAKES_PER_ROUND {
            let Some(done) = self.core.next_done() else {
                return;
            };
            self.core.handle_done(done, now);
        }
    }

    fn receive(&mut self, now: Instant) {
        let Self {
            socket, core, tun, ..
        } = self;
        let hand_over = |core: &mut Core| {
            if let Some(tun) = tun.as_ref() {
                core.empty_inbound(|pieces| tun.write(pieces));
            }
        };
        for _ in 0..RECEIVES_PER_ROUND {
            let more = socket.receive(|source, datagram| {
                core.handle_one_of_many(Path::Udp(source), datagram, now);
                if core.is_inbound_full() {
                    hand_over(core);
                }
            });
            hand_over(core);
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // An ICMP error of an earlier datagram; the socket itself is well.
                    tracing::debug!(%error, "receive failed");
                    break;
                }
            }
        }
        core.settle(now);
    }

    /// Works on what carriers have brought.
    fn take_carried(&mut self, first: Carried, now: Instant) {
        let Self {
            carried, core, tun, ..
        } = self;
        let mut next = Some(first);
        let mut count = 0;
        while let Some((id, datagram)) = next {
            core.handle_one_of_many(Path::Carried(id), &datagram, now);
            count += 1;
            if let Some(tun) = tun
                && core.is_inbound_full()
            {
                core.empty_inbound(|pieces| tun.write(pieces));
            }
            next = carried
                .as_mut()
                .filter(|_| count < CARRIED_PER_ROUND)
                .and_then(|carried| carried.try_recv().ok());
        }
        core.settle(now);
        if let Some(tun) = tun {
            core.empty_inbound(|pieces| tun.write(pieces));
        }
    }

    /// Encrypts what the kernel has sent of late, resets of cut streams above all.
    fn drain_kernel(&mut self, now: Instant) {
        let Self { core, tun, .. } = self;
        let Some(tun) = tun else {
            return;
        };
        for _ in 0..DRAIN_READS {
            let Some((buffer, length)) = tun.read_now() else {
                return;
            };
            core.handle_kernel(buffer, length, now);
        }
    }

    /// Encrypts what the kernel wants to send.
    fn read_kernel(&mut self, now: Instant) {
        let Self { core, tun, .. } = self;
        let Some(tun) = tun else {
            return;
        };
        for _ in 0..READS_PER_ROUND {
            if core.is_outbox_full() {
                return;
            }
            let Some((buffer, length)) = tun.read() else {
                return;
            };
            core.handle_kernel(buffer, length, now);
        }
    }

    /// Lets the core work and sends what comes out, one socket-full at a time.
    async fn send_all(&mut self) {
        self.core.work(Instant::now());
        while let Some(batch) = self.core.poll_transmit() {
            match batch.destination {
                Path::Udp(destination) => self.socket.send(destination, &batch).await,
                Path::Carried(id) => self.windows.send_carried(id, &batch),
            }
            self.core.recycle(batch);
        }
    }

    /// Every reply may find that nobody waits for it any more; a stream that nobody takes is reset
    /// by being dropped.
    fn command(&mut self, command: Command, now: Instant) -> Then {
        if let Command::RemovePeer(address, _) = &command
            && self.tun.is_some()
        {
            // The kernel's resets leave while the peer can still be told.
            self.core.cut_streams(*address, now);
            self.drain_kernel(now);
        }
        let core = &mut self.core;
        match command {
            Command::SetPeer(peer, reply) => drop(reply.send(core.set_peer(*peer, now))),
            Command::RenewPeer(wish, reply) => {
                let (peer, private) = *wish;
                drop(reply.send(core.renew_peer(peer, private, now)));
            }
            Command::RemovePeer(address, reply) => {
                let _ = reply.send(core.remove_peer(address, now));
            }
            Command::Way(address, port, reply) => core.way(address, port, reply, now),
            Command::Connect(address, port, reply) => {
                drop(reply.send(core.connect(address, port, now).map(Stream::of_stack)));
            }
            Command::Listen(port, reply) => drop(reply.send(core.listen(port))),
            Command::Handshake(address, reply) => {
                drop(reply.send(core.force_handshake(address, now)));
            }
            Command::Streams(address, reply) => {
                let _ = reply.send(core.streams(address));
            }
            Command::WatchCarrier(address, reply) => drop(reply.send(core.watch_carrier(address))),
            Command::OpenCarrier(address, remote, reply) => {
                drop(reply.send(core.open_carrier(address, remote, now)));
            }
            Command::Echo(address, reply) => drop(reply.send(core.echo(address, now))),
            Command::ShutDown(reply) => return Then::Stop(Some(reply)),
        }
        Then::Continue
    }
}
