//! What kubectl does with pods of a node, whoever answers it: the API server of a cluster, or a lone node itself.
//!
//! Everything is about one pod, [`tools`]; its containers are there for one subject each.

use crate::harness::{BUSYBOX, Kubectl, PATIENCE, REST, Running, eventually, output, secs, wait_child};
use jiff::Timestamp;
use nix::sched::{CloneFlags, setns};
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

/// What goes through a pipe, each way.
const PIPE: usize = 100 << 20;
/// Connections through one `port-forward`, at once.
const CONNECTIONS: usize = 50;

/// The pod. Its name may be another one where it is: that of a static pod has its node's at its end.
pub fn tools(name: &str) -> Value {
    let with = |name: &str, script: &str, more: Value| {
        let mut container = json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", script] });
        for (key, value) in more.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        container
    };
    let talk = "[ -e /life/first ] || { touch /life/first; echo first life; exit 3; }
        for i in 1 2 3 4 5; do echo line $i; done
        mkfifo /life/say; trap 'exit 0' TERM
        while :; do while read -r line; do echo \"$line\"; done < /life/say; done";
    let echo = "while read -r line; do echo \"got $line\"; done";
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{ "name": "life", "emptyDir": {} }, { "name": "work", "emptyDir": {} }],
            "containers": [
                with("main", &format!("echo to-stderr >&2; {REST}"), json!({
                    "volumeMounts": [{ "name": "work", "mountPath": "/work" }],
                })),
                with("talk", talk, json!({ "volumeMounts": [{ "name": "life", "mountPath": "/life" }] })),
                with("echo", echo, json!({ "stdin": true })),
                with("term", "exec sh", json!({ "stdin": true, "tty": true })),
                with("once", "cat; echo over", json!({ "stdin": true, "stdinOnce": true })),
            ],
        },
    })
}

/// Whether all of it runs, `talk` in its second life.
pub fn is_up(pod: &Value) -> bool {
    let all = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let second = |c: &Value| c["name"] != "talk" || c["restartCount"].as_u64() > Some(0);
    all.len() == 5 && all.iter().all(|c| c["state"]["running"].is_object() && second(c))
}

/// The runtime's ID of a container, without `coracle://`.
#[track_caller]
fn container_id(pod: &Value, name: &str) -> String {
    let all = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = all.iter().find(|c| c["name"] == name).and_then(|c| c["containerID"].as_str());
    found.and_then(|id| id.rsplit('/').next()).unwrap_or_else(|| panic!("no ID of {name}: {pod:#}")).to_owned()
}

/// `kubectl exec` of a shell script in `main`, which must work.
#[track_caller]
fn sh(kubectl: &Kubectl<'_>, pod: &str, container: &str, script: &str) -> String {
    kubectl.run(&["exec", pod, "-c", container, "--", "sh", "-c", script]).ok()
}

