//! Keys: list, make, show, change, rotate, revoke.

use std::time::Duration;

use config::ids::KeyId;
use config::settings::proxy::Plan;
use config::token::TokenKind;
use serde_json::Value;

use super::{Answer, Api, At, json, tag};
use crate::admin::operations::{self, AdminError, Operations};
use crate::admin::routes::KeyAct;
use crate::admin::words::{KeyMade, KeyOrder, KeyPatch, KeyView, RotateOrder};
use crate::auth::keyring::{GRACE_DEFAULT, KeyError, Keys};
use crate::store::{KeyRecord, UserRecord};

impl Api {
    pub(super) async fn act_on_keys(&self, act: KeyAct, at: &At<'_>) -> Result<Answer, AdminError> {
        match act {
            KeyAct::List => self.list_keys(at).await,
            KeyAct::Create => self.create_key(at).await,
            KeyAct::Show => self.show_key(at).await,
            KeyAct::Patch => self.patch_key(at).await,
            KeyAct::Revoke => self.revoke_key(at).await,
            KeyAct::Rotate => self.rotate_key(at).await,
        }
    }

    async fn list_keys(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let keys = self.operations.store().keys().await?;
        let keys = keys.into_iter().map(KeyView::from).collect();
        Answer::ok(&at.page(keys, |key: &KeyView| key.id.to_string())?)
    }

    async fn show_key(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let record = self.key(at.id).await?;
        let tag = tag_of(&record);
        Ok(Answer::ok(&KeyView::from(record))?.tagged(&tag))
    }

    /// A key by its id, by the whole key, or by its name if only one good key has it.
    async fn key(&self, id: &str) -> Result<KeyRecord, AdminError> {
        let store = self.operations.store();
        let named = operations::key_id(id);
        if let Ok(id) = &named
            && let Some(known) = store.key(id).await?
        {
            return Ok(known);
        }
        let keys = store.keys().await?.into_iter();
        let mut called = keys.filter(|key| key.name == id && key.revoked_unix.is_none());
        match (called.next(), called.count()) {
            (Some(key), 0) => Ok(key),
            (Some(_), more) => Err(AdminError::Conflict(format!(
                "{} keys are called {id}: use the id, as `hearth-proxy key list` shows it",
                more + 1
            ))),
            (None, _) => Err(operations::no_key(&named?)),
        }
    }

    async fn create_key(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let order: KeyOrder = at.order()?;
        let kind = if order.admin {
            TokenKind::Admin
        } else {
            TokenKind::Client
        };
        let once = at.asked.once()?;
        let token = self.operations.token(kind, once.as_deref()).await?;
        let record = self.operations.key_record(&order, &token).await?;
        let made = |record: KeyRecord| KeyMade {
            key: token.reveal().expose().clone(),
            record: record.into(),
        };
        if once.is_some()
            && let Some(known) = self.operations.store().key(&record.id).await?
        {
            if is_same_order(&known, &record) {
                return Answer::made(&made(known));
            }
            return Err(AdminError::Conflict(
                "this idempotency-key made another key, or one that was changed since: use a new one"
                    .into(),
            ));
        }
        let view = json(&KeyView::from(record.clone()));
        self.note(at, record.id.as_str(), (Value::Null, view))
            .await?;
        self.operations.store().put_key(&record).await?;
        // So that the owner is listed, and can be given a plan before the key was ever used.
        let owner = owner_of(&record);
        self.operations.store().create_user(&owner).await?;
        Answer::made(&made(record))
    }

    async fn patch_key(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let before = self.key(at.id).await?;
        not_itself(at, &before.id)?;
        at.check_tag(&tag_of(&before))?;
        let patch: KeyPatch = at.order()?;
        if before.revoked_unix.is_some() {
            return Err(refused(KeyError::Revoked(before.id)));
        }
        let after = Operations::patched(&before, patch)?;
        let views = (
            json(&KeyView::from(before.clone())),
            json(&KeyView::from(after.clone())),
        );
        self.note(at, before.id.as_str(), views).await?;
        let keys = Keys::new(self.operations.store().clone());
        let changed = keys.update(&before.id, Some(&before), |record| {
            record.clone_from(&after);
        });
        let changed = changed.await.map_err(refused)?;
        let tag = tag_of(&changed);
        Ok(Answer::ok(&KeyView::from(changed))?.tagged(&tag))
    }

    async fn rotate_key(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let order: RotateOrder = at.order_or_default()?;
        let id = self.key(at.id).await?.id;
        not_itself(at, &id)?;
        let grace = order.grace_secs.map_or(GRACE_DEFAULT, Duration::from_secs);
        self.note(at, id.as_str(), (Value::Null, json(&order)))
            .await?;
        let keys = Keys::new(self.operations.store().clone());
        let issued = keys.rotate(&id, grace, at.asked.now_unix()).await;
        let issued = issued.map_err(refused)?;
        Answer::ok(&KeyMade {
            key: issued.token.expose().clone(),
            record: issued.record.into(),
        })
    }

    async fn revoke_key(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let before = self.key(at.id).await?;
        let id: KeyId = before.id.clone();
        not_itself(at, &id)?;
        if before.revoked_unix.is_none() {
            let view = json(&KeyView::from(before));
            self.note(at, id.as_str(), (view, Value::Null)).await?;
        }
        Answer::ok(&self.operations.revoke_key(&id).await?)
    }
}

/// The account of a key's owner, as the key tells it. Names of issuers' people begin with the issuer.
pub(super) fn owner_of(key: &KeyRecord) -> UserRecord {
    let issuer = key.owner.as_str().split_once('|');
    UserRecord {
        id: key.owner.clone(),
        tenant: key.tenant.clone(),
        issuer: issuer.map_or_else(String::new, |(issuer, _)| issuer.to_owned()),
        email: None,
        groups: Vec::new(),
        plan: None,
        overrides: Plan::default(),
        disabled_unix: None,
        first_seen_unix: key.created_unix,
        last_seen_unix: key.created_unix,
    }
}

/// Who shuts the door behind a key with that very key stands outside.
fn not_itself(at: &At<'_>, id: &KeyId) -> Result<(), AdminError> {
    if at.asked.actor == format!("key:{id}") {
        return Err(AdminError::Conflict(format!(
            "{id} is the key that asks: use another administrator's key, or the command line on the server"
        )));
    }
    Ok(())
}

/// Its last use does not change what a key is.
fn tag_of(record: &KeyRecord) -> String {
    tag(&KeyRecord {
        last_used_unix: None,
        ..record.clone()
    })
}

fn is_same_order(known: &KeyRecord, ordered: &KeyRecord) -> bool {
    let life = |record: &KeyRecord| record.expires_unix.map(|end| end - record.created_unix);
    let same_life = life(known) == life(ordered);
    let again = KeyRecord {
        created_unix: known.created_unix,
        secret_unix: known.secret_unix,
        expires_unix: known.expires_unix,
        last_used_unix: known.last_used_unix,
        ..ordered.clone()
    };
    same_life && *known == again
}

fn refused(error: KeyError) -> AdminError {
    match error {
        KeyError::NotFound(id) => operations::no_key(&id),
        KeyError::Revoked(_) => AdminError::Conflict(error.to_string()),
        KeyError::Changed(_) => AdminError::Changed(error.to_string()),
        KeyError::LongGrace(_) => AdminError::Invalid(error.to_string()),
        KeyError::Store(error) => error.into(),
    }
}
