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

/// The secret of one pair of WireGuard keys: a new key on either side changes it (HKDF, RFC 5869). Not yet the pre-shared key: that is
/// mixed with what the registration's ML-KEM exchange gave, which only memory holds.
pub fn pair_secret(
    hub_secret: &[u8; 32],
    node: &NodeId,
    node_key: &str,
    hub_key: &str,
) -> [u8; 32] {
    derived(hub_secret, &["psk", node.as_str(), node_key, hub_key])
}

/// Bearer token for HTTP inside the tunnel, both ways: one for each start of a node, so that it outlives the keys of that start.
pub fn agent_token(hub_secret: &[u8; 32], node: &NodeId, start: &str) -> String {
    URL_SAFE_NO_PAD.encode(derived(hub_secret, &["agent-token", node.as_str(), start]))
}

fn derived(hub_secret: &[u8; 32], parts: &[&str]) -> [u8; 32] {
    let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, b"hearth-node-v2").extract(hub_secret);
    let info = parts.join("\0");
    let info = [info.as_bytes()];
    let mut out = [0; 32];
    pseudorandom
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .expect("32 bytes are within HKDF's bound of 255 blocks and match the algorithm's length");
    out
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
    fn every_input_changes_the_secret_of_a_pair() {
        let node = NodeId::new("node_a");
        let base = pair_secret(&[1; 32], &node, "key", "hub");
        for other in [
            pair_secret(&[2; 32], &node, "key", "hub"),
            pair_secret(&[1; 32], &NodeId::new("node_b"), "key", "hub"),
            pair_secret(&[1; 32], &node, "key2", "hub"),
            pair_secret(&[1; 32], &node, "key", "hub2"),
        ] {
            assert_ne!(other, base);
        }
    }

    #[test]
    fn a_token_belongs_to_one_start_of_one_node() {
        let node = NodeId::new("node_a");
        let base = agent_token(&[1; 32], &node, "start");
        assert_eq!(base, agent_token(&[1; 32], &node, "start"));
        for other in [
            agent_token(&[2; 32], &node, "start"),
            agent_token(&[1; 32], &NodeId::new("node_b"), "start"),
            agent_token(&[1; 32], &node, "another"),
        ] {
            assert_ne!(other, base);
        }
    }
}
