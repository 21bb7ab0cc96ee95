//! A container of a pod with a user namespace: its root file system and mounts, with owners as on disk.
//!
//! The container's root is nobody on the machine. Two things follow. Files must be shown through idmapped mounts, or all
//! would belong to nobody; and the paths by which libcontainer reaches them, from inside the user namespace, must lead
//! through folders that nobody may enter but root. So the throwaway child that starts the container first takes detached,
//! idmapped copies of all that the container mounts, then steps into a mount namespace of its own, lays them out on a
//! tmpfs that everybody may look into, and lets libcontainer read a `config.json` that names these places. The one on disk
//! stays as it is. libcontainer joins the user namespace by its path, so all containers of a pod share it.

use super::protocol::{Rootfs, Run};
use crate::sys::{idmap, mount};
use crate::volume::Source;
use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, RootBuilder, Spec};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Folders that some machine has, that all may enter, and that no start of a container needs: one of them is covered, in a
/// mount namespace that only the start and the container have.
const PLACES: [&str; 8] = ["/mnt", "/media", "/srv", "/opt", "/home", "/tmp", "/var/tmp", "/dev/shm"];

/// Why a container cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot {what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Clone(#[from] idmap::CloneError),
    #[error("none of {PLACES:?} can be covered: hostUsers: false needs one of these folders")]
    NoPlace,
    #[error("cannot write the container's configuration")]
    Spec(#[from] OciSpecError),
    #[error("cannot change the mount namespace")]
    Namespace(#[source] io::Error),
    #[error(
        "cannot mount the root file system on idmapped layers, which hostUsers: false needs (kernel 5.19 or later)"
    )]
    Overlay(#[source] io::Error),
    #[error("the container's configuration has a user namespace without a path or without IDs")]
    Incomplete,
    #[error("the writable layer and its work folder are not in one folder")]
    Layout,
}

/// The user namespace of a container, as its configuration tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Users {
    /// The namespace, as a file to join.
    pub(super) path: PathBuf,
    /// The machine's ID for the container's 0.
    pub(super) first: u32,
}

impl Users {
    /// `None` for a container with the machine's users.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when the namespace is not one to join, or has no IDs: libcontainer would make another one.
    pub(super) fn of(spec: &Spec) -> Result<Option<Users>, Error> {
        let Some(linux) = spec.linux() else { return Ok(None) };
        let mut namespaces = linux.namespaces().iter().flatten();
        let Some(namespace) = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::User) else {
            return Ok(None);
        };
        let ids = linux.uid_mappings().as_ref().and_then(|ids| ids.first());
        match (namespace.path(), ids) {
            (Some(path), Some(ids)) => Ok(Some(Users { path: path.clone(), first: ids.host_id() })),
            _ => Err(Error::Incomplete),
        }
    }

    /// The machine's ID for one of the container's.
    pub(super) fn on_the_machine(&self, id: u32) -> u32 {
        self.first.saturating_add(id)
    }
}

/// A container laid out in a mount namespace of this process.
pub(super) struct Stage {
    home: idmap::Home,
    /// Its root file system.
    pub(super) root: PathBuf,
}

/// What is mounted where: detached until the namespace is there.
struct Copies {
    layers: Vec<OwnedFd>,
    /// The folder of the writable layer and its work folder: overlayfs wants both on one mount.
    write: OwnedFd,
    /// By position in the configuration.
    binds: Vec<(usize, OwnedFd)>,
    /// Namespaces to join, by position in the configuration.
    namespaces: Vec<(usize, OwnedFd)>,
}

