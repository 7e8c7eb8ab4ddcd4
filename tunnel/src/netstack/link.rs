//! The "network card" smoltcp sees: the peer's WireGuard session.

use std::convert::Infallible;
use std::time::Instant;

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::time::Instant as StackInstant;

use crate::outbox::Outbox;
use crate::settings::MTU_MAX;
use crate::wg::session::Session;

/// Where packets of one peer come from and go to, for the length of one call.
pub(crate) struct Link<'a> {
    pub(crate) session: &'a mut Session,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) mtu: usize,
    pub(crate) now: Instant,
    /// The one packet to be received.
    pub(crate) inbound: Option<&'a [u8]>,
    /// Packets the stack may still send of its own accord.
    pub(crate) credit: usize,
}

impl Device for Link<'_> {
    type RxToken<'t>
        = Inbound<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outbound<'t>
    where
        Self: 't;

    fn receive(&mut self, _: StackInstant) -> Option<(Inbound<'_>, Outbound<'_>)> {
        let packet = self.inbound.take()?;
        Some((Inbound(packet), self.outbound()))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outbound<'_>> {
        if !self.session.is_established() {
            return None;
        }
        self.credit = self.credit.checked_sub(1)?;
        Some(self.outbound())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

impl<'a> Link<'a> {
    /// A link with nothing to receive and no leave to send yet.
    pub(crate) const fn idle(
        session: &'a mut Session,
        outbox: &'a mut Outbox,
        mtu: usize,
        now: Instant,
    ) -> Self {
        Self {
            session,
            outbox,
            mtu,
            now,
            inbound: None,
            credit: 0,
        }
    }

    fn outbound(&mut self) -> Outbound<'_> {
        Outbound {
            session: self.session,
            outbox: self.outbox,
            now: self.now,
        }
    }
}

pub(crate) struct Inbound<'a>(&'a [u8]);

impl RxToken for Inbound<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

pub(crate) struct Outbound<'a> {
    session: &'a mut Session,
    outbox: &'a mut Outbox,
    now: Instant,
}

impl TxToken for Outbound<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut scratch = [0u8; MTU_MAX];
        let len = len.min(MTU_MAX);
        let result = write(&mut scratch[..len]);
        self.session.seal(&mut scratch, len, self.outbox, self.now);
        result
    }
}

/// The card as an interface sees it when it is made: shape only, no packets.
pub(crate) struct Shape {
    pub(crate) mtu: usize,
}

impl Device for Shape {
    type RxToken<'t> = Nothing;
    type TxToken<'t> = Nothing;

    fn receive(&mut self, _: StackInstant) -> Option<(Nothing, Nothing)> {
        None
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Nothing> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

pub(crate) struct Nothing(Infallible);

impl RxToken for Nothing {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, _: F) -> R {
        match self.0 {}
    }
}

impl TxToken for Nothing {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self.0 {}
    }
}

fn capabilities(mtu: usize) -> DeviceCapabilities {
    // The AEAD tag has authenticated what comes in; other stacks check what goes out.
    let mut checksum = ChecksumCapabilities::default();
    checksum.tcp = Checksum::Tx;
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    capabilities.checksum = checksum;
    capabilities
}
