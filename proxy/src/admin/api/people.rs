//! People, their plans and limits, and the deny list.

use std::path::Path;

use config::ids::{KeyId, Tenant, UserId};
use policy::ledger::Aspect;
use serde_json::Value;

use super::books::Period;
use super::keys::owner_of;
use super::{Answer, Api, At, Page, json, pseudonyms, sealed, tag};
use crate::admin::operations::{self, AdminError};
use crate::admin::routes::{DenialAct, UserAct};
use crate::admin::words::{
    Backup, BackupOrder, DenialOrder, DenialView, Erased, KeyView, PlanView, UsageRow, UserExport,
    UserPatch, UserView,
};
use crate::store::ledger::{AuditRecord, RecordQuery};
use crate::store::{Denial, Denied, UserRecord};

/// Characters of a reason.
const REASON_MAX: usize = 256;
/// Life of a denial at most.
const DENIAL_SECS_MAX: u64 = 100 * 366 * 24 * 60 * 60;
/// Entries of one export.
const EXPORTED_MAX: usize = 10_000;
/// Days of one export.
const EXPORTED_DAYS: u64 = 400;

impl Api {
    pub(super) async fn act_on_people(
        &self,
        act: UserAct,
        at: &At<'_>,
    ) -> Result<Answer, AdminError> {
        match act {
            UserAct::List => self.list_people(at).await,
            UserAct::Show => self.show_person(at).await,
            UserAct::Patch => self.patch_person(at).await,
            UserAct::Export => self.export(at).await,
            UserAct::Erase => self.erase(at).await,
        }
    }

    pub(super) async fn act_on_denials(
        &self,
        act: DenialAct,
        at: &At<'_>,
    ) -> Result<Answer, AdminError> {
        match act {
            DenialAct::List => self.denials().await,
            DenialAct::Put => self.deny(at).await,
            DenialAct::Remove => self.undeny(at).await,
        }
    }

    pub(super) fn plans(&self) -> Result<Answer, AdminError> {
        let limits = self.facts.limits.load();
        let plans = limits.plans.iter().map(|(name, figures)| PlanView {
            name: name.clone(),
            figures: *figures,
        });
        Answer::ok(&Page {
            data: plans.collect(),
            next_cursor: None,
        })
    }

    async fn show_person(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let record = self.person(at.id).await?;
        let tag = tag_of(&record);
        Ok(Answer::ok(&UserView::from(record))?.tagged(&tag))
    }

    async fn denials(&self) -> Result<Answer, AdminError> {
        let denials = self.operations.store().denials().await?;
        Answer::ok(&Page {
            data: denials.into_iter().map(DenialView::from).collect(),
            next_cursor: None,
        })
    }

    async fn list_people(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let limit = at.query.limit()?;
        let after = at.query.cursor()?.map(UserId::new);
        let store = self.operations.store();
        let mut people = store.users(after.as_ref(), limit + 1).await?;
        let more = people.len() > limit;
        people.truncate(limit);
        let next = people
            .last()
            .filter(|_| more)
            .map(|last| sealed(last.id.as_str()));
        Answer::ok(&Page {
            data: people.into_iter().map(UserView::from).collect(),
            next_cursor: next,
        })
    }

    /// The record of a person; whoever owns a key is one, even if nothing was ever kept about them.
    async fn person(&self, id: &str) -> Result<UserRecord, AdminError> {
        let (store, user) = (self.operations.store(), UserId::new(id));
        if let Some(known) = store.user(&user).await? {
            return Ok(known);
        }
        let keys = store.keys().await?;
        let theirs = keys
            .iter()
            .filter(|key| key.owner == user && key.revoked_unix.is_none());
        theirs
            .min_by_key(|key| key.created_unix)
            .map(owner_of)
            .ok_or_else(|| {
                AdminError::NotFound(format!(
                    "no user {id}: `hearth-proxy user list` shows who was here"
                ))
            })
    }

