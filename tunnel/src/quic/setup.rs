//! What all QUIC connections of a tunnel have in common. Figures only, each with its reason.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{
    ClientConfig, ConnectionIdGenerator, Endpoint, EndpointConfig, RandomConnectionIdGenerator,
    ServerConfig, TransportConfig, VarInt,
};

use super::pace::PaceConfig;
use super::plain::{Plain, ResetKey};
use super::word::HEADER_BYTES;
use crate::netstack::doorbell::Doorbell;
use crate::settings::{MTU_MAX, Settings};

/// QUIC does without smaller ones (RFC 9000, section 14).
const PACKET_BYTES_MIN: usize = 1_200;
/// An endpoint has one peer: no two connections of it get the same.
const CONNECTION_ID_BYTES: usize = 6;
/// So many packets may come late before an earlier one counts as lost; time decides before that. Home links reorder by milliseconds: 3 ms are
/// 30 packets at 100 Mbit/s, and QUIC's 3 packets make each of them a loss.
const REORDERED_PACKETS: u32 = 40;
/// And counts as lost when it is so many round trips old, as with the kernel's RACK (RFC 8985, section 7.1); QUIC's 9/8 leaves 5 ms at 40.
const LOST_AFTER: f32 = 1.25;
/// As TCP's in the other room.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const SILENCE_MAX_MS: u32 = 300_000;
/// Before the first measurement; QUIC's own third of a second makes a lost first packet cost a second.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(100);
/// A stream's window in buffers of TCP. It holds what arrives behind a lost packet until that is sent again: two round trips' worth.
const WINDOW_BUFFERS: usize = 4;
/// quinn-proto gives a connection up when a stream has more than 1,024 pieces behind a gap (`MAX_CHUNKS`): full packets, this many bytes never are.
const WINDOW_MAX: usize = 1 << 20;
/// What all streams of a connection may hold unread. An honest peer never gets there, so that a stalled stream does not stop another.
const UNREAD_MAX: u32 = 256 << 20;
/// What all streams may hold that the peer has not acknowledged: it says itself how much it takes, this bounds what we believe.
const UNSENT_MAX: u64 = 64 << 20;
/// Streams that are refused for being too many must be heard first.
const STREAMS_SPARE: usize = 64;

/// The common ground.
pub(crate) struct Setup {
    endpoint: Arc<EndpointConfig>,
    pub(super) doorbell: Arc<Doorbell>,
    is_wanted: bool,
    pub(super) is_embedded: bool,
    pub(super) streams_max: usize,
    window: u32,
}

impl Setup {
    pub(crate) fn new(
        settings: &Settings,
        doorbell: Arc<Doorbell>,
        is_embedded: bool,
    ) -> Arc<Self> {
        let bounds = &settings.bounds;
        let mut endpoint = EndpointConfig::new(ResetKey::new());
        endpoint.grease_quic_bit(false);
        let ids = || -> Box<dyn ConnectionIdGenerator> {
            Box::new(RandomConnectionIdGenerator::new(CONNECTION_ID_BYTES))
        };
        endpoint.cid_generator(ids);
        let largest = u16::try_from(MTU_MAX - HEADER_BYTES).unwrap_or(u16::MAX);
        if let Err(error) = endpoint.max_udp_payload_size(largest) {
            tracing::debug!(%error, "the packet size stays QUIC's own");
        }
        let window = bounds.tcp_buffer_bytes.saturating_mul(WINDOW_BUFFERS);
        let window = u32::try_from(window.min(WINDOW_MAX)).unwrap_or(u32::MAX);
        Arc::new(Self {
            endpoint: Arc::new(endpoint),
            doorbell,
            is_wanted: settings.quic,
            is_embedded,
            streams_max: bounds.sockets_per_peer_max,
            window,
        })
    }

    /// Whether QUIC is wanted.
    pub(super) const fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        let server = self.server(PACKET_BYTES_MIN + HEADER_BYTES);
        Endpoint::new(Arc::clone(&self.endpoint), Some(server), false, None)
    }

    pub(super) fn client(&self, mtu: usize) -> ClientConfig {
        let mut client = ClientConfig::new(Arc::new(Plain));
        client.transport_config(self.transport(mtu));
        client
    }

    pub(super) fn server(&self, mtu: usize) -> Arc<ServerConfig> {
        let mut server = ServerConfig::new(Arc::new(Plain), Arc::new(Plain));
        server.transport_config(self.transport(mtu));
        server.migration(false);
        Arc::new(server)
    }

    fn transport(&self, mtu: usize) -> Arc<TransportConfig> {
        let packet = mtu.saturating_sub(HEADER_BYTES).max(PACKET_BYTES_MIN);
        let packet = u16::try_from(packet).unwrap_or(u16::MAX);
        let streams = u32::try_from(self.streams_max + STREAMS_SPARE).unwrap_or(u32::MAX);
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(streams))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_idle_timeout(Some(VarInt::from_u32(SILENCE_MAX_MS).into()))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .stream_receive_window(VarInt::from_u32(self.window))
            .receive_window(VarInt::from_u32(UNREAD_MAX))
            .send_window(UNSENT_MAX)
            .packet_threshold(REORDERED_PACKETS)
            .time_threshold(LOST_AFTER)
            .initial_rtt(FIRST_ROUND_TRIP)
            .initial_mtu(packet)
            .mtu_discovery_config(None)
            .datagram_receive_buffer_size(None)
            .congestion_controller_factory(Arc::new(PaceConfig));
        Arc::new(transport)
    }
}
