//! A Redis as rows, and rows as a Redis. Counters and reservations are found by walking over the keys of every primary; each is
//! read and written where it lies. For a Redis that nobody uses meanwhile.

use async_trait::async_trait;
use config::ids::Tenant;
use config::secret::Secret;
use policy::ledger::{LedgerEntry, Totals};
use redis::AsyncCommands;

use super::link::Lua;
use super::{Redis, ledger};
use crate::store::transfer::{
    Row, SavedCharge, SavedCounter, SavedReservation, SavedSum, Table, Transfer, slot_of,
};
use crate::store::{StoreError, transfer};

/// Keys that one step of the walk looks at.
const WALKED_A_CALL: usize = 1_000;
const COMMON: &str = include_str!("common.lua");

impl Redis {
    /// One step over the keys of a kind: `node.cursor` says where.
    async fn walk(
        &self,
        pattern: &str,
        after: Option<&str>,
    ) -> Result<(Vec<String>, Option<String>), StoreError> {
        let (node, cursor): (usize, u64) = after
            .and_then(|after| after.split_once('.'))
            .and_then(|(node, cursor)| Some((node.parse().ok()?, cursor.parse().ok()?)))
            .unwrap_or_default();
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(WALKED_A_CALL);
        let (nodes, (next, keys)): (usize, (u64, Vec<String>)) =
            self.link.ask_primary(node, &scan).await?;
        let next = match next {
            0 if node + 1 >= nodes => None,
            0 => Some(format!("{}.0", node + 1)),
            next => Some(format!("{node}.{next}")),
        };
        Ok((keys, next))
    }

    async fn counters_after(
        &self,
        after: Option<&str>,
    ) -> Result<(Vec<Row>, Option<String>), StoreError> {
        let prefix = self.counters.counter("");
        let (keys, next) = self.walk(&format!("{}*", escaped(&prefix)), after).await?;
        let mut rows = Vec::with_capacity(keys.len());
        for name in keys {
            let Some(key) = name.strip_prefix(&prefix) else {
                continue;
            };
            let mut pipe = redis::pipe();
            pipe.cmd("GET").arg(&name).cmd("PEXPIRETIME").arg(&name);
            let (value, ends): (Option<String>, i64) = self
                .link
                .call_at_leisure(async |line| pipe.query_async(line).await)
                .await?;
            let Some(value) = value else {
                continue;
            };
            rows.push(Row::Counter(SavedCounter {
                key: key.to_owned(),
                value: value
                    .parse()
                    .map_err(|_| StoreError::Corrupt(format!("{name} is not a counter")))?,
                expires_at_ms: u64::try_from(ends).ok(),
            }));
        }
        Ok((rows, next))
    }

    async fn reservations_after(
        &self,
        after: Option<&str>,
    ) -> Result<(Vec<Row>, Option<String>), StoreError> {
        let pattern = format!("{}:r:*", escaped(&self.prefix));
        let (keys, next) = self.walk(&pattern, after).await?;
        let dump = Lua::new(&[COMMON, include_str!("dump.lua")]);
        let counters = self.counters.counter("");
        let mut rows = Vec::new();
        for name in keys {
            let Some((slot, (_, id))) = slot_of(&name).zip(name.rsplit_once(':')) else {
                continue;
            };
            let id = id.to_owned();
            let names = [name, self.counters.index(&slot)];
            let found: Vec<String> = self.link.run(&dump, &names, &id.as_str()).await?;
            // Settled ids are not moved: nobody settles them again once the proxies have stopped.
            if let [ends, granted, charges @ ..] = found.as_slice() {
                let reservation = reservation(&id, (ends, granted), charges, &counters);
                rows.push(Row::Reservation(reservation.ok_or_else(|| {
                    StoreError::Corrupt(format!("the reservation {id}"))
                })?));
            }
        }
        Ok((rows, next))
    }

