//! One look at one manifest: whether it changed, what it says, and whether it may say so.

use super::directory::{Options, Takes};
use super::permissions::{self, Permissions};
use super::signature::{SignatureError, Text};
use crate::manifest::{self, Loaded, Origin, Problem, Severity};
use crate::minisign::{EXTENSION, LARGEST_SIGNATURE};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Two changes within the resolution of a file system's clock look like one; a file this young is read again next time.
const CLOCK_RESOLUTION: Duration = Duration::from_millis(50);

/// Tells whether a file changed without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Fingerprint {
        Fingerprint {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The state of a manifest and of its signature, when signatures are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    manifest: Fingerprint,
    signature: Option<Fingerprint>,
}

/// What became of reading a file.
pub(super) enum Outcome {
    /// Nothing changed.
    Same,
    /// It is not there (any more).
    Gone,
    /// It may be half-written: to be read again after this time.
    Unsettled(Duration),
    /// It is there but cannot be read.
    Unreadable(String),
    /// A link to nowhere.
    Dangling,
    /// It is no manifest.
    Stranger(String),
    Read(Option<Seen>, Box<Loaded>),
}

/// Reads, verifies and parses a file if it or its signature changed.
pub(super) fn look(path: &Path, seen: Option<Seen>, writing: bool, settle: Duration, options: &Options) -> Outcome {
    // What is no regular file is not even opened: opening a device can have effects.
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::symlink_metadata(path) {
                Ok(_) => Outcome::Dangling,
                Err(_) => Outcome::Gone,
            };
        }
        Err(error) => return Outcome::Unreadable(format!("cannot be read: {error}")),
    };
    if metadata.is_dir() {
        return Outcome::Stranger("ignored: is a directory".to_owned());
    }
    if !metadata.is_file() {
        return Outcome::Stranger("ignored: is not a regular file".to_owned());
    }
    let beside = || fs::metadata(signature_path(path)).ok().as_ref().map(Fingerprint::of);
    let signature = options.verifier.as_ref().and_then(|_| beside());
    if seen == Some(Seen { manifest: Fingerprint::of(&metadata), signature }) {
        return Outcome::Same;
    }
    let wait = unsettled(&metadata, settle);
    if let Some(wait) = wait.filter(|_| writing) {
        return Outcome::Unsettled(wait);
    }
    let (before, contents) = match read(path, manifest::MAX_BYTES as u64) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Outcome::Unsettled(CLOCK_RESOLUTION),
        Err(error) => return Outcome::Unreadable(format!("cannot be read: {error}")),
    };
    let objection = match options.permissions {
        Permissions::Ignore => None,
        Permissions::Warn | Permissions::Refuse => permissions::file_objection(path, &before),
    };
    let young = unsettled(&before, CLOCK_RESOLUTION).is_some();
    let seen = |signature| (!young).then(|| Seen { manifest: Fingerprint::of(&before), signature });
    let refused = |signature, reason| {
        let problems = vec![whole_file(reason, Severity::Error)];
        Outcome::Read(seen(signature), Box::new(Loaded { problems, ..Loaded::default() }))
    };
    if let Some(objection) = objection.as_ref().filter(|_| options.permissions == Permissions::Refuse) {
        return refused(signature, objection.clone());
    }
    let bytes = match contents {
        Contents::Whole(bytes) => bytes,
        Contents::NotAFile => return Outcome::Stranger("ignored: is not a regular file".to_owned()),
        Contents::Changing => return Outcome::Unsettled(settle.max(CLOCK_RESOLUTION)),
        Contents::TooLong => {
            let reason = format!("is {} bytes long; the limit is {} bytes", before.size(), manifest::MAX_BYTES - 1);
            return wait.map_or_else(|| refused(signature, reason), Outcome::Unsettled);
        }
    };
    // Verified and parsed are the same bytes in memory: what happens to the file in between is of no concern.
    let (signature, signed) = match &options.verifier {
        None => (None, None),
        Some(verifier) => {
            let (state, text) = read_signature(path);
            let signed = text.and_then(|text| verifier.verify(&bytes, &text));
            let signature = state.as_ref().map(Fingerprint::of);
            match signed {
                Ok(signed) => (signature, Some((verifier, signed))),
                Err(error) => {
                    // Of two files, one is replaced before the other.
                    let ages = [Some(&before), state.as_ref()];
                    let waits = ages.into_iter().flatten().filter_map(|file| in_motion(file, settle));
                    return waits.max().map_or_else(|| refused(signature, error.to_string()), Outcome::Unsettled);
                }
            }
        }
    };
    let origin = path.to_string_lossy();
    let mut loaded = manifest::load(&bytes, Origin::File(&origin), &options.node);
    if let Some(wait) = wait.filter(|_| loaded.has_errors()) {
        return Outcome::Unsettled(wait);
    }
    if options.takes == Takes::Objects {
        for pod in std::mem::take(&mut loaded.pods) {
            let name = pod.metadata.name.unwrap_or_default();
            let reason = format!(
                "Pod {name}: only ConfigMaps and Secrets are taken from here; pods go to the manifest directory"
            );
            loaded.problems.push(Problem { field: "kind".to_owned(), ..whole_file(reason, Severity::Error) });
        }
    }
    if let Some((verifier, signed)) = signed {
        let text = Text { origin: &origin, bytes: &bytes, loaded: &loaded, node: &options.node };
        if let Err(error) = verifier.check(&text, &signed) {
            return refused(signature, error.to_string());
        }
        verifier.accept(&text, &signed);
    }
    loaded.problems.extend(objection.map(|objection| whole_file(objection, Severity::Warning)));
    Outcome::Read(seen(signature), Box::new(loaded))
}

