//! `strftime_now` for chat templates: the date in UTC, in C's notation. Knows the proleptic Gregorian calendar and English names.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY_SECS: u64 = 86_400;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// 1970-01-01 was a Thursday.
const WEEKDAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

struct Moment {
    year: u64,
    month: usize,
    day: u64,
    weekday: &'static str,
    year_day: u64,
    second_of_day: u64,
}

/// Writes `now` as `format` says; unknown fields stay as they are.
pub(super) fn format_utc(format: &str, now: SystemTime) -> String {
    let secs = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let moment = Moment::at(secs);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('-') => match letters.next() {
                Some(field) => out.push_str(moment.field(field).trim_start_matches('0')),
                None => out.push_str("%-"),
            },
            Some(field) => out.push_str(&moment.field(field)),
            None => out.push('%'),
        }
    }
    out
}

impl Moment {
    fn at(secs: u64) -> Self {
        let days = secs / DAY_SECS;
        let weekday = usize::try_from(days % 7).unwrap_or(0);
        let (year, year_day) = year_of(days);
        let (month, day) = month_of(year, year_day);
        Self {
            year,
            month,
            day,
            weekday: WEEKDAYS.get(weekday).copied().unwrap_or_default(),
            year_day: year_day + 1,
            second_of_day: secs % DAY_SECS,
        }
    }

    fn field(&self, field: char) -> String {
        let name = MONTHS.get(self.month).copied().unwrap_or_default();
        let short = |name: &str| name.chars().take(3).collect::<String>();
        let hour = self.second_of_day / 3600;
        let minute = self.second_of_day / 60 % 60;
        let second = self.second_of_day % 60;
        match field {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month + 1),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => name.to_owned(),
            'b' | 'h' => short(name),
            'A' => self.weekday.to_owned(),
            'a' => short(self.weekday),
            'j' => format!("{:03}", self.year_day),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            unknown => format!("%{unknown}"),
        }
    }
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_of(mut days: u64) -> (u64, u64) {
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            return (year, days);
        }
        days -= length;
        year += 1;
    }
}

/// Month from 0 and day from 1.
fn month_of(year: u64, mut year_day: u64) -> (usize, u64) {
    let february = if is_leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in lengths.into_iter().enumerate() {
        if year_day < length {
            return (month, year_day + 1);
        }
        year_day -= length;
    }
    (11, 31)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(secs: u64, format: &str) -> String {
        format_utc(format, UNIX_EPOCH + Duration::from_secs(secs))
    }

    #[test]
    fn dates_are_written_as_c_writes_them() {
        // `date -u -d @N +FORMAT`
        for (secs, format, want) in [
            (0, "%A %d %B %Y", "Thursday 01 January 1970"),
            (951_782_400, "%Y-%m-%d %j", "2000-02-29 060"),
            (1_795_257_144, "%d %b %Y %H:%M:%S", "21 Nov 2026 10:32:24"),
            (1_795_257_144, "%I %p %a %y", "10 AM Sat 26"),
            (4_107_542_400, "%F %T %-d", "2100-03-01 00:00:00 1"),
            (0, "100%% %Q %", "100% %Q %"),
        ] {
            assert_eq!(at(secs, format), want, "{format} of {secs}");
        }
    }
}
