//! The TUN's descriptor on the runtime: whole packets in and out, nothing more.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::inbound::FRONT;
use super::outbound::PADDING_ROOM;

/// The largest packet of a TUN with offloads, its header, and room for padding behind it.
const READ_BYTES: usize = FRONT + 65_536 + PADDING_ROOM;

/// Puts a descriptor on the runtime.
#[expect(
    deprecated,
    reason = "its successor is unsafe; what makes this one unsound is a type whose descriptor changes, and an OwnedFd's never does"
)]
pub(super) fn watched(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

/// The device of the namespace.
#[derive(Debug)]
pub(crate) struct Tun {
    device: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Tun {
    /// Must be called on a tokio runtime.
    pub(super) fn new(device: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&device, true)?;
        Ok(Self {
            device: watched(device, Interest::READABLE)?,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Ready when the kernel may have packets for us.
    pub(crate) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        match self.device.poll_read_ready(context) {
            Poll::Ready(Ok(mut guard)) => {
                guard.retain_ready();
                Poll::Ready(())
            }
            // The runtime ends: there will be nothing to read.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// As [`Tun::read`], but asks the kernel even when the runtime has not heard of packets yet.
    pub(crate) fn read_now(&mut self) -> Option<(&mut [u8], usize)> {
        let length = rustix::io::read(
            self.device.get_ref(),
            &mut self.buffer[..READ_BYTES - PADDING_ROOM],
        )
        .ok()
        .filter(|length| *length > FRONT)?;
        Some((&mut self.buffer, length))
    }

    /// The next packet as a buffer and its length, virtio header first; `None` when there is none.
    pub(crate) fn read(&mut self) -> Option<(&mut [u8], usize)> {
        let Self { device, buffer } = self;
        let room = READ_BYTES - PADDING_ROOM;
        let read = device.try_io(Interest::READABLE, |device| {
            rustix::io::read(device, &mut buffer[..room]).map_err(io::Error::from)
        });
        match read {
            Ok(length) if length > FRONT => Some((buffer, length)),
            Ok(_) => None,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(%error, "reading from the TUN failed");
                }
                None
            }
        }
    }

    /// Gives one packet to the kernel. It takes it at once or not at all.
    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) {
        match rustix::io::writev(self.device.get_ref(), pieces) {
            Ok(_) => {}
            // As on any network, what finds no room is lost and sent again.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {}
            Err(error) => tracing::debug!(%error, "writing to the TUN failed"),
        }
    }
}
