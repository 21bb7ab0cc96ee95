//! What a container's mounts are made of, when a path alone does not say it: parts of volumes, images, and mounts that
//! spread.
//!
//! Done by the throwaway child ([`super::start`]) in a mount namespace of its own, of which the container's is a copy: it
//! goes with the child, so nothing of it is ever seen on the machine or in the shim, and nothing has to be undone.

use crate::sys::fs::Dir;
use crate::sys::idmap;
use crate::sys::mount::{self, Namespace, Peers, Tree};
use crate::volume::{Item, Source, Spread, Stage};
use rustix::fs::{CWD, Mode, OFlags};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Puts `stage` together. `machine` is the machine's mount namespace: volumes are taken from there, because this
/// process' own does not have the same peers, and on a machine without shared mounts not even the same mounts. `users` is
/// the pod's user namespace, in which images show their owners.
///
/// # Errors
/// Of the first item that fails, with its name.
pub(super) fn stage(stage: &Stage, machine: &Namespace, users: Option<&Path>) -> io::Result<()> {
    if stage.items.is_empty() {
        return Ok(());
    }
    let users = users.map(|path| File::open(path).map_err(|e| named("open", path, &e))).transpose()?;
    match DirBuilder::new().mode(0o700).create(&stage.dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(named("make", &stage.dir, &e)),
        _ => {}
    }
    let trees = machine.visit(|| {
        let of_path = |item: &Item| match &item.source {
            Source::Path(path) => copy(path, item).map(Some).map_err(|e| named("open", &shown(path, item), &e)),
            Source::Layers(_) => Ok(None),
        };
        stage.items.iter().map(of_path).collect::<io::Result<Vec<_>>>()
    })?;
    mount::copied_namespace()?;
    mount::scratch(&stage.dir).map_err(|e| named("mount a tmpfs at", &stage.dir, &e))?;
    for (index, (item, tree)) in stage.items.iter().zip(trees).enumerate() {
        let target = stage.dir.join(index.to_string());
        let attached = match (&item.source, tree) {
            (Source::Layers(layers), _) => image(layers, item, &stage.dir, index, users.as_ref()),
            (Source::Path(_), Some(tree)) => Ok(tree),
            (Source::Path(path), None) => Err(named("open", path, &io::ErrorKind::NotFound.into())),
        };
        attached?.attach(&target).map_err(|e| named("mount", &target, &e))?;
    }
    Ok(())
}

/// By descriptor: what was found to lie inside the volume is what is mounted, whatever happens to the names meanwhile.
fn copy(root: &Path, item: &Item) -> io::Result<Tree> {
    let tree = if item.sub_path.as_os_str().is_empty() {
        Tree::copy(rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?.as_fd())?
    } else {
        Tree::copy(Dir::open(root)?.find_beneath(&item.sub_path)?.as_fd())?
    };
    match item.spread {
        Spread::Private => tree.set_peers(Peers::None)?,
        Spread::Slave => tree.set_peers(Peers::Receive)?,
        Spread::Shared => {}
    }
    Ok(tree)
}

/// An image as a volume: its layers laid over an empty one, as an overlay needs two, and hides what a layer deletes. An
/// overlay cannot be idmapped, but its layers can.
fn image(layers: &[PathBuf], item: &Item, dir: &Path, index: usize, users: Option<&File>) -> io::Result<Tree> {
    let at = dir.join(format!("{index}.image"));
    let mut all = Vec::new();
    let empty = if layers.is_empty() { 2 } else { 1 };
    for i in 0..empty {
        let empty = dir.join(format!("{index}.empty-{i}"));
        DirBuilder::new().mode(0o755).create(&empty)?;
        all.push(empty);
    }
    match users {
        None => all.extend_from_slice(layers),
        Some(users) => {
            for (i, layer) in layers.iter().enumerate() {
                let mapped = dir.join(format!("{index}-{}", mount::copy_name(i, layer)));
                let tree =
                    idmap::clone(layer, users.as_fd()).map_err(|e| io::Error::other(crate::causes::distinct(&e)))?;
                DirBuilder::new().mode(0o755).create(&mapped)?;
                idmap::attach(tree.as_fd(), &mapped)?;
                all.push(mapped);
            }
        }
    }
    DirBuilder::new().mode(0o755).create(&at)?;
    mount::overlay_read_only(&all, &at).map_err(|e| named("mount the image at", &at, &e))?;
    copy(&at, item).map_err(|e| named("open in the image", &item.sub_path, &e))
}

fn shown(path: &Path, item: &Item) -> PathBuf {
    if item.sub_path.as_os_str().is_empty() { path.to_owned() } else { path.join(&item.sub_path) }
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}
