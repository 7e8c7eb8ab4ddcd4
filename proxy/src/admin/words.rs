//! What management commands say and hear: the JSON of the admin socket and of `--output json`. Only a fresh key or join link
//! carries a secret, once.

mod nodes;

use config::ids::{KeyId, UserId};
use config::settings::proxy::Plan;
use config::tier::Tier;
use policy::identity::{Scope, Subject};
use policy::ledger::{LedgerEntry, Totals};
use serde::{Deserialize, Deserializer, Serialize};

use crate::store::ledger::AuditRecord;
use crate::store::{BurstRecord, BurstStage, Denial, JoinToken, KeyRecord, UserRecord};

pub use nodes::{NodeNow, NodeTunnel, NodeView};

/// A key that is wanted.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOrder {
    /// What people call it: 1 to 64 characters.
    pub name: String,
    /// Whose it is; default the name. Keys of one owner share their limits.
    #[serde(default)]
    pub owner: Option<String>,
    /// An administrator's key.
    #[serde(default)]
    pub admin: bool,
    /// What it may do; empty: ask and list models.
    #[serde(default)]
    pub scopes: Vec<Scope>,
    /// Tiers it may use; `None`: all.
    #[serde(default)]
    pub tiers: Option<Vec<Tier>>,
    /// Models it may use; `None`: all.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// Figures that replace the defaults.
    #[serde(default)]
    pub plan: Plan,
    /// Figures of the key itself, counted besides the owner's.
    #[serde(default)]
    pub limits: Option<Plan>,
    /// Whose house; default `home`.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Groups of the owner that requests with this key count for.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Whether it may name end users.
    #[serde(default)]
    pub act_as: bool,
    /// What it asks never leaves the tiers at home.
    #[serde(default)]
    pub local_only: bool,
    /// Life in seconds; `None`: for ever.
    #[serde(default)]
    pub expires_secs: Option<u64>,
}

/// What of a key is to change; a member that is left out stays, `null` takes a restriction away (RFC 7396).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeyPatch {
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<Scope>>,
    /// Tiers it may use.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub tiers: Option<Option<Vec<Tier>>>,
    /// Models it may use.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub models: Option<Option<Vec<String>>>,
    /// Figures that replace the defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Figures of the key itself.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub limits: Option<Option<Plan>>,
    /// Groups that its requests count for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Whether it may name end users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_as: Option<bool>,
    /// Whether what it asks never leaves the tiers at home.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_only: Option<bool>,
    /// Unix seconds.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub expires_unix: Option<Option<i64>>,
}

/// How a key is to be rotated.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RotateOrder {
    /// Seconds for which the old secret stays good; default 24 h, at most 30 days.
    #[serde(default)]
    pub grace_secs: Option<u64>,
}

/// What of a person is to change; a member that is left out stays (RFC 7396).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserPatch {
    /// The plan of the settings; `null`: the issuer's, or the defaults.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub plan: Option<Option<String>>,
    /// Figures that win over every plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overrides: Option<Plan>,
    /// Groups, until the next sign-in names others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Whether the person may not enter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Whether what the person asks never leaves the tiers at home. Other figures leave it as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_only: Option<bool>,
}

/// A denial that is wanted.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DenialOrder {
    /// `user:ID`, `key:ID` or `tenant:NAME`.
    pub whom: String,
    /// Refuse only credentials made before this, Unix seconds; `null`: all.
    #[serde(default)]
    pub not_before_unix: Option<i64>,
    /// For administrators.
    #[serde(default)]
    pub reason: String,
    /// Life in seconds; `null`: until it is taken back.
    #[serde(default)]
    pub expires_secs: Option<u64>,
}

/// A denial as lists show it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DenialView {
    /// `user:ID`, `key:ID` or `tenant:NAME`.
    pub whom: String,
    /// Only credentials made before this are refused, Unix seconds.
    pub not_before_unix: Option<i64>,
    /// For administrators.
    pub reason: String,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds; `None`: until it is taken back.
    pub expires_unix: Option<i64>,
}

impl From<Denial> for DenialView {
    fn from(denial: Denial) -> Self {
        Self {
            whom: denial.whom.text(),
            not_before_unix: denial.not_before_unix,
            reason: denial.reason,
            created_unix: denial.created_unix,
            expires_unix: denial.expires_unix,
        }
    }
}

/// A named plan of the settings.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PlanView {
    /// As in `[limits.plans.NAME]`.
    pub name: String,
    /// Its figures.
    pub figures: Plan,
}

