//! What hostile registries do to a node that pulls from them: it says what is wrong, and stays as it was.
//!
//! Every misdeed with its exact consequence is in the unit tests of `image::registry`; here is what it means for a
//! running node: an error, no image, nothing left over, memory that stays small, and no password anywhere.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use coracle::image::{Digest, architecture};
use serde_json::{Value, json};

use super::harness::{Node, PATIENCE, eventually, resting};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const PASSWORD: &str = "hunter2-of-the-node";

/// Answers on one connection; whatever it does wrong is its own.
type Answer = dyn Fn(&str, &str, &mut TcpStream) -> std::io::Result<()> + Send + Sync;

/// A server on loopback: `answer` gets path and head of each request. Ends with this.
struct Server {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(answer: impl Fn(&str, &str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("address").port();
        let (heads, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (all, ended) = (heads.clone(), stop.clone());
        let answer: Arc<Answer> = Arc::new(answer);
        let thread = thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (all, answer) = (all.clone(), answer.clone());
                thread::spawn(move || {
                    let Some((path, head)) = read(&stream) else { return };
                    all.lock().expect("heads").push(head.clone());
                    // The other side may have heard enough.
                    let _ = answer(&path, &head, &mut stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Server { port, heads, stop, thread: Some(thread) }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("heads").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Path and head of a request; `None` for what is none, as a TLS hello.
fn read(stream: &TcpStream) -> Option<(String, String)> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    // One that nobody reads any more ends.
    stream.set_write_timeout(Some(Duration::from_secs(60))).ok()?;
    let mut reader = BufReader::new(stream.take(64 << 10));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some((head.split(' ').nth(1)?.to_owned(), head))
}

fn send(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)
}

/// Never ends of itself.
fn endless(stream: &mut TcpStream, sent: &AtomicUsize) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    loop {
        stream.write_all(b"10000\r\n")?;
        stream.write_all(&[b'['; 0x10000])?;
        stream.write_all(b"\r\n")?;
        sent.fetch_add(0x10000, Ordering::Relaxed);
    }
}

/// An image with one layer of one file.
struct Image {
    layer: Vec<u8>,
    config: String,
    manifest: String,
}

impl Image {
    fn new(machine: &str) -> Image {
        let mut tar = tar::Builder::new(Vec::new());
        let content = vec![b'x'; 300_000];
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "content", &content[..]).expect("tar");
        let layer = tar.into_inner().expect("tar");
        let config = json!({
            "architecture": machine, "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer)] },
        })
        .to_string();
        let mut image = Image { layer, config, manifest: String::new() };
        image.manifest = image.describe(image.layer.len() as u64, 1).to_string();
        image
    }

    /// The manifest: that many layers of that many bytes.
    fn describe(&self, size: u64, layers: usize) -> Value {
        let layer = json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(&self.layer), "size": size,
        });
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(self.config.as_bytes()), "size": self.config.len(),
            },
            "layers": vec![layer; layers],
        })
    }

    fn blob(&self, path: &str) -> Option<&[u8]> {
        [self.config.as_bytes(), &self.layer].into_iter().find(|blob| path.ends_with(Digest::of(blob).as_str()))
    }
}

