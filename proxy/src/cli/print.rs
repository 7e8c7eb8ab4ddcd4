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

/// `17 B`, `1.5 KiB`, `3.2 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of a unit, so that no figure goes through a float.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while tenths >= 10_240 {
        let Some(next) = units.next() else { break };
        unit = Some(next);
        tenths /= 1024;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, unit.unwrap_or(&"KiB"))
}

/// A span of seconds as people say it: `12 s`, `3 min`, `5 h`, `2 d`.
pub(super) fn span(secs: f64) -> String {
    let (value, unit) = match secs {
        secs if secs < 120.0 => (secs, "s"),
        secs if secs < 7_200.0 => (secs / 60.0, "min"),
        secs if secs < 172_800.0 => (secs / 3_600.0, "h"),
        secs => (secs / 86_400.0, "d"),
    };
    format!("{:.0} {unit}", value.floor())
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
    fn bytes_and_spans_are_said_in_the_unit_that_fits() {
        for (count, want) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (1_536, "1.5 KiB"),
            (1_048_576, "1.0 MiB"),
            (3_435_973_836, "3.1 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(count), want);
        }
        for (secs, want) in [
            (0.4, "0 s"),
            (119.9, "119 s"),
            (120.0, "2 min"),
            (7_200.0, "2 h"),
            (172_800.0, "2 d"),
        ] {
            assert_eq!(span(secs), want);
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
