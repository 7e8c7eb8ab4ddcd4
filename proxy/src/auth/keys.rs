//! API keys: looks them up, compares hashes in constant time, and remembers the answer for a moment. A key that this process or
//! another proxy revoked is refused as soon as the store pushes that, and within 2 s when the push is lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::ids::KeyId;
use config::secret::Secret;
use config::token::{Token, TokenKind};
use policy::identity::{Principal, Scope};
use policy::refusal::Refusal;
use tokio::time::Instant;

use super::header::invalid;
use super::lookups::Lookups;
use super::recent::Recent;
use super::{Seen, StoreOr};
use crate::store::changes::WATCHED;
use crate::store::{KeyRecord, PEPPER, SecretHash, Store, StoreError};

/// Time between two notes that a key was used.
const TOUCH_EVERY_SECS: i64 = 60;
/// Keys whose last note is remembered.
const TOUCHED_MAX: usize = 20_000;

/// All API keys.
pub(super) struct ApiKeys {
    store: Arc<dyn Store>,
    pepper: Mutex<Option<(Secret<[u8; 32]>, Instant)>>,
    lookups: Lookups<KeyId, KeyRecord>,
    touched: Mutex<Recent<KeyId, i64>>,
    stale: Duration,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").finish_non_exhaustive()
    }
}

impl ApiKeys {
    pub(super) fn new(store: Arc<dyn Store>, stale: Duration) -> Self {
        Self {
            store,
            pepper: Mutex::default(),
            lookups: Lookups::new(stale, false),
            touched: Mutex::new(Recent::new(TOUCHED_MAX)),
            stale,
        }
    }

    /// Whether the key may enter, and as whom.
    pub(super) async fn check(&self, token: &Token, now_unix: i64) -> Result<Seen, StoreOr> {
        let admin = match token.kind() {
            TokenKind::Client => false,
            TokenKind::Admin => true,
            TokenKind::Join => {
                return Err(invalid("this is a join token for nodes, not an API key").into());
            }
        };
        let id = KeyId::new(token.id());
        let watched = self.store.watched_until();
        let key = self.lookups.get(&id, watched, self.store.key(&id)).await?;
        let shown = SecretHash::of(self.pepper().await?.expose(), token.secret().expose());
        // An unknown id, a wrong secret and one that was rotated away look the same, so that ids cannot be probed.
        let (key, made) = key
            .filter(|key| key.admin == admin)
            .and_then(|key| {
                let made = key.secret_made(&shown, now_unix)?;
                Some((key, made))
            })
            .ok_or_else(|| invalid("no such API key"))?;
        if key.revoked_unix.is_some() {
            return Err(Refusal::RevokedCredential.into());
        }
        if key.expires_unix.is_some_and(|expires| expires <= now_unix) {
            return Err(Refusal::ExpiredCredential.into());
        }
        self.touch(&key, now_unix);
        Ok(Seen {
            principal: principal(&key),
            made: Some(made),
            person: None,
        })
    }

    /// Looks the key up again at its next use.
    pub(super) fn forget(&self, id: &KeyId) {
        self.lookups.forget(id);
    }

    /// Looks every key up again at its next use.
    pub(super) fn doubt_all(&self) {
        self.lookups.doubt_all();
    }

    /// Asked for again now and then: a store that lost its data may have a new one.
    async fn pepper(&self) -> Result<Secret<[u8; 32]>, StoreError> {
        let known = self
            .pepper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let watched = self.store.watched_until();
        let age = |at: Instant| watched.map_or(at, |watched| watched.max(at)).elapsed();
        if let Some((pepper, asked_at)) = &known
            && age(*asked_at) < WATCHED
        {
            return Ok(pepper.clone());
        }
        let asked_at = Instant::now();
        match (self.store.secret(PEPPER).await, known) {
            (Ok(pepper), _) => {
                let mut known = self.pepper.lock().unwrap_or_else(PoisonError::into_inner);
                *known = Some((pepper.clone(), asked_at));
                Ok(pepper)
            }
            (Err(_), Some((pepper, at))) if age(at) < self.stale => Ok(pepper),
            (Err(error), _) => Err(error),
        }
    }

    /// Notes the use of a key, not more than once a minute, beside the request.
    fn touch(&self, key: &KeyRecord, now_unix: i64) {
        {
            let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
            let last = touched
                .get(&key.id)
                .map(|last| *last)
                .max(key.last_used_unix);
            if last.is_some_and(|last| now_unix.saturating_sub(last) < TOUCH_EVERY_SECS) {
                return;
            }
            touched.insert(key.id.clone(), now_unix);
        }
        let (store, id) = (Arc::clone(&self.store), key.id.clone());
        tokio::spawn(async move {
            if let Err(error) = store.touch_key(&id, now_unix).await {
                tracing::debug!(key = %id, %error, "the use of a key could not be noted");
            }
        });
    }
}

fn principal(key: &KeyRecord) -> Principal {
    Principal {
        tenant: key.tenant.clone(),
        groups: key.groups.clone(),
        key: Some(key.id.clone()),
        scopes: key.scopes.clone(),
        tiers: key.tiers.clone(),
        models: key.models.clone(),
        key_plan: key.limits,
        may_act_as: key.act_as,
        local_only: key.local_only,
        admin: key.admin || key.scopes.contains(&Scope::Admin),
        ..Principal::person(key.owner.clone(), key.plan)
    }
}
