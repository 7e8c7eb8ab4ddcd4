//! Opens a carrier at the proxy: an HTTPS request that becomes a WebSocket whose messages are the tunnel's datagrams (RFC 6455). Trusts whom registration
//! trusts. What is carried is the tunnel's business.

use std::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::ids::NodeId;
use config::wire::node::{CARRIER_PATH, CarrierProof, carrier_message};
use reqwest::header::{
    AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use reqwest::{StatusCode, Upgraded};
use tokio::time::timeout;

use super::{CALL_MAX, Hub, HubError};
use crate::identity::Identity;

/// A connection that the proxy has upgraded.
#[derive(Debug)]
pub struct Opened {
    /// Frames from here on.
    pub stream: Upgraded,
    /// Who is at its other end.
    pub remote: IpAddr,
}

impl Hub {
    /// Opens a carrier for this node.
    pub async fn open_carrier(
        &self,
        identity: &Identity,
        node_id: &NodeId,
    ) -> Result<Opened, HubError> {
        match timeout(CALL_MAX, self.try_carrier(identity, node_id)).await {
            Ok(opened) => opened,
            Err(_elapsed) => Err(HubError::Unreachable {
                url: self.url.clone(),
                reason: "no answer in time".to_owned(),
            }),
        }
    }

    async fn try_carrier(&self, identity: &Identity, node_id: &NodeId) -> Result<Opened, HubError> {
        let nonce = self.nonce().await?;
        let signature = identity.sign(&carrier_message(node_id, &nonce));
        let proof = CarrierProof {
            node_id: node_id.clone(),
            nonce,
            signature,
        };
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        let sent = self
            .upgrading
            .get(format!("{}{CARRIER_PATH}", self.url))
            .header(AUTHORIZATION, proof.to_header())
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .send()
            .await;
        let response = sent.map_err(|error| self.failure(&error))?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let body = self.whole(response).await?;
            return Err(self.refusal(status, &body));
        }
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
        if accepted.is_none_or(|accepted| *accepted != *tunnel::websocket_accept(key.as_bytes())) {
            return Err(self.odd("its upgrade answers another request".to_owned()));
        }
        let remote = response.remote_addr();
        let remote = remote.map_or(Ipv6Addr::UNSPECIFIED.into(), |remote| remote.ip());
        let upgraded = response.upgrade().await;
        let stream = upgraded.map_err(|error| self.failure(&error))?;
        Ok(Opened { stream, remote })
    }
}
