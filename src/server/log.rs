//! `GET …/pods/{name}/log`.

use super::logfile::{Moved, Options, Reader, Step};
use super::reply::{self, Failure, Reply, blocking};
use super::route::Query;
use super::exec::Named;
use super::{Node, find_pod};
use crate::sys::clock;
use hyper::StatusCode;
use hyper::body::Bytes;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a followed file is looked at. Output is batched anyway; a quarter second is below what a reader notices,
/// and it costs one `read` and one `stat` each.
const POLL: Duration = Duration::from_millis(250);

/// Answers with a container's log, as the API server does: the container is named by the query.
pub(super) async fn log(node: Arc<dyn Node>, namespace: &str, name: &str, query: &Query) -> Result<Reply, Failure> {
    let options = options(query, clock::wall())?;
    let named = Named::of(namespace, name, query);
    let pod = named.pod(node.as_ref())?;
    let container = find_container(&pod, named.container)?;
    show(node, &pod, container, options, query).await
}

/// Answers with a container's log, as the kubelet does: all of it is named by the path.
pub(super) async fn container_log(node: Arc<dyn Node>, named: &Named<'_>, query: &Query) -> Result<Reply, Failure> {
    let mut options = options(query, clock::wall())?;
    match query.get("tail") {
        // The kubelet's own word for it.
        Some("all") => options.tail = None,
        Some(_) => options.tail = query.number("tail")?,
        None => {}
    }
    let pod = find_pod(node.as_ref(), named.namespace, named.pod)
        .ok_or_else(|| Failure::not_found(format!("pod {:?} does not exist", named.pod)))?;
    let container = named.container.unwrap_or_default();
    if !containers(&pod).any(|known| known.name == container) {
        return Err(Failure::not_found(format!("container {container:?} not found in pod {:?}", named.pod)));
    }
    show(node, &pod, container.to_owned(), options, query).await
}

async fn show(
    node: Arc<dyn Node>,
    pod: &Pod,
    container: String,
    options: Options,
    query: &Query,
) -> Result<Reply, Failure> {
    let options = Options { moved: moved(), ..options };
    let (follow, previous) = (query.flag("follow")?, query.flag("previous")?);
    let source = Source {
        node,
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone(),
        container,
        previous,
    };
    let path = source.path().map_err(Failure::bad_request)?;
    let reader = blocking(move || Reader::open(&path, options)).await?;
    let reader = reader.map_err(|error| Failure::internal(format!("cannot read the log: {error}")))?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        if let Err(error) = copy(reader, source, follow && !previous, &sender).await {
            // The reader of the stream has to learn that this is not the whole log.
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(reply::with_type(StatusCode::OK, "text/plain; charset=utf-8", reply::stream(receiver)))
}

/// Whose log it is; asked again while following, as a restart begins another file.
struct Source {
    node: Arc<dyn Node>,
    namespace: String,
    pod: String,
    uid: Option<String>,
    container: String,
    previous: bool,
}

impl Source {
    fn path(&self) -> Result<PathBuf, String> {
        self.node.log_file(&self.namespace, &self.pod, &self.container, self.previous)
    }

    /// Whether nothing more can come.
    fn is_over(&self) -> bool {
        match find_pod(self.node.as_ref(), &self.namespace, &self.pod) {
            Some(pod) if pod.metadata.uid == self.uid => ended_for_good(&pod, &self.container),
            _ => true,
        }
    }
}

async fn copy(
    mut reader: Reader,
    source: Source,
    follow: bool,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    loop {
        // Asked before reading: what was written before the end is read after knowing of it.
        let over = !follow || source.is_over();
        let next = if follow { source.path().ok() } else { None };
        loop {
            let work = tokio::task::spawn_blocking(move || {
                let mut out = Vec::new();
                let step = reader.step(&mut out);
                (reader, out, step)
            });
            let (returned, out, step) = work.await.map_err(io::Error::other)?;
            reader = returned;
            let step = step?;
            if !out.is_empty() && sender.send(Ok(Bytes::from(out))).await.is_err() {
                return Ok(());
            }
            match step {
                Step::More => {}
                Step::End => break,
                Step::Full => return Ok(()),
            }
        }
        match next {
            Some(path) if path != reader.path() => {
                let work = tokio::task::spawn_blocking(move || reader.switch(&path).map(|()| reader));
                reader = work.await.map_err(io::Error::other)??;
                continue;
            }
            _ if over => return Ok(()),
            _ => {}
        }
        tokio::select! {
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// How the clock was set while the agent ran.
fn moved() -> Option<Moved> {
    let by = clock::ahead();
    (!by.is_zero()).then(|| Moved { now: clock::now(), by })
}

/// Reads the query, as the API server does.
fn options(query: &Query, now: Timestamp) -> Result<Options, Failure> {
    let since = match (query.number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(_), Some(_)) => {
            return Err(Failure::invalid("at most one of sinceTime or sinceSeconds may be specified", Vec::new()));
        }
        (Some(0), None) => return Err(Failure::invalid("sinceSeconds: must be greater than 0", Vec::new())),
        (Some(seconds), None) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            Some(now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN))
        }
        (None, Some(time)) => Some(
            time.parse().map_err(|_| Failure::bad_request(format!("sinceTime: {time:?} is not an RFC 3339 time")))?,
        ),
        (None, None) => None,
    };
    if query.get("stream").is_some_and(|stream| stream != "All") {
        return Err(Failure::bad_request("stream: only All is supported"));
    }
    let limit = query.number("limitBytes")?;
    if limit == Some(0) {
        return Err(Failure::invalid("limitBytes: must be greater than 0", Vec::new()));
    }
    let (tail, timestamps) = (query.number("tailLines")?, query.flag("timestamps")?);
    Ok(Options { tail, since, moved: None, timestamps, limit })
}

/// The container meant: the one named, or the only one.
pub(super) fn find_container(pod: &Pod, named: Option<&str>) -> Result<String, Failure> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let names: Vec<&str> = containers(pod).map(|container| container.name.as_str()).collect();
    match named {
        Some(name) if names.contains(&name) => Ok(name.to_owned()),
        Some(name) => Err(Failure::bad_request(format!("container {name} is not valid for pod {pod_name}"))),
        None => match pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers) {
            [only] => Ok(only.name.clone()),
            _ => Err(Failure::bad_request(format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                names.join(" ")
            ))),
        },
    }
}

