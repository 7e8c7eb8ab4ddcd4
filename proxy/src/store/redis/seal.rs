//! What keeps whoever can write to Redis, and nothing else, from making a key or a node: every record carries a code of its text
//! and its place, and secrets are encrypted. Both under a key that never lies in Redis. It cannot tell that an old record was put
//! back, nor that one was removed. Talks to no Redis.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use config::secret::Secret;
use config::settings::proxy::Redis as RedisSettings;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{hkdf, hmac};

use crate::store::{StoreError, local, local_secret};

/// The key's name in the state directory, when the settings name no file.
const LOCAL_KEY: &str = "redis-store-key";
/// Written there when nothing without a seal is believed any more.
const MARKER: &str = "redis-is-sealed";
/// Before a sealed record: version, code in hex, colon, text.
const RECORD: &str = "s1:";
/// Before an encrypted secret: version, base64 of nonce and box.
const SECRET: &str = "e1:";
const CODE_HEX: usize = 64;

/// The two keys, and whether what was written before there were seals is still read.
pub(super) struct Seal {
    records: hmac::Key,
    secrets: LessSafeKey,
    source: String,
    prefix: String,
    marker: PathBuf,
    is_strict: AtomicBool,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seal").finish_non_exhaustive()
    }
}

struct Bytes32;

impl hkdf::KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

impl Seal {
    /// Reads the key of the settings, or this proxy's own.
    pub(super) fn open(settings: &RedisSettings, state_dir: &Path) -> Result<Self, StoreError> {
        let (secret, source) = match &settings.secret_key_file {
            Some(path) => (key_file(path)?, path.display().to_string()),
            None => (
                local_secret(state_dir, LOCAL_KEY)?,
                state_dir
                    .join("secrets")
                    .join(LOCAL_KEY)
                    .display()
                    .to_string(),
            ),
        };
        let marker = state_dir.join(MARKER);
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"hearth redis").extract(secret.expose());
        let derive = |purpose: &[u8]| {
            let mut key = [0_u8; 32];
            root.expand(&[purpose], Bytes32)
                .and_then(|key_material| key_material.fill(&mut key))
                .map_err(|_| StoreError::Unavailable("no key can be derived".into()))?;
            Ok::<_, StoreError>(key)
        };
        let unusable = |_| StoreError::Unavailable("the store key is unusable".into());
        Ok(Self {
            records: hmac::Key::new(hmac::HMAC_SHA256, &derive(b"records")?),
            secrets: LessSafeKey::new(
                UnboundKey::new(&CHACHA20_POLY1305, &derive(b"secrets")?).map_err(unusable)?,
            ),
            source,
            prefix: settings.prefix.clone(),
            is_strict: AtomicBool::new(marker.exists()),
            marker,
        })
    }

    /// Whether nothing without a seal is believed.
    pub(super) fn is_strict(&self) -> bool {
        self.is_strict.load(Ordering::Acquire)
    }

    /// From now on, and after every restart, nothing without a seal is believed.
    pub(super) fn be_strict(&self) -> Result<(), StoreError> {
        fs::write(&self.marker, b"").map_err(|error| {
            StoreError::Unavailable(format!("{}: {error}", self.marker.display()))
        })?;
        self.is_strict.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether a stored text has a seal.
    pub(super) fn is_sealed(text: &str) -> bool {
        text.starts_with(RECORD) || text.starts_with(SECRET)
    }

    /// A record as it is stored.
    pub(super) fn seal(&self, (records, id): (&str, &str), json: &str) -> String {
        let code = hex::encode(self.code((records, id), json));
        format!("{RECORD}{code}:{json}")
    }

    /// The text of a stored record.
    pub(super) fn unseal<'t>(
        &self,
        (records, id): (&str, &str),
        text: &'t str,
    ) -> Result<&'t str, StoreError> {
        let Some(rest) = text.strip_prefix(RECORD) else {
            return if self.is_strict() {
                Err(self.foreign(records, id))
            } else {
                Ok(text)
            };
        };
        let parts = rest.split_at_checked(CODE_HEX);
        let json = parts.and_then(|(code, json)| {
            let json = json.strip_prefix(':')?;
            let context = self.message((records, id), json);
            let code = hex::decode(code).ok()?;
            hmac::verify(&self.records, &context, &code).ok()?;
            Some(json)
        });
        json.ok_or_else(|| self.foreign(records, id))
    }

    fn code(&self, place: (&str, &str), json: &str) -> hmac::Tag {
        hmac::sign(&self.records, &self.message(place, json))
    }

    /// Lengths before the texts: no two places and texts read the same.
    fn message(&self, (records, id): (&str, &str), json: &str) -> Vec<u8> {
        let mut message = Vec::with_capacity(json.len() + 128);
        for part in [self.prefix.as_str(), records, id] {
            message.extend_from_slice(&part.len().to_be_bytes());
            message.extend_from_slice(part.as_bytes());
        }
        message.extend_from_slice(json.as_bytes());
        message
    }

    fn foreign(&self, records: &str, id: &str) -> StoreError {
        StoreError::Corrupt(format!(
            "{records}/{id} was not written with the key in {}: every proxy of one Redis needs the same key (secret_key_file), and nothing else may write there",
            self.source
        ))
    }

    /// A secret as it is stored.
    pub(super) fn encrypt(&self, name: &str, secret: &[u8; 32]) -> Result<String, StoreError> {
        let random = local::random()?;
        let (nonce, _) = random
            .expose()
            .split_first_chunk::<NONCE_LEN>()
            .ok_or_else(|| StoreError::Unavailable("no nonce".into()))?;
        let mut boxed = secret.to_vec();
        self.secrets
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(self.message(("secrets", name), "")),
                &mut boxed,
            )
            .map_err(|_| StoreError::Unavailable("a secret cannot be encrypted".into()))?;
        let mut bytes = nonce.to_vec();
        bytes.append(&mut boxed);
        Ok(format!("{SECRET}{}", STANDARD_NO_PAD.encode(bytes)))
    }

    /// A stored secret; in hex as it was before there was a key, if that is still read.
    pub(super) fn decrypt(&self, name: &str, text: &str) -> Result<Secret<[u8; 32]>, StoreError> {
        let foreign = || self.foreign("secrets", name);
        let Some(boxed) = text.strip_prefix(SECRET) else {
            let mut bytes = [0_u8; 32];
            if self.is_strict() || hex::decode_to_slice(text, &mut bytes).is_err() {
                return Err(foreign());
            }
            return Ok(Secret::new(bytes));
        };
        let bytes = STANDARD_NO_PAD.decode(boxed).map_err(|_| foreign())?;
        let (nonce, boxed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(foreign)?;
        let mut boxed = boxed.to_vec();
        let plain = self
            .secrets
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(self.message(("secrets", name), "")),
                &mut boxed,
            )
            .map_err(|_| foreign())?;
        let secret: &[u8; 32] = (&*plain).try_into().map_err(|_| foreign())?;
        Ok(Secret::new(*secret))
    }
}

