//! One container of a shim: from the request to run it to the record of how it ended.

use super::console::Console;
use super::hotplug::Held;
use super::log::{Encoder, Log, Stream};
use super::program::Refusal;
use super::protocol::Run;
use super::start::{self, Order, Report, Stdio};
use super::tap::Tap;
use super::{cgroup, record};
use crate::pod::clock::Timed;
use crate::pod::{Instance, Termination};
use crate::sys::process::{self, Exit};
use crate::sys::{clock, mount};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How much output is read at once: what a pipe holds.
const READ: usize = 64 * 1024;
/// How long an ended container's output is waited for when some other process holds its pipes open.
const DRAIN: Duration = Duration::from_millis(500);
/// How often the processes that an ended init left are killed, a millisecond apart.
const KILLS: u32 = 20;
/// How long [`Container::delete`] waits for killed processes to be gone.
const CLEAR: Duration = Duration::from_secs(2);

/// One of a container's outputs.
pub(super) struct Output {
    pub(super) fd: OwnedFd,
    pub(super) stream: Stream,
    encoder: Encoder,
}

pub(super) enum Phase {
    /// The throwaway child `child` creates it, and tells how that goes through `report`.
    Starting {
        child: i32,
        report: OwnedFd,
        text: Vec<u8>,
        details: Vec<String>,
    },
    Running,
    /// Its init has ended, its output perhaps not.
    Draining {
        until: Instant,
    },
    Ended,
}

pub(super) struct Container {
    pub(super) instance: Instance,
    pub(super) phase: Phase,
    pub(super) outputs: Vec<Output>,
    /// Attached clients' copies of them.
    pub(super) taps: Vec<Tap>,
    /// When SIGKILL is due.
    pub(super) kill_at: Option<Instant>,
    /// The record on disk has not reached the disk itself.
    unsynced: bool,
    stop_signal: Option<i32>,
    log: Log,
    record: PathBuf,
    state: PathBuf,
    target: PathBuf,
    cgroup: Option<String>,
    console: Option<Console>,
    /// Its devices that may go and come back.
    pub(super) devices: Held,
    /// Kept open so that a container with `stdin: true` waits for input instead of seeing its end.
    stdin: Option<OwnedFd>,
    stdio: Wanted,
}

/// What the manifest wants of its streams.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdin_once: bool,
    tty: bool,
}

/// What a client gets that attaches.
pub(super) struct Attached {
    /// One with a terminal, else two.
    pub(super) outputs: Vec<OwnedFd>,
    /// The terminal, or the input when it was asked for.
    pub(super) input: Option<OwnedFd>,
    pub(super) terminal: bool,
    pub(super) stdin: bool,
    pub(super) stdin_once: bool,
}

/// What is the same for all containers of a shim.
pub(super) struct Site {
    pub(super) state: PathBuf,
    pub(super) boot_id: String,
    pub(super) oom_score_adj: i32,
    /// The machine's mounts.
    pub(super) machine: mount::Namespace,
}

