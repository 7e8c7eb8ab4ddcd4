use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::{Charge, CounterMap, apply, decide, settle};
use crate::gcra::Rate;
use crate::limit::{Counter, Decision, Elastic, Level, MILLION, Measure, Name, Rule, Span, Window};

const DAY_MS: u64 = 86_400_000;
const DAY_US: u64 = DAY_MS * 1_000;
const NOON: u64 = 20_000 * DAY_US + DAY_US / 2;

#[derive(Clone, Debug, Default, PartialEq)]
struct Table(HashMap<Arc<str>, u64>);

impl CounterMap for Table {
    type Error = Infallible;

    fn load(&mut self, key: &str) -> Result<Option<u64>, Infallible> {
        Ok(self.0.get(key).copied())
    }

    fn save(&mut self, key: &Arc<str>, value: u64, expires_at_ms: u64) -> Result<(), Infallible> {
        if expires_at_ms == 0 {
            self.0.remove(key);
        } else {
            self.0.insert(Arc::clone(key), value);
        }
        Ok(())
    }
}

fn reserve(
    table: &mut Table,
    counters: &[Counter],
    elastic: Elastic,
    now_us: u64,
) -> (Decision, Vec<Charge>) {
    let Ok(done) = apply(table, counters, elastic, now_us);
    done
}

fn admit(table: &mut Table, counters: &[Counter], now_us: u64) -> Decision {
    reserve(table, counters, Elastic::default(), now_us).0
}

fn finish(table: &mut Table, counter: &Counter, charge: Option<Charge>, spent: u64, now_us: u64) {
    let Ok(()) = settle(table, (&counter.key, counter.rule), charge, spent, now_us);
}

fn counter(key: &str, measure: Measure, rule: Rule) -> Counter {
    Counter {
        key: key.into(),
        name: Name::new(Level::User, measure),
        unit: measure.unit(),
        rule,
        cost: 1,
        per_million: 0,
    }
}

fn minute(limit: u64) -> Counter {
    let rate = Rate {
        limit,
        period_ms: 60_000,
    };
    counter("minute", Measure::TextMinute, Rule::Gcra(rate))
}

fn day(limit: u64, now_us: u64) -> Counter {
    let number = now_us / DAY_US;
    let window = Window {
        limit,
        starts_at_ms: number * DAY_MS,
        resets_at_ms: (number + 1) * DAY_MS,
        span: Span::Day,
    };
    counter(
        &format!("day:{number}"),
        Measure::TextDay,
        Rule::Window(window),
    )
}

fn held(limit: u64) -> Counter {
    counter("held", Measure::Concurrent, Rule::Held { limit })
}

/// Tokens: the prompt is fixed, the answer is granted.
fn tokens(mut counter: Counter, prompt: u64) -> Counter {
    counter.cost = prompt;
    counter.per_million = MILLION;
    counter
}

#[test]
fn the_hundred_and_first_request_of_a_day_waits_for_midnight() {
    let mut table = Table::default();
    for _ in 0..100 {
        assert!(admit(&mut table, &[day(100, NOON)], NOON).is_admitted());
    }
    let Decision::Refused {
        refused,
        retry_after,
        states,
        ..
    } = admit(&mut table, &[day(100, NOON)], NOON)
    else {
        panic!("the 101st is refused");
    };
    assert_eq!((refused, retry_after), (0, Some(Duration::from_hours(12))));
    assert_eq!(
        (states[0].remaining, Some(states[0].reset_after)),
        (0, retry_after)
    );
    let almost = NOON + DAY_US / 2 - 1;
    assert!(!admit(&mut table, &[day(100, almost)], almost).is_admitted());
    let midnight = NOON + DAY_US / 2;
    let fresh = admit(&mut table, &[day(100, midnight)], midnight);
    assert_eq!(fresh.states()[0].remaining, 99, "a new day is a new budget");
}

#[test]
fn a_refusal_by_one_counter_charges_no_other() {
    let mut table = Table::default();
    let counters = [minute(30), day(1, NOON), held(5)];
    assert!(admit(&mut table, &counters, NOON).is_admitted());
    let before = table.clone();
    let refused = admit(&mut table, &counters, NOON);
    let Decision::Refused {
        refused: index,
        states,
        ..
    } = &refused
    else {
        panic!("the day is used up");
    };
    assert_eq!(
        (*index, states[0].remaining, states[2].remaining),
        (1, 29, 4)
    );
    assert_eq!(states[0].reset_after, Duration::from_secs(2));
    assert_eq!(table, before, "nothing was written");
    assert_eq!(
        refused.refusal().map(|refusal| refusal.label()),
        Some("quota_exceeded")
    );
}

