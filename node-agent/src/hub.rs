//! The proxy's HTTPS side as a node sees it: enrolment and registration. Trusts the system's certificate authorities, or exactly one key if
//! the join link named one. Every call has a deadline and every answer a bound.

pub mod carrier;
mod pinned;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::ids::NodeId;
use config::token::Token;
use config::wire::error::ErrorBody;
use config::wire::node::{
    EnrollReply, EnrollRequest, NonceReply, RegisterReply, RegisterRequest, Unmanaged, VERSION,
    enroll_message, register_message,
};
use reqwest::{Client, ClientBuilder, Response, StatusCode, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;

use tunnel::PublicKey;
use tunnel::kem::{Asking, Shared};

use crate::identity::Identity;
use crate::join::Pin;

use pinned::{PIN_MISMATCH, PinnedVerifier};

const CONNECT_MAX: Duration = Duration::from_secs(5);
const CALL_MAX: Duration = Duration::from_secs(10);
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// How rustls says that a certificate is too young or too old.
const OUT_OF_TIME: [&str; 4] = [
    "certificate not valid yet",
    "certificate expired",
    "NotValidYet",
    "Expired",
];

/// Why the proxy did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No connection, or no answer in time.
    #[error("the proxy {url} cannot be reached: {reason}")]
    Unreachable {
        /// Its origin.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The proxy shows another key than the join link named.
    #[error(
        "the proxy {url} shows another key than the join link names: either its certificate was made anew (ask for a new join link), or somebody stands in between"
    )]
    WrongKey {
        /// Its origin.
        url: String,
    },
    /// The certificate is not trusted.
    #[error(
        "the certificate of {url} is not trusted ({reason}); a proxy with a self-signed certificate prints join links with a pin"
    )]
    Untrusted {
        /// Its origin.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate is not valid at the time that this machine believes.
    #[error(
        "the certificate of {url} is not valid at this machine's time ({reason}): if the clock is wrong, set it (`timedatectl set-ntp true`); if it is right, the proxy's certificate needs renewing"
    )]
    WrongTime {
        /// Its origin.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The proxy says no.
    #[error("{}", explain(code, message))]
    Refused {
        /// The code of the error body.
        code: String,
        /// The proxy's sentence.
        message: String,
    },
    /// The proxy cannot now, and says why; asked again, it may.
    #[error("the proxy {url} cannot do it now: {message} ({code})")]
    Away {
        /// Its origin.
        url: String,
        /// The code of the error body.
        code: String,
        /// The proxy's sentence.
        message: String,
    },
    /// The answer makes no sense.
    #[error("{url} does not answer like a Hearth proxy: {reason}")]
    Odd {
        /// Its origin.
        url: String,
        /// What was wrong.
        reason: String,
    },
}

impl HubError {
    /// Whether trying again within seconds can help.
    pub const fn is_passing(&self) -> bool {
        match self {
            // A clock is set by the network sooner or later, and nobody need do anything here then.
            Self::Unreachable { .. }
            | Self::WrongTime { .. }
            | Self::Away { .. }
            | Self::Odd { .. } => true,
            Self::WrongKey { .. } | Self::Untrusted { .. } | Self::Refused { .. } => false,
        }
    }

    /// A short word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::WrongKey { .. } => "wrong_key",
            Self::Untrusted { .. } => "untrusted",
            Self::WrongTime { .. } => "clock",
            Self::Refused { code, .. } => reason(code),
            Self::Away { .. } => "away",
            Self::Odd { .. } => "odd",
        }
    }
}

/// The machine's word for a refusal, one of few.
fn reason(code: &str) -> &'static str {
    match code {
        "node_pending" => "pending",
        "node_revoked" => "revoked",
        "node_unknown" => "unknown",
        "version_unsupported" => "version",
        "join_token_used" => "token_spent",
        "join_token_expired" => "token_expired",
        "join_token_unknown" | "join_token_malformed" => "token_unknown",
        "signature_invalid" => "signature",
        _ => "refused",
    }
}

