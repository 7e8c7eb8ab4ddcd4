//! Shares of limits that this proxy may spend while its Redis is away: of each counter it was told about lately, a small part of
//! the limit, and never more than was left. Two generations, so the table is bounded and what is not used ages out. Over-admission
//! is at most the sum of the shares, which a gauge tells all the time. Charges nothing itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use policy::gcra::Rate;
use policy::limit::{Counter, CounterState, Rule, Unit, Window};
use prometheus_client::metrics::gauge::Gauge;

/// A share that was not told about for this long, or twice as long, is gone.
const GENERATION: Duration = Duration::from_mins(5);
const UNITS: [Unit; 5] = [
    Unit::Requests,
    Unit::Tokens,
    Unit::Items,
    Unit::Bytes,
    Unit::Micros,
];

/// The word in metrics.
pub(super) const fn word(unit: Unit) -> &'static str {
    match unit {
        Unit::Requests => "requests",
        Unit::Tokens => "tokens",
        Unit::Items => "items",
        Unit::Bytes => "bytes",
        Unit::Micros => "micros",
    }
}

/// However small the limit, this much of it.
const fn least(unit: Unit) -> u64 {
    match unit {
        Unit::Requests | Unit::Items => 1,
        Unit::Tokens => 1_000,
        Unit::Bytes => 1 << 20,
        Unit::Micros => 10_000,
    }
}

/// The share of a limit of which this much is left.
fn share(limit: u64, unit: Unit, remaining: u64, percent: u32) -> u64 {
    let part = u128::from(limit) * u128::from(percent) / 100;
    u64::try_from(part)
        .unwrap_or(u64::MAX)
        .max(least(unit))
        .min(limit)
        .min(remaining)
}

#[derive(Clone, Copy, Debug)]
struct Share {
    units: u64,
    unit: Unit,
}

/// The shares of one proxy.
#[derive(Debug)]
pub(super) struct Shares {
    young: HashMap<Arc<str>, Share>,
    old: HashMap<Arc<str>, Share>,
    born_at: Instant,
    percent: u32,
    /// In each generation.
    max: usize,
    sums: Vec<(Unit, Gauge)>,
}

impl Shares {
    /// An empty table of so many shares, each this part of its limit; `gauge` is asked for the gauge of every unit.
    pub(super) fn new(percent: u32, max: usize, gauge: impl Fn(&'static str) -> Gauge) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            born_at: Instant::now(),
            percent,
            max: max / 2,
            sums: UNITS.map(|unit| (unit, gauge(word(unit)))).to_vec(),
        }
    }

    /// Redis said where these counters stand.
    pub(super) fn learn(&mut self, counters: &[Counter], states: &[CounterState]) {
        if self.born_at.elapsed() > GENERATION {
            self.age();
        }
        for (counter, state) in counters.iter().zip(states) {
            let units = share(state.limit, counter.unit, state.remaining, self.percent);
            let unit = counter.unit;
            self.put(&counter.key, Share { units, unit });
        }
    }

    /// An earlier run of this proxy had this much left of a share of this unit.
    pub(super) fn restore(&mut self, key: &Arc<str>, unit: &str, units: u64) {
        if let Some(unit) = UNITS.into_iter().find(|known| word(*known) == unit) {
            self.put(key, Share { units, unit });
        }
    }

    /// The counters with the shares as their limits; `None` when there is none of one of them.
    pub(super) fn scaled(&self, counters: &[Counter]) -> Option<Vec<Counter>> {
        counters
            .iter()
            .map(|counter| {
                let share = self
                    .young
                    .get(&counter.key)
                    .or_else(|| self.old.get(&counter.key))?;
                let mut counter = counter.clone();
                counter.rule = scale(counter.rule, share.units);
                Some(counter)
            })
            .collect()
    }

