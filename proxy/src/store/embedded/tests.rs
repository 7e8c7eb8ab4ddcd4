//! What only a file can do wrong.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use config::ids::KeyId;
use policy::limit::Elastic;

use super::*;
use crate::store::Records;
use crate::store::contract::counting::{
    LONG_MS, admit, day, held, minute, reservation, settlement, tenant, tokens,
};
use crate::store::contract::{api_key, now_ms};

/// Names the folder in which a child process settles until it is killed.
const VICTIM: &str = "HEARTH_TEST_STORE_VICTIM";

async fn left(store: &Embedded, counter: &Counter) -> u64 {
    let mut counter = counter.clone();
    (counter.cost, counter.per_million) = (0, 0);
    let seen = store.look(&tenant(), &[counter], now_ms()).await.unwrap();
    seen.states()[0].remaining
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let counters = [
        minute("u:r:text-min", 30),
        day("u:r", 3, now_ms()),
        held("u:r:held", 5),
    ];
    let open = reservation(&counters[2..]);
    let pepper = {
        let store = Embedded::open(folder.path()).unwrap();
        for _ in 0..3 {
            admit(&store, &counters[..2]).await;
        }
        store.reserve(&open, now_ms()).await.unwrap();
        store.put_key(&api_key("aaaa")).await.unwrap();
        let pepper = *store.secret("pepper").await.unwrap().expose();
        store.touch_key(&KeyId::new("aaaa"), 450).await.unwrap();
        pepper
    };
    let store = Embedded::open(folder.path()).unwrap();
    let decision = admit(&store, &counters[..2]).await;
    let Decision::Refused {
        refused, states, ..
    } = decision
    else {
        panic!("the day began anew");
    };
    assert_eq!((refused, states[0].remaining), (1, 27));
    assert_eq!(left(&store, &counters[2]).await, 4, "it is still open");
    store
        .settle(&settlement(&open, &[0]), now_ms())
        .await
        .unwrap();
    assert_eq!(
        left(&store, &counters[2]).await,
        5,
        "and settled after the restart"
    );
    let key = store.key(&KeyId::new("aaaa")).await.unwrap();
    assert_eq!(key.unwrap().last_used_unix, Some(450));
    assert_eq!(*store.secret("pepper").await.unwrap().expose(), pepper);
}

#[tokio::test]
async fn what_a_crashed_process_had_reserved_comes_back_after_its_lease() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Embedded::open(folder.path()).unwrap();
    let counter = tokens("u:crash", 1_000, 400);
    let mut order = reservation(std::slice::from_ref(&counter));
    order.lease_ms = 700;
    let reserved_at = now_ms();
    store.reserve(&order, reserved_at).await.unwrap();
    let marker = reservation(&[minute("u:marker", 5)]);
    store
        .settle(&settlement(&marker, &[1]), now_ms())
        .await
        .unwrap();
    std::fs::copy(folder.path().join(FILE_NAME), copy.path().join(FILE_NAME)).unwrap();
    let crashed = Embedded::open(copy.path()).unwrap();
    let look = |at| {
        let mut counter = counter.clone();
        counter.cost = 0;
        let crashed = &crashed;
        async move {
            let seen = crashed.look(&tenant(), &[counter], at).await.unwrap();
            seen.states()[0].remaining
        }
    };
    assert_eq!(
        look(reserved_at + 699).await,
        600,
        "never forgotten without being charged"
    );
    assert_eq!(look(reserved_at + 700).await, 1_000);
}

