//! Stories of the journal: what is written is read again, and half a line harms nobody.

use config::ids::Tenant;

use super::super::redis::Owed;
use super::*;
use crate::store::ReservationId;

fn bill(number: u8, spent: u64) -> Bill {
    Bill {
        id: ReservationId::from_bytes([number; 16]),
        tenant: Tenant::default(),
        owed: vec![Owed {
            key: "{home}:u:a".into(),
            rule: ('w', 7, 100),
            spent,
        }],
        entry: None,
    }
}

fn key() -> Arc<str> {
    "{home}:u:a".into()
}

/// Writes a journal and leaves its bytes.
async fn written(folder: &Path) -> Vec<u8> {
    let (journal, _) = Journal::open(folder).unwrap();
    journal.share(&key(), "requests", 10).unwrap();
    for number in 1..5 {
        let id = bill(number, 1).id.to_string();
        journal.admitted(&id, vec![(key(), 2)]).unwrap();
    }
    for number in 1..4 {
        journal.owe(bill(number, 1)).await.unwrap();
    }
    let first = journal.bills(1)[0].0;
    journal.paid(&[first]);
    std::fs::read(folder.join(FILE)).unwrap()
}

/// The thread that syncs may hold the one before for a moment.
async fn again(folder: &Path) -> (Arc<Journal>, Left) {
    for _ in 0..500 {
        match Journal::open(folder) {
            Ok(opened) => return opened,
            Err(StoreError::InUse(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it is never free");
}

#[tokio::test]
async fn what_waits_and_what_is_left_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path()).await;
    let (journal, left) = again(folder.path()).await;
    let waiting: Vec<Bill> = journal.bills(9).into_iter().map(|(_, bill)| bill).collect();
    assert_eq!(waiting, [bill(2, 1), bill(3, 1)]);
    // Three ended with 1 each, one is unknown and counts with its 2.
    assert_eq!(left.shares[&key()], ("requests".to_owned(), 5));
    assert!(!journal.clear(), "something waits");
    let all: Vec<u64> = journal.bills(9).into_iter().map(|(at, _)| at).collect();
    journal.paid(&all);
    assert!(journal.clear());
    assert_eq!(
        std::fs::metadata(folder.path().join(FILE)).unwrap().len(),
        0
    );
}

#[tokio::test]
async fn a_file_cut_at_any_byte_is_read_up_to_its_last_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = written(folder.path()).await;
    let whole: Vec<usize> = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at + 1)
        .collect();
    for cut in 0..bytes.len() {
        let (lines, good) = read(&bytes[..cut]);
        let want = whole.iter().filter(|end| **end <= cut).count();
        assert_eq!(lines.len(), want);
        assert_eq!(good, if want == 0 { 0 } else { whole[want - 1] });
    }
    let mut changed = bytes;
    changed[SUM + 12] ^= 1;
    assert_eq!(read(&changed).0.len(), 0);
}

#[tokio::test]
async fn one_process_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_journal, _) = Journal::open(folder.path()).unwrap();
    assert!(matches!(
        Journal::open(folder.path()),
        Err(StoreError::InUse(_))
    ));
}
