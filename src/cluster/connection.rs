//! From credentials on disk to a connection, and from one certificate to the next.
//!
//! ```text
//! look ─▶ nothing ─────────────▶ stand alone ───────────────────────────────┐
//!      ├▶ unusable ────────────▶ wait, say why ─────────────────────────────┤ until the files change,
//!      ├▶ bootstrap kubeconfig ▶ ask for a certificate, keep it ────────────┤ or somebody asks to look
//!      └▶ own credentials ─────▶ session, and a new certificate in time ────┘
//! ```
//!
//! Nothing here ends the process or touches a pod: whatever is wrong is told, and tried again.

use super::certificates::Purpose;
use super::context::Context;
use super::credentials::{Credentials, Found, Survey};
use super::csr::{self, Wanted};
use super::review::Reviewer;
use super::transport::{self, Contact, ask};
use super::{Machine, certificates, kubeconfig, leave, session, trouble};
use crate::causes;
use crate::config;
use crate::http::place;
use crate::pod::clock::later;
use crate::store;
use crate::sys::{clock, fs};
use hyper::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(5);
/// As kubelet: between two looks at whether the certificate is to be renewed.
const CHECK: Duration = Duration::from_secs(10);
/// Between two attempts at a certificate: the first, and the longest while there is none and while there is one.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(32);
const LONGEST_PAUSE_OF_RENEWAL: Duration = Duration::from_mins(10);
/// What was denied is not asked for again at once.
const PAUSE_OF_DENIED: Duration = Duration::from_mins(5);
/// How long what somebody else gave the node is used before it gets a certificate of its own.
const EARLY: SignedDuration = SignedDuration::from_mins(1);
/// How long the API server has to be away for everything to be asked for anew when it is back.
const AWAY: SignedDuration = SignedDuration::from_secs(5);
/// Between two questions whether the API server is back.
const PROBE: Duration = Duration::from_secs(10);

/// How the node stands to the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum State {
    /// There are no credentials: the node stands alone.
    #[default]
    Alone,
    /// There are, but nothing came of them yet, or they cannot be used: why.
    Waiting(String),
    /// The API server answers.
    Joined(Membership),
    /// It answered, or should, and does not: since when (of the agent's own time), and why.
    Unreachable {
        /// What for.
        membership: Membership,
        /// By [`clock::now`].
        since: Timestamp,
        /// And what to do about it.
        why: String,
    },
}

/// In which cluster the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// URL of the API server.
    pub server: String,
    /// When the node's client certificate ends; `None`: it has none, but a token.
    pub expires: Option<Timestamp>,
}

impl State {
    /// In which cluster the node is, if it is in one.
    #[must_use]
    pub fn membership(&self) -> Option<&Membership> {
        match self {
            State::Alone | State::Waiting(_) => None,
            State::Joined(membership) | State::Unreachable { membership, .. } => Some(membership),
        }
    }
}

