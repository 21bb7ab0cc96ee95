//! `cargo xtask fuzz`: libFuzzer on the stable compiler. The coverage pass is a flag of LLVM, so neither a nightly
//! toolchain nor cargo-fuzz is needed.

use crate::{debian, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The targets: a file each. A new one needs its file and its `[[bin]]` in `tests/fuzz/Cargo.toml`; seeds are welcome.
const TARGETS: &str = "tests/fuzz/fuzz_targets";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// As cargo-fuzz asks of the compiler, without a sanitizer (they need a nightly compiler): the code is safe Rust, so
/// findings are panics, overflows, endless loops and memory hogs.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// Where the targets keep their files: in memory, for they write some thousand a second. Gone afterwards, as libFuzzer
/// gives them no chance to clean up.
struct Arena(PathBuf);

impl Arena {
    fn new() -> Result<Arena> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("coracle-fuzz-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Arena(path))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

fn targets() -> Result<Vec<String>> {
    let dir = shell::root().join(TARGETS);
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Prints the targets.
pub fn list() -> Result<()> {
    println!("{}", targets()?.join("\n"));
    Ok(())
}

pub fn run(target: &str, seconds: u64) -> Result<()> {
    let targets = targets()?;
    if !targets.iter().any(|known| known == target) {
        bail!("no such fuzz target: {target} (there are {})", targets.join(", "));
    }
    debian::install(&[debian::BUILD])?;
    let dir = shell::root().join("tests/fuzz");
    shell::step(
        shell::cargo()
            .args(["build", "--release", "--target", TRIPLE, "--bin", target, "--manifest-path"])
            .arg(dir.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(dir.join("target"))
            .env("RUSTFLAGS", FLAGS),
    )?;
    let corpus = dir.join("corpus").join(target);
    let artifacts = dir.join("artifacts").join(target);
    for path in [&corpus, &artifacts] {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    }
    // Words of the format, where chance would take too long to find them.
    let words = Some(dir.join("dictionaries").join(format!("{target}.dict"))).filter(|words| words.is_file());
    let arena = Arena::new()?;
    let mut command = Command::new(dir.join("target").join(TRIPLE).join("release").join(target));
    // A target without seeds starts from nothing.
    let seeds = Some(dir.join("seeds").join(target)).filter(|seeds| seeds.is_dir());
    command
        .env("TMPDIR", &arena.0)
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=20", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1"])
        .args(words.map(|words| format!("-dict={}", words.display())))
        .arg(corpus)
        .args(seeds);
    shell::step(&mut command)
}
