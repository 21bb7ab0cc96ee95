//! Kubernetes quantities (`500m`, `1.5Gi`, `1e3`), exact to the billionth.

use std::cmp::Ordering;
use std::fmt;

const NANOS: i128 = 1_000_000_000;
/// No quantity is larger than 2^63-1 in magnitude; larger ones are capped (as Kubernetes).
const LARGEST: i128 = (i64::MAX as i128) * NANOS;

/// An amount of a resource.
///
/// Finer than a billionth is rounded away from zero, beyond ±(2^63-1) is capped, both as Kubernetes does. Comparison is
/// by amount: `1000m` equals `1`.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The family of suffixes that a quantity was written with, and is written with again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

/// A text that is no quantity. The texts are the API server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Syntax,
    /// A number with a suffix that is none.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::Decimal };

    /// Reads a quantity.
    ///
    /// # Errors
    /// When the text is not a number with one of the suffixes `n u m k M G T P E Ki Mi Gi Ti Pi Ei` or an exponent.
    pub fn parse(text: &str) -> Result<Quantity, Error> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(Error::Syntax);
        }
        let (scale, format) = suffix_of(suffix)?;
        let magnitude = match scale {
            Scale::Ten(exponent) => decimal(whole, fraction, exponent),
            Scale::Two(shift) => binary(whole, fraction, shift),
        };
        let magnitude = magnitude.min(LARGEST);
        Ok(Quantity { nanos: if negative { -magnitude } else { magnitude }, format })
    }

    /// A whole number of units.
    pub fn from_integer(value: i64) -> Quantity {
        Quantity { nanos: i128::from(value) * NANOS, format: Format::Decimal }
    }

    /// The amount in thousandths, rounded up (millicores of a CPU quantity).
    pub fn milli_ceil(&self) -> i128 {
        div_ceil(self.nanos, NANOS / 1000)
    }

    /// The amount in whole units, rounded up (bytes of a memory quantity).
    pub fn ceil(&self) -> i128 {
        div_ceil(self.nanos, NANOS)
    }

    /// The least whole number of `divisor`s that holds this amount (`resourceFieldRef`); `None` for a divisor of 0.
    pub fn div_ceil(&self, divisor: &Quantity) -> Option<i128> {
        (divisor.nanos != 0).then(|| {
            let (quotient, remainder) = (self.nanos / divisor.nanos, self.nanos % divisor.nanos);
            let positive = (self.nanos < 0) == (divisor.nanos < 0);
            quotient + i128::from(remainder != 0 && positive)
        })
    }

    /// Rounded away from zero to thousandths, as Kubernetes stores resource amounts.
    pub fn rounded_to_milli(&self) -> Quantity {
        let milli = NANOS / 1000;
        let magnitude = div_ceil(self.nanos.abs(), milli) * milli;
        Quantity { nanos: if self.nanos < 0 { -magnitude } else { magnitude }, format: self.format }
    }

    /// Both together, written like the first; capped as any quantity.
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let nanos = self.nanos.saturating_add(other.nanos).clamp(-LARGEST, LARGEST);
        Quantity { nanos, format: self.format }
    }

    /// Whether it is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANOS == 0
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix of its family that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // As Kubernetes: small and fractional binary amounts are written with decimal suffixes.
        if self.format == Format::Binary && self.is_integer() && self.nanos.abs() >= 1024 * NANOS {
            let mut number = self.nanos / NANOS;
            let mut suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter();
            let mut suffix = suffixes.next();
            while number % 1024 == 0
                && let Some(next) = suffixes.next()
            {
                (number, suffix) = (number / 1024, Some(next));
            }
            return write!(f, "{number}{}", suffix.unwrap_or(&""));
        }
        let (mut number, mut exponent) = (self.nanos, -9);
        while number % 1000 == 0 && exponent < 18 {
            (number, exponent) = (number / 1000, exponent + 3);
        }
        if self.format == Format::Exponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        write!(f, "{number}{}", SUFFIXES[((exponent + 9) / 3) as usize])
    }
}

enum Scale {
    /// Times 10 to this power.
    Ten(i64),
    /// Times 2 to this power.
    Two(u32),
}

fn suffix_of(suffix: &str) -> Result<(Scale, Format), Error> {
    let decimal = |exponent| Ok((Scale::Ten(exponent), Format::Decimal));
    let binary = |shift| Ok((Scale::Two(shift), Format::Binary));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']);
            if let Some(exponent) = exponent.and_then(|digits| digits.parse::<i32>().ok()) {
                return Ok((Scale::Ten(exponent.into()), Format::Exponent));
            }
            let known = |c: char| c.is_ascii_digit() || "eEinumkKMGTP+-".contains(c);
            Err(if suffix.chars().all(known) { Error::Suffix } else { Error::Syntax })
        }
    }
}

