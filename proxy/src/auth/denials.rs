//! The deny list, whole and in memory, so that it costs nothing per request and works without any issuer. Read again whenever
//! the store tells that it changed. Until it was read once, nobody enters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use config::ids::{KeyId, Tenant, UserId};
use policy::identity::Principal;
use policy::refusal::{AccountFault, Refusal};
use tokio::sync::Mutex as AsyncMutex;

use super::StoreOr;
use crate::store::{Denial, Denied, Store, StoreError};

/// Denials at most; a deployment that needs more should close an issuer instead.
pub const DENIALS_MAX: usize = 100_000;
/// Between two tries to read the list while the store is away.
const RETRY: Duration = Duration::from_millis(200);

/// Whom we do not let in.
pub(super) struct Denials {
    store: Arc<dyn Store>,
    list: ArcSwapOption<List>,
    reading: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct List {
    users: HashMap<UserId, Denial>,
    keys: HashMap<KeyId, Denial>,
    tenants: HashMap<Tenant, Denial>,
}

impl std::fmt::Debug for Denials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Denials").finish_non_exhaustive()
    }
}

impl List {
    fn of(denials: Vec<Denial>) -> Self {
        let mut list = Self::default();
        for denial in denials {
            match denial.whom.clone() {
                Denied::User(id) => drop(list.users.insert(id, denial)),
                Denied::Key(id) => drop(list.keys.insert(id, denial)),
                Denied::Tenant(id) => drop(list.tenants.insert(id, denial)),
            }
        }
        list
    }
}

impl Denials {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            list: ArcSwapOption::empty(),
            reading: AsyncMutex::new(()),
        }
    }

    /// Refuses whom the list names. `made`: when the credential was made, Unix seconds; unknown counts as long ago.
    pub(super) async fn check(
        &self,
        principal: &Principal,
        made: Option<i64>,
        now_unix: i64,
    ) -> Result<(), StoreOr> {
        let list = match self.list.load_full() {
            Some(list) => list,
            None => self.first().await?,
        };
        let owner = principal.acts_for.as_ref();
        let key = principal.key.as_ref();
        let found = [
            list.users.get(&principal.user),
            owner.and_then(|owner| list.users.get(owner)),
            key.and_then(|key| list.keys.get(key)),
            list.tenants.get(&principal.tenant),
        ];
        for denial in found.into_iter().flatten() {
            judge(denial, made, now_unix)?;
        }
        Ok(())
    }

    /// Reads the list again, trying until the store answers. What was known counts meanwhile.
    pub(super) async fn reload(&self) {
        loop {
            match self.read().await {
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%error, "the deny list cannot be read");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn first(&self) -> Result<Arc<List>, StoreError> {
        let _one_at_a_time = self.reading.lock().await;
        match self.list.load_full() {
            Some(list) => Ok(list),
            None => self.read().await,
        }
    }

    async fn read(&self) -> Result<Arc<List>, StoreError> {
        let mut denials = self.store.denials().await?;
        if denials.len() > DENIALS_MAX {
            tracing::error!(
                denials = denials.len(),
                "more than {DENIALS_MAX} denials: those with the last names are not enforced; remove some"
            );
            denials.truncate(DENIALS_MAX);
        }
        let list = Arc::new(List::of(denials));
        self.list.store(Some(Arc::clone(&list)));
        Ok(list)
    }
}

fn judge(denial: &Denial, made: Option<i64>, now_unix: i64) -> Result<(), StoreOr> {
    if denial
        .expires_unix
        .is_some_and(|expires| expires <= now_unix)
    {
        return Ok(());
    }
    let Some(not_before) = denial.not_before_unix else {
        return Err(StoreOr::Refused(Refusal::AccountNotAllowed {
            why: AccountFault::Disabled,
        }));
    };
    if made.is_some_and(|made| made >= not_before) {
        return Ok(());
    }
    Err(StoreOr::Refused(Refusal::RevokedCredential))
}
