//! The keys of one issuer, kept fresh: refreshed in the background at 80 % of their age, fetched by one task at a time, kept for
//! a day while the issuer is away. An unknown `kid` causes at most one fetch a minute; without keys nobody enters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use config::settings::proxy::{Issuer, IssuerKeys};
use jsonwebtoken::Algorithm;
use reqwest::Client;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::fetch::{self, FetchError};
use super::keyset::{KeySet, KeySetError, VerifyingKey, allowed_algorithms};
use crate::observe::metrics::Metrics;

const AGE_MIN: Duration = Duration::from_mins(5);
const AGE_MAX: Duration = Duration::from_hours(24);
/// What is believed of an issuer that names no age.
const AGE_DEFAULT: Duration = Duration::from_hours(1);
/// The last good set is used this long at most.
const KEPT_MAX: Duration = Duration::from_hours(24);
/// Between two fetches because of an unknown `kid`.
const UNKNOWN_KID_PAUSE: Duration = Duration::from_mins(1);
/// Between two fetches while they fail; in the background it doubles up to the maximum.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
const FAILURE_PAUSE_MAX: Duration = Duration::from_mins(5);
/// Between two looks at whether a refresh is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at a file's time.
const FILE_PAUSE: Duration = Duration::from_secs(1);
/// A set this young answers for an unknown `kid` without another fetch.
const YOUNG: Duration = Duration::from_secs(1);
/// One fetch, discovery included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no key for a `kid`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoKey {
    /// The issuer publishes no such key.
    Unknown,
    /// Nothing is known of the issuer's keys now.
    Away,
}

#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the key set is refused: {0}")]
    KeySet(#[from] KeySetError),
    #[error("no answer within {} s", FETCH_TIMEOUT.as_secs())]
    Timeout,
}

/// One issuer's keys.
pub(super) struct Jwks {
    issuer: String,
    source: IssuerKeys,
    allowed: Vec<Algorithm>,
    client: Client,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    fetching: AsyncMutex<()>,
}

#[derive(Default)]
struct State {
    set: Option<Arc<KeySet>>,
    /// Counts fetches that brought a set: a token verified under an older one is verified again.
    generation: u64,
    /// Counts fetches that ended.
    fetches: u64,
    fetched_at: Option<Instant>,
    refresh_at: Option<Instant>,
    asked_for_unknown_at: Option<Instant>,
    /// The value of `fetches` then: while it stands, that fetch is on its way.
    asked_for_unknown_at_fetch: Option<u64>,
    failed_at: Option<Instant>,
    /// In a row.
    failures: u32,
    modified: Option<SystemTime>,
    looked_at: Option<Instant>,
}

