//! Usage, request by request and summed, and the audit log: to be looked at, never to be changed.

use config::ids::{KeyId, NodeId, Tenant, UserId};
use config::settings::plan::Zone;
use config::tier::Tier;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use jiff::civil::Date;
use jiff::{Span, Timestamp};
use policy::calendar::Today;
use policy::ledger::{self, Aspect, LedgerEntry, SumKey, Totals, pair, second_of};

use super::{Answer, Api, At, Page, Query, bad_cursor, sealed};
use crate::admin::operations::{self, AdminError};
use crate::admin::routes::BookAct;
use crate::admin::words::{AuditCheck, UsageRow, UsageView};
use crate::store::StoreError;
use crate::store::ledger::{Breakdown, GENESIS, RecordQuery, SUMS_MAX};

/// Days of one question at most.
const DAYS_MAX: u64 = 400;
/// Days when nothing is said.
const DAYS_DEFAULT: u64 = 30;
/// Rows of one answer.
const ROWS_MAX: usize = 10_000;
/// Rows that are brought from the store for one answer before they are summed up: a month of full days.
const BROUGHT_MAX: usize = 30 * ROWS_MAX;
/// Lines of the audit log that are read at once.
const LINES_A_CALL: usize = 1_000;
const DAY_MS: u64 = 86_400_000;
const CSV: HeaderValue = HeaderValue::from_static("text/csv; charset=utf-8; header=present");

/// Days or months, from the first to the last.
#[derive(Clone, Debug)]
pub(crate) struct Period {
    /// The first day.
    pub(crate) from: Date,
    /// The last day.
    pub(crate) to: Date,
    /// Days (`2026-11-21`) or months (`2026-11`).
    pub(crate) labels: Vec<String>,
}

impl Period {
    /// The last so many days, today among them.
    pub(crate) fn days(zone: Zone, now_unix_ms: u64, days: u64) -> Self {
        let to = today(zone, now_unix_ms);
        let from = days_before(to, days.saturating_sub(1));
        Self {
            from,
            to,
            labels: day_labels(from, to),
        }
    }

    /// What `from` and `to` say.
    fn read(query: &Query, zone: Zone, now_unix_ms: u64) -> Result<Self, AdminError> {
        let date = |name: &str| -> Result<Option<Date>, AdminError> {
            let Some(text) = query.get(name) else {
                return Ok(None);
            };
            let date = text.parse();
            let wrong = |error| AdminError::Invalid(format!("{name} is {text:?}: {error}"));
            Ok(Some(date.map_err(wrong)?))
        };
        let to = date("to")?.unwrap_or_else(|| today(zone, now_unix_ms));
        let from = date("from")?.unwrap_or_else(|| days_before(to, DAYS_DEFAULT - 1));
        let days = from.until(to).map_or(0, |span| i64::from(span.get_days())) + 1;
        if !(1..=DAYS_MAX.cast_signed()).contains(&days) {
            return Err(AdminError::Invalid(format!(
                "from {from} to {to} are {days} days: from 1 to {DAYS_MAX}"
            )));
        }
        Ok(Self {
            from,
            to,
            labels: day_labels(from, to),
        })
    }

    fn months(&self) -> Vec<String> {
        let mut months: Vec<String> = self
            .labels
            .iter()
            .map(|day| ledger::month_of(day).to_owned())
            .collect();
        months.dedup();
        months
    }

    fn whole(&self) -> String {
        format!("{}/{}", self.from, self.to)
    }

    /// Its first and its first moment after it, Unix milliseconds, a day wider on both sides: which day an entry counts for
    /// is the entry's own word.
    fn moments(&self) -> (u64, u64) {
        let at = |date: Date| {
            let moment = date
                .to_zoned(jiff::tz::TimeZone::UTC)
                .map(|zoned| zoned.timestamp());
            let ms = moment.unwrap_or(Timestamp::UNIX_EPOCH).as_millisecond();
            u64::try_from(ms).unwrap_or(0)
        };
        (
            at(self.from).saturating_sub(DAY_MS),
            at(self.to).saturating_add(2 * DAY_MS),
        )
    }

