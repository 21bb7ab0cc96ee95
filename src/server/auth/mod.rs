//! Who asks, and whether they may: the one place of the node API where an identity is compared with what a route needs.
//!
//! ```text
//! certificate ─▶ authorities (hot-reloaded) ─┐
//! token ───────▶ TokenReview ── cache ───────┼─▶ User ─▶ AlwaysAllow, or SubjectAccessReview ── cache ─▶ served · 403
//! nothing ─────▶ anonymous, if allowed ──────┘                                                 └ no answer: 500
//!                else 401
//! ```
//!
//! Order and words are the kubelet's. What was answered counts for as long as it is configured to, also while the API server
//! does not answer; nothing else is let in then.

mod bearer;
mod cache;
pub(super) mod certificate;

use super::Node;
use super::tls::Peer;
use crate::cluster::{self, Access, ReviewError, Reviewer, User};
use crate::config::server::Authorization;
use crate::config::{self, Config};
use crate::http::kept::Kept;
use crate::sys::clock;
use cache::{Cache, Key};
use certificate::Authorities;
use hyper::{HeaderMap, Method};
use ring::hmac;
use ring::rand::SystemRandom;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Most answers that are remembered of a kind.
const REMEMBERED: usize = 1024;
/// Most questions of a kind to the API server at a time: who knows nobody can make the node ask.
const TURNS: usize = 8;
/// How long a turn may be waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at the file with the authorities.
const LOOK: Duration = Duration::from_secs(1);

/// Groups of those who are known, and of those who are not.
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ANONYMOUS: &str = "system:anonymous";

/// Why somebody is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// It is not known who asks. Why is for the log only.
    #[error("Unauthorized")]
    Unauthorized(String),
    /// It is, and they may not.
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{}])", .subresources.join(" "))]
    Forbidden {
        /// Name of the user.
        user: String,
        /// What they wanted to do.
        verb: &'static str,
        /// Each of these would have done.
        subresources: &'static [&'static str],
    },
    /// It cannot be found out whether they may.
    #[error("Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})")]
    Unknown {
        /// Name of the user.
        user: String,
        /// What they wanted to do.
        verb: &'static str,
        /// On this.
        subresource: &'static str,
        /// For the log.
        why: ReviewError,
    },
}

/// What stands for questions in caches: tokens are not kept, and nobody can make two of the same.
struct Keys(hmac::Key);

impl Keys {
    fn of<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Key {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.sign().as_ref());
        key
    }
}

/// Answers, yes and no apart: who asks with made-up tokens pushes out others' made-up tokens only.
struct Answers<V> {
    yes: Cache<V>,
    no: Cache<()>,
    /// Of the credentials over which they were given.
    epoch: u64,
}

impl<V: Clone> Answers<V> {
    fn new() -> Answers<V> {
        Answers { yes: Cache::new(REMEMBERED), no: Cache::new(REMEMBERED), epoch: 0 }
    }

    /// `Some(None)` is a no. Answers of another cluster are forgotten.
    fn get(&mut self, key: &Key, epoch: u64, now: Duration) -> Option<Option<V>> {
        if self.epoch != epoch {
            self.yes.clear();
            self.no.clear();
            self.epoch = epoch;
        }
        match self.yes.get(key, now) {
            Some(value) => Some(Some(value)),
            None => self.no.get(key, now).map(|()| None),
        }
    }

    fn put(&mut self, key: Key, answer: Option<V>, epoch: u64, [yes, no]: [Duration; 2], now: Duration) {
        if self.epoch != epoch {
            return;
        }
        match answer {
            Some(value) => self.yes.put(key, value, now + yes, now),
            None => self.no.put(key, (), now + no, now),
        }
    }
}

/// Keeps the door of the node API.
pub(super) struct Guard {
    node: Arc<dyn Node>,
    config: Arc<Config>,
    keys: Keys,
    begun: Instant,
    authorities: Trusted,
    tokens: Mutex<Answers<User>>,
    access: Mutex<Answers<()>>,
    token_turns: Semaphore,
    access_turns: Semaphore,
}

