//! What follows from a node's identity and keys: its name, its overlay address, its pre-shared key, its token.
//! Pure: nothing derived here is ever stored, so there is nothing to leak from the store.

use std::net::Ipv6Addr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use config::ids::NodeId;
use ring::{digest, hkdf};

/// Length of an Ed25519 public key.
pub const IDENTITY_BYTES: usize = 32;

/// `node_` and the first 16 hex digits of the SHA-256 of the identity key.
pub fn node_id(identity: &[u8; IDENTITY_BYTES]) -> NodeId {
    NodeId::new(format!("node_{}", hex::encode(fingerprint(identity))))
}

/// The node's address inside the tunnel: our prefix and the same eight bytes.
pub fn overlay_address(identity: &[u8; IDENTITY_BYTES]) -> Ipv6Addr {
    let host = u64::from_be_bytes(fingerprint(identity));
    Ipv6Addr::from_bits(0xfd48_6561_7274_0000_u128 << 64 | u128::from(host))
}

fn fingerprint(identity: &[u8; IDENTITY_BYTES]) -> [u8; 8] {
    let hash = digest::digest(&digest::SHA256, identity);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_ref()[..8]);
    first
}

/// The secrets of one pair of WireGuard keys: a new key on either side changes both.
pub struct PairSecrets {
    /// WireGuard's pre-shared key.
    pub preshared_key: [u8; 32],
    /// Bearer token for HTTP inside the tunnel, both ways.
    pub agent_token: String,
}

/// Derives the secrets of a node's current key and the hub's (HKDF, RFC 5869).
pub fn pair_secrets(
    hub_secret: &[u8; 32],
    node: &NodeId,
    node_key: &str,
    hub_key: &str,
) -> PairSecrets {
    let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, b"hearth-node-v1").extract(hub_secret);
    let bytes = |purpose: &str| {
        let info = [
            purpose.as_bytes(),
            b"\0",
            node.as_str().as_bytes(),
            b"\0",
            node_key.as_bytes(),
            b"\0",
            hub_key.as_bytes(),
        ];
        let mut out = [0; 32];
        pseudorandom
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut out))
            .expect(
                "32 bytes are within HKDF's bound of 255 blocks and match the algorithm's length",
            );
        out
    };
    PairSecrets {
        preshared_key: bytes("psk"),
        agent_token: URL_SAFE_NO_PAD.encode(bytes("agent-token")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_address_carry_the_same_fingerprint() {
        let identity = [1; 32];
        let address = overlay_address(&identity);
        assert_eq!(address.segments()[..4], [0xfd48, 0x6561, 0x7274, 0]);
        let host = format!("{:016x}", address.to_bits() & u128::from(u64::MAX));
        assert_eq!(node_id(&identity).as_str(), format!("node_{host}"));
        assert_ne!(overlay_address(&[2; 32]), address);
    }

    #[test]
    fn every_input_changes_both_secrets_and_they_differ_from_each_other() {
        let node = NodeId::new("node_a");
        let base = pair_secrets(&[1; 32], &node, "key", "hub");
        let others = [
            pair_secrets(&[2; 32], &node, "key", "hub"),
            pair_secrets(&[1; 32], &NodeId::new("node_b"), "key", "hub"),
            pair_secrets(&[1; 32], &node, "key2", "hub"),
            pair_secrets(&[1; 32], &node, "key", "hub2"),
        ];
        for other in others {
            assert_ne!(other.preshared_key, base.preshared_key);
            assert_ne!(other.agent_token, base.agent_token);
        }
        assert_ne!(URL_SAFE_NO_PAD.encode(base.preshared_key), base.agent_token);
    }
}
