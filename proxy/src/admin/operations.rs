//! The work behind every management command, the same for the socket and for the command line. Checks what it is given; prints
//! nothing and speaks no HTTP.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use config::ids::{KeyId, NodeId, UserId};
use config::token::{Token, TokenKind};
use futures_util::future::BoxFuture;
use policy::identity::Scope;

use super::words::{Invite, InviteOrder, KeyMade, KeyOrder, KeyView, NodeNow, NodeView, Status};
use crate::store::{JoinToken, KeyRecord, PEPPER, SecretHash, Store, StoreError};

/// Characters of a name.
const NAME_MAX: usize = 64;
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

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The order makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What only a running proxy can tell or do.
pub struct Live {
    /// When it started.
    pub started: Instant,
    /// Nodes with a fresh report.
    pub nodes: Box<dyn Fn() -> Vec<NodeNow> + Send + Sync>,
    /// Checks that fail now.
    pub failing: Box<dyn Fn() -> BoxFuture<'static, Vec<&'static str>> + Send + Sync>,
    /// Forgets what is remembered of a key.
    pub key_revoked: Box<dyn Fn(&KeyId) + Send + Sync>,
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
    pin: Option<String>,
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
            pin,
            live,
        }
    }

    /// Makes a key.
    pub async fn create_key(&self, order: KeyOrder) -> Result<KeyMade, AdminError> {
        let name = label("name", &order.name, NAME_MAX)?;
        let owner = label("owner", order.owner.as_ref().unwrap_or(&name), OWNER_MAX)?;
        if let Some(models) = &order.models {
            check_models(models)?;
        }
        let kind = if order.admin {
            TokenKind::Admin
        } else {
            TokenKind::Client
        };
        let token = Token::generate(kind);
        let now = now_unix();
        let record = KeyRecord {
            id: KeyId::new(token.id()),
            secret_hash: self.hash(&token).await?,
            admin: order.admin,
            name,
            owner: UserId::new(owner),
            scopes: scopes(&order),
            tiers: order.tiers.filter(|tiers| !tiers.is_empty()),
            models: order.models.filter(|models| !models.is_empty()),
            plan: order.plan,
            created_unix: now,
            expires_unix: end_of_life(now, order.expires_secs, KEY_SECS_MAX)?,
            last_used_unix: None,
            revoked_unix: None,
        };
        self.store.put_key(&record).await?;
        Ok(KeyMade {
            key: token.reveal().expose().clone(),
            record: record.into(),
        })
    }

    /// All keys, the oldest first.
    pub async fn keys(&self) -> Result<Vec<KeyView>, AdminError> {
        let mut keys = self.store.keys().await?;
        keys.sort_by(|a, b| (a.created_unix, &a.id).cmp(&(b.created_unix, &b.id)));
        Ok(keys.into_iter().map(KeyView::from).collect())
    }

    /// Ends a key, named by its id or by the whole key.
    pub async fn revoke_key(&self, id: &str) -> Result<KeyView, AdminError> {
        let id = key_id(id)?;
        let revoked = self.store.revoke_key(&id, now_unix()).await?;
        if let Some(live) = &self.live {
            (live.key_revoked)(&id);
        }
        let revoked = revoked.ok_or_else(|| {
            AdminError::NotFound(format!("no key {id}; `hearth-proxy key list` shows them"))
        })?;
        Ok(revoked.into())
    }

    /// Makes a join link.
    pub async fn invite(&self, order: InviteOrder) -> Result<Invite, AdminError> {
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
        let expires_unix = end_of_life(now, Some(life), INVITE_SECS_MAX)?.unwrap_or(now);
        let token = Token::generate(TokenKind::Join);
        let record = JoinToken {
            id: token.id().to_owned(),
            secret_hash: self.hash(&token).await?,
            name,
            uses_max: uses,
            tiers: order.tiers.filter(|tiers| !tiers.is_empty()),
            created_unix: now,
            expires_unix,
            used_by: Vec::new(),
        };
        self.store.put_join_token(&record).await?;
        let text = token.reveal();
        let pin = self.pin.as_ref().map(|pin| format!("&pin={pin}"));
        Ok(Invite {
            link: format!(
                "{}/join#{}{}",
                self.public_url,
                text.expose(),
                pin.unwrap_or_default()
            ),
            token: text.expose().clone(),
            id: record.id,
            uses,
            expires_unix,
        })
    }

    /// All nodes, the oldest first.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, AdminError> {
        let mut nodes = self.store.nodes().await?;
        nodes.sort_by(|a, b| (a.created_unix, &a.id).cmp(&(b.created_unix, &b.id)));
        let now = self.nodes_now();
        let with_now = |node| {
            let mut view = NodeView::from(node);
            view.now = now.iter().find(|now| now.id == view.id).cloned();
            view
        };
        Ok(nodes.into_iter().map(with_now).collect())
    }

    /// Ends a node, named by its id, or by its name if only one has it.
    pub async fn revoke_node(&self, name: &str) -> Result<NodeView, AdminError> {
        let nodes = self.store.nodes().await?;
        let is_meant = |id: &NodeId| id.as_str() == name;
        let found: Vec<&NodeId> = match nodes.iter().find(|node| is_meant(&node.id)) {
            Some(node) => vec![&node.id],
            None => nodes
                .iter()
                .filter(|node| node.name == name && node.revoked_unix.is_none())
                .map(|node| &node.id)
                .collect(),
        };
        let id = match found.as_slice() {
            [id] => *id,
            [] => {
                return Err(AdminError::NotFound(format!(
                    "no node {name}; `hearth-proxy node list` shows them"
                )));
            }
            several => {
                return Err(AdminError::Invalid(format!(
                    "{} nodes are called {name}: use the id",
                    several.len()
                )));
            }
        };
        let revoked = self.store.revoke_node(id, now_unix()).await?;
        if let Some(live) = &self.live {
            (live.node_revoked)(id);
        }
        let revoked =
            revoked.ok_or_else(|| AdminError::NotFound(format!("no node {id} any more")))?;
        Ok(revoked.into())
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
            nodes_online: self.nodes_now().len(),
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
    let mut scopes = match (order.admin, order.scopes.is_empty()) {
        (true, _) => Scope::ALL.to_vec(),
        (false, true) => Scope::CLIENT.to_vec(),
        (false, false) => order.scopes.clone(),
    };
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

fn label(what: &str, text: &str, chars_max: usize) -> Result<String, AdminError> {
    let text = text.trim();
    let chars = text.chars().count();
    if chars == 0 || chars > chars_max || text.chars().any(char::is_control) {
        return Err(AdminError::Invalid(format!(
            "{what} must be 1 to {chars_max} characters without control characters"
        )));
    }
    Ok(text.to_owned())
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

fn end_of_life(now: i64, life: Option<u64>, max: u64) -> Result<Option<i64>, AdminError> {
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
fn key_id(text: &str) -> Result<KeyId, AdminError> {
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
        return Err(AdminError::Invalid(
            "a key is named by its id of ten letters and digits, or by the whole key".to_owned(),
        ));
    }
    Ok(KeyId::new(id))
}

fn now_unix() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
