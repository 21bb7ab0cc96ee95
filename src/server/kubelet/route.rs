//! Path and method of a request of the kubelet API → what is asked, and what who asks needs for it. Pure.

use super::super::route::decode;
use hyper::Method;

/// A container, as paths name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) pod: String,
    /// Empty: whichever pod has the name.
    pub(super) uid: String,
    /// Empty for a port-forward.
    pub(super) container: String,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// All checks, or the one that is named.
    Health(Option<String>),
    Pods,
    RunningPods,
    Metrics,
    CadvisorMetrics,
    ResourceMetrics,
    ProbeMetrics,
    HealthMetrics,
    Summary,
    Configz,
    Statusz,
    Flagz,
    Checkpoint(Place),
    /// Of the machine; the path below its folder of logs.
    Logs(Vec<String>),
    ContainerLogs(Place),
    Exec(Place),
    Attach(Place),
    PortForward(Place),
    Run(Place),
    /// Go's, which this is not.
    Profiling,
    DebugFlags,
}

impl Route {
    /// Whether `enableDebuggingHandlers: false` takes it away; `Some(true)`: saying so.
    pub(super) fn is_for_debugging(&self) -> Option<bool> {
        match self {
            Route::Run(_)
            | Route::Exec(_)
            | Route::Attach(_)
            | Route::PortForward(_)
            | Route::ContainerLogs(_)
            | Route::RunningPods
            | Route::Profiling
            | Route::Logs(_) => Some(true),
            Route::Configz | Route::Checkpoint(_) | Route::Statusz | Route::Flagz | Route::DebugFlags => Some(false),
            _ => None,
        }
    }

    /// Whether the port without authentication has it, too.
    pub(super) fn is_read_only(&self) -> bool {
        use Route::{CadvisorMetrics, Health, HealthMetrics, Metrics, Pods, ProbeMetrics, ResourceMetrics, Summary};
        let metrics = matches!(self, Metrics | CadvisorMetrics | ResourceMetrics | ProbeMetrics | HealthMetrics);
        metrics || matches!(self, Health(_) | Pods | Summary)
    }
}

/// A request as it was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Subresources of the node of which any will do. There always are some, also where nothing is served: who may not ask
    /// learns nothing.
    pub(super) needs: &'static [&'static str],
    /// What is asked.
    pub(super) route: Result<Route, Nothing>,
}

/// Why nothing is asked that could be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nothing {
    /// There is no such path.
    Missing,
    /// Not in this way.
    Method,
    /// The path is no text.
    Malformed,
}

const PROXY: &[&str] = &["proxy"];

/// What the first part of a path needs (as kubelet, with its fine-grained subresources).
fn needs(first: &str) -> &'static [&'static str] {
    match first {
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        _ => PROXY,
    }
}

/// Reads method and path.
pub(super) fn route(method: &Method, path: &str) -> Asked {
    let Some(segments) = segments(path) else { return Asked { needs: PROXY, route: Err(Nothing::Malformed) } };
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let needs = needs(segments.first().copied().unwrap_or_default());
    // A path that others may read in another way is none.
    if segments.iter().any(|part| matches!(*part, "" | "." | "..") || part.contains(['/', '\0'])) {
        return Asked { needs, route: Err(Nothing::Missing) };
    }
    let Some((route, methods)) = find(&segments) else { return Asked { needs, route: Err(Nothing::Missing) } };
    let route = if methods.contains(method) { Ok(route) } else { Err(Nothing::Method) };
    Asked { needs, route }
}

