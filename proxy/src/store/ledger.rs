//! The books of a store: what every settled request used, the sums over days and months, and the audit log. Entries come in with
//! their settlement ([`super::Settlement`]); here they are read, summed, pruned and forgotten. Charges nothing.

use std::path::Path;

use async_trait::async_trait;
use config::ids::{KeyId, NodeId, RequestId, Tenant, UserId};
use config::tier::Tier;
use policy::ledger::{Aspect, LedgerEntry, SumKey, Totals};
use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::StoreError;

/// Entries of one page at most.
pub const PAGE_MAX: usize = 1_000;
/// Entries that one page looks at for those that are asked for. A page may so be empty and still have a next one.
pub const LOOKED_AT_MAX: usize = 20_000;
/// Sums of one question at most: 400 days.
pub const SUMS_MAX: usize = 1_000;
/// Entries or sums that one call of [`Ledger::prune`] removes at most; it is called again.
pub const PRUNED_A_CALL: usize = 10_000;
/// What stands before the first audit record.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Which entries. What is `None` does not matter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordQuery {
    /// Whose house.
    pub tenant: Tenant,
    /// From this moment on, Unix milliseconds.
    pub from_ms: u64,
    /// Before this moment.
    pub to_ms: u64,
    /// Of this person.
    pub user: Option<UserId>,
    /// With this key.
    pub key: Option<KeyId>,
    /// From this model.
    pub model: Option<String>,
    /// From this tier.
    pub tier: Option<Tier>,
    /// From this node.
    pub node: Option<NodeId>,
    /// After what a page named as its [`RecordPage::next`].
    pub after: Option<String>,
    /// From 1 to [`PAGE_MAX`].
    pub limit: usize,
}

impl RecordQuery {
    /// Everything of a tenant.
    pub const fn of(tenant: Tenant) -> Self {
        Self {
            tenant,
            from_ms: 0,
            to_ms: u64::MAX,
            user: None,
            key: None,
            model: None,
            tier: None,
            node: None,
            after: None,
            limit: PAGE_MAX,
        }
    }

    /// Whether the entry is asked for.
    pub fn wants(&self, entry: &LedgerEntry) -> bool {
        let same = |wanted: Option<&str>, found: Option<&str>| wanted.is_none() || wanted == found;
        (self.from_ms..self.to_ms).contains(&entry.at_unix_ms)
            && entry.tenant == self.tenant
            && self.user.as_ref().is_none_or(|user| *user == entry.user_id)
            && same(
                self.key.as_ref().map(KeyId::as_str),
                entry.key.as_ref().map(KeyId::as_str),
            )
            && same(self.model.as_deref(), entry.model.as_deref())
            && self.tier.is_none_or(|tier| entry.tier == Some(tier))
            && same(
                self.node.as_ref().map(NodeId::as_str),
                entry.node.as_ref().map(NodeId::as_str),
            )
    }
}

/// Some entries, the oldest first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RecordPage {
    /// The entries.
    pub entries: Vec<LedgerEntry>,
    /// For [`RecordQuery::after`]; `None`: there are no more.
    pub next: Option<String>,
}

/// All values of one aspect in one day or month.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Breakdown {
    /// Whose house.
    pub tenant: Tenant,
    /// A day or a month.
    pub period: String,
    /// What to list.
    pub aspect: Aspect,
    /// Of pairs: only those whose first half this is.
    pub first: Option<String>,
    /// Rows at most.
    pub limit: usize,
}

/// What may go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Keep {
    /// Entries older than this, Unix milliseconds, go.
    pub records_from_ms: u64,
    /// Sums of days before this one, and of months before its month, go.
    pub sums_from_day: String,
}

/// An administrative act.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuditAct {
    /// When, Unix milliseconds.
    pub at_unix_ms: u64,
    /// Who: `key:4fJ0aXb2Qz`, `user:...`, or `uid:1000` at the local socket.
    pub actor: String,
    /// From where: an address, or `admin.sock`.
    pub from: String,
    /// The request.
    pub request_id: RequestId,
    /// What: `key.create`, `user.patch`, ...
    pub action: String,
    /// On what: an id.
    pub target: String,
    /// As it was, without secrets; `null`: it was not there.
    pub before: Value,
    /// As it is, without secrets; `null`: it is gone.
    pub after: Value,
}

/// A line of the audit log. Each holds the hash of the one before it: whoever removes or changes one breaks the chain.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuditRecord {
    /// 1, 2, 3, ...
    pub seq: u64,
    /// The hash of the line before it.
    pub previous: String,
    /// SHA-256 in hex over `seq`, `previous` and the act.
    pub hash: String,
    /// What happened.
    #[serde(flatten)]
    pub act: AuditAct,
}