    async fn patch_person(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let before = self.person(at.id).await?;
        at.check_tag(&tag_of(&before))?;
        let patch: UserPatch = at.order()?;
        let mut after = before.clone();
        if let Some(plan) = patch.plan {
            if let Some(name) = &plan {
                self.check_plan(name)?;
            }
            after.plan = plan;
        }
        // Residency is no figure: whoever replaces the figures must not lift it by the way.
        let stays_home = patch.local_only.or(after.overrides.local_only);
        after.overrides = patch.overrides.unwrap_or(after.overrides);
        after.overrides.local_only = patch
            .local_only
            .or(after.overrides.local_only)
            .or(stays_home)
            .filter(|local_only| *local_only);
        operations::check_figures(&after.overrides)?;
        if let Some(names) = patch.groups {
            after.groups = operations::groups(&names)?;
        }
        if let Some(disabled) = patch.disabled {
            let since = after.disabled_unix.unwrap_or_else(|| at.asked.now_unix());
            after.disabled_unix = disabled.then_some(since);
        }
        let views = (
            json(&UserView::from(before.clone())),
            json(&UserView::from(after.clone())),
        );
        self.note(at, at.id, views).await?;
        let store = self.operations.store();
        if store.user(&before.id).await?.is_none() {
            store.create_user(&before).await?;
        }
        if !store.swap_user(&before, &after).await? {
            return Err(AdminError::Changed(format!(
                "{} was changed by somebody else: read it again and repeat the change",
                at.id
            )));
        }
        let tag = tag_of(&after);
        Ok(Answer::ok(&UserView::from(after))?.tagged(&tag))
    }

    fn check_plan(&self, name: &str) -> Result<(), AdminError> {
        let limits = self.facts.limits.load();
        if limits.plans.contains_key(name) {
            return Ok(());
        }
        let known: Vec<&str> = limits.plans.keys().map(String::as_str).collect();
        Err(AdminError::Invalid(format!(
            "the settings have no plan {name:?}, only [{}]: add [limits.plans.{name}] to them",
            known.join(", ")
        )))
    }