#[test]
fn who_may_spend_37_more_is_granted_37() {
    let mut table = Table::default();
    let counters = [tokens(day(1_000, NOON), 463), tokens(minute(10_000), 463)];
    let wants = Elastic {
        want: 2_048,
        min: 1,
    };
    let (decision, charges) = reserve(
        &mut table,
        &[tokens(day(1_000, NOON), 500)],
        Elastic::default(),
        NOON,
    );
    assert!(decision.is_admitted());
    assert_eq!(charges[0].units, 500);
    let (decision, charges) = reserve(&mut table, &counters, wants, NOON);
    assert_eq!(decision.granted(), 37, "1,000 - 500 - 463");
    assert_eq!(
        (charges[0].units, charges[1].units),
        (500, 500),
        "all are charged for what was granted"
    );
    assert_eq!(decision.states()[0].remaining, 0);
    let refused = reserve(&mut table, &[tokens(day(1_000, NOON), 0)], wants, NOON).0;
    let Decision::Refused {
        room, retry_after, ..
    } = refused
    else {
        panic!("nothing is left");
    };
    assert_eq!((room, retry_after), (0, Some(Duration::from_hours(12))));
}

#[test]
fn the_smallest_budget_of_the_tree_decides_how_much_is_granted() {
    let mut group = tokens(day(90, NOON), 10);
    group.key = "group".into();
    let mut money = day(1_000, NOON);
    money.key = "money".into();
    // 5 millionths for the prompt, 2.5 a token: (1,000 - 5) / 2.5 = 398 tokens.
    (money.cost, money.per_million) = (5, 2_500_000);
    let wants = Elastic { want: 500, min: 1 };
    let both = [tokens(day(1_000, NOON), 10), money.clone()];
    let (decision, charges) = reserve(&mut Table::default(), &both, wants, NOON);
    assert_eq!((decision.granted(), charges[1].units), (398, 1_000));
    let all = [tokens(day(1_000, NOON), 10), group, money];
    let decision = reserve(&mut Table::default(), &all, wants, NOON).0;
    assert_eq!(decision.granted(), 80);
    let picky = Elastic { want: 500, min: 81 };
    let Decision::Refused { refused, room, .. } =
        reserve(&mut Table::default(), &all, picky, NOON).0
    else {
        panic!("80 are too few");
    };
    assert_eq!((refused, room), (1, 80));
}

#[test]
fn what_is_above_the_limit_itself_never_fits_and_says_so() {
    let mut table = Table::default();
    for counter in [tokens(minute(100), 101), tokens(day(100, NOON), 101)] {
        let refused = admit(&mut table, &[counter], NOON);
        let refusal = refused.refusal().expect("a refusal");
        assert_eq!(
            (refusal.label(), refusal.retry_after()),
            ("never_fits", None)
        );
        assert!(!refusal.should_retry());
    }
}

#[test]
fn of_many_that_refuse_the_longest_wait_is_told() {
    let mut table = Table::default();
    let counters = [minute(1), day(1, NOON), held(1)];
    assert!(admit(&mut table, &counters, NOON).is_admitted());
    let Decision::Refused {
        refused,
        retry_after,
        ..
    } = admit(&mut table, &counters, NOON)
    else {
        panic!("all are used up");
    };
    assert_eq!((refused, retry_after), (1, Some(Duration::from_hours(12))));
}

#[test]
fn a_settlement_gives_back_what_was_not_spent_and_charges_what_was_spent_besides() {
    let mut table = Table::default();
    let counter = tokens(day(1_000, NOON), 100);
    let (_, charges) = reserve(
        &mut table,
        std::slice::from_ref(&counter),
        Elastic { want: 400, min: 1 },
        NOON,
    );
    finish(&mut table, &counter, Some(charges[0]), 230, NOON);
    assert_eq!(table.0[&counter.key], 230);
    finish(
        &mut table,
        &counter,
        Some(Charge {
            units: 230,
            charged_to_us: 0,
        }),
        1_200,
        NOON,
    );
    assert_eq!(
        table.0[&counter.key], 1_200,
        "more than the limit is charged too, and never refused"
    );
    assert!(!admit(&mut table, std::slice::from_ref(&counter), NOON).is_admitted());
    finish(&mut table, &counter, None, 50, NOON);
    assert_eq!(
        table.0[&counter.key], 1_250,
        "a reservation that is gone is charged in full"
    );
}

