use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;

use super::{CounterMap, DAY_MS, Day, apply, decide, give_back};
use crate::gcra::Rate;
use crate::limit::{Counter, Decision, Rule};

const DAY_US: u64 = DAY_MS * 1_000;
const NOON: u64 = 20_000 * DAY_US + DAY_US / 2;

#[derive(Clone, Debug, Default, PartialEq)]
struct Table(HashMap<String, u64>);

impl CounterMap for Table {
    type Error = Infallible;

    fn load(&mut self, key: &str) -> Result<Option<u64>, Infallible> {
        Ok(self.0.get(key).copied())
    }

    fn save(&mut self, key: &str, value: u64, _expires_at_ms: u64) -> Result<(), Infallible> {
        self.0.insert(key.to_owned(), value);
        Ok(())
    }
}

fn admit(table: &mut Table, counters: &[Counter], now_us: u64) -> Decision {
    let Ok(decision) = apply(table, counters, now_us);
    decision
}

fn is_admitted(decision: &Decision) -> bool {
    matches!(decision, Decision::Admitted { .. })
}

fn minute(limit: u32) -> Counter {
    Counter {
        key: "u:ada:text-min".to_owned(),
        name: "text-min",
        rule: Rule::Gcra(Rate {
            limit,
            period_ms: 60_000,
        }),
        cost: 1,
    }
}

fn day(limit: u32, now_us: u64) -> Counter {
    let day = Day::at(limit, now_us / 1_000);
    Counter {
        key: format!("u:ada:text-day:{}", day.day),
        name: "text-day",
        rule: Rule::Day(day),
        cost: 1,
    }
}

#[test]
fn the_hundred_and_first_request_of_a_day_waits_for_midnight() {
    let mut table = Table::default();
    for _ in 0..100 {
        assert!(is_admitted(&admit(&mut table, &[day(100, NOON)], NOON)));
    }
    let refused = admit(&mut table, &[day(100, NOON)], NOON);
    let Decision::Refused {
        refused,
        retry_after,
        states,
    } = refused
    else {
        panic!("the 101st is refused");
    };
    assert_eq!((refused, retry_after), (0, Duration::from_hours(12)));
    assert_eq!(states[0].remaining, 0);
    assert_eq!(states[0].reset_after, retry_after);

    let almost = NOON + DAY_US / 2 - 1;
    assert!(!is_admitted(&admit(
        &mut table,
        &[day(100, almost)],
        almost
    )));
    let midnight = NOON + DAY_US / 2;
    let fresh = admit(&mut table, &[day(100, midnight)], midnight);
    assert_eq!(fresh.states()[0].remaining, 99, "a new day is a new budget");
}

#[test]
fn a_refusal_by_one_counter_charges_no_other() {
    let mut table = Table::default();
    let counters = [minute(30), day(1, NOON)];
    assert!(is_admitted(&admit(&mut table, &counters, NOON)));
    let before = table.clone();
    let refused = admit(&mut table, &counters, NOON);
    let Decision::Refused {
        refused, states, ..
    } = &refused
    else {
        panic!("the day is used up");
    };
    assert_eq!(*refused, 1);
    assert_eq!(states[0].remaining, 29, "the minute keeps what it had");
    assert_eq!(states[0].reset_after, Duration::from_secs(2));
    assert_eq!(table, before, "nothing was written");
    let label = refused_label(&admit(&mut table, &counters, NOON));
    assert_eq!(label, Some("quota_exceeded"));
}

#[test]
fn of_two_that_refuse_the_longer_wait_is_told() {
    let mut table = Table::default();
    let counters = [minute(1), day(1, NOON)];
    assert!(is_admitted(&admit(&mut table, &counters, NOON)));
    let Decision::Refused {
        refused,
        retry_after,
        ..
    } = admit(&mut table, &counters, NOON)
    else {
        panic!("both are used up");
    };
    assert_eq!((refused, retry_after), (1, Duration::from_hours(12)));
}

#[test]
fn what_is_given_back_can_be_used_again() {
    let mut table = Table::default();
    let counters = [minute(1), day(1, NOON)];
    assert!(is_admitted(&admit(&mut table, &counters, NOON)));
    let Ok(()) = give_back(&mut table, &counters);
    assert!(is_admitted(&admit(&mut table, &counters, NOON)));
    let mut empty = Table::default();
    let Ok(()) = give_back(&mut empty, &counters);
    assert_eq!(empty, Table::default(), "what is gone stays gone");
}

#[test]
fn no_counters_admit() {
    assert!(is_admitted(&admit(&mut Table::default(), &[], NOON)));
}

fn refused_label(decision: &Decision) -> Option<&'static str> {
    decision.refusal().map(|refusal| refusal.label())
}

proptest! {
    #[test]
    fn all_are_charged_or_none(limits in (1_u32..20, 1_u32..20), gaps in proptest::collection::vec(0_u64..7_000_000, 1..80)) {
        let mut table = Table::default();
        let (mut now, mut admitted_today) = (NOON, 0);
        for gap in gaps {
            now += gap;
            let counters = [minute(limits.0), day(limits.1, now)];
            let before = table.clone();
            match admit(&mut table, &counters, now) {
                Decision::Admitted { states } => {
                    admitted_today += 1;
                    prop_assert!(table.0[&counters[0].key] > now, "the minute was charged");
                    prop_assert_eq!(table.0[&counters[1].key], u64::from(admitted_today));
                    prop_assert_eq!(states[1].remaining, limits.1 - admitted_today);
                }
                Decision::Refused { refused, retry_after, states } => {
                    prop_assert_eq!(&table, &before);
                    prop_assert!(states[refused].remaining == 0);
                    let later = now + u64::try_from(retry_after.as_micros()).unwrap_or(0);
                    let counters = [minute(limits.0), day(limits.1, later)];
                    prop_assert!(is_admitted(&admit(&mut table.clone(), &counters, later)), "the hint is true");
                }
            }
            prop_assert!(admitted_today <= limits.1);
        }
    }

    #[test]
    fn a_store_that_charges_itself_gets_the_same_answer(stored in proptest::collection::vec(proptest::option::of(0_u64..200), 2), seconds in 0_u64..90) {
        let now = NOON + seconds * 1_000_000;
        let counters = [minute(30), day(100, now)];
        let tat = stored[0].map(|ahead| now + ahead * 1_000_000);
        let mut table = Table::default();
        for (counter, value) in counters.iter().zip([tat, stored[1]]) {
            if let Some(value) = value {
                table.0.insert(counter.key.clone(), value);
            }
        }
        let verdict = decide(&counters, &[tat, stored[1]], now);
        prop_assert_eq!(verdict.decision, admit(&mut table, &counters, now));
        for (counter, write) in counters.iter().zip(verdict.writes) {
            prop_assert_eq!(table.0[&counter.key], write.value);
            prop_assert!(write.expires_at_ms >= now / 1_000);
        }
    }
}
