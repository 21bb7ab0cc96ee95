//! `apply` and `delete`: files of the manifest directory, written whole or not at all.

use super::Node;
use super::reply::{self, Failure, Reply, blocking};
use super::route::Query;
use super::types::{Action, Applied, Cause, ObjectName, PodName};
use crate::manifest::{self, Loaded, Object, ObjectId, ObjectKind, Objects, Origin, Problem, Severity};
use crate::minisign::{EXTENSION, LARGEST_SIGNATURE};
use crate::source::{SignatureError, Text, Verifier};
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Pod;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Largest manifest, in bytes; the limit of the directory source.
pub(super) const MAX_MANIFEST: u64 = 10 << 20;

/// One change of the directory at a time: the check for other files that define a pod must still hold at the rename.
static DIRECTORY: Mutex<()> = Mutex::new(());

/// Answers `POST /coracle/v1/apply[?file=STEM][&signature=TEXT][&strict=true]` with [`Applied`]. The signature is the text
/// of the manifest's `.minisig`. A node without keys keeps it all the same: it counts as soon as the node has keys. If
/// `strict`, a pod that would have to wait for a ConfigMap or Secret is refused; else that is a warning.
pub(super) async fn apply(node: Arc<dyn Node>, query: &Query, manifest: Bytes) -> Result<Reply, Failure> {
    let stem = query.get("file").map(checked_stem).transpose()?;
    let signature = query.get("signature").map(str::to_owned);
    if signature.as_ref().is_some_and(|text| text.len() as u64 > LARGEST_SIGNATURE) {
        return Err(Failure::bad_request("signature: is too large for one"));
    }
    let strict = query.flag("strict")?;
    let (dir, name, verifier) = (node.manifest_dir(), node.name().to_owned(), node.verifier());
    let served = node.objects();
    let applied = blocking(move || {
        let text = Sent { manifest: &manifest, signature: signature.as_deref(), stem: stem.as_deref(), strict };
        write(&dir, &name, &text, verifier.as_deref(), &served)
    })
    .await??;
    node.rescan();
    reply::json(&applied)
}

/// Answers `POST /coracle/v1/delete?pod=NAMESPACE/NAME&object=KIND/NAMESPACE/NAME…` or `?file=STEM` with a list of
/// [`Applied`]. What pods still need of what goes is among the problems.
pub(super) async fn delete(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let stem = query.get("file").map(checked_stem).transpose()?;
    let mut wanted = Vec::new();
    for pod in query.all("pod") {
        let (namespace, name) =
            pod.split_once('/').ok_or_else(|| Failure::bad_request(format!("pod: {pod:?} is not NAMESPACE/NAME")))?;
        wanted.push(Named::Pod(namespace.to_owned(), base_name(name, node.name()).to_owned()));
    }
    for object in query.all("object") {
        wanted.push(Named::Object(object_id(object)?));
    }
    let running: Vec<Arc<Pod>> = node.pods();
    let (dir, name) = (node.manifest_dir(), node.name().to_owned());
    let removed = match (stem, wanted.is_empty()) {
        (Some(stem), true) => blocking(move || remove_file(&dir, &name, &stem, &running)).await??,
        (None, false) => blocking(move || remove_named(&dir, &name, &wanted, &running)).await??,
        _ => return Err(Failure::bad_request("name either pods and objects, or a file")),
    };
    node.rescan();
    reply::json(&removed)
}

/// Reads `configmap/default/settings`.
fn object_id(text: &str) -> Result<ObjectId, Failure> {
    let mut parts = text.splitn(3, '/');
    let (kind, namespace, name) = (parts.next(), parts.next(), parts.next());
    let kind = [ObjectKind::ConfigMap, ObjectKind::Secret]
        .into_iter()
        .find(|known| kind.is_some_and(|kind| kind.eq_ignore_ascii_case(known.as_str())));
    match (kind, namespace, name) {
        (Some(kind), Some(namespace), Some(name)) => {
            Ok(ObjectId { kind, namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err(Failure::bad_request(format!("object: {text:?} is not configmap or secret/NAMESPACE/NAME"))),
    }
}

/// What a manifest defines: a pod, by its name without the node's suffix, or an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    Pod(String, String),
    Object(ObjectId),
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Named::Pod(namespace, name) => write!(f, "pod {namespace}/{name}"),
            Named::Object(id) => id.fmt(f),
        }
    }
}

impl Named {
    /// What the file is called that only it is in.
    fn stem(&self) -> String {
        match self {
            Named::Pod(namespace, name) => format!("{namespace}_{name}"),
            // No pod's file: a namespace has no underscore, so that has one less.
            Named::Object(ObjectId { kind, namespace, name }) => {
                format!("{}_{namespace}_{name}", kind.as_str().to_ascii_lowercase())
            }
        }
    }
}

