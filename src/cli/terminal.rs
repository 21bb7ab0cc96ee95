//! The terminal of the person typing: raw while a remote one takes over, as it was afterwards.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, stdin, stdout};

/// Whether standard input is a terminal.
pub(super) fn is_input() -> bool {
    isatty(stdin())
}

/// Whether standard output is a terminal.
pub(super) fn is_output() -> bool {
    isatty(stdout())
}

/// Rows and columns; `None` when there is no terminal.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdin()).or_else(|_| tcgetwinsize(stdout())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Raw mode, until dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Every key goes to the remote side; nothing is echoed or interpreted here.
    pub(super) fn enter() -> io::Result<Raw> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that went away.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}