/// A join token as lists show it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct JoinTokenView {
    /// The public ten characters.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Nodes that may enrol with it.
    pub uses_max: u32,
    /// Nodes that did.
    pub used: usize,
    /// Tiers that those nodes may serve; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds.
    pub expires_unix: i64,
}

impl From<JoinToken> for JoinTokenView {
    fn from(token: JoinToken) -> Self {
        Self {
            id: token.id,
            name: token.name,
            uses_max: token.uses_max,
            used: token.used_by.len(),
            tiers: token.tiers,
            created_unix: token.created_unix,
            expires_unix: token.expires_unix,
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Page<T> {
    /// The rows.
    pub data: Vec<T>,
    /// For `cursor`; `null`: this is the last page.
    pub next_cursor: Option<String>,
}

/// What was used in one day, month or in all.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct UsageRow {
    /// `2026-11-21`, `2026-11`, or the whole time as `2026-10-23/2026-11-21`.
    pub period: String,
    /// Which person, key, model, tier or node; `null` where nothing was asked apart.
    pub value: Option<String>,
    /// Sums.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Usage over a time.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct UsageView {
    /// The first day.
    pub from: String,
    /// The last day.
    pub to: String,
    /// `user`, `key`, `model`, `tier`, `node`; `null`: all together.
    pub by: Option<String>,
    /// The label of all amounts; amounts are millionths of it.
    pub currency: String,
    /// The rows.
    pub data: Vec<UsageRow>,
    /// All rows together.
    pub totals: Totals,
}

/// Whether the audit log is whole.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AuditCheck {
    /// Lines that were read.
    pub lines: u64,
    /// Whether each line follows the one before it.
    pub is_whole: bool,
    /// The first line that does not; `null`: none.
    pub broken_at: Option<u64>,
    /// Hash of the last line: kept elsewhere, it proves later that no line after it was cut off.
    pub head: String,
}

/// Everything that is kept about a person.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct UserExport {
    /// The person.
    pub user: UserView,
    /// Keys that the person owns.
    pub keys: Vec<KeyView>,
    /// Days with usage.
    pub usage: Vec<UsageRow>,
    /// Every request that is still kept, at most ten thousand.
    pub records: Vec<LedgerEntry>,
    /// Lines of the deny list about the person.
    pub denials: Vec<DenialView>,
    /// Administrative acts on the person or the person's keys, and of the person; the last ten thousand lines are searched.
    pub audit: Vec<AuditRecord>,
}

/// What was forgotten.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Erased {
    /// Who.
    pub id: UserId,
    /// Whether there was an account.
    pub account: bool,
    /// Keys that ended.
    pub keys_revoked: usize,
    /// Rows of usage that are gone.
    pub usage_rows: u64,
    /// Lines of the deny list that are gone.
    pub denials: usize,
}

/// A copy of the store that is wanted.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BackupOrder {
    /// Where: an absolute path on the proxy's machine, of a file that is not there yet.
    pub file: String,
}

/// A copy of the store.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Backup {
    /// Where it is.
    pub file: String,
    /// Its size.
    pub bytes: u64,
}

/// Tells `null` from a member that is left out.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// A key as lists show it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct KeyView {
    /// The public ten characters.
    pub id: KeyId,
    /// What people call it.
    pub name: String,
    /// Whose it is.
    pub owner: UserId,
    /// An administrator's key.
    pub admin: bool,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Tiers it may use; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// Models it may use; `None`: all.
    pub models: Option<Vec<String>>,
    /// Figures that replace the defaults.
    pub plan: Plan,
    /// Figures of the key itself, counted besides the owner's.
    pub limits: Option<Plan>,
    /// Whose house.
    pub tenant: String,
    /// Groups that its requests count for.
    pub groups: Vec<String>,
    /// Whether it may name end users.
    pub act_as: bool,
    /// Whether what it asks never leaves the tiers at home; its plans may say so too.
    #[serde(default)]
    pub local_only: bool,
    /// Unix seconds until which the secret before the last rotation is good.
    pub previous_until_unix: Option<i64>,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds; `None`: never.
    pub expires_unix: Option<i64>,
    /// Unix seconds, coarse.
    pub last_used_unix: Option<i64>,
    /// Unix seconds.
    pub revoked_unix: Option<i64>,
}

impl From<KeyRecord> for KeyView {
    fn from(key: KeyRecord) -> Self {
        Self {
            id: key.id,
            name: key.name,
            owner: key.owner,
            admin: key.admin,
            scopes: key.scopes,
            tiers: key.tiers,
            models: key.models,
            plan: key.plan,
            limits: key.limits,
            tenant: key.tenant.to_string(),
            groups: key.groups.iter().map(ToString::to_string).collect(),
            act_as: key.act_as,
            local_only: key.local_only,
            previous_until_unix: key.previous.map(|previous| previous.until_unix),
            created_unix: key.created_unix,
            expires_unix: key.expires_unix,
            last_used_unix: key.last_used_unix,
            revoked_unix: key.revoked_unix,
        }
    }
}

