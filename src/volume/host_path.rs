//! hostPath: a file or folder of the machine, checked against the type that the manifest gives it.

use super::{Error, io_error};
use k8s_openapi::api::core::v1::HostPathVolumeSource;
use rustix::fs::FileType;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Checks (and by some types makes) what is at the path; done at every set-up, as kubelet does.
///
/// # Errors
/// [`Error::HostPath`], [`Error::HostPathType`]; [`Error::Io`].
pub(super) fn set_up(source: &HostPathVolumeSource) -> Result<PathBuf, Error> {
    let text = source.path.as_str();
    let path = Path::new(text);
    let up = path.components().any(|c| c == Component::ParentDir);
    if !path.is_absolute() || up || text.contains('\0') {
        return Err(Error::HostPath(text.to_owned()));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    // Links are followed: the path is the administrator's.
    let mut found = file_type(path)?;
    match (kind, found) {
        // As containerd: a bind mount needs something to bind.
        ("" | "DirectoryOrCreate", None) => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io_error("make", path))?;
            found = file_type(path)?;
        }
        ("FileOrCreate", None) => {
            create_file(path)?;
            found = file_type(path)?;
        }
        _ => {}
    }
    let expected = match (kind, found) {
        ("", _) | ("Directory" | "DirectoryOrCreate", Some(FileType::Directory)) => return Ok(path.to_owned()),
        // As kubelet: whatever is no folder is a file.
        ("File" | "FileOrCreate", Some(t)) if t != FileType::Directory => return Ok(path.to_owned()),
        ("Socket", Some(FileType::Socket)) => return Ok(path.to_owned()),
        ("CharDevice", Some(FileType::CharacterDevice)) => return Ok(path.to_owned()),
        ("BlockDevice", Some(FileType::BlockDevice)) => return Ok(path.to_owned()),
        ("Directory" | "DirectoryOrCreate", _) => "a directory",
        ("File" | "FileOrCreate", _) => "a file",
        ("Socket", _) => "a socket file",
        ("CharDevice", _) => "a character device",
        ("BlockDevice", _) => "a block device",
        (other, _) => {
            return Err(Error::Unsupported { name: text.to_owned(), what: format!("hostPath type {other}") });
        }
    };
    Err(Error::HostPathType { path: text.to_owned(), expected })
}

fn file_type(path: &Path) -> Result<Option<FileType>, Error> {
    match fs::metadata(path) {
        Ok(meta) => {
            let t = meta.file_type();
            Ok(Some(match () {
                () if t.is_dir() => FileType::Directory,
                () if t.is_socket() => FileType::Socket,
                () if t.is_char_device() => FileType::CharacterDevice,
                () if t.is_block_device() => FileType::BlockDevice,
                () if t.is_fifo() => FileType::Fifo,
                () => FileType::RegularFile,
            }))
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(io_error("look at", path)(e)),
    }
}

fn create_file(path: &Path) -> Result<(), Error> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    match made {
        Ok(file) => file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(io_error("create", path)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(io_error("create", path)(e)),
    }
}