    async fn put_counter(&self, counter: &SavedCounter) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(self.counters.counter(&counter.key))
            .arg(counter.value);
        if let Some(ends) = counter.expires_at_ms {
            set.arg("PXAT").arg(ends.max(1));
        }
        self.link
            .call_at_leisure(async |line| set.query_async::<()>(line).await)
            .await
    }

    async fn put_reservation(&self, saved: &SavedReservation) -> Result<(), StoreError> {
        let key = saved.charges.first().map(|charge| charge.key.as_str());
        let slot = key.and_then(slot_of).unwrap_or_default();
        let names = [
            format!("{}{}", self.counters.reservations(&slot), saved.id),
            self.counters.index(&slot),
        ];
        let mut args = vec![saved.expires_at_ms.to_string(), saved.granted.to_string()];
        for charge in &saved.charges {
            let (letter, a, limit) = charge.rule;
            args.push(self.counters.counter(&charge.key));
            args.push(letter.to_string());
            args.extend([a, limit, charge.units, charge.charged_to_us].map(|n| n.to_string()));
        }
        self.counters.open_books(&slot).await?;
        let restore = Lua::new(&[COMMON, include_str!("restore.lua")]);
        self.link.run::<u8>(&restore, &names, &args).await.map(drop)
    }

    async fn put_entry(&self, entry: &LedgerEntry) -> Result<(), StoreError> {
        self.counters.open_books(&entry.tenant).await?;
        let (stream, cursor) = self.books_of(&entry.tenant);
        let mut add = redis::cmd("XADD");
        add.arg(stream)
            .arg("*")
            .arg(ledger::FIELD)
            .arg(entry.to_bytes());
        let id: String = self
            .link
            .call_at_leisure(async |line| add.query_async(line).await)
            .await?;
        // It is in the sums already.
        self.link
            .call_at_leisure(async |line| line.set::<_, _, ()>(&cursor, &id).await)
            .await
    }
}

fn reservation(
    id: &str,
    (ends, granted): (&str, &str),
    charges: &[String],
    prefix: &str,
) -> Option<SavedReservation> {
    let charge = |parts: &[String]| {
        let [key, letter, a, limit, units, to] = parts else {
            return None;
        };
        let rule = (letter.chars().next()?, a.parse().ok()?, limit.parse().ok()?);
        transfer::rule_of(rule)?;
        Some(SavedCharge {
            key: key.strip_prefix(prefix)?.to_owned(),
            rule,
            units: units.parse().ok()?,
            charged_to_us: to.parse().ok()?,
        })
    };
    Some(SavedReservation {
        id: id.to_owned(),
        expires_at_ms: ends.parse().ok()?,
        granted: granted.parse().ok()?,
        charges: charges.chunks(6).map(charge).collect::<Option<_>>()?,
    })
}

#[async_trait]
impl Transfer for Redis {
    async fn secrets(&self) -> Result<Vec<(String, Secret<[u8; 32]>)>, StoreError> {
        self.all_secrets().await
    }

    async fn put_secret(&self, name: &str, secret: &Secret<[u8; 32]>) -> Result<(), StoreError> {
        self.remember_secret(name, secret);
        let known = crate::store::Records::secret(self, name).await?;
        if known == *secret {
            return Ok(());
        }
        Err(StoreError::Corrupt(format!(
            "the secret {name} is there already, and another one"
        )))
    }

    async fn rows(
        &self,
        table: Table,
        after: Option<&str>,
    ) -> Result<(Vec<Row>, Option<String>), StoreError> {
        match table {
            Table::Counters => self.counters_after(after).await,
            Table::Reservations => self.reservations_after(after).await,
            Table::Entries => self.entries_after(after).await,
            Table::Sums => self.sums_after(after).await,
        }
    }

