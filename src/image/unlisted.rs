//! Folders that a layer puts files in but does not list: their attributes are those of the layer below.
//!
//! A layer that holds `tmp/x`, but no `tmp/`, leaves `/tmp` as it was: whoever unpacks all layers into one folder gets that
//! for nothing. Here every layer is a folder of its own, and of a folder that several layers have, overlayfs shows the
//! attributes of the uppermost. They cannot be put right in the layer itself: it is shared by images that have other
//! layers below it, and its folder must stay what its digest says.
//!
//! So such folders are marked while a layer is unpacked, and an image in which they hide attributes gets one more layer,
//! on top of all: nothing but folders, with the attributes that are to be seen. It is a layer as any other, named by the
//! digest of its tar stream, so that it is sealed, verified, shared and removed as any other; images without such folders
//! (nearly all: builders list what they touch) get none. The mark is in overlayfs' own name space of attributes, which no
//! container sees and no archive can set.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::tarball::header;
use super::unpack::{OPAQUE_XATTR, is_foreign};
use crate::sys::fs::{self, Dir, Time};

/// On a folder: the layer does not list it.
const MARK: &str = "trusted.overlay.coracle.unlisted";
const BLOCK: usize = 512;

/// Marks a folder.
///
/// # Errors
/// As setting an attribute. Where these cannot be set, overlays cannot be mounted either: then it does not matter.
pub(super) fn mark(dir: &Dir) -> io::Result<()> {
    match fs::set_file_xattr(dir, OsStr::new(MARK), b"y") {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::OPNOTSUPP | Errno::PERM)) => Ok(()),
        other => other,
    }
}

/// A layer of an image.
pub(super) struct Stacked {
    pub folder: PathBuf,
    /// Whether any of its folders, besides its root, may be marked.
    pub unlisted: bool,
}

