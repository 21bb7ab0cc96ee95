//! The API over a real socket, against a node that is plain data.

use super::*;
use crate::manifest;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

struct Fake {
    dir: PathBuf,
    store: Arc<ImageStore>,
    pods: Mutex<Vec<Arc<Pod>>>,
    revision: watch::Sender<u64>,
    lists: Lists,
    local_api: Arc<LocalApi>,
}

impl Node for Fake {
    fn name(&self) -> &str {
        "n1"
    }
    fn cluster(&self) -> Option<crate::cluster::Handle> {
        None
    }
    fn started(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }
    fn quiet_for(&self) -> Duration {
        Duration::ZERO
    }
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap().clone()
    }
    fn node(&self) -> ApiNode {
        let value = json!({"metadata": {"name": "n1"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "message": "fine"}]}});
        serde_json::from_value(value).unwrap()
    }
    fn events(&self) -> Vec<Event> {
        let value = json!({"metadata": {"name": "e", "namespace": "default"}, "type": "Warning", "reason": "BackOff",
            "message": "m", "involvedObject": {"kind": "Pod", "name": "web-n1"}});
        vec![serde_json::from_value(value).unwrap()]
    }
    fn objects(&self) -> Arc<Objects> {
        let meta = json!({"name": "o", "namespace": "default"});
        let map = serde_json::from_value(json!({"metadata": meta, "data": {"k": "v"}})).unwrap();
        let secret = serde_json::from_value(json!({"metadata": meta, "data": {"k": "c2VjcmV0"}})).unwrap();
        let all = [manifest::Object::ConfigMap(Arc::new(map)), manifest::Object::Secret(Arc::new(secret))];
        Arc::new(all.into_iter().collect())
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
    fn images(&self) -> Arc<ImageStore> {
        self.store.clone()
    }
    fn collector(&self) -> Arc<Collector> {
        let policy = crate::image::gc::Policy {
            high_percent: 85,
            low_percent: 80,
            minimum_age: Duration::ZERO,
            maximum_age: Duration::ZERO,
        };
        Collector::new(self.store.clone(), policy, || Ok(crate::image::Users::new()), |_| {})
    }
    fn pull(&self, image: &str) -> mpsc::UnboundedReceiver<types::PullLine> {
        let (lines, receiver) = mpsc::unbounded_channel();
        let retry = crate::image::registry::Progress::Retry { message: image.to_owned() };
        let end = types::PullEnd::Failed { reason: "ErrImagePull".into(), message: "not found".into(), hint: None };
        lines.send(types::PullLine::Progress(retry)).unwrap();
        lines.send(types::PullLine::End(end)).unwrap();
        receiver
    }
    fn manifest_dir(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    fn verifier(&self) -> Option<Arc<crate::source::Verifier>> {
        None
    }
    fn log_file(&self, _: &str, _: &str, container: &str, previous: bool) -> Result<PathBuf, String> {
        if previous { Err("no previous".to_owned()) } else { Ok(self.dir.join(format!("{container}.log"))) }
    }
    fn exec_target(&self, _: &str, _: &str, container: &str) -> Result<Target, String> {
        Err(format!("container not found ({container:?})"))
    }
    fn network(&self, _: &str, _: &str) -> Result<Option<PathBuf>, String> {
        Ok(None)
    }
    fn stats(&self, _: Duration) -> BoxFuture<'static, Arc<crate::stats::Snapshot>> {
        Box::pin(std::future::ready(Arc::default()))
    }
    fn config(&self) -> Arc<crate::config::Config> {
        Arc::default()
    }
    fn present(&self, _: &str) -> Option<crate::pod::Present> {
        None
    }
    fn problems(&self) -> [Option<String>; 2] {
        [None, None]
    }
    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }
    fn rescan(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }
    fn history(&self, _: &str, _: &str) -> Option<History> {
        None
    }
    fn standing(&self, _: &str, _: &str) -> Option<Standing> {
        None
    }
    fn roll_back(&self, _: &str, name: &str, _: Option<u64>) -> BoxFuture<'static, Result<(Key, Rolled), Refusal>> {
        let name = name.to_owned();
        Box::pin(async move { Err(Refusal::Unknown(name)) })
    }
    fn lists(&self) -> &Lists {
        &self.lists
    }
    fn local_api(&self) -> &Arc<LocalApi> {
        &self.local_api
    }
    fn images_changed(&self) {
        self.rescan();
    }
}