/// `whole.fraction` × 10^exponent in nanos, rounded up; more than [`LARGEST`] when it is too large.
fn decimal(whole: &str, fraction: &str, exponent: i64) -> i128 {
    let digits = || whole.bytes().chain(fraction.bytes()).map(|digit| i128::from(digit - b'0'));
    // The value is all digits as one integer × 10^power.
    let power = exponent + 9 - fraction.len() as i64;
    let total = (whole.len() + fraction.len()) as i64;
    // Digits from here on are below a nano.
    let kept = total.saturating_add(power.min(0));
    let (mut value, mut rest) = (0i128, false);
    for (index, digit) in digits().enumerate() {
        if (index as i64) < kept {
            value = value.saturating_mul(10).saturating_add(digit);
        } else {
            rest |= digit != 0;
        }
    }
    if value != 0 {
        for _ in 0..power.clamp(0, 40) {
            value = value.saturating_mul(10);
        }
    }
    value.saturating_add(rest.into())
}

/// `whole.fraction` × 2^shift in nanos, rounded up; more than [`LARGEST`] when it is too large.
fn binary(whole: &str, fraction: &str, shift: u32) -> i128 {
    let unit = NANOS << shift;
    let units = whole.bytes().fold(0i128, |sum, digit| sum.saturating_mul(10).saturating_add((digit - b'0').into()));
    // From the last digit to the first; rounding up at each step is the same as rounding up once.
    let part = fraction.bytes().rev().fold(0i128, |part, digit| div_ceil(part + i128::from(digit - b'0') * unit, 10));
    units.saturating_mul(unit).saturating_add(part)
}

/// Division by a positive number, rounded towards positive infinity.
fn div_ceil(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).map_or_else(|error| error.to_string(), |quantity| quantity.to_string())
    }

    #[test]
    fn writes_the_canonical_form() {
        for (text, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("+5", "5"),
            ("-1.5", "-1500m"),
            ("1.5Gi", "1536Mi"),
            ("128Mi", "128Mi"),
            ("1024Ki", "1Mi"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("12E2", "1200"),
            ("1E", "1E"),
            ("100e-3", "100e-3"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("1e-30", "1e-9"),
            ("1e30", "9223372036854775807"),
            ("99999999999999999999999999999999999999999999", "9223372036854775807"),
            ("9Ei", "9223372036854775807"),
            ("0.0000000000000000000000000000001Ei", "1n"),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in ["", ".", "-", "x", "1.2.3", "1 Gi", " 1", "1GB!", "ä", "0x10", "1,5", "--1"] {
            assert_eq!(Quantity::parse(text), Err(Error::Syntax), "{text}");
        }
        for text in ["1K", "1Mki", "1mi", "1e", "1e99999999999", "1Kii", "1kk"] {
            assert_eq!(Quantity::parse(text), Err(Error::Suffix), "{text}");
        }
    }

    #[test]
    fn rounds_up() {
        let parse = |text| Quantity::parse(text).unwrap();
        assert_eq!(parse("100m").milli_ceil(), 100);
        assert_eq!(parse("1.0001").milli_ceil(), 1001);
        assert_eq!(parse("100u").milli_ceil(), 1);
        assert_eq!(parse("1500m").ceil(), 2);
        assert_eq!(parse("-1500m").ceil(), -1);
        assert_eq!(parse("64Mi").ceil(), 64 << 20);
        assert_eq!(parse("100u").rounded_to_milli().to_string(), "1m");
        assert_eq!(parse("64Mi").div_ceil(&parse("1Mi")), Some(64));
        assert_eq!(parse("64.5Mi").div_ceil(&parse("1Mi")), Some(65));
        assert_eq!(parse("1").div_ceil(&parse("0")), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn canonical_form_reads_back(text in "[+-]?[0-9]{0,30}\\.?[0-9]{0,30}(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,2}|)") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let again = Quantity::parse(&quantity.to_string()).unwrap();
                prop_assert_eq!(quantity, again);
                prop_assert_eq!(quantity.to_string(), again.to_string());
            }
        }

        #[test]
        fn agrees_with_integer_arithmetic(number in 0i64..1_000_000_000_000, shift in 0usize..4) {
            let suffix = ["", "Ki", "Mi", "Gi"][shift];
            let expected = (i128::from(number) << (10 * shift)).min(i64::MAX.into());
            prop_assert_eq!(Quantity::parse(&format!("{number}{suffix}")).unwrap().ceil(), expected);
        }
    }
}
