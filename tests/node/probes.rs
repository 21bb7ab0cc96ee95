//! Probes: what they ask, when, and what becomes of their answers. The servers are in the test's own process: they see
//! every request.

use crate::harness::{Node, PATIENCE, PodView, REST, eventually, pod, secs};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A request that came, and how it was answered.
struct Seen {
    at: Instant,
    path: String,
    agent: String,
    /// What the `X-Test` header said.
    header: String,
    status: u16,
}

#[derive(Default)]
struct State {
    /// What a path answers; 200 unless said.
    answers: BTreeMap<String, u16>,
    seen: Vec<Seen>,
}

/// Servers of HTTP, HTTPS and gRPC on loopback, until the test ends.
struct World {
    http: u16,
    https: u16,
    grpc: u16,
    state: Arc<Mutex<State>>,
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

impl World {
    fn new() -> World {
        let state = Arc::new(Mutex::new(State::default()));
        let (sender, receiver) = std::sync::mpsc::channel();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async move {
                let mut ports = Vec::new();
                for kind in ["http", "https", "grpc"] {
                    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
                    ports.push(listener.local_addr().expect("address").port());
                    tokio::spawn(serve(listener, kind, Arc::clone(&shared)));
                }
                sender.send(ports).expect("ports");
                std::future::pending::<()>().await;
            });
        });
        let ports = receiver.recv_timeout(secs(10)).expect("the servers start");
        World { http: ports[0], https: ports[1], grpc: ports[2], state }
    }

    fn answer(&self, path: &str, status: u16) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), status);
    }

    /// When a path was asked for, and how it was answered.
    fn times(&self, path: &str) -> Vec<(Instant, u16)> {
        self.state.lock().unwrap().seen.iter().filter(|s| s.path == path).map(|s| (s.at, s.status)).collect()
    }

    fn count(&self, path: &str, status: u16) -> usize {
        self.times(path).iter().filter(|(_, s)| *s == status).count()
    }

    fn get(&self, path: &str) -> Value {
        json!({ "host": "127.0.0.1", "port": self.http, "path": path })
    }
}

async fn serve(listener: tokio::net::TcpListener, kind: &'static str, state: Arc<Mutex<State>>) {
    let acceptor = tls();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (state, acceptor) = (Arc::clone(&state), acceptor.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&state)));
            let http1 = hyper::server::conn::http1::Builder::new();
            // Errors are the probes' to notice.
            match kind {
                "http" => drop(http1.serve_connection(TokioIo::new(stream), service).await),
                "https" => {
                    if let Ok(session) = acceptor.accept(stream).await {
                        drop(http1.serve_connection(TokioIo::new(session), service).await);
                    }
                }
                _ => {
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(http2.serve_connection(TokioIo::new(stream), service).await);
                }
            }
        });
    }
}

fn tls() -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("../../src/probe/testdata/cert.pem"));
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../../src/probe/testdata/key.pem"));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.expect("certificate")], key.expect("key"))
        .expect("server");
    TlsAcceptor::from(Arc::new(config))
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let text = |name: &str| head.headers.get(name).map(|a| String::from_utf8_lossy(a.as_bytes()).into_owned());
    let (agent, header) = (text("user-agent"), text("x-test").unwrap_or_default());
    let message = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let status = {
        let mut state = state.lock().unwrap();
        let status = state.answers.get(&path).copied().unwrap_or(200);
        state.seen.push(Seen {
            at: Instant::now(),
            path: path.clone(),
            agent: agent.unwrap_or_default(),
            header,
            status,
        });
        status
    };
    if path == "/grpc.health.v1.Health/Check" {
        // Only of the service that the manifest names; 2 is NOT_SERVING.
        let serving = if status == 200 && message.ends_with(b"db") { 1 } else { 2 };
        let mut trailers = hyper::HeaderMap::new();
        trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
        let frames = [
            Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]))),
            Ok(Frame::trailers(trailers)),
        ];
        let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)));
        return Ok(Response::builder().header("content-type", "application/grpc").body(body).expect("response"));
    }
    let response = Response::builder().status(status).header("location", "http://elsewhere.invalid/");
    Ok(response.body(Full::new(Bytes::from_static(b"moved")).boxed()).expect("response"))
}

fn container(name: &str, script: &str, probes: Value) -> Value {
    let mut container = pod("x", script)["spec"]["containers"][0].clone();
    container["name"] = json!(name);
    for (field, probe) in probes.as_object().expect("probes") {
        container[field] = probe.clone();
    }
    container
}