/// What a code means to the person at the node.
fn explain(code: &str, message: &str) -> String {
    let known = match code {
        "join_token_used" => {
            "this join link was used already; ask the proxy's operator for a new one (`hearth-proxy node invite`)"
        }
        "join_token_expired" => {
            "this join link has expired; ask the proxy's operator for a new one (`hearth-proxy node invite`)"
        }
        "join_token_unknown" => {
            "the proxy does not know this join link; was it made by another proxy, or revoked?"
        }
        "join_token_malformed" => "the join link is damaged; copy it again, whole and in quotes",
        // Of these the node knows more than the code says.
        "node_pending" | "node_revoked" if !message.is_empty() => return message.to_owned(),
        "node_unknown" => "the proxy does not know this node any more; join again with a new link",
        "signature_invalid" => {
            "the proxy does not accept this node's signature; was the identity file replaced? join again with a new link"
        }
        "version_unsupported" => "proxy and node are of different versions; update the older one",
        _ => "",
    };
    match (known, message) {
        ("", "") => format!("the proxy refused: {code}"),
        ("", message) => format!("the proxy refused: {message} ({code})"),
        (known, _) => known.to_owned(),
    }
}

/// A client for one proxy.
#[derive(Clone, Debug)]
pub struct Hub {
    client: Client,
    /// For carriers.
    upgrading: Client,
    url: String,
}