#[test]
fn what_is_held_is_free_again_when_it_is_given_back_and_leaves_nothing() {
    let mut table = Table::default();
    let counter = held(1);
    let (_, charges) = reserve(
        &mut table,
        std::slice::from_ref(&counter),
        Elastic::default(),
        NOON,
    );
    let refused = admit(&mut table, std::slice::from_ref(&counter), NOON);
    assert_eq!(
        refused.refusal().map(|refusal| refusal.label()),
        Some("too_many_open")
    );
    finish(&mut table, &counter, Some(charges[0]), 0, NOON + 5 * DAY_US);
    assert_eq!(table, Table::default());
    finish(&mut table, &counter, Some(charges[0]), 0, NOON);
    assert_eq!(table, Table::default(), "what is gone stays gone");
}

#[test]
fn a_look_costs_nothing_and_finds_a_debt_without_refusing() {
    let mut table = Table::default();
    let mut counters = [minute(5), day(5, NOON)];
    finish(&mut table, &counters[0], None, 9, NOON);
    for counter in &mut counters {
        counter.cost = 0;
    }
    let before = table.clone();
    let seen = admit(&mut table, &counters, NOON);
    assert!(seen.is_admitted());
    assert_eq!(
        (seen.states()[0].remaining, seen.states()[1].remaining),
        (0, 5)
    );
    assert_eq!(table, before);
}

#[test]
fn no_counters_admit() {
    assert!(admit(&mut Table::default(), &[], NOON).is_admitted());
}

/// The reference: budgets as a person would keep them on paper. A bucket fills with time, a day is used up, a place is held.
#[derive(Clone, Debug)]
struct Paper {
    bucket: u64,
    at: u64,
    used_today: HashMap<u64, u64>,
    held: u64,
}

#[derive(Clone, Debug)]
struct Reserved {
    day: u64,
    granted: u64,
    charges: Vec<Charge>,
    at: u64,
}

const PROMPT: u64 = 7;
const BUCKET: u64 = 600;
const DAILY: u64 = 2_000;
const PLACES: u64 = 4;

impl Paper {
    /// Tokens that may be granted, or `None`.
    fn grant(&mut self, wants: Elastic, now: u64) -> Option<u64> {
        self.bucket = (self.bucket + (now - self.at)).min(BUCKET * 100_000);
        self.at = now;
        let day = self.used_today.get(&(now / DAY_US)).copied().unwrap_or(0);
        let left = (self.bucket / 100_000)
            .min(DAILY.saturating_sub(day))
            .checked_sub(PROMPT)?;
        let granted = left.min(wants.want);
        if granted < wants.min || self.held == PLACES {
            return None;
        }
        self.bucket -= (PROMPT + granted) * 100_000;
        *self.used_today.entry(now / DAY_US).or_default() += PROMPT + granted;
        self.held += 1;
        Some(granted)
    }
}

#[derive(Clone, Debug)]
enum Act {
    Reserve {
        want: u64,
        min: u64,
    },
    /// Spends this part of what was granted, in percent; 0 is an abort.
    Settle {
        which: usize,
        percent: u64,
    },
}

fn acts() -> impl Strategy<Value = Vec<(u64, Act)>> {
    let act = prop_oneof![
        (1_u64..900, 0_u64..40).prop_map(|(want, min)| Act::Reserve {
            want,
            min: min.min(want)
        }),
        (any::<usize>(), 0_u64..=100).prop_map(|(which, percent)| Act::Settle { which, percent }),
    ];
    let gap = prop_oneof![
        Just(0_u64),
        1_u64..2_000_000,
        1_000_000_u64..40_000_000,
        Just(DAY_US / 3)
    ];
    proptest::collection::vec((gap, act), 1..120)
}

fn three(now: u64) -> [Counter; 3] {
    [
        tokens(minute(BUCKET), PROMPT),
        tokens(day(DAILY, now), PROMPT),
        held(PLACES),
    ]
}