impl Container {
    /// Begins to create a container; the rest is in its [`Phase`].
    ///
    /// # Errors
    /// When its log, pipes or the child cannot be made; the container then does not exist.
    pub(super) fn launch(run: Run, site: &Site) -> io::Result<Container> {
        let name = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("cannot {what}: {e}"));
        let log = Log::open(run.log.clone(), run.log_max_bytes, run.log_max_files)
            .map_err(|e| name(&format!("open the log {}", run.log.display()), e))?;
        let (report, report_end) = pipe_with(PipeFlags::CLOEXEC)?;
        nonblocking(&report)?;
        let mut outputs = Vec::new();
        let mut kept_stdin = None;
        let mut console = None;
        let stdio = if run.tty {
            fs::create_dir_all(&site.state)?;
            let socket = Console::listen(&site.state, &format!("console-{}", run.instance.id))
                .map_err(|e| name("make the console socket", e))?;
            let path = socket.path().to_owned();
            console = Some(socket);
            Stdio::Terminal { console: path }
        } else {
            let stdin = if run.stdin {
                let (end, kept) = pipe_with(PipeFlags::CLOEXEC)?;
                kept_stdin = Some(kept);
                end
            } else {
                rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?
            };
            let mut pipe = |stream| -> io::Result<OwnedFd> {
                let (fd, end) = pipe_with(PipeFlags::CLOEXEC)?;
                nonblocking(&fd)?;
                outputs.push(Output { fd, stream, encoder: Encoder::new(stream) });
                Ok(end)
            };
            Stdio::Streams { stdin, stdout: pipe(Stream::Stdout)?, stderr: pipe(Stream::Stderr)? }
        };
        let order = Order {
            run: &run,
            state: &site.state,
            boot_id: &site.boot_id,
            oom_score_adj: site.oom_score_adj,
            stdio,
            report: report_end,
            machine: &site.machine,
        };
        let child = process::fork(|| start::run(order)).map_err(|e| name("fork", e))?;
        Ok(Container {
            phase: Phase::Starting { child, report, text: Vec::new(), details: Vec::new() },
            state: site.state.join(&run.instance.id),
            instance: run.instance,
            outputs,
            taps: Vec::new(),
            kill_at: None,
            unsynced: false,
            stop_signal: None,
            log,
            record: run.record,
            target: run.rootfs.target,
            cgroup: None,
            console,
            devices: Held::new(run.devices),
            stdin: kept_stdin,
            stdio: Wanted { stdin: run.stdin, stdin_once: run.stdin_once, tty: run.tty },
        })
    }

    /// The next moment at which something is due without an event.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let draining = if let Phase::Draining { until } = self.phase { Some(until) } else { None };
        let taps = self.taps.iter().filter_map(Tap::ends_at).min();
        self.kill_at.into_iter().chain(draining).chain(taps).min()
    }

    /// Reads what the throwaway child reports. True when the container left [`Phase::Starting`].
    pub(super) fn read_report(&mut self) -> bool {
        let Phase::Starting { report, text, details, .. } = &mut self.phase else { return false };
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&*report, &mut buffer) {
                Ok(0) => break,
                Ok(n) => text.extend_from_slice(&buffer[..n]),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        let mut outcome = None;
        while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Report::Cgroup { path }) => self.cgroup = Some(path),
                Ok(Report::Detail { text }) if details.len() < 8 => details.push(text),
                Ok(Report::Detail { .. }) => {}
                Ok(done) => outcome = Some(done),
                Err(e) => details.push(format!("unreadable report: {e}")),
            }
        }
        let details = std::mem::take(details);
        match outcome {
            Some(Report::Started { instance }) => {
                self.instance = *instance;
                self.phase = Phase::Running;
                self.attach_terminal();
                self.unsynced = true;
                // Again, with the time at which it started.
                let _ = record::write(&self.record, &self.instance, false);
                true
            }
            Some(Report::Failed { reason, code, message }) => {
                self.fail(&reason, code, explain(message, &details));
                true
            }
            _ => {
                if let Phase::Starting { details: kept, .. } = &mut self.phase {
                    *kept = details;
                }
                false
            }
        }
    }

    /// The throwaway child ended. True when the container left [`Phase::Starting`] by that.
    pub(super) fn child_ended(&mut self, exit: Exit) -> bool {
        if !matches!(self.phase, Phase::Starting { .. }) || self.read_report() {
            return !matches!(self.phase, Phase::Starting { .. });
        }
        let details = match &mut self.phase {
            Phase::Starting { details, .. } => std::mem::take(details),
            _ => Vec::new(),
        };
        let how = match exit {
            Exit::Signal(libc::SIGKILL) if self.stop_signal.is_some() => "it was stopped while it started".to_owned(),
            Exit::Signal(signal) => format!("the process that starts it was killed by signal {signal}"),
            Exit::Code(code) => format!("the process that starts it ended with code {code}"),
        };
        self.fail("StartError", 128, explain(how, &details));
        true
    }

    fn attach_terminal(&mut self) {
        let Some(console) = self.console.take() else { return };
        match console.master().and_then(|master| nonblocking(&master).map(|()| master)) {
            Ok(fd) => {
                let stream = Stream::Stdout;
                self.outputs.push(Output { fd, stream, encoder: Encoder::new(stream) });
            }
            Err(e) => {
                let now = clock::wall();
                self.log.append(format!("{now:.9} stderr F coracle: no terminal: {e}\n").as_bytes(), now);
            }
        }
    }

    fn fail(&mut self, reason: &str, code: i32, message: String) {
        self.outputs.clear();
        self.console = None;
        self.kill_at = None;
        self.instance.express(&clock::present());
        self.instance.terminated = Some(Termination {
            finished: clock::wall(),
            exit_code: code,
            signal: None,
            reason: reason.to_owned(),
            message,
        });
        self.phase = Phase::Ended;
        let _ = self.delete();
        self.write_end();
    }

    /// Moves output of `outputs[index]` to the log: one read. False when it ended and is gone from the list.
    pub(super) fn pump(&mut self, index: usize) -> bool {
        let mut buffer: Vec<u8> = Vec::with_capacity(READ);
        let mut lines = Vec::with_capacity(2 * READ);
        let output = &mut self.outputs[index];
        let read = loop {
            match rustix::io::read(&output.fd, rustix::buffer::spare_capacity(&mut buffer)) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        let now = clock::wall();
        let stream = output.stream;
        let open = match read {
            Err(Errno::AGAIN) => true,
            // A terminal whose last user has gone gives EIO.
            Ok(0) | Err(_) => {
                output.encoder.finish(now, &mut lines);
                self.outputs.remove(index);
                false
            }
            Ok(_) => {
                output.encoder.feed(&buffer, now, &mut lines);
                true
            }
        };
        self.log.append(&lines, now);
        // After the log, which has to be whole whatever clients do.
        if !self.taps.is_empty() {
            let now = Instant::now();
            self.taps.retain_mut(|tap| tap.stream != stream || (tap.give(&buffer, now) && (open || tap.close())));
        }
        open
    }

    /// The container's init is a zombie now: nobody may join what has its PID next.
    pub(super) fn before_reap(&self) {
        let _ = fs::remove_file(self.state.join("state.json"));
    }

    /// The container's init ended.
    pub(super) fn init_ended(&mut self, exit: Exit) {
        let oom = self.cgroup.as_deref().is_some_and(cgroup::oom_killed);
        let (exit_code, signal) = match exit {
            Exit::Code(code) => (code, None),
            Exit::Signal(signal) => (128 + signal, Some(signal)),
        };
        let reason = match exit_code {
            0 => "Completed",
            _ if oom => "OOMKilled",
            _ => "Error",
        };
        self.instance.express(&clock::present());
        self.instance.terminated = Some(Termination {
            finished: clock::wall(),
            exit_code,
            signal,
            reason: reason.to_owned(),
            message: String::new(),
        });
        self.kill_at = None;
        // Without a PID namespace of its own, its other processes have not died with it.
        if let Some(path) = &self.cgroup {
            // Again while there are some: they may fork meanwhile. Nearly always there is none.
            let mut tries = 0;
            while cgroup::kill(path).is_ok_and(|seen| seen > 0) && tries < KILLS {
                tries += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.phase = Phase::Draining { until: Instant::now() + DRAIN };
    }

    /// Reads what is left of the output. True when that is all of it, or was waited for long enough, and the record
    /// of the end is on disk.
    pub(super) fn finish(&mut self, now: Instant) -> bool {
        let Phase::Draining { until } = self.phase else { return false };
        // Bounded: a process elsewhere may write for ever to a pipe that it was given.
        for _ in 0..256 {
            let mut index = 0;
            let mut moved = false;
            while index < self.outputs.len() {
                if !readable(&self.outputs[index].fd) {
                    index += 1;
                } else {
                    moved = true;
                    index += usize::from(self.pump(index));
                }
            }
            if !moved {
                break;
            }
        }
        if !self.outputs.is_empty() && now < until {
            return false;
        }
        let stamp = clock::wall();
        self.taps.retain_mut(Tap::close);
        for mut output in std::mem::take(&mut self.outputs) {
            let mut lines = Vec::new();
            output.encoder.finish(stamp, &mut lines);
            self.log.append(&lines, stamp);
        }
        self.phase = Phase::Ended;
        self.write_end();
        true
    }

    /// Absolute path of its cgroup, when it is known.
    pub(super) fn cgroup(&self) -> Option<&str> {
        self.cgroup.as_deref()
    }

    /// `<root>/pods/<uid>`, of which the record is `containers/<name>/<attempt>.json`.
    pub(super) fn pod_folder(&self) -> Option<&Path> {
        self.record.ancestors().nth(3)
    }

    fn write_end(&mut self) {
        self.unsynced = record::write(&self.record, &self.instance, true).is_err();
    }

    /// Makes durable what was not yet, without anyone waiting for it.
    pub(super) fn sync(&mut self) {
        if !self.unsynced {
            return;
        }
        self.unsynced = match self.phase {
            // The durable write failed (full disk): again from what we know.
            Phase::Ended => record::write(&self.record, &self.instance, true).is_err(),
            _ => record::sync(&self.record).is_err(),
        };
    }

    /// Whether [`Container::sync`] has something to do, also after it failed.
    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Sends `signal` (once), and has everything killed after `grace` at the latest.
    pub(super) fn stop(&mut self, signal: i32, grace: Duration, now: Instant) {
        if matches!(self.phase, Phase::Ended | Phase::Draining { .. }) {
            return;
        }
        let deadline = now + grace;
        self.kill_at = Some(self.kill_at.map_or(deadline, |before| before.min(deadline)));
        if self.stop_signal != Some(signal) {
            self.stop_signal = Some(signal);
            if matches!(self.phase, Phase::Running) {
                let _ = process::kill(self.instance.pid, signal);
            }
        }
    }

    /// Sends the signal of a [`Container::stop`] that came before its init was known.
    pub(super) fn deliver_stop(&self) {
        if let Some(signal) = self.stop_signal {
            let _ = process::kill(self.instance.pid, signal);
        }
    }

    /// SIGKILL to whatever belongs to it.
    pub(super) fn kill(&mut self) {
        self.kill_at = None;
        self.stop_signal = Some(libc::SIGKILL);
        match &self.phase {
            Phase::Starting { child, .. } => {
                let _ = process::kill(*child, libc::SIGKILL);
            }
            Phase::Running => {
                let _ = process::kill(self.instance.pid, libc::SIGKILL);
            }
            Phase::Draining { .. } | Phase::Ended => {}
        }
        if let Some(path) = &self.cgroup {
            let _ = cgroup::kill(path);
        }
    }

    /// Gives a client a copy of all output from now on, and with `input` what it is to write to.
    pub(super) fn attach(&mut self, session: u64, input: bool) -> io::Result<Attached> {
        let Wanted { stdin, stdin_once, tty } = self.stdio;
        let streams: &[Stream] = if tty { &[Stream::Stdout] } else { &[Stream::Stdout, Stream::Stderr] };
        let mut outputs = Vec::new();
        let mut taps = Vec::new();
        for &stream in streams {
            let (tap, theirs) = Tap::new(session, stream)?;
            // Without a tap the client sees the end of an output that has ended already.
            taps.extend(self.outputs.iter().any(|output| output.stream == stream).then_some(tap));
            outputs.push(theirs);
        }
        let input = match (tty, &self.stdin) {
            (true, _) => Some(self.outputs.first().ok_or(io::ErrorKind::NotConnected)?.fd.try_clone()?),
            (false, Some(stdin)) if input => Some(stdin.try_clone()?),
            _ => None,
        };
        self.taps.extend(taps);
        let stdin = stdin && (tty || self.stdin.is_some());
        Ok(Attached { outputs, input, terminal: tty, stdin, stdin_once })
    }

    /// A client's input has ended: with `stdinOnce` so has the container's.
    pub(super) fn end_input(&mut self) {
        if self.stdio.stdin_once {
            self.stdin = None;
        }
    }

    /// Whether an output may be read: nobody who is attached lags behind.
    pub(super) fn is_read(&self, output: &Output) -> bool {
        !self.taps.iter().any(|tap| tap.stream == output.stream && tap.is_behind())
    }

    /// A lagging client has made room, or is gone.
    pub(super) fn resume(&mut self, tap: usize) {
        if !self.taps[tap].resume(Instant::now()) {
            self.taps.swap_remove(tap);
        }
    }

    /// Cuts off who has held up the output for too long.
    pub(super) fn cut_off(&mut self, now: Instant) {
        self.taps.retain(|tap| !tap.is_stalled(now));
    }

    pub(super) fn reopen_log(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// Unmounts the root, removes the cgroup and libcontainer's state. Can be repeated.
    pub(super) fn delete(&mut self) -> io::Result<()> {
        let cleared = self.cgroup.as_deref().map_or(Ok(()), |path| cgroup::clear(path, CLEAR));
        let detached = mount::detach(&self.target);
        let removed = remove_tree(&self.state);
        let _ = fs::remove_dir(&self.target);
        cleared.and(detached).and(removed)
    }
}

fn explain(message: String, details: &[String]) -> String {
    // The first is where it went wrong; those after it are the callers' view of the same.
    match details.first() {
        Some(detail) if Refusal::find(detail).is_none() && !message.contains(detail.as_str()) => {
            format!("{message} ({detail})")
        }
        _ => message,
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

fn readable(fd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
}

/// `remove_dir_all` without an error when it is not there.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