#[test]
fn a_pull_is_told_line_by_line() {
    with_node(async |_, socket| {
        let (code, body) = ask(socket, Method::POST, "/coracle/v1/images/pull?name=a%2Fb", b"").await;
        assert_eq!(code, StatusCode::OK);
        let retry = "{\"kind\":\"retry\",\"message\":\"a/b\"}\n";
        let failed = "{\"kind\":\"failed\",\"reason\":\"ErrImagePull\",\"message\":\"not found\"}\n";
        assert_eq!(body, format!("{retry}{failed}"));
        assert_eq!(ask(socket, Method::POST, "/coracle/v1/images/pull", b"").await.0, StatusCode::BAD_REQUEST);
        assert_eq!(
            ask(socket, Method::GET, "/coracle/v1/images/pull?name=a", b"").await.0,
            StatusCode::METHOD_NOT_ALLOWED
        );
    });
}

fn pod(name: &str, phase: &str) -> Arc<Pod> {
    let value = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c"}]}, "status": {"phase": phase}});
    Arc::new(serde_json::from_value(value).unwrap())
}

/// Runs a test with a served node in a folder of its own.
fn with_node(test: impl AsyncFnOnce(Arc<Fake>, &Path)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let id = format!("{}-{:?}", std::process::id(), std::thread::current().id());
    let dir = std::env::temp_dir().join(format!("coracle-server-{}", id.replace(['(', ')'], "")));
    std::fs::create_dir_all(&dir).unwrap();
    let store = Arc::new(ImageStore::open(&dir.join("store")).unwrap());
    let pods = Mutex::new(vec![pod("web-n1", "Running")]);
    let node = Arc::new(Fake {
        dir: dir.clone(),
        store,
        pods,
        revision: watch::Sender::new(7),
        lists: Lists::default(),
        local_api: Arc::new(LocalApi::new(&dir, crate::config::server::LocalApi { port: 0, read_only: false })),
    });
    let socket = dir.join("coracle.sock");
    runtime.block_on(async {
        let (down, shutdown) = watch::channel(false);
        let listener = Listener::bind(&socket).unwrap();
        let served = tokio::spawn(listener.serve(node.clone(), shutdown));
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, test(node, &socket)).await.expect("the test ends in time");
        down.send(true).unwrap();
        served.await.unwrap();
    });
    assert!(!socket.exists(), "the socket is removed");
    std::fs::remove_dir_all(&dir).unwrap();
}

async fn ask(socket: &Path, method: Method, path: &str, body: &[u8]) -> (StatusCode, String) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "x");
    let answer = sender.send_request(request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()).await.unwrap();
    let status = answer.status();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn get(socket: &Path, path: &str) -> (u16, Value) {
    let (status, text) = ask(socket, Method::GET, path, b"").await;
    (status.as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[test]
fn objects_are_listed_and_got() {
    with_node(async |_, socket| {
        let (code, list) = get(socket, "/api/v1/pods").await;
        assert_eq!((code, &list["kind"], &list["metadata"]["resourceVersion"]), (200, &json!("PodList"), &json!("7")));
        assert_eq!(list["items"][0]["metadata"]["name"], "web-n1");
        assert_eq!(get(socket, "/api/v1/namespaces/other/pods").await.1["items"], json!([]));
        for name in ["web", "web-n1"] {
            assert_eq!(get(socket, &format!("/api/v1/namespaces/default/pods/{name}")).await.1["kind"], "Pod");
        }
        let (code, missing) = get(socket, "/api/v1/namespaces/default/pods/none").await;
        assert_eq!((code, &missing["reason"], &missing["kind"]), (404, &json!("NotFound"), &json!("Status")));
        assert_eq!(get(socket, "/api/v1/nodes/n1").await.1["metadata"]["name"], "n1");
        let events = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dweb-n1";
        assert_eq!(get(socket, events).await.1["items"].as_array().unwrap().len(), 1);
        assert_eq!(get(socket, "/healthz").await.1, "ok");
        assert_eq!(get(socket, "/readyz").await.1, "ok");
        assert_eq!(get(socket, "/coracle/v1/status").await.1["pods"]["Running"], 1);
    });
}

#[test]
fn a_watch_tells_what_changed() {
    with_node(async |node, socket| {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(b"GET /api/v1/pods?watch=1 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut seen = String::new();
        let mut wait_for = async |stream: &mut UnixStream, text: &str| {
            let mut buffer = [0; 4096];
            while !seen.contains(text) {
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0, "the watch ended: {seen}");
                seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        };
        wait_for(&mut stream, "\"type\":\"ADDED\"").await;
        *node.pods.lock().unwrap() = vec![pod("web-n1", "Failed")];
        node.rescan();
        wait_for(&mut stream, "\"type\":\"MODIFIED\"").await;
        node.pods.lock().unwrap().clear();
        node.rescan();
        wait_for(&mut stream, "\"type\":\"DELETED\"").await;
        assert_eq!(get(socket, "/api/v1/pods?watch=1&resourceVersion=3").await.0, 410);
    });
}

#[test]
fn logs_are_read_and_followed_to_the_pod_s_end() {
    with_node(async |node, socket| {
        let log = node.dir.join("c.log");
        std::fs::write(&log, "2026-11-21T10:00:00Z stdout F one\n").unwrap();
        let path = "/api/v1/namespaces/default/pods/web/log";
        assert_eq!(get(socket, path).await, (200, json!("one\n")));
        assert_eq!(get(socket, &format!("{path}?previous=true")).await.1["message"], "no previous");
        assert_eq!(get(socket, &format!("{path}?container=x")).await.0, 400);
        let target = format!("{path}?follow=true");
        let follow = ask(socket, Method::GET, &target, b"");
        let change = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            std::fs::rename(&log, node.dir.join("old")).unwrap();
            std::fs::write(&log, "2026-11-21T10:00:01Z stdout F two\n").unwrap();
            *node.pods.lock().unwrap() = vec![pod("web-n1", "Succeeded")];
        };
        let ((_, text), ()) = tokio::join!(follow, change);
        assert_eq!(text, "one\ntwo\n");
    });
}

#[test]
fn apply_and_delete_change_files() {
    with_node(async |node, socket| {
        let manifest = b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: x}]}\n";
        let dir = node.manifest_dir();
        for action in ["created", "unchanged"] {
            let (status, text) = ask(socket, Method::POST, "/coracle/v1/apply", manifest).await;
            assert_eq!(status, 200, "{text}");
            let applied: types::Applied = serde_json::from_str(&text).unwrap();
            assert_eq!(json!(applied.action), action);
            assert_eq!(applied.pods, [types::PodName { namespace: "default".into(), name: "a-n1".into() }]);
        }
        assert_eq!(std::fs::read(dir.join("default_a.yaml")).unwrap(), manifest);
        let (status, text) = ask(socket, Method::POST, "/coracle/v1/apply?file=other", manifest).await;
        assert_eq!(status, 409, "{text}");
        let (status, text) =
            ask(socket, Method::POST, "/coracle/v1/apply", b"apiVersion: v1\nkind: Pod\nspec: 3\n").await;
        assert_eq!(status, 422, "{text}");
        assert!(text.contains("causes"), "{text}");
        let (status, _) = ask(socket, Method::POST, "/coracle/v1/delete?pod=default/none", b"").await;
        assert_eq!(status, 404);
        let (status, _) = ask(socket, Method::POST, "/coracle/v1/delete?pod=default/a-n1", b"").await;
        assert_eq!(status, 200);
        assert!(!dir.join("default_a.yaml").exists());
        let (status, _) = ask(socket, Method::POST, "/coracle/v1/apply?file=../x", manifest).await;
        assert_eq!(status, 400);
    });
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    with_node(async |_, socket| {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let head = format!("POST /coracle/v1/apply HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 11 << 20);
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413");
    });
}

