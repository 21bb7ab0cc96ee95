//! From a reference to an image in the store, over all the places that may have it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use oci_spec::distribution::Reference;
use oci_spec::image::ImageConfiguration;

use super::client::Session;
use super::credentials::Credentials;
use super::download::Download;
use super::exchange::{Halt, Patience};
use super::hosts::{Endpoint, Hosts};
use super::manifest::{self, Descriptor, Manifest};
use super::signatures::Attached;
use super::tls::Connections;
use super::{Error, LayerState, Progress, PullSecret, Pulled};
use crate::image::abreast::abreast;
use crate::image::trust::{Evidence, Transport, Trust};
use crate::image::{self, Digest, ImageStore, Ingest, NewImage, Origin, Verification, architecture};

/// Layers fetched side by side: enough to hide waiting, few enough for a small machine.
const PARALLEL: usize = 3;
/// Largest manifest or configuration, in bytes: the registries' own limit.
const LARGEST_DOCUMENT: u64 = 4 << 20;
/// Most manifests looked at for one image, and how deep indexes may be nested.
const MOST_DOCUMENTS: u32 = 32;
const DEEPEST: u32 = 4;
/// Bytes of fetched layers after which they are made durable: what a power cut may cost. Less would have small layers wait
/// for the disk one by one.
const KEEP_EVERY: u64 = 16 << 20;
/// Most characters of what people are told of a retry: some of it is a server's.
const LONGEST_MESSAGE: usize = 1000;
/// Most platforms that are named where none is for this machine.
const MOST_PLATFORMS: usize = 16;

/// All that one pull needs.
pub(super) struct Pull<'a> {
    pub store: &'a ImageStore,
    pub trust: &'a Trust,
    pub reference: &'a Reference,
    /// In the order in which they are to be asked; the last is the registry itself.
    pub endpoints: Vec<Endpoint>,
    /// What is known of other places, where those may lead to.
    pub hosts: &'a Hosts,
    pub patience: Patience,
    pub connections: &'a Connections,
    pub credentials: &'a Credentials,
    pub secrets: &'a [PullSecret],
    pub cancelled: &'a AtomicBool,
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

/// An image as its documents describe it.
struct Found {
    /// The manifest and the indexes above it: what the reference named is the first.
    path: Vec<Digest>,
    config: ImageConfiguration,
    /// The configuration as it came.
    document: Vec<u8>,
    id: Digest,
    /// With their diff IDs, bottom first.
    layers: Vec<(Descriptor, Digest)>,
}

impl Pull<'_> {
    /// # Errors
    /// As [`Error`] says; of several places, what the last one said.
    pub fn run(self) -> Result<Pulled, Error> {
        let Pull { store, trust, reference, endpoints, patience, cancelled, progress, .. } = self;
        let halt = Halt { asked: cancelled, failed: AtomicBool::new(false) };
        let retrying = |message: String| {
            let message = message.chars().take(LONGEST_MESSAGE).collect();
            progress(Progress::Retry { message });
        };
        let last = endpoints.len().saturating_sub(1);
        let sessions = endpoints.into_iter().enumerate().map(|(index, endpoint)| {
            let mut patience = patience.clone();
            if index < last {
                // There is another place to try.
                patience.attempts = patience.attempts.min(2);
            }
            if let Some(time) = endpoint.dial_timeout {
                patience.connect = time;
            }
            let candidates = self.credentials.candidates(&endpoint.host, &endpoint.repository, self.secrets);
            Session::new(endpoint, candidates, self.hosts, self.connections, patience, &halt, &retrying)
        });
        let sessions = sessions.collect::<Result<Vec<_>, Error>>()?;
        let sources = Sources { sessions, reference, retrying: &retrying };
        let outcome = bring(&sources, store, trust, reference, &halt, progress);
        // What a cancelled pull failed of is of no interest.
        if cancelled.load(Ordering::Relaxed) && outcome.is_err() {
            return Err(Error::Cancelled);
        }
        outcome
    }
}

