//! `/logs/…`: the machine's own logs, files and folders below `/var/log`, as Go's file server shows them.
//!
//! Nothing leads out of that folder, no link either: a pod that may write there could else have any file of the machine
//! shown. Only plain files are opened.

use super::super::reply::{self, Failure, Reply, blocking};
use super::super::route::encode;
use crate::sys::fs::Dir;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{HeaderValue, LOCATION};
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use tokio::sync::mpsc;

/// The machine's logs.
const ROOT: &str = "/var/log";
/// Bytes a piece.
const PIECE: usize = 32 * 1024;
/// Most entries of a folder that are shown.
const ENTRIES: usize = 10_000;

/// What was found.
enum Found {
    File(File),
    /// Names, folders with a slash at the end.
    Folder(Vec<String>),
}

/// A file's content, or what is in a folder. `is_folder`: whether the path ends in a slash.
pub(super) async fn serve(path: Vec<String>, is_folder: bool) -> Result<Reply, Failure> {
    let last = path.last().cloned();
    match blocking(move || find(Path::new(ROOT), &path)).await? {
        Ok(Found::File(file)) if is_folder => {
            drop(file);
            Err(Failure::not_found("404 page not found"))
        }
        Ok(Found::File(file)) => Ok(copy(file)),
        // As Go: links in it are meant from below it.
        Ok(Found::Folder(_)) if !is_folder => moved(&last.unwrap_or_else(|| "logs".to_owned())),
        Ok(Found::Folder(names)) => {
            Ok(reply::with_type(StatusCode::OK, "text/html; charset=utf-8", reply::bytes(page(&names))))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::PermissionDenied => Err(Failure::forbidden("403 Forbidden")),
            _ => Err(Failure::not_found("404 page not found")),
        },
    }
}

/// Blocks.
fn find(root: &Path, path: &[String]) -> io::Result<Found> {
    let root = Dir::open(root)?;
    if path.is_empty() {
        return folder(&root);
    }
    let path = path.join("/");
    // Nothing is opened by this: what it is can be told first.
    let handle = root.find_beneath(Path::new(&path))?;
    match Dir::of(handle.as_fd()) {
        Ok(dir) => folder(&dir),
        Err(_) => root.open_beneath(OsStr::new(&path)).map(Found::File),
    }
}

fn folder(dir: &Dir) -> io::Result<Found> {
    let mut names: Vec<String> = dir
        .entries()?
        .into_iter()
        .filter_map(|(name, kind)| {
            let name = name.into_string().ok()?;
            Some(if kind == FileType::Directory { format!("{name}/") } else { name })
        })
        .take(ENTRIES)
        .collect();
    names.sort();
    Ok(Found::Folder(names))
}

/// Links to what is in a folder. Names are others': nothing in them is taken for more than text.
fn page(names: &[String]) -> String {
    let line = |name: &String| {
        let (stem, slash) = name.strip_suffix('/').map_or((name.as_str(), ""), |stem| (stem, "/"));
        format!("<a href=\"./{}{slash}\">{}</a>\n", encode(stem), escaped(name))
    };
    format!(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{}</pre>\n",
        names.iter().map(line).collect::<String>()
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
}

fn moved(last: &str) -> Result<Reply, Failure> {
    let mut reply = reply::with_type(StatusCode::MOVED_PERMANENTLY, "text/plain", reply::bytes(Bytes::new()));
    let to =
        HeaderValue::try_from(format!("{}/", encode(last))).map_err(|_| Failure::not_found("404 page not found"))?;
    reply.headers_mut().insert(LOCATION, to);
    Ok(reply)
}

/// As much as there is now; what grows meanwhile has an end, too.
fn copy(mut file: File) -> Reply {
    let (sender, receiver) = mpsc::channel(2);
    let mut left = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    tokio::spawn(async move {
        while left > 0 {
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
                let count = file.read(&mut piece);
                (
                    file,
                    count.map(|count| {
                        piece.truncate(count);
                        piece
                    }),
                )
            });
            let Ok((returned, read)) = read.await else { return };
            file = returned;
            match read {
                Ok(piece) if piece.is_empty() => return,
                Ok(piece) => {
                    left = left.saturating_sub(piece.len() as u64);
                    if sender.send(Ok(Bytes::from(piece))).await.is_err() {
                        return;
                    }
                }
                Err(error) => return drop(sender.send(Err(error)).await),
            }
        }
    });
    reply::with_type(StatusCode::OK, "text/plain; charset=utf-8", reply::stream(receiver))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn text(found: io::Result<Found>) -> io::Result<String> {
        match found? {
            Found::File(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                Ok(text)
            }
            Found::Folder(names) => Ok(names.join(" ")),
        }
    }

    #[test]
    fn nothing_leads_out_of_the_folder_of_logs() {
        let dir = std::env::temp_dir().join(format!("coracle-logs-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let root = dir.join("log");
        fs::create_dir_all(root.join("pods")).unwrap();
        fs::write(dir.join("secret"), "secret").unwrap();
        fs::write(root.join("pods/a.log"), "one").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("etc")).unwrap();
        std::os::unix::fs::symlink("pods/a.log", root.join("in")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let found = |path: &[&str]| text(find(&root, &path.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>()));
        assert_eq!(found(&[]).unwrap(), "etc in out pipe pods/");
        assert_eq!(found(&["pods", "a.log"]).unwrap(), "one");
        assert_eq!(found(&["in"]).unwrap(), "one");
        for path in
            [&["out"][..], &["etc"], &["etc", "hostname"], &["none"], &["pods", "..", "..", "secret"], &["pipe"]]
        {
            assert!(found(path).is_err(), "{path:?}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn names_are_text_and_no_more() {
        let page = page(&["<b>\"x'".to_owned(), "a b/".to_owned()]);
        assert!(page.contains("<a href=\"./%3Cb%3E%22x%27\">&lt;b&gt;&#34;x&#39;</a>"), "{page}");
        assert!(page.contains("<a href=\"./a%20b/\">a b/</a>"), "{page}");
    }
}