/// A registry whose tags are misdeeds: `/v2/team/<tag>/…`.
fn misdeeds(sent: Arc<AtomicUsize>) -> Server {
    let image = Image::new(architecture());
    Server::start(move |path, head, stream| {
        let (tag, what) = path.strip_prefix("/v2/team/").and_then(|rest| rest.split_once('/')).unwrap_or_default();
        let manifest = |stream: &mut TcpStream, document: &Value| {
            send(stream, "200 OK", &[("Content-Type", MANIFEST)], document.to_string().as_bytes())
        };
        let honest = |stream: &mut TcpStream| match image.blob(what) {
            Some(blob) => send(stream, "200 OK", &[], blob),
            None => manifest(stream, &image.describe(image.layer.len() as u64, 1)),
        };
        let layer = what.ends_with(Digest::of(&image.layer).as_str());
        match tag {
            "endless-manifest" => endless(stream, &sent),
            "endless-blob" if layer => endless(stream, &sent),
            "endless-error" => {
                stream.write_all(b"HTTP/1.1 404 no\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                loop {
                    stream.write_all(b"1\r\nx\r\n")?;
                }
            }
            "other-blob" if layer => send(stream, "200 OK", &[], &vec![b'y'; image.layer.len()]),
            "short-blob" if layer => send(stream, "200 OK", &[], &image.layer[..1000]),
            "gzip" if layer => send(stream, "200 OK", &[("Content-Encoding", "gzip")], &image.layer),
            "large" if !layer && image.blob(what).is_none() => manifest(stream, &image.describe(1 << 60, 1)),
            "many" => manifest(stream, &image.describe(1, 1000)),
            "page" => send(stream, "200 OK", &[("Content-Type", "text/html")], b"<html>log in</html>"),
            "schema1" => manifest(stream, &json!({ "schemaVersion": 1, "fsLayers": [] })),
            "loop" => send(stream, "307 x", &[("Location", path)], b""),
            "metadata" => send(stream, "307 x", &[("Location", "http://169.254.169.254/latest/meta-data")], b""),
            "file" => send(stream, "307 x", &[("Location", "file:///etc/shadow")], b""),
            "realm" => {
                let realm = "Bearer realm=\"http://tokens.example/token\"";
                send(stream, "401 x", &[("WWW-Authenticate", realm)], b"")
            }
            "greedy" => {
                send(stream, "401 x", &[("WWW-Authenticate", "Basic realm=\"the basics\"")], PASSWORD.as_bytes())
            }
            // Repeats what it was told, with what a terminal would obey.
            "words" => match head.lines().find(|line| line.to_ascii_lowercase().starts_with("authorization")) {
                None => send(stream, "401 x", &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
                Some(line) => {
                    let body = json!({ "errors": [{ "message": format!("\u{1b}[2J\r\n{line} or {PASSWORD}") }] });
                    send(stream, "400 x", &[], body.to_string().as_bytes())
                }
            },
            _ => honest(stream),
        }
    })
}

/// Whether a file below a folder holds the text.
fn holds(folder: &Path, text: &str) -> Option<String> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("kind"));
        let found = if kind.is_dir() {
            holds(&path, text)
        } else {
            let content = if kind.is_file() { fs::read(&path).unwrap_or_default() } else { Vec::new() };
            let found = content.windows(text.len()).any(|window| window == text.as_bytes());
            found.then(|| path.display().to_string())
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Peak memory of a process, in KiB.
fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn a_hostile_registry_gets_an_error_and_nothing_else() {
    let sent = Arc::new(AtomicUsize::new(0));
    let server = misdeeds(sent.clone());
    let mut node = Node::new();
    let auths = json!({ "auths": { server.address(): { "username": "edge", "password": PASSWORD } } });
    node.configure(json!({
        "serializeImagePulls": false, "maxParallelImagePulls": 6, "registryPullQPS": 0,
    }));
    fs::write(node.dir.join("root/config.json"), auths.to_string()).expect("credentials");
    node.start();
    node.wait_for_images();
    let cases = [
        ("endless-manifest", "more than 4194304 bytes in a document"),
        ("endless-blob", "cannot pull"),
        ("endless-error", "not found"),
        ("other-blob", "cannot pull"),
        ("short-blob", "has 1000 bytes, but the manifest says"),
        ("gzip", "is encoded (gzip)"),
        ("large", "cannot pull"),
        ("many", "more than 512 layers in an image"),
        ("page", "a web page instead of a manifest"),
        ("schema1", "schema 1"),
        ("loop", "more than 10 redirects"),
        ("metadata", "redirects to an address of this machine's link"),
        ("file", "redirects to something that is no URL"),
        ("realm", "passwords are not sent without TLS"),
        ("greedy", "tried the credentials of the node"),
        ("words", "Basic *** or ***"),
    ];
    let image = |tag: &str| format!("{}/team/{tag}:1", server.address());
    thread::scope(|scope| {
        for part in cases.chunks(4) {
            let (node, image) = (&node, &image);
            scope.spawn(move || {
                for (tag, why) in part {
                    let said = node.cli(&["image", "pull", &image(tag)]).fails(1);
                    assert!(said.contains(why), "{tag}: {said}");
                    assert!(!said.contains(PASSWORD) && !said.contains('\u{1b}') && said.len() < 8000, "{tag}: {said}");
                }
            });
        }
    });
    // An honest tag of the same registry, and a pod that wants a bad one: its events say why, and no secrets.
    assert!(node.cli(&["image", "pull", &image("honest")]).ok().contains("pulled"));
    let mut pod = resting("victim");
    pod["spec"]["containers"][0]["image"] = json!(image("greedy"));
    node.apply("victim.yaml", pod);
    node.wait_event("the pod is told", |reason, text| {
        reason == "Failed" && text.contains("tried the credentials of the node")
    });
    // Nothing of all this is here, and it cost little.
    node.cli(&["image", "rm", &image("honest")]).ok();
    let list = node.cli(&["image", "ls"]).ok();
    assert!(!list.contains(&server.address()), "{list}");
    let staging = node.dir.join("root/store/staging");
    eventually("staging is empty", PATIENCE, || fs::read_dir(&staging).map_or(0, Iterator::count) == 0);
    let peak = peak(node.agent_pid());
    assert!(peak < 160 << 10, "the agent took {peak} KiB");
    let read = sent.load(Ordering::Relaxed);
    assert!(read < 200 << 20, "{read} bytes of endless answers were taken");
    // The password went to the registry alone, and to no file.
    fs::remove_file(node.dir.join("root/config.json")).expect("credentials");
    let events: Vec<String> = node.events().iter().map(Value::to_string).collect();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("edge:{PASSWORD}"));
    for secret in [PASSWORD, encoded.as_str()] {
        assert!(!events.iter().any(|event| event.contains(secret)), "an event tells it");
        for place in ["root", "run", "log"] {
            assert_eq!(holds(&node.dir.join(place), secret), None);
        }
        let log = fs::read_to_string(node.dir.join("agent.log")).expect("log");
        assert!(!log.contains(secret), "{log}");
    }
    assert!(server.heads().iter().any(|head| head.contains(&encoded)), "nobody was told the password: no test");
    node.remove("victim.yaml");
    node.wait_gone("victim");
    node.finish();
}

