//! `cargo xtask tidy`: rules that the compiler does not know. The layer table in the documentation of `src/lib.rs` is
//! the single source of truth: a module may use those above it, and *pure* ones may not touch the outside world.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file, in lines.
const MAX_LINES: usize = 1000;

/// What a pure module must not name outside its tests, and why.
const IMPURE: &[(&str, &str)] = &[
    ("std::fs", "reads or writes files"),
    ("std::process", "starts or ends processes"),
    ("std::net::Tcp", "opens sockets"),
    ("std::net::Udp", "opens sockets"),
    ("std::net::ToSocketAddrs", "asks the resolver"),
    ("std::os::unix::net", "opens sockets"),
    ("std::env", "depends on the environment"),
    ("std::thread", "waits or starts threads"),
    ("SystemTime", "reads a clock"),
    ("Instant::now", "reads a clock"),
    ("Timestamp::now", "reads a clock"),
    ("Zoned::now", "reads a clock"),
    ("tokio::", "is asynchronous"),
    ("rustix::", "calls the kernel"),
    ("nix::", "calls the kernel"),
    ("libc::", "calls the kernel"),
];

/// Who may read the wall clock outside its tests, and what for. All others are told the time by `src/sys/clock.rs`, which
/// nobody sets.
const WALL_CLOCK: &[(&str, &str)] = &[
    ("src/sys/clock.rs", "it is the clock"),
    ("src/source/look.rs", "compares with the times of files"),
    ("src/source/url/local.rs", "compares with the times of files"),
    ("src/image/dropin.rs", "compares with the times of files"),
    ("src/image/leftovers.rs", "compares with the times of files"),
    ("src/image/trust/mod.rs", "compares with the times of files"),
];
/// How the wall clock is read.
const READS_WALL_CLOCK: &[&str] = &["SystemTime::now", "Timestamp::now", "Zoned::now"];

/// A row of the layer table.
#[derive(Debug, PartialEq)]
struct Layer {
    name: String,
    pure: bool,
}

/// A source file, with comments, strings and test modules blanked out (line breaks stay).
struct Source {
    path: String,
    layer: String,
    code: String,
    lines: usize,
}

pub fn run() -> Result<()> {
    let found = problems(&shell::root())?;
    if found.is_empty() {
        return Ok(());
    }
    for problem in &found {
        eprintln!("{problem}");
    }
    bail!("tidy: {} problem(s)", found.len());
}

/// All violations in the repository at `root`, as `path:line: what`.
fn problems(root: &Path) -> Result<Vec<String>> {
    let lib = fs::read_to_string(root.join("src/lib.rs")).context("src/lib.rs")?;
    let layers = layers(&lib);
    if layers.len() < 10 {
        bail!("src/lib.rs: the layer table was not found (only {} rows)", layers.len());
    }
    let mut found = Vec::new();
    for source in sources(root)? {
        check(&source, &layers, &mut found);
    }
    machine_paths(root, &mut found)?;
    Ok(found)
}

/// Rows `| [`name`] | kind | … |` of the table in the crate's documentation.
fn layers(lib: &str) -> Vec<Layer> {
    let rows = lib.lines().filter_map(|l| l.strip_prefix("//! | [`"));
    rows.filter_map(|row| {
        let (name, rest) = row.split_once("`]")?;
        let kind = rest.split('|').nth(1)?.trim();
        Some(Layer { name: name.to_owned(), pure: kind == "pure" })
    })
    .collect()
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let src = root.join("src");
    let mut files = Vec::new();
    collect(&src, &mut files)?;
    let texts: Vec<(PathBuf, String)> = files
        .into_iter()
        .map(|p| fs::read_to_string(&p).map(|t| (p.clone(), t)).with_context(|| p.display().to_string()))
        .collect::<Result<_>>()?;
    // `#[cfg(test)] mod tests;` puts a whole file (or folder) out of the product.
    let mut tests = Vec::new();
    for (path, text) in &texts {
        tests.extend(test_modules(&blank(text)).into_iter().map(|name| module_folder(path).join(name)));
    }
    let mut all = Vec::new();
    for (path, text) in &texts {
        let stem = path.with_extension("");
        // Or, with a `#[path]`, a file beside the tested one.
        let beside = stem.file_name().is_some_and(|name| name.to_string_lossy().ends_with("_tests"));
        let test = beside || tests.iter().any(|t| stem == *t || stem.starts_with(t));
        let relative = path.strip_prefix(&src).unwrap_or(path);
        let first = relative.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned());
        let layer = first.unwrap_or_default().trim_end_matches(".rs").to_owned();
        let code = if test { String::new() } else { without_tests(&blank(text)) };
        let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
        all.push(Source { path: shown, layer, code, lines: text.lines().count() });
    }
    Ok(all)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The folder that holds the submodules of the module in `path`.
