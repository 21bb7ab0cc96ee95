//! Images as the CRI has them. One that is not here is no error there: its status is empty, and removing it is done.

use super::grpc::{Code, Status};
use super::nanoseconds;
use super::v1::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFsInfoResponse, ImageSpec, ImageStatusResponse, Int64Value,
    PullImageResponse, UInt64Value,
};
use crate::image::{self, Collector, Error, ImageStore, reference};
use crate::runtime::chain;
use crate::server::Node;
use crate::server::types::{PullEnd, PullLine};
use crate::stats::{FsUsage, Snapshot};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// All images, or those that `wanted` names: one, or all of a repository.
pub(super) fn list(store: &ImageStore, wanted: &str) -> Vec<Image> {
    if wanted.is_empty() {
        return store.list().iter().map(|image| shown(image)).collect();
    }
    if let Ok(image) = store.pick(wanted) {
        return vec![shown(&image)];
    }
    // As docker and crictl: a name without a tag means all of them.
    let Ok(parsed) = reference::parse(wanted) else { return Vec::new() };
    let whole = reference::normalise(wanted).unwrap_or_default();
    let tagged = parsed.digest().is_some() || wanted.rsplit('/').next().is_some_and(|name| name.contains(':'));
    let of_it = |image: &image::Image| !tagged && image.names.iter().any(|name| repository(name) == repository(&whole));
    store.list().iter().filter(|image| of_it(image)).map(|image| shown(image)).collect()
}

/// A full name without its tag or digest.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    // A colon before the last slash is a port's.
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

fn shown(image: &image::Image) -> Image {
    let repositories: BTreeSet<&str> = image.names.iter().map(|name| repository(name)).collect();
    let digests =
        repositories.iter().flat_map(|name| image.digests.iter().map(move |digest| format!("{name}@{digest}")));
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let (uid, username) = user_of(&user);
    Image {
        id: image.id.clone(),
        repo_tags: image.names.iter().filter(|name| !name.contains('@')).cloned().collect(),
        repo_digests: digests.collect(),
        size: image.size,
        uid,
        username,
        spec: Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}

/// `USER` of an image: a number, or a name; what follows a colon is the group.
fn user_of(user: &str) -> (Option<Int64Value>, String) {
    let user = user.split_once(':').map_or(user, |(user, _)| user);
    match user.parse() {
        Ok(value) => (Some(Int64Value { value }), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

/// One image; nothing when it is not here.
pub(super) fn status(store: &ImageStore, wanted: &str, verbose: bool) -> Result<ImageStatusResponse, Status> {
    let image = match store.pick(required(wanted)?) {
        Ok(image) => image,
        Err(Error::NotFound { .. }) => return Ok(ImageStatusResponse::default()),
        Err(error) => return Err(Status::invalid(chain(&error))),
    };
    let mut info = BTreeMap::new();
    if verbose {
        let told = json!({ "imageSpec": image.config, "layers": image.layers, "added": image.added });
        info.insert("info".to_owned(), told.to_string());
    }
    Ok(ImageStatusResponse { image: Some(shown(&image)), info })
}

fn required(name: &str) -> Result<&str, Status> {
    if name.is_empty() { Err(Status::invalid("an image is required")) } else { Ok(name) }
}

/// Removes an image with all its names; as the CRI wants it, one that is not here is removed.
pub(super) fn remove(store: &ImageStore, collector: &Collector, wanted: &str) -> Result<(), Status> {
    let id = match store.pick(required(wanted)?) {
        Ok(image) => image.id.clone(),
        Err(Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(Status::invalid(chain(&error))),
    };
    match collector.remove(&id, false) {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error @ (Error::UsedBy { .. } | Error::Pinned { .. } | Error::InUse { .. })) => {
            Err(Status::new(Code::FailedPrecondition, chain(&error)))
        }
        Err(error) => Err(Status::new(Code::Internal, chain(&error))),
    }
}

/// Pulls an image, with the credentials that the node has for its registry. Dropping the future gives the pull up.
pub(super) async fn pull(node: &dyn Node, wanted: &str) -> Result<PullImageResponse, Status> {
    let mut lines = node.pull(required(wanted)?);
    while let Some(line) = lines.recv().await {
        match line {
            PullLine::Progress(_) => {}
            PullLine::End(PullEnd::Pulled { id, .. }) => return Ok(PullImageResponse { image_ref: id }),
            PullLine::End(PullEnd::Failed { reason, message, .. }) => {
                let code = match reason.as_str() {
                    "InvalidImageName" => Code::InvalidArgument,
                    "SignatureValidationFailed" => Code::PermissionDenied,
                    "RegistryUnavailable" => Code::Unavailable,
                    _ => Code::Unknown,
                };
                return Err(Status::new(code, format!("{reason}: {message}")));
            }
        }
    }
    Err(Status::new(Code::Internal, "the pull broke off"))
}

/// What images take of the disk, and what containers write. Nothing is told that was not measured.
pub(super) fn file_systems(snapshot: &Snapshot, images: &Path, containers: &Path) -> ImageFsInfoResponse {
    let layers = snapshot.pods.iter().flat_map(|pod| &pod.containers).filter_map(|container| container.rootfs.as_ref());
    let written = snapshot.node.fs.map(|fs| {
        let none = FsUsage { used_bytes: 0, inodes_used: 0, ..fs };
        layers.fold(none, |sum, one| FsUsage {
            used_bytes: sum.used_bytes.saturating_add(one.used_bytes),
            inodes_used: sum.inodes_used.saturating_add(one.inodes_used),
            ..sum
        })
    });
    let shown =
        |usage: Option<FsUsage>, path: &Path| usage.map(|usage| file_system(&usage, path)).into_iter().collect();
    ImageFsInfoResponse {
        image_filesystems: shown(snapshot.node.image_fs, images),
        container_filesystems: shown(written, containers),
    }
}

/// What something takes of the file system at `path`.
pub(super) fn file_system(usage: &FsUsage, path: &Path) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: usage.time.map_or(0, nanoseconds),
        fs_id: Some(FilesystemIdentifier { mountpoint: path.to_string_lossy().into_owned() }),
        used_bytes: Some(UInt64Value { value: usage.used_bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes_used }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_name_without_its_tag() {
        assert_eq!(repository("docker.io/library/busybox:1"), "docker.io/library/busybox");
        assert_eq!(repository("localhost:5000/a/b"), "localhost:5000/a/b");
        assert_eq!(repository("localhost:5000/a/b:c@sha256:00"), "localhost:5000/a/b");
    }

    #[test]
    fn a_user_is_a_number_or_a_name() {
        assert_eq!(user_of("1000:10"), (Some(Int64Value { value: 1000 }), String::new()));
        assert_eq!(user_of("nginx"), (None, "nginx".to_owned()));
        assert_eq!(user_of(""), (None, String::new()));
    }
}
