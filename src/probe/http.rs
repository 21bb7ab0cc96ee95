//! `httpGet`: one GET over HTTP/1.1, a connection for each.

use super::connect::connect;
use super::url::Url;
use super::{Answer, Target, address, tls};
use crate::runtime::chain;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, Entry, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Most of a body that is read, in bytes (as kubelet).
const MAX_BODY: usize = 10 * 1024;
/// Most bytes of a response's head; the buffer grows only when they come.
const MAX_HEAD: usize = 64 * 1024;
/// The request that fails after so many redirects (as kubelet).
const MAX_REDIRECTS: usize = 10;

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Get {
    url: Url,
    headers: HeaderMap,
    /// A `Host` of the manifest's.
    host: Option<HeaderValue>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Response {
    status: StatusCode,
    location: Option<String>,
    /// Of redirects only: nobody looks at others.
    body: String,
}

/// Why nothing came back.
#[derive(Debug)]
pub(super) enum Error {
    /// Asked for HTTPS, answered in HTTP.
    PlainHttp,
    /// No answer: the connection, the protocol, the redirects.
    Failed(String),
    /// The answer began, but did not end well.
    Body(String),
}

impl Get {
    /// # Errors
    /// When the port is not known or a header cannot be sent.
    pub(super) fn new(action: &HTTPGetAction, target: &Target, agent: &'static str) -> Result<Get, String> {
        let https = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let host = address::host(action.host.as_deref(), target);
        let port = address::port(&action.port, target)?;
        let mut headers = HeaderMap::new();
        let mut own_host = None;
        for header in action.http_headers.iter().flatten() {
            let name = HeaderName::try_from(header.name.as_str())
                .map_err(|_| format!("invalid header field name {:?}", header.name))?;
            let value = HeaderValue::from_str(header.value.trim())
                .map_err(|_| format!("invalid header field value for {:?}", header.name))?;
            if name == HOST {
                own_host.get_or_insert(value);
            } else {
                headers.append(name, value);
            }
        }
        for (name, value) in [(USER_AGENT, agent), (ACCEPT, "*/*")] {
            match headers.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(HeaderValue::from_static(value));
                }
                Entry::Occupied(entry) if entry.get().is_empty() => {
                    entry.remove_entry_mult();
                }
                Entry::Occupied(_) => {}
            }
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let url = Url::new(https, host, port, action.path.as_deref().unwrap_or_default());
        Ok(Get { url, headers, host: own_host.filter(|host| !host.is_empty()) })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The same in clear, without what must not be sent in clear.
    pub(super) fn in_clear(mut self) -> Get {
        self.url.https = false;
        self.headers.remove(AUTHORIZATION);
        self
    }

    /// Asks, and follows redirects as long as they stay on the host.
    pub(super) async fn send(mut self) -> Result<Response, Error> {
        let first = self.url.host.clone();
        for _ in 0..MAX_REDIRECTS {
            let response = self.exchange().await?;
            let follow = matches!(response.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = response.location.as_deref().filter(|_| follow) else { return Ok(response) };
            let Some(url) = self.url.join(location) else {
                return Err(Error::Failed(format!("failed to parse Location header {location:?}")));
            };
            if !url.host.eq_ignore_ascii_case(&first) {
                return Ok(response);
            }
            // As Go's client: the manifest's Host stays unless the redirect is a whole URL.
            if location.split('/').next().is_some_and(|scheme| scheme.ends_with(':')) {
                self.host = None;
            }
            self.url = url;
        }
        Err(Error::Failed(format!("stopped after {MAX_REDIRECTS} redirects")))
    }

    async fn exchange(&self) -> Result<Response, Error> {
        let stream = connect(&self.url.host, self.url.port).await.map_err(Error::Failed)?;
        if !self.url.https {
            return self.talk(stream).await;
        }
        let session = tls::connect(stream, &self.url.host).await.map_err(|error| match error {
            tls::Error::NotTls => Error::PlainHttp,
            tls::Error::Failed(text) => Error::Failed(text),
        })?;
        self.talk(session).await
    }

    async fn talk<S>(&self, stream: S) -> Result<Response, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = self.url.target.parse().map_err(|_| Error::Failed("invalid path".to_owned()))?;
        *request.headers_mut() = self.headers.clone();
        let host = match &self.host {
            Some(host) => host.clone(),
            None => HeaderValue::try_from(self.url.authority())
                .map_err(|_| Error::Failed(format!("invalid host {:?}", self.url.host)))?,
        };
        request.headers_mut().insert(HOST, host);
        let mut builder = http1::Builder::new();
        builder.title_case_headers(true).max_buf_size(MAX_HEAD);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        let mut connection = pin!(connection);
        let mut exchange = pin!(async move {
            let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
            read(response).await
        });
        let mut open = true;
        loop {
            tokio::select! {
                done = &mut exchange => return done,
                // Its error, if any, is that of the exchange too.
                _ = &mut connection, if open => open = false,
            }
        }
    }
}

async fn read(response: hyper::Response<hyper::body::Incoming>) -> Result<Response, Error> {
    let (head, mut body) = response.into_parts();
    let location = head.headers.get(LOCATION).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty());
    let location = location.map(str::to_owned);
    let (mut kept, mut count) = (Vec::new(), 0);
    while count < MAX_BODY
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| Error::Body(chain(&error)))?;
        let Some(bytes) = frame.data_ref() else { continue };
        if head.status.is_redirection() {
            kept.extend_from_slice(&bytes[..bytes.len().min(MAX_BODY - count)]);
        }
        count += bytes.len();
    }
    Ok(Response { status: head.status, location, body: String::from_utf8_lossy(&kept).into_owned() })
}

fn failed(error: &hyper::Error) -> Error {
    Error::Failed(if error.is_incomplete_message() { "EOF".to_owned() } else { chain(error) })
}

/// The text of a request that failed: `Get "http://10.0.0.1:80/": dial tcp 10.0.0.1:80: connect: connection refused`.
pub(super) fn explain(url: &Url, error: &Error) -> String {
    let text = match error {
        Error::PlainHttp => "http: server gave HTTP response to HTTPS client",
        Error::Failed(text) | Error::Body(text) => text,
    };
    format!("Get {:?}: {text}", url.to_string())
}

/// As the kubelet calls itself.
const PROBE_AGENT: &str = "kube-probe/1.36";

pub(super) async fn probe(action: &HTTPGetAction, target: &Target, timeout: Duration) -> Answer {
    let get = match Get::new(action, target, PROBE_AGENT) {
        Ok(get) => get,
        Err(error) => return Answer::Error(error),
    };
    let url = get.url().clone();
    match tokio::time::timeout(timeout, get.send()).await {
        Err(_) => {
            let text = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
            Answer::Failure(explain(&url, &Error::Failed(text.to_owned())))
        }
        Ok(Err(error @ Error::Body(_))) => Answer::Error(explain(&url, &error)),
        Ok(Err(error)) => Answer::Failure(explain(&url, &error)),
        Ok(Ok(response)) => match response.status.as_u16() {
            200..=299 => Answer::Success,
            300..=399 => Answer::Warning(format!("Probe terminated redirects, Response body: {}", response.body)),
            status => Answer::Failure(format!("HTTP probe failed with statuscode: {status}")),
        },
    }
}