    async fn put_rows(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        for row in rows {
            match row {
                Row::Counter(counter) => self.put_counter(&counter).await?,
                Row::Reservation(reservation) => self.put_reservation(&reservation).await?,
                Row::Entry(entry) => self.put_entry(&entry).await?,
                Row::Sum(sum) => self.put_sum(&sum).await?,
                Row::Audit(line) => self.put_audit(&line).await?,
                Row::Key(_)
                | Row::User(_)
                | Row::Denial(_)
                | Row::JoinToken(_)
                | Row::Node(_)
                | Row::Burst(_)
                | Row::Secret { .. } => {
                    return Err(StoreError::Corrupt("a record among the rows".into()));
                }
            }
        }
        Ok(())
    }
}

impl Redis {
    /// Where the books of a tenant lie: its stream, and how far they are added up.
    fn books_of(&self, slot: &Tenant) -> (String, String) {
        (self.ledger_stream(slot), self.ledger_cursor(slot))
    }

    async fn entries_after(
        &self,
        after: Option<&str>,
    ) -> Result<(Vec<Row>, Option<String>), StoreError> {
        let at = after
            .and_then(|after| after.rsplit_once('/'))
            .map(|(slot, id)| (Tenant::new(slot), id.to_owned()));
        for slot in self.slots().await? {
            let from = match &at {
                Some((known, _)) if slot < *known => continue,
                Some((known, id)) if slot == *known => format!("({id}"),
                Some(_) | None => "-".to_owned(),
            };
            let found = self.range(&slot, &from, "+").await?;
            let Some((last, _)) = found.last() else {
                continue;
            };
            let next = format!("{slot}/{last}");
            let rows = found
                .iter()
                .map(|(_, (_, bytes))| Ok(Row::Entry(Box::new(ledger::read(bytes)?))))
                .collect::<Result<_, StoreError>>()?;
            return Ok((rows, Some(next)));
        }
        Ok((Vec::new(), None))
    }

    /// All sums of one slot and period, or of the next that has some.
    async fn sums_after(
        &self,
        after: Option<&str>,
    ) -> Result<(Vec<Row>, Option<String>), StoreError> {
        for slot in self.slots().await? {
            let mut periods = self.periods(&slot).await?;
            periods.sort();
            for period in periods {
                let place = format!("{slot}/{period}");
                if after.is_some_and(|after| !is_after(&place, after)) {
                    continue;
                }
                let hash = self.usage(&slot, &period);
                let found: Vec<(String, String)> = self
                    .link
                    .call_at_leisure(async |line| line.hgetall(&hash).await)
                    .await?;
                let rows = found
                    .iter()
                    .map(|(name, row)| sum(&period, name, row))
                    .collect::<Result<_, StoreError>>()?;
                return Ok((rows, Some(place)));
            }
        }
        Ok((Vec::new(), None))
    }

    async fn put_sum(&self, sum: &SavedSum) -> Result<(), StoreError> {
        self.counters.open_books(&sum.tenant).await?;
        let hash = self.usage(&sum.tenant, &sum.period);
        let field = ledger::field_of(&sum.tenant, &sum.aspect, &sum.value);
        let row = ledger::row(Totals::from_row(sum.row))?;
        let set = self.usage_periods(&sum.tenant);
        let mut pipe = redis::pipe();
        pipe.sadd(set, &sum.period).ignore();
        pipe.hset(hash, field, row).ignore();
        self.link
            .call_at_leisure(async |line| pipe.query_async::<()>(line).await)
            .await
    }
}

/// In the order of slots and then of periods; no period holds a slash.
fn is_after(place: &str, other: &str) -> bool {
    place.rsplit_once('/') > other.rsplit_once('/')
}

fn sum(period: &str, name: &str, row: &str) -> Result<Row, StoreError> {
    let mut parts = name.splitn(3, ledger::GAP);
    let (Some(tenant), Some(aspect), Some(value)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(StoreError::Corrupt(format!("usage {period}")));
    };
    Ok(Row::Sum(SavedSum {
        tenant: Tenant::new(tenant),
        period: period.to_owned(),
        aspect: aspect.to_owned(),
        value: value.to_owned(),
        row: ledger::totals(row)?.to_row(),
    }))
}

fn escaped(text: &str) -> String {
    ledger::escaped(text)
}
