//! Commands in a container: at once (ExecSync), or by an address where a client streams (Exec, Attach, PortForward).

use super::grpc::{Code, Status};
use super::look::{self, Pod};
use super::streams::Order;
use super::v1::{AttachRequest, ContainerState, ExecRequest, ExecSyncRequest, ExecSyncResponse, PortForwardRequest};
use crate::pod::Key;
use crate::server::Node;
use crate::shim::exec::{Options, Target};
use crate::stream::command::{self, Error};
use crate::stream::forward::Place;
use crate::stream::{self, Wanted};
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Most output of each stream that is kept, in bytes: both have to fit one answer (as a CRI runtime, which may discard what
/// is beyond 16 MiB).
const MAX_OUTPUT: usize = (16 << 20) / 2 - 1024;
/// Most commands at once whose output is kept.
const MAX_COMMANDS: usize = 8;
/// Most arguments of a command; their bytes are bounded by the request.
const MAX_ARGUMENTS: usize = 1024;

static COMMANDS: Semaphore = Semaphore::const_new(MAX_COMMANDS);

/// A container that runs.
fn running(node: &dyn Node, pods: &[Pod], id: &str) -> Result<(Target, bool), Status> {
    let run = look::container(pods, id)?;
    if run.state() != ContainerState::ContainerRunning {
        return Err(Status::new(Code::FailedPrecondition, format!("container {id:?} is not running")));
    }
    let Key { namespace, name } = run.pod.key();
    let target = node.exec_target(&namespace, &name, &run.run.container);
    let target = target.map_err(|why| Status::new(Code::FailedPrecondition, why))?;
    if target.id != run.run.id {
        return Err(Status::new(Code::FailedPrecondition, format!("container {id:?} was replaced")));
    }
    Ok((target, run.container().is_some_and(|container| container.tty == Some(true))))
}

fn checked(command: Vec<String>) -> Result<Vec<String>, Status> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Status::invalid("a command is required"));
    }
    if command.len() > MAX_ARGUMENTS || command.iter().any(|argument| argument.contains('\0')) {
        return Err(Status::invalid("the command is too long or has a NUL byte"));
    }
    Ok(command)
}

/// Where, what and for how long to execute at once.
pub(super) struct AtOnce {
    target: Target,
    command: Vec<String>,
    limit: Option<Duration>,
}

/// Checks what is to be executed at once.
pub(super) fn sync(node: &dyn Node, pods: &[Pod], request: ExecSyncRequest) -> Result<AtOnce, Status> {
    let limit = u64::try_from(request.timeout).map_err(|_| Status::invalid("the time-out is negative"))?;
    let limit = (limit > 0).then(|| Duration::from_secs(limit));
    let (target, _) = running(node, pods, &request.container_id)?;
    Ok(AtOnce { target, command: checked(request.cmd)?, limit })
}

/// Executes it; when the future is dropped, as its client is gone, the command is killed.
pub(super) async fn run(sync: AtOnce) -> Result<ExecSyncResponse, Status> {
    let AtOnce { target, command, limit } = sync;
    let gone = |_| Status::new(Code::Unavailable, "the node is going down");
    let _turn = COMMANDS.acquire().await.map_err(gone)?;
    let mut work = Held(stream::spawn(command::output(target, command, MAX_OUTPUT, limit)));
    let ended = poll_fn(|cx| Pin::new(&mut work.0).poll(cx)).await;
    match ended.map_err(|error| Status::new(Code::Internal, format!("worker failed: {error}")))? {
        Ok(output) => Ok(ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code }),
        Err(Error::TimedOut(after)) => {
            let text = format!("failed to exec in container: timeout {after:?} exceeded: context deadline exceeded");
            Err(Status::new(Code::DeadlineExceeded, text))
        }
        Err(Error::NotRun(why)) => Err(Status::new(Code::Unknown, format!("failed to exec in container: {why}"))),
    }
}

/// Ends the work with whoever waits for it.
struct Held<T>(JoinHandle<T>);

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn wanted(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Result<Wanted, Status> {
    if tty && stderr {
        return Err(Status::invalid("tty and stderr cannot both be true"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid("one of stdin, stdout, or stderr must be set"));
    }
    Ok(Wanted { stdin, stdout, stderr, tty })
}

/// A command whose streams a client fetches.
pub(super) fn exec(node: &dyn Node, pods: &[Pod], request: ExecRequest) -> Result<Order, Status> {
    let wanted = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    let (target, _) = running(node, pods, &request.container_id)?;
    let argv = checked(request.cmd)?;
    let options = Options { argv, env_add: Vec::new(), tty: wanted.tty, stdin: wanted.stdin, size: None, own: false };
    Ok(Order::Exec { target, options, wanted })
}

/// A container's own streams.
pub(super) fn attach(node: &dyn Node, pods: &[Pod], request: AttachRequest) -> Result<Order, Status> {
    let wanted = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    let (target, terminal) = running(node, pods, &request.container_id)?;
    // As kubelet: whether there is a terminal was decided when the container was made.
    if wanted.tty && !terminal {
        return Err(Status::invalid(format!("container {:?} has no terminal", request.container_id)));
    }
    Ok(Order::Attach { target, wanted })
}

/// Ports of a pod; which, each stream says itself.
pub(super) fn ports(node: &dyn Node, pods: &[Pod], request: PortForwardRequest) -> Result<Order, Status> {
    let pod = look::sandbox(pods, &request.pod_sandbox_id)?;
    if !pod.is_ready() {
        let text = format!("pod sandbox {:?} is not ready", request.pod_sandbox_id);
        return Err(Status::new(Code::FailedPrecondition, text));
    }
    let Key { namespace, name } = pod.key();
    let network = node.network(&namespace, &name).map_err(|why| Status::new(Code::FailedPrecondition, why))?;
    Ok(Order::Ports(Place { network, pod: name }))
}