impl Stage {
    /// Lays out a container, its `rootfs` prepared. For the single-threaded child that then calls libcontainer, at whose end
    /// all of it is gone.
    ///
    /// # Errors
    /// [`Error`], naming the path and file system that cannot be shown with its owners.
    pub(super) fn set(run: &Run, state: &Path, users: &Users, mut spec: Spec) -> Result<Stage, Error> {
        let needed = [&run.bundle, state];
        let place = PLACES.iter().map(Path::new).find(|place| {
            place.is_dir()
                && fs::canonicalize(place).is_ok_and(|real| real == *place)
                && !needed.iter().any(|path| path.starts_with(place))
        });
        let place = place.ok_or(Error::NoPlace)?;
        let copies = Copies::take(run, users, &spec)?;
        let home = idmap::step_aside().map_err(Error::Namespace)?;
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { what, path, source }
        };
        idmap::cover(place).map_err(failed("mount a tmpfs on", place))?;
        let attach = |fd: &OwnedFd, name: &str| -> Result<PathBuf, Error> {
            let target = place.join(name);
            let is_dir =
                rustix::fs::fstat(fd).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
            match is_dir {
                true => DirBuilder::new().mode(0o755).create(&target),
                false => File::create(&target).map(drop),
            }
            .and_then(|()| idmap::attach(fd.as_fd(), &target))
            .map_err(failed("attach a mount to", &target))?;
            Ok(target)
        };
        // By its name a layer is found in the overlay's entry in mountinfo, when it is asked whether anything mounts it.
        let layers = copies.layers.iter().zip(&run.rootfs.layers).enumerate();
        let layers = layers.map(|(i, (fd, layer))| attach(fd, &mount::copy_name(i, layer)));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let write = attach(&copies.write, "write")?;
        let root = place.join("root");
        DirBuilder::new().mode(0o755).create(&root).map_err(failed("make", &root))?;
        let (upper, work) = names(&run.rootfs).ok_or(Error::Layout)?;
        idmap::as_owner(users.first, || mount::overlay(&layers, &write.join(upper), &write.join(work), &root))
            .map_err(Error::Overlay)?;
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for (index, fd) in &copies.binds {
            mounts[*index].set_source(Some(attach(fd, &format!("mount{index}"))?));
        }
        spec.set_mounts(Some(mounts));
        if let Some(mut linux) = spec.linux().clone() {
            let mut namespaces = linux.namespaces().clone().unwrap_or_default();
            for (index, fd) in &copies.namespaces {
                namespaces[*index].set_path(Some(attach(fd, &format!("namespace{index}"))?));
            }
            linux.set_namespaces(Some(namespaces));
            spec.set_linux(Some(linux));
        }
        let read_only = spec.root().as_ref().and_then(|root| root.readonly());
        spec.set_root(Some(RootBuilder::default().path(&root).readonly(read_only.unwrap_or(false)).build()?));
        let config = place.join("config.json");
        save(&spec, &config).map_err(failed("write", &config))?;
        let original = run.bundle.join("config.json");
        idmap::bind_file(&config, &original).map_err(failed("cover", &original))?;
        Ok(Stage { home, root })
    }

    /// Back to where the machine's files are; the container keeps what it has mounted.
    ///
    /// # Errors
    /// When the kernel does not let this process go back.
    pub(super) fn leave(self) -> Result<(), Error> {
        idmap::leave(self.home).map_err(Error::Namespace)
    }
}

/// Variables may hold what is secret.
fn save(spec: &Spec, path: &Path) -> io::Result<()> {
    let text = serde_json::to_vec(spec)?;
    let file = File::options().create_new(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(&text))
}

/// Names of the writable layer and the work folder in the folder that holds both.
fn names(rootfs: &Rootfs) -> Option<(&Path, &Path)> {
    let (upper, work) = (rootfs.upper.file_name()?, rootfs.work.file_name()?);
    (rootfs.upper.parent() == rootfs.work.parent()).then_some((Path::new(upper), Path::new(work)))
}

impl Copies {
    fn take(run: &Run, users: &Users, spec: &Spec) -> Result<Copies, Error> {
        let rootfs = &run.rootfs;
        let staged = run.stage.items.iter().enumerate();
        let images = staged.filter(|(_, item)| matches!(item.source, Source::Layers(_)));
        let images: Vec<_> = images.map(|(index, _)| run.stage.dir.join(index.to_string())).collect();
        let namespace =
            File::open(&users.path).map_err(|source| Error::File { what: "open", path: users.path.clone(), source })?;
        let copy = |path: &Path| idmap::clone(path, namespace.as_fd());
        let mut binds = Vec::new();
        for (index, mount) in spec.mounts().iter().flatten().enumerate() {
            let is_bind = mount.typ().as_deref() == Some("bind");
            // Cgroups are the machine's: to the container they belong to nobody, and are read-only.
            if let (true, Some(source)) =
                (is_bind && !mount.destination().starts_with("/sys/fs/cgroup"), mount.source())
            {
                // An image's layers are idmapped already.
                let is_image = images.contains(source);
                binds.push((index, if is_image { idmap::copy(source)? } else { copy(source)? }));
            }
        }
        let joined = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten()).enumerate();
        let joined = joined.filter_map(|(index, namespace)| Some((index, namespace.path().as_ref()?)));
        Ok(Copies {
            namespaces: joined.map(|(index, path)| Ok((index, idmap::copy(path)?))).collect::<Result<_, Error>>()?,
            layers: rootfs.layers.iter().map(|layer| copy(layer)).collect::<Result<_, _>>()?,
            write: copy(rootfs.upper.parent().ok_or(Error::Layout)?)?,
            binds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_from_the_configuration() {
        let spec = |linux: serde_json::Value| -> Spec {
            serde_json::from_value(serde_json::json!({ "ociVersion": "1.2.0", "linux": linux })).expect("spec")
        };
        assert!(matches!(Users::of(&spec(serde_json::json!({ "namespaces": [{ "type": "mount" }] }))), Ok(None)));
        let new = serde_json::json!({ "namespaces": [{ "type": "user" }] });
        assert!(matches!(Users::of(&spec(new)), Err(Error::Incomplete)));
        let ids = serde_json::json!([{ "containerID": 0, "hostID": 131_072, "size": 65536 }]);
        let users = Users::of(&spec(serde_json::json!({
            "namespaces": [{ "type": "mount" }, { "type": "user", "path": "/run/x/ns/user" }],
            "uidMappings": ids, "gidMappings": ids,
        })));
        let users = users.expect("complete");
        assert_eq!(users, Some(Users { path: "/run/x/ns/user".into(), first: 131_072 }));
        assert_eq!(users.map(|users| users.on_the_machine(1000)), Some(132_072));
    }
}
