//! Results on standard output: lines, tables, JSON, dates. What others named is printed without control characters.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::CliError;

/// Space between two columns.
const GAP: usize = 2;
const DAY_SECS: i64 = 86_400;

/// Prints a line.
pub(super) fn line(text: &str) -> Result<(), CliError> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Prints JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| CliError::Failed(error.to_string()))?;
    line(&text)
}

/// Prints text that ends its own lines.
pub(super) fn raw(text: &str) -> Result<(), CliError> {
    Ok(write!(std::io::stdout().lock(), "{text}")?)
}

/// The figures of a plan that are set: `text_per_day 100, tokens_per_day 5000`.
pub(super) fn figures(plan: &impl Serialize) -> String {
    let Ok(serde_json::Value::Object(figures)) = serde_json::to_value(plan) else {
        return String::new();
    };
    let set: Vec<String> = figures
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if set.is_empty() {
        return "-".to_owned();
    }
    set.join(", ")
}

/// Millionths of a currency as people write them: `1.234567`.
pub(super) fn money(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// Columns as wide as their widest cell.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|&name| name.to_owned()).collect()],
        }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        let clean = |cell: String| cell.replace(char::is_control, "?");
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, row) in self.rows.iter().enumerate() {
            let mut text = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = self.width(column) + GAP;
                write!(text, "{cell:<width$}")?;
            }
            if index > 0 {
                writeln!(f)?;
            }
            f.write_str(text.trim_end())?;
        }
        Ok(())
    }
}

/// Now.
pub(super) fn now_unix() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A date, or a word where there is none.
pub(super) fn date_or(unix: Option<i64>, word: &str) -> String {
    unix.map_or_else(|| word.to_owned(), date)
}

/// `2026-11-21 02:45Z`.
pub(super) fn date(unix: i64) -> String {
    let (year, month, day) = civil(unix.div_euclid(DAY_SECS));
    let minutes = unix.rem_euclid(DAY_SECS) / 60;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}Z",
        minutes / 60,
        minutes % 60
    )
}

/// Days since 1970-01-01 to the proleptic Gregorian calendar, counting years from March so that leap days come last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01 00:00Z"),
            (951_782_399, "2000-02-28 23:59Z"),
            (951_782_400, "2000-02-29 00:00Z"),
            (1_795_229_100, "2026-11-21 02:45Z"),
            (-60, "1969-12-31 23:59Z"),
        ];
        for (unix, want) in cases {
            assert_eq!(date(unix), want);
        }
    }

    #[test]
    fn columns_line_up_and_control_characters_are_gone() {
        let mut table = Table::new(&["A", "LONG HEAD", "Z"]);
        table.row(vec!["wide cell".into(), "x".into(), "a\u{1b}[2Jb\n".into()]);
        assert_eq!(
            table.to_string(),
            "A          LONG HEAD  Z\nwide cell  x          a?[2Jb?"
        );
    }
}