    fn holds(&self, entry: &LedgerEntry) -> bool {
        let (Some(first), Some(last)) = (self.labels.first(), self.labels.last()) else {
            return false;
        };
        (first.as_str()..=last.as_str()).contains(&entry.day.as_ref())
    }
}

fn today(zone: Zone, now_unix_ms: u64) -> Date {
    let label = Today::at(zone, now_unix_ms).day.label;
    label.parse().unwrap_or(Date::ZERO)
}

fn days_before(date: Date, days: u64) -> Date {
    let days = i64::try_from(days).unwrap_or(0);
    date.checked_sub(Span::new().days(days)).unwrap_or(date)
}

fn day_labels(from: Date, to: Date) -> Vec<String> {
    from.series(Span::new().days(1))
        .take_while(|date| *date <= to)
        .map(|date| date.to_string())
        .collect()
}

/// What sums are asked for: which to read, and what each row is about.
enum Sums {
    /// One row for each period.
    One(Aspect, String),
    /// One row for each period and value; of pairs, those that begin so.
    Each(Aspect, Option<String>),
}

impl Sums {
    fn read(query: &Query, fixed_user: Option<&str>) -> Result<Self, AdminError> {
        let user = fixed_user.or_else(|| query.get("user"));
        let filters: Vec<(Aspect, &str)> = [
            (Aspect::User, user),
            (Aspect::Key, query.get("key")),
            (Aspect::Model, query.get("model")),
            (Aspect::Tier, query.get("tier")),
            (Aspect::Node, query.get("node")),
        ]
        .into_iter()
        .filter_map(|(aspect, value)| Some((aspect, value?)))
        .collect();
        let by = match query.get("by") {
            None => None,
            Some(name) => {
                let aspect = name.parse().ok();
                let plain = [
                    Aspect::User,
                    Aspect::Key,
                    Aspect::Model,
                    Aspect::Tier,
                    Aspect::Node,
                ];
                let aspect = aspect.filter(|aspect| plain.contains(aspect));
                let wrong = || {
                    AdminError::Invalid(format!("by is {name:?}: user, key, model, tier or node"))
                };
                Some(aspect.ok_or_else(wrong)?)
            }
        };
        match (filters.as_slice(), by) {
            ([], None) => Ok(Self::One(Aspect::All, String::new())),
            ([], Some(by)) => Ok(Self::Each(by, None)),
            ([(aspect, value)], None) => Ok(Self::One(*aspect, (*value).to_owned())),
            ([(Aspect::User, user)], Some(Aspect::Model)) => {
                Ok(Self::Each(Aspect::UserModel, Some((*user).to_owned())))
            }
            ([(Aspect::Key, key)], Some(Aspect::Model)) => {
                Ok(Self::Each(Aspect::KeyModel, Some((*key).to_owned())))
            }
            ([(Aspect::User, user), (Aspect::Model, model)], None) => {
                Ok(Self::One(Aspect::UserModel, pair(user, model)))
            }
            ([(Aspect::Key, key), (Aspect::Model, model)], None) => {
                Ok(Self::One(Aspect::KeyModel, pair(key, model)))
            }
            _ => Err(AdminError::Invalid(
                "no sums are kept of that: ask for one of user, key, model, tier or node, for user or key with model, or with by=model; usage/records has every request".into(),
            )),
        }
    }
}

impl Api {
    pub(super) async fn act_on_books(
        &self,
        act: BookAct,
        at: &At<'_>,
    ) -> Result<Answer, AdminError> {
        match act {
            BookAct::Usage => self.usage(at).await,
            BookAct::Records => self.records(at).await,
            BookAct::AuditList => self.audit(at).await,
            BookAct::AuditVerify => self.verify().await,
        }
    }

