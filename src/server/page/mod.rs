//! The status page: one HTML file that shows what the node does, read-only.
//!
//! ```text
//! page ─ the file (script and style inside, nothing from elsewhere)
//! feed ─ what there is to show, section by section, again when it changes (server-sent events)
//! log  ─ the log of a container, followed
//! ```
//!
//! It is served behind `coracle.sock`, for `coracle status --web`, and on 127.0.0.1 when `statusPagePort` says so. What it
//! shows comes from containers and manifests, so the page makes text of it and nothing else, and its policy allows no other
//! script than its own.

mod certificates;
mod feed;
pub(crate) mod guard;
mod view;

use super::reply::{self, Failure, Reply};
use super::route::Query;
use super::{Node, log};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use sha2::{Digest, Sha256};
use std::sync::{Arc, LazyLock};

/// What the page is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The file.
    Page,
    /// What it shows.
    Feed,
    /// A container's log.
    Log,
}

impl Part {
    /// The part of this path, relative to the page's folder.
    pub(crate) fn of(path: &str) -> Option<Part> {
        match path {
            "" => Some(Part::Page),
            "feed" => Some(Part::Feed),
            "log" => Some(Part::Log),
            _ => None,
        }
    }

    /// The other way round.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Part::Page => "",
            Part::Feed => "feed",
            Part::Log => "log",
        }
    }
}

const HTML: &str = include_str!("page.html");
/// Lines of a log that are shown of what was written before.
const TAIL: u32 = 500;

/// Answers on 127.0.0.1, where any program of the machine may ask, and any web page may try to have its reader's browser ask.
pub(super) async fn loopback<B>(node: Arc<dyn Node>, request: &Request<B>) -> Result<Reply, Failure> {
    let head = guard::Head::of(request);
    let path = request.uri().path();
    let part = path.strip_prefix('/').and_then(Part::of);
    guard::check(&head, part)?;
    let part = part.ok_or_else(|| Failure::not_found("only the status page is served here"))?;
    answer(node, part, &Query::parse(request.uri().query().unwrap_or_default())?).await
}

/// Answers for a part of the page.
pub(super) async fn answer(node: Arc<dyn Node>, part: Part, query: &Query) -> Result<Reply, Failure> {
    let mut reply = match part {
        Part::Page => reply::with_type(StatusCode::OK, "text/html; charset=utf-8", reply::bytes(HTML)),
        Part::Feed => feed::feed(node),
        Part::Log => {
            let need = |key| query.get(key).ok_or_else(|| Failure::bad_request(format!("{key}: want the name of one")));
            let (namespace, pod, container) = (need("namespace")?, need("pod")?, need("container")?);
            let text = format!(
                "container={}&previous={}&follow=true&tailLines={TAIL}",
                super::encode(container),
                query.flag("previous")?
            );
            log::log(node, namespace, pod, &Query::parse(&text)?).await?
        }
    };
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(reply)
}

const HEADERS: [(HeaderName, &str); 6] = [
    // Addresses may hold a token.
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Nothing but what is in the page, and talk to nobody but whom it came from.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash("script"),
        hash("style")
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// What allows the page's element of this name.
fn hash(element: &str) -> String {
    let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
    let content =
        HTML.split_once(&*begin).and_then(|(_, rest)| rest.split_once(&*end)).map_or("", |(content, _)| content);
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_but_itself() {
        assert!(!HTML.contains("http:") && !HTML.contains("https:") && !HTML.contains("//cdn"), "an address");
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", " on"] {
            let used = HTML.lines().find(|line| line.contains(way) && (way != " on" || line.contains(" onclick=")));
            assert_eq!(used, None, "{way}");
        }
        assert_eq!((HTML.matches("<script>").count(), HTML.matches("<style>").count()), (1, 1));
        assert_eq!(HTML.matches("style=").count(), 0, "the policy allows no style in attributes");
    }

    #[test]
    fn the_policy_allows_the_page_and_nothing_else() {
        let policy = POLICY.to_str().expect("text");
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        let empty = format!("sha256-{}", STANDARD.encode(Sha256::digest("")));
        assert!(!policy.contains(&empty) && !policy.contains("unsafe"), "{policy}");
    }
}
