//! The `netns` back-end where there is none: on systems other than Linux. It can never be opened, so what it would give cannot exist.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::drops::Drops;
use crate::error::Error;
use crate::netstack::conn::End;

#[path = "netns/inbound.rs"]
mod inbound;
#[path = "netns/outbound.rs"]
mod outbound;
#[path = "netns/refusal.rs"]
mod refusal;
#[path = "netns/sum.rs"]
mod sum;
#[path = "netns/virtio.rs"]
mod virtio;

pub(crate) use inbound::{FRONT, Inbound, SLOT_BYTES};
pub(crate) use outbound::{PADDING_ROOM, cut_to, split};
pub(crate) use refusal::{REFUSAL_BYTES, refusal};

/// This system has no helper: always `None`.
pub fn helper_main() -> Option<ExitCode> {
    None
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) helper: Option<PathBuf>,
    pub(crate) address: Ipv6Addr,
    pub(crate) mtu: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) sockets_max: usize,
    pub(crate) backlog_max: usize,
    pub(crate) mtu: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Entrance(Infallible);

#[derive(Debug)]
pub(crate) struct Tun(Infallible);

#[derive(Debug)]
pub(crate) struct Registry(Infallible);

#[derive(Debug)]
pub(crate) struct Acceptor(Infallible);

#[derive(Debug)]
pub(crate) struct KernelConn(Infallible);

impl Entrance {
    #[expect(clippy::unused_async, reason = "as on Linux")]
    pub(crate) async fn open(plan: &Plan) -> io::Result<(Self, Tun, &'static str)> {
        tracing::trace!(helper = ?plan.helper, address = %plan.address, mtu = plan.mtu, "not opened");
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "only Linux has network namespaces",
        ))
    }
}

impl Tun {
    pub(crate) fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
        match self.0 {}
    }

    pub(crate) fn read(&mut self) -> Option<(&mut [u8], usize)> {
        match self.0 {}
    }

    pub(crate) fn read_now(&mut self) -> Option<(&mut [u8], usize)> {
        match self.0 {}
    }

    pub(crate) fn write(&self, _: &[IoSlice<'_>]) {
        match self.0 {}
    }
}

impl Registry {
    pub(crate) fn new(entrance: Entrance, _: Arc<Drops>, limits: Limits) -> Arc<Self> {
        tracing::trace!(
            limits.sockets_max,
            limits.backlog_max,
            limits.mtu,
            "never made"
        );
        match entrance.0 {}
    }

    pub(crate) fn add(&self, _: Ipv6Addr) {
        match self.0 {}
    }

    pub(crate) fn remove(&self, _: Ipv6Addr, _: End) {
        match self.0 {}
    }

    pub(crate) fn cut(&self, _: Ipv6Addr, _: End) {
        match self.0 {}
    }

    pub(crate) fn close(&self, _: End) {
        match self.0 {}
    }

    pub(crate) fn len(&self, _: Ipv6Addr) -> usize {
        match self.0 {}
    }

    #[expect(clippy::unused_async, reason = "as on Linux")]
    pub(crate) async fn len_with_lingering(&self, _: Ipv6Addr) -> usize {
        match self.0 {}
    }

    #[expect(clippy::unused_async, reason = "as on Linux")]
    pub(crate) async fn connect(&self, _: Ipv6Addr, _: u16) -> Result<Arc<KernelConn>, Error> {
        match self.0 {}
    }

    #[expect(clippy::unused_async, reason = "as on Linux")]
    pub(crate) async fn listen(&self, _: u16) -> Result<Acceptor, Error> {
        match self.0 {}
    }
}

impl Acceptor {
    #[expect(clippy::unused_async, reason = "as on Linux")]
    pub(crate) async fn accept(&self) -> Result<Arc<KernelConn>, Error> {
        match self.0 {}
    }
}

impl KernelConn {
    pub(crate) fn local(&self) -> SocketAddrV6 {
        match self.0 {}
    }

    pub(crate) fn remote(&self) -> SocketAddrV6 {
        match self.0 {}
    }

    pub(crate) fn poll_read(&self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.0 {}
    }

    pub(crate) fn poll_write(
        &self,
        _: &mut Context<'_>,
        _: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.0 {}
    }

    pub(crate) fn finish(&self) -> io::Result<()> {
        match self.0 {}
    }
}