/// `kubectl logs`.
#[track_caller]
pub fn logs(kubectl: &Kubectl<'_>, pod: &str) {
    let logs = |more: &[&str]| kubectl.run(&[&["logs", pod, "-c", "talk"], more].concat()).ok();
    eventually("the second life has begun", PATIENCE, || logs(&[]).contains("line 5"));
    let five = "line 1\nline 2\nline 3\nline 4\nline 5\n";
    let all = logs(&[]);
    let said = all.strip_prefix(five).unwrap_or_else(|| panic!("{all:?}")).to_owned();
    assert_eq!(logs(&["--tail=0"]), "");
    assert_eq!(logs(&["--tail=100"]), all);
    assert_eq!(logs(&["--limit-bytes=10"]), "line 1\nlin");
    assert_eq!(logs(&["--previous"]), "first life\n");
    assert_eq!(logs(&["--since=1h"]), all);
    let stamped = logs(&["--timestamps"]);
    let stamps: Vec<Timestamp> = stamped
        .lines()
        .map(|line| line.split(' ').next().unwrap_or_default().parse().unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    assert!(stamps.is_sorted(), "{stamped}");
    let bare: Vec<&str> = stamped.lines().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
    assert_eq!(bare.join("\n") + "\n", all);

    // What was said in this second is not what is said in the next but one.
    let (last, begin) = (*stamps.last().expect("lines"), stamps[0]);
    eventually("time passes", PATIENCE, || Timestamp::now().as_second() > last.as_second() + 1);
    let follower = kubectl.start(&["logs", "-f", pod, "-c", "talk", "--tail=1"]);
    follower.until(bare.last().expect("lines"));
    sh(kubectl, pod, "talk", "echo later > /life/say");
    follower.until("later\n");
    sh(kubectl, pod, "talk", "echo much later > /life/say");
    let seen = follower.until("much later\n");
    assert_eq!(seen, format!("{}\nlater\nmuch later\n", bare.last().expect("lines")));
    drop(follower);
    let since = |at: i64| logs(&[&format!("--since-time={}", Timestamp::from_second(at).expect("a time"))]);
    assert_eq!(since(begin.as_second() - 1), format!("{five}{said}later\nmuch later\n"));
    assert_eq!(since(last.as_second() + 1), "later\nmuch later\n");
    assert_eq!(logs(&["--tail=1"]), "much later\n");
    assert_eq!(logs(&["--tail=2", "--since=1h"]), "later\nmuch later\n");
    eventually("nothing was said in the last second", PATIENCE, || logs(&["--since=1s"]).is_empty());

    let all = kubectl.run(&["logs", pod, "--all-containers", "--prefix"]).ok();
    for line in ["/main] to-stderr\n", "/talk] line 3\n"] {
        assert!(all.contains(line), "{all}");
    }
    let none = kubectl.run(&["logs", pod, "-c", "main", "--previous"]).fails(1);
    assert!(none.contains(&format!("previous terminated container \"main\" in pod \"{pod}\" not found")), "{none}");
    assert!(kubectl.run(&["logs", pod, "-c", "nobody"]).fails(1).contains("nobody"));
    assert!(kubectl.run(&["logs", "nobody"]).fails(1).contains("not found"));
}

/// `kubectl exec` without a terminal.
#[track_caller]
pub fn exec(kubectl: &Kubectl<'_>, pod: &str) {
    let run = |command: &[&str]| kubectl.run(&[&["exec", pod, "-c", "main", "--"], command].concat());
    let both = run(&["sh", "-c", "echo out; echo error >&2; exit 7"]);
    assert_eq!((both.code, &*both.stdout), (Some(7), "out\n"), "{both:?}");
    assert!(both.stderr.starts_with("error\n") && both.stderr.contains("exit code 7"), "{both:?}");
    for code in [0, 1, 126, 255] {
        assert_eq!(run(&["sh", "-c", &format!("exit {code}")]).code, Some(code));
    }
    run(&["sh", "-c", "kill -9 $$"]).fails(137);
    let words = ["a b", "$HOME", "q'uo\"te", "ü", "&x=1", "%41", "+", "", "a\nb", "-x"];
    let said = run(&[&["printf", "%s|"], &words[..]].concat()).ok();
    assert_eq!(said, words.map(|word| format!("{word}|")).concat());
    assert_eq!(run(&["cat"]).ok(), "", "no input is an input that has ended");
    let missing = run(&["no-such-program"]);
    assert!(missing.code != Some(0) && missing.stderr.contains("no-such-program"), "{missing:?}");
    let text = kubectl.run_with(&["exec", "-i", pod, "-c", "main", "--", "cat"], b"of the input\n").ok();
    assert_eq!(text, "of the input\n");
    assert!(kubectl.run(&["exec", pod, "-c", "nobody", "--", "true"]).fails(1).contains("nobody"));
    assert!(kubectl.run(&["exec", "nobody", "--", "true"]).fails(1).contains("not found"));
    let many: Vec<String> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|i| scope.spawn(move || sh(kubectl, pod, "main", &format!("echo {i}")))).collect();
        all.into_iter().map(|one| one.join().expect("exec")).collect()
    });
    assert_eq!(many, (0..8).map(|i| format!("{i}\n")).collect::<Vec<_>>());
}