impl Guard {
    /// For the node, as it is configured.
    ///
    /// # Errors
    /// When the machine has no randomness.
    pub(super) fn new(node: Arc<dyn Node>) -> std::io::Result<Guard> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| std::io::Error::other("no randomness"))?;
        let config = node.config();
        Ok(Guard {
            authorities: Trusted::new(config.server.client_ca_file.clone()),
            node,
            config,
            keys: Keys(key),
            begun: Instant::now(),
            tokens: Mutex::new(Answers::new()),
            access: Mutex::new(Answers::new()),
            token_turns: Semaphore::new(TURNS),
            access_turns: Semaphore::new(TURNS),
        })
    }

    fn server(&self) -> &config::Server {
        &self.config.server
    }

    fn reviewer(&self) -> Option<Reviewer> {
        self.node.cluster().and_then(|handle: cluster::Handle| handle.reviewer.borrow().clone())
    }

    /// Lets somebody in who may do what `method` means with any of the `subresources` of the node, and recognises the peer.
    /// The token leaves the headers.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) async fn admit(
        &self,
        peer: &Peer,
        method: &Method,
        headers: &mut HeaderMap,
        subresources: &'static [&'static str],
    ) -> Result<User, Refusal> {
        let user = self.authenticate(peer, headers).await?;
        self.authorize(&user, verb(method), subresources).await?;
        peer.recognise();
        Ok(user)
    }

    /// Who asks. As kubelet: the certificate counts first, then the token; who shows one that is no good is nobody, also
    /// where those who show nothing are let in.
    async fn authenticate(&self, peer: &Peer, headers: &mut HeaderMap) -> Result<User, Refusal> {
        let token = bearer::take(headers);
        let mut wrong = Vec::new();
        if !peer.chain.is_empty() {
            let authorities = self.authorities.get(self.reviewer().as_ref(), self.server()).await;
            match authorities.user(&peer.chain, clock::for_certificates().as_second()) {
                Ok(user) => return Ok(known(user)),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        match token {
            Err(error) => wrong.push(error.to_string()),
            Ok(Some(token)) => match self.whose(&token).await {
                Ok(Some(user)) => return Ok(known(user)),
                Ok(None) => wrong.push("an invalid bearer token".to_owned()),
                Err(error) => wrong.push(format!("the token cannot be reviewed: {error}")),
            },
            Ok(None) => {}
        }
        if wrong.is_empty() && self.server().anonymous {
            return Ok(User {
                name: ANONYMOUS.to_owned(),
                groups: vec![UNAUTHENTICATED.to_owned()],
                ..User::default()
            });
        }
        if wrong.is_empty() {
            wrong.push("neither a certificate nor a token".to_owned());
        }
        Err(Refusal::Unauthorized(wrong.join("; ")))
    }

    /// Whose token this is; `None`: nobody's.
    async fn whose(&self, token: &str) -> Result<Option<User>, ReviewError> {
        let Some(counts) = self.server().token_webhook else { return Ok(None) };
        let reviewer = self.reviewer().ok_or(ReviewError::Alone)?;
        let key = self.keys.of([token]);
        let lookup = || lock(&self.tokens).get(&key, reviewer.epoch, self.begun.elapsed());
        if let Some(known) = lookup() {
            return Ok(known);
        }
        let _turn = turn(&self.token_turns).await?;
        // Somebody else may have asked meanwhile.
        if let Some(known) = lookup() {
            return Ok(known);
        }
        let user = reviewer.token(token).await?;
        let now = self.begun.elapsed();
        lock(&self.tokens).put(key, user.clone(), reviewer.epoch, [counts, counts], now);
        Ok(user)
    }

    /// Whether they may do it with any of these.
    async fn authorize(
        &self,
        user: &User,
        verb: &'static str,
        subresources: &'static [&'static str],
    ) -> Result<(), Refusal> {
        let Authorization::Webhook { authorized, unauthorized } = self.server().authorization else { return Ok(()) };
        for subresource in subresources {
            let allowed = self.may(user, verb, subresource, [authorized, unauthorized]).await;
            let unknown = |why| Refusal::Unknown { user: user.name.clone(), verb, subresource, why };
            if allowed.map_err(unknown)? {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden { user: user.name.clone(), verb, subresources })
    }

    async fn may(
        &self,
        user: &User,
        verb: &str,
        subresource: &str,
        counts: [Duration; 2],
    ) -> Result<bool, ReviewError> {
        let reviewer = self.reviewer().ok_or(ReviewError::Alone)?;
        let key = self.question(user, verb, subresource);
        let lookup = || lock(&self.access).get(&key, reviewer.epoch, self.begun.elapsed());
        if let Some(known) = lookup() {
            return Ok(known.is_some());
        }
        let _turn = turn(&self.access_turns).await?;
        if let Some(known) = lookup() {
            return Ok(known.is_some());
        }
        let access = Access { verb, node: self.node.name(), subresource };
        let allowed = reviewer.access(user, access).await?;
        lock(&self.access).put(key, allowed.then_some(()), reviewer.epoch, counts, self.begun.elapsed());
        Ok(allowed)
    }

    /// All that the answer may depend on.
    fn question(&self, user: &User, verb: &str, subresource: &str) -> Key {
        let count = |n: usize| n.to_string();
        let mut parts = vec![user.name.clone(), user.uid.clone(), verb.to_owned(), subresource.to_owned()];
        parts.push(count(user.groups.len()));
        parts.extend(user.groups.iter().cloned());
        for (key, values) in &user.extra {
            parts.push(key.clone());
            parts.push(count(values.len()));
            parts.extend(values.iter().cloned());
        }
        self.keys.of(parts.iter().map(String::as_str))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn turn(turns: &Semaphore) -> Result<tokio::sync::SemaphorePermit<'_>, ReviewError> {
    let busy = || ReviewError::Request("too many wait for an answer".to_owned());
    tokio::time::timeout(PATIENCE, turns.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())
}

/// As kubelet: one who is known is in the group of those, unless they say that they are not.
fn known(mut user: User) -> User {
    let is_in = |group: &str| user.groups.iter().any(|of| of == group);
    if user.name != ANONYMOUS && !is_in(AUTHENTICATED) && !is_in(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

/// As kubelet: what a method means; empty for those that mean nothing.
fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// Who vouches for clients: the configured file, as it is now; else those who vouch for the API server (as kubeadm, which
/// makes the kubeconfig's authority that file). The latter not where whoever is known may do everything.
struct Trusted {
    file: Option<PathBuf>,
    kept: Arc<Kept<Authorities>>,
    /// When it was looked at, what was found, and whether somebody was told of its trouble.
    last: Mutex<(Option<Instant>, Arc<Authorities>)>,
    of_cluster: Mutex<(u64, Arc<Authorities>)>,
    told: AtomicBool,
}

impl Trusted {
    fn new(file: Option<PathBuf>) -> Trusted {
        Trusted {
            file,
            kept: Arc::new(Kept::new(|_, content| Authorities::read(content))),
            last: Mutex::default(),
            of_cluster: Mutex::default(),
            told: AtomicBool::new(false),
        }
    }

    async fn get(&self, reviewer: Option<&Reviewer>, server: &config::Server) -> Arc<Authorities> {
        match &self.file {
            Some(file) => self.of_file(file.clone()).await,
            None if server.authorization == Authorization::AlwaysAllow => Arc::default(),
            None => reviewer.map(|reviewer| self.of_cluster(reviewer)).unwrap_or_default(),
        }
    }

    /// One that cannot be read leaves those who were trusted before (as kubelet).
    async fn of_file(&self, file: PathBuf) -> Arc<Authorities> {
        {
            let last = lock(&self.last);
            if last.0.is_some_and(|at| at.elapsed() < LOOK) {
                return Arc::clone(&last.1);
            }
        }
        let (kept, path) = (Arc::clone(&self.kept), file.clone());
        let read = tokio::task::spawn_blocking(move || kept.get(&path)).await;
        let problem = match read {
            Ok(Ok(Some(authorities))) => {
                self.told.store(false, Ordering::Relaxed);
                *lock(&self.last) = (Some(Instant::now()), Arc::clone(&authorities));
                return authorities;
            }
            Ok(Ok(None)) => format!("{}: there is no such file", file.display()),
            Ok(Err(unusable)) => unusable.to_string(),
            Err(error) => error.to_string(),
        };
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("clientCAFile cannot be used: {problem}");
        }
        let mut last = lock(&self.last);
        last.0 = Some(Instant::now());
        Arc::clone(&last.1)
    }

    fn of_cluster(&self, reviewer: &Reviewer) -> Arc<Authorities> {
        let mut known = lock(&self.of_cluster);
        if known.0 != reviewer.epoch {
            *known = (reviewer.epoch, Arc::new(Authorities::of(&reviewer.authorities)));
        }
        Arc::clone(&known.1)
    }
}

#[cfg(test)]
mod tests;