proptest! {
    /// Any interleaving of admissions and settlements: the paper and the rules agree on days and places to the unit, the bucket
    /// never gives more than the paper's, nothing spent exceeds a limit, and refunds are exact.
    #[test]
    fn histories_agree_with_the_paper(acts in acts()) {
        let mut table = Table::default();
        let mut paper = Paper { bucket: BUCKET * 100_000, at: NOON, used_today: HashMap::new(), held: 0 };
        let mut open: Vec<Reserved> = Vec::new();
        let mut billed: HashMap<u64, u64> = HashMap::new();
        let mut now = NOON;
        for (gap, act) in acts {
            now += gap;
            match act {
                Act::Reserve { want, min } => {
                    let wants = Elastic { want, min };
                    let before = table.clone();
                    let (decision, charges) = reserve(&mut table, &three(now), wants, now);
                    let on_paper = paper.clone().grant(wants, now);
                    if let Decision::Admitted { granted, .. } = decision {
                        prop_assert!(on_paper.is_some_and(|paper| paper >= granted), "{on_paper:?} {granted}");
                        let same = paper.grant(Elastic { want: granted, min: granted }, now);
                        prop_assert_eq!(same, Some(granted));
                        open.push(Reserved { day: now / DAY_US, granted, charges, at: now });
                    } else {
                        prop_assert_eq!(&before, &table, "a refusal writes nothing");
                    }
                }
                Act::Settle { which, percent } => {
                    if open.is_empty() {
                        continue;
                    }
                    let one = open.swap_remove(which % open.len());
                    let spent = if percent == 0 { 0 } else { PROMPT + one.granted * percent / 100 };
                    let counters = three(one.at);
                    for (counter, (charge, spent)) in counters.iter().zip(one.charges.iter().zip([spent, spent, 0])) {
                        finish(&mut table, counter, Some(*charge), spent, now);
                    }
                    *billed.entry(one.day).or_default() += spent;
                    let back = PROMPT + one.granted - spent;
                    *paper.used_today.entry(one.day).or_default() -= back;
                    paper.grant(Elastic { want: 0, min: 1 }, now);
                    paper.bucket = (paper.bucket + back * 100_000).min(BUCKET * 100_000);
                    paper.held -= 1;
                }
            }
            let open_today: u64 = open.iter().filter(|one| one.day == now / DAY_US).map(|one| PROMPT + one.granted).sum();
            let billed_today = billed.get(&(now / DAY_US)).copied().unwrap_or(0);
            prop_assert!(billed_today + open_today <= DAILY, "billed never exceeds the limit");
            let stored = table.0.get(&day(DAILY, now).key).copied().unwrap_or(0);
            prop_assert_eq!(stored, billed_today + open_today, "the day is what was billed and what is open, to the unit");
            prop_assert_eq!(table.0.get("held").copied().unwrap_or(0), u64::try_from(open.len()).unwrap());
        }
    }

    /// A store that charges on its own and asks for the words later gets the same answer.
    #[test]
    fn a_store_that_charges_itself_gets_the_same_answer(stored in proptest::collection::vec(proptest::option::of(0_u64..700), 3), seconds in 0_u64..90, want in 0_u64..900) {
        let now = NOON + seconds * 1_000_000;
        let counters = three(now);
        let wants = Elastic { want, min: want.min(3) };
        let tat = stored[0].map(|ahead| now + ahead * 100_000);
        let numbers = [tat, stored[1], stored[2]];
        let mut table = Table::default();
        for (counter, value) in counters.iter().zip(numbers) {
            if let Some(value) = value {
                table.0.insert(Arc::clone(&counter.key), value);
            }
        }
        let verdict = decide(&counters, wants, &numbers, now);
        prop_assert_eq!(verdict.decision, reserve(&mut table, &counters, wants, now).0);
        for (counter, write) in counters.iter().zip(verdict.writes) {
            prop_assert_eq!(table.0[&counter.key], write.value);
            prop_assert!(write.expires_at_ms >= now / 1_000);
        }
    }

    /// A hint is true: at that time the same request fits, if nobody else came.
    #[test]
    fn hints_are_true(used in 0_u64..2_500, ahead in 0_u64..=1_200, prompt in 1_u64..700, seconds in 0_u64..40_000) {
        let now = NOON + seconds * 1_000_000;
        let counters = [tokens(minute(BUCKET), prompt), tokens(day(DAILY, now), prompt)];
        let numbers = [Some(now + ahead * 100_000), Some(used)];
        if let Decision::Refused { retry_after, states, .. } = decide(&counters, Elastic::default(), &numbers, now).decision {
            let Some(wait) = retry_after else {
                prop_assert!(prompt > BUCKET);
                return Ok(());
            };
            let later = now + u64::try_from(wait.as_micros()).unwrap();
            let fresh = [tokens(minute(BUCKET), prompt), tokens(day(DAILY, later), prompt)];
            let numbers = [numbers[0], (fresh[1].key == counters[1].key).then_some(used)];
            let then = decide(&fresh, Elastic::default(), &numbers, later).decision;
            prop_assert!(then.is_admitted(), "{:?}", then);
            prop_assert!(states[1].reset_after <= Duration::from_hours(24));
        }
    }

    #[test]
    fn no_number_makes_it_panic(cost: u64, per_million: u64, want: u64, min: u64, stored: Option<u64>, now: u64, limit: u64) {
        let mut counters = [minute(limit), day(limit, now.min(NOON * 4)), held(limit)];
        for counter in &mut counters {
            (counter.cost, counter.per_million) = (cost, per_million);
        }
        let decision = decide(&counters, Elastic { want, min }, &[stored; 3], now).decision;
        let _said = decision.refusal().map(|refusal| refusal.to_string());
    }
}