fn bring(
    sources: &Sources<'_>,
    store: &ImageStore,
    trust: &Trust,
    reference: &Reference,
    halt: &Halt<'_>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Pulled, Error> {
    let (found, at) = sources.find()?;
    let verified = sources.verify(trust, &reference.whole(), &found.path)?;
    let ingest = store.ingest()?;
    let manifest = found.path.last().cloned().unwrap_or_else(|| found.id.clone());
    progress(Progress::Resolved { digest: manifest.clone(), layers: found.layers.len() });
    let missing = found.layers.iter().filter(|(_, diff_id)| ingest.has(diff_id).is_none());
    // Unpacked they are larger: the least is known before anything is fetched.
    ingest.room(missing.map(|(layer, _)| layer.size).fold(0, u64::saturating_add))?;
    let layers = Layers { sources, first: at, ingest: &ingest, store, halt, progress, unkept: AtomicU64::new(0) };
    let fetched = layers.fetch(&found.layers)?;
    halt.check()?;
    let known = store.lookup(&reference.whole()).is_some_and(|image| image.id == found.id.as_str());
    let named = found.path.first().cloned().unwrap_or_else(|| found.id.clone());
    let image = ingest.commit(NewImage {
        id: ingest.keep_configuration(&found.document)?,
        // A digest is no name: nothing moves when another image gets it.
        names: if reference.digest().is_some() { Vec::new() } else { vec![reference.whole()] },
        digests: found.path,
        config: found.config,
        origin: Some(Origin::Registry { repository: repository(reference), digest: manifest }),
        verified,
        pinned: false,
    })?;
    let secret = sources.sessions.iter().find_map(Session::secret);
    Ok(Pulled { image, digest: named, fetched, known, secret })
}

/// `docker.io/library/nginx`.
pub(super) fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// The places an image may be had from.
struct Sources<'a> {
    sessions: Vec<Session<'a>>,
    reference: &'a Reference,
    retrying: &'a (dyn Fn(String) + Sync),
}

/// Whether another place may do better.
fn is_local(error: &Error) -> bool {
    matches!(
        error,
        Error::Cancelled
            | Error::Refused(_)
            | Error::Settings { .. }
            | Error::Image(
                image::Error::InvalidImageName { .. }
                    | image::Error::NoSpace { .. }
                    | image::Error::Record(_)
                    | image::Error::Io { .. }
                    | image::Error::Apply { .. }
            )
    )
}

