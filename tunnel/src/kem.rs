//! The pre-shared key's part that a quantum computer does not break: one ML-KEM-768 exchange (FIPS 203) beside WireGuard's X25519. The
//! only room that names the crate. Secrets live in memory alone and are wiped when dropped.

use ml_kem::kem::{Decapsulate, Encapsulate, Kem, KeyExport, TryKeyInit};
use ml_kem::{DecapsulationKey, EncapsulationKey, MlKem768};
use ring::hkdf;
use zeroize::Zeroizing;

use crate::keys::{PresharedKey, PublicKey};

/// Bytes of an encapsulation key.
pub const KEY_BYTES: usize = 1184;
/// Bytes of a ciphertext.
pub const CIPHERTEXT_BYTES: usize = 1088;

/// Whoever asks for an exchange: half of it, for one use.
pub struct Asking {
    secret: DecapsulationKey<MlKem768>,
    public: Vec<u8>,
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asking").finish_non_exhaustive()
    }
}

impl Asking {
    /// A fresh pair of keys.
    pub fn new() -> Self {
        let (secret, public) = MlKem768::generate_keypair();
        Self {
            secret,
            public: public.to_bytes().to_vec(),
        }
    }

    /// What the other side needs, [`KEY_BYTES`].
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// What the other side made; `None` if `ciphertext` has another length. A forged one gives a secret that nobody else has.
    pub fn open(&self, ciphertext: &[u8]) -> Option<Shared> {
        let ciphertext = ciphertext.try_into().ok()?;
        let shared = Zeroizing::new(self.secret.decapsulate(ciphertext));
        Some(Shared(Zeroizing::new((*shared).into())))
    }
}

impl Default for Asking {
    fn default() -> Self {
        Self::new()
    }
}

/// A secret that both sides have and nobody else.
pub struct Shared(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Answers an asking: the ciphertext for the other side, and the secret. `None`: that is no encapsulation key.
pub fn answer(public: &[u8]) -> Option<(Vec<u8>, Shared)> {
    let key = EncapsulationKey::<MlKem768>::new_from_slice(public).ok()?;
    let (ciphertext, shared) = key.encapsulate();
    let shared = Zeroizing::new(shared);
    Some((
        ciphertext.to_vec(),
        Shared(Zeroizing::new((*shared).into())),
    ))
}

impl Shared {
    /// WireGuard's pre-shared key for one pair of keys: HKDF-SHA256 (RFC 5869) over a secret of the pair and this one. Whoever breaks
    /// either of the two alone learns nothing.
    pub fn preshared_key(
        &self,
        of_pair: &[u8; 32],
        initiator: PublicKey,
        responder: PublicKey,
    ) -> PresharedKey {
        let mut material = Zeroizing::new([0; 64]);
        material[..32].copy_from_slice(of_pair);
        material[32..].copy_from_slice(&*self.0);
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"hearth-psk-v2");
        let (initiator, responder) = (initiator.to_bytes(), responder.to_bytes());
        let mut key = [0; 32];
        salt.extract(&*material)
            .expand(&[&initiator, &responder], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .expect("32 bytes are what HKDF-SHA256 gives in one block");
        PresharedKey::from_bytes(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: [u8; 32] = [7; 32];

    fn keys() -> (PublicKey, PublicKey) {
        (
            PublicKey::from_bytes([1; 32]),
            PublicKey::from_bytes([2; 32]),
        )
    }

    #[test]
    fn both_sides_get_one_key_and_every_part_of_it_counts() {
        let asking = Asking::new();
        assert_eq!(asking.public().len(), KEY_BYTES);
        let (ciphertext, theirs) = answer(asking.public()).unwrap();
        assert_eq!(ciphertext.len(), CIPHERTEXT_BYTES);
        let ours = asking.open(&ciphertext).unwrap();
        let (node, hub) = keys();
        let key = ours.preshared_key(&PAIR, node, hub);
        assert_eq!(key, theirs.preshared_key(&PAIR, node, hub));
        assert_ne!(
            key,
            ours.preshared_key(&[8; 32], node, hub),
            "the pair's secret"
        );
        assert_ne!(
            key,
            ours.preshared_key(&PAIR, hub, node),
            "whose key is whose"
        );
        let (_, other) = answer(asking.public()).unwrap();
        assert_ne!(key, other.preshared_key(&PAIR, node, hub), "the exchange");
    }

    #[test]
    fn what_is_no_key_and_no_ciphertext_is_refused_and_a_forged_one_agrees_with_nobody() {
        assert!(answer(&[]).is_none());
        assert!(
            answer(&[0xff; KEY_BYTES]).is_none(),
            "coefficients beyond the modulus"
        );
        let asking = Asking::new();
        assert!(asking.open(&[0; CIPHERTEXT_BYTES - 1]).is_none());
        let (mut ciphertext, theirs) = answer(asking.public()).unwrap();
        ciphertext[5] ^= 1;
        let ours = asking.open(&ciphertext).unwrap();
        let (node, hub) = keys();
        assert_ne!(
            ours.preshared_key(&PAIR, node, hub),
            theirs.preshared_key(&PAIR, node, hub)
        );
    }
}
