//! `agent`: from flags and files to a running agent.

use super::error::Error;
use crate::agent;
use crate::config::{Config, DEFAULT_FILE, Facts, Flags, LogFormat};
use std::io;
use std::path::{Path, PathBuf};

/// Largest configuration file, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Resolves the configuration and runs the agent until it is told to stop.
pub(super) fn agent(flags: &Flags) -> Result<i32, Error> {
    let path = flags.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let text = read_config(&path, flags.config.is_some())?;
    let facts = Facts { hostname: hostname() };
    let (config, warnings) = Config::resolve(flags, text.as_deref(), &facts).map_err(|error| {
        let failed = Error::caused("cannot use the configuration", &error);
        if text.is_some() { failed.hint(format!("the file is {}", path.display())) } else { failed }
    })?;
    log_to_stderr(&config);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    agent::run(config).map_err(|error| Error::caused("the agent failed", &error))?;
    Ok(0)
}

/// Sets up the log: one line an event on standard error, without colours and, below journald, without the time that
/// journald adds itself.
fn log_to_stderr(config: &Config) {
    // klog's scale: 4 is "debug level verbosity", 6 shows every request.
    let level = match config.verbosity {
        0..=3 => tracing::Level::INFO,
        4..=5 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    let log =
        tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_ansi(false).with_target(false);
    // An error says that a subscriber is set already: then that one is meant.
    let _ = match (config.log_format, std::env::var_os("JOURNAL_STREAM")) {
        (LogFormat::Json, _) => log.json().flatten_event(true).try_init(),
        (LogFormat::Text, Some(_)) => log.without_time().try_init(),
        (LogFormat::Text, None) => log.try_init(),
    };
}

/// The text of the configuration file. Only a file that nobody asked for may be missing.
fn read_config(path: &Path, is_asked_for: bool) -> Result<Option<String>, Error> {
    let failed = |why: String| Error::new(format!("cannot read the configuration file {}", path.display()), why);
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_CONFIG => return Err(failed("larger than 1 MiB".to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_asked_for => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| failed(error.to_string()))
}

/// Host name as the kernel reports it.
pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_was_asked_for_must_exist() {
        let path = Path::new("/nonexistent/config.yaml");
        assert_eq!(read_config(path, false), Ok(None));
        assert!(read_config(path, true).is_err());
    }
}
