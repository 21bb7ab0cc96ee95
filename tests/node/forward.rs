//! Port-forward: servers inside a pod's network, clients on the machine.

use crate::harness::{Node, PATIENCE, PodView, eventually, free_port, resting, signal, wait_child};
use nix::sched::{CloneFlags, setns};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

/// What a server does with a connection.
#[derive(Clone, Copy)]
enum Habit {
    /// Says all back once all has come.
    Echo,
    /// Reads nothing, for as long as it lasts.
    Deaf,
    /// Says something and breaks off.
    Break,
}

/// A server inside a pod's network.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(node: &Node, pod: &PodView, address: &str, habit: Habit) -> Server {
        let network =
            File::open(format!("/proc/{}/ns/net", node.init_pid(&pod.id("main")))).expect("the pod's network");
        let address: SocketAddr = address.parse().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, (ready, listening)) = (Arc::clone(&stop), std::sync::mpsc::channel());
        let thread = spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).expect("enter the pod's network");
            let listener = TcpListener::bind(address).expect("listen in the pod");
            listener.set_nonblocking(true).expect("non-blocking");
            ready.send(()).expect("the test waits");
            let mut kept = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((tcp, _)) => kept.push(serve(tcp, habit)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(5)),
                    Err(error) => panic!("accept: {error}"),
                }
            }
        });
        listening.recv_timeout(PATIENCE).expect("the server listens");
        Server { stop, thread: Some(thread) }
    }
}

