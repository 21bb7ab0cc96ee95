//! How requests get to the API server: one connection for all of them, an end to every wait, a limit to every answer.

use super::calls::calls;
use super::credentials::Credentials;
use super::kubeconfig::Bearer;
use super::trouble;
use crate::sys::{clock, fs};
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// An API server that does not answer a ping for this long is gone.
const PING: Duration = Duration::from_secs(15);
/// How long a request may take with its answer; of a watch, until the answer begins.
const REQUEST: Duration = Duration::from_secs(30);
/// Most bytes of an answer.
const LARGEST: u64 = 128 << 20;
/// Most bytes of one event of a watch.
const LARGEST_EVENT: u64 = 16 << 20;
/// Most bytes of a file with a token.
const LARGEST_TOKEN: u64 = 1 << 20;
/// As client-go: how long a token is used before its file is looked at again.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Who asks.
const AGENT: &str = concat!("coracle/", env!("CARGO_PKG_VERSION"), " (linux) kubernetes/1.36");

/// An error of any kind.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Told how each request went: the status of its answer, or why there was none.
pub(super) type Contact = Arc<dyn Fn(Result<StatusCode, String>) + Send + Sync>;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no answer in {} seconds", REQUEST.as_secs())]
    Late,
    #[error("the answer is larger than {} MiB", .0 >> 20)]
    Large(u64),
    #[error("cannot read the token in {path}: {why}")]
    Token { path: String, why: String },
}

/// A failed request.
#[derive(Debug)]
pub(super) struct Failure {
    /// Of the answer, if there was one.
    pub(super) code: Option<u16>,
    why: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// Requests with these credentials; the connection ends with the last clone.
pub(super) fn client(credentials: &Credentials, contact: Contact) -> Client {
    let bearer = credentials.access.token.clone().map(|token| Arc::new(Token { token, read: Mutex::default() }));
    let name = credentials.access.server_name.clone();
    new(&credentials.tls, name.as_deref(), credentials.server.clone(), bearer, contact)
}

/// Requests without any credentials.
pub(super) fn anonymous(tls: &Arc<ClientConfig>, server: Uri) -> Client {
    new(tls, None, server, None, Arc::new(|_| {}))
}

fn new(
    tls: &Arc<ClientConfig>,
    server_name: Option<&str>,
    server: Uri,
    bearer: Option<Arc<Token>>,
    contact: Contact,
) -> Client {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_nodelay(true);
    // For servers that speak HTTP/1.1 only, which has no pings.
    tcp.set_keepalive(Some(PING));
    tcp.set_tcp_user_timeout(Some(2 * PING));
    let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(ClientConfig::clone(tls)).https_or_http();
    // A name that is none cannot be in a certificate: then the host's counts, and will not fit either.
    let https = match server_name.and_then(|name| ServerName::try_from(name.to_owned()).ok()) {
        Some(name) => https.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name)),
        None => https,
    };
    let http = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        .http2_keep_alive_while_idle(true)
        .build::<_, Body>(https.enable_http1().enable_http2().wrap_connector(tcp));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (http, bearer, contact) = (http.clone(), bearer.clone(), Arc::clone(&contact));
        let is_watch = is_watch(request.uri());
        let (method, host, begun) =
            (request.method().clone(), server.authority().map(ToString::to_string), Instant::now());
        let request = addressed(request, &server, bearer.as_deref());
        async move {
            let deadline = Instant::now() + REQUEST;
            let answer = match tokio::time::timeout_at(deadline, http.request(request?)).await {
                Ok(answer) => answer.map_err(|error| {
                    let why = trouble::explain(&error, clock::for_certificates());
                    (BoxError::from(error), why)
                }),
                Err(_) => Err((Error::Late.into(), Error::Late.to_string())),
            };
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            calls().answered(&method, host.as_deref().unwrap_or_default(), code, begun.elapsed());
            match answer {
                Ok(answer) => {
                    contact(Ok(answer.status()));
                    let end = (!is_watch).then_some(deadline);
                    Ok::<Response<Bounded>, BoxError>(answer.map(|inner| Bounded::new(inner, end)))
                }
                Err((error, why)) => {
                    contact(Err(why));
                    Err(error)
                }
            }
        }
    });
    Client::new(service, "default")
}

/// The request as it goes to `server`, below its path.
fn addressed(mut request: Request<Body>, server: &Uri, bearer: Option<&Token>) -> Result<Request<Body>, BoxError> {
    let asked = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let path = format!("{}{asked}", server.path().trim_end_matches('/'));
    let mut parts = server.clone().into_parts();
    parts.path_and_query = Some(path.parse()?);
    *request.uri_mut() = Uri::from_parts(parts)?;
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    if let Some(bearer) = bearer {
        request.headers_mut().insert(AUTHORIZATION, bearer.header()?);
    }
    Ok(request)
}

