//! People: the first request of somebody new makes the account, an administrator's plan, figures and closing count from the
//! next request on. Proves nobody's identity.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::ids::UserId;
use config::settings::proxy::Plan;
use policy::identity::{Principal, Subject};
use policy::refusal::{AccountFault, Refusal};

use super::lookups::Lookups;
use super::recent::Recent;
use super::{Seen, StoreOr};
use crate::store::{Store, StoreError, UserRecord};

/// How exact "last seen" is, seconds: enough to find abandoned accounts, too little to follow somebody's day.
const SEEN_EVERY_SECS: i64 = 3_600;
/// People whose last note is remembered.
const NOTED_MAX: usize = 20_000;

/// What an issuer says of a person, besides what the principal holds.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) issuer: String,
    pub(super) email: Option<Subject>,
}

/// All people that came lately.
pub(super) struct People {
    store: Arc<dyn Store>,
    plans: BTreeMap<String, Plan>,
    lookups: Lookups<UserId, UserRecord>,
    noted: Mutex<Recent<UserId, i64>>,
}

impl std::fmt::Debug for People {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("People").finish_non_exhaustive()
    }
}

impl People {
    pub(super) fn new(
        store: Arc<dyn Store>,
        plans: &BTreeMap<String, Plan>,
        stale: Duration,
    ) -> Self {
        Self {
            store,
            plans: plans.clone(),
            // Owners of keys mostly have no account, and whoever comes through an issuer needs the store to get one.
            lookups: Lookups::new(stale, true),
            noted: Mutex::new(Recent::new(NOTED_MAX)),
        }
    }

    /// Adds what the store knows of the person. Whoever came through an issuer has an account afterwards; the owner of a key
    /// has one if an administrator made it.
    pub(super) async fn greet(&self, seen: Seen, now_unix: i64) -> Result<Principal, StoreOr> {
        let Seen {
            mut principal,
            person,
            ..
        } = seen;
        let id = principal.user.clone();
        let watched = self.store.watched_until();
        let known = self.lookups.get(&id, watched, self.store.user(&id)).await?;
        let record = match (known, person) {
            (Some(known), person) => {
                self.note(&known, &principal, person, now_unix);
                known
            }
            (None, Some(person)) => self.welcome(&principal, person, now_unix).await?,
            (None, None) => {
                self.resolve(&mut principal);
                return Ok(principal);
            }
        };
        if record.disabled_unix.is_some() {
            return Err(Refusal::AccountNotAllowed {
                why: AccountFault::Disabled,
            }
            .into());
        }
        if let Some(plan) = &record.plan {
            principal.plan_name = Some(plan.as_str().into());
        }
        self.resolve(&mut principal);
        principal.overrides = record.overrides;
        Ok(principal)
    }

    /// The person's record is read again at the next request.
    pub(super) fn forget(&self, id: &UserId) {
        self.lookups.forget(id);
    }

    /// Everybody's record is.
    pub(super) fn doubt_all(&self) {
        self.lookups.doubt_all();
    }

    /// The figures of the plan; those of a key win.
    fn resolve(&self, principal: &mut Principal) {
        if principal.plan != Plan::default() {
            return;
        }
        let figures = principal
            .plan_name
            .as_deref()
            .and_then(|name| self.plans.get(name));
        if let Some(figures) = figures {
            principal.plan = *figures;
        }
    }

    async fn welcome(
        &self,
        principal: &Principal,
        person: Person,
        now_unix: i64,
    ) -> Result<Arc<UserRecord>, StoreError> {
        let record = UserRecord {
            id: principal.user.clone(),
            tenant: principal.tenant.clone(),
            issuer: person.issuer,
            email: person.email,
            groups: principal.groups.clone(),
            plan: None,
            overrides: Plan::default(),
            disabled_unix: None,
            first_seen_unix: now_unix,
            last_seen_unix: coarse(now_unix),
        };
        let record = Arc::new(self.store.create_user(&record).await?);
        self.lookups.note(&record.id, Arc::clone(&record));
        tracing::info!(user = %principal.subject(), tenant = %principal.tenant, "a new person");
        Ok(record)
    }

    /// Keeps the record near the truth, beside the request and at most once an hour.
    fn note(
        &self,
        record: &Arc<UserRecord>,
        principal: &Principal,
        person: Option<Person>,
        now_unix: i64,
    ) {
        let hour = coarse(now_unix);
        {
            let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            let last = noted.get(&record.id).map(|last| *last);
            if last.max(Some(record.last_seen_unix)) >= Some(hour) {
                return;
            }
            noted.insert(record.id.clone(), hour);
        }
        let mut after = UserRecord::clone(record);
        after.last_seen_unix = hour;
        if let Some(person) = person {
            after.groups.clone_from(&principal.groups);
            after.email = person.email.or(after.email);
        }
        let (store, before) = (Arc::clone(&self.store), Arc::clone(record));
        tokio::spawn(async move {
            let same = after.groups == before.groups && after.email == before.email;
            let noted = if same {
                store.touch_user(&before.id, hour).await
            } else {
                store.swap_user(&before, &after).await.map(drop)
            };
            if let Err(error) = noted {
                tracing::debug!(%error, "the visit of a person could not be noted");
            }
        });
    }
}

const fn coarse(unix: i64) -> i64 {
    unix - unix.rem_euclid(SEEN_EVERY_SECS)
}
