//! Files in and out of a container, as tar archives over standard input and output: the roles `coracle pack` and `coracle
//! unpack`, which are executed inside the container from this very program. An image needs no tar for that, and what is
//! touched is what the container's user may touch, by the container's own paths.
//!
//! The near side uses the same two functions. There an archive comes from a container and is believed nothing: no links, no
//! way out of the place it goes to, no special modes.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Builder, Entry, EntryType, Header, HeaderMode};

/// Deepest path that is packed: a file system can be as deep as it likes, a stack not.
const MAX_DEPTH: usize = 512;

/// Why files are not copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something about one file.
    #[error("{}: cannot {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The archive cannot be read or written.
    #[error("cannot {what} the archive")]
    Archive {
        /// `read` or `write`.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The archive is not what it should be.
    #[error("the archive is refused: {0}")]
    Refused(String),
}

fn file(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { path: path.to_owned(), what, source }
}

fn archive(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Archive { what, source }
}

/// Writes `path` and all below it to `out`, by its last name. What is neither a file, folder nor link is left out, which
/// `warn` is told. A link named by `path` itself is followed.
///
/// # Errors
/// The first thing that cannot be read or written.
pub fn pack(path: &Path, out: impl Write, warn: &mut dyn FnMut(String)) -> Result<(), Error> {
    let real = fs::canonicalize(path).map_err(file(path, "find it"))?;
    let name = PathBuf::from(path.file_name().or_else(|| real.file_name()).unwrap_or(OsStr::new("root")));
    let mut builder = Builder::new(out);
    let mut left = vec![(real, name, 0)];
    while let Some((path, name, depth)) = left.pop() {
        let meta = match fs::symlink_metadata(&path) {
            // It was there a moment ago.
            Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(file(&path, "look at it"))?,
        };
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(&meta, HeaderMode::Complete);
        let kind = meta.file_type();
        if kind.is_dir() {
            if depth >= MAX_DEPTH {
                return Err(Error::Refused(format!("{} is too deep", path.display())));
            }
            builder.append_data(&mut header, name.join(""), io::empty()).map_err(archive("write"))?;
            let entries = fs::read_dir(&path).map_err(file(&path, "list it"))?;
            let mut below = Vec::new();
            for entry in entries {
                let entry = entry.map_err(file(&path, "list it"))?.file_name();
                below.push((path.join(&entry), name.join(&entry), depth + 1));
            }
            below.sort_by(|a, b| b.0.cmp(&a.0));
            left.append(&mut below);
        } else if kind.is_file() {
            let mut options = OpenOptions::new();
            let opened = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
            let opened = opened.map_err(file(&path, "open it"))?;
            let mut content = Exactly { file: opened, left: meta.len(), short: false };
            builder.append_data(&mut header, &name, &mut content).map_err(archive("write"))?;
            if content.short {
                warn(format!("{} became shorter while it was read: the rest is zeros", path.display()));
            }
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(file(&path, "read the link"))?;
            builder.append_link(&mut header, &name, target).map_err(archive("write"))?;
        } else {
            warn(format!("{} is neither a file nor a folder: it is left out", path.display()));
        }
    }
    builder.into_inner().and_then(|mut out| out.flush()).map_err(archive("write"))
}

/// As many bytes of a file as the archive says it has, whatever happens to it meanwhile.
struct Exactly {
    file: File,
    left: u64,
    short: bool,
}

impl Read for Exactly {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let most = room.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let mut count = if self.short { 0 } else { self.file.read(&mut room[..most])? };
        if count == 0 {
            self.short = true;
            room[..most].fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// How far an archive is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Belief {
    /// Links are made; else left out.
    pub links: bool,
    /// Owners, where this process may set them, and modes are those of the archive; else modes lose what gives rights beyond
    /// the owner's file (set-user-ID and the like).
    pub owners: bool,
}

/// Reads an archive that [`pack`] wrote, into the folder `to` if it is one, else as `to`. What is left out `warn` is told.
///
/// # Errors
/// The first thing that cannot be read or written. What was written before stays.
pub fn unpack(input: impl Read, to: &Path, belief: Belief, warn: &mut dyn FnMut(String)) -> Result<(), Error> {
    let mut archived = Archive::new(input);
    let mut top: Option<(OsString, PathBuf)> = None;
    for entry in archived.entries().map_err(archive("read"))? {
        let mut entry = entry.map_err(archive("read"))?;
        let name = entry.path().map_err(archive("read"))?.into_owned();
        let mut parts = Vec::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => parts.push(part.to_owned()),
                Component::CurDir => {}
                _ => return Err(Error::Refused(format!("{} leads out of it", name.display()))),
            }
        }
        let Some((first, below)) = parts.split_first() else {
            return Err(Error::Refused("an entry has no name".to_owned()));
        };
        let (known, base) = match &top {
            Some((known, base)) => (known.clone(), base.clone()),
            None => {
                let base = if to.is_dir() { to.join(first) } else { to.to_owned() };
                if base.as_os_str().as_bytes().ends_with(b"/") {
                    return Err(Error::Refused(format!("{} is not a folder", to.display())));
                }
                top = Some((first.clone(), base.clone()));
                (first.clone(), base)
            }
        };
        if known != *first {
            return Err(Error::Refused(format!("{} is not in {}", name.display(), known.display())));
        }
        let mut place = base;
        for part in below {
            no_link(&place)?;
            place.push(part);
        }
        put(&mut entry, &place, belief, warn)?;
    }
    match top {
        Some(_) => Ok(()),
        None => Err(Error::Refused("it is empty".to_owned())),
    }
}