fn find(segments: &[&str]) -> Option<(Route, &'static [Method])> {
    const GET: &[Method] = &[Method::GET];
    const POST: &[Method] = &[Method::POST];
    const BOTH: &[Method] = &[Method::GET, Method::POST];
    const ANY: &[Method] = &[Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD];
    Some(match segments {
        ["healthz"] => (Route::Health(None), GET),
        ["healthz", check] => (Route::Health(Some((*check).to_owned())), GET),
        ["pods"] => (Route::Pods, GET),
        ["runningpods"] => (Route::RunningPods, GET),
        ["metrics"] => (Route::Metrics, GET),
        ["metrics", "cadvisor"] => (Route::CadvisorMetrics, GET),
        ["metrics", "resource"] => (Route::ResourceMetrics, GET),
        ["metrics", "probes"] => (Route::ProbeMetrics, GET),
        ["metrics", "slis"] => (Route::HealthMetrics, GET),
        ["stats", "summary"] => (Route::Summary, BOTH),
        ["configz"] => (Route::Configz, GET),
        ["statusz"] => (Route::Statusz, GET),
        ["flagz"] => (Route::Flagz, GET),
        ["checkpoint", rest @ ..] => (Route::Checkpoint(container(rest).filter(|place| place.uid.is_empty())?), POST),
        ["logs", rest @ ..] => (Route::Logs(rest.iter().map(|part| (*part).to_owned()).collect()), GET),
        ["containerLogs", rest @ ..] => {
            (Route::ContainerLogs(container(rest).filter(|place| place.uid.is_empty())?), GET)
        }
        ["exec", rest @ ..] => (Route::Exec(container(rest)?), BOTH),
        ["attach", rest @ ..] => (Route::Attach(container(rest)?), BOTH),
        ["run", rest @ ..] => (Route::Run(container(rest)?), POST),
        ["portForward", rest @ ..] => (Route::PortForward(pod(rest)?), BOTH),
        ["debug", "pprof", ..] => (Route::Profiling, ANY),
        ["debug", "flags", "v"] => (Route::DebugFlags, ANY),
        _ => return None,
    })
}

/// `{namespace}/{pod}[/{uid}]/{container}`.
fn container(rest: &[&str]) -> Option<Place> {
    let (namespace, pod, uid, container) = match rest {
        [namespace, pod, container] => (namespace, pod, &"", container),
        [namespace, pod, uid, container] => (namespace, pod, uid, container),
        _ => return None,
    };
    let [namespace, pod, uid, container] = [namespace, pod, uid, container].map(|part| (*part).to_owned());
    Some(Place { namespace, pod, uid, container })
}

/// `{namespace}/{pod}[/{uid}]`.
fn pod(rest: &[&str]) -> Option<Place> {
    let (namespace, pod, uid) = match rest {
        [namespace, pod] => (namespace, pod, &""),
        [namespace, pod, uid] => (namespace, pod, uid),
        _ => return None,
    };
    let [namespace, pod, uid] = [namespace, pod, uid].map(|part| (*part).to_owned());
    Some(Place { namespace, pod, uid, container: String::new() })
}