/// `kubectl exec -it`.
#[track_caller]
pub fn terminal(kubectl: &Kubectl<'_>, pod: &str) {
    let mut shell = kubectl.terminal(&["exec", "-it", pod, "-c", "main", "--", "sh"]);
    // A shell throws away what was typed before it took over the terminal. Answers are computed: no echo is one.
    shell.until("# ");
    shell.type_in("test -t 0 && test -t 1 && test -t 2 && echo tty-$((40+2))\n");
    shell.until("tty-42");
    shell.type_in("stty size; echo done-$((1+1))\n");
    let text = shell.until("done-2");
    assert!(text.contains("24 80"), "{text:?}");
    shell.resize(101, 33);
    shell.type_in("until [ \"$(stty size)\" = '33 101' ]; do usleep 10000; done; echo sized-$((1+2))\n");
    shell.until("sized-3");
    // Ctrl-C interrupts what runs inside, not the session.
    shell.type_in("sh -c 'while read -r n; do echo next-$((n+1)); done'\n41\n");
    shell.until("next-42");
    shell.type_in("\u{3}");
    // What is typed before the shell has the terminal back is thrown away with what was interrupted.
    shell.until("/ # ");
    shell.type_in("echo alive-$((2+3))\n");
    shell.until("alive-5");
    shell.type_in("exit 5\n");
    assert_eq!(shell.ends(), Some(5));
    // Ctrl-D ends a shell, with 0.
    let mut shell = kubectl.terminal(&["exec", "-it", pod, "-c", "main", "--", "sh"]);
    shell.until("# ");
    shell.type_in("\u{4}");
    assert_eq!(shell.ends(), Some(0));
}

/// Many bytes in and out of a container, by `kubectl exec`: none is lost, changed or added.
#[track_caller]
pub fn pipes(kubectl: &Kubectl<'_>, pod: &str) {
    let bytes = noise(1, PIPE);
    let sum = checksum(&bytes);
    let (said, _) = pipe(kubectl, pod, "tee /work/blob | sha256sum", &bytes);
    assert_eq!(String::from_utf8_lossy(&said), format!("{sum}  -\n"), "into the container");
    let (blob, _) = pipe(kubectl, pod, "cat /work/blob; rm /work/blob", b"");
    assert_eq!((blob.len(), checksum(&blob)), (PIPE, sum.clone()), "out of the container");
    let (both, _) = pipe(kubectl, pod, "exec cat", &bytes);
    assert_eq!((both.len(), checksum(&both)), (PIPE, sum), "both ways at once");
    // An error output of its own beside it.
    let (out, error) = pipe(kubectl, pod, "tee /dev/stderr", &bytes[..PIPE / 10]);
    let sums = [out, error].map(|stream| checksum(&stream));
    assert_eq!(sums, [checksum(&bytes[..PIPE / 10]), checksum(&bytes[..PIPE / 10])], "to both outputs");
}

/// The outputs of a script that reads `input`.
#[track_caller]
fn pipe(kubectl: &Kubectl<'_>, pod: &str, script: &str, input: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut command = kubectl.command(&["exec", "-i", pod, "-c", "main", "--", "sh", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = kubectl.inside(|| command.spawn()).expect("kubectl");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let mut stderr = child.stderr.take().expect("piped");
    let read = |mut stream: Box<dyn Read + Send>| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map(|_| bytes).expect("output")
    };
    let streams = std::thread::scope(|scope| {
        // One that ends before it has read all of it ends with an error that says more than the broken pipe.
        scope.spawn(move || stdin.write_all(input));
        let error = scope.spawn(|| read(Box::new(&mut stderr)));
        (read(Box::new(&mut stdout)), error.join().expect("reader"))
    });
    let status = wait_child(&mut child, secs(60)).expect("kubectl ends");
    assert!(status.success(), "{script}: {status}: {}", String::from_utf8_lossy(&streams.1));
    streams
}

