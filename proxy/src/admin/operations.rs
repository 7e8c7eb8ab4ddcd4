//! The work behind every management command, the same for the socket and for the command line. Checks what it is given; prints
//! nothing and speaks no HTTP.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use config::ids::{KeyId, NoTenant, NodeId, Tenant, UserId};
use config::settings::proxy::Plan;
use config::token::{Token, TokenKind};
use futures_util::future::BoxFuture;
use policy::identity::{GROUP_CHARS_MAX, GROUPS_MAX, Scope};
use policy::refusal::Refusal;
use ring::hmac;

use super::explain::{RouteAsk, RouteView};
use super::words::{
    BurstView, Invite, InviteOrder, KeyOrder, KeyPatch, KeyView, NodeNow, NodeTunnel, NodeView,
    Status,
};
use crate::store::records::change_node;
use crate::store::{JoinToken, KeyRecord, PEPPER, SecretHash, Store, StoreError};

/// Characters of a name.
pub(super) const NAME_MAX: usize = 64;
/// Characters of an owner.
const OWNER_MAX: usize = 255;
/// Model ids in one key, and characters in each.
const MODELS_MAX: usize = 64;
const MODEL_CHARS_MAX: usize = 256;
/// Life of a join link when nothing is said.
const INVITE_SECS: u64 = 15 * 60;
/// Life of a join link at most: it lets a machine into the tunnel.
const INVITE_SECS_MAX: u64 = 30 * 24 * 60 * 60;
/// Nodes that one join link may let in.
const INVITE_USES_MAX: u32 = 1_000;
/// Life of a key at most, so that dates stay dates.
const KEY_SECS_MAX: u64 = 100 * 366 * 24 * 60 * 60;

/// How a machine that was revoked becomes a node again.
pub(crate) const COME_BACK: &str = "to come back as a new node, stop hearth-node there, delete identity.pem and node.json in its state directory, and join with a new link (`hearth-proxy node invite`)";

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The order makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Not for this caller.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Something stands against it.
    #[error("{0}")]
    Conflict(String),
    /// It is not any more what the caller read (RFC 9110 section 15.5.13).
    #[error("{0}")]
    Changed(String),
    /// A change must say what it was read as (RFC 6585 section 3).
    #[error("a change needs `if-match` with the ETag of what was read, or *")]
    NoCondition,
    /// The path is ours, the method is not.
    #[error("use {0}")]
    Method(String),
    /// Not JSON.
    #[error("send `content-type: application/json`")]
    MediaType,
    /// More bytes than an order has.
    #[error("an order of more than {0} bytes")]
    TooLarge(usize),
    /// Only a running proxy can tell.
    #[error("no proxy runs here: start it with `hearth-proxy serve`, then ask again")]
    NotRunning,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Finds the route that a request would take now.
type Explain = dyn Fn(&RouteAsk) -> Result<RouteView, Refusal> + Send + Sync;

/// Finds out how the tunnel to a node is, if it has one.
pub(crate) type LookAtTunnel = dyn Fn(&NodeId) -> Option<NodeTunnel> + Send + Sync;