/// What to do about a `kid`, as the state stands.
enum Next {
    Found(VerifyingKey),
    NotFound,
    Away,
    Fetch { seen: u64 },
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwks")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl Jwks {
    pub(super) fn new(issuer: &Issuer, client: Client, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            issuer: issuer.issuer.clone(),
            source: issuer.keys.clone(),
            allowed: allowed_algorithms(issuer),
            client,
            metrics,
            state: Mutex::default(),
            fetching: AsyncMutex::new(()),
        })
    }

    /// Fetches the keys now and whenever they are due, for as long as anybody holds them.
    pub(super) fn keep_fresh(self: &Arc<Self>) {
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(jwks) = this.upgrade() {
                if let Some(seen) = jwks.due() {
                    jwks.refresh(seen).await;
                }
                drop(jwks);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }

    /// The fetches so far, if another one is due.
    fn due(&self) -> Option<u64> {
        let state = self.lock();
        let due = match state.refresh_at {
            Some(at) => Instant::now() >= at,
            None => true,
        };
        due.then_some(state.fetches)
    }

    /// Whether keys are at hand.
    pub(super) fn is_loaded(&self) -> bool {
        self.lock().usable().is_some()
    }

    /// Changes with every set that came.
    pub(super) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// The key of this name, fetched if need be.
    pub(super) async fn key(self: &Arc<Self>, kid: &str) -> Result<VerifyingKey, NoKey> {
        self.look_at_file().await;
        let seen = match self.next(kid) {
            Next::Found(key) => return Ok(key),
            Next::NotFound => return self.after_running_fetch(kid).await,
            Next::Away => return Err(NoKey::Away),
            Next::Fetch { seen } => seen,
        };
        // The fetch runs on if this request is given up: others wait for it too.
        let this = Arc::clone(self);
        let fetch = tokio::spawn(async move { this.refresh(seen).await });
        if fetch.await.is_err() {
            return Err(NoKey::Away);
        }
        self.at_hand(kid)
    }

    /// A `kid` that is unknown now may come with a fetch that is on its way.
    async fn after_running_fetch(&self, kid: &str) -> Result<VerifyingKey, NoKey> {
        if self.fetching.try_lock().is_err() {
            drop(self.fetching.lock().await);
        }
        self.at_hand(kid)
    }

    fn at_hand(&self, kid: &str) -> Result<VerifyingKey, NoKey> {
        let set = self.lock().usable().ok_or(NoKey::Away)?;
        set.find(kid).cloned().ok_or(NoKey::Unknown)
    }

    fn next(&self, kid: &str) -> Next {
        let mut state = self.lock();
        let seen = state.fetches;
        let Some(set) = state.usable() else {
            let may_ask = past(state.failed_at, FAILURE_PAUSE);
            return if may_ask {
                Next::Fetch { seen }
            } else {
                Next::Away
            };
        };
        if let Some(key) = set.find(kid) {
            return Next::Found(key.clone());
        }
        if state.asked_for_unknown_at_fetch == Some(seen) {
            // Somebody asks for another unknown key just now: the answer may hold both.
            return Next::Fetch { seen };
        }
        let may_ask = past(state.asked_for_unknown_at, UNKNOWN_KID_PAUSE)
            && past(state.fetched_at, YOUNG)
            && past(state.failed_at, FAILURE_PAUSE);
        if !may_ask || matches!(self.source, IssuerKeys::File(_)) {
            return Next::NotFound;
        }
        state.asked_for_unknown_at = Some(Instant::now());
        state.asked_for_unknown_at_fetch = Some(seen);
        Next::Fetch { seen }
    }

    /// Fetches, unless somebody else did since `seen`.
    async fn refresh(&self, seen: u64) {
        let _one_at_a_time = self.fetching.lock().await;
        if self.lock().fetches != seen {
            return;
        }
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, self.fetch()).await;
        let fetched = fetched.unwrap_or(Err(RefreshError::Timeout));
        let mut state = self.lock();
        state.fetches = state.fetches.wrapping_add(1);
        match fetched {
            Ok((set, age, modified)) => {
                tracing::info!(
                    issuer = self.issuer,
                    keys = set.len(),
                    "issuer keys fetched"
                );
                self.metrics.jwks_fetch("ok");
                state.accept(set, age, modified);
            }
            Err(error) => {
                tracing::warn!(issuer = self.issuer, %error, "issuer keys cannot be fetched");
                self.metrics.jwks_fetch("failed");
                let now = Instant::now();
                let pause = FAILURE_PAUSE.saturating_mul(2_u32.saturating_pow(state.failures));
                state.failures = state.failures.saturating_add(1);
                state.failed_at = Some(now);
                state.refresh_at = Some(now + pause.min(FAILURE_PAUSE_MAX));
            }
        }
    }

    async fn fetch(&self) -> Result<(KeySet, Duration, Option<SystemTime>), RefreshError> {
        let document = fetch::key_set(&self.client, &self.issuer, &self.source).await?;
        let set = KeySet::parse(&document.body, &self.allowed)?;
        let age = document
            .max_age
            .unwrap_or(AGE_DEFAULT)
            .clamp(AGE_MIN, AGE_MAX);
        Ok((set, age, document.modified))
    }

    /// Reads a file again when it has changed; looks at most once a second.
    async fn look_at_file(&self) {
        let IssuerKeys::File(path) = &self.source else {
            return;
        };
        let (known, seen) = {
            let mut state = self.lock();
            if !past(state.looked_at, FILE_PAUSE) {
                return;
            }
            state.looked_at = Some(Instant::now());
            (state.modified, state.fetches)
        };
        let found = fetch::modified(path).await;
        if found.is_some() && found != known {
            self.refresh(seen).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn usable(&self) -> Option<Arc<KeySet>> {
        let fetched_at = self.fetched_at?;
        if fetched_at.elapsed() >= KEPT_MAX {
            return None;
        }
        self.set.clone()
    }

    fn accept(&mut self, set: KeySet, age: Duration, modified: Option<SystemTime>) {
        let now = Instant::now();
        self.set = Some(Arc::new(set));
        self.generation = self.generation.wrapping_add(1);
        self.fetched_at = Some(now);
        self.refresh_at = Some(now + age * 4 / 5);
        self.failed_at = None;
        self.failures = 0;
        self.modified = modified;
    }
}

fn past(at: Option<Instant>, pause: Duration) -> bool {
    at.is_none_or(|at| at.elapsed() >= pause)
}