/// `kubectl attach`.
#[track_caller]
pub fn attach(kubectl: &Kubectl<'_>, pod: &str, round: u32) {
    let attach = |container: &str| kubectl.start(&["attach", "-i", pod, "-c", container]);
    // What is typed before the container is reached waits in the pipe.
    let mut first = attach("echo");
    first.type_in(&format!("one {round}\n"));
    first.until(&format!("got one {round}\n"));
    let looks = kubectl.start(&["attach", pod, "-c", "echo"]);
    let mut second = attach("echo");
    let said = |running: &mut Running, text: &str| {
        running.type_in(&format!("{text} {round}\n"));
        running.until(&format!("got {text} {round}\n"));
    };
    said(&mut second, "two");
    first.until(&format!("got two {round}\n"));
    // Who only looks is attached by now, or soon: output before that is not for it.
    let mut n = 0;
    eventually("all of them see what the container says", PATIENCE, || {
        n += 1;
        said(&mut second, &format!("look {n}"));
        looks.seen().contains("got look")
    });
    drop(first);
    said(&mut second, "three");
    drop((second, looks));
    // It goes on without them, and its log has it all.
    said(&mut attach("echo"), "four");
    let log = kubectl.run(&["logs", pod, "-c", "echo"]).ok();
    let mine: Vec<&str> = log.lines().filter(|line| line.ends_with(&format!(" {round}"))).collect();
    let words = ["one", "two", "three", "four"].map(|word| format!("got {word} {round}"));
    let found: Vec<&str> = mine.into_iter().filter(|line| !line.contains("look")).collect();
    assert_eq!(found, words, "{log}");

    // The input of `once` ends with its first client's.
    let before = restarts(kubectl, pod, "once");
    let mut client = attach("once");
    client.type_in("all of it\n");
    client.until("all of it\n");
    let (code, seen) = client.ends();
    assert!(code == Some(0) && seen.contains("over\n"), "{code:?} {seen:?}");
    eventually("it is started again", 2 * PATIENCE, || restarts(kubectl, pod, "once") > before);

    let mut shell = kubectl.terminal(&["attach", "-it", pod, "-c", "term"]);
    shell.type_in("echo tty-$((40+2))\n");
    shell.until("tty-42");
    let (columns, rows) = (100 + round as u16, 30 + round as u16);
    shell.resize(columns, rows);
    shell.type_in(&format!(
        "until [ \"$(stty size)\" = '{rows} {columns}' ]; do usleep 10000; done; echo sized-$((1+2))\n"
    ));
    shell.until("sized-3");
}

#[track_caller]
fn restarts(kubectl: &Kubectl<'_>, pod: &str, container: &str) -> u64 {
    let pod = kubectl.get("pod", pod);
    let all = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = all.iter().find(|c| c["name"] == container && c["state"]["running"].is_object());
    found.and_then(|c| c["restartCount"].as_u64()).unwrap_or(0)
}

/// `kubectl port-forward`: so many bytes through connections at once. `init` finds a container's first process.
#[track_caller]
pub fn forward(kubectl: &Kubectl<'_>, pod: &str, bytes: usize, init: impl Fn(&str) -> i32) {
    let pid = init(&container_id(&kubectl.get("pod", pod), "main"));
    let remote = serve(pid);
    let running = kubectl.start(&["port-forward", &format!("pod/{pod}"), &format!(":{remote}")]);
    let local = local_port(&running, remote);
    // One that nobody reads from holds up no other one, as long as sockets take what it is sent: then kubectl itself stops to
    // read, as its streams have no windows.
    let stuck = kubectl.connect(local).expect("connect");
    ask(&stuck, 1 << 20);
    stuck.shutdown(Shutdown::Write).expect("half a close");
    let share = bytes / CONNECTIONS / 2;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..CONNECTIONS)
            .map(|i| scope.spawn(move || exchange(kubectl.connect(local).expect("connect"), i as u64, share)))
            .collect();
        for (i, one) in all.into_iter().enumerate() {
            assert!(one.join().is_ok(), "connection {i}");
        }
    });
    drop(stuck);
    // A client that is gone without a word is no harm to the next.
    let gone = kubectl.connect(local).expect("connect");
    ask(&gone, 16 << 20);
    drop(gone);
    exchange(kubectl.connect(local).expect("connect"), 77, 1 << 16);
    drop(running);

    // Nobody listens: said, and why.
    let unused = {
        let listener = inside_network_of(pid, || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen"));
        listener.local_addr().expect("address").port()
    };
    let running = kubectl.start(&["port-forward", pod, &format!(":{unused}")]);
    let mut stream = kubectl.connect(local_port(&running, unused)).expect("connect");
    // An end, or a reset: no bytes.
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
    running.until("refused");
}

