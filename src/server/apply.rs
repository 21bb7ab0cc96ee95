//! `apply` and `delete`: files of the manifest directory, written whole or not at all.

use super::Node;
use super::reply::{self, Failure, Reply, blocking};
use super::route::Query;
use super::types::{Action, Applied, Cause, PodName};
use crate::manifest::{self, Origin, Problem, Severity};
use crate::minisign::{EXTENSION, LARGEST_SIGNATURE};
use crate::pod::trial;
use crate::source::{SignatureError, Text, Verifier};
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Pod;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Largest manifest, in bytes; the limit of the directory source.
pub(super) const MAX_MANIFEST: u64 = 10 << 20;

/// One change of the directory at a time: the check for other files that define a pod must still hold at the rename.
static DIRECTORY: Mutex<()> = Mutex::new(());

/// Answers `POST /coracle/v1/apply[?file=STEM][&signature=TEXT]` with [`Applied`]. The signature is the text of the
/// manifest's `.minisig`. A node without keys keeps it all the same: it counts as soon as the node has keys.
pub(super) async fn apply(node: Arc<dyn Node>, query: &Query, manifest: Bytes) -> Result<Reply, Failure> {
    let stem = query.get("file").map(checked_stem).transpose()?;
    let signature = query.get("signature").map(str::to_owned);
    if signature.as_ref().is_some_and(|text| text.len() as u64 > LARGEST_SIGNATURE) {
        return Err(Failure::bad_request("signature: is too large for one"));
    }
    let (dir, name, verifier) = (node.manifest_dir(), node.name().to_owned(), node.verifier());
    let applied = blocking(move || {
        let text = Sent { manifest: &manifest, signature: signature.as_deref(), stem: stem.as_deref() };
        write(&dir, &name, &text, verifier.as_deref())
    })
    .await??;
    node.rescan();
    reply::json(&applied)
}

/// Answers `POST /coracle/v1/delete?pod=NAMESPACE/NAME…` or `?file=STEM` with a list of [`Applied`].
pub(super) async fn delete(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let stem = query.get("file").map(checked_stem).transpose()?;
    let mut wanted = Vec::new();
    for pod in query.all("pod") {
        let (namespace, name) =
            pod.split_once('/').ok_or_else(|| Failure::bad_request(format!("pod: {pod:?} is not NAMESPACE/NAME")))?;
        wanted.push((namespace.to_owned(), base_name(name, node.name()).to_owned()));
    }
    let (dir, name) = (node.manifest_dir(), node.name().to_owned());
    let removed = match (stem, wanted.is_empty()) {
        (Some(stem), true) => blocking(move || remove_file(&dir, &name, &stem)).await??,
        (None, false) => blocking(move || remove_pods(&dir, &name, &wanted)).await??,
        _ => return Err(Failure::bad_request("name either pods or a file")),
    };
    node.rescan();
    reply::json(&removed)
}

/// A pod's name without the node's suffix.
fn base_name<'a>(name: &'a str, node: &str) -> &'a str {
    name.strip_suffix(node).and_then(|name| name.strip_suffix('-')).filter(|name| !name.is_empty()).unwrap_or(name)
}

/// A name that is one path component and that the directory source reads.
fn checked_stem(stem: &str) -> Result<String, Failure> {
    let fits = (1..=200).contains(&stem.len())
        && stem.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.'))
        && !stem.starts_with('.');
    if fits { Ok(stem.to_owned()) } else { Err(Failure::bad_request(format!("{stem:?} is not a file name"))) }
}

fn key(pod: &Pod, node: &str) -> (String, String) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    (pod.metadata.namespace.clone().unwrap_or_default(), base_name(name, node).to_owned())
}

fn names(pods: &[Pod]) -> Vec<PodName> {
    let name = |pod: &Pod| PodName {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
    };
    pods.iter().map(name).collect()
}

fn cause(problem: &Problem) -> Cause {
    let reason = if matches!(problem.severity, Severity::Error) { "FieldValueInvalid" } else { "Warning" };
    Cause {
        reason: reason.to_owned(),
        message: problem.reason.clone(),
        field: problem.field.clone(),
        line: problem.line,
        column: problem.column,
    }
}

