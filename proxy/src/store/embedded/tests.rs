//! What only a file can do wrong.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use config::ids::KeyId;
use policy::limit::Decision;

use super::*;
use crate::store::contract::{api_key, day, minute, now_ms};

#[tokio::test]
async fn everything_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let now = now_ms();
    let counters = [minute("u:r:text-min", 30), day("u:r", 3, now)];
    let pepper = {
        let store = Embedded::open(folder.path()).unwrap();
        for _ in 0..3 {
            store.admit(&counters, now).await.unwrap();
        }
        store.put_key(&api_key("aaaa")).await.unwrap();
        let pepper = *store.secret("pepper").await.unwrap().expose();
        store.touch_key(&KeyId::new("aaaa"), 450).await.unwrap();
        pepper
    };
    let store = Embedded::open(folder.path()).unwrap();
    let decision = store.admit(&counters, now).await.unwrap();
    let Decision::Refused {
        refused, states, ..
    } = decision
    else {
        panic!("the day began anew");
    };
    assert_eq!((refused, states[0].remaining), (1, 27));
    let key = store.key(&KeyId::new("aaaa")).await.unwrap();
    assert_eq!(key.unwrap().last_used_unix, Some(450));
    assert_eq!(*store.secret("pepper").await.unwrap().expose(), pepper);
}

#[tokio::test]
async fn a_crash_forgets_at_most_the_last_second_of_counters_and_no_key() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = now_ms();
    let counters = [day("u:c", 9, now)];
    let store = Embedded::open(folder.path()).unwrap();
    store.admit(&counters, now).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // What lies on the disk at some moment is what a crash would leave.
    loop {
        let id = format!("k{:010}", deadline.elapsed().as_nanos());
        store.put_key(&api_key(&id)).await.unwrap();
        std::fs::copy(folder.path().join(FILE_NAME), copy.path().join(FILE_NAME)).unwrap();
        let crashed = Embedded::open(copy.path()).unwrap();
        assert!(
            crashed.key(&KeyId::new(id)).await.unwrap().is_some(),
            "a key was lost"
        );
        let decision = crashed.admit(&counters, now).await.unwrap();
        if decision.states()[0].remaining == 7 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the counter never reached the disk"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
    let now = now_ms();
    {
        let store = Embedded::open(folder.path()).unwrap();
        for number in 0..500 {
            store
                .admit(&[minute(&format!("i:{number}"), 30)], now)
                .await
                .unwrap();
        }
        store
            .admit(&[minute("i:late", 30)], now + 60_000)
            .await
            .unwrap();
    }
    let store = Embedded::open(folder.path()).unwrap();
    assert_eq!(lock(&store.counters).len(), 1);
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
