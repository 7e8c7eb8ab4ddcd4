//! Who asks: finds the one credential of a request, checks it, and names the principal. Fails closed, fetches nothing that
//! a token names, and lets no credential out: not into logs, errors or metrics.

mod crypto;
mod fetch;
mod header;
mod jwks;
mod keys;
mod keyset;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;

use config::ids::KeyId;
use config::settings::proxy::{Auth, Plan};
use config::token::Token;
use http::HeaderMap;
use policy::identity::Principal;
use policy::refusal::Refusal;

use crate::observe::metrics::Metrics;
use crate::store::Store;
use header::Credential;
use keys::{ApiKeys, StoreOr};
use verify::Tokens;

/// Checks credentials. Cheap to share; one for the whole proxy.
#[derive(Debug)]
pub struct Authenticator {
    keys: ApiKeys,
    tokens: Tokens,
    metrics: Arc<Metrics>,
}

/// Why an authenticator cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No TLS client for fetching keys.
    #[error("the client for fetching issuer keys cannot start: {0}")]
    Client(reqwest::Error),
}

impl Authenticator {
    /// Starts with the issuers of the settings and the plans they name; fetches their keys in the background. Needs a
    /// tokio runtime.
    pub fn new(
        auth: &Auth,
        plans: &BTreeMap<String, Plan>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AuthError> {
        crypto::install();
        let tokens = Tokens::new(auth, plans, &metrics).map_err(AuthError::Client)?;
        Ok(Self {
            keys: ApiKeys::new(store),
            tokens,
            metrics,
        })
    }

    /// The principal behind the request's credential.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        now_unix: i64,
    ) -> Result<Principal, Refusal> {
        let principal = match header::credential(headers) {
            Ok(Credential::Key(key)) => self.check_key(&key, now_unix).await,
            Ok(Credential::Jwt(token)) => self.tokens.check(token, now_unix).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &principal {
            self.metrics.auth_failure(refusal.label());
        }
        principal
    }

    async fn check_key(&self, key: &Token, now_unix: i64) -> Result<Principal, Refusal> {
        self.keys
            .check(key, now_unix)
            .await
            .map_err(|why| match why {
                StoreOr::Refused(refusal) => refusal,
                StoreOr::Store(error) => {
                    // The store itself tells once that it is away; strangers must not fill the log.
                    tracing::debug!(%error, "a key cannot be looked up");
                    self.metrics.store_error(error.label());
                    Refusal::StoreAway
                }
            })
    }

    /// Forgets what it knows of a key, so that a revocation counts from the next request on.
    pub fn forget_key(&self, id: &KeyId) {
        self.keys.forget(id);
    }

    /// Whether the keys of every issuer are at hand.
    pub fn is_ready(&self) -> bool {
        self.tokens.is_ready()
    }
}

#[cfg(test)]
mod tests;
