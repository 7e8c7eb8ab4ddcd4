//! Reads a JWK set with suspicion: only public signature keys that we can use come out, each bound to its algorithms.
//! Fetches nothing.

use std::collections::HashMap;

use config::settings::proxy::Issuer;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

/// Keys in one set at most.
const KEYS_MAX: usize = 64;
/// Bytes of a `kid` at most; longer ones are nobody's.
pub(super) const KID_BYTES_MAX: usize = 256;

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Why a set as a whole is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum KeySetError {
    #[error("it is not a JWK set")]
    NotASet,
    #[error("it holds more than {KEYS_MAX} keys")]
    TooManyKeys,
    #[error("it holds no key that this issuer may sign with")]
    NoUsableKey,
}

/// Usable keys by `kid`.
#[derive(Debug)]
pub(super) struct KeySet(HashMap<String, VerifyingKey>);

/// A public key and the algorithms it may be used with.
#[derive(Clone, Debug)]
pub(super) struct VerifyingKey {
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Takes what is usable out of a document. A `kid` that two keys claim is nobody's.
    pub(super) fn parse(document: &[u8], allowed: &[Algorithm]) -> Result<Self, KeySetError> {
        let document: Value = serde_json::from_slice(document).map_err(|_| KeySetError::NotASet)?;
        let Some(entries) = document.get("keys").and_then(Value::as_array) else {
            return Err(KeySetError::NotASet);
        };
        if entries.len() > KEYS_MAX {
            return Err(KeySetError::TooManyKeys);
        }
        let mut claimed: HashMap<String, Option<VerifyingKey>> = HashMap::new();
        for entry in entries {
            let Some(kid) = entry.get("kid").and_then(Value::as_str) else {
                continue;
            };
            let key = VerifyingKey::parse(entry, allowed);
            claimed
                .entry(kid.to_owned())
                .and_modify(|taken| *taken = None)
                .or_insert(key);
        }
        let keys: HashMap<_, _> = claimed
            .into_iter()
            .filter(|(kid, _)| kid.len() <= KID_BYTES_MAX)
            .filter_map(|(kid, key)| key.map(|key| (kid, key)))
            .collect();
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey);
        }
        Ok(Self(keys))
    }

    pub(super) fn find(&self, kid: &str) -> Option<&VerifyingKey> {
        self.0.get(kid)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl VerifyingKey {
    fn parse(entry: &Value, allowed: &[Algorithm]) -> Option<Self> {
        // `d` and `k` are private: whoever publishes them has lost the key.
        if entry.get("d").is_some() || entry.get("k").is_some() {
            return None;
        }
        let jwk: Jwk = serde_json::from_value(entry.clone()).ok()?;
        let for_signatures = match &jwk.common.public_key_use {
            None | Some(PublicKeyUse::Signature) => true,
            Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_)) => false,
        };
        let verifies = jwk
            .common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        if !for_signatures || !verifies {
            return None;
        }
        let of_type = algorithms_of(&jwk.algorithm);
        let algorithms: Vec<Algorithm> = match jwk.common.key_algorithm {
            Some(named) => {
                let named = Algorithm::try_from(named).ok()?;
                of_type
                    .iter()
                    .copied()
                    .filter(|one| *one == named)
                    .collect()
            }
            None => of_type.to_vec(),
        };
        let algorithms: Vec<Algorithm> = algorithms
            .into_iter()
            .filter(|algorithm| allowed.contains(algorithm))
            .collect();
        if algorithms.is_empty() {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { algorithms, key })
    }

    /// The key, if it may be used with this algorithm.
    pub(super) fn with(&self, algorithm: Algorithm) -> Option<&DecodingKey> {
        self.algorithms.contains(&algorithm).then_some(&self.key)
    }
}

fn algorithms_of(parameters: &AlgorithmParameters) -> &'static [Algorithm] {
    if matches!(parameters, AlgorithmParameters::RSA(_)) {
        return &RSA;
    }
    if let AlgorithmParameters::EllipticCurve(key) = parameters {
        if key.curve == EllipticCurve::P256 {
            return &[Algorithm::ES256];
        }
        if key.curve == EllipticCurve::P384 {
            return &[Algorithm::ES384];
        }
    }
    if let AlgorithmParameters::OctetKeyPair(key) = parameters
        && key.curve == EllipticCurve::Ed25519
    {
        return &[Algorithm::EdDSA];
    }
    // P-521 (ring has none), symmetric keys, and whatever is invented later.
    &[]
}

/// The algorithms that an issuer may use; HMAC never, whatever the settings say.
pub(super) fn allowed_algorithms(issuer: &Issuer) -> Vec<Algorithm> {
    issuer
        .algorithms
        .iter()
        .filter_map(|name| algorithm(name))
        .collect()
}

/// An asymmetric algorithm by its name in RFC 7518 and RFC 8037.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    let algorithm = match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    };
    Some(algorithm)
}