/// Writes the tar stream of the layer that `layers` (bottom first) need on top of them; says whether there is anything in
/// it.
///
/// # Errors
/// As reading the layers, and as writing.
pub(super) fn write(layers: &[Stacked], out: impl Write) -> io::Result<bool> {
    let mut walk = Walk { layers: Vec::new(), line: Vec::new(), out, any: false };
    for layer in layers.iter().rev() {
        walk.layers.push((Dir::open(&layer.folder)?, layer.unlisted));
    }
    let mut ahead = vec![Ahead { path: Vec::new(), depth: 0, having: (0..layers.len()).collect() }];
    while let Some(next) = ahead.pop() {
        walk.visit(next, &mut ahead)?;
    }
    if walk.any {
        walk.out.write_all(&[0; 2 * BLOCK])?;
    }
    walk.out.flush()?;
    Ok(walk.any)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    modified: Time,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

/// A folder of the image that is still to be looked at.
struct Ahead {
    path: Vec<u8>,
    depth: usize,
    /// The layers that have it, uppermost first, up to one that has something else there.
    having: Vec<usize>,
}

struct Walk<W> {
    /// Uppermost first.
    layers: Vec<(Dir, bool)>,
    /// The folders on the way to the one that is looked at, and whether they were written.
    line: Vec<(Vec<u8>, Attributes, bool)>,
    out: W,
    any: bool,
}

impl<W: Write> Walk<W> {
    fn visit(&mut self, Ahead { path, depth, having }: Ahead, ahead: &mut Vec<Ahead>) -> io::Result<()> {
        self.line.truncate(depth);
        // What is in layers below an opaque folder is hidden, but the folder itself is still theirs.
        let mut visible = Vec::new();
        let mut hidden = false;
        let (mut top, mut listed) = (None, None);
        for layer in having {
            // The components of the path are folders in this layer, so no symlink is followed.
            let dir = self.layers[layer].0.in_root(OsStr::from_bytes(&path))?;
            let Looked { attributes, opaque, marked } = look(&dir)?;
            if !hidden {
                visible.push((layer, dir));
            }
            hidden |= opaque;
            if listed.is_none() && !marked {
                listed = Some(attributes.clone());
            }
            top.get_or_insert((attributes, marked));
            if hidden && listed.is_some() {
                break;
            }
        }
        let Some((top, marked)) = top else { return Ok(()) };
        let (seen, differs) = match listed {
            // The time of the root is that of the container's own folder anyway.
            Some(listed) if path.is_empty() => {
                let differs = listed != Attributes { modified: listed.modified, ..top };
                (listed, differs)
            }
            Some(listed) => {
                let differs = listed != top;
                (listed, differs)
            }
            None => (top, false),
        };
        self.line.push((path.clone(), seen, false));
        if marked && differs {
            self.put()?;
        }
        let mut names = BTreeSet::new();
        for (_, dir) in visible.iter().filter(|(layer, _)| self.layers[*layer].1) {
            let folders = |kind: &FileType| matches!(kind, FileType::Directory | FileType::Unknown);
            names.extend(dir.entries()?.into_iter().filter(|(_, kind)| folders(kind)).map(|(name, _)| name));
        }
        for name in names {
            let mut having = Vec::new();
            for (layer, dir) in &visible {
                match dir.status(&name) {
                    Ok(status) if status.kind == FileType::Directory => having.push(*layer),
                    // It hides what is below.
                    Ok(_) => break,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
            if having.iter().any(|layer| self.layers[*layer].1) {
                let mut path = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name.as_bytes());
                ahead.push(Ahead { path, depth: depth + 1, having });
            }
        }
        Ok(())
    }

    /// Writes the folder that is looked at, and before it those it is in: their attributes would be hidden, too.
    fn put(&mut self) -> io::Result<()> {
        for (path, attributes, written) in &mut self.line {
            if !*written {
                self.out.write_all(&entry(path, attributes)?)?;
                *written = true;
            }
        }
        self.any = true;
        Ok(())
    }
}

struct Looked {
    attributes: Attributes,
    opaque: bool,
    marked: bool,
}

fn look(dir: &Dir) -> io::Result<Looked> {
    let status = dir.own_status()?;
    let mut xattrs = dir.xattrs(OsStr::new("."))?;
    let has = |name: &str| xattrs.iter().any(|(key, _)| key == name);
    let (opaque, marked) = (has(OPAQUE_XATTR), has(MARK));
    xattrs.retain(|(key, _)| !is_foreign(key.as_bytes()));
    let (mode, uid, gid) = (status.mode, status.uid, status.gid);
    Ok(Looked { attributes: Attributes { mode, uid, gid, modified: status.modified, xattrs }, opaque, marked })
}

/// A folder as an archive has it. All but the mode is in PAX records, which have no limits.
fn entry(path: &[u8], attributes: &Attributes) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    record(&mut records, b"path", &[b"./", path, b"/"].concat());
    record(&mut records, b"uid", attributes.uid.to_string().as_bytes());
    record(&mut records, b"gid", attributes.gid.to_string().as_bytes());
    record(&mut records, b"mtime", time(attributes.modified).as_bytes());
    for (key, value) in &attributes.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", key.as_bytes()].concat(), value);
    }
    let mut out = header("pax", tar::EntryType::XHeader, 0o644, records.len() as u64)?.to_vec();
    out.extend_from_slice(&records);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out.extend(header("folder", tar::EntryType::Directory, attributes.mode, 0)?);
    Ok(out)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Seconds as a decimal fraction; before 1970 they are negative as a whole.
fn time(Time { seconds, nanoseconds }: Time) -> String {
    match seconds < 0 && nanoseconds > 0 {
        true => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        false => format!("{seconds}.{nanoseconds:09}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tarball::{Forward, Kind, Reader};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            path in proptest::collection::vec(1u8.., 0..300),
            mode in 0u32..0o10000,
            uid: u32,
            gid: u32,
            seconds in -1_000_000_000_000i64..1_000_000_000_000,
            nanoseconds in 0u32..1_000_000_000,
            xattrs in proptest::collection::btree_map("[a-z]{1,8}\\.[a-z.]{1,90}", proptest::collection::vec(any::<u8>(), 0..1100), 0..4),
        ) {
            let modified = Time { seconds, nanoseconds };
            let xattrs: Vec<_> = xattrs.into_iter().map(|(key, value)| (OsString::from(key), value)).collect();
            let attributes = Attributes { mode, uid, gid, modified, xattrs };
            let mut bytes = entry(&path, &attributes).unwrap();
            prop_assert!(bytes.len().is_multiple_of(BLOCK));
            bytes.extend([0; 2 * BLOCK]);
            let mut reader = Reader::new(Forward(&bytes[..]));
            let member = reader.next_member().unwrap().unwrap();
            prop_assert_eq!(member.kind, Kind::Directory);
            prop_assert_eq!(member.path, [b"./", &path[..], b"/"].concat());
            prop_assert_eq!((member.mode, member.uid, member.gid, member.modified), (mode, uid, gid, modified));
            let read: Vec<_> = member.xattrs.into_iter().map(|(key, value)| (OsStr::from_bytes(&key).to_owned(), value)).collect();
            prop_assert_eq!(read, attributes.xattrs);
            prop_assert!(reader.next_member().unwrap().is_none());
        }
    }
}