impl<'a> Sources<'a> {
    /// Tries one place after the other, beginning with `first`, until one does it.
    fn each<T>(
        &'a self,
        first: usize,
        usable: impl Fn(&Endpoint) -> bool,
        mut attempt: impl FnMut(&'a Session<'a>) -> Result<T, Error>,
    ) -> Result<(T, usize), Error> {
        let count = self.sessions.len();
        let (mut failure, mut last) = (None, None::<String>);
        for index in (0..count).map(|n| (first + n) % count.max(1)) {
            let session = &self.sessions[index];
            if !usable(&session.endpoint) {
                continue;
            }
            if let Some(error) = &last {
                (self.retrying)(format!("{error}; trying {}", session.endpoint.base));
            }
            match attempt(session) {
                Ok(value) => return Ok((value, index)),
                Err(error) if is_local(&error) => return Err(error),
                Err(error) => {
                    // What the registry itself says counts for more than what a mirror says.
                    let previous = failure.take();
                    last = Some(error.to_string());
                    failure =
                        Some(if index + 1 == count || previous.is_none() { error } else { previous.unwrap_or(error) });
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::Unavailable {
            url: repository(self.reference),
            reason: "no place is configured that may be asked for it".into(),
        }))
    }

    /// The image that the reference stands for on this machine, and the place that has it.
    fn find(&'a self) -> Result<(Found, usize), Error> {
        let pinned = match self.reference.digest() {
            Some(digest) => Some(digest.parse::<Digest>()?),
            None => None,
        };
        let named = match &pinned {
            Some(digest) => digest.to_string(),
            None => self.reference.tag().unwrap_or("latest").to_owned(),
        };
        let usable = |endpoint: &Endpoint| {
            if pinned.is_some() { endpoint.capabilities.pull } else { endpoint.capabilities.resolve }
        };
        let result = self.each(0, usable, |session| {
            let (content, content_type) = document(session, &named, pinned.as_ref(), None)?;
            let mut search = Search { session, looked_at: 0, elsewhere: Vec::new() };
            let digest = Digest::of(&content);
            match search.follow(digest, content, &content_type, &[], 0)? {
                Some(found) => Ok(found),
                None => Err(search.nothing().into()),
            }
        });
        result.map_err(|error| match error {
            Error::NotFound { .. } => Error::NotFound { image: self.reference.whole() },
            other => other,
        })
    }

    /// Asks the policy, with signatures if it wants any. Those of one digest or place may be enough: only when none is, an
    /// answer that is missing matters.
    fn verify(&'a self, trust: &Trust, name: &str, digests: &[Digest]) -> Result<Vec<Verification>, Error> {
        let mut attached = Attached::default();
        let admit = |attached: &Attached| {
            let Attached { signatures, problems } = attached;
            let transport = Transport::Docker;
            trust.admit(&Evidence { transport, name, digests, signatures, archive_keys: &[], problems })
        };
        if !trust.wants_signatures(name)? {
            return Ok(admit(&attached)?);
        }
        let mut missing = None;
        for session in self.sessions.iter().filter(|session| session.endpoint.capabilities.resolve) {
            for digest in digests {
                match attached.fetch(session, digest) {
                    Ok(()) if attached.signatures.is_empty() => {}
                    Ok(()) => {
                        if let Ok(verified) = admit(&attached) {
                            return Ok(verified);
                        }
                    }
                    Err(error @ Error::Cancelled) => return Err(error),
                    Err(error) => {
                        missing = Some(error);
                        break;
                    }
                }
            }
        }
        match missing {
            // Nobody has seen a signature, but it may be there.
            Some(error) if attached.signatures.is_empty() && attached.problems.is_empty() => Err(error),
            Some(error) => {
                attached.problems.push(format!("and others may be where nobody answers: {error}"));
                Ok(admit(&attached)?)
            }
            None => Ok(admit(&attached)?),
        }
    }
}

/// A manifest or index by tag or digest, with its content type. `size`: as the index above it says.
pub(super) fn document(
    session: &Session<'_>,
    name: &str,
    expected: Option<&Digest>,
    size: Option<u64>,
) -> Result<(Vec<u8>, String), Error> {
    let accept = [("accept".to_owned(), manifest::ACCEPT.to_owned())];
    let (answer, content) = session.document(&format!("manifests/{name}"), &accept, LARGEST_DOCUMENT)?;
    let protocol = |reason: String| Err(Error::Protocol { url: answer.url.clone(), reason });
    let content_type = answer.header("content-type").unwrap_or_default().to_owned();
    if content_type.starts_with("text/html") || content.trim_ascii_start().starts_with(b"<") {
        return protocol("a web page instead of a manifest: is there a proxy or a login page on the way?".into());
    }
    if let Some(size) = size.filter(|size| *size != content.len() as u64) {
        return protocol(format!("has {} bytes, but the index says {size}", content.len()));
    }
    let actual = Digest::of(&content);
    let claimed = answer.header("docker-content-digest").and_then(|digest| digest.parse::<Digest>().ok());
    if let Some(expected) = expected {
        check("manifest", expected, actual)?;
    } else if let Some(claimed) = claimed.filter(|claimed| *claimed != actual) {
        return protocol(format!("says it is {claimed}, but it is {actual}"));
    }
    Ok((content, content_type))
}

/// A small blob, in memory.
pub(super) fn small_blob(
    session: &Session<'_>,
    what: &'static str,
    blob: &Descriptor,
    limit: u64,
) -> Result<Vec<u8>, Error> {
    if blob.size > limit {
        return Err(image::Error::Limit { what: "bytes in a document", limit }.into());
    }
    let (answer, content) = session.document(&format!("blobs/{}", blob.digest), &[], limit)?;
    check(what, &blob.digest, Digest::of(&content))?;
    if content.len() as u64 != blob.size {
        let reason = format!("has {} bytes, but the manifest says {}", content.len(), blob.size);
        return Err(Error::Protocol { url: answer.url, reason });
    }
    Ok(content)
}

fn check(what: &'static str, expected: &Digest, actual: Digest) -> Result<(), image::Error> {
    match actual == *expected {
        true => Ok(()),
        false => Err(image::Error::Mismatch { what, expected: expected.clone(), actual }),
    }
}

/// The search through an index for what runs here.
struct Search<'a> {
    session: &'a Session<'a>,
    looked_at: u32,
    elsewhere: Vec<String>,
}

