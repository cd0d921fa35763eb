//! Texts that name a place on a network or a machine, and times.

use std::time::Duration;

/// The longest path that a unix socket can be bound to.
pub(crate) const UNIX_PATH_BYTES_MAX: usize = 107;

/// Returns what is wrong with a `host:port`; port 0 only where one may be chosen.
pub(crate) fn socket(text: &str, any_port: bool) -> Result<(), String> {
    let wrong = |why: &str| {
        Err(format!(
            "{text:?} is not an address of the form host:port: {why}"
        ))
    };
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("it has no port");
    };
    if host.is_empty() {
        return wrong("it has no host");
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return wrong("an IPv6 address must be in brackets, as in [::1]:80");
    }
    if host.contains(char::is_whitespace) || host.contains(char::is_control) {
        return wrong("a host has no spaces");
    }
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return wrong("the port is not a number");
    }
    match port.parse::<u16>() {
        Ok(0) if !any_port => wrong("port 0 is none"),
        Ok(_) => Ok(()),
        Err(_) => wrong("a port is at most 65535"),
    }
}

/// Returns what is wrong with the path of a unix socket.
pub(crate) fn unix(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} is not an absolute path"));
    }
    // The variables that tell of it could not be: systemd leaves out what has them.
    if text.chars().any(char::is_control) {
        return Err(format!("{text:?} has control characters"));
    }
    if text.len() > UNIX_PATH_BYTES_MAX {
        return Err(format!(
            "{text:?} has {} bytes, and a socket's path has at most {UNIX_PATH_BYTES_MAX}",
            text.len()
        ));
    }
    Ok(())
}

/// The longest wait that can be asked for: a year is a mistake already.
const DURATION_MAX: Duration = Duration::from_hours(24 * 365);

/// Returns a time such as `90s`, `5m`, `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 90s, 5m or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let (unit_ms, length) = if rest.starts_with("ms") {
            (1, 2)
        } else if rest.starts_with('s') {
            (1_000, 1)
        } else if rest.starts_with('m') {
            (60_000, 1)
        } else if rest.starts_with('h') {
            (3_600_000, 1)
        } else {
            return Err(wrong());
        };
        rest = &rest[length..];
        let part = number.checked_mul(unit_ms).map(Duration::from_millis);
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= DURATION_MAX)
            .ok_or_else(|| format!("{text:?} is more than a year"))?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for right in ["127.0.0.1:80", "[::1]:5432", "db.example.net:65535"] {
            assert_eq!(socket(right, false), Ok(()), "{right}");
        }
        for wrong in [
            "",
            ":80",
            "::1:80",
            "host",
            "host:",
            "host:65536",
            "host:0",
            "a b:1",
        ] {
            assert!(socket(wrong, false).is_err(), "{wrong}");
        }
        assert_eq!(socket("127.0.0.1:0", true), Ok(()));
        assert_eq!(unix(&format!("/{}", "x".repeat(106))), Ok(()));
        assert!(unix(&format!("/{}", "x".repeat(107))).is_err());
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in [
            "",
            "5",
            "m",
            "5 m",
            "-5m",
            "1y",
            "99999999999999999h",
            "9000h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