/// What only a running proxy can tell or do.
pub struct Live {
    /// When it started.
    pub started: Instant,
    /// Nodes with a fresh report.
    pub nodes: Box<dyn Fn() -> Vec<NodeNow> + Send + Sync>,
    /// The tunnel to a node, if it has one.
    pub tunnel: Box<LookAtTunnel>,
    /// Checks that fail now.
    pub failing: Box<dyn Fn() -> BoxFuture<'static, Vec<&'static str>> + Send + Sync>,
    /// Forgets what is remembered of a key.
    pub key_revoked: Box<dyn Fn(&KeyId) + Send + Sync>,
    /// The route that a request would take.
    pub route: Box<Explain>,
    /// Cuts a node off.
    pub node_revoked: Box<dyn Fn(&NodeId) + Send + Sync>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

/// Management of one store, beside a running proxy or without one.
pub struct Operations {
    store: Arc<dyn Store>,
    /// Without a trailing slash.
    public_url: String,
    /// `sha256-…`, for a certificate that no authority signed.
    pin: OnceLock<String>,
    /// What is wrong with the address in join links.
    warning: Option<String>,
    live: Option<Live>,
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations")
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl Operations {
    /// Management of a store. `pin` goes into join links when the certificate is self-signed.
    pub fn new(
        store: Arc<dyn Store>,
        public_url: String,
        pin: Option<String>,
        live: Option<Live>,
    ) -> Self {
        Self {
            store,
            public_url,
            pin: pin.map_or_else(OnceLock::new, OnceLock::from),
            warning: None,
            live,
        }
    }

    /// Says with every join link what is wrong with the address in it.
    #[must_use]
    pub fn warning(mut self, warning: Option<String>) -> Self {
        self.warning = warning;
        self
    }

    /// The record of a key that is wanted, for this token. Nothing is stored yet.
    pub async fn key_record(
        &self,
        order: &KeyOrder,
        token: &Token,
    ) -> Result<KeyRecord, AdminError> {
        let name = label("name", &order.name, NAME_MAX)?;
        let owner = label("owner", order.owner.as_ref().unwrap_or(&name), OWNER_MAX)?;
        let models = order.models.clone().filter(|models| !models.is_empty());
        check_models(models.as_deref().unwrap_or_default())?;
        check_figures(&order.plan)?;
        order.limits.as_ref().map_or(Ok(()), check_figures)?;
        let now = now_unix();
        let (id, hash) = (KeyId::new(token.id()), self.hash(token).await?);
        let tenant = match &order.tenant {
            None => Tenant::default(),
            Some(name) => name
                .parse()
                .map_err(|error: NoTenant| AdminError::Invalid(format!("{name}: {error}")))?,
        };
        Ok(KeyRecord {
            admin: order.admin,
            name,
            tenant,
            groups: groups(&order.groups)?,
            scopes: scopes(order),
            tiers: order.tiers.clone().filter(|tiers| !tiers.is_empty()),
            models,
            plan: order.plan,
            limits: order.limits,
            act_as: order.act_as,
            local_only: order.local_only,
            expires_unix: end_of_life(now, order.expires_secs, KEY_SECS_MAX)?,
            ..KeyRecord::plain(id, hash, UserId::new(owner), now)
        })
    }

    /// The record as a patch would leave it.
    pub fn patched(record: &KeyRecord, patch: KeyPatch) -> Result<KeyRecord, AdminError> {
        let mut after = record.clone();
        if let Some(name) = patch.name {
            after.name = label("name", &name, NAME_MAX)?;
        }
        if let Some(scopes) = patch.scopes {
            after.scopes = sorted(scopes);
        }
        if let Some(tiers) = patch.tiers {
            after.tiers = tiers.filter(|tiers| !tiers.is_empty());
        }
        if let Some(models) = patch.models {
            check_models(models.as_deref().unwrap_or_default())?;
            after.models = models.filter(|models| !models.is_empty());
        }
        after.plan = patch.plan.unwrap_or(after.plan);
        after.limits = patch.limits.unwrap_or(after.limits);
        check_figures(&after.plan)?;
        after.limits.as_ref().map_or(Ok(()), check_figures)?;
        if let Some(names) = patch.groups {
            after.groups = groups(&names)?;
        }
        after.act_as = patch.act_as.unwrap_or(after.act_as);
        after.local_only = patch.local_only.unwrap_or(after.local_only);
        after.expires_unix = patch.expires_unix.unwrap_or(after.expires_unix);
        Ok(after)
    }

    /// The record of a join token that is wanted. Nothing is stored yet.
    pub async fn join_record(
        &self,
        order: InviteOrder,
        token: &Token,
    ) -> Result<JoinToken, AdminError> {
        let name = match order.name.as_str() {
            "" => String::new(),
            name => label("name", name, NAME_MAX)?,
        };
        let uses = order.uses.unwrap_or(1);
        if !(1..=INVITE_USES_MAX).contains(&uses) {
            return Err(AdminError::Invalid(format!(
                "uses is {uses}: from 1 to {INVITE_USES_MAX}"
            )));
        }
        let now = now_unix();
        let life = order.expires_secs.unwrap_or(INVITE_SECS);
        Ok(JoinToken {
            id: token.id().to_owned(),
            secret_hash: self.hash(token).await?,
            name,
            uses_max: uses,
            tiers: order.tiers.filter(|tiers| !tiers.is_empty()),
            created_unix: now,
            expires_unix: end_of_life(now, Some(life), INVITE_SECS_MAX)?.unwrap_or(now),
            used_by: Vec::new(),
            approve: order.approve,
        })
    }

    /// What the operator hands on for a join token.
    pub fn invitation(&self, record: JoinToken, token: &Token) -> Invite {
        let text = token.reveal();
        let pin = self.pin.get().map(|pin| format!("&pin={pin}"));
        Invite {
            link: format!(
                "{}/join#{}{}",
                self.public_url,
                text.expose(),
                pin.unwrap_or_default()
            ),
            token: text.expose().clone(),
            id: record.id,
            uses: record.uses_max,
            expires_unix: record.expires_unix,
            warning: self.warning.clone(),
        }
    }

    /// All nodes, the oldest first.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, AdminError> {
        let mut nodes = self.store.nodes().await?;
        nodes.sort_by(|a, b| (a.created_unix, &a.id).cmp(&(b.created_unix, &b.id)));
        let now = self.nodes_now();
        let with_now = |node| {
            let mut view = NodeView::from(node);
            view.now = now.iter().find(|now| now.id == view.id).cloned();
            view.tunnel = self.live.as_ref().and_then(|live| (live.tunnel)(&view.id));
            view
        };
        let mut all: Vec<NodeView> = nodes.into_iter().map(with_now).collect();
        let outside = now.iter().filter(|now| now.outside).cloned();
        all.extend(outside.map(NodeView::outside));
        Ok(all)
    }