/// What the agent wrote down of the probes of a container's first run.
fn health(node: &Node, pod: &PodView, container: &str) -> Value {
    let path = node.dir.join("run/pods").join(pod.uid()).join("progress").join(format!("{container}-0.json"));
    let text = fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str::<Value>(&text).unwrap_or_default()["health"].take()
}

fn unhealthy(node: &Node, message: &str) -> u64 {
    let events = node.events();
    let event = events.iter().find(|e| e["reason"] == "Unhealthy" && e["message"] == message);
    event.and_then(|e| e["count"].as_u64()).unwrap_or(0)
}

#[test]
fn probes_ask_in_time_and_count_as_the_manifest_says() {
    let (node, world) = (Node::up(), World::new());
    world.answer("/startup", 500);
    world.answer("/grpc.health.v1.Health/Check", 500);
    world.answer("/away", 302);
    let mut manifest = pod("web", REST);
    manifest["spec"]["hostNetwork"] = json!(true);
    let closed = crate::harness::free_port();
    let secure = json!({ "host": "127.0.0.1", "port": world.https, "path": "/alive", "scheme": "HTTPS" });
    let mut late = world.get("/late");
    late["httpHeaders"] = json!([{ "name": "X-Test", "value": "probe" }]);
    manifest["spec"]["containers"] = json!([
        container(
            "gated",
            REST,
            json!({
                "startupProbe": { "httpGet": world.get("/startup"), "periodSeconds": 1, "failureThreshold": 600 },
                "readinessProbe": {
                    "httpGet": world.get("/ready"), "periodSeconds": 1, "successThreshold": 2, "failureThreshold": 2,
                },
                "livenessProbe": { "httpGet": secure, "periodSeconds": 1, "failureThreshold": 3 },
            }),
        ),
        container(
            "late",
            &format!("wget -qO- http://127.0.0.1:{}/begin; {REST}", world.http),
            json!({
                "readinessProbe": { "httpGet": late, "periodSeconds": 2, "initialDelaySeconds": 3 },
                "livenessProbe": { "httpGet": world.get("/away") },
            }),
        ),
        container(
            "kinds",
            REST,
            json!({
                "readinessProbe": { "grpc": { "port": world.grpc, "service": "db" }, "periodSeconds": 1 },
                "livenessProbe": { "tcpSocket": { "host": "127.0.0.2", "port": closed }, "failureThreshold": 1000 },
                "env": [{ "name": "WHO", "value": "nobody" }],
            }),
        ),
        container(
            "commands",
            REST,
            json!({
                "readinessProbe": {
                    "exec": { "command": ["sh", "-c", "echo $(WHO) is here; test -e /tmp/ready"] }, "periodSeconds": 1,
                },
                "livenessProbe": {
                    "exec": { "command": ["sleep", "77"] }, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 1000,
                },
                "env": [{ "name": "WHO", "value": "nobody" }],
            }),
        ),
        container("broken", REST, json!({ "readinessProbe": { "exec": { "command": ["/no/such"] } } })),
    ]);
    let web = node.run(&manifest);

    // Until it has started a container is asked nothing else, once a period.
    eventually("the startup probe fails", PATIENCE, || world.count("/startup", 500) >= 4);
    let times = world.times("/startup");
    for pair in times.windows(2) {
        let gap = pair[1].0 - pair[0].0;
        assert!(gap > Duration::from_millis(850) && gap < Duration::from_millis(1900), "{gap:?}");
    }
    assert!(world.times("/ready").is_empty() && world.times("/alive").is_empty(), "gated");
    assert_eq!(health(&node, &web, "gated"), json!({ "started": false, "ready": false, "unhealthy": null }));
    node.wait_event("the startup probe", |reason, message| {
        reason == "Unhealthy" && message == "Startup probe failed: HTTP probe failed with statuscode: 500"
    });
    world.answer("/startup", 200);
    eventually("it has started", PATIENCE, || health(&node, &web, "gated")["started"] == true);
    eventually("it is ready", PATIENCE, || health(&node, &web, "gated")["ready"] == true);
    assert!(world.count("/ready", 200) >= 2, "two successes make it ready");
    assert_eq!(world.count("/startup", 200), 1, "the startup probe is over");

    // One failure is none; two take it out of service.
    let before = world.count("/ready", 200);
    world.answer("/ready", 503);
    eventually("a failure", PATIENCE, || world.count("/ready", 503) == 1);
    world.answer("/ready", 200);
    eventually("a success after it", PATIENCE, || world.count("/ready", 200) > before);
    assert_eq!(health(&node, &web, "gated")["ready"], true, "{:?}", world.times("/ready"));
    world.answer("/ready", 503);
    eventually("it is not ready", PATIENCE, || health(&node, &web, "gated")["ready"] == false);
    assert_eq!(world.count("/ready", 503), 3);
    world.answer("/ready", 200);

    // Three failures are the end of this run, and of its liveness probe.
    let failed = "Liveness probe failed: HTTP probe failed with statuscode: 500";
    world.answer("/alive", 500);
    eventually("three failures", PATIENCE, || world.count("/alive", 500) == 3);
    world.answer("/alive", 200);
    eventually("three events", PATIENCE, || unhealthy(&node, failed) == 3);
    sleep(secs(2));
    assert_eq!(world.count("/alive", 500), 3);
    assert_eq!(unhealthy(&node, failed), 3);

    // The delay counts from the start, the period from the first probe.
    eventually("late probes", PATIENCE, || world.times("/late").len() >= 3);
    let (start, late) = (world.times("/begin")[0].0, world.times("/late"));
    let delay = late[0].0 - start;
    assert!(delay > Duration::from_millis(2500) && delay < Duration::from_millis(5000), "{delay:?}");
    let gap = late[2].0 - late[1].0;
    assert!(gap > Duration::from_millis(1850) && gap < Duration::from_millis(3000), "{gap:?}");
    node.wait_event("the redirect", |reason, message| {
        reason == "ProbeWarning"
            && message == "Liveness probe warning: Probe terminated redirects, Response body: moved"
    });

    // The other handlers, in the kubelet's words.
    let refused = format!("Liveness probe failed: dial tcp 127.0.0.2:{closed}: connect: connection refused");
    for text in [
        "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")",
        "Readiness probe failed: nobody is here\n",
        "Liveness probe failed: command timed out: \"sleep 77\" timed out after 2s",
        &refused,
    ] {
        node.wait_event(text, |reason, message| reason == "Unhealthy" && message == text);
    }
    let errored = node.wait_event("a command that is not there", |reason, message| {
        reason == "Unhealthy" && message.starts_with("Readiness probe errored and resulted in unknown state: ")
    });
    assert!(errored["message"].as_str().unwrap_or_default().contains("/no/such"), "{errored}");
    assert_eq!(errored["involvedObject"]["fieldPath"], "spec.containers{broken}");
    world.answer("/grpc.health.v1.Health/Check", 200);
    node.cli(&["exec", "web", "-c", "commands", "--", "touch", "/tmp/ready"]).ok();
    for container in ["kinds", "commands", "late"] {
        eventually(&format!("{container} is ready"), PATIENCE, || health(&node, &web, container)["ready"] == true);
    }
    assert_eq!(health(&node, &web, "broken")["ready"], false, "a probe that cannot be made says nothing");
    let agents: Vec<String> = {
        let state = world.state.lock().unwrap();
        state.seen.iter().filter(|s| s.path != "/begin").map(|s| s.agent.clone()).collect()
    };
    assert!(agents.iter().all(|agent| agent == "kube-probe/1.36"), "{agents:?}");
    let headers: Vec<(String, String)> =
        world.state.lock().unwrap().seen.iter().map(|s| (s.path.clone(), s.header.clone())).collect();
    assert!(headers.iter().all(|(path, said)| (path == "/late") == (said == "probe")), "{headers:?}");

    // What was timed out is killed: at most the one that is being asked now is there.
    let sleepers = || {
        let command = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        node.container_pids().iter().filter(|pid| command(pid) == "sleep\x0077\0").count()
    };
    assert!(sleepers() <= 2, "{} probes of a container at a time", sleepers());

    // Nothing is asked any more of what is gone.
    node.remove("web.yaml");
    node.wait_gone("web");
    let asked = world.state.lock().unwrap().seen.len();
    sleep(secs(2));
    assert_eq!(world.state.lock().unwrap().seen.len(), asked);
    node.finish();
}

