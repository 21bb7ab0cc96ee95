//! The shim's process: one thread that waits for requests, output, exits and deadlines.

use super::container::{Attached, Container, Phase, Site};
use super::hotplug::{self, Change, Seen};
use super::pause::Pause;
use super::protocol::{MAX_PACKET, Reply, Request, Run};
use super::{IDENTITY, Identity, SOCKET, STATE, cgroup, record, socket};
use crate::sys::process::{self, Exit};
use crate::sys::{clock, mount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long after the last change the shim tidies itself up: later than the start of a pod's next container.
const TIDY_AFTER: Duration = Duration::from_millis(200);
/// When a record that could not be made durable is tried again.
const SYNC_AGAIN: Duration = Duration::from_secs(10);
/// How long a shutdown waits for killed containers.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The role `coracle shim`, with the arguments after it. Standard input is the listening socket. Returns the exit code.
pub fn main(args: impl Iterator<Item = OsString>) -> i32 {
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("error: coracle shim: {text}");
            return 2;
        }
    };
    let uid = options.uid.clone();
    match Shim::new(options).and_then(|mut shim| shim.serve()) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("error: shim of pod {uid}: {e}");
            1
        }
    }
}

struct Options {
    run_dir: PathBuf,
    uid: String,
    cgroup: Option<String>,
    /// Cgroup of the process that keeps a PID namespace for all containers.
    pause: Option<String>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
        let (mut run_dir, mut uid, mut cgroup, mut pause) = (None, None, None, None);
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{} needs a value", name.to_string_lossy()))?;
            let text = || value.clone().into_string().map_err(|_| format!("{value:?} is not UTF-8"));
            match name.to_str() {
                Some("--run-dir") => run_dir = Some(PathBuf::from(&value)),
                Some("--uid") => uid = Some(text()?),
                Some("--cgroup") => cgroup = Some(text()?),
                Some("--pause") => pause = Some(text()?),
                _ => return Err(format!("unknown option {}", name.to_string_lossy())),
            }
        }
        let run_dir = run_dir.filter(|dir| dir.is_absolute()).ok_or("--run-dir needs an absolute path")?;
        Ok(Options { run_dir, uid: uid.ok_or("--uid is missing")?, cgroup, pause })
    }
}

struct Connection {
    fd: OwnedFd,
    subscribed: bool,
    /// ID of the container whose start this connection waits for.
    waits_for: Option<String>,
    attached: Option<Session>,
}

/// An attached client.
struct Session {
    number: u64,
    /// ID of the container.
    id: String,
    with_input: bool,
}

struct Shim {
    options: Options,
    site: Site,
    listener: OwnedFd,
    children: OwnedFd,
    connections: Vec<Connection>,
    containers: Vec<Container>,
    /// The PID namespace of all containers, if they share one.
    pause: Option<Pause>,
    /// Ended children that no container knew yet: an init can end before its start was reported.
    unclaimed: Vec<(i32, Exit)>,
    /// Devices of containers that are being changed.
    changes: Vec<Change>,
    tidy_at: Option<Instant>,
    in_cgroup: bool,
    /// The copies of other pods' mounts are gone.
    alone: bool,
    /// Until when a shutdown waits, and who asked for it.
    shutdown: Option<Instant>,
    shutdown_asked_by: Vec<OwnedFd>,
    /// Number of the next attached client.
    next_session: u64,
}

/// What a descriptor in the poll list belongs to.
enum Source {
    Listener,
    Children,
    Connection(usize),
    Report(usize),
    Output(usize, usize),
    Tap(usize, usize),
}

