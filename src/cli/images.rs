//! `image ls`, `import`, `export`, `rm` and `prune`.

use super::client::{Client, Stream, decode};
use super::error::Error;
use super::table::printable;
use super::{print, print_bytes};
use crate::server::encode;
#[cfg(test)]
use crate::server::types::PrunedImage;
use crate::server::types::{ImageList, Pruned, RemovedImage};
use hyper::Method;
use hyper::body::Bytes;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Bytes of standard input that are sent at a time.
const PIECE: usize = 256 << 10;

/// Runs `image import`.
pub(super) async fn import(client: &Client, archives: &[String]) -> Result<i32, Error> {
    for archive in archives {
        if archive == "-" {
            print_imported(&send_stdin(client).await?)?;
            continue;
        }
        // The agent has another working directory.
        let path =
            std::path::absolute(archive).map_err(|error| Error::new(format!("cannot import {archive}"), error))?;
        if let Err(error) = std::fs::metadata(&path) {
            return Err(Error::new(format!("cannot import {archive}"), error));
        }
        let path =
            path.to_str().ok_or_else(|| Error::new(format!("cannot import {archive}"), "the path is not UTF-8"))?;
        let path = format!("/coracle/v1/images/import?path={}", encode(path));
        let answer = client.try_send(Method::POST, &path, Bytes::new()).await;
        let answer = answer.map_err(|(error, status)| match status.message {
            message if message.is_empty() => error,
            message => Error::new(format!("cannot import {archive}"), message),
        })?;
        print_imported(&decode(&answer)?)?;
    }
    Ok(0)
}

fn print_imported(list: &ImageList) -> Result<(), Error> {
    for image in &list.items {
        let name = image.names.first().unwrap_or(&image.id);
        print(&format!("{} imported ({})\n", printable(name), super::age::size(image.size)))?;
    }
    Ok(())
}

/// Sends standard input to the agent, which never has it in a file.
async fn send_stdin(client: &Client) -> Result<ImageList, Error> {
    let (sender, receiver) = mpsc::channel(2);
    // A thread of its own: the runtime would wait for a read that never ends.
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        loop {
            let mut piece = vec![0; PIECE];
            let read = match stdin.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Bytes::from(piece))
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let last = read.is_err();
            if sender.blocking_send(read).is_err() || last {
                return;
            }
        }
    });
    let answer = client.upload("/coracle/v1/images/import", receiver).await;
    let answer = answer.map_err(|(error, status)| match status.message {
        message if message.is_empty() => error,
        message => Error::new("cannot import -", message),
    })?;
    decode(&answer)
}

/// How an exported archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Compress {
    None,
    Gzip,
    Zstd,
}

impl Compress {
    /// As the name of the file says.
    fn of(output: Option<&Path>) -> Compress {
        match output.and_then(Path::extension).and_then(std::ffi::OsStr::to_str) {
            Some("gz" | "tgz") => Compress::Gzip,
            Some("zst" | "tzst") => Compress::Zstd,
            _ => Compress::None,
        }
    }
}

/// Runs `image export`: to `output`, or to standard output.
pub(super) async fn export(
    client: &Client,
    names: &[String],
    output: Option<&Path>,
    compress: Option<Compress>,
) -> Result<i32, Error> {
    let output = output.filter(|path| *path != Path::new("-"));
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(Error::usage("an archive is not for a terminal: name a file with -o, or redirect the output"));
    }
    let compress = match compress.unwrap_or_else(|| Compress::of(output)) {
        Compress::None => "none",
        Compress::Gzip => "gzip",
        Compress::Zstd => "zstd",
    };
    let names: String = names.iter().map(|name| format!("&name={}", encode(name))).collect();
    let mut archive = client.stream(&format!("/coracle/v1/images/export?compress={compress}{names}")).await?;
    let Some(output) = output else {
        while let Some(piece) = archive.piece().await? {
            print_bytes(&piece)?;
        }
        return Ok(0);
    };
    let target = Target::create(output)?;
    // Dropped in every other case, the file is gone.
    tokio::select! {
        written = target.fill(&mut archive) => written?,
        _ = tokio::signal::ctrl_c() => return Ok(130),
    }
    target.finish()?;
    Ok(0)
}

/// What an archive is written to. A file: one beside it until it is whole. Anything else (a device, a pipe) is written to as
/// it is, and stays what it is.
struct Target {
    path: PathBuf,
    part: Option<PathBuf>,
    file: std::fs::File,
}

impl Target {
    fn create(path: &Path) -> Result<Target, Error> {
        let failed = |why: &dyn std::fmt::Display| Error::new(format!("cannot write {}", path.display()), why);
        // A link stays, too: what it leads to is written.
        let path = match std::fs::canonicalize(path) {
            Ok(there) => there,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(failed(&error)),
        };
        if path.is_dir() {
            return Err(failed(&"it is a folder"));
        }
        if path.exists() && !path.is_file() {
            let file = std::fs::File::options().write(true).open(&path).map_err(|error| failed(&error))?;
            return Ok(Target { path, part: None, file });
        }
        let name = path.file_name().ok_or_else(|| failed(&"not a file name"))?;
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(beside);
        let file = std::fs::File::create_new(&part).map_err(|error| failed(&error))?;
        Ok(Target { path, part: Some(part), file })
    }