/// A pod's name without the node's suffix.
pub(super) fn base_name<'a>(name: &'a str, node: &str) -> &'a str {
    name.strip_suffix(node).and_then(|name| name.strip_suffix('-')).filter(|name| !name.is_empty()).unwrap_or(name)
}

/// A name that is one path component and that the directory source reads.
fn checked_stem(stem: &str) -> Result<String, Failure> {
    let fits = (1..=200).contains(&stem.len())
        && stem.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.'))
        && !stem.starts_with('.');
    if fits { Ok(stem.to_owned()) } else { Err(Failure::bad_request(format!("{stem:?} is not a file name"))) }
}

fn key(pod: &Pod, node: &str) -> Named {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    Named::Pod(pod.metadata.namespace.clone().unwrap_or_default(), base_name(name, node).to_owned())
}

/// All that a manifest defines, pods first.
fn keys(loaded: &Loaded, node: &str) -> Vec<Named> {
    let objects = loaded.objects.iter().map(|object| Named::Object(object.id()));
    loaded.pods.iter().map(|pod| key(pod, node)).chain(objects).collect()
}

fn object_names(objects: &[Object]) -> Vec<ObjectName> {
    let name = |object: &Object| {
        let ObjectId { kind, namespace, name } = object.id();
        ObjectName { kind: kind.as_str().to_owned(), namespace, name }
    };
    objects.iter().map(name).collect()
}

fn names(pods: &[Pod]) -> Vec<PodName> {
    let name = |pod: &Pod| PodName {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
    };
    pods.iter().map(name).collect()
}

/// What a client wants written.
struct Sent<'a> {
    manifest: &'a [u8],
    signature: Option<&'a str>,
    /// Name of the file without its extension; `None`: made of what it defines first.
    stem: Option<&'a str>,
    /// Whether it is refused while a pod would have to wait for an object.
    strict: bool,
}

/// Refuses what the directory source would refuse as well.
fn verify(verifier: &Verifier, sent: &Sent<'_>, text: &Text<'_>) -> Result<(), SignatureError> {
    let missing = || SignatureError::Missing(format!("signature with it ({EXTENSION})"));
    let signed = verifier.verify(sent.manifest, sent.signature.ok_or_else(missing)?.as_bytes())?;
    verifier.check(text, &signed)
}

fn write(
    dir: &Path,
    node: &str,
    sent: &Sent<'_>,
    verifier: Option<&Verifier>,
    served: &Objects,
) -> Result<Applied, Failure> {
    let bytes = sent.manifest;
    let loaded = manifest::load(bytes, Origin::File("manifest"), node);
    let mut problems: Vec<Cause> = loaded.problems.iter().map(Cause::from).collect();
    if loaded.problems.iter().any(|problem| matches!(problem.severity, Severity::Error)) {
        return Err(Failure::invalid("the manifest is invalid", problems));
    }
    let keys = keys(&loaded, node);
    let nothing = || Failure::invalid("the manifest defines no pod and no object", problems.clone());
    let first = keys.first().ok_or_else(nothing)?;
    let stem = match sent.stem {
        Some(stem) => stem.to_owned(),
        None => checked_stem(&first.stem())?,
    };
    let path = dir.join(format!("{stem}.yaml"));
    if let Some(verifier) = verifier {
        let text = Text { origin: &path.to_string_lossy(), bytes, loaded: &loaded, node };
        let refused = |error: SignatureError| Failure::forbidden(format!("the manifest {error}"));
        verify(verifier, sent, &text).map_err(refused)?;
    }
    let _guard = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut others = defined(dir, node).map_err(|error| unreadable(dir, &error))?;
    others.retain(|other| other.path != path);
    for other in &others {
        if let Some(key) = other.keys.iter().find(|key| keys.contains(key)) {
            let file = other.path.display();
            return Err(Failure::conflict(format!("{key} is already defined by {file}: edit that file")));
        }
    }
    let lacking = lacking(&loaded, &others, served);
    if sent.strict && !lacking.is_empty() {
        problems.extend(lacking.iter().map(Cause::from));
        return Err(Failure::invalid("the manifest refers to what is not there", problems));
    }
    problems.extend(waited_for(lacking));
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
    let (pods, objects) = (names(&loaded.pods), object_names(&loaded.objects));
    Ok(Applied { file: path.display().to_string(), action, pods, objects, problems })
}

/// Makes a manifest's one document out of the present one, if there is one.
pub(super) type Change = Box<dyn FnOnce(Option<serde_json::Value>) -> Result<serde_json::Value, Failure> + Send>;

/// What a change of one manifest came to.
pub(super) struct Edited {
    pub(super) action: Action,
    pub(super) pods: Vec<Pod>,
    pub(super) objects: Vec<Object>,
    pub(super) problems: Vec<Cause>,
}

