//! Commands in containers: `exec`, `attach` and `run`, for the local API and the node API alike.

use super::log::{container_name, containers};
use super::reply::{self, Failure, Reply};
use super::route::Query;
use super::{Node, find_pod};
use crate::shim::exec::{Options, Target};
use crate::stream::{self, Refused, Session, Wanted, command};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// Most arguments and bytes of a command.
const MAX_COMMAND: (usize, usize) = (1024, 128 * 1024);
/// Most output of a command that is answered as a whole, in bytes (as a CRI runtime: 16 MiB).
const MAX_OUTPUT: usize = 16 << 20;

/// The container that a request means, which has to run.
fn target(node: &dyn Node, namespace: &str, name: &str, query: &Query) -> Result<(Arc<Pod>, String, Target), Failure> {
    let pod = find_pod(node, namespace, name).ok_or_else(|| Failure::not_found(format!("pods {name:?} not found")))?;
    let container = container_name(&pod, query.get("container"))?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let target = node.exec_target(namespace, name, &container).map_err(Failure::not_found)?;
    Ok((pod, container, target))
}

/// Answers a request for a command's streams; the session is left to the streams' thread.
pub(super) fn exec(
    node: &Arc<dyn Node>,
    namespace: &str,
    name: &str,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let wanted = wanted(query)?;
    let argv = argv(query.all("command").map(str::to_owned).collect())?;
    let (.., target) = target(node.as_ref(), namespace, name, query)?;
    let options = Options { argv, tty: wanted.tty, stdin: wanted.stdin, ..Options::default() };
    switch(node, wanted, &mut request, |session| command::exec(target, options, session))
}

/// Answers a request for an archive of files of a container, or to a container: ours, for `coracle cp`. This program runs in
/// the container for it, as the container's user.
pub(super) fn copy(
    node: &Arc<dyn Node>,
    namespace: &str,
    name: &str,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let (role, path, stdin) = match (query.get("from"), query.get("to")) {
        (Some(path), None) => ("pack", path, false),
        (None, Some(path)) => ("unpack", path, true),
        _ => return Err(Failure::bad_request("want one of from and to")),
    };
    let argv = argv(vec![role.to_owned(), path.to_owned()])?;
    let (.., target) = target(node.as_ref(), namespace, name, query)?;
    let options = Options { argv, own: true, stdin, ..Options::default() };
    let wanted = Wanted { stdin, stdout: true, stderr: true, tty: false };
    switch(node, wanted, &mut request, |session| command::exec(target, options, session))
}

/// Answers a request for a container's own streams.
pub(super) fn attach(
    node: &Arc<dyn Node>,
    namespace: &str,
    name: &str,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let wanted = wanted(query)?;
    let (pod, container, target) = target(node.as_ref(), namespace, name, query)?;
    // As kubelet: whether there is a terminal was decided when the container was made.
    let has_terminal = containers(&pod).any(|c| c.name == container && c.tty == Some(true));
    if wanted.tty && !has_terminal {
        return Err(Failure::bad_request(format!("container {container} has no terminal")));
    }
    switch(node, wanted, &mut request, |session| command::attach(target, session))
}

/// Runs a command without input, and answers with all it says (`/run` of the kubelet). As there, the command's words are in
/// `cmd`, between blanks.
pub(super) async fn run(node: &Arc<dyn Node>, namespace: &str, name: &str, query: &Query) -> Result<Reply, Failure> {
    let argv = argv(query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect())?;
    let (.., target) = target(node.as_ref(), namespace, name, query)?;
    // Whoever asks and goes away takes the command along.
    let running = AbortOnDrop(stream::spawn(command::output(target, argv, MAX_OUTPUT, None)));
    let output = running.await.map_err(|error| Failure::internal(format!("worker failed: {error}")))?;
    let output = output.map_err(|error| Failure::internal(error.to_string()))?;
    let said = [output.stdout, output.stderr].concat();
    if output.code != 0 {
        let said = String::from_utf8_lossy(&said);
        return Err(Failure::internal(format!(
            "command terminated with exit code {}: {}",
            output.code,
            said.trim_end()
        )));
    }
    Ok(reply::text(said))
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers with the switch of protocols, and leaves the client's streams to `serve`.
fn switch<F>(
    node: &Arc<dyn Node>,
    wanted: Wanted,
    request: &mut Request<Incoming>,
    serve: impl FnOnce(Session) -> F + Send + 'static,
) -> Result<Reply, Failure>
where
    F: Future<Output = ()> + Send + 'static,
{
    match stream::upgrade(request, wanted, node.config().server.streaming_idle) {
        Ok((answer, client)) => {
            stream::spawn(async move {
                match client.session().await {
                    Ok(session) => serve(session).await,
                    Err(error) => tracing::debug!(error = crate::causes::chain(&error), "the client sent no streams"),
                }
            });
            Ok(answer.map(|()| reply::bytes(Bytes::new())))
        }
        Err(refused) => refuse(&refused),
    }
}

/// Answers that protocols are not switched.
pub(super) fn refuse(refused: &Refused) -> Result<Reply, Failure> {
    let answer: Response<()> = refused.answer();
    if answer.status() == StatusCode::BAD_REQUEST {
        return Err(Failure::bad_request(refused.to_string()));
    }
    let mut reply = answer.map(|()| reply::bytes(refused.to_string()));
    reply.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(reply)
}

/// The streams asked for, by the API server's names or the kubelet's.
fn wanted(query: &Query) -> Result<Wanted, Failure> {
    let either = |one: &str, other: &str| Ok::<_, Failure>(query.flag(one)? || query.flag(other)?);
    let tty = query.flag("tty")?;
    let wanted = Wanted {
        stdin: either("stdin", "input")?,
        stdout: either("stdout", "output")?,
        // A terminal has one output.
        stderr: either("stderr", "error")? && !tty,
        tty,
    };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(Failure::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(wanted)
}

fn argv(argv: Vec<String>) -> Result<Vec<String>, Failure> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(Failure::bad_request("you must specify a command for the container"));
    }
    if argv.len() > MAX_COMMAND.0 || argv.iter().map(String::len).sum::<usize>() > MAX_COMMAND.1 {
        return Err(Failure::bad_request("the command is too long"));
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(Failure::bad_request("the command contains a NUL byte"));
    }
    Ok(argv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_named_as_the_api_server_or_the_kubelet_names_them() {
        let read = |text: &str| wanted(&Query::parse(text).unwrap()).ok();
        let all = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
        assert_eq!(read("stdin=true&stdout=true&stderr=true"), Some(all));
        assert_eq!(read("input=1&output=1&error=1"), Some(all));
        assert_eq!(read("output=1&error=1&tty=1"), Some(Wanted { stdin: false, stderr: false, tty: true, ..all }));
        assert_eq!(read("error=1&tty=1"), None);
        assert_eq!(read("stdin=x"), None);
    }

    #[test]
    fn commands_that_cannot_be_are_refused() {
        let words = |words: &[&str]| argv(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(words(&["sh", ""]).unwrap(), ["sh", ""]);
        for bad in [&[][..], &[""], &["a\0b"], &["x"; 1025], &["x".repeat(200_000).as_str()]] {
            assert!(words(bad).is_err());
        }
    }
}