/// Whether the answer goes on for as long as both want.
fn is_watch(uri: &Uri) -> bool {
    uri.query().unwrap_or_default().split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"))
}

/// A bearer token, which somebody else may renew in its file.
struct Token {
    token: Bearer,
    read: Mutex<Option<(Instant, HeaderValue)>>,
}

impl Token {
    fn header(&self) -> Result<HeaderValue, Error> {
        match &self.token {
            Bearer::Text(text) => header(text, "kubeconfig"),
            Bearer::File(path) => {
                let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((at, header)) = read.as_ref().filter(|(at, _)| at.elapsed() < TOKEN_LIFE) {
                    let _ = at;
                    return Ok(header.clone());
                }
                let fresh = read_token(path)?;
                *read = Some((Instant::now(), fresh.clone()));
                Ok(fresh)
            }
        }
    }
}

fn read_token(path: &Path) -> Result<HeaderValue, Error> {
    let failed = |why: String| Error::Token { path: path.display().to_string(), why };
    let text = fs::read_limited(path, LARGEST_TOKEN).map_err(|e| failed(e.to_string()))?;
    header(&String::from_utf8_lossy(&text), &path.display().to_string())
}

fn header(token: &str, path: &str) -> Result<HeaderValue, Error> {
    let wrong = |_| Error::Token { path: path.to_owned(), why: "odd characters".to_owned() };
    let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(wrong)?;
    header.set_sensitive(true);
    Ok(header)
}

/// An answer within limits.
struct Bounded {
    inner: Incoming,
    /// By when all of it has to be here; `None`: a watch.
    end: Option<Pin<Box<Sleep>>>,
    /// Bytes so far, of a watch those of the event.
    bytes: u64,
}

impl Bounded {
    fn new(inner: Incoming, end: Option<Instant>) -> Bounded {
        Bounded { inner, end: end.map(|end| Box::pin(tokio::time::sleep_until(end))), bytes: 0 }
    }

    fn count(&mut self, data: &[u8]) -> Result<(), Error> {
        let last = data.iter().rposition(|b| *b == b'\n').filter(|_| self.end.is_none());
        self.bytes = match last {
            Some(at) => (data.len() - at) as u64,
            None => self.bytes.saturating_add(data.len() as u64),
        };
        let limit = if self.end.is_none() { LARGEST_EVENT } else { LARGEST };
        if self.bytes > limit { Err(Error::Large(limit)) } else { Ok(()) }
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(Error::Late.into())));
        }
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let counted = frame.data_ref().map_or(Ok(()), |data| self.count(data));
        Poll::Ready(Some(counted.map(|()| frame).map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.inner.size_hint()
    }
}

/// One request with JSON, without types.
pub(super) async fn ask(client: &Client, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
    let failed = |why: String| Failure { code: None, why };
    let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
    let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
    let request = request.body(body).map_err(|e| failed(e.to_string()))?;
    client.request(request).await.map_err(|error| match error {
        kube::Error::Api(status) => {
            let why = format!("{} ({} {})", status.message, status.code, status.reason);
            Failure { code: Some(status.code), why }
        }
        kube::Error::Service(error) => failed(trouble::explain(&*error, clock::for_certificates())),
        error => failed(trouble::explain(&error, clock::for_certificates())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(server: &str, asked: &str, bearer: Option<&Token>) -> Request<Body> {
        let request = Request::builder().uri(asked).body(Body::empty()).unwrap();
        addressed(request, &server.parse().unwrap(), bearer).unwrap()
    }

    #[test]
    fn requests_go_below_the_servers_path() {
        for (server, asked, uri) in [
            ("https://a:6443", "/api/v1/pods?watch=true", "https://a:6443/api/v1/pods?watch=true"),
            ("https://a:6443/", "/version", "https://a:6443/version"),
            ("https://a/k8s/clusters/c-1/", "/version", "https://a/k8s/clusters/c-1/version"),
        ] {
            assert_eq!(sent(server, asked, None).uri().to_string(), uri);
        }
        let is = |uri: &str| is_watch(&uri.parse().unwrap());
        assert!(is("/api/v1/pods?fieldSelector=a&watch=true") && !is("/api/v1/pods?unwatch=true") && !is("/watch"));
    }

    #[test]
    fn tokens_are_sent_and_not_shown() {
        let token = Token { token: Bearer::Text("secret\n".to_owned()), read: Mutex::default() };
        let request = sent("https://a", "/", Some(&token));
        assert_eq!(request.headers()[AUTHORIZATION].to_str().unwrap(), "Bearer secret");
        assert!(!format!("{request:?}").contains("secret"), "{request:?}");
        let token = Token { token: Bearer::Text("a\nb".to_owned()), read: Mutex::default() };
        let error = token.header().unwrap_err().to_string();
        assert!(error.contains("odd characters") && !error.contains("a\n"), "{error}");
    }
}