/// All containers of a pod, init containers first.
pub(super) fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// Whether a container has ended and will not run again.
fn ended_for_good(pod: &Pod, name: &str) -> bool {
    let Some(status) = &pod.status else { return false };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return true;
    }
    let is_init = status.init_container_statuses.iter().flatten().any(|status| status.name == name);
    let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let exit_code = |status: &ContainerStatus| Some(status.state.as_ref()?.terminated.as_ref()?.exit_code);
    let Some(code) = statuses.into_iter().find(|status| status.name == name).and_then(exit_code) else { return false };
    let own_policy = containers(pod).find(|container| container.name == name).and_then(|c| c.restart_policy.as_deref());
    match own_policy.or_else(|| pod.spec.as_ref()?.restart_policy.as_deref()) {
        Some("Never") => true,
        Some("OnFailure") => code == 0,
        // A plain init container that succeeded is done; a sidecar has a policy of its own.
        _ => is_init && own_policy.is_none() && code == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(policy: &str, code: i32, phase: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]},
            "status": {
                "phase": phase,
                "initContainerStatuses": [{"name": "i", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}]
            }
        }))
        .unwrap()
    }

    #[test]
    fn following_ends_when_a_container_cannot_run_again() {
        assert!(!ended_for_good(&pod("Always", 0, "Running"), "c"));
        assert!(ended_for_good(&pod("Always", 0, "Running"), "i"));
        assert!(!ended_for_good(&pod("Always", 1, "Running"), "i"));
        assert!(ended_for_good(&pod("OnFailure", 0, "Running"), "c"));
        assert!(!ended_for_good(&pod("OnFailure", 1, "Running"), "c"));
        assert!(ended_for_good(&pod("Never", 1, "Running"), "c"));
        assert!(ended_for_good(&pod("Always", 0, "Failed"), "c"));
    }

    #[test]
    fn a_container_is_named_or_the_only_one() {
        let pod = pod("Always", 0, "Running");
        assert_eq!(find_container(&pod, None).unwrap(), "c");
        assert_eq!(find_container(&pod, Some("i")).unwrap(), "i");
        assert!(find_container(&pod, Some("x")).is_err());
    }

    #[test]
    fn options_follow_the_api_server() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let read = |query: &str| options(&Query::parse(query).unwrap(), now);
        let options = read("tailLines=3&sinceSeconds=60&timestamps=true&limitBytes=9").unwrap();
        assert_eq!(options.since, Some("2026-11-21T09:59:00Z".parse().unwrap()));
        assert_eq!((options.tail, options.timestamps, options.limit), (Some(3), true, Some(9)));
        assert!(read("sinceSeconds=99999999999999999").is_ok());
        for bad in
            ["sinceSeconds=1&sinceTime=x", "sinceTime=yesterday", "limitBytes=0", "tailLines=-1", "stream=Stderr"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
