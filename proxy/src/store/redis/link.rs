//! The line to Redis: every call under a deadline, none while it is away. Requests never dial and never probe: one task mends the
//! line, with pauses that grow, and finds the new primary after a failover. Knows nothing of what is asked.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use config::settings::proxy::Redis as RedisSettings;
use redis::{ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind, ToRedisArgs};
use tokio::sync::{Notify, watch};

use super::dial::{CONNECT_TIMEOUT, Dialer, Line};
use crate::store::StoreError;

/// Pause after the first failed try to mend the line; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(25);
/// Pause at most.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Between two dials while the old line may still come back.
const DIAL_EVERY: Duration = Duration::from_millis(250);
/// Deadline of calls that no request waits for, such as lists and the books.
const PATIENCE: Duration = Duration::from_secs(5);
/// The code of errors from our own scripts.
const DATA_CODE: &str = "HEARTHDATA";
/// The code of a command for another type of value.
const WRONG_TYPE: &str = "WRONGTYPE";

/// A script of ours.
#[derive(Debug)]
pub(super) struct Lua {
    body: String,
    hash: String,
}

impl Lua {
    /// Parts that are one script.
    pub(super) fn new(parts: &[&str]) -> Self {
        let body = parts.concat();
        let hash = Script::new(&body).get_hash().to_owned();
        Self { body, hash }
    }
}

/// One connection for all calls; they are pipelined.
pub(super) struct Link {
    dialer: Dialer,
    /// `None`: there is none to write to.
    line: ArcSwapOption<Line>,
    timeout: Duration,
    failures_max: u32,
    /// Calls in a row without an answer in time.
    failures: AtomicU32,
    /// No call is made: the last [`Self::failures_max`] had no answer.
    is_open: AtomicBool,
    dialled_at: Mutex<Option<Instant>>,
    wake: Arc<Notify>,
    up: watch::Sender<bool>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Dials once, and starts the task that mends the line whenever it breaks. An absent server is no error.
    pub(super) async fn open(settings: &RedisSettings) -> Result<Arc<Self>, StoreError> {
        let link = Arc::new(Self {
            dialer: Dialer::new(settings)?,
            line: ArcSwapOption::empty(),
            timeout: settings.timeout,
            failures_max: settings.breaker_failures,
            failures: AtomicU32::new(0),
            is_open: AtomicBool::new(false),
            dialled_at: Mutex::default(),
            wake: Arc::default(),
            up: watch::Sender::new(false),
        });
        link.mend().await;
        let keeper = keep(Arc::downgrade(&link), Arc::clone(&link.wake));
        tokio::spawn(keeper);
        Ok(link)
    }