#[test]
fn exec_is_refused_before_the_upgrade_when_it_cannot_work() {
    with_node(async |_, socket| {
        let path = "/api/v1/namespaces/default/pods/web/exec";
        let query = "command=sh&stdout=1";
        assert_eq!(get(socket, &format!("{path}?{query}")).await.1["message"], "container not found (\"c\")");
        assert_eq!(get(socket, &format!("{path}?command=sh")).await.0, 400);
        assert_eq!(get(socket, &format!("{path}?stdout=1")).await.0, 400);
    });
}

#[test]
fn a_live_socket_is_not_taken_and_a_dead_one_is() {
    with_node(async |_, socket| {
        assert!(matches!(Listener::bind(socket), Err(Error::InUse(_))));
        let stale = socket.with_file_name("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let listener = Listener::bind(&stale).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&stale).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
    });
}

#[test]
fn nonsense_on_the_socket_hurts_nobody() {
    with_node(async |_, socket| {
        for nonsense in [
            &b"\0\xff\xfe"[..],
            b"GET\r\n\r\n",
            b"GET /%ff HTTP/1.1\r\nhost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            stream.write_all(nonsense).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        }
        assert_eq!(get(socket, "/healthz").await.1, "ok");
    });
}

#[test]
fn one_connection_too_many_is_told_so() {
    with_node(async |_, socket| {
        let mut held = Vec::new();
        for _ in 0..256 {
            held.push(UnixStream::connect(socket).await.unwrap());
            tokio::task::yield_now().await;
        }
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        drop(held);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(get(socket, "/healthz").await.1, "ok");
    });
}

#[test]
fn loopback_serves_health_and_nothing_else() {
    with_node(async |node, _| {
        let listener = bind_healthz([127, 0, 0, 1].into(), 0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_down, shutdown) = watch::channel(false);
        let served = tokio::spawn(serve_healthz(node, listener, shutdown));
        for (path, code) in
            [("/healthz", "200"), ("/metrics", "200"), ("/api/v1/pods", "404"), ("/coracle/v1/status", "404")]
        {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{path}: {answer}");
        }
        served.abort();
    });
}