    async fn export(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let person = self.person(at.id).await?;
        let store = self.operations.store();
        let keys = store.keys().await?.into_iter();
        let keys: Vec<KeyView> = keys
            .filter(|key| key.owner == person.id)
            .map(KeyView::from)
            .collect();
        let period = Period::days(self.zone(), at.asked.now_unix_ms, EXPORTED_DAYS);
        let of = (Aspect::User, person.id.to_string());
        let usage = self.sums_of(&person.tenant, &period.labels, of).await?;
        let mut query = RecordQuery {
            user: Some(person.id.clone()),
            ..RecordQuery::of(person.tenant.clone())
        };
        let mut records = Vec::new();
        while records.len() < EXPORTED_MAX {
            let page = store.records(&query).await?;
            records.extend(page.entries);
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        let denials = store.denials().await?.into_iter();
        let about = Denied::User(person.id.clone());
        let denials = denials
            .filter(|denial| denial.whom == about)
            .map(DenialView::from)
            .collect();
        let audit = self.acts_on(&person, &keys).await?;
        self.note(at, at.id, (Value::Null, Value::Null)).await?;
        Answer::ok(&UserExport {
            denials,
            audit,
            user: person.into(),
            keys,
            usage: usage
                .into_iter()
                .filter(|row: &UsageRow| row.totals.requests > 0)
                .collect(),
            records,
        })
    }

    /// Lines of the audit log that name the person, or a key of theirs.
    async fn acts_on(
        &self,
        person: &UserRecord,
        keys: &[KeyView],
    ) -> Result<Vec<AuditRecord>, AdminError> {
        let store = self.operations.store();
        let last = store.last_audit().await?.map_or(0, |last| last.seq);
        let after = last.saturating_sub(EXPORTED_MAX as u64);
        let lines = store.audit(after, EXPORTED_MAX).await?;
        let id = pseudonyms::of(person.id.as_str());
        let denied = format!("{}{id}", pseudonyms::USER);
        let is_theirs = |line: &AuditRecord| {
            let target = line.act.target.as_str();
            target == id
                || target == denied
                || line.act.actor == denied
                || keys.iter().any(|key| key.id.as_str() == target)
        };
        Ok(lines.into_iter().filter(is_theirs).collect())
    }

    async fn erase(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let id = UserId::new(at.id);
        let store = self.operations.store();
        let known = store.user(&id).await?;
        let keys = store.keys().await?;
        let theirs: Vec<KeyId> = keys
            .iter()
            .filter(|key| key.owner == id && key.revoked_unix.is_none())
            .map(|key| key.id.clone())
            .collect();
        if known.is_none() && !keys.iter().any(|key| key.owner == id) {
            self.person(at.id).await?;
        }
        self.note(at, at.id, (Value::Null, Value::Null)).await?;
        for key in &theirs {
            self.operations.revoke_key(key).await?;
        }
        let tenant = known.map_or_else(Tenant::default, |known| known.tenant);
        let usage_rows = store.forget_usage(&tenant, &id).await?;
        let account = store.remove_user(&id).await?;
        let about = Denied::User(id.clone());
        let denials = store.denials().await?;
        let denials = denials.iter().filter(|denial| denial.whom == about).count();
        if denials > 0 {
            store.undeny(&about).await?;
        }
        Answer::ok(&Erased {
            id,
            account,
            keys_revoked: theirs.len(),
            usage_rows,
            denials,
        })
    }

    /// A copy of the store beside it: for who is at the machine, because it writes a file there.
    pub(super) async fn backup(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        if !at.asked.is_local() {
            return Err(AdminError::Forbidden(
                "a backup is written on the proxy's machine: run `hearth-proxy store backup FILE` there".into(),
            ));
        }
        let order: BackupOrder = at.order()?;
        let file = Path::new(&order.file);
        if !file.is_absolute() {
            return Err(AdminError::Invalid(format!(
                "file is {:?}: an absolute path",
                order.file
            )));
        }
        if file.exists() {
            return Err(AdminError::Conflict(format!(
                "{} is there already: name a file that is not",
                order.file
            )));
        }
        self.note(at, &order.file, (Value::Null, Value::Null))
            .await?;
        let bytes = self.operations.store().backup(file).await?;
        Answer::made(&Backup {
            file: order.file,
            bytes,
        })
    }

    async fn deny(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let order: DenialOrder = at.order()?;
        let reason = match order.reason.trim() {
            "" => String::new(),
            reason => operations::label("reason", reason, REASON_MAX)?,
        };
        let now = at.asked.now_unix();
        let denial = Denial {
            whom: whom(&order.whom)?,
            not_before_unix: order.not_before_unix,
            reason,
            created_unix: now,
            expires_unix: operations::end_of_life(now, order.expires_secs, DENIAL_SECS_MAX)?,
        };
        let view = DenialView::from(denial.clone());
        self.note(at, &view.whom, (Value::Null, json(&view)))
            .await?;
        self.operations.store().deny(&denial).await?;
        Answer::made(&view)
    }

    async fn undeny(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let nothing = || AdminError::NotFound(format!("{} is not on the deny list", at.id));
        let whom = whom(at.id).map_err(|_| nothing())?;
        let store = self.operations.store();
        let denials = store.denials().await?;
        let known = denials.into_iter().find(|denial| denial.whom == whom);
        let view = DenialView::from(known.ok_or_else(nothing)?);
        self.note(at, &view.whom, (json(&view), Value::Null))
            .await?;
        store.undeny(&whom).await?;
        Answer::ok(&view)
    }
}

fn whom(text: &str) -> Result<Denied, AdminError> {
    let wrong = || AdminError::Invalid(format!("whom is {text:?}: user:ID, key:ID or tenant:NAME"));
    let (kind, name) = text.split_once(':').ok_or_else(wrong)?;
    operations::label("whom", name, 512)?;
    match kind {
        "user" => Ok(Denied::User(UserId::new(name))),
        "key" => Ok(Denied::Key(operations::key_id(name).map_err(|_| wrong())?)),
        "tenant" => Ok(Denied::Tenant(name.parse().map_err(|_| wrong())?)),
        _ => Err(wrong()),
    }
}

/// The last visit does not change who somebody is.
fn tag_of(record: &UserRecord) -> String {
    tag(&UserRecord {
        last_seen_unix: 0,
        ..record.clone()
    })
}
