//! The line to one Redis: every call under a deadline, failing fast while the server is away, dialling again by itself. Knows
//! nothing of what is asked.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use config::secret::Secret;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{Client, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError};

use crate::store::StoreError;

/// Time for TCP, TLS and the greeting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two tries to connect at most.
const RECONNECT_MAX: Duration = Duration::from_millis(500);
/// Failures in a row after which calls fail at once for [`FAIL_FAST`].
const FAILURES_MAX: u32 = 3;
/// How long calls fail at once before the next one is tried.
const FAIL_FAST: Duration = Duration::from_millis(100);
/// Failing for this long means that the connection itself is stuck (half-open, or in a state that the driver does not leave):
/// start again with a new one.
const RENEW_AFTER: Duration = Duration::from_secs(2);
/// The code of errors from our own scripts.
const DATA_CODE: &str = "HEARTHDATA";
/// The code of a command for another type of value.
const WRONG_TYPE: &str = "WRONGTYPE";

/// One connection for all calls; they are pipelined.
pub(super) struct Link {
    client: Client,
    config: ConnectionManagerConfig,
    connection: ArcSwap<ConnectionManager>,
    timeout: Duration,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    failures: u32,
    failed_at: Option<Instant>,
    renew_at: Option<Instant>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Prepares the connection; it is made by the first call.
    pub(super) fn open(url: &Secret<String>, timeout: Duration) -> Result<Self, StoreError> {
        // The driver's error may repeat the URL, and the URL may hold a password.
        let malformed = |_| StoreError::Unavailable("the Redis URL is malformed".into());
        let info = url
            .expose()
            .as_str()
            .into_connection_info()
            .map_err(malformed)?
            // Off by default in this driver, and worth 40 ms.
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(malformed)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(timeout))
            .set_max_delay(RECONNECT_MAX);
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), config.clone())
            .map_err(|error| fault(&error))?;
        Ok(Self {
            client,
            config,
            connection: ArcSwap::from_pointee(connection),
            timeout,
            trouble: Mutex::default(),
        })
    }

    /// One call, within the deadline.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        call: impl AsyncFnOnce(&mut ConnectionManager) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        if self.fails_fast() {
            return Err(StoreError::Unavailable("Redis is away".into()));
        }
        let mut connection = ConnectionManager::clone(&self.connection.load());
        let answer = match tokio::time::timeout(self.timeout, call(&mut connection)).await {
            Ok(answer) => answer.map_err(|error| fault(&error)),
            Err(_) => Err(StoreError::Unavailable(format!(
                "Redis did not answer within {} ms",
                self.timeout.as_millis()
            ))),
        };
        self.note(matches!(answer, Err(StoreError::Unavailable(_))));
        answer
    }

    /// A connection of its own that receives what is published on a channel.
    pub(super) async fn subscribe(&self, channel: &str) -> Result<redis::aio::PubSub, StoreError> {
        let subscribe = async {
            let mut subscription = self.client.get_async_pubsub().await?;
            subscription.subscribe(channel).await?;
            Ok(subscription)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, subscribe).await {
            Ok(subscribed) => subscribed.map_err(|error| fault(&error)),
            Err(_) => Err(StoreError::Unavailable(
                "Redis takes no subscription in time".into(),
            )),
        }
    }

    fn fails_fast(&self) -> bool {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.failures >= FAILURES_MAX
            && trouble.failed_at.is_some_and(|at| at.elapsed() < FAIL_FAST)
    }

    fn note(&self, failed: bool) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if !failed {
            if trouble.failures >= FAILURES_MAX {
                tracing::info!("Redis answers again");
            }
            *trouble = Trouble::default();
            return;
        }
        let now = Instant::now();
        trouble.failures = trouble.failures.saturating_add(1);
        if trouble.failures == FAILURES_MAX {
            tracing::error!("Redis is away");
        }
        trouble.failed_at = Some(now);
        let renew_at = *trouble.renew_at.get_or_insert(now + RENEW_AFTER);
        if now >= renew_at {
            trouble.renew_at = Some(now + RENEW_AFTER);
            drop(trouble);
            self.renew();
        }
    }

    fn renew(&self) {
        match ConnectionManager::new_lazy_with_config(self.client.clone(), self.config.clone()) {
            Ok(connection) => self.connection.store(connection.into()),
            Err(error) => tracing::error!(%error, "no new connection to Redis"),
        }
    }
}

/// Whose fault an error is: the server's state, or what lies under our keys.
fn fault(error: &RedisError) -> StoreError {
    let text = error.to_string();
    // Scripts pass on the errors of the commands within them as text.
    let foreign = [DATA_CODE, WRONG_TYPE]
        .iter()
        .any(|code| text.contains(code));
    let strange = matches!(
        error.kind(),
        ErrorKind::UnexpectedReturnType | ErrorKind::Parse
    );
    if foreign || strange {
        return StoreError::Corrupt(text);
    }
    StoreError::Unavailable(text)
}
