//! Running other programs, and saying so.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cargo that started this task.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What cargo set for this program is not meant for the builds it starts.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Where `cargo build --profile` puts the binary.
pub fn binary(profile: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).unwrap_or_else(|| root().join("target"));
    target.join("x86_64-unknown-linux-gnu").join(profile).join("coracle")
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Prints the command, runs it to its end, prints how long it took; failure is an error.
pub fn step(command: &mut Command) -> Result<()> {
    let text = line(command);
    println!("\x1b[1m$ {text}\x1b[0m");
    let begin = Instant::now();
    let status = command.status().with_context(|| format!("cannot run `{text}`"))?;
    println!("  ({:.1} s)", begin.elapsed().as_secs_f64());
    if !status.success() {
        bail!("`{text}` failed: {status}");
    }
    Ok(())
}

/// The standard output of a command that must work.
pub fn read(command: &mut Command) -> Result<String> {
    let text = line(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{text}`"))?;
    if !out.status.success() {
        bail!("`{text}` failed: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Waits until `done` says so.
pub fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !done()? {
        if Instant::now() > end {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The number after `User:` and the like in `/proc/self/status`: 0 for root.
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:")).unwrap_or_default();
    line.split_whitespace().nth(1) == Some("0")
}

/// The release build of coracle, or the binary that `CORACLE_TEST_BINARY` names.
pub fn release() -> Result<PathBuf> {
    if let Ok(binary) = std::env::var("CORACLE_TEST_BINARY") {
        return Ok(PathBuf::from(binary));
    }
    step(cargo().args(["build", "--release", "--package", "coracle"]))?;
    Ok(binary("release"))
}