impl AuditRecord {
    /// The line after `last`.
    pub fn after(last: Option<&Self>, act: AuditAct) -> Self {
        let (seq, previous) = match last {
            Some(last) => (last.seq.saturating_add(1), last.hash.clone()),
            None => (1, GENESIS.to_owned()),
        };
        let hash = link(seq, &previous, &act);
        Self {
            seq,
            previous,
            hash,
            act,
        }
    }

    /// Whether the line is what it was, and stands after `last`.
    pub fn follows(&self, last: Option<&Self>) -> bool {
        *self == Self::after(last, self.act.clone())
    }
}

fn link(seq: u64, previous: &str, act: &AuditAct) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&seq.to_be_bytes());
    context.update(previous.as_bytes());
    // Texts and numbers: JSON can say all of it. Two different acts never read the same.
    context.update(&serde_json::to_vec(act).unwrap_or_default());
    hex::encode(context.finish())
}

/// The books, shared by every proxy of the store.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Adds entries without a settlement: what another store wrote.
    async fn append(&self, entries: &[LedgerEntry]) -> Result<(), StoreError>;

    /// Entries, the oldest first.
    async fn records(&self, query: &RecordQuery) -> Result<RecordPage, StoreError>;

    /// The sums of these names, in their order; what was never added to is zero. [`SUMS_MAX`] at most.
    async fn sums(&self, keys: &[SumKey]) -> Result<Vec<Totals>, StoreError>;

    /// All values of an aspect with their sums, by value.
    async fn breakdown(&self, of: &Breakdown) -> Result<Vec<(String, Totals)>, StoreError>;

    /// Adds up entries that are in no sum yet; how many it added. Some stores do it when the entry comes.
    async fn fold(&self) -> Result<u64, StoreError>;

    /// Removes what may go, [`PRUNED_A_CALL`] rows at most; how many it removed.
    async fn prune(&self, keep: &Keep) -> Result<u64, StoreError>;

    /// Takes a person's name out of the books: entries and sums of the person go, the sums of everybody stay. How many entries
    /// and sums went.
    async fn forget_usage(&self, tenant: &Tenant, user: &UserId) -> Result<u64, StoreError>;

    /// Copies the whole store into a new file while it is in use; how many bytes. Only the embedded store is a file.
    async fn backup(&self, to: &Path) -> Result<u64, StoreError> {
        Err(StoreError::Unavailable(format!(
            "{}: this store is Redis, which backs itself up (BGSAVE, or its append-only file)",
            to.display()
        )))
    }

    /// Adds a line to the audit log. It is durable when this returns.
    async fn note(&self, act: &AuditAct) -> Result<AuditRecord, StoreError>;

    /// Lines of the audit log after this number, the oldest first.
    async fn audit(&self, after: u64, limit: usize) -> Result<Vec<AuditRecord>, StoreError>;

    /// The last line of the audit log.
    async fn last_audit(&self) -> Result<Option<AuditRecord>, StoreError>;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn act(target: &str) -> AuditAct {
        AuditAct {
            at_unix_ms: 1,
            actor: "uid:0".into(),
            from: "admin.sock".into(),
            request_id: RequestId::new("req_1"),
            action: "key.create".into(),
            target: target.into(),
            before: Value::Null,
            after: json!({"name": "laptop", "scopes": ["models"]}),
        }
    }

    #[test]
    fn a_line_that_was_changed_removed_or_moved_breaks_the_chain() {
        let first = AuditRecord::after(None, act("a"));
        let second = AuditRecord::after(Some(&first), act("b"));
        let third = AuditRecord::after(Some(&second), act("c"));
        assert!(
            first.follows(None) && second.follows(Some(&first)) && third.follows(Some(&second))
        );
        assert!(!third.follows(Some(&first)), "the second was removed");
        let mut changed = second;
        changed.act.target = "x".into();
        assert!(!changed.follows(Some(&first)));
        let forged = AuditRecord::after(Some(&first), changed.act);
        assert!(
            !third.follows(Some(&forged)),
            "a forged line breaks the next"
        );
    }

    #[test]
    fn a_line_survives_the_store() {
        let line = AuditRecord::after(None, act("a"));
        let text = serde_json::to_string(&line).unwrap();
        let read: AuditRecord = serde_json::from_str(&text).unwrap();
        assert!(read.follows(None));
        assert_eq!(read, line);
    }
}
