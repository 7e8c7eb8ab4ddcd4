//! Join links and nodes.

use config::token::TokenKind;
use serde_json::{Value, json};

use super::{Answer, Api, At};
use crate::admin::operations::AdminError;
use crate::admin::routes::{InviteAct, NodeAct};
use crate::admin::words::{InviteOrder, JoinTokenView, NodeView};
use crate::store::JoinToken;

impl Api {
    pub(super) async fn act_on_invites(
        &self,
        act: InviteAct,
        at: &At<'_>,
    ) -> Result<Answer, AdminError> {
        match act {
            InviteAct::List => self.invites(at).await,
            InviteAct::Create => self.invite(at).await,
            InviteAct::End => self.end_invite(at).await,
        }
    }

    pub(super) async fn act_on_nodes(
        &self,
        act: NodeAct,
        at: &At<'_>,
    ) -> Result<Answer, AdminError> {
        match act {
            NodeAct::List => self.list_nodes(at).await,
            NodeAct::Show => Answer::ok(&self.operations.find_node(at.id).await?),
            NodeAct::Drain => self.drain_node(at, true).await,
            NodeAct::Undrain => self.drain_node(at, false).await,
            NodeAct::Approve => self.approve_node(at).await,
            NodeAct::Revoke => self.revoke_node(at).await,
        }
    }

    async fn invites(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let tokens = self.operations.store().join_tokens().await?;
        let tokens = tokens.into_iter().map(JoinTokenView::from).collect();
        Answer::ok(&at.page(tokens, |token: &JoinTokenView| token.id.clone())?)
    }

    async fn list_nodes(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let nodes = self.operations.nodes().await?;
        Answer::ok(&at.page(nodes, |node: &NodeView| node.id.to_string())?)
    }

    async fn invite(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let order: InviteOrder = at.order_or_default()?;
        let once = at.asked.once()?;
        let token = self
            .operations
            .token(TokenKind::Join, once.as_deref())
            .await?;
        let record = self.operations.join_record(order, &token).await?;
        if once.is_some()
            && let Some(known) = self.join_token(token.id()).await?
        {
            if is_same_order(&known, &record) {
                return Answer::made(&self.operations.invitation(known, &token));
            }
            return Err(AdminError::Conflict(
                "this idempotency-key made another join link: use a new one".into(),
            ));
        }
        let view = json!(JoinTokenView::from(record.clone()));
        self.note(at, &record.id, (Value::Null, view)).await?;
        self.operations.store().put_join_token(&record).await?;
        Answer::made(&self.operations.invitation(record, &token))
    }

    async fn join_token(&self, id: &str) -> Result<Option<JoinToken>, AdminError> {
        let tokens = self.operations.store().join_tokens().await?;
        Ok(tokens.into_iter().find(|token| token.id == id))
    }

    async fn end_invite(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let known = self.join_token(at.id).await?;
        let mut token =
            known.ok_or_else(|| AdminError::NotFound(format!("no join link {}", at.id)))?;
        let before = json!(JoinTokenView::from(token.clone()));
        token.expires_unix = token.expires_unix.min(at.asked.now_unix());
        let view = JoinTokenView::from(token.clone());
        self.note(at, at.id, (before, json!(view))).await?;
        self.operations.store().put_join_token(&token).await?;
        Answer::ok(&view)
    }

    async fn drain_node(&self, at: &At<'_>, draining: bool) -> Result<Answer, AdminError> {
        let node = self.operations.find_node(at.id).await?;
        let told = (
            json!({"draining": node.draining}),
            json!({"draining": draining}),
        );
        self.note(at, node.id.as_str(), told).await?;
        Answer::ok(&self.operations.drain_node(&node.id, draining).await?)
    }

    async fn approve_node(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let node = self.operations.find_node(at.id).await?;
        let told = (json!({"state": node.state}), json!({"state": "approved"}));
        self.note(at, node.id.as_str(), told).await?;
        Answer::ok(&self.operations.approve_node(&node.id).await?)
    }

    async fn revoke_node(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let node = self.operations.find_node(at.id).await?;
        if node.revoked_unix.is_none() {
            let view = json!(node);
            self.note(at, node.id.as_str(), (view, Value::Null)).await?;
        }
        Answer::ok(&self.operations.revoke_node(&node.id).await?)
    }
}

fn is_same_order(known: &JoinToken, ordered: &JoinToken) -> bool {
    let life = |token: &JoinToken| token.expires_unix - token.created_unix;
    known.name == ordered.name
        && known.uses_max == ordered.uses_max
        && known.tiers == ordered.tiers
        && known.approve == ordered.approve
        && known.secret_hash == ordered.secret_hash
        && life(known) == life(ordered)
}