fn key_file(path: &Path) -> Result<Secret<[u8; 32]>, StoreError> {
    let text = fs::read_to_string(path).map_err(|error| {
        StoreError::Unavailable(format!(
            "cannot read secret_key_file {}: {error}",
            path.display()
        ))
    })?;
    let mut bytes = [0_u8; 32];
    hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| {
        StoreError::Unavailable(format!(
            "secret_key_file {} does not hold 64 hex digits; make one with: openssl rand -hex 32",
            path.display()
        ))
    })?;
    Ok(Secret::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(folder: &Path) -> Seal {
        let settings = crate::store::redis::tests::settings("redis://127.0.0.1:1/");
        Seal::open(&settings, folder).unwrap()
    }

    #[test]
    fn a_record_is_good_in_its_place_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let ours = seal(folder.path());
        let sealed = ours.seal(("keys", "a"), "{\"admin\":false}");
        assert_eq!(
            ours.unseal(("keys", "a"), &sealed).unwrap(),
            "{\"admin\":false}"
        );
        assert!(ours.unseal(("keys", "b"), &sealed).is_err());
        assert!(ours.unseal(("nodes", "a"), &sealed).is_err());
        let forged = sealed.replace("false", "true");
        assert!(ours.unseal(("keys", "a"), &forged).is_err());
        let other = tempfile::tempdir().unwrap();
        let error = seal(other.path())
            .unseal(("keys", "a"), &sealed)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("every proxy of one Redis needs the same key"),
            "{error}"
        );
    }

    #[test]
    fn what_has_no_seal_is_read_until_it_must_have_one_and_never_again() {
        let folder = tempfile::tempdir().unwrap();
        let ours = seal(folder.path());
        let plain = hex::encode([7; 32]);
        assert_eq!(ours.unseal(("keys", "a"), "{}").unwrap(), "{}");
        assert!(*ours.decrypt("pepper", &plain).unwrap().expose() == [7; 32]);
        ours.be_strict().unwrap();
        for ours in [&ours, &seal(folder.path())] {
            assert!(ours.unseal(("keys", "a"), "{}").is_err());
            assert!(ours.decrypt("pepper", &plain).is_err());
        }
    }

    #[test]
    fn secrets_are_encrypted_under_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let ours = seal(folder.path());
        let one = ours.encrypt("pepper", &[7; 32]).unwrap();
        assert!(one != ours.encrypt("pepper", &[7; 32]).unwrap());
        assert!(!one.contains(&hex::encode([7; 32])));
        assert!(*ours.decrypt("pepper", &one).unwrap().expose() == [7; 32]);
        assert!(ours.decrypt("hub", &one).is_err());
        let other = tempfile::tempdir().unwrap();
        assert!(seal(other.path()).decrypt("pepper", &one).is_err());
    }
}