/// What a client wants written.
struct Sent<'a> {
    manifest: &'a [u8],
    signature: Option<&'a str>,
    /// Name of the file without its extension; `None`: made of the first pod's.
    stem: Option<&'a str>,
}

/// Refuses what the directory source would refuse as well.
fn verify(verifier: &Verifier, sent: &Sent<'_>, text: &Text<'_>) -> Result<(), SignatureError> {
    let missing = || SignatureError::Missing(format!("signature with it ({EXTENSION})"));
    let signed = verifier.verify(sent.manifest, sent.signature.ok_or_else(missing)?.as_bytes())?;
    verifier.check(text, &signed)
}

fn write(dir: &Path, node: &str, sent: &Sent<'_>, verifier: Option<&Verifier>) -> Result<Applied, Failure> {
    let bytes = sent.manifest;
    let loaded = manifest::load(bytes, Origin::File("manifest"), node);
    let limits: Vec<Problem> = loaded.pods.iter().filter_map(trial::refusal).collect();
    let all = || loaded.problems.iter().chain(&limits);
    let problems: Vec<Cause> = all().map(cause).collect();
    if all().any(|problem| matches!(problem.severity, Severity::Error)) {
        return Err(Failure::invalid("the manifest is invalid", problems));
    }
    let first = loaded.pods.first().ok_or_else(|| Failure::invalid("the manifest defines no pod", problems.clone()))?;
    let keys: Vec<(String, String)> = loaded.pods.iter().map(|pod| key(pod, node)).collect();
    let stem = match sent.stem {
        Some(stem) => stem.to_owned(),
        None => {
            let (namespace, name) = key(first, node);
            checked_stem(&format!("{namespace}_{name}"))?
        }
    };
    let path = dir.join(format!("{stem}.yaml"));
    if let Some(verifier) = verifier {
        let text = Text { origin: &path.to_string_lossy(), bytes, loaded: &loaded, node };
        let refused = |error: SignatureError| Failure::forbidden(format!("the manifest {error}"));
        verify(verifier, sent, &text).map_err(refused)?;
    }
    let _guard = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    for other in defined(dir, node).map_err(|error| unreadable(dir, &error))? {
        if other.path != path
            && let Some((namespace, name)) = other.keys.iter().find(|key| keys.contains(key))
        {
            let file = other.path.display();
            return Err(Failure::conflict(format!(
                "pod {namespace}/{name} is already defined by {file}: edit that file"
            )));
        }
    }
    let beside = signature_path(&path);
    let signature = sent.signature.map(str::as_bytes);
    let action = match fs::read(&path) {
        Ok(present) if present == bytes && fs::read(&beside).ok().as_deref() == signature => Action::Unchanged,
        Ok(_) => Action::Configured,
        Err(_) => Action::Created,
    };
    if action != Action::Unchanged {
        // The signature first: one without a manifest is nothing, and a manifest that it does not fit is one that is about
        // to be replaced. After a power cut between the two the last good version runs.
        let written = match signature {
            Some(signature) => replace(&beside, signature).and_then(|()| replace(&path, bytes)),
            None => replace(&path, bytes).and_then(|()| discard(&beside)),
        };
        written.map_err(|error| Failure::internal(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(Applied { file: path.display().to_string(), action, pods: names(&loaded.pods), problems })
}

/// Writes a file so that it is there whole or as before, also after a power cut. Dot files are no manifests.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = dir.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    // A leftover of a process of the same PID before a power cut.
    discard(&temporary)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(dir)?.sync_all()
}

/// Where the signature of a manifest is.
fn signature_path(manifest: &Path) -> PathBuf {
    let mut path = manifest.as_os_str().to_owned();
    path.push(EXTENSION);
    path.into()
}

/// Removes a file that need not be there.
fn discard(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file of the manifest directory and the pods it defines.
struct Defined {
    path: PathBuf,
    pods: Vec<Pod>,
    keys: Vec<(String, String)>,
}

/// What the directory defines now; files that cannot be read or are broken define nothing. A missing directory is empty.
fn defined(dir: &Path, node: &str) -> io::Result<Vec<Defined>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_dot = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let is_manifest = path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
        if is_manifest && !is_dot && fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let pods = read_limited(&path).map_or_else(
            |_| Vec::new(),
            |bytes| manifest::load(&bytes, Origin::File(&path.to_string_lossy()), node).pods,
        );
        let keys = pods.iter().map(|pod| key(pod, node)).collect();
        Defined { path, pods, keys }
    };
    Ok(paths.into_iter().map(read).collect())
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_MANIFEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    Ok(bytes)
}

fn unreadable(dir: &Path, error: &io::Error) -> Failure {
    Failure::internal(format!("cannot read {}: {error}", dir.display()))
}

fn remove_file(dir: &Path, node: &str, stem: &str) -> Result<Vec<Applied>, Failure> {
    let path = dir.join(format!("{stem}.yaml"));
    let _guard = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    let pods = read_limited(&path)
        .map(|bytes| manifest::load(&bytes, Origin::File(&path.to_string_lossy()), node).pods)
        .unwrap_or_default();
    remove(dir, vec![(path, pods)])
}

/// Removes the files that define the wanted pods, all or none. A file that defines others too is left alone.
fn remove_pods(dir: &Path, node: &str, wanted: &[(String, String)]) -> Result<Vec<Applied>, Failure> {
    let _guard = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    let files = defined(dir, node).map_err(|error| unreadable(dir, &error))?;
    let mut remaining: Vec<&(String, String)> = wanted.iter().collect();
    let mut doomed = Vec::new();
    for file in files {
        let broken_but_named = |(namespace, name): &(String, String)| {
            file.keys.is_empty() && file.path.file_stem().is_some_and(|stem| *stem == *format!("{namespace}_{name}"))
        };
        if !wanted.iter().any(|key| file.keys.contains(key) || broken_but_named(key)) {
            continue;
        }
        if let Some((namespace, name)) = file.keys.iter().find(|key| !wanted.contains(key)) {
            let path = file.path.display();
            return Err(Failure::conflict(format!(
                "{path} also defines pod {namespace}/{name}: edit the file, or delete all its pods with delete -f"
            )));
        }
        remaining.retain(|key| !(file.keys.contains(key) || broken_but_named(key)));
        doomed.push((file.path, file.pods));
    }
    if let Some((namespace, name)) = remaining.first() {
        let dir = dir.display();
        return Err(Failure::not_found(format!("no file in {dir} defines pod {namespace}/{name}")));
    }
    remove(dir, doomed)
}

fn remove(dir: &Path, doomed: Vec<(PathBuf, Vec<Pod>)>) -> Result<Vec<Applied>, Failure> {
    let mut removed = Vec::new();
    for (path, pods) in doomed {
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::not_found(format!("{} does not exist", path.display())));
            }
            Err(error) => return Err(Failure::internal(format!("cannot remove {}: {error}", path.display()))),
        }
        // Without its manifest it is nothing.
        if let Err(error) = discard(&signature_path(&path)) {
            tracing::warn!(manifest = %path.display(), %error, "the signature of a manifest that is gone cannot be removed");
        }
        let (file, pods) = (path.display().to_string(), names(&pods));
        removed.push(Applied { file, action: Action::Deleted, pods, problems: Vec::new() });
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| unreadable(dir, &error))?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_the_node_s_suffix_only() {
        assert_eq!(base_name("web-n1", "n1"), "web");
        assert_eq!(base_name("web", "n1"), "web");
        assert_eq!(base_name("-n1", "n1"), "-n1");
        assert_eq!(base_name("webn1", "n1"), "webn1");
    }

    #[test]
    fn file_names_cannot_leave_the_directory() {
        for bad in ["", ".x", "..", "a/b", "A", "a b", "\0"] {
            assert!(checked_stem(bad).is_err(), "{bad:?}");
        }
        assert!(checked_stem("default_static-web").is_ok());
    }

    #[test]
    fn replacing_leaves_no_other_file_and_mode_0600() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = std::env::temp_dir().join(format!("coracle-replace-{}", std::process::id()));
        let path = dir.join("a.yaml");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }
}