    /// A node by its id, or by its name if only one has it.
    pub async fn find_node(&self, name: &str) -> Result<NodeView, AdminError> {
        let nodes = self.nodes().await?;
        if let Some(node) = nodes.iter().find(|node| node.id.as_str() == name) {
            return Ok(node.clone());
        }
        let mut called = nodes
            .into_iter()
            .filter(|node| node.name == name && node.revoked_unix.is_none());
        match (called.next(), called.count()) {
            (Some(node), 0) => Ok(node),
            (Some(_), more) => Err(AdminError::Conflict(format!(
                "{} nodes are called {name}: use the id",
                more + 1
            ))),
            (None, _) => Err(AdminError::NotFound(format!(
                "no node {name}; `hearth-proxy node list` shows them"
            ))),
        }
    }

    /// From now on a node gets no new work, or gets it again. Stands in the store: every proxy heeds it, after a restart too.
    pub async fn drain_node(&self, id: &NodeId, draining: bool) -> Result<NodeView, AdminError> {
        let changed = change_node(&*self.store, id, |record| {
            if record.revoked_unix.is_none() {
                record.draining = draining;
            }
        });
        let record = changed.await?.ok_or_else(|| {
            AdminError::Conflict(format!(
                "{id} is no home machine: a server of the settings cannot be drained, take its [[remote]] out of them"
            ))
        })?;
        if record.revoked_unix.is_some() {
            return Err(AdminError::Conflict(format!(
                "{id} is revoked: it gets no work anyway"
            )));
        }
        self.find_node(id.as_str()).await
    }

    /// Lets a node in that waits for it. One that is in already stays in.
    pub async fn approve_node(&self, id: &NodeId) -> Result<NodeView, AdminError> {
        let now = now_unix();
        let changed = change_node(&*self.store, id, |record| {
            if record.pending && record.revoked_unix.is_none() {
                record.pending = false;
                record.approved_unix = Some(now);
            }
        });
        let record = changed.await?.ok_or_else(|| {
            AdminError::Conflict(format!("{id} is no home machine: it needs no approval"))
        })?;
        if record.revoked_unix.is_some() {
            return Err(AdminError::Conflict(format!(
                "{id} is revoked, for ever: {COME_BACK}"
            )));
        }
        self.find_node(id.as_str()).await
    }

