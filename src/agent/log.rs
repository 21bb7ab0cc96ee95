//! The agent's own log, on standard error.

use crate::config::{Config, LogFormat};
use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;

/// Start logging as configured: klog's verbosity (2 is the kubelet's default: transitions; from 4 on debugging, from 6 on
/// everything), as text or JSON. Under systemd the journal adds the time itself.
pub fn init(config: &Config) {
    let level = match config.verbosity {
        0..4 => LevelFilter::INFO,
        4..6 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(config.verbosity >= 4)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    // It only fails when a subscriber is set already (tests).
    let _ = match (config.log_format, journal) {
        (LogFormat::Json, _) => builder.json().flatten_event(true).try_init(),
        (LogFormat::Text, true) => builder.without_time().try_init(),
        (LogFormat::Text, false) => builder.try_init(),
    };
}
