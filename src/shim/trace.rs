//! What libcontainer's processes log as errors: the only place where they name the file or mount at fault. They are
//! sent as [`Report::Detail`] lines over a pipe, which works from inside the container as well.

use super::start::Report;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// From now on error events of this process, and of those cloned from it, go to `pipe`.
pub(super) fn send_errors_to(pipe: OwnedFd) {
    // Fails only when one was set already: then details stay out of messages, nothing else.
    let _ = tracing::subscriber::set_global_default(Errors(File::from(pipe)));
}

struct Errors(File);

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        // A line of at most PIPE_BUF bytes is written in one piece.
        let text: String = format!("{}{}", text.message, text.fields).chars().take(700).collect();
        if let Ok(mut line) = serde_json::to_vec(&Report::Detail { text }) {
            line.push(b'\n');
            let _ = (&self.0).write_all(&line);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
