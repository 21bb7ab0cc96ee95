//! Exec into a running container: the helper's side, a single-threaded process for one command.

use super::console::Console;
use super::exec::{Options, Order, Status, TERMINAL_READY, Target};
use super::program::{Joined, Program, Refusal, with_filter_rights};
use super::start::Report;
use super::userns::Users;
use super::{socket, trace};
use crate::causes::distinct;
use crate::sys::process::{self, Exit};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{Process, Spec, User};
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest order: what a socket takes by default.
const MAX_ORDER: usize = 208 * 1024;

/// How long it may take, in seconds, until a command runs: in a container that is frozen, or that has no memory left,
/// libcontainer waits for ever, and nobody would end that.
const START: u32 = 15;

/// The role `coracle exec-helper`. Standard input is the control socket. Returns the exit code.
pub fn helper_main(_args: impl Iterator<Item = OsString>) -> i32 {
    process::set_name("coracle-exec");
    process::ignore_signals(&[libc::SIGPIPE, libc::SIGHUP, libc::SIGINT]);
    let _ = rustix::process::setsid();
    process::drop_groups();
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    match serve() {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("error: exec helper: {e}");
            1
        }
    }
}

fn serve() -> io::Result<()> {
    let control = take_stdin()?;
    let (order, mut fds) = socket::receive(&control, MAX_ORDER)?;
    let order: Order = serde_json::from_slice(&order)?;
    if fds.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an order without descriptors"));
    }
    let mut status = File::from(fds.remove(0));
    process::end_after(START);
    let begun = begin(&order, fds, &control);
    process::end_after(0);
    let outcome = match begun {
        Ok(pid) => wait(pid, &control)?,
        Err(refusal) => refusal,
    };
    let mut line = serde_json::to_vec(&outcome)?;
    line.push(b'\n');
    status.write_all(&line)
}

fn refused(message: String) -> Status {
    Status { exit_code: None, error: Some(format!("exec failed: {message}")) }
}

/// Joins the container and starts the command. Returns its PID, a child of this process.
fn begin(order: &Order, mut fds: Vec<OwnedFd>, control: &OwnedFd) -> Result<i32, Status> {
    let cannot = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| refused(format!("cannot {what}: {e}"))
    };
    let Order { target, options } = order;
    let path = target.bundle.join("config.json");
    let spec = Spec::load(&path).map_err(|e| refused(format!("cannot read {}: {}", path.display(), distinct(&e))))?;
    let (process, program) = plan(&spec, options).map_err(refused)?;
    let uid = process.user().uid();
    let owner = program.joined.as_ref().map_or(uid, Joined::owner);
    let view = StateView::of(target).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => refused("the container is not running".to_owned()),
        _ => refused(format!("cannot read the container's state: {e}")),
    })?;
    let process_file = in_memory(&process).map_err(cannot("store the process"))?;
    let (details, details_end) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| cannot("make a pipe")(e.into()))?;
    trace::send_errors_to(details_end);

    let mut builder = ContainerBuilder::new(target.id.clone(), SyscallType::default())
        .with_root_path(&view.root)
        .and_then(ContainerBuilder::validate_id)
        .map_err(|e| refused(distinct(&e)))?
        .with_executor(program);
    let mut console = None;
    if options.tty {
        let socket = Console::listen(&view.root, "console.sock").map_err(cannot("make the console socket"))?;
        builder = builder.with_console_socket(Some(socket.path()));
        console = Some(socket);
    } else {
        let stdin = match fds.len() {
            0..=2 => rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| cannot("open /dev/null")(e.into()))?,
            _ => fds.remove(2),
        };
        let (Some(stderr), Some(stdout)) = (fds.pop(), fds.pop()) else {
            return Err(refused("an order without output".to_owned()));
        };
        for stream in [&stdin, &stdout, &stderr] {
            super::start::give(stream, owner);
        }
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let pid = builder
        .as_tenant()
        .with_detach(options.tty)
        .with_process(Some(format!("/proc/self/fd/{}", process_file.as_raw_fd())))
        .build()
        .map_err(|e| explain(&distinct(&e), details))?;
    if let Some(console) = console {
        let sent = console.master().and_then(|master| socket::send(control, TERMINAL_READY, &[master.as_fd()]));
        if let Err(e) = sent {
            let _ = process::kill(pid.as_raw(), libc::SIGKILL);
            return Err(refused(format!("cannot pass on the terminal: {e}")));
        }
    }
    Ok(pid.as_raw())
}

