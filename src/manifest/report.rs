//! Collects the problems of one document and finds the line of each.

use super::tree::{Node, Place};
use super::{Problem, Severity, join};

/// Most problems that are told of one document.
pub(super) const MOST: usize = 100;

/// The problems of one document.
pub(super) struct Report<'a> {
    document: &'a Node,
    prefix: String,
    problems: Vec<Problem>,
    /// Fields that could not be decoded: what is said about their stand-in values would mislead.
    undecoded: Vec<String>,
    pod: Option<(String, String)>,
}

impl<'a> Report<'a> {
    /// For a document whose fields have paths below `prefix` (empty for a document of its own).
    pub(super) fn new(document: &'a Node, prefix: &str) -> Report<'a> {
        Report { document, prefix: prefix.to_owned(), problems: Vec::new(), undecoded: Vec::new(), pod: None }
    }

    /// From now on the problems are known to be those of this pod (also the earlier ones).
    pub(super) fn concerns(&mut self, pod: (String, String)) {
        self.pod = Some(pod);
    }

    /// Whether there is an error so far.
    pub(super) fn failed(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Whether this very field has an error so far.
    pub(super) fn has_error(&self, field: &str) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error && problem.field == field)
    }

    /// Whether this field or one inside it has an error so far.
    pub(super) fn has_error_within(&self, field: &str) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error && is_within(&problem.field, field))
    }

    pub(super) fn error(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.look_up(field.into(), reason.into(), Severity::Error);
    }

    pub(super) fn warning(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.look_up(field.into(), reason.into(), Severity::Warning);
    }

    /// `Required value`, with a detail unless that is empty.
    pub(super) fn required(&mut self, field: impl Into<String>, detail: &str) {
        let reason = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        self.error(field, reason);
    }

    /// `Invalid value: "x": detail`.
    pub(super) fn invalid(&mut self, field: impl Into<String>, value: &str, detail: &str) {
        self.error(field, format!("Invalid value: {value:?}: {detail}"));
    }

    /// `Invalid value: 7: detail`.
    pub(super) fn invalid_number(&mut self, field: impl Into<String>, value: impl Into<i64>, detail: &str) {
        self.error(field, format!("Invalid value: {}: {detail}", value.into()));
    }

    /// `Unsupported value: "x": supported values: "a", "b"`.
    pub(super) fn unsupported(&mut self, field: impl Into<String>, value: &str, supported: &[&str]) {
        let list = supported.iter().map(|value| format!("\"{value}\"")).collect::<Vec<_>>().join(", ");
        self.error(field, format!("Unsupported value: {value:?}: supported values: {list}"));
    }

    /// `Duplicate value: "x"`.
    pub(super) fn duplicate(&mut self, field: impl Into<String>, value: &str) {
        self.error(field, format!("Duplicate value: {value:?}"));
    }

    /// A field that could not be decoded, at a place of the document that is known exactly.
    pub(super) fn undecodable(&mut self, place: Place, field: String, reason: String) {
        self.push(place, field.clone(), reason, Severity::Error);
        self.undecoded.push(field);
    }

    /// A warning at a place of the document that is known exactly.
    pub(super) fn warning_at(&mut self, place: Place, field: String, reason: String) {
        self.push(place, field, reason, Severity::Warning);
    }

    fn look_up(&mut self, field: String, reason: String, severity: Severity) {
        // To find a place goes through all fields beside it.
        if !self.is_full(severity) {
            let place = self.document.find(&field);
            self.push(place, field, reason, severity);
        }
    }

    /// Whether a problem would not be taken. Nobody reads more, and finding repetitions among very many takes very long; but
    /// there is always room for the first error.
    fn is_full(&self, severity: Severity) -> bool {
        self.problems.len() >= MOST && (severity != Severity::Error || self.failed())
    }

    fn push(&mut self, place: Place, field: String, reason: String, severity: Severity) {
        if self.is_full(severity) {
            return;
        }
        if severity == Severity::Error && self.undecoded.iter().any(|undecoded| is_within(&field, undecoded)) {
            return;
        }
        if self.problems.iter().any(|known| known.field == field && known.reason == reason) {
            return;
        }
        self.problems.truncate(MOST - 1);
        let (line, column) = (Some(place.line), Some(place.column));
        self.problems.push(Problem { line, column, field, reason, severity, pod: None });
    }

    /// The problems in the order of the document's lines.
    pub(super) fn finish(self) -> Vec<Problem> {
        let Report { mut problems, prefix, pod, .. } = self;
        for problem in &mut problems {
            problem.field = join(&prefix, &problem.field);
            problem.pod.clone_from(&pod);
        }
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems
    }
}

fn is_within(field: &str, ancestor: &str) -> bool {
    field.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// An error of a whole manifest.
pub(super) fn document_error(place: Option<Place>, reason: impl Into<String>) -> Problem {
    Problem {
        line: place.map(|place| place.line),
        column: place.map(|place| place.column),
        field: String::new(),
        reason: reason.into(),
        severity: Severity::Error,
        pod: None,
    }
}