fn module_folder(path: &Path) -> PathBuf {
    match path.file_stem().and_then(|s| s.to_str()) {
        Some("mod" | "lib" | "main") => path.parent().unwrap_or(path).to_owned(),
        _ => path.with_extension(""),
    }
}

fn check(source: &Source, layers: &[Layer], found: &mut Vec<String>) {
    let position = |name: &str| layers.iter().position(|l| l.name == name);
    let Source { path, layer, code, lines } = source;
    if *lines > MAX_LINES {
        found.push(format!("{path}:{MAX_LINES}: {lines} lines; a file holds one idea in at most {MAX_LINES}"));
    }
    let entry = ["lib", "main"].contains(&layer.as_str());
    let own = position(layer);
    if own.is_none() && !entry {
        found.push(format!("{path}:1: module `{layer}` is not in the layer table of src/lib.rs"));
    }
    for (line, text) in code.lines().enumerate().map(|(i, t)| (i + 1, t)) {
        if layer != "sys" && words(text).any(|w| w == "unsafe") {
            found.push(format!("{path}:{line}: unsafe code belongs to src/sys"));
        }
        let pure = own.is_some_and(|i| layers[i].pure);
        if !pure && !WALL_CLOCK.iter().any(|(file, _)| file == path) {
            for name in READS_WALL_CLOCK.iter().filter(|name| names(text, name)) {
                found.push(format!("{path}:{line}: `{name}` reads a clock that is set; src/sys/clock.rs has the time"));
            }
        }
        if pure {
            for (name, why) in IMPURE.iter().filter(|(name, _)| names(text, name)) {
                found.push(format!("{path}:{line}: `{layer}` is pure, but `{name}` {why}"));
            }
        }
    }
    let Some(own) = own else { return };
    for (line, target) in uses(code) {
        match position(&target) {
            Some(other) if other > own => {
                found.push(format!("{path}:{line}: `{layer}` uses `{target}`, which is below it in the layer table"));
            }
            _ => {}
        }
    }
}

/// Whether `text` names `path`, not as part of a longer word.
fn names(text: &str, path: &str) -> bool {
    text.match_indices(path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + path.len()..].chars().next();
        let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !word(before) && (path.ends_with(':') || !word(after) || path.ends_with("Tcp") || path.ends_with("Udp"))
    })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// Modules of this crate that the code names by `crate::x` or `crate::{x, y::z}`, with line numbers.
fn uses(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(heads(group).into_iter().map(|name| (line, name)));
        } else {
            found.extend(words(rest).next().map(|w| (line, w.to_owned())));
        }
    }
    found
}

