//! What a person reads when something did not work: `error: <what>: <why>`, then `hint: …`.

use std::fmt;

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    what: String,
    why: String,
    hint: Option<String>,
    code: i32,
}

impl Error {
    /// Something was refused or failed: exit code 1. `why` may be empty.
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Error {
        Error { what: what.into(), why: why.to_string(), hint: None, code: 1 }
    }

    /// The command line makes no sense: exit code 2.
    pub fn usage(what: impl Into<String>) -> Error {
        Error { code: 2, ..Error::new(what, "") }
    }

    /// Standard output is closed (`coracle logs | head`): nothing to say, and the exit code of a process that SIGPIPE
    /// ended. Rust ignores that signal, and restoring it would take unsafe code here.
    pub fn broken_pipe() -> Error {
        Error { code: 141, ..Error::new("", "") }
    }

    /// Whether there is something to say.
    pub fn is_quiet(&self) -> bool {
        self.what.is_empty()
    }

    /// With all causes of an error, outermost first.
    pub fn caused(what: impl Into<String>, error: &dyn std::error::Error) -> Error {
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            why = format!("{why}: {cause}");
            source = cause.source();
        }
        Error::new(what, why)
    }

    /// With another exit code.
    #[must_use]
    pub fn with_code(self, code: i32) -> Error {
        Error { code, ..self }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Error {
        Error { hint: Some(hint.into()), ..self }
    }

    /// The exit code.
    pub fn code(&self) -> i32 {
        self.code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