fn serve(mut tcp: TcpStream, habit: Habit) -> Option<TcpStream> {
    tcp.set_nonblocking(false).expect("blocking");
    match habit {
        Habit::Echo => {
            spawn(move || {
                let mut all = Vec::new();
                // Whoever breaks off wants no answer.
                if tcp.read_to_end(&mut all).is_ok() {
                    let _ = tcp.write_all(&all);
                }
            });
            None
        }
        Habit::Deaf => Some(tcp),
        Habit::Break => {
            tcp.write_all(b"half").expect("write");
            rustix::net::sockopt::set_socket_linger(&tcp, Some(Duration::ZERO)).expect("linger");
            None
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A `coracle port-forward` that runs; it is ended with the test.
struct Forward {
    child: Child,
    /// Local ports, in the order they were asked for.
    ports: Vec<u16>,
    errors: Arc<Mutex<String>>,
}

impl Forward {
    fn start(node: &Node, args: &[&str], count: usize) -> Forward {
        let mut command = node.command(&[&["port-forward"][..], args].concat());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("port-forward");
        let errors = Arc::new(Mutex::new(String::new()));
        let (mut from, to) = (child.stderr.take().expect("piped"), Arc::clone(&errors));
        spawn(move || {
            let mut room = [0; 1024];
            while let Ok(read @ 1..) = from.read(&mut room) {
                to.lock().expect("errors").push_str(&String::from_utf8_lossy(&room[..read]));
            }
        });
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        let mut ports = Vec::new();
        while ports.len() < count {
            let mut line = String::new();
            said.read_line(&mut line).expect("what it says");
            assert!(!line.is_empty(), "it ended: {}", errors.lock().expect("errors"));
            // Localhost is two addresses; the machine may not have the second.
            if let Some(rest) = line.strip_prefix("Forwarding from 127.0.0.1:") {
                let (port, _) = rest.split_once(" -> ").expect("two ports");
                ports.push(port.parse().expect("a port"));
            }
        }
        spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Forward { child, ports, errors }
    }

    fn connect(&self, index: usize) -> TcpStream {
        let tcp = TcpStream::connect(("127.0.0.1", self.ports[index])).expect("connect");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a limit");
        tcp.set_write_timeout(Some(PATIENCE)).expect("a limit");
        tcp
    }

    /// Sends all, ends sending, and reads the answer.
    fn ask(&self, index: usize, bytes: &[u8]) -> Vec<u8> {
        let mut tcp = self.connect(index);
        tcp.write_all(bytes).expect("send");
        tcp.shutdown(Shutdown::Write).expect("end");
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).expect("the answer");
        answer
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that are like no others.
fn bytes(seed: u32, count: u32) -> Vec<u8> {
    (0..count / 4).flat_map(|i| (i.wrapping_mul(2_654_435_761) ^ seed).to_be_bytes()).collect()
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).expect("threads").count()
}

/// What the agent answers to a request, up to the end of its head.
fn head(node: &Node, request: &str) -> String {
    let mut socket = UnixStream::connect(node.dir.join("run/coracle.sock")).expect("the socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
    socket.write_all(request.as_bytes()).expect("ask");
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).expect("answer"), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    String::from_utf8(said).expect("text").to_lowercase()
}

#[test]
fn ports_of_a_pod_are_forwarded_each_connection_for_itself() {
    let node = Node::up();
    let pod = node.run(&resting("web"));
    let echo = Server::start(&node, &pod, "127.0.0.1:7000", Habit::Echo);
    let six = Server::start(&node, &pod, "[::1]:7001", Habit::Echo);
    let deaf = Server::start(&node, &pod, "127.0.0.1:7003", Habit::Deaf);
    let breaks = Server::start(&node, &pod, "127.0.0.1:7004", Habit::Break);
    let local = free_port();
    let first = format!("{local}:7000");
    let mut forward = Forward::start(&node, &["pod/web", &first, ":7001", ":7002", ":7003", ":7004"], 5);
    assert_eq!(forward.ports[0], local);
    assert_eq!(forward.ask(1, b"by ::1"), b"by ::1");

    // A server that does not read holds up nobody, and a client that waits costs the agent no thread.
    let stuck = forward.connect(3);
    stuck.set_nonblocking(true).expect("non-blocking");
    let mut filled = 0;
    let mut full = 0;
    while full < 50 {
        match (&stuck).write(&[1; 64 * 1024]) {
            Ok(count) => {
                filled += count;
                full = 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                full += 1;
                sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("the stuck connection: {error}"),
        }
        assert!(filled < 256 << 20, "nothing holds it up");
    }
    let before = threads(node.agent_pid());
    let idle: Vec<TcpStream> = (0..50).map(|_| forward.connect(0)).collect();
    std::thread::scope(|scope| {
        for seed in 0..50 {
            let forward = &forward;
            scope.spawn(move || {
                let sent = bytes(seed, 2 << 20);
                assert!(forward.ask(0, &sent) == sent, "connection {seed}");
            });
        }
    });
    eventually("the threads that made sockets end", PATIENCE, || threads(node.agent_pid()) <= before + 2);
    for (number, mut tcp) in idle.into_iter().enumerate() {
        write!(tcp, "idle {number}").expect("send");
        tcp.shutdown(Shutdown::Write).expect("end");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).expect("the answer");
        assert_eq!(answer, format!("idle {number}"));
    }

    // What fails says so, is no end that could be taken for one, and takes no other connection along.
    let broken = forward.connect(2).read(&mut [0; 9]);
    assert!(broken.is_err() || broken.is_ok_and(|count| count == 0));
    eventually("the refusal is told", PATIENCE, || {
        let told = forward.errors.lock().expect("errors").clone();
        told.contains("failed to connect to localhost:7002 in the pod's network") && told.contains("refused")
    });
    let broken = forward.connect(4).read_to_end(&mut Vec::new()).expect_err("half an answer");
    assert_eq!(broken.kind(), ErrorKind::ConnectionReset);
    assert_eq!(forward.ask(0, b"still there"), b"still there");

    drop(stuck);
    signal(forward.child.id().try_into().expect("a pid"), Signal::INT);
    assert_eq!(wait_child(&mut forward.child, PATIENCE).expect("it ends").code(), Some(0));
    drop((echo, six, deaf, breaks));
    node.finish();
}

#[test]
fn what_cannot_be_forwarded_is_refused() {
    let node = Node::up();
    node.run(&resting("web"));
    let refused = |args: &[&str]| node.cli(&[&["port-forward"][..], args].concat());
    assert!(refused(&["none", "80"]).fails(1).contains("not found"));
    assert!(refused(&["web", "0"]).fails(2).contains("ports from 1 to 65535"));
    assert!(refused(&["web", "http"]).fails(1).contains("no port named \"http\""));
    assert!(refused(&["web", "80", "--address", "example.com"]).fails(2).contains("no IP address"));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("address").port();
    let both = format!("{port}:80");
    assert!(refused(&["web", &both, "--address", "127.0.0.1"]).fails(1).contains("cannot listen on 127.0.0.1"));

    let path = format!("/api/v1/namespaces/default/pods/web-{}/portforward", node.name);
    let ask = |headers: &str| head(&node, &format!("POST {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n"));
    assert!(ask("").starts_with("http/1.1 400"));
    let spdy = "connection: upgrade\r\nupgrade: SPDY/3.1\r\n";
    assert!(ask(spdy).starts_with("http/1.1 400"));
    let other = ask(&format!("{spdy}x-stream-protocol-version: v4.channel.k8s.io\r\n"));
    assert!(other.starts_with("http/1.1 403"), "{other}");
    assert!(other.contains("x-accepted-stream-protocol-versions: portforward.k8s.io"), "{other}");
    let good = ask(&format!("{spdy}x-stream-protocol-version: portforward.k8s.io\r\n"));
    assert!(good.starts_with("http/1.1 101"), "{good}");
    assert!(good.contains("upgrade: spdy/3.1") && good.contains("x-stream-protocol-version: portforward.k8s.io"));
    node.finish();
}