impl Search<'_> {
    /// The image of a document, or of what it lists; `None`: nothing for this machine.
    fn follow(
        &mut self,
        digest: Digest,
        content: Vec<u8>,
        content_type: &str,
        above: &[Digest],
        depth: u32,
    ) -> Result<Option<Found>, Error> {
        self.looked_at += 1;
        if self.looked_at > MOST_DOCUMENTS {
            return Err(image::Error::Limit { what: "manifests for one image", limit: MOST_DOCUMENTS.into() }.into());
        }
        let mut path = above.to_vec();
        path.push(digest);
        match manifest::parse(&content, content_type)? {
            Manifest::Image { config, layers } => self.image(path, &config, layers),
            Manifest::Index(_) if depth == DEEPEST => {
                Err(image::Error::Limit { what: "indexes within another", limit: DEEPEST.into() }.into())
            }
            Manifest::Index(manifests) => {
                // Only of use for choosing.
                drop(content);
                let (chosen, elsewhere) = manifest::choose(manifests, manifest::machine_variant());
                self.elsewhere.extend(elsewhere);
                for descriptor in chosen {
                    let name = descriptor.digest.to_string();
                    let (content, content_type) =
                        document(self.session, &name, Some(&descriptor.digest), Some(descriptor.size))?;
                    let found = self.follow(descriptor.digest, content, &content_type, &path, depth + 1)?;
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                Ok(None)
            }
        }
    }

    fn image(
        &mut self,
        path: Vec<Digest>,
        config: &Descriptor,
        layers: Vec<Descriptor>,
    ) -> Result<Option<Found>, Error> {
        manifest::check_image(config, &layers)?;
        let content = small_blob(self.session, "image configuration", config, LARGEST_DOCUMENT)?;
        let parsed = image::configuration(&content)?;
        let (os, machine) = (parsed.os().to_string(), parsed.architecture().to_string());
        if os != "linux" || machine != architecture() {
            let name = format!("{os}/{machine}");
            self.elsewhere.push(name.chars().map(|c| if c.is_control() { '?' } else { c }).take(60).collect());
            return Ok(None);
        }
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() != layers.len() {
            let (listed, known) = (layers.len(), diff_ids.len());
            let reason = format!("the configuration has {known} diff_ids, but the manifest lists {listed} layers");
            return Err(image::Error::Document(reason).into());
        }
        let paired: Result<Vec<_>, image::Error> =
            layers.into_iter().zip(diff_ids).map(|(layer, diff_id)| Ok((layer, diff_id.parse()?))).collect();
        Ok(Some(Found { path, id: config.digest.clone(), layers: paired?, config: parsed, document: content }))
    }

    /// Why nothing was found.
    fn nothing(mut self) -> image::Error {
        self.elsewhere.sort();
        self.elsewhere.dedup();
        let more = self.elsewhere.len().saturating_sub(MOST_PLATFORMS);
        if more > 0 {
            self.elsewhere.truncate(MOST_PLATFORMS);
            self.elsewhere.push(format!("{more} more"));
        }
        match self.elsewhere.is_empty() {
            true => image::Error::Document("the index lists no images".into()),
            false => image::Error::Platform { wanted: architecture().into(), found: self.elsewhere.join(", ") },
        }
    }
}