    /// One call that a request waits for, within the deadline of the settings. Fails at once while Redis is away.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        call: impl AsyncFnOnce(&mut Line) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let mut line = self.line()?;
        match tokio::time::timeout(self.timeout, call(&mut line)).await {
            Ok(Ok(answer)) => {
                self.failures.store(0, Ordering::Relaxed);
                Ok(answer)
            }
            Ok(Err(error)) if error.is_timeout() => Err(self.late(self.timeout)),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(self.late(self.timeout)),
        }
    }

    /// A call that no request waits for: it has more time, and says nothing about the line when it is slow.
    pub(super) async fn call_at_leisure<T: FromRedisValue>(
        &self,
        call: impl AsyncFnOnce(&mut Line) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let mut line = self.line()?;
        if let Line::Single(connection) = &mut line {
            connection.set_response_timeout(PATIENCE);
        }
        match tokio::time::timeout(PATIENCE, call(&mut line)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.is_timeout() => Err(no_answer(PATIENCE)),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(no_answer(PATIENCE)),
        }
    }

    /// Runs a script in one round trip, or two when the server does not know it yet.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        lua: &Lua,
        keys: &[String],
        args: &(impl ToRedisArgs + Sync),
    ) -> Result<T, StoreError> {
        let known = invocation(("EVALSHA", &lua.hash), keys, args);
        self.call(async |line| match known.query_async(line).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let unknown = invocation(("EVAL", &lua.body), keys, args);
                unknown.query_async(line).await
            }
            answer => answer,
        })
        .await
    }

    /// The same, and in the same round trip the number of replicas that hold it.
    pub(super) async fn run_and_wait<T: FromRedisValue>(
        &self,
        lua: &Lua,
        keys: &[String],
        (args, replicas): (&(impl ToRedisArgs + Sync), u32),
    ) -> Result<(T, u32), StoreError> {
        let patience = self.timeout.saturating_sub(self.timeout / 5);
        let both = |command, script| {
            let mut pipe = redis::pipe();
            pipe.add_command(invocation((command, script), keys, args));
            pipe.cmd("WAIT").arg(replicas).arg(millis(patience).max(1));
            pipe
        };
        self.call(
            async |line| match both("EVALSHA", &lua.hash).query_async(line).await {
                Err(error) if error.code() == Some("NOSCRIPT") => {
                    both("EVAL", &lua.body).query_async(line).await
                }
                answer => answer,
            },
        )
        .await
    }

    /// Asks one of the primaries, by number, and says how many there are.
    pub(super) async fn ask_primary<T: FromRedisValue>(
        &self,
        number: usize,
        command: &redis::Cmd,
    ) -> Result<(usize, T), StoreError> {
        let ask = async {
            let primaries = self.dialer.primaries(PATIENCE).await?;
            let count = primaries.len();
            let mut connection = primaries
                .into_iter()
                .nth(number)
                .ok_or_else(|| RedisError::from((ErrorKind::Client, "no such primary")))?;
            Ok((count, command.query_async(&mut connection).await?))
        };
        match tokio::time::timeout(PATIENCE, ask).await {
            Ok(asked) => asked.map_err(|error| fault(&error)),
            Err(_) => Err(no_answer(PATIENCE)),
        }
    }

    /// A connection of its own that receives what is published on a channel.
    pub(super) async fn subscribe(&self, channel: &str) -> Result<redis::aio::PubSub, StoreError> {
        let subscribe = async {
            let mut subscription = self.dialer.hear().await?;
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

    /// Whether calls are made, now and later.
    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    fn line(&self) -> Result<Line, StoreError> {
        if !self.is_open.load(Ordering::Relaxed)
            && let Some(line) = self.line.load().as_deref()
        {
            return Ok(line.clone());
        }
        Err(StoreError::Unavailable("Redis is away".into()))
    }

    fn late(&self, limit: Duration) -> StoreError {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= self.failures_max && !self.is_open.swap(true, Ordering::Relaxed) {
            tracing::error!(
                failures,
                "Redis does not answer; no request waits for it until it does"
            );
            self.went();
        }
        no_answer(limit)
    }

    fn failed(&self, error: &RedisError) -> StoreError {
        let fault = fault(error);
        if !matches!(fault, StoreError::Unavailable(_)) {
            return fault;
        }
        let moved = matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::ReadOnly
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::BusyLoading
            )
        );
        // Errors of scripts carry the codes of their commands as text.
        let moved = moved || error.to_string().contains("READONLY");
        let is_cluster = matches!(self.line.load().as_deref(), Some(Line::Cluster(_)));
        if is_cluster {
            // The cluster's own connection follows its slots; only when nothing works is it made anew.
            if error.is_io_error() || error.is_connection_dropped() {
                return self.late(self.timeout);
            }
        } else if moved || error.is_io_error() || error.is_connection_dropped() {
            self.lose(error);
        }
        fault
    }

    fn lose(&self, error: &RedisError) {
        if self.line.swap(None).is_some() {
            tracing::error!(%error, "the line to Redis is lost; dialling again");
            self.went();
        }
    }

    fn went(&self) {
        self.up.send_replace(false);
        self.wake.notify_one();
    }

    fn is_well(&self) -> bool {
        !self.is_open.load(Ordering::Relaxed) && self.line.load().is_some()
    }

    /// One try: whether calls can be made again.
    async fn mend(&self) -> bool {
        let old = self.line.load_full();
        if let Some(line) = old
            && self.answers(Line::clone(&line)).await
        {
            return self.came();
        }
        if !self.may_dial() {
            return false;
        }
        let dialled = tokio::time::timeout(2 * CONNECT_TIMEOUT, self.dialer.dial(self.timeout));
        let line = match dialled.await {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => {
                tracing::debug!(%error, "Redis cannot be reached");
                return false;
            }
            Err(_) => return false,
        };
        if !self.answers(line.clone()).await {
            return false;
        }
        self.line.store(Some(Arc::new(line)));
        self.came()
    }

    /// A probe, under the deadline that requests have.
    async fn answers(&self, mut line: Line) -> bool {
        let ping = redis::cmd("PING");
        let probe = ping.query_async::<redis::Value>(&mut line);
        matches!(tokio::time::timeout(self.timeout, probe).await, Ok(Ok(_)))
    }

    fn may_dial(&self) -> bool {
        let mut dialled_at = self
            .dialled_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if dialled_at.is_some_and(|at| at.elapsed() < DIAL_EVERY) {
            return false;
        }
        *dialled_at = Some(Instant::now());
        true
    }

    fn came(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.is_open.store(false, Ordering::Relaxed);
        if !self.up.send_replace(true) {
            tracing::info!("Redis answers");
        }
        true
    }
}

/// One call of a script.
fn invocation(
    (command, script): (&str, &str),
    keys: &[String],
    args: &impl ToRedisArgs,
) -> redis::Cmd {
    let mut call = redis::cmd(command);
    call.arg(script).arg(keys.len()).arg(keys).arg(args);
    call
}

/// Mends the line whenever it is broken, until nobody holds the link.
async fn keep(link: Weak<Link>, wake: Arc<Notify>) {
    let mut pause = PAUSE_MIN;
    loop {
        let Some(link) = link.upgrade() else {
            return;
        };
        if link.is_well() {
            pause = PAUSE_MIN;
            drop(link);
            // Also a look now and then, should a wake ever be lost.
            let _woken = tokio::time::timeout(PAUSE_MAX, wake.notified()).await;
            continue;
        }
        let is_mended = link.mend().await;
        drop(link);
        if !is_mended {
            // Not all proxies in the same moment.
            let jitter: f64 = rand::random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn no_answer(limit: Duration) -> StoreError {
    StoreError::Unavailable(format!(
        "Redis did not answer within {} ms",
        limit.as_millis()
    ))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