    async fn fill(&self, archive: &mut Stream) -> Result<(), Error> {
        while let Some(piece) = archive.piece().await? {
            (&self.file).write_all(&piece).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Error> {
        let Some(part) = &self.part else { return Ok(()) };
        self.file.sync_all().map_err(|error| self.failed(&error))?;
        std::fs::rename(part, &self.path).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::new(format!("cannot write {}", self.path.display()), error)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // Gone already when it was finished.
            let _ = std::fs::remove_file(part);
        }
    }
}

/// Runs `image rm`. What is wrong with one image does not keep the others.
pub(super) async fn remove(client: &Client, names: &[String], force: bool) -> Result<i32, Error> {
    let mut code = 0;
    for name in names {
        match remove_one(client, name, force).await {
            Ok(removed) => print(&removal(name, &removed))?,
            // One error is told by who called.
            Err(error) if names.len() == 1 => return Err(error),
            Err(error) => {
                eprintln!("{error}");
                code = error.code();
            }
        }
    }
    Ok(code)
}

async fn remove_one(client: &Client, name: &str, force: bool) -> Result<RemovedImage, Error> {
    let path = format!("/coracle/v1/images?name={}&force={force}", encode(name));
    let answer = client.try_send(Method::DELETE, &path, Bytes::new()).await;
    let answer = answer.map_err(|(error, status)| match status.message {
        message if message.is_empty() => error,
        message => Error::new(format!("cannot remove {name}"), message),
    })?;
    decode(&answer)
}

/// What a removal did, in a line.
fn removal(asked: &str, removed: &RemovedImage) -> String {
    let names = |names: &[String]| names.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    let gone = match removed.names.is_empty() {
        true => printable(asked).to_string(),
        false => names(&removed.names),
    };
    match removed.left.is_empty() {
        true => format!("{gone} removed ({} freed)\n", super::age::size(removed.freed)),
        false => format!("{gone} removed, the image stays as {}\n", names(&removed.left)),
    }
}

/// Runs `image prune`.
pub(super) async fn prune(client: &Client, all: bool, dry_run: bool) -> Result<i32, Error> {
    let path = format!("/coracle/v1/images/prune?all={all}&dryRun={dry_run}");
    let answer = client.try_send(Method::POST, &path, Bytes::new()).await;
    let answer = answer.map_err(|(error, status)| match status.message {
        message if message.is_empty() => error,
        message => Error::new("cannot prune images", message),
    })?;
    print(&pruning(&decode(&answer)?))?;
    Ok(0)
}

fn pruning(pruned: &Pruned) -> String {
    let (done, total) = match pruned.dry_run {
        true => ("would be removed", "would be freed"),
        false => ("removed", "freed"),
    };
    let mut text = String::new();
    for image in &pruned.items {
        let names = match &image.names[..] {
            [] => printable(&image.id).to_string(),
            names => names.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", "),
        };
        text += &format!("{names} {done} ({})\n", super::age::size(image.size));
    }
    text + &format!("{} {total}\n", super::age::size(pruned.freed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_tell_what_is_gone_and_what_stays() {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        let removed = |names: &[&str], left: &[&str]| RemovedImage {
            kind: String::new(),
            api_version: String::new(),
            id: "sha256:00".into(),
            names: strings(names),
            left: strings(left),
            freed: 2_100_000,
        };
        let all = [
            removal("a", &removed(&["d/a:1"], &[])),
            removal("0000", &removed(&["d/a:1", "d/a:2"], &[])),
            removal("0000", &removed(&[], &[])),
            removal("a", &removed(&["d/a:1"], &["d/b:1", "d/c:1"])),
        ];
        expect_test::expect![[r"
            d/a:1 removed (2.10MB freed)
            d/a:1, d/a:2 removed (2.10MB freed)
            0000 removed (2.10MB freed)
            d/a:1 removed, the image stays as d/b:1, d/c:1
        "]]
        .assert_eq(&all.concat());
        let item = |names: &[&str]| PrunedImage { id: "sha256:00".into(), names: strings(names), size: 5_000_000 };
        let mut pruned = Pruned {
            kind: String::new(),
            api_version: String::new(),
            items: vec![item(&["d/a:1", "d/a:2"]), item(&[])],
            freed: 7_000_000,
            dry_run: true,
        };
        let first = pruning(&pruned);
        (pruned.dry_run, pruned.items) = (false, Vec::new());
        expect_test::expect![[r"
            d/a:1, d/a:2 would be removed (5.00MB)
            sha256:00 would be removed (5.00MB)
            7.00MB would be freed
            7.00MB freed
        "]]
        .assert_eq(&(first + &pruning(&pruned)));
    }
}