/// The parts of a path, decoded one by one; a slash at its end counts for nothing. `None`: it is no text.
fn segments(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').map(|part| decode(part, false)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(path: &str) -> Asked {
        route(&Method::GET, path)
    }

    fn place(uid: &str) -> Place {
        let [namespace, pod, container] = ["n", "p", "c"].map(str::to_owned);
        Place { namespace, pod, uid: uid.to_owned(), container }
    }

    #[test]
    fn paths_of_the_kubelet_are_read() {
        let bare = Place { container: String::new(), ..place("") };
        for (method, path, route_of, needs) in [
            ("GET", "/healthz", Route::Health(None), "healthz proxy"),
            ("GET", "/healthz/ping", Route::Health(Some("ping".into())), "healthz proxy"),
            ("GET", "/pods", Route::Pods, "pods proxy"),
            ("GET", "/pods/", Route::Pods, "pods proxy"),
            ("GET", "/runningpods/", Route::RunningPods, "pods proxy"),
            ("GET", "/metrics", Route::Metrics, "metrics"),
            ("GET", "/metrics/cadvisor", Route::CadvisorMetrics, "metrics"),
            ("GET", "/metrics/resource", Route::ResourceMetrics, "metrics"),
            ("GET", "/metrics/probes", Route::ProbeMetrics, "metrics"),
            ("GET", "/metrics/slis", Route::HealthMetrics, "metrics"),
            ("GET", "/stats/summary", Route::Summary, "stats"),
            ("POST", "/stats/summary/", Route::Summary, "stats"),
            ("GET", "/configz", Route::Configz, "configz proxy"),
            ("GET", "/statusz", Route::Statusz, "statusz"),
            ("GET", "/flagz", Route::Flagz, "configz"),
            ("POST", "/checkpoint/n/p/c", Route::Checkpoint(place("")), "checkpoint"),
            ("GET", "/logs/", Route::Logs(vec![]), "log"),
            ("GET", "/logs/a/b%20c", Route::Logs(vec!["a".into(), "b c".into()]), "log"),
            ("GET", "/containerLogs/n/p/c", Route::ContainerLogs(place("")), "proxy"),
            ("GET", "/exec/n/p/c", Route::Exec(place("")), "proxy"),
            ("POST", "/exec/n/p/u/c", Route::Exec(place("u")), "proxy"),
            ("POST", "/attach/n/p/c", Route::Attach(place("")), "proxy"),
            ("GET", "/portForward/n/p", Route::PortForward(bare.clone()), "proxy"),
            ("POST", "/portForward/n/p/u", Route::PortForward(Place { uid: "u".into(), ..bare.clone() }), "proxy"),
            ("POST", "/run/n/p/c", Route::Run(place("")), "proxy"),
            ("GET", "/debug/pprof/heap", Route::Profiling, "proxy"),
            ("PUT", "/debug/flags/v", Route::DebugFlags, "proxy"),
        ] {
            let asked = route(&method.parse().unwrap(), path);
            assert_eq!((asked.route, asked.needs.join(" ")), (Ok(route_of), needs.to_owned()), "{method} {path}");
        }
    }

    #[test]
    fn what_is_not_there_needs_something_too() {
        for (path, needs) in [
            ("/", "proxy"),
            ("", "proxy"),
            ("/nothing", "proxy"),
            ("/pods/x", "pods proxy"),
            ("/stats", "stats"),
            ("/metrics/x", "metrics"),
            ("/exec/n/p", "proxy"),
            ("/exec/n/p/u/c/x", "proxy"),
            ("/containerLogs/n/p/u/c", "proxy"),
            ("//pods", "proxy"),
            ("/exec//p/c", "proxy"),
            ("/pods/../exec/n/p/c", "pods proxy"),
            ("/healthz/../exec/n/p/c", "healthz proxy"),
            ("/logs/../../etc/shadow", "log"),
            ("/logs/%2e%2e/x", "log"),
            ("/logs/a%2fb", "log"),
            ("/PODS", "proxy"),
            ("/%65xec/n/p%2fx/c", "proxy"),
        ] {
            let asked = get(path);
            assert!(matches!(asked.route, Err(Nothing::Missing | Nothing::Malformed)), "{path}: {:?}", asked.route);
            assert_eq!(asked.needs.join(" "), needs, "{path}");
        }
        assert_eq!(get("/pods%zz").route, Err(Nothing::Malformed));
        for (method, path) in [("POST", "/pods"), ("GET", "/run/n/p/c"), ("HEAD", "/pods"), ("DELETE", "/exec/n/p/c")] {
            assert_eq!(route(&method.parse().unwrap(), path).route, Err(Nothing::Method), "{method} {path}");
        }
        // The same in other letters is the same.
        assert_eq!(get("/%65xec/n/p/c").route, Ok(Route::Exec(place(""))));
    }

    proptest! {
        #[test]
        fn whatever_reaches_a_container_needs_proxy(path in "(/(exec|attach|run|portForward|containerLogs|pods|logs|[a-z.%]{0,4})){0,6}/?") {
            for method in [Method::GET, Method::POST] {
                let asked = route(&method, &path);
                prop_assert!(!asked.needs.is_empty());
                if let Ok(Route::Exec(_) | Route::Attach(_) | Route::Run(_) | Route::PortForward(_) | Route::ContainerLogs(_)) = asked.route {
                    prop_assert_eq!(asked.needs, &["proxy"]);
                }
                if let Ok(Route::Logs(path)) = asked.route {
                    prop_assert!(path.iter().all(|part| !matches!(part.as_str(), "" | "." | "..") && !part.contains('/')));
                }
            }
        }

        #[test]
        fn no_path_makes_it_panic(path in "\\PC{0,60}") {
            prop_assert!(!get(&path).needs.is_empty());
        }
    }
}