#[test]
fn health_outlives_the_agent() {
    let mut node = Node::up();
    let script = format!("mkdir /tmp/www; echo hi > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; {REST}");
    let mut manifest = pod("web", &script);
    let main = &mut manifest["spec"]["containers"][0];
    main["ports"] = json!([{ "name": "web", "containerPort": 8080 }]);
    main["startupProbe"] = json!({
        "exec": { "command": ["sh", "-c", "echo x >> /tmp/startups"] }, "periodSeconds": 1,
    });
    // The pod's own address, and a port by its name.
    main["readinessProbe"] = json!({
        "httpGet": { "port": "web", "path": "/index.html" }, "periodSeconds": 1, "failureThreshold": 2,
    });
    main["livenessProbe"] = json!({ "tcpSocket": { "port": "web" }, "periodSeconds": 1 });
    let web = node.run(&manifest);
    let good = json!({ "started": true, "ready": true, "unhealthy": null });
    eventually("it is ready", PATIENCE, || health(&node, &web, "main") == good);
    node.kill9();
    assert_eq!(health(&node, &web, "main"), good);
    node.start();
    let end = Instant::now() + secs(3);
    while Instant::now() < end {
        assert_eq!(health(&node, &web, "main"), good, "a new agent takes nothing out of service");
        sleep(Duration::from_millis(50));
    }
    assert_eq!(node.sh("web", "cat /tmp/startups"), "x", "what has started does not start again");
    // The new agent asks, too.
    node.sh("web", "rm /tmp/www/index.html");
    eventually("it is not ready", PATIENCE, || health(&node, &web, "main")["ready"] == false);
    node.wait_event("404", |_, message| message == "Readiness probe failed: HTTP probe failed with statuscode: 404");
    assert_eq!(health(&node, &web, "main")["unhealthy"], Value::Null);
    node.finish();
}