/// Not a test: what [`a_kill_at_any_moment_loses_no_acknowledged_settlement`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Some(folder) = std::env::var_os(VICTIM) else {
        return;
    };
    let store = Arc::new(Embedded::open(Path::new(&folder)).unwrap());
    let clients: Vec<_> = (0..8_u64)
        .map(|client| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for round in 0..u64::MAX {
                    let mut order = reservation(&[tokens("u:killed", 1_000_000_000, 10)]);
                    order.elastic = Elastic { want: 50, min: 1 };
                    store.reserve(&order, now_ms()).await.unwrap();
                    let spent = 10 + (client * 7 + round) % 51;
                    store
                        .settle(&settlement(&order, &[spent]), now_ms())
                        .await
                        .unwrap();
                    // One line, one acknowledgement; stderr is not buffered.
                    let line = format!("settled {spent}\n");
                    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_no_acknowledged_settlement() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..6_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::embedded::tests::victim", "--nocapture"])
            .env(VICTIM, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let count = |line: String| {
            let spent = line
                .strip_prefix("settled ")
                .and_then(|text| text.parse::<u64>().ok());
            spent.unwrap_or(0)
        };
        // It runs; then it dies at a moment of no meaning.
        acknowledged += count(lines.next().unwrap().unwrap());
        let jitter = Duration::from_micros(now_ms() * 7_919 % 90_000 + round * 9_000);
        tokio::time::sleep(jitter).await;
        child.kill().unwrap();
        acknowledged += lines.map_while(Result::ok).map(count).sum::<u64>();
        child.wait().unwrap();
        let store = Embedded::open(folder.path()).unwrap();
        let used = 1_000_000_000 - left(&store, &tokens("u:killed", 1_000_000_000, 0)).await;
        assert!(
            used >= acknowledged,
            "round {round}: {used} on disk, {acknowledged} acknowledged"
        );
        // Eight clients, each with one reservation of 60 and one settlement that was not told, in each round so far.
        assert!(
            used <= acknowledged + (round + 1) * 8 * 120,
            "round {round}: {used}, {acknowledged}"
        );
    }
    assert!(acknowledged > 0);
}

#[tokio::test]
async fn a_settlement_is_on_disk_within_the_stated_time_and_blocks_no_admission() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(folder.path()).unwrap());
    let order = reservation(&[tokens("u:fast", 1_000, 10)]);
    store.reserve(&order, now_ms()).await.unwrap();
    let settling = tokio::spawn({
        let (store, settlement) = (Arc::clone(&store), settlement(&order, &[3]));
        async move {
            let begun = Instant::now();
            store.settle(&settlement, now_ms()).await.unwrap();
            begun.elapsed()
        }
    });
    tokio::task::yield_now().await;
    let begun = Instant::now();
    for _ in 0..100 {
        admit(&*store, &[minute("u:other", 1_000)]).await;
    }
    assert!(begun.elapsed() < COMMIT_EVERY, "{:?}", begun.elapsed());
    let took = settling.await.unwrap();
    assert!(took < COMMIT_EVERY * 20, "{took:?}");
}

#[tokio::test]
async fn a_backup_is_a_store_of_its_own_and_replaces_nothing() {
    let (folder, safe) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Embedded::open(folder.path()).unwrap();
    let counter = tokens("u:b", 1_000, 10);
    admit(&store, std::slice::from_ref(&counter)).await;
    store.put_key(&api_key("aaaa")).await.unwrap();
    let file = safe.path().join(FILE_NAME);
    assert!(store.backup(&file).await.unwrap() > 0);
    assert!(store.backup(&file).await.is_err(), "it exists");
    admit(&store, std::slice::from_ref(&counter)).await;
    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let restored = Embedded::open(safe.path()).unwrap();
    assert_eq!(left(&restored, &counter).await, 990);
    assert!(restored.key(&KeyId::new("aaaa")).await.unwrap().is_some());
    assert_eq!(left(&store, &counter).await, 980, "the original runs on");
}

#[tokio::test]
async fn four_open_requests_for_each_place_of_the_table_and_then_it_is_overloaded() {
    let (folder, table_max) = (tempfile::tempdir().unwrap(), 5);
    let store = Embedded::open_for(folder.path(), table_max).unwrap();
    let order = || reservation(&[tokens("u:open", 1_000_000, 1)]);
    let mut open = Vec::new();
    for number in 0..4 * table_max {
        open.push(order());
        let decision = store.reserve(&open[number], now_ms()).await.unwrap();
        assert!(decision.is_admitted(), "{number}");
    }
    assert_eq!(
        store.reserve(&order(), now_ms()).await.unwrap_err(),
        StoreError::Overloaded
    );
    assert!(
        store.reserve(&open[0], now_ms()).await.is_ok(),
        "one that is open may ask again"
    );
    store
        .settle(&settlement(&open[0], &[1]), now_ms())
        .await
        .unwrap();
    assert!(
        store.reserve(&order(), now_ms()).await.is_ok(),
        "a settlement makes room"
    );
    assert!(store.reserve(&order(), now_ms()).await.is_err());
}

#[tokio::test]
async fn many_strangers_leave_the_table_below_its_bound_and_are_still_counted() {
    strangers(40_000, 500).await;
}

#[tokio::test]
#[ignore = "forty seconds without optimization"]
async fn a_million_strangers_leave_the_table_below_its_bound_and_are_still_counted() {
    strangers(1_000_000, 5_000).await;
}

/// What all who came after the tables were full may add to the process: the file's pages that are kept in memory.
const STRANGERS_BYTES_MAX: u64 = 96 << 20;

/// Memory of this process that is in use, bytes; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0_u64) * 1024
}

