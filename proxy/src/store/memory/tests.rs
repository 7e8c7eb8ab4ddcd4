use super::*;
use crate::store::contract::counting::{held, minute, reservation, settlement};

fn put(table: &mut CounterTable, key: &str, limit: u64, now: u64) -> Result<bool, StoreError> {
    let order = reservation(&[minute(key, limit)]);
    table
        .reserve(&order, now, &NoDisk)
        .map(|decision| decision.is_admitted())
}

#[test]
fn a_table_full_of_live_counters_refuses_and_recovers_with_time() {
    let mut table = CounterTable::alone(100);
    let mut full = 0;
    for number in 0..1_000 {
        match put(&mut table, &format!("u:{number}"), 1, 10_000) {
            Ok(admitted) => assert!(admitted),
            Err(error) => {
                assert_eq!(error, StoreError::Overloaded);
                full += 1;
            }
        }
    }
    assert!(
        table.len() <= 100 * COUNTERS_EACH * 5 / 4,
        "{}",
        table.len()
    );
    assert!(full > 400, "{full}");
    assert_eq!(
        put(&mut table, "u:new", 1, 69_999),
        Err(StoreError::Overloaded)
    );
    for number in 0..60 {
        assert_eq!(put(&mut table, &format!("v:{number}"), 1, 70_000), Ok(true));
    }
    assert!(
        table.len() <= 60,
        "{}: what has expired went bit by bit",
        table.len()
    );
}

#[test]
fn changes_that_could_not_be_written_come_again() {
    let mut table = CounterTable::recorded(1_000, Vec::new());
    assert_eq!(put(&mut table, "u:a", 3, 10_000), Ok(true));
    let changes = table.take_changes();
    assert_eq!((changes.counters.len(), changes.reservations.len()), (1, 1));
    assert!(table.take_changes().is_empty());
    table.put_back(changes);
    assert_eq!(put(&mut table, "u:b", 3, 10_000), Ok(true));
    let changes = table.take_changes();
    assert_eq!((changes.counters.len(), changes.reservations.len()), (2, 2));
}

#[test]
fn what_changes_while_it_is_written_is_written_again() {
    let mut table = CounterTable::recorded(1_000, Vec::new());
    assert_eq!(put(&mut table, "u:a", 3, 10_000), Ok(true));
    let first = table.take_changes();
    assert_eq!(put(&mut table, "u:a", 3, 10_000), Ok(true));
    table.written(&first);
    let second = table.take_changes();
    assert_eq!(second.counters.len(), 1);
    assert_ne!(first.counters, second.counters);
    table.written(&second);
    assert!(!table.is_changed());
}

#[test]
fn a_place_that_is_free_again_is_removed_from_the_disk_before_it_is_forgotten() {
    let mut table = CounterTable::recorded(1_000, Vec::new());
    let order = reservation(&[held("u:a:held", 1)]);
    assert!(
        table
            .reserve(&order, 10_000, &NoDisk)
            .unwrap()
            .is_admitted()
    );
    let written = table.take_changes();
    table.written(&written);
    table
        .settle(&settlement(&order, &[0]), 10_001, &NoDisk)
        .unwrap();
    for _ in 0..50 {
        table.sweep::<NoDisk>(8, 20_000);
    }
    let changes = table.take_changes();
    assert_eq!(changes.counters.len(), 1);
    assert_eq!(changes.counters[0].1, None);
    assert_eq!(changes.reservations, [(order.id, None)]);
    assert_eq!(table.open_len(), 0);
}