/// A connection to the API server, with credentials of the node.
#[derive(Clone)]
pub struct Connection {
    /// Requests.
    pub(super) client: Client,
    /// Where it goes.
    pub(super) server: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Request(#[from] csr::Error),
    #[error("cannot keep the certificate")]
    Keep(#[from] certificates::Error),
    #[error("cannot write the kubeconfig")]
    Kubeconfig(#[from] kubeconfig::Error),
    #[error("cannot write the kubeconfig")]
    Write(#[from] store::Error),
    #[error("cannot make the folder of the kubeconfig")]
    Folder(#[source] std::io::Error),
}

/// Talks to the API server whenever there are credentials, for ever. `leaves` are orders to leave the cluster.
pub(super) async fn follow(context: Arc<Context>, machine: Arc<dyn Machine>, mut leaves: mpsc::Receiver<leave::Order>) {
    let (mut epoch, mut digest) = (0, None);
    loop {
        let survey = survey(&context).await;
        let client = match &survey.found {
            Found::Ready(own) => Some(Arc::new(Link::to(&context, own))),
            _ => None,
        };
        let now = match &survey.found {
            Found::Ready(own) => Some(own.digest),
            _ => None,
        };
        if digest != now {
            (epoch, digest) = (epoch + 1, now);
        }
        context.reviewer.send_replace(match (&survey.found, &client) {
            (Found::Ready(own), Some(link)) => {
                Some(Reviewer { connection: link.connection.clone(), epoch, authorities: Arc::clone(&own.authorities) })
            }
            _ => None,
        });
        let work = async {
            match &survey.found {
                Found::Nothing => {
                    context.tell(State::Alone);
                    std::future::pending().await
                }
                Found::Unusable(why) => {
                    context.tell(State::Waiting(format!("the credentials cannot be used: {why}")));
                    std::future::pending().await
                }
                Found::Bootstrap(spare) => bootstrap(&context, spare).await,
                Found::Ready(own) => {
                    if let Some(link) = &client {
                        in_session(&context, &machine, link, own, survey.spare.as_deref()).await;
                    }
                }
            }
        };
        let order = tokio::select! {
            // Leaving counts more than what would end anyway.
            biased;
            Some(order) = leaves.recv() => Some(order),
            () = work => None,
            () = other(&context, &survey) => None,
        };
        if let Some(order) = order {
            let client = client.as_ref().map(|link| &link.connection.client);
            leave::leave(&context, client, order).await;
        }
    }
}

/// Looks at the disk, which may be slow.
async fn survey(context: &Context) -> Survey {
    let of = context.config.clone();
    // What was issued a moment ago has not expired: the clock is wrong then.
    let now = (!context.rests()).then(clock::for_certificates);
    let looked = tokio::task::spawn_blocking(move || Survey::of(&of, now)).await;
    // A thread that panicked would have ended the process.
    looked.unwrap_or_else(|_| Survey::of(&context.config, now))
}

/// Until there are other credentials than these.
async fn other(context: &Context, survey: &Survey) {
    let mut stamps = survey.stamps.clone();
    loop {
        let asked = tokio::select! {
            () = tokio::time::sleep(LOOK) => false,
            () = context.look.notified() => true,
        };
        // An own certificate that has expired by a wrong clock is good again once that is set.
        let by_clock = matches!(survey.found, Found::Bootstrap(_));
        if asked || by_clock || stamps.are_outdated() {
            let now = self::survey(context).await;
            if !now.found.is(&survey.found) || now.spare.is_some() != survey.spare.is_some() {
                return;
            }
            stamps = now.stamps;
        }
    }
}

impl Context {
    /// How the node stands to the cluster, told once.
    fn tell(&self, state: State) {
        self.state.send_if_modified(|known| {
            if *known == state {
                return false;
            }
            match &state {
                State::Alone => tracing::info!("no credentials of a cluster: the node stands alone"),
                State::Waiting(why) => tracing::info!("cluster: {why}"),
                State::Joined(to) => tracing::info!(server = to.server, "the API server answers"),
                State::Unreachable { membership, why, .. } => {
                    tracing::warn!(server = membership.server, "the API server cannot be used: {why}");
                }
            }
            *known = state;
            true
        });
    }
}

/// A connection, and what is known of the other side.
struct Link {
    connection: Connection,
    /// Whether it refuses who we are.
    refused: watch::Receiver<bool>,
}

impl Link {
    fn to(context: &Arc<Context>, own: &Credentials) -> Link {
        let membership =
            Membership { server: place::show(&own.access.server), expires: own.life.map(|life| life.ends) };
        let (refuses, refused) = watch::channel(false);
        let server = membership.server.clone();
        let context = Arc::clone(context);
        let contact: Contact = Arc::new(move |answer| {
            let now = clock::now();
            let why = match answer {
                Ok(StatusCode::UNAUTHORIZED) => {
                    refuses.send_if_modified(|refused| !std::mem::replace(refused, true));
                    trouble::refused(membership.expires, clock::for_certificates())
                }
                // Whoever is in front of it answers, or it does so itself while it starts or ends.
                Ok(status @ (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE)) => {
                    format!("it answers {status}; is the API server behind it up?")
                }
                Ok(_) => {
                    refuses.send_if_modified(|refused| std::mem::replace(refused, false));
                    return context.tell(State::Joined(membership.clone()));
                }
                Err(why) => why,
            };
            let since = match &*context.state.borrow() {
                State::Unreachable { membership: known, since, .. } if *known == membership => *since,
                _ => now,
            };
            context.tell(State::Unreachable { membership: membership.clone(), since, why });
        });
        Link { connection: Connection { client: transport::client(own, contact), server }, refused }
    }
}

/// All that goes on while credentials are good: until they are others.
async fn in_session(
    context: &Arc<Context>,
    machine: &Arc<dyn Machine>,
    link: &Link,
    own: &Credentials,
    spare: Option<&Credentials>,
) {
    let connection = &link.connection;
    if context.state.borrow().membership().is_none_or(|known| known.server != connection.server) {
        context.tell(State::Waiting(format!("connecting to {}", connection.server)));
    }
    tokio::select! {
        () = session::run(context, machine, connection) => {}
        never = probe(context, connection) => match never {},
        () = renew(context, machine, link, own, spare) => {}
        () = back_again(context) => tracing::info!("the API server is back"),
    }
}

/// Until the API server answers again after it was away: then everything is asked for anew, at once, whatever pauses its absence
/// has led to.
async fn back_again(context: &Context) {
    let mut states = context.state.subscribe();
    let mut away = None;
    loop {
        match &*states.borrow_and_update() {
            State::Unreachable { since, .. } => away = Some(*since),
            State::Joined(_) if away.is_some_and(|since| clock::now().duration_since(since) >= AWAY) => return,
            _ => away = None,
        }
        if states.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Asks whether the API server is there while nothing is known of it, or no good.
async fn probe(context: &Context, connection: &Connection) -> Infallible {
    loop {
        if !matches!(*context.state.borrow(), State::Joined(_)) {
            // What comes of it is told by the connection.
            let _ = ask(&connection.client, Method::GET, "/version", None).await;
        }
        tokio::time::sleep(PROBE).await;
    }
}

/// Until there is a certificate to ask for others with: by a bootstrap token.
async fn bootstrap(context: &Arc<Context>, spare: &Credentials) {
    let server = place::show(&spare.access.server);
    let waiting = |why: &str| context.tell(State::Waiting(format!("no certificate from {server} yet: {why}")));
    waiting("asking for one");
    let kubeconfig = || write_kubeconfig(&context.config, spare);
    // As kubelet: before there is any certificate; it names the file that will have it.
    if context.config.rotate_certificates
        && let Err(error) = kubeconfig()
    {
        waiting(&causes::chain(&error));
        return tokio::time::sleep(LONGEST_PAUSE).await;
    }
    let client = transport::client(spare, Arc::new(|_| {}));
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match certificate(context, &client, |why| waiting(&why)).await {
            Ok(()) if context.config.rotate_certificates => return,
            Ok(()) => match kubeconfig() {
                Ok(()) => return,
                Err(error) => error,
            },
            Err(error) => error,
        };
        waiting(&causes::chain(&error));
        let is_denied = matches!(error, Error::Request(csr::Error::Refused { .. }));
        tokio::time::sleep(if is_denied { PAUSE_OF_DENIED } else { pause }).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Asks for a certificate with a new key, and keeps it.
async fn certificate(context: &Context, client: &Client, tell: impl Fn(String)) -> Result<(), Error> {
    let wanted = Wanted::new(&context.node_name)?;
    let chain = wanted.obtain(client, tell).await?;
    certificates::keep(Purpose::Client, &context.config.cert_dir, &chain, &wanted.key, clock::wall())?;
    if let Some(life) =
        certificates::certificates(chain.as_bytes()).ok().and_then(|all| certificates::life(&all[0]).ok())
    {
        context.renewed(life.least());
    }
    tracing::info!(node = context.node_name, "the cluster issued a certificate");
    Ok(())
}

fn write_kubeconfig(config: &config::Cluster, spare: &Credentials) -> Result<(), Error> {
    let pem = certificates::current(&config.cert_dir);
    let pem = std::path::absolute(&pem).unwrap_or(pem);
    let text = kubeconfig::issued(&spare.access, &pem)?;
    fs::create_dir_all(config.kubeconfig.parent().unwrap_or(Path::new("/")), 0o755).map_err(Error::Folder)?;
    Ok(store::replace(&config.kubeconfig, text.as_bytes(), 0o600)?)
}

/// Until there is a newer certificate: in time before this one ends, or when the API server no longer takes it and there
/// are credentials to ask for another.
async fn renew(
    context: &Arc<Context>,
    machine: &Arc<dyn Machine>,
    link: &Link,
    own: &Credentials,
    spare: Option<&Credentials>,
) {
    let Some(life) = own.life.filter(|_| context.config.rotate_certificates) else {
        return std::future::pending().await;
    };
    let due = life.due(own.digest[0]);
    let early = own.foreign.as_ref().map(|_| later(clock::now(), EARLY));
    if let Some((chain, key)) = &own.foreign {
        // As kubelet: what somebody gave the node is kept among its certificates, and soon replaced by one of its own.
        let (chain, key) = (String::from_utf8_lossy(chain), String::from_utf8_lossy(key));
        if let Err(error) = import(&context.config, &chain, &key) {
            tracing::warn!("cannot keep the kubeconfig's certificate: {}", causes::chain(&error));
        }
    }
    let mut pause = FIRST_PAUSE;
    loop {
        let client = if *link.refused.borrow() {
            // Only another identity helps.
            spare.map(|spare| transport::client(spare, Arc::new(|_| {})))
        } else if early.is_some_and(|early| clock::now() >= early) || (clock::wall() >= due && !context.rests()) {
            Some(link.connection.client.clone())
        } else {
            None
        };
        let Some(client) = client else {
            tokio::time::sleep(CHECK).await;
            continue;
        };
        let error = match certificate(context, &client, |why| tracing::debug!("{why}")).await {
            Ok(()) => {
                machine.note(false, "CertificateRenewed", "the node has a new client certificate".to_owned());
                return;
            }
            Err(error) => causes::chain(&error),
        };
        context.renewals_failed.fetch_add(1, Ordering::Relaxed);
        machine.note(true, "CertificateNotRenewed", format!("the client certificate is not renewed: {error}"));
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE_OF_RENEWAL.min(pause * 2);
    }
}

fn import(config: &config::Cluster, chain: &str, key: &str) -> Result<(), certificates::Error> {
    // Once: it is kept already when the agent started again before there was another one.
    match std::fs::read(certificates::current(&config.cert_dir)) {
        Ok(kept) if kept.starts_with(chain.trim_end().as_bytes()) => Ok(()),
        _ => certificates::take_over(&config.cert_dir, chain, key, clock::wall()),
    }
}

impl Context {
    /// Whether a certificate was issued so lately that no clock can tell that it is to be renewed.
    fn rests(&self) -> bool {
        let resting = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        resting.is_some_and(|until| clock::now() < until)
    }

    /// A certificate was issued; the next one is not before this has passed, whatever the clock says.
    fn renewed(&self, least: SignedDuration) {
        let mut resting = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        *resting = Some(later(clock::now(), least));
    }
}
