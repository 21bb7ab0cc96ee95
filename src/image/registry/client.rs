//! What speaks with one registry for one pull: retries, redirects, authorisation.
//!
//! What leaves this machine with a request is decided here. Authorisation and the headers of `hosts.toml` stay with the
//! place they are for (scheme, host and port), and a password is sent in the clear only to a host that the node's own
//! settings let be spoken to without TLS.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use ureq::Agent;

use super::Error;
use super::auth::{self, Challenge, Token, TokenService};
use super::credentials::{Candidates, Credential, Login};
use super::exchange::{Answer, Ask, Halt, LONGEST_PAUSE, Patience, exchange};
use super::hosts::{Endpoint, Hosts};
use super::tls::Connections;
use crate::http::place::{Place, redirect, show};
use crate::sys::clock;

/// Most redirects for one answer.
const MOST_REDIRECTS: u32 = 10;
/// Shortest text that is kept out of what servers say, in bytes.
const SHORTEST_SECRET: usize = 6;
/// Largest answer of a token server, in bytes.
const LARGEST_TOKEN: u64 = 1 << 20;

/// What speaks with one endpoint for one pull: keeps its authorisation.
pub(super) struct Session<'a> {
    pub endpoint: Endpoint,
    pub patience: Patience,
    pub halt: &'a Halt<'a>,
    hosts: &'a Hosts,
    connections: &'a Connections,
    candidates: Candidates,
    /// For the endpoint itself.
    agent: Agent,
    /// By which plain HTTP is spoken instead, where that is allowed and TLS was tried in vain.
    plain: OnceLock<(Endpoint, Agent)>,
    no_tls: AtomicBool,
    /// Whether the endpoint has answered at all: then it speaks what it speaks.
    answered: AtomicBool,
    /// When its documents have taken long enough.
    end: OnceLock<Instant>,
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
    /// Whether anything was asked for, and what it was.
    begun: bool,
    challenges: Vec<Challenge>,
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
        hosts: &'a Hosts,
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
            hosts,
            connections,
            candidates,
            agent,
            plain: OnceLock::new(),
            no_tls: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            end: OnceLock::new(),
            retrying,
            state: Mutex::default(),
        })
    }

    /// The endpoint by the protocol that it speaks.
    fn now(&self) -> (&Endpoint, &Agent) {
        self.plain.get().map_or((&self.endpoint, &self.agent), |(endpoint, agent)| (endpoint, agent))
    }

    /// Where the endpoint is, by the protocol that it speaks.
    fn place(&self) -> Result<Place, Error> {
        let base = &self.now().0.base;
        Place::of(base).ok_or_else(|| Error::Protocol { url: show(base), reason: "is no URL".into() })
    }

    /// For requests to a place that the endpoint named.
    fn agent_for(&self, target: &Place) -> Result<Agent, Error> {
        let (endpoint, agent) = self.now();
        match self.place()? == *target {
            true => Ok(agent.clone()),
            false => self.connections.agent_for(endpoint, self.hosts.named(&target.authority()).as_ref(), target),
        }
    }

    /// Goes over to plain HTTP, if that may help; whether it did. Never once TLS was spoken: whoever breaks a connection
    /// then would have the rest in the clear.
    fn use_plain(&self) -> Result<bool, Error> {
        let vain = self.no_tls.load(Ordering::Relaxed) && !self.answered.load(Ordering::Relaxed);
        if !vain || self.plain.get().is_some() {
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
                    Judged::Fine(answer) => return Ok(*answer),
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

    /// As [`Session::get`], with the whole body, which must be short: also an answer that breaks off is tried again.
    ///
    /// # Errors
    /// As [`Error`] says; [`Error::Image`] with the limit in bytes.
    pub fn document(
        &self,
        path: &str,
        headers: &[(String, String)],
        limit: u64,
    ) -> Result<(Answer<'a>, Vec<u8>), Error> {
        let end = *self.end.get_or_init(|| Instant::now() + self.patience.documents);
        let mut attempt = 1;
        loop {
            if Instant::now() >= end {
                return Err(unavailable(&self.now().0.base, "takes too long to say what the image is"));
            }
            let mut answer = self.get(path, headers)?;
            match answer.document(limit, self.patience.document) {
                Err(Error::Unavailable { url, reason }) if attempt < self.patience.attempts => {
                    attempt += 1;
                    (self.retrying)(format!("{url}: {reason}; trying again"));
                    self.halt.sleep(self.patience.pause_before(attempt))?;
                }
                content => return Ok((answer, content?)),
            }
        }
    }

    /// One `GET` with no authorisation at all, of a URL that somebody else than the registry may serve.
    ///
    /// # Errors
    /// As [`Session::get`]; there is no second try.
    pub fn get_foreign(&self, url: &str, headers: &[(String, String)]) -> Result<Answer<'a>, Error> {
        let refused = |reason: &str| Error::Protocol { url: show(url), reason: reason.into() };
        let target = Place::of(url).ok_or_else(|| refused("is no URL"))?;
        if target.plain {
            return Err(refused("layers of other places are fetched by https only"));
        }
        self.place()?.may_lead_to(&target).map_err(|what| refused(&format!("a layer may not be at {what}")))?;
        let agent = self.agent_for(&target)?;
        let answer = self.follow(&agent, url, &Ask { headers: headers.to_vec(), form: None }, Vec::new())?;
        match self.judge(answer)? {
            Judged::Fine(answer) => Ok(*answer),
            Judged::Later { reason, .. } => Err(unavailable(url, &reason)),
        }
    }

    /// What a status means.
    fn judge(&self, mut answer: Answer<'a>) -> Result<Judged<'a>, Error> {
        match answer.status {
            200 | 206 => match answer.header("content-encoding").map(str::trim) {
                None | Some("" | "identity") => Ok(Judged::Fine(Box::new(answer))),
                // The digest is of what it stands for, or of what it is: nobody can tell.
                Some(encoding) => {
                    let encoding: String = encoding.chars().take(40).collect();
                    let reason = format!("is encoded ({encoding}), though that was not asked for");
                    Err(Error::Protocol { url: answer.url, reason })
                }
            },
            404 => Err(Error::NotFound { image: answer.url }),
            408 | 429 | 500..=599 => {
                let pause = answer.header("retry-after").and_then(|value| retry_after(value, clock::wall()));
                let complaint = answer.complaint();
                let reason = format!("{}: {complaint}", answer.url);
                Ok(Judged::Later { reason, pause })
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
        let end = Instant::now() + self.patience.answer();
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
            answer.secrets = secrets(&private, ask.form.as_deref());
            if !elsewhere {
                self.answered.store(true, Ordering::Relaxed);
            }
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            if Instant::now() >= end {
                return Err(unavailable(&url, "the redirects take too long"));
            }
            let protocol = |reason: String| Error::Protocol { url: show(&url), reason };
            if ask.form.is_some() {
                // It holds a secret that was meant for one place.
                return Err(protocol("redirects a request for a token".into()));
            }
            let location = answer.header("location").ok_or_else(|| protocol("redirects to nowhere".into()))?;
            let next = redirect(&url, location).map_err(protocol)?;
            let target = Place::of(&next);
            if target != Place::of(&url) {
                // For good: a place that it leads back to would be told more than it asked for.
                private.clear();
                elsewhere = true;
                agent = match target {
                    Some(target) => self.agent_for(&target)?,
                    None => return Err(protocol("redirects to something that is no URL".into())),
                };
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
        // Who refuses a token or password often does not ask again; the next credential answers what was asked before.
        if !challenges.is_empty() {
            state.challenges = challenges;
        }
        let challenges = state.challenges.clone();
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
                    // What the registry said itself counts for more than that it asked for nothing.
                    if !challenges.is_empty() {
                        refusal = format!("{url}: {reason}");
                    }
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
            let service = TokenService::of(challenge, &self.endpoint.repository)
                .and_then(|service| self.admit(&service, credential.is_some()).map(|()| service))
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

    /// Whether a token server may be asked, with a password or an identity token or without.
    fn admit(&self, service: &TokenService, secret: bool) -> Result<(), String> {
        let own = self.place().map_err(|e| e.to_string())?;
        let (target, shown) = (&service.place, show(&service.realm));
        own.may_lead_to(target).map_err(|what| format!("asks for a token of {what}: {shown}"))?;
        // Stricter than docker, containerd and podman, which send a password wherever they are told to. The host's own
        // settings, or those of this registry if it is the same host, let it be spoken to in the clear.
        let declared = || self.hosts.named(&target.authority()).is_some_and(|named| named.insecure);
        if secret && target.plain && target.host != own.host && !declared() {
            return Err(format!(
                "asks for a token of {shown}: passwords are not sent without TLS, unless registries.conf has a registry \
                 {:?} that is insecure",
                target.authority()
            ));
        }
        Ok(())
    }

    /// Asks a token server, as often as it takes.
    fn token(&self, service: &TokenService, credential: Option<&Credential>) -> Result<Token, Error> {
        let invalid = |reason: String| Error::Protocol { url: show(&service.realm), reason };
        let agent = self.agent_for(&service.place)?;
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
                        let content = answer.document(LARGEST_TOKEN, self.patience.document)?;
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

/// What is secret of headers and a form, as it is sent and as it is. What is as short as a word is left: it would be
/// missing everywhere.
fn secrets(private: &[(String, String)], form: Option<&str>) -> Vec<String> {
    let mut secrets = Vec::new();
    for (_, value) in private {
        let sent = value.rsplit(' ').next().unwrap_or_default();
        let plain = auth::password(sent);
        secrets.extend(plain);
        secrets.push(sent.to_owned());
    }
    let token = form.and_then(|form| form.split('&').find_map(|field| field.strip_prefix("refresh_token=")));
    secrets.extend(token.map(str::to_owned));
    secrets.retain(|secret| secret.len() >= SHORTEST_SECRET);
    secrets
}

/// How long a busy server wants to be left alone (RFC 9110 § 10.2.3); `None`: it says nothing that makes sense.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = rfc2822::parse(value).ok()?.timestamp();
    // In the past: now. A clock that is wrong costs no more than the longest pause.
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

enum Judged<'a> {
    Fine(Box<Answer<'a>>),
    Later { reason: String, pause: Option<Duration> },
}

/// Does not say the URL twice.
fn unavailable(url: &str, reason: &str) -> Error {
    let url = show(url);
    let reason = reason.strip_prefix(&format!("{url}: ")).unwrap_or(reason).to_owned();
    Error::Unavailable { url, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn servers_say_when_to_come_back() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let secs = Duration::from_secs;
        for (value, pause) in [
            ("0", Some(secs(0))),
            (" 120 ", Some(secs(120))),
            ("18446744073709551615", Some(secs(u64::MAX))),
            ("18446744073709551616", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("Fri, 02 Jan 2026 03:05:05 GMT", Some(secs(60))),
            ("Fri, 02 Jan 2026 03:00:00 GMT", Some(secs(0))),
            // Beyond what a clock here can tell.
            ("Fri, 31 Dec 9999 23:59:59 GMT", None),
            ("Fri, 99 Jan 2026 03:05:05 GMT", None),
        ] {
            assert_eq!(retry_after(value, now), pause, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn no_retry_after_makes_anybody_panic(value in "\\PC{0,40}|-?[0-9]{0,25}|[A-Z][a-z]{2}, [0-9]{2} Jan [0-9]{4} [0-9:]{8} GMT") {
            let _ = retry_after(&value, Timestamp::UNIX_EPOCH);
        }
    }
}
