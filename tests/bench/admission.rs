//! The measures of the admission benchmark: what a full admission and its settlement cost in process and in Redis, beside an empty
//! script on the same connection; a proxy whose store grants everything; and an issuer of tokens. Prints JSON, compares nothing.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use config::ids::{RequestId, Tenant, UserId};
use config::settings::proxy::{
    Login, OnFailure, Redis as RedisSettings, RedisTls, Servers, Settings,
};
use futures_util::future::try_join_all;
use policy::gcra::Rate;
use policy::ledger::LedgerEntry;
use policy::limit::{Counter, Elastic, MILLION, Measure, Name, Rule, Span, Window};
use proxy::app::App;
use proxy::observe::metrics::Metrics;
use proxy::store::{Counting, Embedded, Redis, Reservation, ReservationId, Settlement};
use serde_json::{Value, json};
use tests::fake::Failure;
use tests::issuer::Issuer;

/// Admissions in process.
const EMBEDDED_ROUNDS: usize = 200_000;
/// Between two of them, on the average of a thousand: a proxy at 10,000 requests a second, so that the disk is part of the measure.
const EMBEDDED_PACE: Duration = Duration::from_millis(100);
/// Calls of each kind and each number of callers in Redis.
const REDIS_ROUNDS: usize = 12_000;
/// Callers at once.
const CALLERS: [usize; 2] = [1, 64];
/// Rounds over which bare calls and admissions alternate, so that both see the same machine.
const TURNS: usize = 6;
const USERS: usize = 1_000;
const DAY_MS: u64 = 86_400_000;
const LEASE_MS: u64 = 60_000;
/// Of a budget that nobody uses up.
const PLENTY: u64 = 1_000_000_000_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<(), Failure> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let figures = match words.as_slice() {
        ["embedded", folder] => embedded(Path::new(folder)).await?,
        ["redis", url, folder] => in_redis(url, Path::new(folder)).await?,
        ["serve-granting", file] => return serve_granting(Path::new(file)).await,
        ["issuer"] => return issue().await,
        _ => {
            return Err(
                "usage: bench-admission embedded FOLDER | redis URL FOLDER | serve-granting SETTINGS | issuer".into(),
            );
        }
    };
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn counter(key: &str, measure: Measure, rule: Rule) -> Counter {
    Counter {
        key: format!("{{home}}:{key}").into(),
        name: Name::user(measure),
        unit: measure.unit(),
        rule,
        cost: 1,
        per_million: 0,
    }
}

/// What one request of a person with a plan is charged: address, person, requests and tokens of minute and day, a month of the
/// group, and one open request.
fn order(number: usize) -> Reservation {
    let user = number % USERS;
    let minute = |limit| {
        Rule::Gcra(Rate {
            limit,
            period_ms: 60_000,
        })
    };
    let today = now_ms() / DAY_MS;
    let window = |span| {
        Rule::Window(Window {
            limit: PLENTY,
            starts_at_ms: today * DAY_MS,
            resets_at_ms: (today + 1) * DAY_MS,
            span,
        })
    };
    let tokens = |key: &str, measure, rule| Counter {
        cost: 100,
        per_million: MILLION,
        ..counter(key, measure, rule)
    };
    Reservation {
        id: ReservationId::random(),
        tenant: Tenant::default(),
        counters: vec![
            counter(
                &format!("i:{user:016x}:text-min"),
                Measure::TextMinute,
                minute(1_000_000),
            ),
            counter(
                &format!("u:{user:016x}:text-min"),
                Measure::TextMinute,
                minute(1_000_000),
            ),
            counter(
                &format!("u:{user:016x}:text-day:2026-11-21"),
                Measure::TextDay,
                window(Span::Day),
            ),
            tokens(
                &format!("u:{user:016x}:tokens-day:2026-11-21"),
                Measure::TokensDay,
                window(Span::Day),
            ),
            tokens(
                &format!("g:{:016x}:tokens-month:2026-11", user % 10),
                Measure::TokensMonth,
                window(Span::Month),
            ),
            counter(
                &format!("u:{user:016x}:held"),
                Measure::Concurrent,
                Rule::Held { limit: PLENTY },
            ),
        ],
        elastic: Elastic { want: 500, min: 1 },
        lease_ms: LEASE_MS,
    }
}

fn bill(order: &Reservation) -> Settlement {
    Settlement {
        id: order.id,
        tenant: order.tenant.clone(),
        counters: order.counters.clone(),
        spent: vec![1, 1, 1, 300, 300, 0],
        entry: Some(LedgerEntry {
            at_unix_ms: now_ms(),
            ..LedgerEntry::new(
                order.id.to_string(),
                RequestId::new("req_bench"),
                UserId::new("ada"),
            )
        }),
    }
}