/// A fresh key. The secret is nowhere else.
#[derive(Clone, Deserialize, Serialize)]
pub struct KeyMade {
    /// The whole key, to be shown once.
    pub key: String,
    /// What the list will show.
    pub record: KeyView,
}

/// A person as lists show it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct UserView {
    /// `issuer|name`, or the owner of keys.
    pub id: UserId,
    /// The hashed name, as in logs and metrics.
    pub subject: Subject,
    /// Whose house.
    pub tenant: String,
    /// The issuer; empty for owners of keys.
    pub issuer: String,
    /// Groups at the last sign-in.
    pub groups: Vec<String>,
    /// The plan that an administrator chose.
    pub plan: Option<String>,
    /// Figures that win over every plan.
    pub overrides: Plan,
    /// Unix seconds; `None`: welcome.
    pub disabled_unix: Option<i64>,
    /// Unix seconds.
    pub first_seen_unix: i64,
    /// Unix seconds, to the hour.
    pub last_seen_unix: i64,
}

impl From<UserRecord> for UserView {
    fn from(user: UserRecord) -> Self {
        Self {
            subject: Subject::of_user(&user.id),
            id: user.id,
            tenant: user.tenant.to_string(),
            issuer: user.issuer,
            groups: user.groups.iter().map(ToString::to_string).collect(),
            plan: user.plan,
            overrides: user.overrides,
            disabled_unix: user.disabled_unix,
            first_seen_unix: user.first_seen_unix,
            last_seen_unix: user.last_seen_unix,
        }
    }
}

/// A join link that is wanted.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InviteOrder {
    /// What people call it; at most 64 characters.
    #[serde(default)]
    pub name: String,
    /// Nodes that may join with it; `None`: one.
    #[serde(default)]
    pub uses: Option<u32>,
    /// Life in seconds; `None`: 15 minutes.
    #[serde(default)]
    pub expires_secs: Option<u64>,
    /// Tiers those nodes may serve; `None`: all.
    #[serde(default)]
    pub tiers: Option<Vec<Tier>>,
    /// Whether an administrator approves each of them; `None`: if there may be several.
    #[serde(default)]
    pub approve: Option<bool>,
}

/// A fresh join link. The secret in it is nowhere else.
#[derive(Clone, Deserialize, Serialize)]
pub struct Invite {
    /// The whole link, for `hearth-node join`.
    pub link: String,
    /// The token alone.
    pub token: String,
    /// The token's public ten characters.
    pub id: String,
    /// Nodes that may join with it.
    pub uses: u32,
    /// Unix seconds.
    pub expires_unix: i64,
    /// What is wrong with the address in it, if something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// The proxy at a glance.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// Of this program.
    pub version: String,
    /// Seconds since the proxy started; `None`: no proxy runs.
    pub uptime_secs: Option<u64>,
    /// `ok`, or what is wrong with the store.
    pub store: String,
    /// Checks that fail; empty: ready.
    pub failing: Vec<String>,
    /// Keys that are neither revoked nor expired.
    pub keys: usize,
    /// Nodes that are not revoked.
    pub nodes: usize,
    /// Nodes with a fresh report.
    pub nodes_online: usize,
    /// Servers that cost money by the hour: started, and not seen to be gone.
    #[serde(default)]
    pub bursts: Vec<BurstView>,
}

/// A server outside that somebody pays for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BurstView {
    /// The name of its `[[remote]]`.
    pub name: String,
    /// `starting`, `ready` or `stopping`.
    pub stage: String,
    /// Seconds since it was started.
    pub running_secs: u64,
    /// Tries to stop it that did not work: above 0 it costs money for nothing.
    pub stop_failures: u32,
}

impl BurstView {
    pub(super) fn of(record: BurstRecord, now_unix_ms: u64) -> Self {
        let stage = match record.stage {
            BurstStage::Starting => "starting",
            BurstStage::Ready => "ready",
            BurstStage::Stopping { .. } => "stopping",
        };
        Self {
            stage: stage.to_owned(),
            running_secs: now_unix_ms.saturating_sub(record.started_unix_ms) / 1_000,
            stop_failures: record.stop_failures(),
            name: record.name,
        }
    }
}

/// Why it did not work: RFC 9457.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// Always `about:blank`: the status says it all.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What to do.
    pub detail: String,
    /// As in `x-request-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
