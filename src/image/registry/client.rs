//! HTTP for registries: one request at a time that can be given up, redirects, authorisation, retries.
//!
//! Nothing of ureq's own comfort is used: redirects are followed here, where it is known which headers may go along, and
//! every wait ends when the pull is cancelled.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::{HeaderMap, Uri};

use super::Error;
use super::auth::{self, Challenge, Token, TokenService};
use super::credentials::{Candidates, Credential, Login};
use super::hosts::Endpoint;
use super::tls::{self, Connections};

/// Most redirects for one answer.
const MOST_REDIRECTS: u32 = 10;
/// Longest that a `Retry-After` is obeyed: who wants more gets what is left of the attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a wait looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(50);
/// Pieces that bodies are read in; some wait for who reads them.
const PIECE: usize = 64 << 10;
const WAITING: usize = 4;
/// Largest answer of a token server, and so much of an error's body is read for its message. In bytes.
const LARGEST_TOKEN: u64 = 1 << 20;
const LARGEST_COMPLAINT: u64 = 8 << 10;

/// How long is waited for what.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// Tries of one request, or of one layer without progress in between.
    pub attempts: u32,
    /// Before the second try; doubled for each further one.
    pub pause: Duration,
    /// For a connection, for the head of an answer, and for the next byte of a body.
    pub stall: Duration,
    /// For a whole document.
    pub document: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            attempts: 5,
            pause: Duration::from_millis(500),
            stall: Duration::from_secs(30),
            document: Duration::from_secs(120),
        }
    }
}

impl Patience {
    /// Before try `attempt`, the first being 1.
    pub fn pause_before(&self, attempt: u32) -> Duration {
        self.pause.saturating_mul(1 << attempt.saturating_sub(2).min(6)).min(LONGEST_PAUSE)
    }
}

/// Says that nobody wants the result any more: a person, or another part of the same pull that failed.
#[derive(Debug)]
pub(super) struct Halt<'a> {
    pub asked: &'a AtomicBool,
    pub failed: AtomicBool,
}

impl Halt<'_> {
    pub fn is_set(&self) -> bool {
        self.asked.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<(), Error> {
        if self.is_set() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// # Errors
    /// [`Error::Cancelled`], soon after that is so.
    pub fn sleep(&self, time: Duration) -> Result<(), Error> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(GLANCE)),
                _ => return Ok(()),
            }
        }
    }
}

/// The head of an answer, and its body.
pub(super) struct Answer<'a> {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from in the end, without what may be secret.
    pub url: String,
    pub body: Incoming<'a>,
    /// Whether another host than the asked one answers.
    elsewhere: bool,
}

impl Answer<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What a registry says about an error, short and of one line.
    fn complaint(&mut self) -> String {
        let mut content = Vec::new();
        // What has come until an error counts.
        let _ = self.body.by_ref().take(LARGEST_COMPLAINT).read_to_end(&mut content);
        complaint(self.status, &content)
    }

    /// The body, which must be short.
    ///
    /// # Errors
    /// [`Error::Image`] with its limit, [`Error::Unavailable`] when it breaks off.
    pub fn document(mut self, limit: u64) -> Result<Vec<u8>, Error> {
        let too_large = || Error::Image(crate::image::Error::Limit { what: "bytes in a document", limit });
        if self.body.length.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut content = Vec::new();
        let read = self.body.by_ref().take(limit + 1).read_to_end(&mut content);
        self.body.halt.check()?;
        match read {
            Ok(_) if content.len() as u64 > limit => Err(too_large()),
            Ok(_) => Ok(content),
            Err(error) => Err(Error::Unavailable { url: self.url, reason: error.to_string() }),
        }
    }
}

/// One line for a status and the registry's own words (`{"errors":[{"code":…,"message":…}]}`).
pub(super) fn complaint(status: u16, content: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(content).unwrap_or_default();
    let first = &value["errors"][0];
    let words = [&first["code"], &first["message"], &value["details"], &value["error_description"]];
    let words: Vec<&str> = words.iter().filter_map(|word| word.as_str()).filter(|word| !word.is_empty()).collect();
    let name = ureq::http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
    let line = match words.is_empty() {
        true => format!("{status} {}", name.unwrap_or("(unknown status)")),
        false => format!("{status} {}", words.join(": ")),
    };
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// A body on its way. Another thread reads it from the network, so that whoever waits for it can be told to stop.
pub(super) struct Incoming<'a> {
    pieces: Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
    /// As the head says; `None`: not said.
    pub length: Option<u64>,
    halt: &'a Halt<'a>,
    stall: Duration,
    /// After which nothing is waited for.
    end: Option<Instant>,
}

