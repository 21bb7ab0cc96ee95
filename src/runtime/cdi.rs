//! CDI devices: reading the folders of vendors' files, when a pod asks for a device.

use super::Error;
use crate::bundle::{self, cdi};
use crate::sys::fs;
use k8s_openapi::api::core::v1::Pod;
use oci_spec::runtime::Spec;
use std::path::{Path, PathBuf};

/// Most files of a folder that are read.
const MAX_FILES: usize = 256;

/// Changes `oci` for the CDI devices that the pod's annotations name. `dirs`: later ones count more.
///
/// # Errors
/// [`Error::Bundle`] for a device that cannot be given.
pub(super) fn give(pod: &Pod, dirs: &[PathBuf], oci: &mut Spec) -> Result<(), Error> {
    let Some(annotations) = &pod.metadata.annotations else { return Ok(()) };
    let names = cdi::requested(annotations).map_err(bundle::Error::from)?;
    if names.is_empty() {
        return Ok(());
    }
    let registry = read(dirs);
    let found = registry.find(&names).map_err(bundle::Error::from)?;
    let look = |path: &Path| crate::volume::devices::look(path).map_err(|e| e.to_string());
    Ok(cdi::apply(oci, &found, &look)?)
}

/// All files of the folders. One that cannot be used does not harm the others.
fn read(dirs: &[PathBuf]) -> cdi::Registry {
    let mut registry = cdi::Registry { dirs: dirs.to_vec(), ..cdi::Registry::default() };
    for (i, dir) in dirs.iter().enumerate() {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => {
                registry.problems.push(format!("{}: {e}", dir.display()));
                continue;
            }
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        paths.retain(|path| cdi::Format::of(path).is_some());
        paths.sort();
        if paths.len() > MAX_FILES {
            registry.problems.push(format!("{}: only the first {MAX_FILES} files are read", dir.display()));
        }
        for path in paths.into_iter().take(MAX_FILES) {
            match read_one(&path) {
                Ok(file) => registry.files.push((i, path, file)),
                Err(reason) => registry.problems.push(format!("{}: {reason}", path.display())),
            }
        }
    }
    registry
}

fn read_one(path: &Path) -> Result<cdi::File, String> {
    let format = cdi::Format::of(path).ok_or("neither .json nor .yaml")?;
    // Looked at first: opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(|e| e.to_string())?.is_file() {
        return Err("not a regular file".into());
    }
    let bytes = fs::read_limited(path, cdi::MAX_BYTES).map_err(|e| e.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8")?;
    cdi::parse(&text, format).map_err(|e| e.to_string())
}