/// The process to run: the container's own, with another command.
fn plan(spec: &Spec, options: &Options) -> Result<(Process, Program), String> {
    let linux = spec.linux().as_ref();
    let mut process = spec.process().clone().ok_or("the container has no process")?;
    let name_of_program = options.own.then(|| "coracle".to_owned());
    process.set_args(Some(name_of_program.into_iter().chain(options.argv.iter().cloned()).collect()));
    let mut env = process.env().clone().unwrap_or_default();
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in &options.env_add {
        env.retain(|present| name(present) != name(entry));
        env.push(entry.clone());
    }
    let defaults = [
        ("TERM", "TERM=xterm", options.tty),
        ("PATH", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", true),
        ("HOME", "HOME=/", true),
    ];
    for (variable, entry, wanted) in defaults {
        if wanted && !env.iter().any(|present| name(present) == variable) {
            env.push(entry.to_owned());
        }
    }
    process.set_env(Some(env));
    process.set_terminal(Some(options.tty));
    let mut program = Program { die_with_parent: true, ..Program::default() };
    if options.own {
        let own = File::open("/proc/self/exe").map_err(|e| format!("cannot open this program: {e}"))?;
        program.own = Some(Arc::new(own));
    }
    program.seccomp = linux.and_then(|linux| linux.seccomp().clone());
    if program.seccomp.is_some()
        && process.no_new_privileges() != Some(true)
        && let Some(capabilities) = process.capabilities().clone()
    {
        process.set_capabilities(Some(with_filter_rights(&capabilities)));
        program.capabilities = Some(capabilities);
    }
    if let Some(users) = Users::of(spec).map_err(|e| distinct(&e))? {
        let namespace = File::open(&users.path).map_err(|e| format!("cannot open {}: {e}", users.path.display()))?;
        let user = process.user().clone();
        program.joined = Some(Joined { namespace: Arc::new(namespace), users, user });
        // Until it has joined that namespace, it is the machine's root, for libcontainer could make it another user of the
        // machine only.
        process.set_user(User::default());
        program.capabilities = program.capabilities.take().or_else(|| process.capabilities().clone());
        process.set_capabilities(None);
    }
    Ok((process, program))
}

fn explain(text: &str, details: OwnedFd) -> Status {
    if let Some(refusal) = Refusal::find(text) {
        let message = format!("exec failed: unable to start container process: {}", refusal.message);
        return Status { exit_code: Some(refusal.code), error: Some(message) };
    }
    // The processes that hold the other end may still run: what is there now is enough.
    let mut log = vec![0; 4096];
    let _ = rustix::fs::fcntl_setfl(&details, OFlags::NONBLOCK);
    let length = File::from(details).read(&mut log).unwrap_or(0);
    let first = log[..length].split(|&b| b == b'\n').next().unwrap_or_default();
    match serde_json::from_slice(first) {
        Ok(Report::Detail { text: detail }) if !text.contains(&detail) => refused(format!("{text} ({detail})")),
        _ => refused(text.to_owned()),
    }
}

/// Until the command ends, or nobody is interested any more: then it is killed.
fn wait(pid: i32, control: &OwnedFd) -> io::Result<Status> {
    let children = process::child_events()?;
    let mut wanted = true;
    loop {
        while let Some(ended) = process::ended_child()? {
            let exit = process::reap(ended)?;
            if ended == pid {
                let code = match exit {
                    Exit::Code(code) => code,
                    Exit::Signal(signal) => 128 + signal,
                };
                return Ok(Status { exit_code: Some(code), error: None });
            }
        }
        let mut fds = vec![PollFd::new(&children, PollFlags::IN)];
        if wanted {
            // Nothing comes over it any more but its end.
            fds.push(PollFd::new(control, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if wanted && fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            wanted = false;
            let _ = process::kill_group(pid, libc::SIGKILL);
            let _ = process::kill(pid, libc::SIGKILL);
        }
        drop(fds);
        let mut count = [0; 8];
        if poll(&mut [PollFd::new(&children, PollFlags::IN)], Some(&ZERO)).is_ok_and(|ready| ready > 0) {
            let _ = rustix::io::read(&children, &mut count);
        }
    }
}

const ZERO: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

fn in_memory(process: &Process) -> io::Result<OwnedFd> {
    let fd = memfd_create(c"process", MemFdCreateFlag::MFD_CLOEXEC)?;
    File::from(fd.try_clone()?).write_all(&serde_json::to_vec(process)?)?;
    Ok(fd)
}

/// The control socket that came as standard input.
fn take_stdin() -> io::Result<OwnedFd> {
    let control = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    nix::unistd::dup2(null.as_raw_fd(), 0)?;
    Ok(control)
}

/// A copy of the container's state for this exec alone: libcontainer leaves sockets beside the one that it reads.
struct StateView {
    root: PathBuf,
}

impl StateView {
    fn of(target: &Target) -> io::Result<StateView> {
        if target.id.is_empty() || target.id.contains('/') || target.id.starts_with('.') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{:?} is not a container ID", target.id)));
        }
        let state = fs::read(target.state_root.join(&target.id).join("state.json"))?;
        sweep(&target.state_root);
        let root = target.state_root.join(format!("{VIEW}{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let view = StateView { root };
        let dir: &Path = &view.root.join(&target.id);
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::write(dir.join("state.json"), state)?;
        Ok(view)
    }
}

/// What the folder of a [`StateView`] begins with; the PID of its process follows.
const VIEW: &str = ".exec-";

/// Removes the copies of processes that were killed.
fn sweep(state_root: &Path) {
    for entry in fs::read_dir(state_root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(VIEW)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another one may be at it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for StateView {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}