impl Incoming<'_> {
    /// Ends after `time` in any case.
    pub fn within(&mut self, time: Duration) {
        self.end = Some(Instant::now() + time);
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            let stalled = Instant::now() + self.stall + self.stall;
            let end = self.end.map_or(stalled, |end| end.min(stalled));
            loop {
                if self.halt.is_set() {
                    return Err(io::Error::other("cancelled"));
                }
                match self.pieces.recv_timeout(GLANCE) {
                    Ok(piece) => {
                        self.current = piece?;
                        self.at = 0;
                        break;
                    }
                    Err(RecvTimeoutError::Disconnected) => return Ok(0),
                    Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                    Err(RecvTimeoutError::Timeout) => {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "the rest does not come"));
                    }
                }
            }
        }
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "takes too long"));
        }
        let count = (self.current.len() - self.at).min(buf.len());
        buf[..count].copy_from_slice(&self.current[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// A request, to be sent to one URL after the other.
#[derive(Clone, Default)]
pub(super) struct Ask {
    pub headers: Vec<(String, String)>,
    /// A form to post; `None`: GET.
    pub form: Option<String>,
}

/// Sends one request and waits for the head of its answer.
fn exchange<'a>(
    agent: &Agent,
    url: &str,
    ask: &Ask,
    patience: &Patience,
    halt: &'a Halt<'a>,
) -> Result<Answer<'a>, Fault> {
    halt.check()?;
    let shown = show(url);
    let failed = |reason: String| Error::Unavailable { url: shown.clone(), reason };
    let (head, answered) = sync_channel(1);
    let (full, pieces) = sync_channel(WAITING);
    let (agent, address, ask, stall) = (agent.clone(), url.to_owned(), ask.clone(), patience.stall);
    thread::Builder::new()
        .name("registry".into())
        .spawn(move || transfer(&agent, &address, ask, stall, &head, &full))
        .map_err(|e| failed(format!("cannot start a thread: {e}")))?;
    // The other thread has time-outs for each step; this one is for what they forget.
    let end = Instant::now() + patience.stall * 5;
    let answer = loop {
        halt.check()?;
        match answered.recv_timeout(GLANCE) {
            Ok(answer) => break answer,
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
            Err(_) => return Err(failed("no answer".into()).into()),
        }
    };
    let (status, headers, length) =
        answer.map_err(|e| Fault { no_tls: tls::may_be_plain(&e), error: failed(explain(&e)) })?;
    let body = Incoming { pieces, current: Vec::new(), at: 0, length, halt, stall: patience.stall, end: None };
    Ok(Answer { status, headers, url: shown, body, elsewhere: false })
}

/// Why there is no answer.
struct Fault {
    error: Error,
    /// Whether it looks as if the other side spoke no TLS.
    no_tls: bool,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault { error, no_tls: false }
    }
}

type Head = Result<(u16, HeaderMap, Option<u64>), ureq::Error>;

/// Runs on a thread of its own until the body is complete, or nobody reads it any more.
fn transfer(
    agent: &Agent,
    url: &str,
    ask: Ask,
    stall: Duration,
    head: &SyncSender<Head>,
    full: &SyncSender<io::Result<Vec<u8>>>,
) {
    macro_rules! prepared {
        ($request:expr) => {{
            let mut request = $request
                .config()
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_resolve(Some(stall))
                .timeout_connect(Some(stall))
                .timeout_send_request(Some(stall))
                .timeout_recv_response(Some(stall))
                .timeout_per_read(Some(stall))
                .timeout_per_write(Some(stall))
                .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
                // A proxy on the way must not pack what has a digest.
                .accept_encoding("identity")
                .build();
            for (name, value) in ask.headers {
                request = request.header(name, value);
            }
            request
        }};
    }
    let answer = match ask.form {
        Some(form) => prepared!(agent.post(url)).content_type("application/x-www-form-urlencoded").send(form.as_str()),
        None => prepared!(agent.get(url)).call(),
    };
    // Whoever asked may be gone: then there is nothing left to do.
    let response = match answer {
        Ok(response) => response,
        Err(error) => return drop(head.send(Err(error))),
    };
    let (parts, body) = response.into_parts();
    if head.send(Ok((parts.status.as_u16(), parts.headers, body.content_length()))).is_err() {
        return;
    }
    let mut reader = body.into_reader();
    loop {
        let mut piece = vec![0; PIECE];
        let piece = match reader.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                piece.truncate(count);
                Ok(piece)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let last = piece.is_err();
        if full.send(piece).is_err() || last {
            return;
        }
    }
}

