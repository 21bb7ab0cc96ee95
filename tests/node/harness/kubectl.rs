//! kubectl as it is published, against any API.

use super::{Network, Out, Terminal, output, secs, wait_child};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// What `CORACLE_KUBECTL` names, or what `cargo xtask kubectl` has fetched.
pub fn kubectl() -> PathBuf {
    let named = std::env::var_os("CORACLE_KUBECTL").map(PathBuf::from);
    let path = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kubectl/kubectl"));
    assert!(path.is_file(), "{} is missing: cargo xtask kubectl", path.display());
    path
}

/// kubectl, whom it talks to, from which machine, and how it streams.
#[derive(Clone)]
pub struct Kubectl<'a> {
    config: PathBuf,
    cache: PathBuf,
    network: Option<&'a Network>,
    namespace: String,
    /// Whether it uses WebSockets, as it does by itself; else SPDY.
    websockets: bool,
}

impl<'a> Kubectl<'a> {
    /// With a kubeconfig, a folder for what it remembers, and the network to start it in.
    pub fn new(config: &Path, cache: &Path, network: Option<&'a Network>) -> Kubectl<'a> {
        let (config, cache) = (config.to_owned(), cache.to_owned());
        Kubectl { config, cache, network, namespace: "default".to_owned(), websockets: true }
    }

    /// The same in another namespace.
    pub fn namespace(mut self, name: &str) -> Kubectl<'a> {
        name.clone_into(&mut self.namespace);
        self
    }

    /// The same by SPDY, as it was before 1.31.
    pub fn by_spdy(&self) -> Kubectl<'a> {
        Kubectl { websockets: false, ..self.clone() }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(kubectl());
        command.arg("--kubeconfig").arg(&self.config).arg("--cache-dir").arg(&self.cache);
        command.args(["--namespace", &self.namespace]).args(args);
        for name in ["KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"] {
            command.env(name, self.websockets.to_string());
        }
        // Files of whoever runs the tests are none of its business.
        command.env("HOME", &self.cache).env_remove("KUBECONFIG");
        command
    }

    /// Does something on kubectl's machine.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.network {
            Some(network) => network.inside(work),
            None => work(),
        }
    }

    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Out {
        self.run_with(args, b"")
    }

    #[track_caller]
    pub fn run_with(&self, args: &[&str], stdin: &[u8]) -> Out {
        let mut command = self.command(args);
        self.inside(|| output(&mut command, stdin, secs(60)))
    }

    /// An object as kubectl gets it.
    #[track_caller]
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let text = self.run(&["get", kind, name, "-o", "json"]).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{kind} {name}: {e}\n{text}"))
    }

    #[track_caller]
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        let name = args.join(" ");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.inside(|| command.spawn()).unwrap_or_else(|e| panic!("kubectl {name}: {e}"));
        Running::new(name, child)
    }

    /// In a terminal of 80 columns and 24 rows.
    #[track_caller]
    pub fn terminal(&self, args: &[&str]) -> Terminal {
        Terminal::start(&self.command(args), 80, 24, |command| self.inside(|| command.spawn()))
    }

    /// To a port of kubectl's own.
    pub fn connect(&self, port: u16) -> std::io::Result<TcpStream> {
        self.inside(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)))
    }
}

/// A kubectl that runs, and ends with this.
pub struct Running {
    name: String,
    child: Child,
    pub stdin: Option<ChildStdin>,
    /// Output and error output, as they came.
    seen: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    fn new(name: String, mut child: Child) -> Running {
        let seen = Arc::new(Mutex::new(String::new()));
        let read = |mut stream: Box<dyn Read + Send>| {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..n]);
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                }
            })
        };
        let stdout = read(Box::new(child.stdout.take().expect("piped")));
        let stderr = read(Box::new(child.stderr.take().expect("piped")));
        Running { name, stdin: child.stdin.take(), child, seen, readers: vec![stdout, stderr] }
    }

    pub fn seen(&self) -> String {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it said this; all that it said.
    #[track_caller]
    pub fn until(&self, what: &str) -> String {
        let end = Instant::now() + secs(30);
        loop {
            let seen = self.seen();
            if seen.contains(what) {
                return seen;
            }
            assert!(Instant::now() < end, "kubectl {}: {what:?} was not seen: {seen:?}", self.name);
            sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        let pipe = self.stdin.as_mut().expect("an input that is open");
        pipe.write_all(text.as_bytes()).unwrap_or_else(|e| panic!("kubectl {}: {e}", self.name));
    }

    /// Exit code and words of one that ends by itself.
    #[track_caller]
    pub fn ends(mut self) -> (Option<i32>, String) {
        drop(self.stdin.take());
        let Some(status) = wait_child(&mut self.child, secs(60)) else {
            panic!("kubectl {} did not end: {:?}", self.name, self.seen())
        };
        self.readers.drain(..).for_each(|reader| reader.join().expect("reader"));
        (status.code(), self.seen())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
