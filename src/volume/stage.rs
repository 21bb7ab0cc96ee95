//! Mounts that cannot be made from a path alone: they are put together for the start of a container, in a mount namespace
//! of its own (`shim/volumes.rs`), so that nothing of them is seen on the machine or stays behind.

use super::{Error, io_error};
use crate::bundle::{Mount, Propagation, SubPath};
use crate::sys::{fs::Dir, mount};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Component, Path, PathBuf};

/// What a container's start puts together before its mounts are made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// An empty folder of the machine; mounted over for the time of the start.
    pub dir: PathBuf,
    /// Mounts to make, each at `dir/<index>`.
    pub items: Vec<Item>,
}

/// One mount of a [`Stage`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// What is mounted.
    pub source: Source,
    /// File or folder below the source; never outside, whatever links say. Empty: the source itself.
    #[serde(default)]
    pub sub_path: PathBuf,
    /// How mounts below it spread.
    #[serde(default)]
    pub spread: Spread,
}

/// What an [`Item`] is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A file or folder of the machine.
    Path(PathBuf),
    /// Unpacked layers of an image, bottom first; read-only, nothing of them can be executed.
    Layers(Vec<PathBuf>),
}

/// How mounts spread between the machine and the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Spread {
    /// Not at all.
    #[default]
    Private,
    /// From the machine.
    Slave,
    /// Both ways.
    Shared,
}

/// Takes the mounts that need a stage in `dir` out of `mounts`, prepares what must be on disk for them, and lets `mounts`
/// refer to what the stage will hold. `layers` tells the unpacked layers of a volume's image.
///
/// libcontainer gives one propagation to all mounts of a container: as soon as one of them asks for any, the others are
/// staged too, and keep to themselves.
///
/// # Errors
/// [`Error::SubPath`], [`Error::NotShared`]; whatever `layers` says.
pub fn stage<E: From<Error>>(
    mounts: &mut [Mount],
    dir: &Path,
    layers: impl Fn(&str) -> Result<Vec<PathBuf>, E>,
) -> Result<Stage, E> {
    let mut stage = Stage { dir: dir.to_owned(), items: Vec::new() };
    let any_spreads = mounts.iter().any(|m| m.propagation != Propagation::Private);
    // At /dev is the container's own, whatever was mounted there: the bundle has to see what that was.
    for mount in mounts.iter_mut().filter(|m| m.volume && m.destination != Path::new("/dev")) {
        let spread = match mount.propagation {
            Propagation::Private => Spread::Private,
            Propagation::HostToContainer => Spread::Slave,
            Propagation::Bidirectional => Spread::Shared,
        };
        let sub_path = match &mount.sub_path {
            SubPath::Whole => PathBuf::new(),
            SubPath::Path(path) | SubPath::Expression(path) => relative(path)?,
        };
        let source = match &mount.image {
            Some(reference) => Source::Layers(layers(reference)?),
            None if !any_spreads && sub_path.as_os_str().is_empty() => continue,
            None => {
                check_shared(&mount.source, spread)?;
                if !sub_path.as_os_str().is_empty() {
                    prepare(&mount.source, &sub_path)?;
                }
                Source::Path(mount.source.clone())
            }
        };
        mount.source = dir.join(stage.items.len().to_string());
        mount.sub_path = SubPath::Whole;
        mount.image = None;
        stage.items.push(Item { source, sub_path, spread });
    }
    Ok(stage)
}

/// The normal form of a sub path.
fn relative(text: &str) -> Result<PathBuf, Error> {
    let refuse = |why: &str| Err(Error::SubPath { path: text.to_owned(), source: io::Error::other(why.to_owned()) });
    let mut path = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => return refuse("it must not contain '..'"),
            Component::RootDir | Component::Prefix(_) => return refuse("it must not be an absolute path"),
        }
    }
    if text.contains('\0') {
        return refuse("it must not hold a NUL byte");
    }
    Ok(path)
}

/// As kubelet: a folder that is missing is made, with the mode of the volume's root.
fn prepare(root: &Path, sub_path: &Path) -> Result<(), Error> {
    let dir = Dir::open(root).map_err(io_error("open", root))?;
    let mode = dir.own_status().map_err(io_error("look at", root))?.mode;
    let failed = |source| Error::SubPath { path: sub_path.display().to_string(), source };
    dir.make_beneath(sub_path, mode).map(drop).map_err(failed)
}

/// As containerd: mounts cannot spread from or to a place that does not let them; better to say so than to seem to work.
fn check_shared(path: &Path, spread: Spread) -> Result<(), Error> {
    let found = match spread {
        Spread::Private => return Ok(()),
        Spread::Slave | Spread::Shared => mount::propagation(path).map_err(io_error("look at the mount of", path))?,
    };
    match (spread, found.shared, found.slave) {
        (_, true, _) | (Spread::Slave, _, true) => Ok(()),
        (_, false, _) => {
            let what = if spread == Spread::Shared { "a shared mount" } else { "a shared or slave mount" };
            Err(Error::NotShared { path: path.to_owned(), mount: found.point, what })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str) -> Mount {
        Mount { source: std::env::temp_dir(), destination: Path::new("/").join(name), volume: true, ..Mount::default() }
    }

    fn staged(mounts: &mut [Mount]) -> Result<Stage, Error> {
        stage(mounts, Path::new("/stage"), |reference| Ok(vec![Path::new("/layers").join(reference)]))
    }

    #[test]
    fn plain_mounts_need_no_stage() {
        let mut mounts = [volume("a"), volume("b")];
        assert!(staged(&mut mounts).expect("staged").items.is_empty());
        assert_eq!(mounts, [volume("a"), volume("b")]);
    }

    #[test]
    fn images_and_sub_paths_are_staged() {
        let image = Mount { image: Some("x".into()), source: PathBuf::new(), ..volume("i") };
        let own = Mount { source: "/etc/hosts".into(), ..Mount::default() };
        let mut mounts = [volume("a"), image, own.clone()];
        let stage = staged(&mut mounts).expect("staged");
        assert_eq!(mounts[0], volume("a"));
        assert_eq!(mounts[1].source, Path::new("/stage/0"));
        assert_eq!(mounts[2], own);
        assert!(matches!(&stage.items[0].source, Source::Layers(layers) if layers == &[PathBuf::from("/layers/x")]));
    }

    #[test]
    fn the_machines_dev_is_never_staged() {
        let dev = Mount { source: "/dev".into(), ..volume("dev") };
        let image = Mount { image: Some("x".into()), source: PathBuf::new(), ..volume("i") };
        let mut mounts = [image, dev.clone()];
        assert_eq!(staged(&mut mounts).expect("staged").items.len(), 1);
        assert_eq!(mounts[1], dev);
    }

    #[test]
    fn sub_paths_stay_inside() {
        for (text, want) in [("a//b/./c", "a/b/c"), ("a/", "a"), ("a..b", "a..b"), ("", "")] {
            assert_eq!(relative(text).expect(text), Path::new(want));
        }
        for bad in ["..", "a/../b", "/a", "a\0b"] {
            assert!(matches!(relative(bad), Err(Error::SubPath { .. })), "{bad:?}");
        }
    }
}
