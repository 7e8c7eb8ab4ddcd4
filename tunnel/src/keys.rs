//! WireGuard key types. Secret keys are wiped on drop and never printed.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::error::Error;

const KEY_BYTES: usize = 32;

/// A WireGuard private key. It is wiped on drop and prints as `***`.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// Makes a new random key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0u8; KEY_BYTES]);
        rand::fill(bytes.as_mut_slice());
        Self(StaticSecret::from(*bytes))
    }

    /// Takes a key from storage.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self(StaticSecret::from(*bytes))
    }

    /// The key for storage; the caller keeps it as carefully as this type does.
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    pub(crate) fn secret(&self) -> &StaticSecret {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PrivateKey(***)")
    }
}

/// A WireGuard public key; its text form is base64, as `wg` prints it.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Takes the raw 32 bytes.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The raw 32 bytes.
    pub const fn to_bytes(self) -> [u8; KEY_BYTES] {
        self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

/// A pre-shared key mixed into the handshake. It is wiped on drop and prints as `***`.
#[derive(Clone, Eq, PartialEq)]
pub struct PresharedKey(Zeroizing<[u8; KEY_BYTES]>);

impl PresharedKey {
    /// Takes the raw 32 bytes.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The raw 32 bytes, for sending to the other side over a protected channel.
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        *self.0
    }

    /// Reads the base64 text form, 44 characters.
    pub fn from_base64(text: &str) -> Result<Self, Error> {
        decode(text).map(Self)
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PresharedKey(***)")
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, Error> {
    let mut buffer = Zeroizing::new([0u8; KEY_BYTES + 4]);
    match STANDARD.decode_slice(text.trim(), buffer.as_mut_slice()) {
        Ok(KEY_BYTES) => {
            let mut key = Zeroizing::new([0u8; KEY_BYTES]);
            key.copy_from_slice(&buffer[..KEY_BYTES]);
            Ok(key)
        }
        Ok(_) | Err(_) => Err(Error::BadKey),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let private = PrivateKey::from_bytes([7; 32]);
        let shared = PresharedKey::from_bytes([9; 32]);
        assert_eq!(
            format!("{private:?} {shared:?}"),
            "PrivateKey(***) PresharedKey(***)"
        );
    }

    #[test]
    fn a_generated_key_survives_storage() {
        let key = PrivateKey::generate();
        let again = PrivateKey::from_bytes(key.to_bytes());
        assert_eq!(key.public_key(), again.public_key());
        assert_ne!(key.to_bytes(), PrivateKey::generate().to_bytes());
    }

    proptest! {
        #[test]
        fn a_public_key_survives_its_text_form(bytes in any::<[u8; 32]>()) {
            let key = PublicKey::from_bytes(bytes);
            prop_assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        }

        #[test]
        fn no_text_makes_the_key_parser_panic(text in "\\PC{0,80}") {
            let parsed = text.parse::<PublicKey>();
            prop_assert!(parsed.is_err() || text.trim().len() == 44);
        }
    }
}