async fn strangers(strangers: usize, bound: usize) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_for(folder.path(), bound).unwrap();
    let now = now_ms();
    let mut most = 0;
    let mut warm = 0;
    let mut order = reservation(&[]);
    order.lease_ms = 0;
    for number in 0..strangers {
        // The tables are full for the first time.
        if number == bound * 5 {
            warm = resident_bytes();
        }
        order.counters = vec![day(&format!("u:{number}"), 3, now)];
        loop {
            match store.reserve(&order, now).await {
                Ok(decision) => break assert!(decision.is_admitted()),
                // Faster than the disk: the proxy would say 503 here.
                Err(StoreError::Overloaded) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
        }
        most = most.max(lock(&store.counters).len());
    }
    assert!(most <= bound * 5, "{most} counters in memory");
    let more = resident_bytes().saturating_sub(warm);
    let mib = more >> 20;
    let line =
        format!("{strangers} strangers: {most} counters in memory, {mib} MiB more resident\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
    assert!(
        more <= STRANGERS_BYTES_MAX,
        "{more} bytes more are resident"
    );
    for number in [0, 1, strangers / 2, strangers - 1] {
        let counter = day(&format!("u:{number}"), 3, now);
        assert_eq!(
            left(&store, &counter).await,
            2,
            "stranger {number} is known"
        );
    }
}

/// Prints how long an admission and its settlement take in process, without the wait for the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement; run it alone and in release"]
async fn measure_admission_and_settlement() {
    const ROUNDS: usize = 200_000;
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let mut took = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let subject = format!("u:{:016x}", round % 1_000);
        let counters = [
            minute(&format!("i:{:016x}:text-min", round % 1_000), 1_000_000),
            minute(&format!("{subject}:text-min"), 1_000_000),
            day(&subject, 1_000_000_000, now_ms()),
            tokens(&subject, 1_000_000_000, 100),
            held(&format!("{subject}:held"), 100),
        ];
        let mut order = reservation(&counters);
        order.counters[3].key = format!("{{home}}:{subject}:tokens").into();
        order.elastic = Elastic { want: 500, min: 1 };
        order.lease_ms = LONG_MS;
        let begun = Instant::now();
        let decision = store.reserve(&order, now_ms()).await.unwrap();
        let reserved = begun.elapsed();
        assert!(decision.is_admitted());
        let settlement = settlement(&order, &[1, 1, 1, 300, 0]);
        let begun = Instant::now();
        lock(&store.counters)
            .settle(&settlement, now_ms(), &*store.disk)
            .unwrap();
        store.worker.wake();
        took.push((reserved + begun.elapsed()).as_nanos());
    }
    took.sort_unstable();
    let at = |part: usize| took[ROUNDS * part / 1_000] / 1_000;
    let line = format!(
        "{{\"embedded_p50_us\":{},\"embedded_p99_us\":{},\"embedded_p999_us\":{}}}\n",
        at(500),
        at(990),
        at(999)
    );
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}

#[tokio::test]
async fn the_file_belongs_to_one_process_and_to_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let _store = Embedded::open(&state).unwrap();
    let second = Embedded::open(&state).unwrap_err();
    assert!(matches!(second, StoreError::InUse(_)), "{second}");
    for (path, mode) in [(state.clone(), 0o700), (state.join(FILE_NAME), 0o600)] {
        let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}", path.display());
    }
}

#[tokio::test]
async fn a_file_that_is_no_store_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE_NAME), vec![7; 8_192]).unwrap();
    assert!(Embedded::open(folder.path()).is_err());
}

#[tokio::test]
async fn expired_counters_leave_the_table_and_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    // Full buckets again within a tenth of a second.
    let quick = |key: String| {
        let mut counter = minute(&key, 600);
        counter.rule = policy::limit::Rule::Gcra(policy::gcra::Rate {
            limit: 600,
            period_ms: 60_000,
        });
        counter
    };
    for number in 0..500 {
        admit(&store, &[quick(format!("i:{number}"))]).await;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let order = reservation(&[quick("i:late".to_owned())]);
        store.reserve(&order, now_ms()).await.unwrap();
        store
            .settle(&settlement(&order, &[1]), now_ms())
            .await
            .unwrap();
        let known = (0..500).filter(|number| {
            let key = format!("{{home}}:i:{number}");
            super::super::memory::Disk::load(&*store.disk, &key)
                .unwrap()
                .is_some()
        });
        let (on_disk, in_memory) = (known.count(), lock(&store.counters).len());
        if on_disk == 0 && in_memory <= 3 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{on_disk} on disk, {in_memory} in memory"
        );
    }
}

#[test]
fn a_local_secret_is_made_once_and_for_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let first = crate::store::local_secret(folder.path(), "key").unwrap();
    let again = crate::store::local_secret(folder.path(), "key").unwrap();
    let other = crate::store::local_secret(folder.path(), "other").unwrap();
    assert!(first == again && first != other);
    let path = folder.path().join("secrets/key");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(crate::store::local_secret(folder.path(), "key").unwrap() == first);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let files = std::fs::read_dir(folder.path().join("secrets"))
        .unwrap()
        .count();
    assert_eq!(files, 2, "drafts stay behind");
}
