//! Attaching: a copy of what a container writes, and its input.

use crate::harness::{Node, PATIENCE, eventually, pod, secs, wait_child};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What a program says, read as it comes.
struct Heard {
    pieces: Receiver<Vec<u8>>,
    text: String,
}

impl Heard {
    fn from(mut stream: impl Read + Send + 'static) -> Heard {
        let (sender, pieces) = channel();
        std::thread::spawn(move || {
            let mut room = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut room) {
                if sender.send(room[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Heard { pieces, text: String::new() }
    }

    /// Everything up to `what`.
    #[track_caller]
    fn until(&mut self, what: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text.find(what) {
                let rest = self.text.split_off(at + what.len());
                return std::mem::replace(&mut self.text, rest);
            }
            assert!(Instant::now() < end, "{what:?} was not heard: {:?}", self.text);
            if let Ok(piece) = self.pieces.recv_timeout(Duration::from_millis(100)) {
                self.text.push_str(&String::from_utf8_lossy(&piece));
            }
        }
    }
}

/// A `coracle attach` that runs; it is ended with the test.
struct Client {
    child: Child,
    input: Option<ChildStdin>,
    out: Heard,
    err: Heard,
}

impl Client {
    fn attach(node: &Node, args: &[&str]) -> Client {
        let mut command = node.command(&[&["attach"][..], args].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("attach");
        let out = Heard::from(child.stdout.take().expect("piped"));
        let err = Heard::from(child.stderr.take().expect("piped"));
        Client { input: child.stdin.take(), child, out, err }
    }

    fn type_in(&mut self, text: &str) {
        self.input.as_mut().expect("open").write_all(text.as_bytes()).expect("type");
    }

    #[track_caller]
    fn code(&mut self) -> Option<i32> {
        wait_child(&mut self.child, PATIENCE).expect("attach ends").code()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_input(name: &str, script: &str, once: bool) -> Value {
    let mut manifest = pod(name, script);
    let container = &mut manifest["spec"]["containers"][0];
    container["stdin"] = json!(true);
    container["stdinOnce"] = json!(once);
    manifest
}

const ECHO: &str = "while read line; do echo \"got $line\"; echo \"err $line\" >&2; done; echo over";

#[test]
fn attached_clients_type_and_hear_and_the_log_is_whole() {
    let node = Node::up();
    node.run(&with_input("web", ECHO, false));
    let mut one = Client::attach(&node, &["-i", "web"]);
    // Whether it is attached is not said: what was typed is answered once it is.
    one.type_in("first\n");
    one.out.until("got first\n");
    one.err.until("err first\n");
    let mut two = Client::attach(&node, &["-i", "web"]);
    two.type_in("second\n");
    two.out.until("got second\n");
    one.out.until("got second\n");
    // One that is killed takes nothing along, neither do one that ends its input and one that only listens.
    one.child.kill().expect("kill");
    drop(one);
    let mut listener = Client::attach(&node, &["web"]);
    drop(two.input.take());
    assert_eq!(two.code(), Some(0), "{}", two.err.text);
    let mut three = Client::attach(&node, &["-i", "web"]);
    three.type_in("third\n");
    three.out.until("got third\n");
    listener.out.until("got third\n");
    assert_eq!(node.pod("web").expect("there").restarts("main"), 0);
    let log = node.cli(&["logs", "web"]).ok();
    for word in ["first", "second", "third"] {
        assert_eq!(
            (log.matches(&format!("got {word}\n")).count(), log.matches(&format!("err {word}\n")).count()),
            (1, 1)
        );
    }
    // The agent's end is not the container's.
    assert!(node.cli(&["attach", "web", "-c", "nope"]).fails(1).contains("nope"));
    assert!(node.cli(&["attach", "absent"]).fails(1).contains("absent"));
    drop((two, three, listener));
    node.finish();
}

#[test]
fn the_input_of_a_container_that_takes_it_once_ends_with_the_client_s() {
    let node = Node::up();
    let mut manifest = with_input("sum", "sleep 1; md5sum; cat /proc/self/limits >/dev/null; exit 3", true);
    manifest["spec"]["restartPolicy"] = json!("Never");
    node.run(&manifest);
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // How it ended is the pod's to tell.
    let said = node.cli_with(&["attach", "-i", "sum"], &input).ok();
    fs::write(node.dir.join("input"), &input).expect("input");
    let sum = std::process::Command::new("md5sum").arg(node.dir.join("input")).output().expect("md5sum").stdout;
    let sum = String::from_utf8_lossy(&sum).split(' ').next().unwrap_or_default().to_owned();
    assert!(said.starts_with(&sum), "{said:?} is not {sum}");
    let ended = node.wait_pod("sum", "it ends", |pod| pod.phase() == "Failed");
    assert_eq!(ended.terminated("main")["exitCode"], 3);
    assert_eq!(node.cli(&["logs", "sum"]).ok(), said);
    assert!(node.cli(&["attach", "sum"]).fails(1).contains("container not found"));
    node.finish();
}

#[test]
fn a_client_that_reads_nothing_holds_up_a_container_for_seconds_only() {
    let node = Node::up();
    let script = "read go; i=0; while [ $i -lt 300 ]; do head -c 32768 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; \
                  echo written >&2; sleep 3600";
    node.run(&with_input("loud", script, false));
    let mut child = node
        .command(&["attach", "-i", "loud"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("attach");
    child.stdin.as_mut().expect("piped").write_all(b"go\n").expect("type");
    let log = || node.cli(&["logs", "loud", "--tail=1"]).stdout;
    eventually("all is written though nobody reads it", secs(60), || log().contains("written"));
    let log = node.cli(&["logs", "loud"]).ok();
    assert_eq!(log.bytes().filter(|byte| *byte == b'x').count(), 300 * 32768, "the log is whole");
    let _ = child.kill();
    let _ = child.wait();
    // Who reads is held up by nobody, and who comes later is as welcome as ever.
    let mut late = Client::attach(&node, &["loud"]);
    assert!(late.child.try_wait().expect("runs").is_none());
    node.finish();
}

#[test]
fn attach_passes_a_terminal_on() {
    let node = Node::up();
    let mut manifest = with_input("shell", "exec sh", false);
    manifest["spec"]["containers"][0]["tty"] = json!(true);
    node.run(&manifest);
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("grantpt");
    unlockpt(&master).expect("unlockpt");
    let path = ptsname(&master, Vec::new()).expect("ptsname");
    let slave = File::options().read(true).write(true).open(path.to_str().expect("path")).expect("slave");
    let size = |rows, columns| rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size(33, 101)).expect("size");
    let stdio = || slave.try_clone().expect("slave");
    let mut command = node.command(&["attach", "-it", "shell"]);
    let mut child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("attach");
    let master = File::from(master);
    let mut heard = Heard::from(master.try_clone().expect("master"));
    let type_in = |text: &str| (&master).write_all(text.as_bytes()).expect("type");
    // The shell's prompt was there before the client: it types until something comes.
    heard.until("pressing enter");
    let end = Instant::now() + PATIENCE;
    while !heard.text.contains("attached-42") {
        assert!(Instant::now() < end, "{:?}", heard.text);
        type_in("echo attached-$((40+2))\n");
        if let Ok(piece) = heard.pieces.recv_timeout(Duration::from_millis(300)) {
            heard.text.push_str(&String::from_utf8_lossy(&piece));
        }
    }
    type_in("stty size; echo sized-$((1+1))\n");
    let text = heard.until("sized-2");
    assert!(text.contains("33 101"), "the window's size: {text:?}");
    // Its end is the terminal's, and the session's.
    type_in("exit\n");
    let status = wait_child(&mut child, PATIENCE);
    let _ = child.kill();
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    node.finish();
}
