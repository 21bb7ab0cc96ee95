//! Ages as kubectl prints them. Pure.

use jiff::Timestamp;

/// Time from `then` to `now` in at most two units, as kubectl: `5s`, `3m2s`, `2d4h`.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    human(now.duration_since(then).as_secs())
}

/// As [`age`]; `<unknown>` when there is no time.
pub(crate) fn age_or_unknown(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".to_owned(), |then| age(then, now))
}

/// Seconds in kubectl's units (`duration.HumanDuration` of apimachinery).
pub(crate) fn human(seconds: i64) -> String {
    let two = |a: i64, unit: char, b: i64, smaller: char| match b {
        0 => format!("{a}{unit}"),
        _ => format!("{a}{unit}{b}{smaller}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        // A second of difference between two clocks is nothing to shout about.
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, 'd', hours % 24, 'h'),
        () if days < 2 * 365 => format!("{days}d"),
        () if days < 8 * 365 => two(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

/// Bytes as image tools print them: three digits, decimal units.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 || value >= 99.95 => 0,
        _ if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_kubectl() {
        const M: i64 = 60;
        const H: i64 = 3600;
        const D: i64 = 86400;
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (2 * M, "2m"),
            (3 * M + 2, "3m2s"),
            (10 * M, "10m"),
            (179 * M, "179m"),
            (3 * H, "3h"),
            (7 * H + 59 * M, "7h59m"),
            (8 * H, "8h"),
            (47 * H, "47h"),
            (2 * D, "2d"),
            (2 * D + 4 * H, "2d4h"),
            (8 * D + 4 * H, "8d"),
            (729 * D, "729d"),
            (2 * 365 * D, "2y"),
            (3 * 365 * D + 5 * D, "3y5d"),
            (8 * 365 * D + 5 * D, "8y"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (12_345_678, "12.3MB"),
            (999_600, "1.00MB"),
            (955 << 20, "1.00GB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }
}