    async fn usage(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let tenant = tenant(at.query)?;
        let view = self
            .view(at.query, (&tenant, None), at.asked.now_unix_ms)
            .await?;
        if at.query.get("format") == Some("csv") {
            return Ok(csv(usage_lines(&view)));
        }
        Answer::ok(&view)
    }

    /// The usage of one person, by the same parameters.
    pub(crate) async fn own_usage(
        &self,
        (tenant, user): (&Tenant, &UserId),
        text: Option<&str>,
        now_unix_ms: u64,
    ) -> Result<UsageView, AdminError> {
        let query = Query::of_sums(text)?;
        for name in ["user", "key", "tier", "node", "tenant", "format"] {
            if query.get(name).is_some() {
                return Err(AdminError::Invalid(format!(
                    "no query parameter {name:?} here: from, to, per, model, by=model"
                )));
            }
        }
        if query.get("by").is_some_and(|by| by != "model") {
            return Err(AdminError::Invalid("by is model here, or left out".into()));
        }
        self.view(&query, (tenant, Some(user.as_str())), now_unix_ms)
            .await
    }

    async fn view(
        &self,
        query: &Query,
        (tenant, user): (&Tenant, Option<&str>),
        now_unix_ms: u64,
    ) -> Result<UsageView, AdminError> {
        let per = query.get("per").unwrap_or("day");
        let period = Period::read(query, self.zone(), now_unix_ms)?;
        // What is in a stream only would be missing.
        self.operations.store().fold().await?;
        let labels = if per == "month" {
            period.months()
        } else {
            period.labels.clone()
        };
        let mut data = match Sums::read(query, user)? {
            Sums::One(aspect, value) => self.sums_of(tenant, &labels, (aspect, value)).await?,
            Sums::Each(aspect, first) => {
                self.each_of(tenant, &labels, (aspect, first.as_deref()))
                    .await?
            }
        };
        if per == "total" {
            data = together(data, &period.whole());
        }
        if data.len() > ROWS_MAX {
            return Err(AdminError::Invalid(format!(
                "more than {ROWS_MAX} rows: ask for a shorter time, or per=month or per=total"
            )));
        }
        let mut totals = Totals::default();
        for row in &data {
            totals.add(&row.totals);
        }
        Ok(UsageView {
            from: period.from.to_string(),
            to: period.to.to_string(),
            by: query.get("by").map(str::to_owned),
            currency: self.currency().to_owned(),
            data,
            totals,
        })
    }

    /// One row for each period.
    pub(super) async fn sums_of(
        &self,
        tenant: &Tenant,
        labels: &[String],
        (aspect, value): (Aspect, String),
    ) -> Result<Vec<UsageRow>, AdminError> {
        let mut rows = Vec::with_capacity(labels.len());
        for labels in labels.chunks(SUMS_MAX) {
            let keys = labels.iter().map(|label| SumKey {
                tenant: tenant.clone(),
                period: label.clone(),
                aspect,
                value: value.clone(),
            });
            let sums = self
                .operations
                .store()
                .sums(&keys.collect::<Vec<_>>())
                .await?;
            rows.extend(labels.iter().zip(sums).map(|(label, totals)| UsageRow {
                period: label.clone(),
                value: None,
                totals,
            }));
        }
        Ok(rows)
    }

    async fn each_of(
        &self,
        tenant: &Tenant,
        labels: &[String],
        (aspect, first): (Aspect, Option<&str>),
    ) -> Result<Vec<UsageRow>, AdminError> {
        let mut rows = Vec::new();
        for label in labels {
            let of = Breakdown {
                tenant: tenant.clone(),
                period: label.clone(),
                aspect,
                first: first.map(str::to_owned),
                limit: ROWS_MAX + 1,
            };
            let found = self.operations.store().breakdown(&of).await?;
            rows.extend(found.into_iter().map(|(value, totals)| {
                let second = first.and_then(|first| second_of(&value, first));
                UsageRow {
                    period: label.clone(),
                    value: Some(second.unwrap_or(&value).to_owned()),
                    totals,
                }
            }));
            if rows.len() > BROUGHT_MAX {
                break;
            }
        }
        Ok(rows)
    }

