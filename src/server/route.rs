//! Request path and query → what is asked. Pure.

use super::kube::{self, Asked};
use super::page::Part;
use super::reply::Failure;
use super::usage;
use hyper::Method;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Ready,
    Metrics,
    Status,
    /// The Kubernetes API, but for what is below a pod.
    Kube(Asked),
    Log {
        namespace: String,
        pod: String,
    },
    Exec {
        namespace: String,
        pod: String,
    },
    Attach {
        namespace: String,
        pod: String,
    },
    Copy {
        namespace: String,
        pod: String,
    },
    PortForward {
        namespace: String,
        pod: String,
    },
    Apply,
    Delete,
    Images,
    ImportImage,
    ExportImages,
    VerifyImages,
    PruneImages,
    PullImage,
    History {
        namespace: String,
        pod: String,
    },
    Rollback {
        namespace: String,
        pod: String,
    },
    Cluster,
    Kubeconfig,
    LookForCluster,
    LeaveCluster,
    Page(Part),
    Usage(usage::Asked),
}

/// Reads a request's method and path.
pub(super) fn route(method: &Method, path: &str) -> Result<Route, Failure> {
    let segments: Option<Vec<String>> =
        path.split('/').filter(|segment| !segment.is_empty()).map(|segment| decode(segment, false)).collect();
    let segments = segments.ok_or_else(|| Failure::bad_request("the path is not percent-encoded UTF-8"))?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let not_found = || Failure::not_found("the server could not find the requested resource");
    let (route, methods): (Route, &[Method]) = match segments[..] {
        ["healthz"] | ["livez"] => (Route::Health, &[Method::GET, Method::HEAD]),
        ["readyz"] => (Route::Ready, &[Method::GET, Method::HEAD]),
        ["metrics"] => (Route::Metrics, &[Method::GET]),
        _ if let Some(asked) = usage::Asked::of(&segments) => (Route::Usage(asked), &[Method::GET]),
        ["coracle", "v1", "status"] => (Route::Status, &[Method::GET]),
        ["coracle", "v1", "page", ref rest @ ..] if rest.len() < 2 => {
            let part = Part::of(rest.first().unwrap_or(&"")).ok_or_else(not_found)?;
            (Route::Page(part), &[Method::GET])
        }
        ["coracle", "v1", "cluster"] => (Route::Cluster, &[Method::GET]),
        ["coracle", "v1", "cluster", "look"] => (Route::LookForCluster, &[Method::POST]),
        ["coracle", "v1", "cluster", "leave"] => (Route::LeaveCluster, &[Method::POST]),
        ["coracle", "v1", "apply"] => (Route::Apply, &[Method::POST]),
        ["coracle", "v1", "delete"] => (Route::Delete, &[Method::POST]),
        ["coracle", "v1", "images"] => (Route::Images, &[Method::GET, Method::DELETE]),
        ["coracle", "v1", "images", "prune"] => (Route::PruneImages, &[Method::POST]),
        ["coracle", "v1", "images", "pull"] => (Route::PullImage, &[Method::POST]),
        ["coracle", "v1", "images", "import"] => (Route::ImportImage, &[Method::POST]),
        ["coracle", "v1", "images", "export"] => (Route::ExportImages, &[Method::GET]),
        ["coracle", "v1", "images", "verify"] => (Route::VerifyImages, &[Method::POST]),
        ["coracle", "v1", "namespaces", namespace, "pods", pod, "history"] => {
            (Route::History { namespace: namespace.to_owned(), pod: pod.to_owned() }, &[Method::GET])
        }
        ["coracle", "v1", "namespaces", namespace, "pods", pod, "copy"] => {
            (Route::Copy { namespace: namespace.to_owned(), pod: pod.to_owned() }, &[Method::GET])
        }
        ["coracle", "v1", "namespaces", namespace, "pods", pod, "rollback"] => {
            (Route::Rollback { namespace: namespace.to_owned(), pod: pod.to_owned() }, &[Method::POST])
        }
        ["api", "v1", "namespaces", namespace, "pods", pod, "log"] => {
            (Route::Log { namespace: namespace.to_owned(), pod: pod.to_owned() }, &[Method::GET])
        }
        ["api", "v1", "namespaces", namespace, "pods", pod, "exec"] => {
            // As the API server: a WebSocket begins with GET, whatever the verb; SPDY with POST.
            (Route::Exec { namespace: namespace.to_owned(), pod: pod.to_owned() }, &[Method::GET, Method::POST])
        }
        ["api", "v1", "namespaces", namespace, "pods", pod, "attach"] => {
            (Route::Attach { namespace: namespace.to_owned(), pod: pod.to_owned() }, &[Method::GET, Method::POST])
        }
        ["api", "v1", "namespaces", namespace, "pods", pod, "portforward"] => {
            let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
            (Route::PortForward { namespace, pod }, &[Method::GET, Method::POST])
        }
        ["coracle", "v1", "kubeconfig"] => (Route::Kubeconfig, &[Method::POST, Method::DELETE]),
        ref segments => return kube::asked(method, segments).ok_or_else(not_found)?.map(Route::Kube),
    };
    if methods.contains(method) {
        Ok(route)
    } else {
        Err(Failure::method(format!("{method} is not allowed on {path}")))
    }
}