    /// Cuts a node off for ever.
    pub async fn revoke_node(&self, id: &NodeId) -> Result<NodeView, AdminError> {
        if self
            .nodes_now()
            .iter()
            .any(|now| now.outside && now.id == *id)
        {
            return Err(AdminError::Conflict(format!(
                "{id} is a server of the settings: take its [[remote]] out of them and restart the proxy"
            )));
        }
        let revoked = self.store.revoke_node(id, now_unix()).await?;
        if let Some(live) = &self.live {
            (live.node_revoked)(id);
        }
        let revoked =
            revoked.ok_or_else(|| AdminError::NotFound(format!("no node {id} any more")))?;
        Ok(revoked.into())
    }

    /// Ends a key for ever.
    pub async fn revoke_key(&self, id: &KeyId) -> Result<KeyView, AdminError> {
        let revoked = self.store.revoke_key(id, now_unix()).await?;
        if let Some(live) = &self.live {
            (live.key_revoked)(id);
        }
        let revoked = revoked.ok_or_else(|| no_key(id))?;
        Ok(revoked.into())
    }

    /// A token that this request always makes, or a fresh one for a request without a name.
    pub async fn token(&self, kind: TokenKind, named: Option<&str>) -> Result<Token, AdminError> {
        let Some(named) = named else {
            return Ok(Token::generate(kind));
        };
        let pepper = self.store.secret(PEPPER).await?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, pepper.expose());
        let mut seed = [0_u8; 80];
        for (number, block) in seed.chunks_mut(32).enumerate() {
            let named = format!("once {} {number} {named}", kind.prefix());
            let tag = hmac::sign(&key, named.as_bytes());
            for (place, byte) in block.iter_mut().zip(tag.as_ref()) {
                *place = *byte;
            }
        }
        Ok(Token::from_seed(kind, &seed))
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Join links hold the pin from here on.
    pub fn pinned(&self, pin: Option<String>) {
        if let Some(pin) = pin {
            self.pin.get_or_init(|| pin);
        }
    }

    /// The route that a request would take now.
    ///
    /// # Errors
    /// No proxy runs, or nobody has the model.
    pub fn route(&self, asked: &RouteAsk) -> Result<RouteView, AdminError> {
        let Some(live) = &self.live else {
            return Err(AdminError::NotRunning);
        };
        (live.route)(asked).map_err(|refusal| AdminError::NotFound(refusal.to_string()))
    }

