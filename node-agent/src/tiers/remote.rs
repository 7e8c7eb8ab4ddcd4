//! A tier that another server runs: Ollama, vLLM, LM Studio, llama-server or anything else that speaks OpenAI's API on the home network.
//! Asks it how it is and hands requests on; never changes what a request says but the model's name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::secret::Secret;
use config::settings::node::Upstream;
use config::wire::models::{LIST_BYTES_MAX, Listing};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, redirect};
use tokio_util::sync::CancellationToken;

use super::TierRoom;
use super::room::Phase;

/// A server at home answers within this, or it is not there.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// The whole list of models.
const HEALTH_MAX: Duration = Duration::from_secs(5);
/// Between two looks at the server.
const HEALTH_EVERY: Duration = Duration::from_secs(10);
/// Between two looks while it loads its model.
const LOADING_LOOK: Duration = Duration::from_secs(1);

/// A server that answers.
#[derive(Debug)]
pub struct Remote {
    client: Client,
    base: String,
    key: Option<HeaderValue>,
    /// The model that requests go to.
    pub model: String,
    /// All models that it lists.
    pub listed: Vec<String>,
    /// Tokens of one request, if it tells.
    pub n_ctx: Option<u32>,
}

/// Why the server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nobody answers.
    #[error("{0} does not answer")]
    Away(String),
    /// It refuses our key.
    #[error("{0} refuses the key: set upstream_key_file")]
    Key(String),
    /// It answers with something else.
    #[error(
        "{url} answers {status} instead of a list of models; the address ends in /v1 with most servers"
    )]
    Status {
        /// What was asked for.
        url: String,
        /// What came.
        status: StatusCode,
    },
    /// The list makes no sense.
    #[error("{0} does not answer with a list of models")]
    Malformed(String),
    /// It has other models.
    #[error("{url} has no model \"{wanted}\", but {listed}")]
    NoModel {
        /// Which server.
        url: String,
        /// The one in the settings.
        wanted: String,
        /// Those it has.
        listed: String,
    },
    /// It has the model, and will answer with it by itself.
    #[error("{url} is still loading \"{model}\"")]
    Loading {
        /// Which server.
        url: String,
        /// The one in the settings, or its first.
        model: String,
    },
    /// The HTTP client could not be made, or the key is no header.
    #[error("{0}")]
    Client(String),
}

impl Remote {
    /// Asks the server what it has.
    pub async fn reach(client: &Client, upstream: &Upstream) -> Result<Self, RemoteError> {
        let base = upstream.url.trim_end_matches('/').to_owned();
        let key = upstream.key.as_ref().map(header).transpose()?;
        let url = format!("{base}/models");
        let request = authorised(client.request(Method::GET, &url), key.as_ref());
        let answer = request.timeout(HEALTH_MAX).send().await;
        let answer = answer.map_err(|_error| RemoteError::Away(base.clone()))?;
        let list = read_list(answer, &url, &base).await?;
        let wanted = upstream.model.as_deref();
        let listed = list.names();
        let Some(found) = list.find(wanted) else {
            return Err(RemoteError::NoModel {
                url: base,
                wanted: wanted.unwrap_or("any").to_owned(),
                listed: shown(&listed),
            });
        };
        if found.is_on_its_way() {
            return Err(RemoteError::Loading {
                url: base,
                model: found.id.clone(),
            });
        }
        Ok(Self {
            client: client.clone(),
            base,
            key,
            model: found.id.clone(),
            n_ctx: found.n_ctx(),
            listed,
        })
    }

    /// Hands a request on; `path` follows `/v1`.
    pub async fn post(
        &self,
        path: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Response, reqwest::Error> {
        let url = format!("{}{path}", self.base);
        authorised(self.client.request(Method::POST, &url), self.key.as_ref())
            .header(CONTENT_TYPE, "application/json")
            .timeout(deadline)
            .body(body)
            .send()
            .await
    }
}

fn shown(listed: &[String]) -> String {
    if listed.is_empty() {
        return "none at all".to_owned();
    }
    let few: Vec<&str> = listed.iter().take(8).map(String::as_str).collect();
    few.join(", ")
}

fn header(key: &Secret<String>) -> Result<HeaderValue, RemoteError> {
    let value = HeaderValue::from_str(&format!("Bearer {}", key.expose()));
    let mut value = value
        .map_err(|_error| RemoteError::Client("the upstream key is no header value".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn authorised(request: RequestBuilder, key: Option<&HeaderValue>) -> RequestBuilder {
    match key {
        Some(key) => request.header(AUTHORIZATION, key),
        None => request,
    }
}

async fn read_list(mut answer: Response, url: &str, base: &str) -> Result<Listing, RemoteError> {
    let status = answer.status();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(RemoteError::Key(base.to_owned()));
    }
    if !status.is_success() {
        return Err(RemoteError::Status {
            url: url.to_owned(),
            status,
        });
    }
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LIST_BYTES_MAX {
            return Err(RemoteError::Malformed(base.to_owned()));
        }
    }
    Listing::read(&bytes).ok_or_else(|| RemoteError::Malformed(base.to_owned()))
}

/// A client that follows nobody elsewhere and asks no proxy of the environment.
fn client() -> Result<Client, RemoteError> {
    Client::builder()
        .connect_timeout(CONNECT_MAX)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .tcp_nodelay(true)
        .build()
        .map_err(|error| RemoteError::Client(error.to_string()))
}

/// Looks at the server until `stop`. New settings are used at the next look.
pub(super) async fn watch(room: Arc<TierRoom>, stop: CancellationToken) {
    let client = match client() {
        Ok(client) => client,
        Err(error) => {
            room.enter(Phase::Down {
                reason: error.to_string(),
            });
            return;
        }
    };
    let mut next = room.next.subscribe();
    loop {
        let settings = next.borrow_and_update().clone();
        if let Some(upstream) = &settings.upstream {
            match stop
                .run_until_cancelled(Remote::reach(&client, upstream))
                .await
            {
                None => return,
                Some(found) => look(&room, found),
            }
        }
        room.settings.store(settings);
        let is_loading = matches!(room.phase(), Phase::Loading { .. });
        let every = if is_loading {
            LOADING_LOOK
        } else {
            HEALTH_EVERY
        };
        let pause = tokio::time::timeout(every, next.changed());
        if stop.run_until_cancelled(pause).await.is_none() {
            room.enter(Phase::Down {
                reason: "the node is shutting down".to_owned(),
            });
            return;
        }
    }
}

/// Enters a phase only when it is another one, so that the proxy is not told the same again.
fn look(room: &TierRoom, found: Result<Remote, RemoteError>) {
    let phase = room.phase();
    match (found, phase) {
        (Ok(now), Phase::Remote(before))
            if now.model == before.model && now.listed == before.listed => {}
        (Ok(now), _) => {
            tracing::info!(tier = %room.tier(), model = %now.model, models = now.listed.len(), "a tier on another server is ready");
            room.enter(Phase::Remote(Arc::new(now)));
        }
        (Err(RemoteError::Loading { .. }), Phase::Loading { .. }) => {}
        (Err(error @ RemoteError::Loading { .. }), _) => {
            tracing::info!(tier = %room.tier(), %error, "a tier on another server will be ready");
            room.enter(Phase::Loading { wanted: false });
        }
        (Err(error), Phase::Down { reason }) if error.to_string() == reason => {}
        (Err(error), _) => {
            tracing::warn!(tier = %room.tier(), %error, "a tier on another server is down");
            room.enter(Phase::Down {
                reason: error.to_string(),
            });
        }
    }
}