/// An error of the HTTP library with all its causes, in one line.
fn explain(error: &ureq::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// A URL for people: queries hold signatures.
pub(super) fn show(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// Scheme and `host[:port]` of a URL that can be asked.
fn place(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    // Credentials in URLs would become a header.
    let host = !authority.is_empty() && !authority.starts_with(':');
    let usable = matches!(scheme, "http" | "https") && host && !authority.contains('@');
    usable.then_some((scheme, authority))
}

/// Where a redirect from `from` leads.
///
/// # Errors
/// Why it is not followed.
pub(super) fn redirect(from: &str, location: &str) -> Result<String, String> {
    let (scheme, authority) = place(from).ok_or("is no URL")?;
    let whole = match location {
        _ if location.contains("://") && !location.starts_with(['/', '?', '.']) => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => {
            let path = from.split(['?', '#']).next().unwrap_or(from);
            let folder = path.rfind('/').filter(|at| *at > scheme.len() + 2).map_or(path, |at| &path[..at]);
            format!("{folder}/{location}")
        }
    };
    let whole = whole.split('#').next().unwrap_or_default().to_owned();
    // Not shown: there may be a password in it.
    let no_url = || "redirects to something that is no URL".to_owned();
    let (target, _) = place(&whole).ok_or_else(no_url)?;
    whole.parse::<Uri>().map_err(|_| no_url())?;
    if scheme == "https" && target == "http" {
        return Err(format!("redirects from https to {}", show(&whole)));
    }
    Ok(whole)
}

/// What speaks with one endpoint for one pull: keeps its authorisation.
pub(super) struct Session<'a> {
    pub endpoint: Endpoint,
    pub patience: Patience,
    pub halt: &'a Halt<'a>,
    connections: &'a Connections,
    candidates: Candidates,
    /// For the endpoint itself.
    agent: Agent,
    /// By which plain HTTP is spoken instead, where that is allowed and TLS was tried in vain.
    plain: OnceLock<(Endpoint, Agent)>,
    no_tls: AtomicBool,
    /// Told about everything that is tried again.
    pub retrying: &'a (dyn Fn(String) + Sync),
    state: Mutex<Authorisation>,
}

/// What is sent as `Authorization`, and what has been tried.
#[derive(Default)]
struct Authorisation {
    grant: Grant,
    /// Changes with the grant: tells who has seen an older one.
    generation: u64,
    /// Which of the credentials is in use.
    credential: usize,
    /// Whether anything was asked for.
    begun: bool,
    /// Whether a request with this grant succeeded.
    worked: bool,
}

#[derive(Default)]
enum Grant {
    #[default]
    None,
    Basic(String),
    Bearer(Token, TokenService),
}

impl<'a> Session<'a> {
    /// # Errors
    /// [`Error::Settings`] when its TLS or proxy settings cannot be used.
    pub fn new(
        endpoint: Endpoint,
        candidates: Candidates,
        connections: &'a Connections,
        patience: Patience,
        halt: &'a Halt<'a>,
        retrying: &'a (dyn Fn(String) + Sync),
    ) -> Result<Session<'a>, Error> {
        let agent = connections.agent(&endpoint)?;
        Ok(Session {
            endpoint,
            patience,
            halt,
            connections,
            candidates,
            agent,
            plain: OnceLock::new(),
            no_tls: AtomicBool::new(false),
            retrying,
            state: Mutex::default(),
        })
    }

    /// The endpoint by the protocol that it speaks.
    fn now(&self) -> (&Endpoint, &Agent) {
        self.plain.get().map_or((&self.endpoint, &self.agent), |(endpoint, agent)| (endpoint, agent))
    }

    /// Goes over to plain HTTP, if that may help; whether it did.
    fn use_plain(&self) -> Result<bool, Error> {
        if !self.no_tls.load(Ordering::Relaxed) || self.plain.get().is_some() {
            return Ok(false);
        }
        let Some(endpoint) = self.endpoint.plain() else { return Ok(false) };
        let agent = self.connections.agent(&endpoint)?;
        Ok(self.plain.set((endpoint, agent)).is_ok())
    }

    /// The pull secret that was needed.
    pub fn secret(&self) -> Option<String> {
        let state = self.state();
        match state.grant {
            Grant::None => None,
            _ => self.candidates.credentials.get(state.credential).and_then(|credential| credential.secret.clone()),
        }
    }

    /// `GET` of a path below the repository (`manifests/latest`): an answer of success, after as many tries as needed.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn get(&self, path: &str, headers: &[(String, String)]) -> Result<Answer<'a>, Error> {
        let mut attempt = 1;
        loop {
            let Endpoint { base, repository, namespace, .. } = self.now().0;
            let query = namespace.as_ref().map(|name| format!("?ns={}", auth::encode(name))).unwrap_or_default();
            let url = format!("{base}/{repository}/{path}{query}");
            let (reason, pause) = match self.try_get(&url, headers) {
                Ok(answer) => match self.judge(answer)? {
                    Judged::Fine(answer) => return Ok(answer),
                    Judged::Later { reason, pause } => (reason, pause),
                },
                Err(Error::Unavailable { .. }) if self.use_plain()? => continue,
                Err(Error::Unavailable { url: at, reason }) => (format!("{at}: {reason}"), None),
                Err(other) => return Err(other),
            };
            attempt += 1;
            if attempt > self.patience.attempts {
                return Err(unavailable(&url, &reason));
            }
            let pause = pause.unwrap_or_else(|| self.patience.pause_before(attempt)).min(LONGEST_PAUSE);
            (self.retrying)(format!("{reason}; trying again in {pause:.1?}"));
            self.halt.sleep(pause)?;
        }
    }

    /// One `GET` with no authorisation at all, of a URL that somebody else than the registry may serve.
    ///
    /// # Errors
    /// As [`Session::get`]; there is no second try.
    pub fn get_foreign(&self, url: &str, headers: &[(String, String)]) -> Result<Answer<'a>, Error> {
        let refused = |reason: &str| Error::Protocol { url: show(url), reason: reason.into() };
        let (scheme, _) = place(url).ok_or_else(|| refused("is no URL"))?;
        if scheme != "https" {
            return Err(refused("layers of other places are fetched by https only"));
        }
        let agent = self.connections.agent_for(&self.endpoint, url)?;
        let answer = self.follow(&agent, url, &Ask { headers: headers.to_vec(), form: None }, Vec::new())?;
        match self.judge(answer)? {
            Judged::Fine(answer) => Ok(answer),
            Judged::Later { reason, .. } => Err(unavailable(url, &reason)),
        }
    }

    /// What a status means.
    fn judge(&self, mut answer: Answer<'a>) -> Result<Judged<'a>, Error> {
        match answer.status {
            200 | 206 => Ok(Judged::Fine(answer)),
            404 => Err(Error::NotFound { image: answer.url }),
            408 | 429 | 500..=599 => {
                let pause = answer.header("retry-after").and_then(|value| value.trim().parse().ok());
                let complaint = answer.complaint();
                let reason = format!("{}: {complaint}", answer.url);
                Ok(Judged::Later { reason, pause: pause.map(Duration::from_secs) })
            }
            401 | 403 => {
                let reason = answer.complaint();
                Err(Error::Unauthorized { url: answer.url, reason })
            }
            _ => {
                let reason = format!("answers {}", answer.complaint());
                Err(Error::Protocol { url: answer.url, reason })
            }
        }
    }

    /// One try, with every credential there is.
    fn try_get(&self, url: &str, headers: &[(String, String)]) -> Result<Answer<'a>, Error> {
        loop {
            let (authorization, generation) = self.authorization()?;
            let ask = Ask { headers: headers.to_vec(), form: None };
            let mut private = self.endpoint.headers.clone();
            if let Some(value) = authorization {
                private.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
                private.push(("authorization".into(), value));
            }
            let answer = self.follow(self.now().1, url, &ask, private)?;
            match answer.status {
                // What another host asks for is not this registry's to give.
                401 | 403 if !answer.elsewhere => self.renew(generation, answer)?,
                status => {
                    if status < 400 {
                        let mut state = self.state();
                        state.worked |= state.generation == generation;
                    }
                    return Ok(answer);
                }
            }
        }
    }

    /// Sends a request, follows redirects. The headers `private` do not leave the host.
    fn follow(
        &self,
        agent: &Agent,
        url: &str,
        ask: &Ask,
        mut private: Vec<(String, String)>,
    ) -> Result<Answer<'a>, Error> {
        let mut agent = agent.clone();
        let mut url = url.to_owned();
        let mut elsewhere = false;
        for _ in 0..=MOST_REDIRECTS {
            let mut ask = ask.clone();
            ask.headers.extend(private.iter().cloned());
            let mut answer = exchange(&agent, &url, &ask, &self.patience, self.halt).map_err(|fault| {
                if !elsewhere && fault.no_tls {
                    self.no_tls.store(true, Ordering::Relaxed);
                }
                fault.error
            })?;
            answer.elsewhere = elsewhere;
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let protocol = |reason: String| Error::Protocol { url: show(&url), reason };
            if ask.form.is_some() {
                // It holds a secret that was meant for one place.
                return Err(protocol("redirects a request for a token".into()));
            }
            let location = answer.header("location").ok_or_else(|| protocol("redirects to nowhere".into()))?;
            let next = redirect(&url, location).map_err(protocol)?;
            if place(&next) != place(&url) {
                private.clear();
                elsewhere = true;
                agent = self.connections.agent_for(self.now().0, &next)?;
            }
            url = next;
        }
        Err(Error::Protocol { url: show(&url), reason: format!("more than {MOST_REDIRECTS} redirects") })
    }

    fn state(&self) -> MutexGuard<'_, Authorisation> {
        // Changed in single steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header to send, with the generation of its grant. A token at its end is replaced.
    fn authorization(&self) -> Result<(Option<String>, u64), Error> {
        let mut state = self.state();
        if let Grant::Bearer(token, service) = &state.grant
            && !token.fresh(Instant::now())
        {
            let service = service.clone();
            let credential = self.candidates.credentials.get(state.credential);
            let token = self.token(&service, credential)?;
            state.grant = Grant::Bearer(token, service);
            state.generation += 1;
        }
        let header = match &state.grant {
            Grant::None => None,
            Grant::Basic(header) => Some(header.clone()),
            Grant::Bearer(token, _) => Some(token.header()),
        };
        Ok((header, state.generation))
    }

    /// After a refusal: the same credential with a new token if the old one was good, or else the next credential.
    fn renew(&self, generation: u64, mut answer: Answer<'a>) -> Result<(), Error> {
        let mut state = self.state();
        if state.generation != generation {
            return Ok(());
        }
        let challenges: Vec<Challenge> = answer
            .headers
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(auth::challenges)
            .collect();
        let again = state.worked && answer.status == 401 && matches!(state.grant, Grant::Bearer(..));
        if state.begun && !again {
            state.credential += 1;
        }
        state.begun = true;
        state.worked = false;
        let mut refusal = answer.complaint();
        loop {
            let credentials = &self.candidates.credentials;
            let credential = credentials.get(state.credential);
            // Anonymous only if there is none, as the kubelet's runtimes.
            if credential.is_none() && (!credentials.is_empty() || state.credential > 0) {
                state.grant = Grant::None;
                let sources: Vec<String> = credentials.iter().map(source).collect();
                let mut reason = match sources.is_empty() {
                    true => format!("{refusal}; there are no credentials for it"),
                    false => format!("{refusal}; tried the credentials of {}", sources.join(", ")),
                };
                for problem in &self.candidates.problems {
                    reason = format!("{reason}; {problem}");
                }
                return Err(Error::Unauthorized { url: answer.url, reason });
            }
            match self.grant(&challenges, credential) {
                Ok(grant) => {
                    state.grant = grant;
                    state.generation += 1;
                    return Ok(());
                }
                Err(Error::Unauthorized { url, reason }) => {
                    refusal = format!("{url}: {reason}");
                    state.credential += 1;
                }
                Err(other) => return Err(other),
            }
        }
    }

    /// What answers one of the challenges with this credential.
    fn grant(&self, challenges: &[Challenge], credential: Option<&Credential>) -> Result<Grant, Error> {
        let base = &self.now().0.base;
        let unauthorized = |reason: &str| Error::Unauthorized { url: base.clone(), reason: reason.into() };
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let Some(challenge) = find("bearer") {
            let secure = base.starts_with("https://");
            let service = TokenService::of(challenge, &self.endpoint.repository, secure)
                .map_err(|reason| Error::Protocol { url: base.clone(), reason })?;
            return Ok(Grant::Bearer(self.token(&service, credential)?, service));
        }
        match (find("basic"), credential.map(|credential| &credential.login)) {
            (Some(_), Some(Login::Password { username, password })) => {
                Ok(Grant::Basic(auth::basic(username, password)))
            }
            (Some(_), Some(Login::IdentityToken(_))) => {
                Err(unauthorized("wants user and password, not an identity token"))
            }
            (Some(_), None) => Err(unauthorized("wants user and password")),
            (None, _) if challenges.is_empty() => Err(unauthorized("access denied")),
            (None, _) => {
                let schemes: Vec<&str> = challenges.iter().map(|challenge| challenge.scheme.as_str()).collect();
                Err(unauthorized(&format!("wants authentication by {}, which is not supported", schemes.join(", "))))
            }
        }
    }

    /// Asks a token server, as often as it takes.
    fn token(&self, service: &TokenService, credential: Option<&Credential>) -> Result<Token, Error> {
        let invalid = |reason: String| Error::Protocol { url: show(&service.realm), reason };
        let (endpoint, own) = self.now();
        let agent = match place(&service.realm) == place(&endpoint.base) {
            true => own.clone(),
            false => self.connections.agent_for(endpoint, &service.realm)?,
        };
        let (url, form, authorization) = match credential.map(|credential| &credential.login) {
            Some(Login::IdentityToken(identity)) => (service.realm.clone(), Some(service.form(identity)), None),
            Some(Login::Password { username, password }) => {
                (service.url(), None, Some(auth::basic(username, password)))
            }
            None => (service.url(), None, None),
        };
        let ask = Ask { headers: vec![("accept".into(), "application/json".into())], form };
        let private = Vec::from_iter(authorization.map(|value| ("authorization".to_owned(), value)));
        let mut attempt = 1;
        loop {
            let asked = Instant::now();
            let reason = match self.follow(&agent, &url, &ask, private.clone()) {
                Ok(mut answer) => match answer.status {
                    200 | 201 => {
                        answer.body.within(self.patience.document);
                        let content = answer.document(LARGEST_TOKEN)?;
                        return Token::parse(&content, asked).map_err(invalid);
                    }
                    408 | 429 | 500..=599 => answer.complaint(),
                    400..=499 => {
                        let reason = answer.complaint();
                        return Err(Error::Unauthorized { url: answer.url, reason });
                    }
                    _ => return Err(invalid(format!("answers {}", answer.complaint()))),
                },
                Err(Error::Unavailable { reason, .. }) => reason,
                Err(other) => return Err(other),
            };
            attempt += 1;
            if attempt > self.patience.attempts {
                return Err(unavailable(&service.realm, &reason));
            }
            (self.retrying)(format!("{}: {reason}; trying again", show(&service.realm)));
            self.halt.sleep(self.patience.pause_before(attempt))?;
        }
    }
}

/// Where a credential is from, for people.
fn source(credential: &Credential) -> String {
    match &credential.secret {
        Some(name) => format!("secret {name}"),
        None => "the node".into(),
    }
}

enum Judged<'a> {
    Fine(Answer<'a>),
    Later { reason: String, pause: Option<Duration> },
}

/// Does not say the URL twice.
fn unavailable(url: &str, reason: &str) -> Error {
    let url = show(url);
    let reason = reason.strip_prefix(&format!("{url}: ")).unwrap_or(reason).to_owned();
    Error::Unavailable { url, reason }
}