impl Hub {
    /// A client for the proxy at `url`, an origin.
    pub fn new(url: &str, pin: Option<Pin>) -> Result<Self, HubError> {
        let made = builder(url, pin)?.timeout(CALL_MAX).build();
        let client = made.map_err(|error| untrusted(url, &error))?;
        // An upgrade exists in HTTP/1 only, and what comes after it has no end.
        let made = builder(url, pin)?.http1_only().build();
        let upgrading = made.map_err(|error| untrusted(url, &error))?;
        Ok(Self {
            client,
            upgrading,
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// The proxy's origin.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The proxy's clock, Unix milliseconds; 0: it does not tell.
    pub async fn time(&self) -> Result<u64, HubError> {
        let reply: NonceReply = self.post("/v1/nodes/nonce", &serde_json::json!({})).await?;
        Ok(reply.server_time_ms)
    }

    /// The host part, for endpoints without one.
    pub fn host(&self) -> Option<String> {
        let uri: http::Uri = self.url.parse().ok()?;
        uri.host().map(str::to_owned)
    }

    /// Exchanges a join token for a place.
    pub async fn enrol(
        &self,
        identity: &Identity,
        token: &Token,
        name: &str,
    ) -> Result<EnrollReply, HubError> {
        let nonce = self.nonce().await?;
        let public = identity.public();
        let signature = identity.sign(&enroll_message(token.id(), &public, &nonce));
        let request = EnrollRequest {
            version: VERSION,
            token: token.reveal().expose().clone(),
            identity: public,
            name: name.to_owned(),
            nonce,
            signature,
        };
        let posted = self.post("/v1/nodes/enroll", &request).await;
        posted.map_err(|error| told_what_next(error, identity, None))
    }

    /// Tells the proxy a WireGuard key of this start. What comes back holds all but one part of the pre-shared key; the other part is what
    /// the ML-KEM exchange of this registration gave.
    pub async fn register(
        &self,
        identity: &Identity,
        (node_id, start): (&NodeId, &str),
        wireguard_key: PublicKey,
    ) -> Result<(RegisterReply, Shared), HubError> {
        let mut request = self.registration((node_id, start), wireguard_key).await?;
        let asking = Asking::new();
        request.kem_key = STANDARD.encode(asking.public());
        let reply = self.send_registration(identity, request).await?;
        let ciphertext = STANDARD.decode(&reply.kem_ciphertext).ok();
        let shared = ciphertext.and_then(|ciphertext| asking.open(&ciphertext));
        let shared =
            shared.ok_or_else(|| self.odd("it sent a useless kem_ciphertext".to_owned()))?;
        Ok((reply, shared))
    }

    /// Registers a server behind a stock WireGuard with this key. No part of a pre-shared key concerns it: such a peer has none.
    pub async fn register_unmanaged(
        &self,
        identity: &Identity,
        node_id: &NodeId,
        wireguard_key: PublicKey,
        server: Unmanaged,
    ) -> Result<RegisterReply, HubError> {
        let start = "0".repeat(32);
        let mut request = self.registration((node_id, &start), wireguard_key).await?;
        request.kem_key = STANDARD.encode(Asking::new().public());
        request.unmanaged = Some(server);
        self.send_registration(identity, request).await
    }

    /// A registration without its signature and its exchange.
    async fn registration(
        &self,
        (node_id, start): (&NodeId, &str),
        wireguard_key: PublicKey,
    ) -> Result<RegisterRequest, HubError> {
        Ok(RegisterRequest {
            version: VERSION,
            node_id: node_id.clone(),
            wireguard_key: wireguard_key.to_string(),
            start: start.to_owned(),
            kem_key: String::new(),
            nonce: self.nonce().await?,
            signature: String::new(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            unmanaged: None,
        })
    }

    async fn send_registration(
        &self,
        identity: &Identity,
        mut request: RegisterRequest,
    ) -> Result<RegisterReply, HubError> {
        request.signature = identity.sign(&register_message(&request));
        let posted = self.post("/v1/nodes/register", &request).await;
        posted.map_err(|error| told_what_next(error, identity, Some(&request.node_id)))
    }

    async fn nonce(&self) -> Result<String, HubError> {
        let reply: NonceReply = self.post("/v1/nodes/nonce", &serde_json::json!({})).await?;
        Ok(reply.nonce)
    }

    async fn post<A: Serialize, B: DeserializeOwned>(
        &self,
        path: &str,
        body: &A,
    ) -> Result<B, HubError> {
        let url = format!("{}{path}", self.url);
        let sent = self.client.post(url).json(body).send().await;
        let response = sent.map_err(|error| self.failure(&error))?;
        let status = response.status();
        let bytes = self.whole(response).await?;
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|error| self.odd(format!("its answer to {path}: {error}")));
        }
        Err(self.refusal(status, &bytes))
    }

    /// An answer's body.
    async fn whole(&self, mut response: Response) -> Result<Vec<u8>, HubError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.failure(&error))?
        {
            if bytes.len() + chunk.len() > REPLY_BYTES_MAX {
                return Err(self.odd("its answer is too long".to_owned()));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn refusal(&self, status: StatusCode, bytes: &[u8]) -> HubError {
        // 5xx and 429 pass by themselves.
        let passes = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        let url = self.url.clone();
        let Ok(body) = serde_json::from_slice::<ErrorBody>(bytes) else {
            return if passes {
                let reason = format!("it answers {status}");
                HubError::Unreachable { url, reason }
            } else {
                self.odd(format!("it answers {status} without a reason"))
            };
        };
        let (code, message) = (body.error.code.unwrap_or_default(), body.error.message);
        if passes {
            let code = if code.is_empty() {
                status.as_u16().to_string()
            } else {
                code
            };
            return HubError::Away { url, code, message };
        }
        // A nonce lives for a minute: a slow network is no verdict.
        if code == "nonce_expired" {
            let reason = "the answer took longer than the nonce lives".to_owned();
            return HubError::Unreachable { url, reason };
        }
        HubError::Refused { code, message }
    }

    fn failure(&self, error: &reqwest::Error) -> HubError {
        failed(self.url.clone(), innermost(error), error.is_timeout())
    }

    fn odd(&self, reason: String) -> HubError {
        HubError::Odd {
            url: self.url.clone(),
            reason,
        }
    }
}

/// Why there was no answer, from what the bottom of the stack said.
fn failed(url: String, reason: String, is_late: bool) -> HubError {
    if reason.contains(PIN_MISMATCH) {
        return HubError::WrongKey { url };
    }
    if OUT_OF_TIME.iter().any(|words| reason.contains(words)) {
        return HubError::WrongTime { url, reason };
    }
    if reason.contains("certificate") {
        return HubError::Untrusted { url, reason };
    }
    let reason = if is_late {
        "no answer in time".to_owned()
    } else {
        reason
    };
    HubError::Unreachable { url, reason }
}

/// What all clients for one proxy have in common: whom they trust above all.
fn builder(url: &str, pin: Option<Pin>) -> Result<ClientBuilder, HubError> {
    let builder = Client::builder()
        .https_only(true)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_MAX)
        .pool_max_idle_per_host(1)
        .user_agent(concat!("hearth-node/", env!("CARGO_PKG_VERSION")));
    let Some(pin) = pin else {
        return Ok(builder);
    };
    let tls = pinned::client_config(Arc::new(PinnedVerifier::new(pin)));
    let tls = tls.map_err(|error| HubError::Odd {
        url: url.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(builder.tls_backend_preconfigured(tls))
}

fn untrusted(url: &str, error: &reqwest::Error) -> HubError {
    HubError::Untrusted {
        url: url.to_owned(),
        reason: innermost(error),
    }
}

/// What the node knows better than the proxy. One that waits says itself which words to compare: those of the proxy would prove nothing.
fn told_what_next(error: HubError, identity: &Identity, node_id: Option<&NodeId>) -> HubError {
    let HubError::Refused { code, message } = error else {
        return error;
    };
    let message = match (code.as_str(), node_id) {
        ("node_pending", Some(node_id)) => waiting_words(node_id),
        ("node_revoked", _) => revoked_words(identity),
        _ => message,
    };
    HubError::Refused { code, message }
}

/// What is left to do after a revocation. The models' hashes and locks lie beside these files, and stay.
fn revoked_words(identity: &Identity) -> String {
    let files: Vec<String> = identity
        .files()
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let remove = match files.as_slice() {
        [] => String::new(),
        files => format!(" remove {},", files.join(" and ")),
    };
    format!(
        "this node was revoked at the proxy, for ever; to come back as a new node, stop it,{remove} and join with a new link"
    )
}

/// What the person at a node that waits should know.
pub fn waiting_words(node_id: &NodeId) -> String {
    let words = config::fingerprint::words(node_id).unwrap_or_default();
    format!(
        "this node waits for approval: its words are \"{words}\"; if `hearth-proxy node list` shows the same, run `hearth-proxy node approve {node_id}` there"
    )
}

/// The cause at the bottom; the outer ones only repeat the address.
fn innermost(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;
    use rustls::pki_types::UnixTime;

    use super::*;

    #[test]
    fn a_certificate_out_of_time_is_a_matter_of_the_clock_and_passes_by_itself() {
        let (here, there) = (1_000, 1_800_000_000);
        let at = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        for error in [
            CertificateError::NotValidYetContext {
                time: at(here),
                not_before: at(there),
            },
            CertificateError::ExpiredContext {
                time: at(there),
                not_after: at(here),
            },
            CertificateError::NotValidYet,
            CertificateError::Expired,
        ] {
            let reason = rustls::Error::InvalidCertificate(error).to_string();
            let error = failed("https://a".to_owned(), reason, false);
            assert!(matches!(error, HubError::WrongTime { .. }), "{error}");
            assert!(error.is_passing() && error.label() == "clock");
            assert!(error.to_string().contains("timedatectl"), "{error}");
        }
        let reason = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer).to_string();
        let error = failed("https://a".to_owned(), reason, false);
        assert!(matches!(error, HubError::Untrusted { .. }) && !error.is_passing());
        let error = failed(
            "https://a".to_owned(),
            "connection refused".to_owned(),
            true,
        );
        assert!(error.to_string().contains("no answer in time"), "{error}");
    }

    #[test]
    fn a_proxy_that_cannot_now_is_quoted_with_its_code_and_asked_again() {
        // Another test of this process may have done it already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let hub = Hub::new("https://a", None).expect("a client");
        let sentence = "the proxy cannot reach its store: try again shortly";
        let body = ErrorBody::new("server_error", "store_away", sentence);
        let body = serde_json::to_vec(&body).expect("JSON");
        for status in [
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::TOO_MANY_REQUESTS,
        ] {
            let error = hub.refusal(status, &body);
            assert_eq!(
                error.to_string(),
                format!("the proxy https://a cannot do it now: {sentence} (store_away)")
            );
            assert!(error.is_passing() && error.label() == "away");
        }
        let mute = hub.refusal(StatusCode::BAD_GATEWAY, b"<html>");
        assert!(mute.to_string().contains("it answers 502"), "{mute}");
        assert!(mute.is_passing() && mute.label() == "unreachable");
    }

    #[test]
    fn a_revoked_node_is_told_which_two_files_make_it_that_node() {
        let folder = tempfile::tempdir().expect("a folder");
        let identity = Identity::open(folder.path()).expect("an identity");
        let refused = || HubError::Refused {
            code: "node_revoked".to_owned(),
            message: "this node was revoked".to_owned(),
        };
        let said = told_what_next(refused(), &identity, None).to_string();
        for file in ["identity.pem", "node.json"] {
            let path = folder.path().join(file).display().to_string();
            assert!(said.contains(&path), "{path} in {said}");
        }
        assert!(!said.contains("directory"), "{said}");
        let fleeting = Identity::fleeting().expect("a key");
        let said = told_what_next(refused(), &fleeting, None).to_string();
        assert!(said.contains("stop it, and join with a new link"), "{said}");
    }
}