    async fn records(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let query = at.query;
        let format = query.get("format");
        let period = Period::read(query, self.zone(), at.asked.now_unix_ms)?;
        let (from_ms, to_ms) = period.moments();
        let tier = query.get("tier").and_then(|name| name.parse().ok());
        let wanted = RecordQuery {
            from_ms,
            to_ms,
            user: query.get("user").map(UserId::new),
            key: query.get("key").map(key_of),
            model: query.get("model").map(str::to_owned),
            tier,
            node: query.get("node").map(NodeId::new),
            after: query.cursor()?,
            limit: query.limit()?,
            ..RecordQuery::of(tenant(query)?)
        };
        let page = self.operations.store().records(&wanted).await;
        let page = page.map_err(|error| match error {
            StoreError::Corrupt(_) if wanted.after.is_some() => bad_cursor(),
            other @ (StoreError::Corrupt(_)
            | StoreError::Unavailable(_)
            | StoreError::Overloaded
            | StoreError::InUse(_)) => other.into(),
        })?;
        let entries: Vec<LedgerEntry> = page
            .entries
            .into_iter()
            .filter(|entry| period.holds(entry))
            .collect();
        let next = page.next.map(|next| sealed(&next));
        if format == Some("csv") {
            let mut answer = csv(record_lines(&entries));
            if let Some(next) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
                answer.headers.insert("x-next-cursor", next);
            }
            return Ok(answer);
        }
        Answer::ok(&Page {
            data: entries,
            next_cursor: next,
        })
    }

    async fn audit(&self, at: &At<'_>) -> Result<Answer, AdminError> {
        let limit = at.query.limit()?;
        let after = match at.query.cursor()? {
            None => 0,
            Some(text) => text.parse().map_err(|_| bad_cursor())?,
        };
        let mut lines = self.operations.store().audit(after, limit + 1).await?;
        let more = lines.len() > limit;
        lines.truncate(limit);
        let next = lines.last().filter(|_| more);
        let next = next.map(|last| sealed(&last.seq.to_string()));
        Answer::ok(&Page {
            data: lines,
            next_cursor: next,
        })
    }

    async fn verify(&self) -> Result<Answer, AdminError> {
        let store = self.operations.store();
        let (mut last, mut lines, mut broken_at) = (None, 0, None);
        // By position and not by number, so that a number that was left out shows.
        loop {
            let some = store.audit(lines, LINES_A_CALL).await?;
            let is_last = some.len() < LINES_A_CALL;
            for line in some {
                lines += 1;
                if broken_at.is_none() && !line.follows(last.as_ref()) {
                    broken_at = Some(line.seq);
                }
                lines = lines.max(line.seq);
                last = Some(line);
            }
            if is_last {
                break;
            }
        }
        Answer::ok(&AuditCheck {
            lines,
            is_whole: broken_at.is_none(),
            broken_at,
            head: last.map_or_else(|| GENESIS.to_owned(), |last| last.hash),
        })
    }
}

/// The rows of all periods, those of one value together.
fn together(rows: Vec<UsageRow>, period: &str) -> Vec<UsageRow> {
    let mut all = std::collections::BTreeMap::<Option<String>, Totals>::new();
    for row in rows {
        all.entry(row.value).or_default().add(&row.totals);
    }
    let row = |(value, totals)| UsageRow {
        period: period.to_owned(),
        value,
        totals,
    };
    all.into_iter().map(row).collect()
}

/// The key that is meant; what can be no key's name has used nothing.
fn key_of(text: &str) -> KeyId {
    operations::key_id(text).unwrap_or_else(|_| KeyId::new(text))
}

