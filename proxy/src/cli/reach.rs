//! Finds who can do an act: a proxy elsewhere over HTTPS with an administrator's key, the running proxy here through its socket,
//! or this process with the store itself. All three speak `/admin/v1`.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use config::ids::RequestId;
use config::secret::Secret;
use config::settings::proxy::{Settings, Store as StoreSettings};
use http::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH};
use http::{HeaderValue, Method, Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CliError;
use super::args::Cli;
use crate::admin::api::COMMAND_LINE;
use crate::admin::client::{AdminClient, ClientError, read, refusal};
use crate::admin::server::now_unix_ms;
use crate::admin::words::Page;
use crate::admin::{Api, ApiFacts, Asked, Operations};
use crate::front::tls::Certificates;
use crate::nodes::hubs::name;
use crate::observe::metrics::Metrics;
use crate::store::{self, StoreError};

/// One act on a proxy elsewhere.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Pages of one list.
const PAGES_MAX: usize = 10_000;

/// Who does it.
pub(super) enum Reach {
    /// A proxy elsewhere.
    Remote {
        client: reqwest::Client,
        /// Without a trailing slash.
        url: String,
        key: Secret<String>,
    },
    /// The running proxy.
    Running(AdminClient),
    /// This process; no proxy runs here.
    Alone(Box<Api>),
}

impl Reach {
    pub(super) async fn open(cli: &Cli) -> Result<Self, CliError> {
        if let Some(url) = &cli.server {
            return remote(url, cli);
        }
        let settings = super::settings(cli.config.as_deref())?;
        let state_dir = &settings.server.state_dir;
        match AdminClient::connect(state_dir).await {
            Ok(client) => return Ok(Self::Running(client)),
            Err(ClientError::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self::Alone(Box::new(alone(settings).await?)))
    }

    /// Looks.
    pub(super) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, CliError> {
        let request = Request::get(path).body(Bytes::new()).map_err(failed)?;
        Ok(read(&self.call(request).await?)?)
    }

    /// Looks, and takes what comes.
    pub(super) async fn text(&mut self, path: &str) -> Result<(Option<String>, String), CliError> {
        let request = Request::get(path).body(Bytes::new()).map_err(failed)?;
        let answer = self.call(request).await?;
        if !answer.status().is_success() {
            return Err(ClientError::Refused(refusal(&answer)).into());
        }
        let next = answer.headers().get("x-next-cursor");
        let next = next.and_then(|next| next.to_str().ok()).map(str::to_owned);
        Ok((next, String::from_utf8_lossy(answer.body()).into_owned()))
    }

    /// All pages of a list.
    pub(super) async fn all<T: DeserializeOwned>(
        &mut self,
        path: &str,
    ) -> Result<Vec<T>, CliError> {
        let mut rows = Vec::new();
        let sign = if path.contains('?') { '&' } else { '?' };
        let mut next = format!("{path}{sign}limit=1000");
        for _ in 0..PAGES_MAX {
            let page: Page<T> = self.get(&next).await?;
            rows.extend(page.data);
            let Some(cursor) = page.next_cursor else {
                break;
            };
            next = format!("{path}{sign}limit=1000&cursor={cursor}");
        }
        Ok(rows)
    }

    /// Orders.
    pub(super) async fn send<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        order: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, CliError> {
        Ok(read(&self.ordered(method, path, (order, None)).await?)?)
    }

    /// Makes something, once for each name of the request.
    pub(super) async fn create<T: DeserializeOwned>(
        &mut self,
        path: &str,
        order: &(impl Serialize + Sync),
        once: Option<&str>,
    ) -> Result<T, CliError> {
        let body = serde_json::to_vec(order).map_err(failed)?;
        let mut request = Request::post(path).header(CONTENT_TYPE, "application/json");
        if let Some(once) = once {
            request = request.header("idempotency-key", once);
        }
        let request = request.body(body.into()).map_err(failed)?;
        Ok(read(&self.call(request).await?)?)
    }

    /// Ends something.
    pub(super) async fn delete<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, CliError> {
        let request = Request::delete(path).body(Bytes::new()).map_err(failed)?;
        Ok(read(&self.call(request).await?)?)
    }

    /// Reads what stands there and changes it, if nobody else does meanwhile.
    pub(super) async fn patch<T: DeserializeOwned>(
        &mut self,
        path: &str,
        order: &(impl Serialize + Sync),
    ) -> Result<T, CliError> {
        let request = Request::get(path).body(Bytes::new()).map_err(failed)?;
        let known = self.call(request).await?;
        read::<serde_json::Value>(&known).map(drop)?;
        let tag = known.headers().get(ETAG).cloned();
        let answer = self.ordered(Method::PATCH, path, (Some(order), tag));
        Ok(read(&answer.await?)?)
    }

    async fn ordered(
        &mut self,
        method: Method,
        path: &str,
        (order, tag): (Option<&(impl Serialize + Sync)>, Option<HeaderValue>),
    ) -> Result<Response<Bytes>, CliError> {
        let body = match order {
            Some(order) => serde_json::to_vec(order).map_err(failed)?,
            None => Vec::new(),
        };
        let mut request = Request::builder().method(method).uri(path);
        if order.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(tag) = tag {
            request = request.header(IF_MATCH, tag);
        }
        self.call(request.body(body.into()).map_err(failed)?).await
    }

    async fn call(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, CliError> {
        match self {
            Self::Running(proxy) => Ok(proxy.call(request).await?),
            Self::Remote { client, url, key } => far(client, (url, key), request).await,
            Self::Alone(api) => here(api, request).await,
        }
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}

async fn far(
    client: &reqwest::Client,
    (url, key): (&str, &Secret<String>),
    request: Request<Bytes>,
) -> Result<Response<Bytes>, CliError> {
    let (head, body) = request.into_parts();
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(failed)?;
    bearer.set_sensitive(true);
    let answer = client
        .request(head.method, format!("{url}{}", head.uri))
        .headers(head.headers)
        .header(AUTHORIZATION, bearer)
        .body(body)
        .send()
        .await?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    *response.body_mut() = answer.bytes().await?;
    Ok(response)
}

async fn here(api: &Api, request: Request<Bytes>) -> Result<Response<Bytes>, CliError> {
    let (head, body) = request.into_parts();
    let asked = Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        headers: head.headers,
        body,
        actor: format!("uid:{}", rustix::process::geteuid().as_raw()),
        from: COMMAND_LINE.to_owned(),
        request_id: RequestId::new(format!("req_{:032x}", rand::random::<u128>())),
        now_unix_ms: now_unix_ms(),
    };
    let answer = api.answer(&asked).await;
    let mut response = Response::new(answer.body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

fn remote(url: &str, cli: &Cli) -> Result<Reach, CliError> {
    let url = url.trim_end_matches('/').to_owned();
    let is_local = ["http://127.0.0.1:", "http://localhost:", "http://[::1]:"];
    let is_local = is_local.iter().any(|local| url.starts_with(local));
    if !url.starts_with("https://") && !is_local {
        return Err(CliError::Failed(format!(
            "--server {url}: the key would cross the network in the open; use https://"
        )));
    }
    let key = match (&cli.admin_key_file, &cli.admin_key) {
        (Some(file), _) => std::fs::read_to_string(file)
            .map_err(|error| CliError::Failed(format!("{}: {error}", file.display())))?,
        (None, Some(key)) => key.clone(),
        (None, None) => {
            return Err(CliError::Failed(
                "--server needs --admin-key-file FILE or HEARTH_ADMIN_KEY: make a key with `hearth-proxy key create --admin --name me` on the proxy's machine".into(),
            ));
        }
    };
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .tls_danger_accept_invalid_certs(cli.insecure)
        .build()?;
    Ok(Reach::Remote {
        client,
        url,
        key: Secret::new(key.trim().to_owned()),
    })
}

async fn alone(settings: Settings) -> Result<Api, CliError> {
    let state_dir = &settings.server.state_dir;
    if matches!(settings.store, StoreSettings::Embedded) {
        check_owner(state_dir)?;
    }
    let store = store::open(
        &settings.store,
        (state_dir, settings.limits.table_max),
        Arc::new(Metrics::new()),
    )
    .await;
    let store = store.map_err(|error| match error {
        StoreError::InUse(file) => CliError::Failed(format!(
            "another process uses {file}, but no proxy answers at its admin socket: wait until it has started or stopped"
        )),
        StoreError::Unavailable(_) | StoreError::Overloaded | StoreError::Corrupt(_) => error.into(),
    })?;
    let pin = Certificates::from_settings(&settings.tls, state_dir)
        .map_err(|error| CliError::Failed(error.to_string()))?
        .pin();
    let warning = name::warning(&settings.server);
    let operations = Operations::new(store, settings.server.public_url, pin, None).warning(warning);
    let facts = ApiFacts {
        limits: Arc::new(ArcSwap::from_pointee(settings.limits)),
        prices: settings.prices,
    };
    Ok(Api::new(operations, facts))
}

/// Files made by the wrong user would keep the proxy from starting.
fn check_owner(state_dir: &Path) -> Result<(), CliError> {
    let owner = match std::fs::metadata(state_dir) {
        Ok(metadata) => metadata.uid(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let user = rustix::process::geteuid().as_raw();
    if owner == user {
        return Ok(());
    }
    Err(CliError::Failed(format!(
        "{} belongs to user id {owner} and this is user id {user}: run this as that user, or start the proxy first",
        state_dir.display()
    )))
}