/// The layers of one image on their way.
struct Layers<'a> {
    sources: &'a Sources<'a>,
    /// The place that has the manifest.
    first: usize,
    ingest: &'a Ingest<'a>,
    store: &'a ImageStore,
    halt: &'a Halt<'a>,
    progress: &'a (dyn Fn(Progress) + Sync),
    /// Bytes fetched that a power cut would lose.
    unkept: AtomicU64,
}

impl Layers<'_> {
    /// Fetches what is not here yet, some at a time; whether there was any.
    fn fetch(&self, layers: &[(Descriptor, Digest)]) -> Result<bool, Error> {
        let mut missing: VecDeque<&(Descriptor, Digest)> = VecDeque::new();
        for layer in layers {
            let (descriptor, diff_id) = layer;
            if missing.iter().any(|(_, other)| other == diff_id) {
                continue;
            }
            let here = self.ingest.has(diff_id).is_some();
            let state = if here { LayerState::Present } else { LayerState::Waiting };
            let done = if here { descriptor.size } else { 0 };
            self.tell(descriptor, done, state);
            if !here {
                missing.push_back(layer);
            }
        }
        if missing.is_empty() {
            return Ok(false);
        }
        let fetch = |(descriptor, diff_id): &(Descriptor, Digest)| self.layer(descriptor, diff_id);
        let fetched = abreast("image-pull", PARALLEL, missing, fetch, || {
            self.halt.failed.store(true, Ordering::Relaxed);
        });
        match fetched {
            Ok(()) => Ok(true),
            Err(error) => {
                self.keep_after(&error);
                Err(error)
            }
        }
    }

    /// The next attempt goes on with the layers that are here, unless nobody wants one or their space is missing.
    fn keep_after(&self, error: &Error) {
        let full = matches!(error, Error::Image(error) if error.is_no_space());
        if full || matches!(error, Error::Cancelled) {
            return;
        }
        if let Err(error) = self.ingest.keep_layers() {
            tracing::warn!(%error, "layers that were fetched cannot be kept");
        }
    }

    fn layer(&self, descriptor: &Descriptor, diff_id: &Digest) -> Result<(), Error> {
        let limit = self.store.limits().bytes;
        if descriptor.size > limit {
            return Err(image::Error::Limit { what: "bytes in a layer", limit }.into());
        }
        let fetched = self.sources.each(
            self.first,
            |endpoint| endpoint.capabilities.pull,
            |session| match self.stream(session, descriptor, diff_id, None) {
                Err(Error::NotFound { image }) if descriptor.is_foreign() => {
                    let mut failure = Error::NotFound { image };
                    for url in descriptor.urls.iter().flatten().take(8) {
                        match self.stream(session, descriptor, diff_id, Some(url)) {
                            Err(error @ Error::Cancelled) => return Err(error),
                            Err(error) => failure = error,
                            Ok(()) => return Ok(()),
                        }
                    }
                    Err(failure)
                }
                other => other,
            },
        );
        fetched?;
        self.tell(descriptor, descriptor.size, LayerState::Done);
        if self.unkept.fetch_add(descriptor.size, Ordering::Relaxed).saturating_add(descriptor.size) >= KEEP_EVERY {
            self.unkept.store(0, Ordering::Relaxed);
            self.ingest.keep_layers()?;
        }
        Ok(())
    }

    /// Download, digests and unpacking in one pass.
    fn stream<'s>(
        &self,
        session: &'s Session<'s>,
        descriptor: &'s Descriptor,
        diff_id: &Digest,
        url: Option<&'s str>,
    ) -> Result<(), Error> {
        self.halt.check()?;
        let failure = Mutex::new(None);
        let source = Download::new(session, descriptor, url, self.progress, &failure);
        let stored = self.ingest.layer(source, Some(&descriptor.digest), Some(diff_id), self.store.limits());
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (stored, failure) {
            (Ok(_), _) => Ok(()),
            // What unpacking says of a stream that broke off is only a consequence.
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(Error::Image(error)),
        }
    }

    fn tell(&self, descriptor: &Descriptor, done: u64, state: LayerState) {
        let (digest, size) = (descriptor.digest.clone(), descriptor.size);
        (self.progress)(Progress::Layer { digest, size, done, state });
    }
}