/// First segments of the entries of a `{a, b::{c, d}}` group whose brace is open already.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                found.extend(words(&group[start..at]).next().map(str::to_owned));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Replaces comments, strings and character literals by spaces; line breaks stay.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    while i < chars.len() {
        let end = if at(i) == '/' && at(i + 1) == '/' {
            (i..chars.len()).find(|j| at(*j) == '\n').unwrap_or(chars.len())
        } else if at(i) == '/' && at(i + 1) == '*' {
            block_comment(&chars, i)
        } else if at(i) == 'r' && (at(i + 1) == '"' || at(i + 1) == '#') && !is_word(at(i.wrapping_sub(1))) {
            raw_string(&chars, i).unwrap_or(i)
        } else if at(i) == '"' {
            quoted(&chars, i, '"')
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            quoted(&chars, i, '\'')
        } else {
            i
        };
        if end == i {
            out.push(at(i));
            i += 1;
        } else {
            out.extend(chars[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            i = end;
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn raw_string(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes =
        |i: &usize| chars[*i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    Some((open + 1..chars.len()).find(closes).map_or(chars.len(), |i| i + 1 + hashes))
}

fn quoted(chars: &[char], start: usize, mark: char) -> usize {
    let mut i = start + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            c if c == mark => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// Names of modules declared as `#[cfg(test)] mod name;`.
fn test_modules(code: &str) -> Vec<String> {
    let after = |(at, mark): (usize, &str)| {
        let item = &code[at + mark.len()..];
        let semicolon = item.find(';')?;
        let head: Vec<&str> = words(&item[..semicolon]).collect();
        let clean = !item[..semicolon].contains('{');
        head.iter().position(|w| *w == "mod").filter(|_| clean).and_then(|i| head.get(i + 1)).map(|s| s.to_string())
    };
    code.match_indices("#[cfg(test)]").filter_map(after).collect()
}

/// Blanks every item that follows `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(at) = out.find("#[cfg(test)]") {
        let mut depth = 0;
        let end = out[at..].char_indices().find_map(|(i, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            ((c == '}' || c == ';') && depth == 0).then_some(at + i + 1)
        });
        let end = end.unwrap_or(out.len());
        let blanked: String = out[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..end, &blanked);
    }
    out
}

/// Tracked files must not name folders of the machine they were written on.
fn machine_paths(root: &Path, found: &mut Vec<String>) -> Result<()> {
    let mut command = Command::new("git");
    command.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    // A source archive has no history, and was checked when it was made.
    let Ok(list) = shell::read(&mut command) else { return Ok(()) };
    let home = std::env::var("HOME").unwrap_or_default();
    let here = root.display().to_string();
    let deep = |path: &String| Path::new(path).components().count() > 2;
    let marks: Vec<String> = [here, home].into_iter().filter(deep).collect();
    for file in list.split('\0').filter(|f| !f.is_empty()) {
        let Ok(text) = fs::read_to_string(root.join(file)) else { continue };
        for (line, content) in text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|m| names(content, m)) {
                found.push(format!("{file}:{}: names a folder of this machine ({mark})", line + 1));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "//! | Module | Kind | What |\n//! |---|---|---|\n//! | [`pod`] | pure | x |\n//! | [`sys`] | blocking | y |\n//! | [`agent`] | async | z |\n";

    fn check_text(layer: &str, text: &str) -> Vec<String> {
        let code = without_tests(&blank(text));
        let source = Source { path: "f".into(), layer: layer.into(), code, lines: text.lines().count() };
        let mut found = Vec::new();
        check(&source, &layers(LIB), &mut found);
        found
    }

    #[test]
    fn the_repository_is_tidy() {
        let found = problems(&shell::root()).expect("readable");
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[test]
    fn the_table_is_read() {
        let expected = [("pod", true), ("sys", false), ("agent", false)];
        assert_eq!(layers(LIB), expected.map(|(name, pure)| Layer { name: name.into(), pure }));
    }

    #[test]
    fn a_wrong_edge_is_found_in_every_spelling() {
        for text in [
            "use crate::agent;",
            "use crate::agent::Node;",
            "pub use crate::{pod, agent::Node};",
            "use crate::{\n    pod::{Spec, Plan},\n    agent,\n};",
            "fn f() { crate::agent::run() }",
        ] {
            assert_eq!(check_text("sys", text).len(), 1, "{text}");
            assert_eq!(check_text("agent", text), Vec::<String>::new(), "{text}");
        }
        assert_eq!(
            check_text("sys", "use crate::pod; use crate::{pod::agent}; // crate::agent\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn pure_modules_are_kept_from_the_world() {
        for text in ["std::fs::read(p)", "use std::net::TcpStream;", "use std::time::SystemTime;", "Instant::now()"] {
            assert_eq!(check_text("pod", text).len(), 1, "{text}");
            assert_eq!(check_text("sys", text), Vec::<String>::new(), "{text}");
        }
        let in_tests = "use std::net::IpAddr;\n#[cfg(test)]\nmod tests {\n    fn f() { std::fs::read(\"{\"); }\n}\n";
        assert_eq!(check_text("pod", in_tests), Vec::<String>::new());
        let after_tests = format!("{in_tests}fn g() {{ std::fs::read(1) }}\n");
        assert_eq!(check_text("pod", &after_tests), ["f:6: `pod` is pure, but `std::fs` reads or writes files"]);
    }

    #[test]
    fn the_wall_clock_is_read_in_a_few_places_only() {
        for text in ["let t = jiff::Timestamp::now();", "SystemTime::now().elapsed()", "Zoned::now()"] {
            assert_eq!(check_text("agent", text).len(), 1, "{text}");
            assert_eq!(check_text("pod", text).len(), 1, "{text}");
            let (path, layer, code) = (WALL_CLOCK[0].0.into(), "sys".into(), text.into());
            let mut found = Vec::new();
            check(&Source { path, layer, code, lines: 1 }, &layers(LIB), &mut found);
            assert_eq!(found, Vec::<String>::new(), "{text}");
        }
        let in_tests = "#[cfg(test)]\nmod tests {\n    fn f() { SystemTime::now(); }\n}\n";
        assert_eq!(check_text("agent", in_tests), Vec::<String>::new());
    }

    #[test]
    fn unsafe_code_long_files_and_strange_modules_are_found() {
        assert_eq!(check_text("agent", "unsafe { f() }").len(), 1);
        assert_eq!(check_text("agent", "#![allow(unsafe_code)] // unsafe\nlet s = \"unsafe\";"), Vec::<String>::new());
        assert_eq!(check_text("agent", &"\n".repeat(MAX_LINES + 1)).len(), 1);
        assert_eq!(check_text("stranger", "").len(), 1);
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        let text = "a /* x /* y */ z */ b 'c' '\\'' \"s\\\" t\" r#\"raw \" \"# 'life e // end\nf";
        let words: Vec<String> = blank(text).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["a", "b", "'life", "e", "f"]);
    }

    #[test]
    fn test_modules_in_files_are_known() {
        assert_eq!(test_modules("#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod inline { use x; }\n"), ["tests"]);
        assert_eq!(module_folder(Path::new("src/pod/mod.rs")).join("tests"), Path::new("src/pod/tests"));
        assert_eq!(module_folder(Path::new("src/config.rs")).join("tests"), Path::new("src/config/tests"));
    }
}
