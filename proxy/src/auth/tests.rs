//! Credentials as strangers send them, against a real store and real, tiny key servers.

mod cost;
mod elsewhere;
mod issuer;
mod keys;
mod life;
mod refusals;
mod rotation;
mod seed;
mod vectors;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::settings::proxy::{Auth, Issuer, IssuerKeys};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use policy::identity::Principal;
use policy::refusal::Refusal;
use tempfile::TempDir;

use super::*;
use crate::store::embedded::Embedded;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "hearth";

/// An authenticator with its store.
struct House {
    authenticator: Authenticator,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    _folder: Option<TempDir>,
}

impl House {
    fn trusting(issuers: Vec<Issuer>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
        Self::with_store(issuers, store, Some(folder))
    }

    fn with_store(issuers: Vec<Issuer>, store: Arc<dyn Store>, folder: Option<TempDir>) -> Self {
        // Another test may have been first.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let metrics = Arc::new(Metrics::new());
        let auth = Auth {
            azure_header: true,
            stale: Duration::from_secs(30),
            issuers,
        };
        let family = Plan {
            text_per_day: Some(1_000),
            ..Plan::default()
        };
        let plans = BTreeMap::from([("family".to_owned(), family)]);
        let authenticator =
            Authenticator::new(&auth, &plans, Arc::clone(&store), Arc::clone(&metrics));
        Self {
            authenticator: authenticator.unwrap(),
            store,
            metrics,
            _folder: folder,
        }
    }

    async fn bearer(&self, token: &str) -> Result<Principal, Refusal> {
        self.headers(&[("authorization", &format!("Bearer {token}"))])
            .await
    }

    async fn headers(&self, headers: &[(&'static str, &str)]) -> Result<Principal, Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        self.authenticator.authenticate(&map, now()).await
    }
}

fn issuer(keys: IssuerKeys) -> Issuer {
    Issuer {
        issuer: ISSUER.into(),
        audiences: vec![AUDIENCE.into()],
        algorithms: [
            "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA",
        ]
        .map(str::to_owned)
        .to_vec(),
        keys,
        aliases: Vec::new(),
        tenant: config::ids::Tenant::default(),
        user_claim: "sub".into(),
        groups_claim: None,
        plan_claim: None,
        admin_claim: None,
        admin_values: Vec::new(),
        require: Vec::new(),
        firebase: false,
        leeway: Duration::from_secs(30),
        email_verified: false,
        allow: Vec::new(),
        plan: None,
    }
}

fn file_issuer(path: &Path) -> Issuer {
    issuer(IssuerKeys::File(path.to_owned()))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Lets a time pass for everything that asks tokio, without waiting for it.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

async fn until(what: &str, fact: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !fact().await {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn why(refused: &Result<Principal, Refusal>) -> String {
    refused.as_ref().unwrap_err().to_string()
}