/// The part of sorted times below which so many of a thousand lie, in microseconds.
fn micros(sorted: &[Duration], of_thousand: usize) -> u128 {
    let at = (sorted.len() * of_thousand / 1_000).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0, Duration::as_micros)
}

/// Reservation and settlement as the request pays for them; the wait for the disk is nobody's but the settling task's.
async fn embedded(folder: &Path) -> Result<Value, Failure> {
    let store = Embedded::open(folder)?;
    let mut took = Vec::with_capacity(EMBEDDED_ROUNDS);
    for round in 0..EMBEDDED_ROUNDS {
        if round % USERS == 0 {
            tokio::time::sleep(EMBEDDED_PACE).await;
        }
        let order = order(round);
        let begun = Instant::now();
        let decision = store.reserve(&order, now_ms()).await?;
        let reserved = begun.elapsed();
        if !decision.is_admitted() {
            return Err("refused: the figure would be false".into());
        }
        let bill = bill(&order);
        let begun = Instant::now();
        store.charge(&bill, now_ms())?;
        took.push(reserved + begun.elapsed());
    }
    took.sort_unstable();
    Ok(
        json!({"p50_us": micros(&took, 500), "p99_us": micros(&took, 990), "p999_us": micros(&took, 999), "rounds": took.len()}),
    )
}

/// One kind of call.
#[derive(Clone, Copy)]
enum Act {
    Bare,
    Reserve,
    Settle,
}

async fn in_redis(url: &str, folder: &Path) -> Result<Value, Failure> {
    let settings = RedisSettings {
        servers: Servers::One(config::secret::Secret::new(url.to_owned())),
        login: Login::default(),
        tls: RedisTls::default(),
        prefix: "hearth".to_owned(),
        timeout: Duration::from_secs(5),
        breaker_failures: 3,
        wait_replicas: 0,
        on_failure: OnFailure::Closed,
        lease_percent: 2,
        leases_max: 10_000,
        secret_key_file: None,
    };
    let store = Redis::open(&settings, folder, Arc::new(Metrics::new())).await?;
    let store = Arc::new(store);
    let mut figures = json!({});
    for callers in CALLERS {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            let each = REDIS_ROUNDS / TURNS / callers;
            let orders: Vec<Vec<Reservation>> = (0..callers)
                .map(|caller| {
                    (0..each)
                        .map(|round| order(caller * each + round))
                        .collect()
                })
                .collect();
            for (act, times) in [Act::Bare, Act::Reserve, Act::Settle]
                .into_iter()
                .zip(&mut times)
            {
                times.extend(call(&store, act, &orders).await?);
            }
        }
        for (name, mut times) in ["bare", "reserve", "settle"].into_iter().zip(times) {
            times.sort_unstable();
            figures[format!("{name}_p50_us_{callers}")] = json!(micros(&times, 500));
            figures[format!("{name}_p99_us_{callers}")] = json!(micros(&times, 990));
            figures[format!("{name}_calls_{callers}")] = json!(times.len());
        }
    }
    Ok(figures)
}

/// Every caller makes its calls one after the other.
async fn call(
    store: &Arc<Redis>,
    act: Act,
    orders: &[Vec<Reservation>],
) -> Result<Vec<Duration>, Failure> {
    let callers = orders.iter().map(|orders| {
        let (store, orders) = (Arc::clone(store), orders.clone());
        tokio::spawn(async move {
            let mut took = Vec::with_capacity(orders.len());
            for order in &orders {
                let bill = bill(order);
                let begun = Instant::now();
                match act {
                    Act::Bare => store.run_empty_script().await?,
                    Act::Reserve => {
                        store.reserve(order, now_ms()).await?;
                    }
                    Act::Settle => store.settle(&bill, now_ms()).await?,
                }
                took.push(begun.elapsed());
            }
            Ok::<_, proxy::store::StoreError>(took)
        })
    });
    let mut all = Vec::new();
    for took in try_join_all(callers).await? {
        all.extend(took?);
    }
    Ok(all)
}

/// The proxy of these settings, but its store counts nothing and writes no usage down.
async fn serve_granting(file: &Path) -> Result<(), Failure> {
    let settings: Settings = proxy::cli::settings(Some(file))?;
    let store = Embedded::granting(&settings.server.state_dir)?;
    App::start_on(settings, Arc::new(store))
        .await?
        .run()
        .await?;
    Ok(())
}

/// Prints where tokens come from, and one of them; serves the keys until it is killed.
async fn issue() -> Result<(), Failure> {
    let issuer = Issuer::start().await;
    let said = json!({
        "issuer": issuer.name(),
        "jwks_url": issuer.jwks_url(),
        "audience": Issuer::AUDIENCE,
        "token": issuer.token("ada"),
    });
    writeln!(std::io::stdout(), "{said}")?;
    std::io::stdout().flush()?;
    std::future::pending::<()>().await;
    Ok(())
}