    /// The proxy at a glance. A store that fails is part of the answer.
    pub async fn status(&self) -> Status {
        let now = now_unix();
        let store = match self.store.ping().await {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        let keys = self.store.keys().await.unwrap_or_default();
        let nodes = self.store.nodes().await.unwrap_or_default();
        let bursts = self.store.bursts().await.unwrap_or_default().into_iter();
        let now_unix_ms = super::server::now_unix_ms();
        let is_good = |key: &&KeyRecord| {
            key.revoked_unix.is_none() && key.expires_unix.is_none_or(|end| end > now)
        };
        let failing = match &self.live {
            Some(live) => (live.failing)().await,
            None => Vec::new(),
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_secs: self
                .live
                .as_ref()
                .map(|live| live.started.elapsed().as_secs()),
            store,
            failing: failing.into_iter().map(str::to_owned).collect(),
            keys: keys.iter().filter(is_good).count(),
            nodes: nodes
                .iter()
                .filter(|node| node.revoked_unix.is_none())
                .count(),
            nodes_online: self.nodes_now().iter().filter(|now| !now.asleep).count(),
            bursts: bursts
                .map(|burst| BurstView::of(burst, now_unix_ms))
                .collect(),
        }
    }

    fn nodes_now(&self) -> Vec<NodeNow> {
        self.live
            .as_ref()
            .map(|live| (live.nodes)())
            .unwrap_or_default()
    }

    async fn hash(&self, token: &Token) -> Result<SecretHash, StoreError> {
        let pepper = self.store.secret(PEPPER).await?;
        Ok(SecretHash::of(pepper.expose(), token.secret().expose()))
    }
}

fn scopes(order: &KeyOrder) -> Vec<Scope> {
    sorted(match (order.admin, order.scopes.is_empty()) {
        (true, _) => Scope::ALL.to_vec(),
        (false, true) => Scope::CLIENT.to_vec(),
        (false, false) => order.scopes.clone(),
    })
}

fn sorted(mut scopes: Vec<Scope>) -> Vec<Scope> {
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

pub(super) fn groups(names: &[String]) -> Result<Vec<Arc<str>>, AdminError> {
    if names.len() > GROUPS_MAX {
        return Err(AdminError::Invalid(format!(
            "{} groups: {GROUPS_MAX} at most",
            names.len()
        )));
    }
    let mut groups = Vec::with_capacity(names.len());
    for name in names {
        groups.push(Arc::from(label("a group", name, GROUP_CHARS_MAX)?));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

/// There is no such key.
pub(super) fn no_key(id: &KeyId) -> AdminError {
    AdminError::NotFound(format!("no key {id}; `hearth-proxy key list` shows them"))
}

pub(super) fn label(what: &str, text: &str, chars_max: usize) -> Result<String, AdminError> {
    let text = text.trim();
    let chars = text.chars().count();
    if chars == 0 || chars > chars_max || text.chars().any(char::is_control) {
        return Err(AdminError::Invalid(format!(
            "{what} must be 1 to {chars_max} characters without control characters"
        )));
    }
    Ok(text.to_owned())
}

/// Figures above this are not the same number in every reader of JSON (RFC 8259 section 6).
const FIGURE_MAX: u64 = (1 << 53) - 1;

pub(super) fn check_figures(plan: &Plan) -> Result<(), AdminError> {
    let figures = serde_json::to_value(plan).unwrap_or_default();
    for (name, figure) in figures.as_object().into_iter().flatten() {
        if figure.as_u64().is_some_and(|figure| figure > FIGURE_MAX) {
            return Err(AdminError::Invalid(format!(
                "{name} is {figure}: at most {FIGURE_MAX}; leave it out for no limit"
            )));
        }
    }
    Ok(())
}

fn check_models(models: &[String]) -> Result<(), AdminError> {
    if models.len() > MODELS_MAX {
        return Err(AdminError::Invalid(format!(
            "{} models in one key: {MODELS_MAX} at most",
            models.len()
        )));
    }
    for model in models {
        label("a model", model, MODEL_CHARS_MAX)?;
    }
    Ok(())
}

pub(super) fn end_of_life(
    now: i64,
    life: Option<u64>,
    max: u64,
) -> Result<Option<i64>, AdminError> {
    let Some(life) = life else {
        return Ok(None);
    };
    let seconds = i64::try_from(life)
        .ok()
        .filter(|_| (1..=max).contains(&life));
    let seconds = seconds
        .ok_or_else(|| AdminError::Invalid(format!("a life of {life} s: from 1 s to {max} s")))?;
    Ok(Some(now + seconds))
}

/// People paste whole keys; what is known about a key is its id.
pub(super) fn key_id(text: &str) -> Result<KeyId, AdminError> {
    let text = text.trim();
    if let Ok(token) = Token::parse(text) {
        return Ok(KeyId::new(token.id()));
    }
    let id = [TokenKind::Client, TokenKind::Admin]
        .iter()
        .find_map(|kind| text.strip_prefix(kind.prefix()))
        .unwrap_or(text);
    if id.is_empty() || id.len() > NAME_MAX || !id.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return Err(AdminError::NotFound(
            "no such key: a key is named by its id of ten letters and digits, or by the whole key"
                .to_owned(),
        ));
    }
    Ok(KeyId::new(id))
}

pub(super) fn now_unix() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