    fn put(&mut self, key: &Arc<str>, share: Share) {
        if let Some(known) = self.young.get_mut(key) {
            let before = std::mem::replace(known, share);
            self.add(before, -1);
            self.add(share, 1);
            return;
        }
        if let Some(before) = self.old.remove(key) {
            self.add(before, -1);
        }
        if self.young.len() >= self.max {
            self.age();
        }
        self.young.insert(Arc::clone(key), share);
        self.add(share, 1);
    }

    fn age(&mut self) {
        let gone = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        for share in gone.into_values() {
            self.add(share, -1);
        }
        self.born_at = Instant::now();
    }

    fn add(&self, share: Share, sign: i64) {
        let units = i64::try_from(share.units).unwrap_or(i64::MAX);
        if let Some((_, sum)) = self.sums.iter().find(|(unit, _)| *unit == share.unit) {
            sum.inc_by(units.saturating_mul(sign));
        }
    }
}

/// A rule with a smaller limit: of a short window the same part comes back in the same time.
const fn scale(rule: Rule, limit: u64) -> Rule {
    match rule {
        Rule::Gcra(rate) => Rule::Gcra(Rate { limit, ..rate }),
        Rule::Window(window) => Rule::Window(Window { limit, ..window }),
        Rule::Held { .. } => Rule::Held { limit },
    }
}

#[cfg(test)]
mod tests {
    use policy::limit::{Measure, Name};
    use policy::quota;

    use super::*;

    fn counter(key: &str, measure: Measure, limit: u64) -> Counter {
        Counter {
            key: key.into(),
            name: Name::user(measure),
            unit: measure.unit(),
            rule: Rule::Held { limit },
            cost: 1,
            per_million: 0,
        }
    }

    fn learn(shares: &mut Shares, counter: &Counter, used: u64) {
        let states = [quota::state(counter, Some(used), 1)];
        shares.learn(std::slice::from_ref(counter), &states);
    }

    fn table(max: usize) -> (Shares, Gauge) {
        let requests = Gauge::default();
        let shares = Shares::new(2, max, |unit| match unit {
            "requests" => requests.clone(),
            _ => Gauge::default(),
        });
        (shares, requests)
    }

    #[test]
    fn a_share_is_a_part_of_the_limit_at_least_one_and_never_more_than_is_left() {
        for (limit, unit, remaining, want) in [
            (1_000, Unit::Requests, 900, 20),
            (30, Unit::Requests, 30, 1),
            (30, Unit::Requests, 0, 0),
            (0, Unit::Requests, 0, 0),
            (500, Unit::Tokens, 500, 500),
            (100_000, Unit::Tokens, 1_500, 1_500),
            (u64::MAX, Unit::Tokens, u64::MAX, u64::MAX / 50),
        ] {
            assert_eq!(
                share(limit, unit, remaining, 2),
                want,
                "{limit} {remaining}"
            );
        }
    }

    #[test]
    fn who_was_never_here_has_no_share() {
        let (mut shares, _) = table(100);
        let known = counter("a", Measure::TextDay, 100);
        learn(&mut shares, &known, 0);
        assert_eq!(
            shares.scaled(std::slice::from_ref(&known)).unwrap()[0].rule,
            Rule::Held { limit: 2 }
        );
        let stranger = counter("b", Measure::TextDay, 100);
        assert_eq!(shares.scaled(&[known, stranger]), None);
    }

    #[test]
    fn the_gauge_is_the_sum_of_the_shares_whatever_comes_and_goes() {
        let (mut shares, requests) = table(10);
        for round in 0..4 {
            for number in 0..23 {
                let counter = counter(&number.to_string(), Measure::TextDay, 1_000);
                learn(&mut shares, &counter, 990 * (round % 2));
            }
            let all = shares.young.values().chain(shares.old.values());
            let sum: u64 = all.map(|share| share.units).sum();
            assert_eq!(u64::try_from(requests.get()).unwrap(), sum);
            assert!(shares.young.len() + shares.old.len() <= 10, "it is bounded");
        }
        shares.age();
        shares.age();
        assert_eq!(requests.get(), 0);
    }
}