/// A decoded query string; keys may repeat.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string.
    pub(super) fn parse(query: &str) -> Result<Query, Failure> {
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(key), Some(value)) = (decode(key, true), decode(value, true)) else {
                return Err(Failure::bad_request("the query is not percent-encoded UTF-8"));
            };
            pairs.push((key, value));
        }
        Ok(Query(pairs))
    }

    /// First value of a key that is not empty.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.all(key).find(|value| !value.is_empty())
    }

    /// All values of a key, in order.
    pub(super) fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Whether a key is there, with or without a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.all(key).next().is_some()
    }

    /// The same with one value of a key, in place of all that it had.
    pub(super) fn with(self, key: &str, value: &str) -> Query {
        let mut query = self.without(key);
        query.0.push((key.to_owned(), value.to_owned()));
        query
    }

    /// The same without a key.
    pub(super) fn without(mut self, key: &str) -> Query {
        self.0.retain(|(k, _)| k != key);
        self
    }

    /// As the API server reads booleans: absent is false, present without a value is true.
    pub(super) fn flag(&self, key: &str) -> Result<bool, Failure> {
        match self.all(key).next() {
            None | Some("0" | "false" | "False" | "f" | "F") => Ok(false),
            Some("" | "1" | "true" | "True" | "t" | "T") => Ok(true),
            Some(other) => Err(Failure::bad_request(format!("{key}: {other:?} is not true or false"))),
        }
    }

    /// A number that is not negative; a negative one is *invalid* (422), other text is a bad request (400).
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Failure> {
        let read = |text: &str| {
            text.parse().map_err(|_| match text.parse::<i64>() {
                Ok(_) => Failure::invalid(format!("{key}: must be greater than or equal to 0"), Vec::new()),
                Err(_) => Failure::bad_request(format!("{key}: {text:?} is not a whole number from 0 up")),
            })
        };
        self.get(key).map(read).transpose()
    }
}

/// Percent-decodes; `None` when it is no UTF-8 or a `%` is not followed by two hex digits.
pub(super) fn decode(text: &str, plus_is_blank: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push((high * 16 + low) as u8);
            }
            b'+' if plus_is_blank => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// Percent-encodes a path segment or a query value.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(path: &str) -> Result<Route, u16> {
        route(&Method::GET, path).map_err(|failure| failure.into_reply().status().as_u16())
    }

    #[test]
    fn paths_are_read() {
        assert_eq!(get("/api/v1/namespaces/a/pods/p/log"), Ok(Route::Log { namespace: "a".into(), pod: "p".into() }));
        assert!(matches!(get("/api/v1/pods"), Ok(Route::Kube(Asked::Objects(_)))));
        assert_eq!(get("/version"), Ok(Route::Kube(Asked::Version)));
        assert_eq!(get("/api/v1/services"), Err(404));
        assert_eq!(get("/else"), Err(404));
        assert_eq!(get("/coracle/v1/apply"), Err(405));
        assert_eq!(get("/coracle/v1/cluster"), Ok(Route::Cluster));
        assert_eq!(get("/coracle/v1/cluster/leave"), Err(405));
        let (namespace, pod) = ("a".to_owned(), "p".to_owned());
        assert_eq!(get("/coracle/v1/namespaces/a/pods/p/history"), Ok(Route::History { namespace, pod }));
        assert_eq!(get("/coracle/v1/namespaces/a/pods/p/rollback"), Err(405));
        assert_eq!(get("/api/v1/nodes/%zz"), Err(400));
    }

    #[test]
    fn queries_are_read() {
        let query = Query::parse("command=sh&command=-c&command=a%20b+c&tty&follow=false&tailLines=5&x=").unwrap();
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "a b c"]);
        assert!(query.flag("tty").unwrap() && !query.flag("follow").unwrap() && !query.flag("absent").unwrap());
        assert_eq!(query.number("tailLines").unwrap(), Some(5));
        assert_eq!(query.get("x"), None);
        assert!(Query::parse("tailLines=-1").unwrap().number("tailLines").is_err());
        assert!(Query::parse("a=%f").is_err());
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in "\\PC{0,60}", query in "\\PC{0,60}") {
            let _ = (route(&Method::GET, &path), Query::parse(&query));
        }

        #[test]
        fn what_is_encoded_decodes_again(text in "\\PC{0,60}") {
            prop_assert_eq!(decode(&encode(&text), true), Some(text));
        }
    }
}
