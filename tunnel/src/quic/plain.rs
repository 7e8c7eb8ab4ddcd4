//! The cryptography that QUIC asks for, without any: WireGuard below encrypts and authenticates every packet, with fresher keys than QUIC
//! would have. What is left of the handshake is its other half, the exchange of transport parameters. Must never be used for packets
//! that did not come out of a session.
//!
//! The flow is that of TLS with one message each: the client's parameters, the server's parameters and its end, the client's end.

use std::any::Any;
use std::sync::Arc;

use bytes::BytesMut;
use quinn_proto::crypto::{
    AeadKey, ClientConfig, CryptoError, ExportKeyingMaterialError, HandshakeTokenKey, HeaderKey,
    HmacKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};
use ring::hmac;

/// Says that a side has all it needs.
const END: u8 = 1;

/// Both halves of a configuration.
pub(super) struct Plain;

/// One handshake.
struct Handshake {
    side: Side,
    own: TransportParameters,
    peer: Option<TransportParameters>,
    /// Keys taken so far: none, those of the handshake, those of the data.
    step: Step,
    /// The client's parameters are written.
    opened: bool,
    /// The other side's end has come.
    ended: bool,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Step {
    Initial,
    Handshake,
    Data,
}

impl Handshake {
    fn begin(side: Side, own: &TransportParameters) -> Box<dyn Session> {
        Box::new(Self {
            side,
            own: *own,
            peer: None,
            step: Step::Initial,
            opened: false,
            ended: false,
        })
    }
}

impl Session for Handshake {
    fn initial_keys(&self, _: &ConnectionId, _: Side) -> Keys {
        keys()
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.step != Step::Data || !self.ended
    }

    fn read_handshake(&mut self, mut message: &[u8]) -> Result<bool, TransportError> {
        if self.peer.is_some() {
            self.ended |= message.contains(&END);
            return Ok(false);
        }
        let peer =
            TransportParameters::read(self.side, &mut message).map_err(|_| TransportError {
                code: TransportErrorCode::TRANSPORT_PARAMETER_ERROR,
                frame: None,
                reason: "transport parameters cannot be read".to_owned(),
            })?;
        self.peer = Some(peer);
        Ok(true)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        Ok(self.peer)
    }

    fn write_handshake(&mut self, room: &mut Vec<u8>) -> Option<Keys> {
        let is_client = self.side.is_client();
        if is_client && !self.opened {
            self.opened = true;
            self.own.write(room);
            return None;
        }
        match self.step {
            Step::Initial => {
                self.peer?;
                if !is_client {
                    self.own.write(room);
                }
                self.step = Step::Handshake;
                Some(keys())
            }
            Step::Handshake if is_client && !self.ended => None,
            Step::Handshake => {
                room.push(END);
                self.step = Step::Data;
                Some(keys())
            }
            Step::Data => None,
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        Some(packet_keys())
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        // We never send one.
        false
    }

    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

impl ClientConfig for Plain {
    fn start_session(
        self: Arc<Self>,
        _: u32,
        _: &str,
        own: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Handshake::begin(Side::Client, own))
    }
}

impl ServerConfig for Plain {
    fn initial_keys(&self, _: u32, _: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        Ok(keys())
    }

    fn retry_tag(&self, _: u32, _: &ConnectionId, _: &[u8]) -> [u8; 16] {
        [0; 16]
    }

    fn start_session(self: Arc<Self>, _: u32, own: &TransportParameters) -> Box<dyn Session> {
        Handshake::begin(Side::Server, own)
    }
}

/// Changes nothing, adds nothing.
struct Nothing;

impl PacketKey for Nothing {
    fn encrypt(&self, _: u64, _: &mut [u8], _: usize) {}

    fn decrypt(&self, _: u64, _: &[u8], _: &mut BytesMut) -> Result<(), CryptoError> {
        Ok(())
    }

    fn tag_len(&self) -> usize {
        0
    }

    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}

impl HeaderKey for Nothing {
    fn decrypt(&self, _: usize, _: &mut [u8]) {}

    fn encrypt(&self, _: usize, _: &mut [u8]) {}

    fn sample_size(&self) -> usize {
        0
    }
}

fn keys() -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(Nothing),
            remote: Box::new(Nothing),
        },
        packet: packet_keys(),
    }
}

fn packet_keys() -> KeyPair<Box<dyn PacketKey>> {
    KeyPair {
        local: Box::new(Nothing),
        remote: Box::new(Nothing),
    }
}

impl HandshakeTokenKey for Plain {
    fn aead_from_hkdf(&self, _: &[u8]) -> Box<dyn AeadKey> {
        // For tokens that prove an address; inside a session there is one, and none is sent.
        Box::new(Nothing)
    }
}

impl AeadKey for Nothing {
    fn seal(&self, _: &mut Vec<u8>, _: &[u8]) -> Result<(), CryptoError> {
        Err(CryptoError)
    }

    fn open<'a>(&self, _: &'a mut [u8], _: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        Err(CryptoError)
    }
}

/// Makes stateless reset tokens. The key is the same everywhere, so that a peer that was restarted can still end a connection; who may send
/// one is the session's business, and a token counts for its own peer alone.
pub(super) struct ResetKey(hmac::Key);

impl ResetKey {
    pub(super) fn new() -> Arc<Self> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"hearth tunnel, stateless reset");
        Arc::new(Self(key))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        let tag = hmac::sign(&self.0, data);
        for (to, from) in signature.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| CryptoError)
    }
}