impl Shim {
    fn new(options: Options) -> io::Result<Shim> {
        process::set_name("coracle-shim");
        process::return_freed_memory();
        let listener = take_stdin()?;
        // Fails only for a group leader: one started by hand in a shell.
        let _ = rustix::process::setsid();
        process::ignore_signals(&[libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE]);
        std::env::set_current_dir("/")?;
        rustix::process::umask(Mode::WGRP | Mode::WOTH);
        let oom_score_adj = process::oom_score_adj()?;
        // Without CAP_SYS_RESOURCE the shim is as likely a victim as the agent that started it.
        let _ = process::set_oom_score_adj(-998);
        process::become_subreaper()?;
        let machine = mount::Namespace::current()?;
        mount::private_namespace()?;
        let children = process::child_events()?;
        let boot_id = process::boot_id()?;
        let pause = match &options.pause {
            Some(cgroup) => Some(Pause::start(&options.run_dir, cgroup)?),
            None => None,
        };
        let state = options.run_dir.join(STATE);
        // Not its parents: without the run folder the pod was given up before this process came to life.
        match DirBuilder::new().mode(0o700).create(&state) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let pid = std::process::id() as i32;
        let identity = Identity {
            pid,
            start: process::start_ticks(pid)?,
            boot_id: boot_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cgroup: options.cgroup.clone(),
        };
        record::replace(&options.run_dir.join(IDENTITY), &serde_json::to_vec(&identity)?, false)?;
        Ok(Shim {
            options,
            site: Site { state, boot_id, oom_score_adj, machine },
            listener,
            children,
            connections: Vec::new(),
            containers: Vec::new(),
            pause,
            unclaimed: Vec::new(),
            changes: Vec::new(),
            tidy_at: Some(Instant::now() + TIDY_AFTER),
            in_cgroup: false,
            alone: false,
            shutdown: None,
            shutdown_asked_by: Vec::new(),
            next_session: 0,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            for source in self.wait()? {
                self.handle(source);
            }
            if self.options.pause.is_some() && self.pause.is_none() {
                // The agent finds no shim any more, and makes the sandbox anew.
                return Err(io::Error::other("the pod's PID namespace has ended, and all containers with it"));
            }
            self.advance();
            if let Some(until) = self.shutdown {
                let over = self.containers.iter().all(|container| matches!(container.phase, Phase::Ended));
                if over || Instant::now() >= until {
                    return self.leave();
                }
            }
        }
    }

    /// Waits for events, at most until the next deadline; returns what is ready, in an order in which the indices of
    /// earlier ones do not change those of later ones.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Listener, Source::Children];
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.listener.as_fd(), self.children.as_fd()];
        for (i, connection) in self.connections.iter().enumerate() {
            sources.push(Source::Connection(i));
            fds.push(connection.fd.as_fd());
        }
        for (i, container) in self.containers.iter().enumerate() {
            if let Phase::Starting { report, .. } = &container.phase {
                sources.push(Source::Report(i));
                fds.push(report.as_fd());
            }
            for (j, output) in container.outputs.iter().enumerate().filter(|(_, output)| container.is_read(output)) {
                sources.push(Source::Output(i, j));
                fds.push(output.fd.as_fd());
            }
            for (j, tap) in container.taps.iter().enumerate().filter(|(_, tap)| tap.is_behind()) {
                sources.push(Source::Tap(i, j));
                fds.push(tap.fd.as_fd());
            }
        }
        let kinds = sources.iter().map(|source| match source {
            Source::Tap(..) => PollFlags::OUT,
            _ => PollFlags::IN,
        });
        let mut fds: Vec<PollFd<'_>> =
            fds.into_iter().zip(kinds).map(|(fd, kind)| PollFd::from_borrowed_fd(fd, kind)).collect();
        let wakes = self.containers.iter().filter_map(Container::wakes_at);
        let wakes = wakes.chain(self.tidy_at).chain(self.shutdown).min();
        let timeout = wakes.map(|at| {
            // A millisecond more than due, so that it is due on waking.
            let wait = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(Vec::new()),
            other => other?,
        };
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        // Backwards: handling one may remove it from its list.
        Ok(sources.into_iter().zip(ready).rev().filter_map(|(source, ready)| ready.then_some(source)).collect())
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Listener => {
                if let Ok(fd) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                    self.connections.push(Connection { fd, subscribed: false, waits_for: None, attached: None });
                    // The request is usually there already.
                    self.handle(Source::Connection(self.connections.len() - 1));
                }
            }
            Source::Children => {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.children, &mut count);
                self.reap();
            }
            Source::Connection(index) => self.receive(index),
            Source::Report(index) => {
                if self.containers[index].read_report() {
                    self.start_over(index);
                }
            }
            Source::Output(index, output) => {
                self.containers[index].pump(output);
            }
            Source::Tap(index, tap) => self.containers[index].resume(tap),
        }
    }

    /// Everything that is due, or has become possible.
    fn advance(&mut self) {
        let now = Instant::now();
        let mut changed = false;
        for container in &mut self.containers {
            if container.kill_at.is_some_and(|at| at <= now) {
                container.kill();
            }
            container.cut_off(now);
            changed |= container.finish(now);
        }
        if changed {
            self.changed();
        }
        if self.tidy_at.is_some_and(|at| at <= now) {
            self.tidy();
        }
    }

    /// After some quiet: what nobody should have to wait for.
    fn tidy(&mut self) {
        self.tidy_at = None;
        let mut caught_up = false;
        for container in &mut self.containers {
            let late = container.is_unsynced() && matches!(container.phase, Phase::Ended);
            container.sync();
            caught_up |= late && !container.is_unsynced();
        }
        if caught_up {
            // An end that could not be written at its time: now there is something to read.
            self.changed();
        }
        if self.containers.iter().any(Container::is_unsynced) {
            self.tidy_at = Some(Instant::now() + SYNC_AGAIN);
        }
        if !self.alone && !self.containers.is_empty() {
            self.alone = true;
            self.leave_others_alone();
        }
        // Not before a container runs: each write to cgroup.procs may wait for an RCU grace period.
        if !self.in_cgroup
            && !self.containers.is_empty()
            && let Some(path) = &self.options.cgroup
        {
            self.in_cgroup = true;
            if let Err(e) = cgroup::join(path) {
                eprintln!("warning: shim of pod {}: cannot move to cgroup {path}: {e}", self.options.uid);
            }
        }
        let _ = process::drop_file_pages();
    }

    /// This process' mount namespace began as a copy of the machine's: without this the namespaces and memory volumes of
    /// other pods would live on here after those pods are gone.
    fn leave_others_alone(&self) {
        let run_dir = &self.options.run_dir;
        let volumes = self.containers.first().and_then(|container| container.pod_folder());
        for own in [Some(run_dir.as_path()), volumes].into_iter().flatten() {
            // Only in a folder of pods: anywhere else there is more below than pods.
            let Some(all) = own.parent().filter(|_| own.ends_with(&self.options.uid)) else { continue };
            if let Err(e) = mount::detach_others(all, own) {
                eprintln!("warning: shim of pod {}: cannot detach other pods' mounts: {e}", self.options.uid);
            }
        }
    }

    /// Takes the exit of every child that has ended.
    fn reap(&mut self) {
        while let Ok(Some(pid)) = process::ended_child() {
            let owner = self.containers.iter().position(|container| match container.phase {
                Phase::Running => container.instance.pid == pid,
                _ => false,
            });
            if let Some(index) = owner {
                self.containers[index].before_reap();
            }
            let Ok(exit) = process::reap(pid) else { continue };
            if let Some(index) = self.changes.iter().position(|change| change.child == pid) {
                let change = self.changes.swap_remove(index);
                self.devices_changed(&change, exit);
                continue;
            }
            if self.pause.as_ref().is_some_and(|pause| pause.pid() == pid) {
                self.pause = None;
                continue;
            }
            if let Some(index) = owner {
                self.containers[index].init_ended(exit);
                continue;
            }
            let starter = self
                .containers
                .iter()
                .position(|container| matches!(container.phase, Phase::Starting { child, .. } if child == pid));
            if let Some(index) = starter {
                if self.containers[index].child_ended(exit) {
                    self.start_over(index);
                }
            } else if self.containers.iter().any(|container| matches!(container.phase, Phase::Starting { .. })) {
                self.unclaimed.push((pid, exit));
            }
        }
    }

    /// A start has succeeded or failed: whoever waits for it is told.
    fn start_over(&mut self, index: usize) {
        let container = &mut self.containers[index];
        let instance = container.instance.clone();
        if matches!(container.phase, Phase::Running) {
            let early = self.unclaimed.iter().position(|(pid, _)| *pid == instance.pid);
            if let Some(early) = early {
                let (_, exit) = self.unclaimed.swap_remove(early);
                container.before_reap();
                container.init_ended(exit);
            } else {
                container.deliver_stop();
            }
        }
        if !self.containers.iter().any(|container| matches!(container.phase, Phase::Starting { .. })) {
            self.unclaimed = Vec::new();
        }
        let reply = match &instance.terminated {
            Some(end) if instance.started.is_none() => Reply::Error { message: end.message.clone() },
            _ => Reply::Started { instance: instance.clone() },
        };
        for connection in &mut self.connections {
            if connection.waits_for.as_deref() == Some(instance.id.as_str()) {
                connection.waits_for = None;
                answer(&connection.fd, &reply);
            }
        }
        self.changed();
    }

    /// Tells subscribers that a record changed.
    fn changed(&mut self) {
        self.tidy_at = Some(Instant::now() + TIDY_AFTER);
        for connection in self.connections.iter().filter(|connection| connection.subscribed) {
            // A full queue already holds the news; one that is closed is noticed by poll.
            let _ = socket::try_send(&connection.fd, b"{}", &[]);
        }
    }

    fn receive(&mut self, index: usize) {
        let packet = match socket::receive(&self.connections[index].fd, MAX_PACKET) {
            Ok((packet, _)) if !packet.is_empty() => packet,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                answer(&self.connections[index].fd, &Reply::Error { message: e.to_string() });
                return;
            }
            Ok(_) | Err(_) => {
                self.disconnected(index);
                return;
            }
        };
        let reply = match serde_json::from_slice(&packet) {
            Ok(request) => self.perform(request, index),
            Err(e) => Some(Reply::Error { message: format!("not a request: {e}") }),
        };
        if let Some(reply) = reply {
            answer(&self.connections[index].fd, &reply);
        }
    }

    /// Does what is asked. `None`: the answer comes later.
    fn perform(&mut self, request: Request, connection: usize) -> Option<Reply> {
        let result = match request {
            Request::Run(run) => return self.run(*run, connection),
            Request::Stop { id, signal, grace_ms } => self.container(&id).and_then(|container| {
                if !(1..=64).contains(&signal) {
                    return Err(format!("{signal} is not a signal"));
                }
                container.stop(signal, Duration::from_millis(grace_ms.min(u64::from(u32::MAX))), Instant::now());
                Ok(())
            }),
            Request::Delete { id } => self.delete(&id),
            Request::List => {
                let instances = self.containers.iter().map(|container| container.instance.clone()).collect();
                return Some(Reply::List { instances });
            }
            Request::ReopenLog { id } => {
                self.container(&id).and_then(|c| c.reopen_log().map_err(|e| format!("cannot open the log: {e}")))
            }
            Request::Devices { id, found } => {
                return self
                    .change_devices(&id, found, connection)
                    .unwrap_or_else(|message| Some(Reply::Error { message }));
            }
            Request::Subscribe => {
                self.connections[connection].subscribed = true;
                Ok(())
            }
            Request::Attach { id, stdin } => {
                return self.attach(id, stdin, connection).err().map(|message| Reply::Error { message });
            }
            Request::EndInput => {
                self.end_input(connection);
                return None;
            }
            Request::Shutdown => {
                self.shut_down(connection);
                return None;
            }
        };
        Some(match result {
            Ok(()) => Reply::Done,
            Err(message) => Reply::Error { message },
        })
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, String> {
        self.containers.iter_mut().find(|c| c.instance.id == id).ok_or_else(|| format!("no container {id}"))
    }

    fn run(&mut self, run: Run, connection: usize) -> Option<Reply> {
        if self.shutdown.is_some() {
            return Some(Reply::Error { message: "the shim is shutting down".to_owned() });
        }
        let id = run.instance.id.clone();
        if let Some(known) = self.containers.iter().find(|container| container.instance.id == id) {
            if matches!(known.phase, Phase::Starting { .. }) {
                self.connections[connection].waits_for = Some(id);
                return None;
            }
            return Some(Reply::Started { instance: known.instance.clone() });
        }
        let (mut instance, record) = (run.instance.clone(), run.record.clone());
        match Container::launch(run, &self.site) {
            Ok(container) => {
                self.containers.push(container);
                self.connections[connection].waits_for = Some(id);
                None
            }
            Err(e) => {
                let message = e.to_string();
                instance.terminated = Some(crate::pod::Termination {
                    finished: clock::wall(),
                    exit_code: 128,
                    signal: None,
                    reason: "StartError".to_owned(),
                    message: message.clone(),
                });
                if let Err(e) = record::write(&record, &instance, true) {
                    eprintln!("warning: shim of pod {}: cannot write {}: {e}", self.options.uid, record.display());
                }
                Some(Reply::Error { message })
            }
        }
    }

    /// Begins to change a container's devices; `None` when that has to be waited for.
    fn change_devices(&mut self, id: &str, found: Seen, connection: usize) -> Result<Option<Reply>, String> {
        let asked_by = self.connections[connection].fd.try_clone().map_err(|e| e.to_string())?;
        if self.changes.iter().any(|change| change.id == id) {
            return Err(format!("the devices of container {id} are being changed"));
        }
        let Some(container) = self.containers.iter_mut().find(|c| c.instance.id == id) else {
            return Err(format!("no container {id}"));
        };
        let nothing = Reply::Devices { gone: Vec::new(), back: Vec::new() };
        match container.phase {
            Phase::Running => {}
            Phase::Starting { .. } => return Err(format!("container {id} has not started")),
            Phase::Draining { .. } | Phase::Ended => return Ok(Some(nothing)),
        }
        let Some(wanted) = container.devices.wanted(found)? else { return Ok(Some(nothing)) };
        let (pid, cgroup) = (container.instance.pid, container.cgroup());
        let begun = hotplug::begin(&container.devices, &wanted, pid, cgroup, &self.site.machine);
        let (child, report) = begun.map_err(|e| format!("cannot change the devices of container {id}: {e}"))?;
        container.devices.expect(&wanted);
        self.changes.push(Change { child, report, asked_by, id: id.to_owned(), wanted });
        Ok(None)
    }

    fn devices_changed(&mut self, change: &Change, exit: Exit) {
        let reply = match change.outcome(exit) {
            Err(message) => Reply::Error { message },
            Ok(()) => match self.containers.iter_mut().find(|c| c.instance.id == change.id) {
                Some(container) => container.devices.settle(&change.wanted),
                None => Reply::Devices { gone: Vec::new(), back: Vec::new() },
            },
        };
        answer(&change.asked_by, &reply);
    }

    /// Attaches whoever is connected there; `Ok`: it is answered.
    fn attach(&mut self, id: String, stdin: bool, connection: usize) -> Result<(), String> {
        let number = self.next_session;
        self.next_session += 1;
        let container = self.container(&id)?;
        match container.phase {
            Phase::Running => {}
            Phase::Starting { .. } => return Err(format!("container {id} has not started")),
            Phase::Draining { .. } | Phase::Ended => return Err(format!("container {id} has ended")),
        }
        let given = container.attach(number, stdin).map_err(|e| format!("cannot attach: {e}"))?;
        let Attached { terminal, stdin: takes, stdin_once, .. } = given;
        let fds: Vec<BorrowedFd<'_>> = given.outputs.iter().chain(&given.input).map(AsFd::as_fd).collect();
        let reply = serde_json::to_vec(&Reply::Attached { terminal, stdin: takes, stdin_once });
        let connection = &mut self.connections[connection];
        connection.attached = Some(Session { number, id, with_input: stdin });
        let sent = reply.map_err(io::Error::from).and_then(|packet| socket::try_send(&connection.fd, &packet, &fds));
        sent.map_err(|e| format!("cannot answer: {e}"))
    }

    fn end_input(&mut self, connection: usize) {
        if let Some(Session { id, with_input: true, .. }) = &self.connections[connection].attached
            && let Some(container) = self.containers.iter_mut().find(|container| container.instance.id == *id)
        {
            container.end_input();
        }
    }

    /// A connection is closed: who was attached over it is not any more.
    fn disconnected(&mut self, index: usize) {
        self.end_input(index);
        if let Some(Session { number, .. }) = self.connections.remove(index).attached {
            for container in &mut self.containers {
                container.taps.retain(|tap| tap.session != number);
            }
        }
    }

    fn delete(&mut self, id: &str) -> Result<(), String> {
        let Some(index) = self.containers.iter().position(|container| container.instance.id == id) else {
            return Ok(());
        };
        if !matches!(self.containers[index].phase, Phase::Ended) {
            return Err(format!("container {id} has not ended"));
        }
        self.containers[index].delete().map_err(|e| format!("cannot delete container {id}: {e}"))?;
        self.containers[index].sync();
        self.containers.remove(index);
        self.tidy_at = Some(Instant::now() + TIDY_AFTER);
        Ok(())
    }

    fn shut_down(&mut self, connection: usize) {
        if let Ok(fd) = self.connections[connection].fd.try_clone() {
            self.shutdown_asked_by.push(fd);
        }
        if self.shutdown.is_none() {
            self.shutdown = Some(Instant::now() + SHUTDOWN);
            for container in &mut self.containers {
                if !matches!(container.phase, Phase::Ended) {
                    container.kill();
                }
            }
        }
    }

    /// The end: nothing of the containers stays but their records.
    fn leave(&mut self) -> io::Result<()> {
        let mut left = Vec::new();
        for container in &mut self.containers {
            container.sync();
            if let Err(e) = container.delete() {
                left.push(e.to_string());
            }
        }
        if let Some(pause) = self.pause.take() {
            pause.end();
        }
        for name in [SOCKET, IDENTITY] {
            let _ = fs::remove_file(self.options.run_dir.join(name));
        }
        let _ = fs::remove_dir(&self.site.state);
        let reply = match left.is_empty() {
            true => Reply::Done,
            false => Reply::Error { message: left.join("; ") },
        };
        for connection in &self.shutdown_asked_by {
            answer(connection, &reply);
        }
        Ok(())
    }
}

/// A client that does not take its answer is no reason to wait; it sees the records on disk.
fn answer(connection: &OwnedFd, reply: &Reply) {
    let packet = serde_json::to_vec(reply).unwrap_or_default();
    let packet = if packet.len() > MAX_PACKET {
        br#"{"type":"error","message":"the answer is too long"}"#.to_vec()
    } else {
        packet
    };
    let _ = socket::try_send(connection, &packet, &[]);
}

/// The listening socket that came as standard input, out of the way of /dev/null.
fn take_stdin() -> io::Result<OwnedFd> {
    let listener = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    if !rustix::net::sockopt::socket_acceptconn(&listener).unwrap_or(false) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "standard input is not a listening socket"));
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    nix::unistd::dup2(null.as_raw_fd(), 0)?;
    Ok(listener)
}
