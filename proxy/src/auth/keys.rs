//! API keys: looks them up, compares hashes in constant time, and remembers the answer for a moment. A key that is revoked by
//! this process is refused from the next request on; one that another proxy revoked, within [`REMEMBERED`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use config::ids::KeyId;
use config::secret::Secret;
use config::token::{Token, TokenKind};
use policy::identity::{Principal, Scope};
use policy::refusal::Refusal;
use tokio::time::Instant;

use super::header::invalid;
use crate::store::{KeyRecord, PEPPER, SecretHash, Store, StoreError};

/// How long a look-up is believed. Revocation must count everywhere within 2 s.
const REMEMBERED: Duration = Duration::from_millis(1_500);
/// Look-ups remembered at most, those that found nothing included.
const REMEMBERED_MAX: usize = 10_000;
/// Time between two notes that a key was used.
const TOUCH_EVERY_SECS: i64 = 60;

/// All API keys.
pub(super) struct ApiKeys {
    store: Arc<dyn Store>,
    pepper: Mutex<Option<(Secret<[u8; 32]>, Instant)>>,
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    keys: HashMap<KeyId, Known>,
    /// Counts revocations, so that a look-up from before one is not remembered after it.
    epoch: u64,
}

#[derive(Clone)]
struct Known {
    key: Option<Arc<KeyRecord>>,
    at: Instant,
    touched_unix: i64,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").finish_non_exhaustive()
    }
}

impl ApiKeys {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            pepper: Mutex::default(),
            remembered: Mutex::default(),
        }
    }

    /// Whether the key may enter, and as whom.
    pub(super) async fn check(&self, token: &Token, now_unix: i64) -> Result<Principal, StoreOr> {
        let admin = match token.kind() {
            TokenKind::Client => false,
            TokenKind::Admin => true,
            TokenKind::Join => {
                return Err(invalid("this is a join token for nodes, not an API key").into());
            }
        };
        let id = KeyId::new(token.id());
        let key = self.look_up(&id).await?;
        let shown = SecretHash::of(self.pepper().await?.expose(), token.secret().expose());
        // An unknown id and a wrong secret look the same, so that ids cannot be probed.
        let key = key
            .filter(|key| key.admin == admin && key.secret_hash.matches(&shown))
            .ok_or_else(|| invalid("no such API key"))?;
        if key.revoked_unix.is_some() {
            return Err(Refusal::RevokedCredential.into());
        }
        if key.expires_unix.is_some_and(|expires| expires <= now_unix) {
            return Err(Refusal::ExpiredCredential.into());
        }
        self.touch(&key, now_unix);
        Ok(principal(&key))
    }

    /// Looks the key up again at its next use.
    pub(super) fn forget(&self, id: &KeyId) {
        let mut remembered = self.lock();
        remembered.epoch = remembered.epoch.wrapping_add(1);
        remembered.keys.remove(id);
    }

    async fn look_up(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let epoch = {
            let remembered = self.lock();
            if let Some(known) = remembered.keys.get(id)
                && known.at.elapsed() < REMEMBERED
            {
                return Ok(known.key.clone());
            }
            remembered.epoch
        };
        let asked_at = Instant::now();
        let key = self.store.key(id).await?.map(Arc::new);
        let mut remembered = self.lock();
        if remembered.epoch == epoch {
            remembered.insert(id.clone(), key.clone(), asked_at);
        }
        Ok(key)
    }

    /// Asked for again now and then: a store that lost its data may have a new one.
    async fn pepper(&self) -> Result<Secret<[u8; 32]>, StoreError> {
        let known = self
            .pepper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((pepper, asked_at)) = known
            && asked_at.elapsed() < REMEMBERED
        {
            return Ok(pepper);
        }
        let asked_at = Instant::now();
        let pepper = self.store.secret(PEPPER).await?;
        let mut known = self.pepper.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((pepper.clone(), asked_at));
        Ok(pepper)
    }

    /// Notes the use of a key, not more than once a minute, beside the request.
    fn touch(&self, key: &KeyRecord, now_unix: i64) {
        {
            let mut remembered = self.lock();
            let Some(known) = remembered.keys.get_mut(&key.id) else {
                return;
            };
            if now_unix.saturating_sub(known.touched_unix) < TOUCH_EVERY_SECS {
                return;
            }
            known.touched_unix = now_unix;
        }
        let (store, id) = (Arc::clone(&self.store), key.id.clone());
        tokio::spawn(async move {
            if let Err(error) = store.touch_key(&id, now_unix).await {
                tracing::debug!(key = %id, %error, "the use of a key could not be noted");
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn insert(&mut self, id: KeyId, key: Option<Arc<KeyRecord>>, at: Instant) {
        if self.keys.len() >= REMEMBERED_MAX {
            self.keys.retain(|_, known| known.at.elapsed() < REMEMBERED);
        }
        if self.keys.len() >= REMEMBERED_MAX {
            self.keys.clear();
        }
        let touched_unix = key
            .as_ref()
            .and_then(|key| key.last_used_unix)
            .unwrap_or(i64::MIN);
        let known = Known {
            key,
            at,
            touched_unix,
        };
        self.keys.insert(id, known);
    }
}

fn principal(key: &KeyRecord) -> Principal {
    Principal {
        user: key.owner.clone(),
        key: Some(key.id.clone()),
        scopes: key.scopes.clone(),
        tiers: key.tiers.clone(),
        models: key.models.clone(),
        plan: key.plan,
        admin: key.admin || key.scopes.contains(&Scope::Admin),
    }
}

/// Why a key did not pass: our no, or no answer from the store.
#[derive(Debug)]
pub(super) enum StoreOr {
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