/// Changes the manifest that defines `named` and nothing else, or writes one; with the checks of [`apply`]. `dry`: nothing is
/// written. `strict`: fields that nobody knows are refused, not ignored.
pub(super) fn edit(api: &dyn Node, named: &Named, dry: bool, strict: bool, change: Change) -> Result<Edited, Failure> {
    let (dir, node, verifier) = (api.manifest_dir(), api.name(), api.verifier());
    let _guard = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut others = defined(&dir, node).map_err(|error| unreadable(&dir, &error))?;
    let found = others.iter().position(|file| file.keys.contains(named)).map(|at| others.remove(at));
    let (path, present) = match &found {
        Some(file) => (file.path.clone(), Some(only_document(file, named)?)),
        None => (dir.join(format!("{}.yaml", checked_stem(&named.stem())?)), None),
    };
    let document = change(present.clone())?;
    let is_json = path.extension().is_some_and(|kind| kind == "json");
    let text =
        if is_json { serde_json::to_string_pretty(&document).ok() } else { serde_yaml::to_string(&document).ok() };
    let bytes = text.ok_or_else(|| Failure::internal("the manifest cannot be written as text"))?.into_bytes();
    let loaded = manifest::load(&bytes, Origin::File(&path.to_string_lossy()), node);
    let mut problems: Vec<Cause> = loaded.problems.iter().map(Cause::from).collect();
    // Lines are those of a text that the client has not seen.
    problems.iter_mut().for_each(|cause| (cause.line, cause.column) = (None, None));
    if loaded.has_errors() {
        let why = problems.iter().find(|cause| cause.reason != "Warning");
        let why = why.map(|cause| format!("{}: {}", cause.field, cause.message)).unwrap_or_default();
        return Err(Failure::invalid(format!("{named} is invalid: {why}"), problems));
    }
    let unknown = problems.iter().find(|cause| cause.message.starts_with("unknown field")).filter(|_| strict);
    if let Some(cause) = unknown {
        return Err(Failure::bad_request(format!("strict decoding error: unknown field {:?}", cause.field)));
    }
    if keys(&loaded, node) != [named.clone()] {
        return Err(Failure::invalid(format!("it has to define {named}, and nothing else"), problems));
    }
    if let Some(verifier) = &verifier {
        let text = Text { origin: &path.to_string_lossy(), bytes: &bytes, loaded: &loaded, node };
        let sent = Sent { manifest: &bytes, signature: None, stem: None, strict: false };
        let refused = |error: SignatureError| Failure::forbidden(format!("the manifest {error}"));
        verify(verifier, &sent, &text).map_err(refused)?;
    }
    problems.extend(waited_for(lacking(&loaded, &others, &api.objects())));
    let action = match present {
        None if path.exists() => {
            let file = path.display();
            return Err(Failure::conflict(format!("{file} is there, and does not define {named}: remove it")));
        }
        None => Action::Created,
        Some(present) if present == document => Action::Unchanged,
        Some(_) => Action::Configured,
    };
    if action != Action::Unchanged && !dry {
        let written = replace(&path, &bytes).and_then(|()| discard(&signature_path(&path)));
        written.map_err(|error| Failure::internal(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(Edited { action, pods: loaded.pods, objects: loaded.objects, problems })
}

/// The one document of a file.
fn only_document(file: &Defined, named: &Named) -> Result<serde_json::Value, Failure> {
    let path = file.path.display();
    if let Some(other) = file.keys.iter().find(|key| *key != named) {
        return Err(Failure::conflict(format!("{path} also defines {other}: edit the file")));
    }
    let text = read_limited(&file.path).map_err(|error| Failure::internal(format!("cannot read {path}: {error}")))?;
    let documents = manifest::documents(&text);
    let documents = documents.map_err(|problem| Failure::conflict(format!("{path}: {problem}")))?;
    let mut documents = documents.into_iter().filter(|document| !document.is_null());
    match (documents.next(), documents.next()) {
        (Some(document), None) if document["items"].is_null() => Ok(document),
        _ => Err(Failure::conflict(format!("{path} holds more than {named}: edit the file"))),
    }
}

/// Removes the files that define these, all or none.
pub(super) fn remove_these(api: &dyn Node, named: &[Named]) -> Result<Vec<Applied>, Failure> {
    remove_named(&api.manifest_dir(), api.name(), named, &api.pods())
}

/// What a manifest lacks, as warnings.
fn waited_for(mut lacking: Vec<Problem>) -> Vec<Cause> {
    for problem in &mut lacking {
        problem.severity = Severity::Warning;
        problem.reason.push_str("; until it is there this version of the pod waits");
    }
    lacking.iter().map(Cause::from).collect()
}

/// What the pods of a manifest refer to and is neither served, nor in it, nor in a file that is about to be looked at.
fn lacking(loaded: &Loaded, others: &[Defined], served: &Objects) -> Vec<Problem> {
    let on_disk = others.iter().flat_map(|other| &other.objects);
    let available: Objects = served.iter().chain(on_disk).chain(&loaded.objects).cloned().collect();
    let mut found: Vec<Problem> = loaded.pods.iter().flat_map(|pod| manifest::unresolved(pod, &available)).collect();
    manifest::locate(&mut found, &loaded.places);
    found
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

/// A file of the manifest directory and what it defines.
struct Defined {
    path: PathBuf,
    pods: Vec<Pod>,
    objects: Vec<Object>,
    keys: Vec<Named>,
}

impl Defined {
    /// What cannot be read or is broken defines nothing, or only what is not broken.
    fn read(path: PathBuf, node: &str) -> Defined {
        let loaded = read_limited(&path).map_or_else(
            |_| Loaded::default(),
            |bytes| manifest::load(&bytes, Origin::File(&path.to_string_lossy()), node),
        );
        let keys = keys(&loaded, node);
        Defined { path, pods: loaded.pods, objects: loaded.objects, keys }
    }
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
    Ok(paths.into_iter().map(|path| Defined::read(path, node)).collect())
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

fn remove_file(dir: &Path, node: &str, stem: &str, running: &[Arc<Pod>]) -> Result<Vec<Applied>, Failure> {
    let path = dir.join(format!("{stem}.yaml"));
    let _guard = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    remove(dir, node, vec![Defined::read(path, node)], running)
}

/// Removes the files that define what is wanted, all or none. A file that defines something else too is left alone.
fn remove_named(dir: &Path, node: &str, wanted: &[Named], running: &[Arc<Pod>]) -> Result<Vec<Applied>, Failure> {
    let _guard = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    let files = defined(dir, node).map_err(|error| unreadable(dir, &error))?;
    let mut remaining: Vec<&Named> = wanted.iter().collect();
    let mut doomed = Vec::new();
    for file in files {
        let broken_but_named =
            |key: &Named| file.keys.is_empty() && file.path.file_stem().is_some_and(|stem| *stem == *key.stem());
        if !wanted.iter().any(|key| file.keys.contains(key) || broken_but_named(key)) {
            continue;
        }
        if let Some(other) = file.keys.iter().find(|key| !wanted.contains(key)) {
            let path = file.path.display();
            return Err(Failure::conflict(format!(
                "{path} also defines {other}: edit the file, or delete all that it defines with delete -f"
            )));
        }
        remaining.retain(|key| !(file.keys.contains(key) || broken_but_named(key)));
        doomed.push(file);
    }
    if let Some(key) = remaining.first() {
        return Err(Failure::not_found(format!("no file in {} defines {key}", dir.display())));
    }
    remove(dir, node, doomed, running)
}

fn remove(dir: &Path, node: &str, doomed: Vec<Defined>, running: &[Arc<Pod>]) -> Result<Vec<Applied>, Failure> {
    let going: Vec<Named> = doomed.iter().flat_map(|file| file.keys.iter().cloned()).collect();
    let stays = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_none() && !going.contains(&key(pod, node));
    let running: Vec<&Arc<Pod>> = running.iter().filter(stays).collect();
    let mut removed = Vec::new();
    for Defined { path, pods, objects, .. } in doomed {
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
        let problems = objects.iter().filter_map(|object| needed(&object.id(), &running)).collect();
        let (file, pods, objects) = (path.display().to_string(), names(&pods), object_names(&objects));
        removed.push(Applied { file, action: Action::Deleted, pods, objects, problems });
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| unreadable(dir, &error))?;
    Ok(removed)
}

/// Tells that an object stays without its manifest, because one of these pods cannot do without it.
fn needed(id: &ObjectId, running: &[&Arc<Pod>]) -> Option<Cause> {
    running.iter().find_map(|pod| {
        let found = manifest::references(pod).into_iter().find(|found| !found.optional && found.object == *id)?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let field = found.name_field();
        let message = format!("{id} stays as long as pod {namespace}/{name} needs it ({field})");
        Some(Cause { reason: "Warning".to_owned(), message, field: String::new(), line: None, column: None })
    })
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
    fn objects_are_named_by_kind_namespace_and_name() {
        for (text, shown, stem) in [
            ("configmap/default/settings", "ConfigMap default/settings", "configmap_default_settings"),
            ("Secret/other/db", "Secret other/db", "secret_other_db"),
        ] {
            let named = object_id(text).map(Named::Object).unwrap_or_else(|_| panic!("{text}"));
            assert_eq!((named.to_string(), named.stem()), (shown.to_owned(), stem.to_owned()));
        }
        for bad in ["", "configmap", "configmap/x", "pod/default/x", "/default/x"] {
            assert!(object_id(bad).is_err(), "{bad:?}");
        }
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