#[test]
fn mirrors_that_lie_are_passed_over_and_learn_nothing() {
    let image = Arc::new(Image::new(architecture()));
    let other = Image::new("s390x");
    let answers = image.clone();
    let wrong = Server::start(move |path, _, stream| match path.contains("/manifests/") {
        true => send(stream, "200 OK", &[("Content-Type", MANIFEST)], other.manifest.as_bytes()),
        false => send(stream, "404 x", &[], b""),
    });
    let greedy =
        Server::start(|_, _, stream| send(stream, "401 x", &[("WWW-Authenticate", "Basic realm=\"give\"")], b""));
    // Has the documents, but breaks off every layer.
    let torn = image.clone();
    let weak = Server::start(move |path, _, stream| match torn.blob(path) {
        Some(blob) if blob.len() > 10_000 => {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", blob.len()).as_bytes())?;
            stream.write_all(&blob[..5000])
        }
        Some(blob) => send(stream, "200 OK", &[], blob),
        None => send(stream, "200 OK", &[("Content-Type", MANIFEST)], torn.manifest.as_bytes()),
    });
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("edge:{PASSWORD}"));
    let expected = format!("Basic {encoded}");
    let origin = Server::start(move |path, head, stream| {
        if !head.contains(&expected) {
            return send(stream, "401 x", &[("WWW-Authenticate", "Basic realm=\"x\"")], b"");
        }
        match answers.blob(path) {
            Some(blob) => send(stream, "200 OK", &[], blob),
            None => send(stream, "200 OK", &[("Content-Type", MANIFEST)], answers.manifest.as_bytes()),
        }
    });
    let mut node = Node::new();
    let mirrors: String = [&wrong, &greedy, &weak]
        .map(|mirror| format!("[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n", mirror.address()))
        .concat();
    let conf = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n{mirrors}", origin.address());
    let settings = node.dir.join("share");
    fs::write(settings.join("registries.conf"), conf).expect("registries.conf");
    let auths = json!({ "auths": { origin.address(): { "username": "edge", "password": PASSWORD } } });
    fs::write(node.dir.join("root/config.json"), auths.to_string()).expect("credentials");
    node.configure(json!({}));
    let own = json!({
        "apiVersion": "coracle.dev/v1alpha1", "kind": "CoracleConfiguration",
        "images": { "registriesConf": settings.join("registries.conf") },
    });
    let path = node.dir.join("config.yaml");
    let kubelet = fs::read_to_string(&path).expect("config");
    fs::write(&path, format!("{kubelet}\n---\n{own}\n")).expect("config");
    node.start();
    node.wait_for_images();
    let digest = Digest::of(image.manifest.as_bytes());
    for name in [format!("{}/team/app:1", origin.address()), format!("{}/team/app@{digest}", origin.address())] {
        let said = node.cli(&["image", "pull", &name]).ok();
        assert!(said.contains(digest.as_str()), "{said}");
    }
    assert!(!origin.heads().is_empty());
    for mirror in [&wrong, &greedy, &weak] {
        let heads = mirror.heads();
        assert!(!heads.is_empty(), "it was asked");
        assert!(heads.iter().all(|head| !head.to_ascii_lowercase().contains("authorization")), "{heads:?}");
    }
    node.finish();
}