/// Where a `port-forward` listens for what it forwards to `remote`.
#[track_caller]
fn local_port(running: &Running, remote: u16) -> u16 {
    let line = running.until(&format!(" -> {remote}\n"));
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|p| p.parse().ok());
    port.unwrap_or_else(|| panic!("{line:?}"))
}

/// Tells the server how much it shall answer.
fn ask(mut stream: &TcpStream, answer: usize) {
    stream.write_all(&(answer as u64).to_be_bytes()).expect("ask");
}

/// Sends `share` bytes, half-closes, and reads as many, while it sends and after that.
fn exchange(stream: TcpStream, seed: u64, share: usize) {
    let sent = noise(seed, share);
    ask(&stream, share);
    let mut writer = stream.try_clone().expect("a second handle");
    let mut answer = vec![0; share];
    let mut sum = [0; 32];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).expect("send");
            writer.shutdown(Shutdown::Write).expect("half a close");
        });
        (&stream).read_exact(&mut answer).expect("an answer");
        (&stream).read_exact(&mut sum).expect("the sum of what was sent");
    });
    assert_eq!((&stream).read(&mut [0; 1]).expect("the end"), 0);
    assert_eq!(hex(&sum), checksum(&sent), "connection {seed}: sent");
    assert_eq!(checksum(&answer), checksum(&noise(share as u64, share)), "connection {seed}: received");
}

/// A server on a loopback port of a process's network: it answers with as many bytes as it is asked for, reads to the end
/// meanwhile, and then tells the sum of what it read. It ends with the tests' process.
fn serve(pid: i32) -> u16 {
    let listener = inside_network_of(pid, || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen"));
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut length = [0; 8];
                if (&stream).read_exact(&mut length).is_err() {
                    return;
                }
                let length = u64::from_be_bytes(length);
                let sum = std::thread::scope(|scope| {
                    // Who is gone does not want the answer.
                    scope.spawn(|| drop((&stream).write_all(&noise(length, length as usize))));
                    let (mut sum, mut buffer) = (Context::new(&SHA256), vec![0; 64 << 10]);
                    while let Ok(n @ 1..) = (&stream).read(&mut buffer) {
                        sum.update(&buffer[..n]);
                    }
                    sum.finish()
                });
                let _ = (&stream).write_all(sum.as_ref());
            });
        }
    });
    port
}

fn inside_network_of<T: Send>(pid: i32, work: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(format!("/proc/{pid}/ns/net")).expect("a network namespace");
    let enter = || {
        setns(&file, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().expect("in the pod's network"))
}

/// `kubectl cp`, in and out, of a file and of a folder.
#[track_caller]
pub fn copy(kubectl: &Kubectl<'_>, pod: &str, dir: &Path) {
    let dir = dir.join("copies");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("tree/sub")).expect("folder");
    let big = noise(9, 20 << 20);
    for (name, bytes) in [("tree/big", &big[..]), ("tree/sub/empty", b""), ("tree/ä b", b"text\n")] {
        fs::write(dir.join(name), bytes).expect("file");
    }
    let copy = |from: &str, to: &str| kubectl.run(&["cp", from, to, "-c", "main"]).ok();
    let (here, back) = (dir.join("tree").display().to_string(), dir.join("back").display().to_string());
    copy(&format!("{here}/big"), &format!("{pod}:/work/one"));
    let sum = checksum(&big);
    assert!(sh(kubectl, pod, "main", "sha256sum /work/one").starts_with(&sum));
    copy(&here, &format!("{pod}:/work/tree"));
    copy(&format!("{pod}:/work/tree"), &back);
    assert_eq!(checksum(&fs::read(format!("{back}/big")).expect("copied")), sum);
    assert_eq!(fs::read_to_string(format!("{back}/ä b")).expect("copied"), "text\n");
    assert_eq!(fs::read(format!("{back}/sub/empty")).expect("copied"), b"");
    // kubectl takes an archive that is empty for the end, and may be gone before it hears what `tar` said of it.
    let nothing = format!("{back}/nothing");
    let missing = kubectl.run(&["cp", &format!("{pod}:/work/nothing"), &nothing, "-c", "main"]);
    assert!(!Path::new(&nothing).exists(), "{missing:?}");
    sh(kubectl, pod, "main", "rm -r /work/one /work/tree");
    fs::remove_dir_all(dir).expect("remove");
}

