//! The text format of Prometheus (version 0.0.4), which metrics-server and every scraper read. Pure.

use jiff::Timestamp;
use std::fmt::Write as _;

/// Its content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What kind of numbers a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// Metrics being written. A family without samples is not written.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    /// Name, help and kind of a family of which nothing is written yet.
    pending: Option<(&'static str, &'static str, Kind)>,
    name: &'static str,
}

impl Text {
    /// Begins a family: what follows are its samples.
    pub fn family(&mut self, name: &'static str, help: &'static str, kind: Kind) -> &mut Text {
        self.pending = Some((name, help, kind));
        self.name = name;
        self
    }

    /// A sample with these labels; one without a number is left out. `time`: when it was so, if not just now.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: Option<f64>, time: Option<Timestamp>) -> &mut Text {
        let Some(value) = value else { return self };
        if let Some((name, help, kind)) = self.pending.take() {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        self.out.push_str(self.name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.out.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.out, "{label}=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = match value {
            _ if value.is_nan() => write!(self.out, " NaN"),
            _ if value.is_infinite() => write!(self.out, " {}Inf", if value > 0.0 { '+' } else { '-' }),
            _ => write!(self.out, " {value}"),
        };
        if let Some(time) = time {
            let _ = write!(self.out, " {}", time.as_millisecond());
        }
        self.out.push('\n');
        self
    }

    /// All that was written.
    #[must_use]
    pub fn finish(self) -> String {
        self.out
    }
}

/// A count as these formats have it.
pub(super) fn float(value: u64) -> f64 {
    value as f64
}

/// Nanoseconds in seconds.
pub(super) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// A point in time in seconds since 1970.
pub(super) fn instant(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn families_have_a_head_and_samples_escaped_labels() {
        let mut text = Text::default();
        text.family("a_total", "What a is.", Kind::Counter).sample(&[("x", "a\"b\\c\nd"), ("y", "")], Some(1.5), None);
        text.family("none", "Nothing.", Kind::Gauge).sample(&[], None, None);
        let time = Timestamp::from_millisecond(1_700_000_000_123).expect("a time");
        text.family("b", "What b is.", Kind::Gauge).sample(&[], Some(f64::INFINITY), Some(time)).sample(
            &[],
            Some(3e15),
            None,
        );
        let expected = "# HELP a_total What a is.\n# TYPE a_total counter\na_total{x=\"a\\\"b\\\\c\\nd\",y=\"\"} 1.5\n\
                        # HELP b What b is.\n# TYPE b gauge\nb +Inf 1700000000123\nb 3000000000000000\n";
        assert_eq!(text.finish(), expected);
    }

    proptest! {
        #[test]
        fn a_label_never_leaves_its_line(value in "\\PC{0,40}|[\\n\\\\\"]{0,9}") {
            let mut text = Text::default();
            text.family("a", "A.", Kind::Gauge).sample(&[("x", &value)], Some(1.0), None);
            let text = text.finish();
            prop_assert_eq!(text.split('\n').count(), 4);
            let is_closed = text.ends_with("\"} 1\n");
            prop_assert!(is_closed, "{}", text);
        }
    }
}