#[test]
fn the_status_follows_the_probes_and_a_dead_container_starts_anew() {
    let (node, world) = (Node::up(), World::new());
    world.answer("/startup", 500);
    let probe = |path: &str, threshold: u32| json!({ "httpGet": world.get(path), "periodSeconds": 1, "failureThreshold": threshold });
    // It does not end when asked; the probe's own grace of 2 s counts, not the pod's.
    let mut manifest = pod("web", "trap 'test ! -e /tmp/go || exit 0' TERM; while :; do sleep 1; done");
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(60);
    let main = &mut manifest["spec"]["containers"][0];
    main["startupProbe"] = probe("/startup", 600);
    main["readinessProbe"] = probe("/ready", 1);
    main["livenessProbe"] = probe("/alive", 2);
    main["livenessProbe"]["terminationGracePeriodSeconds"] = json!(2);
    let web = node.run(&manifest);
    let says = |what: &str, started: bool, ready: bool| {
        node.wait_pod("web", what, |pod| {
            let main = pod.container("main");
            main["started"] == started
                && main["ready"] == ready
                && pod.condition("Ready") == if ready { "True" } else { "False" }
                && pod.condition("ContainersReady") == if ready { "True" } else { "False" }
        })
    };
    assert_eq!(web.container("main")["ready"], false);
    says("it has not started", false, false);
    world.answer("/startup", 200);
    says("it has started, and is ready", true, true);
    world.answer("/ready", 500);
    let out_of_service = says("it is not ready", true, false);
    assert!(out_of_service.running("main"), "readiness kills nothing");
    assert_eq!(out_of_service.restarts("main"), 0);
    world.answer("/ready", 200);
    says("it is ready again", true, true);

    world.answer("/alive", 500);
    let at = Instant::now();
    node.wait_event("the sentence", |reason, message| {
        reason == "Killing" && message == "Container main failed liveness probe, will be restarted"
    });
    world.answer("/alive", 200);
    let anew = node.wait_pod("web", "a second run", |pod| pod.restarts("main") == 1 && pod.running("main"));
    let took = at.elapsed();
    assert!(took > secs(2) && took < secs(15), "the probe's grace counts: {took:?}");
    assert_eq!(anew.last("main")["exitCode"], 137, "{}", anew.last("main"));
    says("the second run is ready", true, true);
    assert_eq!(world.count("/startup", 200), 2, "each run has to start");
    assert_eq!(world.count("/alive", 500), 2);

    // A startup probe that fails for good ends its run, too.
    world.answer("/never", 500);
    let mut slow = pod("slow", REST);
    slow["spec"]["containers"][0]["startupProbe"] = probe("/never", 2);
    node.apply("slow.yaml", slow);
    node.wait_event("the sentence", |reason, message| {
        reason == "Killing" && message == "Container main failed startup probe, will be restarted"
    });
    node.wait_pod("slow", "restarted", |pod| pod.restarts("main") >= 1);
    node.sh("web", "touch /tmp/go");
    node.finish();
}
