//! Who asks: finds the one credential of a request, checks it, and names the principal. Fails closed, fetches nothing that
//! a token names, and lets no credential out: not into logs, errors or metrics.

mod crypto;
pub mod denials;
mod fetch;
mod header;
mod jwks;
pub mod keyring;
mod keys;
mod keyset;
mod lookups;
mod people;
mod recent;
mod verify;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use config::ids::KeyId;
use config::settings::proxy::{Auth, Issuer, Plan};
use http::HeaderMap;
use policy::identity::Principal;
use policy::refusal::{AccountFault, Refusal};
use tokio::sync::broadcast;

use crate::observe::metrics::Metrics;
use crate::store::{Change, Store, StoreError, changes};
use denials::Denials;
use header::Credential;
use keys::ApiKeys;
use people::{People, Person};
use verify::Tokens;

/// Checks credentials. Cheap to share; one for the whole proxy.
#[derive(Debug)]
pub struct Authenticator {
    rooms: Arc<Rooms>,
    azure_header: bool,
    metrics: Arc<Metrics>,
}

/// What has a memory that changes elsewhere must reach.
#[derive(Debug)]
struct Rooms {
    keys: ApiKeys,
    tokens: Tokens,
    people: People,
    denials: Denials,
}

/// A credential that was right, before the deny list and the store were asked about who showed it.
#[derive(Clone, Debug)]
struct Seen {
    principal: Principal,
    /// When the credential was made, Unix seconds.
    made: Option<i64>,
    /// For whoever came through an issuer.
    person: Option<Person>,
}

/// How many keys an issuer has that its tokens could be signed with, fetched now; or why there are none. For whoever looks after it.
pub async fn keys_of(issuer: &Issuer) -> Result<usize, String> {
    crypto::install();
    let client = fetch::client().map_err(|error| error.to_string())?;
    let fetched = fetch::key_set(&client, &issuer.issuer, &issuer.keys).await;
    let document = fetched.map_err(|error| error.to_string())?;
    let allowed = keyset::allowed_algorithms(issuer);
    let set = keyset::KeySet::parse(&document.body, &allowed);
    set.map(|set| set.len()).map_err(|error| error.to_string())
}

/// Why an authenticator cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No TLS client for fetching keys.
    #[error("the client for fetching issuer keys cannot start: {0}")]
    Client(reqwest::Error),
}

impl Authenticator {
    /// Starts with the issuers of the settings and the plans they name; fetches their keys in the background and listens to
    /// the changes of the store. Needs a tokio runtime.
    pub fn new(
        auth: &Auth,
        plans: &BTreeMap<String, Plan>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AuthError> {
        crypto::install();
        let tokens = Tokens::new(auth, plans, &metrics).map_err(AuthError::Client)?;
        let changes = store.changes();
        let rooms = Arc::new(Rooms {
            keys: ApiKeys::new(Arc::clone(&store), auth.stale),
            tokens,
            people: People::new(Arc::clone(&store), plans, auth.stale),
            denials: Denials::new(store),
        });
        tokio::spawn(listen(changes, Arc::downgrade(&rooms)));
        Ok(Self {
            rooms,
            azure_header: auth.azure_header,
            metrics,
        })
    }

    /// The principal behind the request's credential.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        now_unix: i64,
    ) -> Result<Principal, Refusal> {
        let principal = self.see(headers, now_unix).await.map_err(|why| match why {
            StoreOr::Refused(refusal) => refusal,
            StoreOr::Store(error) => {
                // The store itself tells once that it is away; strangers must not fill the log.
                tracing::debug!(%error, "a credential cannot be looked up");
                self.metrics.store_error(error.label());
                Refusal::StoreAway
            }
        });
        if let Err(refusal) = &principal {
            self.metrics.auth_failure(refusal.label());
        }
        principal
    }

    async fn see(&self, headers: &HeaderMap, now_unix: i64) -> Result<Principal, StoreOr> {
        let rooms = &self.rooms;
        let mut seen = match header::credential(headers, self.azure_header)? {
            Credential::Key(key) => rooms.keys.check(&key, now_unix).await?,
            Credential::Jwt(token) => rooms.tokens.check(token, now_unix).await?,
        };
        if let Some(end_user) = header::end_user(headers)? {
            if !seen.principal.may_act_as {
                let why = AccountFault::MayNotActAs;
                return Err(Refusal::AccountNotAllowed { why }.into());
            }
            seen.principal = seen.principal.acting_as(end_user)?;
        }
        let made = seen.made;
        rooms.denials.check(&seen.principal, made, now_unix).await?;
        rooms.people.greet(seen, now_unix).await
    }

    /// The end user whom the body names (`user`, `safety_identifier`), if the key may name one and the head named none.
    pub async fn acting_as(
        &self,
        principal: Principal,
        end_user: &str,
        now_unix: i64,
    ) -> Result<Principal, Refusal> {
        if !principal.may_act_as || principal.acts_for.is_some() {
            return Ok(principal);
        }
        let principal = principal.acting_as(end_user)?;
        let checked = self
            .rooms
            .denials
            .check(&principal, Some(now_unix), now_unix);
        match checked.await {
            Ok(()) => Ok(principal),
            Err(StoreOr::Refused(refusal)) => Err(refusal),
            Err(StoreOr::Store(error)) => {
                self.metrics.store_error(error.label());
                Err(Refusal::StoreAway)
            }
        }
    }

    /// Forgets what it knows of a key, so that a revocation counts from the next request on.
    pub fn forget_key(&self, id: &KeyId) {
        self.rooms.keys.forget(id);
    }

    /// Whether the keys of every issuer are at hand.
    pub fn is_ready(&self) -> bool {
        self.rooms.tokens.is_ready()
    }
}

impl Rooms {
    async fn heed(&self, change: Change) {
        match change {
            Change::Key(id) => self.keys.forget(&id),
            Change::User(id) => self.people.forget(&id),
            Change::Denials => self.denials.reload().await,
            Change::Node(_) | Change::Breaker { .. } | Change::Hub { .. } => {}
            Change::Everything => {
                self.keys.doubt_all();
                self.people.doubt_all();
                self.tokens.forget_all();
                self.denials.reload().await;
            }
        }
    }
}

/// Heeds what other proxies changed, until the store or the rooms are gone.
async fn listen(mut changes: broadcast::Receiver<Change>, rooms: Weak<Rooms>) {
    while let Some(change) = changes::next(&mut changes).await {
        let Some(rooms) = rooms.upgrade() else {
            return;
        };
        rooms.heed(change).await;
    }
}

/// Why a credential did not pass: our no, or no answer from the store.
#[derive(Debug)]
enum StoreOr {
    Refused(Refusal),
    Store(StoreError),
}

impl From<Refusal> for StoreOr {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for StoreOr {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
mod tests;
