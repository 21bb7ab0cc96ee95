//! The syntax of names, labels and annotations.

use super::Report;

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

const LABEL_LENGTH: usize = 63;
pub(super) const SUBDOMAIN_LENGTH: usize = 253;

/// A DNS label (RFC 1123).
pub(super) fn label(field: &str, value: &str, report: &mut Report<'_>) {
    if value.len() > LABEL_LENGTH {
        report.invalid(field, value, &too_long(LABEL_LENGTH));
    }
    if !is_label(value) {
        report.invalid(field, value, LABEL_RULE);
    }
}

/// A DNS subdomain (RFC 1123).
pub(super) fn subdomain(field: &str, value: &str, report: &mut Report<'_>) {
    if value.len() > SUBDOMAIN_LENGTH {
        report.invalid(field, value, &too_long(SUBDOMAIN_LENGTH));
    }
    if !is_subdomain(value) {
        report.invalid(field, value, SUBDOMAIN_RULE);
    }
}

/// A key of labels or annotations, `prefix/name`; `checked` is the form of `key` that has to follow the rules.
pub(super) fn qualified(field: &str, key: &str, checked: &str, report: &mut Report<'_>) {
    qualified_at(&format!("{field}[{key}]"), key, checked, report);
}

/// A field whose value is like a key of labels (`example.com/name`).
pub(super) fn qualified_value(field: &str, value: &str, report: &mut Report<'_>) {
    qualified_at(field, value, value, report);
}

fn qualified_at(field: &str, key: &str, checked: &str, report: &mut Report<'_>) {
    let name = match checked.split_once('/') {
        Some((prefix, name)) => {
            if prefix.is_empty() {
                report.invalid(field, key, "prefix part must be non-empty");
            } else if prefix.len() > SUBDOMAIN_LENGTH || !is_subdomain(prefix) {
                report.invalid(field, key, &format!("prefix part {SUBDOMAIN_RULE}"));
            }
            name
        }
        None => checked,
    };
    if name.is_empty() {
        report.invalid(field, key, "name part must be non-empty");
    } else if name.len() > LABEL_LENGTH {
        report.invalid(field, key, &format!("name part {}", too_long(LABEL_LENGTH)));
    } else if !is_qualified(name) {
        report.invalid(field, key, QUALIFIED_RULE);
    }
}

/// The value of a label.
pub(super) fn label_value(field: &str, key: &str, value: &str, report: &mut Report<'_>) {
    self::value(&format!("{field}[{key}]"), value, report);
}

/// A field that is compared with values of labels.
pub(super) fn value(field: &str, value: &str, report: &mut Report<'_>) {
    if value.len() > LABEL_LENGTH {
        report.invalid(field, value, &too_long(LABEL_LENGTH));
    }
    if !value.is_empty() && !is_qualified(value) {
        report.invalid(field, value, VALUE_RULE);
    }
}

/// The name of a port, as an error's text.
pub(super) fn port_name(value: &str) -> Result<(), &'static str> {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if value.len() > 15 {
        Err("must be no more than 15 characters")
    } else if !value.bytes().all(|byte| lower(byte) || byte == b'-') {
        Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    } else if !value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        Err("must contain at least one letter (a-z)")
    } else if value.contains("--") {
        Err("must not contain consecutive hyphens")
    } else if value.starts_with('-') || value.ends_with('-') {
        Err("must not begin or end with a hyphen")
    } else {
        Ok(())
    }
}

pub(super) fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn is_label(value: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    framed(value, inner, |byte| inner(byte) || byte == b'-')
}

fn is_subdomain(value: &str) -> bool {
    value.split('.').all(is_label)
}

fn is_qualified(value: &str) -> bool {
    framed(value, |byte| byte.is_ascii_alphanumeric(), |byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Not empty, made of `inner` bytes, with `edge` bytes at both ends.
fn framed(value: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = value.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => edge(*first) && edge(*last) && bytes.iter().all(|byte| inner(*byte)),
        _ => false,
    }
}