/// `kubectl top`, where somebody serves `metrics.k8s.io`.
#[track_caller]
pub fn top(kubectl: &Kubectl<'_>, node: &str, pod: &str) {
    // What is used is told by two looks at it.
    let rows = |args: &[&str]| -> Vec<Vec<String>> {
        let out = kubectl.run(&[&["top"], args, &["--no-headers"]].concat());
        out.stdout.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let is_amount = |text: &str, unit: &str| text.strip_suffix(unit).is_some_and(|n| n.parse::<u64>().is_ok());
    eventually("kubectl top node", PATIENCE, || {
        let all = rows(&["node", node]);
        all.iter().any(|row| row[0] == node && is_amount(&row[1], "m") && row[3].strip_suffix("Mi") > Some("0"))
    });
    eventually("kubectl top pod --containers", PATIENCE, || {
        let all = rows(&["pod", pod, "--containers"]);
        let names: Vec<&str> = all.iter().map(|row| &*row[1]).collect();
        ["main", "talk", "echo", "term", "once"].iter().all(|name| names.contains(name))
            && all.iter().all(|row| row[0] == pod && is_amount(&row[2], "m") && is_amount(&row[3], "Mi"))
    });
    let all = rows(&["pod", pod]);
    assert!(all.len() == 1 && is_amount(&all[0][1], "m") && is_amount(&all[0][2], "Mi"), "{all:?}");
}

/// `kubectl describe`, `wait`, `get`, `events`, and the end: a follower of its logs ends with it.
#[track_caller]
pub fn end(kubectl: &Kubectl<'_>, pod: &str) {
    kubectl.run(&["wait", "--for=condition=PodReadyToStartContainers", "--timeout=30s", &format!("pod/{pod}")]).ok();
    let wide = kubectl.run(&["get", "pods", "-o", "wide"]).ok();
    assert!(wide.lines().any(|line| line.starts_with(pod) && line.contains("/5")), "{wide}");
    let text = kubectl.run(&["describe", "pod", pod]).ok();
    for word in ["Containers:", "talk:", "Restart Count:", "Events:", "Started"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let events = kubectl.run(&["events", "--for", &format!("pod/{pod}")]).ok();
    assert!(events.contains("Started"), "{events}");
    let follower = kubectl.start(&["logs", "-f", pod, "-c", "main"]);
    follower.until("to-stderr\n");
    let mut waiter = kubectl.command(&["wait", "--for=delete", "--timeout=60s", &format!("pod/{pod}")]);
    kubectl.run(&["delete", "pod", pod, "--wait=false"]).ok();
    kubectl.inside(|| output(&mut waiter, b"", secs(70))).ok();
    let (code, seen) = follower.ends();
    assert_eq!((code, &*seen), (Some(0), "to-stderr\n"));
    assert!(kubectl.run(&["get", "pod", pod]).fails(1).contains("not found"));
}

/// Bytes that look like nothing, always the same ones for a seed. They come again after a prime number of them: whatever is
/// lost or comes twice moves all that follows.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    const PERIOD: usize = 1_048_583;
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    let block = BLOCK.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[7]
        });
        next.take(PERIOD).collect()
    });
    let start = (seed as usize).wrapping_mul(7919) % PERIOD;
    let mut bytes = Vec::with_capacity(length);
    let mut rest = &block[start..];
    while bytes.len() < length {
        let n = rest.len().min(length - bytes.len());
        bytes.extend_from_slice(&rest[..n]);
        rest = block;
    }
    bytes
}

/// SHA-256 in hexadecimal digits.
pub fn checksum(bytes: &[u8]) -> String {
    let mut sum = Context::new(&SHA256);
    sum.update(bytes);
    hex(sum.finish().as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
