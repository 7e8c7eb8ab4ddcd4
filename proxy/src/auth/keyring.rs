//! The life of API keys: made, changed, rotated with an overlap, revoked. Every proxy of the store hears of it. Shows a secret
//! once, to its caller, and keeps a hash.

use std::sync::Arc;
use std::time::Duration;

use config::ids::{KeyId, UserId};
use config::secret::Secret;
use config::token::{Token, TokenKind};

use crate::store::{KeyRecord, PEPPER, PreviousSecret, SecretHash, Store, StoreError};

/// How long the old secret of a rotated key stays good when nothing is said.
pub const GRACE_DEFAULT: Duration = Duration::from_hours(24);
/// And at most: two secrets at once are for a change-over, not for ever.
pub const GRACE_MAX: Duration = Duration::from_hours(30 * 24);
/// Tries of a change that others make at the same time.
const TRIES_MAX: usize = 16;

/// Why a key was not made or changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// No such key.
    #[error("no key {0}: `hearth-proxy key list` shows all")]
    NotFound(KeyId),
    /// It was revoked, for ever.
    #[error("the key {0} was revoked: make a new one")]
    Revoked(KeyId),
    /// It is not what the caller read any more.
    #[error("the key {0} was changed by somebody else: read it again and repeat the change")]
    Changed(KeyId),
    /// An overlap out of range.
    #[error("an overlap of {0} s: at most {max} s", max = GRACE_MAX.as_secs())]
    LongGrace(u64),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A key with its secret, which nobody can see again.
#[derive(Clone, Debug)]
pub struct Issued {
    /// What the store keeps.
    pub record: KeyRecord,
    /// The whole key.
    pub token: Secret<String>,
}

/// Makes and changes keys.
#[derive(Clone)]
pub struct Keys {
    store: Arc<dyn Store>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys {
    /// The keys of a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Makes a key. `fill` says all but id, secret, kind and time; it gets a plain client or admin key of the owner.
    pub async fn create(
        &self,
        owner: UserId,
        admin: bool,
        now_unix: i64,
        fill: impl FnOnce(&mut KeyRecord),
    ) -> Result<Issued, KeyError> {
        let token = Token::generate(kind(admin));
        let id = KeyId::new(token.id());
        let hash = self.hash(&token).await?;
        let mut record = KeyRecord {
            admin,
            ..KeyRecord::plain(id, hash, owner, now_unix)
        };
        let made = record.clone();
        fill(&mut record);
        keep_identity(&made, &mut record);
        self.store.put_key(&record).await?;
        Ok(Issued {
            record,
            token: token.reveal(),
        })
    }

    /// A new secret for a key; the old one stays good for `grace`, and one from before that ends now.
    pub async fn rotate(
        &self,
        id: &KeyId,
        grace: Duration,
        now_unix: i64,
    ) -> Result<Issued, KeyError> {
        if grace > GRACE_MAX {
            return Err(KeyError::LongGrace(grace.as_secs()));
        }
        let admin = self.read(id).await?.admin;
        let token = Token::renew(kind(admin), id.as_str());
        let hash = self.hash(&token).await?;
        let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let record = self
            .change(id, None, |record| {
                record.previous = (grace > 0).then(|| PreviousSecret {
                    secret_hash: record.secret_hash.clone(),
                    until_unix: now_unix.saturating_add(grace),
                    secret_unix: record.secret_unix,
                });
                record.secret_hash = hash.clone();
                record.secret_unix = now_unix;
            })
            .await?;
        Ok(Issued {
            record,
            token: token.reveal(),
        })
    }

    /// Changes what a key may do. With `expected` only if the key still is that, its last use aside.
    pub async fn update(
        &self,
        id: &KeyId,
        expected: Option<&KeyRecord>,
        change: impl Fn(&mut KeyRecord),
    ) -> Result<KeyRecord, KeyError> {
        self.change(id, expected, |record| {
            let before = record.clone();
            change(record);
            keep_identity(&before, record);
        })
        .await
    }

    /// Ends a key for ever, on every proxy. The second time changes nothing.
    pub async fn revoke(&self, id: &KeyId, now_unix: i64) -> Result<KeyRecord, KeyError> {
        let revoked = self.store.revoke_key(id, now_unix).await?;
        revoked.ok_or_else(|| KeyError::NotFound(id.clone()))
    }

    async fn read(&self, id: &KeyId) -> Result<KeyRecord, KeyError> {
        let known = self.store.key(id).await?;
        let known = known.ok_or_else(|| KeyError::NotFound(id.clone()))?;
        if known.revoked_unix.is_some() {
            return Err(KeyError::Revoked(id.clone()));
        }
        Ok(known)
    }

    async fn change(
        &self,
        id: &KeyId,
        expected: Option<&KeyRecord>,
        change: impl Fn(&mut KeyRecord),
    ) -> Result<KeyRecord, KeyError> {
        for _ in 0..TRIES_MAX {
            let before = self.read(id).await?;
            if expected.is_some_and(|expected| !is_same(expected, &before)) {
                return Err(KeyError::Changed(id.clone()));
            }
            let mut after = before.clone();
            change(&mut after);
            if self.store.swap_key(&before, &after).await? {
                return Ok(after);
            }
        }
        Err(KeyError::Store(StoreError::Overloaded))
    }

    async fn hash(&self, token: &Token) -> Result<SecretHash, StoreError> {
        let pepper = self.store.secret(PEPPER).await?;
        Ok(SecretHash::of(pepper.expose(), token.secret().expose()))
    }
}

const fn kind(admin: bool) -> TokenKind {
    if admin {
        TokenKind::Admin
    } else {
        TokenKind::Client
    }
}

/// A change of what a key may do cannot make another key of it, nor bring one back.
fn keep_identity(before: &KeyRecord, after: &mut KeyRecord) {
    after.id.clone_from(&before.id);
    after.secret_hash.clone_from(&before.secret_hash);
    after.previous.clone_from(&before.previous);
    after.secret_unix = before.secret_unix;
    after.admin = before.admin;
    after.created_unix = before.created_unix;
    after.last_used_unix = before.last_used_unix;
    after.revoked_unix = before.revoked_unix;
}

fn is_same(one: &KeyRecord, other: &KeyRecord) -> bool {
    let one = KeyRecord {
        last_used_unix: other.last_used_unix,
        ..one.clone()
    };
    one == *other
}
