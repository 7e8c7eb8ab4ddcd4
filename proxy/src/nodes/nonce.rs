//! Nonces for enrolment and registration: stateless, so that any proxy of one store can check what another issued.
//! Keeps nothing: within its life a nonce can be used again, which repeats a registration and changes nothing.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

/// Long enough for a slow home line, short enough that a recorded request is soon worthless.
pub const LIFE: Duration = Duration::from_mins(1);

const TIME_BYTES: usize = 8;
const RANDOM_BYTES: usize = 16;
const BODY_BYTES: usize = TIME_BYTES + RANDOM_BYTES;
const TAG_BYTES: usize = 32;

/// Issues and checks nonces under one secret.
#[derive(Debug)]
pub struct Nonces {
    key: hmac::Key,
}

impl Nonces {
    /// Nonces under a secret that all proxies of one store share.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
        }
    }

    /// A fresh nonce: time, randomness, and a tag over both.
    pub fn issue(&self, now_ms: u64) -> String {
        let mut bytes = Vec::with_capacity(BODY_BYTES + TAG_BYTES);
        bytes.extend_from_slice(&now_ms.to_be_bytes());
        bytes.extend_from_slice(&rand::random::<[u8; RANDOM_BYTES]>());
        let tag = hmac::sign(&self.key, &bytes);
        bytes.extend_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Whether a nonce is ours and still alive. Other proxies' clocks may run a little ahead.
    pub fn is_valid(&self, nonce: &str, now_ms: u64) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(nonce) else {
            return false;
        };
        let Some((body, tag)) = bytes.split_at_checked(BODY_BYTES) else {
            return false;
        };
        // The tag's length is checked by the comparison, which takes constant time.
        if hmac::verify(&self.key, body, tag).is_err() {
            return false;
        }
        let Some((time, _random)) = body.split_first_chunk::<TIME_BYTES>() else {
            return false;
        };
        let age = now_ms.abs_diff(u64::from_be_bytes(*time));
        Duration::from_millis(age) <= LIFE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn a_fresh_nonce_is_valid_for_a_minute() {
        let nonces = Nonces::new(&[7; 32]);
        let nonce = nonces.issue(NOW);
        assert!(nonces.is_valid(&nonce, NOW));
        assert!(nonces.is_valid(&nonce, NOW + 60_000));
        assert!(
            !nonces.is_valid(&nonce, NOW + 60_001),
            "a recorded nonce must die"
        );
    }

    #[test]
    fn a_nonce_of_another_secret_or_with_a_changed_byte_is_refused() {
        let nonces = Nonces::new(&[7; 32]);
        let nonce = nonces.issue(NOW);
        assert!(!Nonces::new(&[8; 32]).is_valid(&nonce, NOW));
        let mut bytes = URL_SAFE_NO_PAD.decode(&nonce).unwrap();
        for index in 0..bytes.len() {
            bytes[index] ^= 1;
            assert!(
                !nonces.is_valid(&URL_SAFE_NO_PAD.encode(&bytes), NOW),
                "byte {index} is not covered by the tag"
            );
            bytes[index] ^= 1;
        }
        for text in ["", "AAAA", "not base64!"] {
            assert!(!nonces.is_valid(text, NOW));
        }
    }

    #[test]
    fn two_nonces_of_one_moment_differ() {
        let nonces = Nonces::new(&[7; 32]);
        assert_ne!(nonces.issue(NOW), nonces.issue(NOW));
    }
}
