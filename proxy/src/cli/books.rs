//! `usage` and `audit ...`

use std::path::Path;

use policy::ledger::LedgerEntry;

use super::CliError;
use super::args::{AuditCommand, Output, UsageAsk};
use super::print::{self, Table};
use super::reach::Reach;
use crate::admin::routes::encoded;
use crate::admin::words::{AuditCheck, Backup, BackupOrder, UsageView};
use crate::store::ledger::AuditRecord;

const USAGE: &str = "/admin/v1/usage";

pub(super) async fn usage(
    reach: &mut Reach,
    mut ask: UsageAsk,
    output: Output,
) -> Result<(), CliError> {
    // People say `--by day` as they say `--by user`.
    let is_time = |by: &String| ["day", "month"].contains(&by.as_str());
    if ask.per.is_none() && ask.by.as_ref().is_some_and(is_time) {
        ask.per = ask.by.take();
    }
    let query = query(&ask);
    let is_csv = ask.csv || ask.format.as_deref() == Some("csv");
    let is_json = output == Output::Json || ask.format.as_deref() == Some("json");
    if ask.records {
        return records(reach, &query, (is_csv, is_json)).await;
    }
    if is_csv {
        let (_, text) = reach.text(&format!("{USAGE}?format=csv{query}")).await?;
        return print::raw(&text);
    }
    let view: UsageView = reach
        .get(&format!("{USAGE}?{}", query.trim_start_matches('&')))
        .await?;
    if is_json {
        return print::json(&view);
    }
    let cost = format!("COST {}", view.currency);
    let cloud = "IN A CLOUD";
    let by = view
        .by
        .clone()
        .unwrap_or_else(|| "-".to_owned())
        .to_uppercase();
    let mut table = Table::new(&[
        "PERIOD", &by, "REQUESTS", "FAILED", "IN", "CACHED", "OUT", &cost, cloud,
    ]);
    let used = view.data.iter().filter(|row| row.totals.requests > 0);
    let all = (view.totals, format!("{}/{}", view.from, view.to));
    let rows = used.map(|row| (row.totals, row.period.clone(), row.value.clone()));
    for (totals, period, value) in rows.chain([(all.0, all.1, Some("all".to_owned()))]) {
        table.row(vec![
            period,
            value.unwrap_or_else(|| "-".to_owned()),
            totals.requests.to_string(),
            totals.failed.to_string(),
            totals.tokens_in.to_string(),
            totals.tokens_cached.to_string(),
            totals.tokens_out.to_string(),
            print::money(totals.micros),
            print::money(totals.cloud_micros),
        ]);
    }
    print::line(&table.to_string())
}

/// `&name=value` for all that was said.
fn query(ask: &UsageAsk) -> String {
    let tier = ask.tier.map(|tier| tier.to_string());
    let parts = [
        ("from", ask.from.as_ref()),
        ("to", ask.to.as_ref()),
        ("per", ask.per.as_ref()),
        ("by", ask.by.as_ref()),
        ("user", ask.user.as_ref()),
        ("key", ask.key.as_ref()),
        ("model", ask.model.as_ref()),
        ("tier", tier.as_ref()),
        ("node", ask.node.as_ref()),
        ("tenant", ask.tenant.as_ref()),
    ];
    let said = parts
        .iter()
        .filter_map(|(name, value)| Some((name, (*value)?)));
    said.flat_map(|(name, value)| ["&", name, "=", &encoded(value)].map(str::to_owned))
        .collect()
}

async fn records(
    reach: &mut Reach,
    query: &str,
    (is_csv, is_json): (bool, bool),
) -> Result<(), CliError> {
    let path = format!("{USAGE}/records");
    if is_csv {
        let mut next = format!("{path}?format=csv&limit=1000{query}");
        loop {
            let (cursor, text) = reach.text(&next).await?;
            print::raw(&text)?;
            let Some(cursor) = cursor else {
                return Ok(());
            };
            next = format!("{path}?format=csv&limit=1000{query}&cursor={cursor}");
        }
    }
    let all: Vec<LedgerEntry> = reach
        .all(&format!("{path}?{}", query.trim_start_matches('&')))
        .await?;
    if is_json {
        return print::json(&all);
    }
    let mut table = Table::new(&["AT", "USER", "KEY", "MODEL", "IN", "OUT", "MS", "OUTCOME"]);
    for entry in &all {
        table.row(vec![
            print::date(i64::try_from(entry.at_unix_ms / 1_000).unwrap_or(i64::MAX)),
            entry.user_id.to_string(),
            entry
                .key
                .as_ref()
                .map_or_else(|| "-".to_owned(), ToString::to_string),
            entry.model.clone().unwrap_or_else(|| "-".to_owned()),
            entry.tokens_in.to_string(),
            entry.tokens_out.to_string(),
            entry.ms.to_string(),
            entry.outcome.as_str().to_owned(),
        ]);
    }
    print::line(&table.to_string())
}

pub(super) async fn backup(reach: &mut Reach, file: &Path, output: Output) -> Result<(), CliError> {
    // The proxy may stand in another folder.
    let file = std::path::absolute(file)?;
    let Some(file) = file.to_str().map(str::to_owned) else {
        return Err(CliError::Failed(format!(
            "{}: the name of the file is no text",
            file.display()
        )));
    };
    let order = BackupOrder { file };
    let copy: Backup = reach
        .send(http::Method::POST, "/admin/v1/backups", Some(&order))
        .await?;
    if output == Output::Json {
        return print::json(&copy);
    }
    print::line(&format!("{}: {} bytes", copy.file, copy.bytes))
}

pub(super) async fn audit(
    reach: &mut Reach,
    command: AuditCommand,
    output: Output,
) -> Result<(), CliError> {
    match command {
        AuditCommand::List => {
            let lines: Vec<AuditRecord> = reach.all("/admin/v1/audit").await?;
            if output == Output::Json {
                return print::json(&lines);
            }
            let mut table = Table::new(&["SEQ", "AT", "WHO", "FROM", "WHAT", "ON"]);
            for line in &lines {
                table.row(vec![
                    line.seq.to_string(),
                    print::date(i64::try_from(line.act.at_unix_ms / 1_000).unwrap_or(i64::MAX)),
                    line.act.actor.clone(),
                    line.act.from.clone(),
                    line.act.action.clone(),
                    line.act.target.clone(),
                ]);
            }
            print::line(&table.to_string())
        }
        AuditCommand::Verify => {
            let check: AuditCheck = reach.get("/admin/v1/audit/verify").await?;
            if output == Output::Json {
                print::json(&check)?;
            } else if check.is_whole {
                print::line(&format!(
                    "whole: {} lines, the last is {}",
                    check.lines, check.head
                ))?;
            }
            match check.broken_at {
                None => Ok(()),
                Some(line) => Err(CliError::Failed(format!(
                    "the audit log is broken at line {line}: it or the line before it was changed or removed"
                ))),
            }
        }
    }
}