/// Where the signature of a manifest is.
fn signature_path(manifest: &Path) -> PathBuf {
    let mut path = OsString::from(manifest);
    path.push(EXTENSION);
    path.into()
}

/// The signature beside a manifest, and the state of its file as far as there is one.
fn read_signature(manifest: &Path) -> (Option<Metadata>, Result<Vec<u8>, SignatureError>) {
    let path = signature_path(manifest);
    let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // As with manifests: devices are not opened.
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (None, Err(SignatureError::Missing(name()))),
        Err(error) => return (None, Err(SignatureError::Unreadable(error.to_string()))),
    };
    let no_file = || SignatureError::Unreadable("not a regular file".to_owned());
    if !metadata.is_file() {
        return (Some(metadata), Err(no_file()));
    }
    match read(&path, LARGEST_SIGNATURE + 1) {
        Ok((state, Contents::Whole(text))) => (Some(state), Ok(text)),
        Ok((state, Contents::TooLong | Contents::Changing)) => (Some(state), Err(SignatureError::Malformed)),
        Ok((state, Contents::NotAFile)) => (Some(state), Err(no_file())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (None, Err(SignatureError::Missing(name()))),
        Err(error) => (Some(metadata), Err(SignatureError::Unreadable(error.to_string()))),
    }
}

/// What reading a file brought.
enum Contents {
    Whole(Vec<u8>),
    /// It has the limit's number of bytes, or more.
    TooLong,
    /// It changed while it was read.
    Changing,
    /// Something else has taken its place.
    NotAFile,
}

fn read(path: &Path, limit: u64) -> io::Result<(Metadata, Contents)> {
    // Should a FIFO have taken the file's place meanwhile, opening it must not wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok((metadata, Contents::NotAFile));
    }
    if metadata.size() >= limit {
        return Ok((metadata, Contents::TooLong));
    }
    let mut bytes = Vec::with_capacity(metadata.size() as usize + 1);
    (&file).take(limit).read_to_end(&mut bytes)?;
    let contents = match Fingerprint::of(&file.metadata()?) == Fingerprint::of(&metadata) {
        true => Contents::Whole(bytes),
        false => Contents::Changing,
    };
    Ok((metadata, contents))
}

/// How long until the file's last change is `age` old; `None` when it is.
fn unsettled(metadata: &Metadata, age: Duration) -> Option<Duration> {
    left(metadata.modified().ok()?, age)
}

/// As [`unsettled`]; being moved here counts as a change, too.
fn in_motion(metadata: &Metadata, age: Duration) -> Option<Duration> {
    let seconds = u64::try_from(metadata.ctime()).ok()?;
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).ok()?;
    let moved = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
    unsettled(metadata, age).max(moved.and_then(|moved| left(moved, age)))
}

/// How long until `then` is `age` ago. What is in the future is long ago: the clock was set back.
fn left(then: SystemTime, age: Duration) -> Option<Duration> {
    let passed = match SystemTime::now().duration_since(then) {
        Ok(passed) => passed,
        Err(ahead) if ahead.duration() < age => Duration::ZERO,
        Err(_) => return None,
    };
    age.checked_sub(passed).filter(|wait| !wait.is_zero())
}

/// A problem of no line in particular.
pub(super) fn whole_file(reason: String, severity: Severity) -> Problem {
    Problem { line: None, column: None, field: String::new(), reason, severity, pod: None }
}
