//! Times of the calendar, as RFC 3339 writes them.

/// Returns a time in seconds since 1970 as `2026-11-22T15:04:05Z`.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date, counted in eras of 400 years from the first of March of year 0.
    let days = days + 719_468;
    let era = days / 146_097;
    let day = days % 146_097;
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest % 3_600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Returns a time such as `2026-11-22T15:04:05Z` or `2026-11-22T16:04:05+01:00` in seconds since
/// 1970; parts of a second are cut off. Nothing where it is none, or before 1970.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        let all = digits.iter().all(u8::is_ascii_digit);
        all.then(|| digits.iter().fold(0, |n, it| n * 10 + i64::from(it - b'0')))
    };
    let is = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|it| allowed.contains(it));
    let marks = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    let (year, month, date) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let mut zone = 19;
    if is(zone, b".") {
        let digits = bytes[20..].iter().take_while(|it| it.is_ascii_digit());
        zone = match digits.count() {
            0 => return None,
            count => 20 + count,
        };
    }
    let offset = match bytes.get(zone)? {
        b'Z' | b'z' if bytes.len() == zone + 1 => 0,
        sign @ (b'+' | b'-') if bytes.len() == zone + 6 && is(zone + 3, b":") => {
            let (hours, minutes) = (number(zone + 1, zone + 3)?, number(zone + 4, zone + 6)?);
            let right = hours < 24 && minutes < 60;
            let offset = right.then_some(hours * 3_600 + minutes * 60)?;
            if *sign == b'+' { offset } else { -offset }
        }
        _ => return None,
    };
    let leap = year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
    let days_in_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let right = marks
        && (1..=12).contains(&month)
        && (1..=days_in_month).contains(&date)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !right {
        return None;
    }
    // The other way round: a date to days since 1970.
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let era = year.div_euclid(400);
    let year = year.rem_euclid(400);
    let day = (153 * month + 2) / 5 + date - 1 + year * 365 + year / 4 - year / 100;
    let days = era * 146_097 + day - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    u64::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::{parse, rfc3339};

    #[test]
    fn seconds_become_dates_and_come_back() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_359_845, "2026-11-22T15:04:05Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
            assert_eq!(parse(text), Some(seconds));
        }
        for day in 0..60_000 {
            assert_eq!(parse(&rfc3339(day * 86_400 + 7)), Some(day * 86_400 + 7));
        }
        let same = ["2026-11-22T16:04:05+01:00", "2026-11-22t13:34:05.999-01:30"];
        assert!(same.iter().all(|it| parse(it) == Some(1_795_359_845)));
        for wrong in [
            "",
            "2026-11-22",
            "2026-11-22T15:04:05",
            "2026-11-22T15:04:05.Z",
            "2026-13-22T15:04:05Z",
            "2026-02-29T15:04:05Z",
            "2026-11-22T24:04:05Z",
            "2026-11-22T15:04:05+1:00",
            "2026-11-22T15:04:05Zz",
            "1969-12-31T23:59:59Z",
            "720h",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