fn tenant(query: &Query) -> Result<Tenant, AdminError> {
    let Some(name) = query.get("tenant") else {
        return Ok(Tenant::default());
    };
    name.parse()
        .map_err(|error| AdminError::Invalid(format!("tenant is {name:?}: {error}")))
}

/// Lines as RFC 4180 has them.
fn csv(lines: Vec<Vec<String>>) -> Answer {
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line.iter().map(|cell| quoted(cell)).collect();
        text.push_str(&cells.join(","));
        text.push_str("\r\n");
    }
    let mut headers = http::HeaderMap::new();
    headers.insert(CONTENT_TYPE, CSV);
    headers.insert(
        http::header::CACHE_CONTROL,
        HeaderValue::from_static("no-store"),
    );
    Answer {
        status: http::StatusCode::OK,
        headers,
        body: text.into(),
    }
}

/// A cell; what a spreadsheet would take for a formula is made a text.
fn quoted(cell: &str) -> String {
    let formula = cell.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let cell = if formula {
        format!("'{cell}")
    } else {
        cell.to_owned()
    };
    if cell.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", cell.replace('"', "\"\""));
    }
    cell
}

const FIGURES: [&str; ledger::FIGURES] = [
    "requests",
    "failed",
    "tokens_in",
    "tokens_out",
    "tokens_cached",
    "tokens_reasoning",
    "media_items",
    "media_bytes",
    "micros",
    "cloud_micros",
    "millijoules",
    "ms",
];

fn usage_lines(view: &UsageView) -> Vec<Vec<String>> {
    let mut head = vec![
        "period".to_owned(),
        view.by.clone().unwrap_or("value".into()),
    ];
    head.extend(FIGURES.map(str::to_owned));
    let rows = view.data.iter().map(|row| {
        let mut line = vec![row.period.clone(), row.value.clone().unwrap_or_default()];
        line.extend(row.totals.to_row().map(|figure| figure.to_string()));
        line
    });
    std::iter::once(head).chain(rows).collect()
}

fn record_lines(entries: &[LedgerEntry]) -> Vec<Vec<String>> {
    let head = [
        "at",
        "day",
        "request_id",
        "user",
        "key",
        "route",
        "tier",
        "model",
        "node",
        "outcome",
    ];
    let mut head: Vec<String> = head.map(str::to_owned).to_vec();
    let figures = FIGURES.iter().skip(2);
    head.extend(figures.map(|&name| name.to_owned()));
    let rows = entries.iter().map(|entry| {
        let at = i64::try_from(entry.at_unix_ms).unwrap_or(i64::MAX);
        let at = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
        let text = |id: Option<&str>| id.unwrap_or_default().to_owned();
        let mut line = vec![
            at.to_string(),
            entry.day.to_string(),
            entry.request_id.to_string(),
            entry.user_id.to_string(),
            text(entry.key.as_ref().map(KeyId::as_str)),
            entry.route.clone(),
            text(entry.tier.map(Tier::as_str)),
            text(entry.model.as_deref()),
            text(entry.node.as_ref().map(NodeId::as_str)),
            entry.outcome.as_str().to_owned(),
        ];
        let figures = entry.totals().to_row();
        line.extend(figures.iter().skip(2).map(ToString::to_string));
        line
    });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_listed_over_the_end_of_a_month() {
        let labels = day_labels("2026-02-27".parse().unwrap(), "2026-03-01".parse().unwrap());
        assert_eq!(labels, ["2026-02-27", "2026-02-28", "2026-03-01"]);
    }

    #[test]
    fn a_cell_cannot_become_a_formula_or_a_second_cell() {
        assert_eq!(quoted("=HYPERLINK(\"x\")"), "\"'=HYPERLINK(\"\"x\"\")\"");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("tiny"), "tiny");
    }
}