/// Nothing is written through a link, wherever it comes from.
fn no_link(folder: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(folder) {
        Ok(meta) if !meta.is_dir() => Err(Error::Refused(format!("{} is not a folder", folder.display()))),
        _ => Ok(()),
    }
}

fn put(
    entry: &mut Entry<'_, impl Read>,
    place: &Path,
    belief: Belief,
    warn: &mut dyn FnMut(String),
) -> Result<(), Error> {
    let header = entry.header();
    let mask = if belief.owners { 0o7777 } else { 0o777 };
    let mode = header.mode().map_err(archive("read"))? & mask;
    let owner = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok());
    let owners =
        (belief.owners && rustix::process::geteuid().is_root()).then(|| (owner(header.uid()), owner(header.gid())));
    match header.entry_type() {
        EntryType::Directory => {
            match fs::DirBuilder::new().mode(0o700).create(place) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return no_link(place),
                other => other.map_err(file(place, "make the folder"))?,
            }
            if let Some((uid, gid)) = owners {
                lchown(place, uid, gid).map_err(file(place, "set its owner"))?;
            }
            fs::set_permissions(place, fs::Permissions::from_mode(mode)).map_err(file(place, "set its mode"))
        }
        EntryType::Regular | EntryType::Continuous => {
            let mut written = replace(place)?;
            io::copy(entry, &mut written).map_err(file(place, "write it"))?;
            if let Some((uid, gid)) = owners {
                fchown(&written, uid, gid).map_err(file(place, "set its owner"))?;
            }
            written.set_permissions(fs::Permissions::from_mode(mode)).map_err(file(place, "set its mode"))
        }
        EntryType::Symlink if belief.links => {
            let target = entry.link_name().map_err(archive("read"))?;
            let target = target.ok_or_else(|| Error::Refused(format!("the link {} leads nowhere", place.display())))?;
            match fs::remove_file(place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(place, "replace it")(error)),
                _ => {}
            }
            symlink(target, place).map_err(file(place, "make the link"))?;
            if let Some((uid, gid)) = owners {
                lchown(place, uid, gid).map_err(file(place, "set its owner"))?;
            }
            Ok(())
        }
        EntryType::Symlink => {
            warn(format!("{} is a link: it is left out", place.display()));
            Ok(())
        }
        kind => {
            warn(format!("{} is neither a file nor a folder ({kind:?}): it is left out", place.display()));
            Ok(())
        }
    }
}

/// A new file in the place of what is there; a file that cannot be removed, as it is mounted, is written over.
fn replace(place: &Path) -> Result<File, Error> {
    let mut new = OpenOptions::new();
    new.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match new.open(place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other.map_err(file(place, "make it")),
    }
    let meta = fs::symlink_metadata(place).map_err(file(place, "look at it"))?;
    if meta.is_dir() {
        return Err(file(place, "replace it")(io::ErrorKind::IsADirectory.into()));
    }
    match fs::remove_file(place) {
        Ok(()) => new.open(place).map_err(file(place, "make it")),
        Err(_) if meta.is_file() && meta.nlink() > 0 => {
            let mut over = OpenOptions::new();
            over.write(true).truncate(true).custom_flags(libc::O_NOFOLLOW);
            over.open(place).map_err(file(place, "replace it"))
        }
        Err(error) => Err(file(place, "replace it")(error)),
    }
}

/// The role `coracle pack PATH`: writes the archive to standard output. Returns the exit code.
pub fn pack_main(args: impl Iterator<Item = OsString>) -> i32 {
    let Some(path) = one(args) else { return 2 };
    let out = io::BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    ended(pack(Path::new(&path), out, &mut |text| eprintln!("warning: {text}")))
}

/// The role `coracle unpack PATH`: reads the archive from standard input. Returns the exit code.
pub fn unpack_main(args: impl Iterator<Item = OsString>) -> i32 {
    let Some(path) = one(args) else { return 2 };
    rustix::process::umask(rustix::fs::Mode::empty());
    let belief = Belief { links: true, owners: true };
    let input = io::BufReader::with_capacity(64 * 1024, io::stdin().lock());
    ended(unpack(input, Path::new(&path), belief, &mut |text| eprintln!("warning: {text}")))
}

fn one(mut args: impl Iterator<Item = OsString>) -> Option<OsString> {
    let path = args.next();
    if path.is_none() {
        eprintln!("error: a path is missing");
    }
    path
}

fn ended(result: Result<(), Error>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}", crate::causes::chain(&error));
            1
        }
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
