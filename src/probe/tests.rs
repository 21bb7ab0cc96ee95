//! The handlers against real servers on loopback.

use super::*;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{
    ContainerPort, EnvVar, EnvVarSource, ExecAction, GRPCAction, HTTPGetAction, HTTPHeader, LifecycleHandler,
    SleepAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time") })
}

fn target() -> Target {
    Target {
        container: Arc::new(Container { name: "main".into(), ..Container::default() }),
        ips: vec!["127.0.0.1".parse().unwrap()],
        exec: shim::exec::Target { state_root: "/nonexistent".into(), id: "x".into(), bundle: "/nonexistent".into() },
    }
}

type Requests = Arc<Mutex<Vec<String>>>;

/// A server that answers each request by its path, and closes.
async fn serve(tls: Option<TlsAcceptor>, answer: fn(path: &str, port: u16) -> String) -> (u16, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Requests::default();
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (seen, tls) = (Arc::clone(&seen), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => converse(stream, &seen, answer, port).await,
                    Some(tls) => {
                        if let Ok(session) = tls.accept(stream).await {
                            converse(session, &seen, answer, port).await;
                        }
                    }
                }
            });
        }
    });
    (port, requests)
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    seen: &Requests,
    answer: fn(&str, u16) -> String,
    port: u16,
) {
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece).await {
            // What is no HTTP is answered like a bad request: a TLS hello, say.
            Ok(1..) if !piece.starts_with(b"GET") && head.is_empty() => {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                return;
            }
            Ok(count @ 1..) => head.extend_from_slice(&piece[..count]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    seen.lock().unwrap().push(head);
    let _ = stream.write_all(answer(&path, port).as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn page(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

/// The path says what is wanted.
fn oracle(path: &str, port: u16) -> String {
    match path {
        "/loop" => page(302, "Location: /loop\r\n", ""),
        "/hop" => page(307, "Location: 200\r\n", ""),
        "/absolute" => page(301, &format!("Location: http://127.0.0.1:{port}/200\r\n"), ""),
        "/away" => page(302, "Location: http://other.invalid/\r\n", "over there"),
        "/nowhere" => page(302, "", ""),
        "/bad-and-long" => page(302, &format!("Location: mailto:{}\r\n", "x".repeat(50_000)), ""),
        "/bad" => page(302, "Location: mailto:x\r\n", ""),
        "/short" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab".to_owned(),
        "/long" => page(200, "", &"x".repeat(100_000)),
        "/nothing" => String::new(),
        "/noise" => "220 mail.example ESMTP\r\n".to_owned(),
        number => page(number[1..].parse().unwrap_or(404), "", "body"),
    }
}

fn http(path: &str, port: u16) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::Int(port.into()),
        scheme: Some("HTTP".into()),
        ..HTTPGetAction::default()
    }
}

fn header(name: &str, value: &str) -> HTTPHeader {
    HTTPHeader { name: name.into(), value: value.into() }
}

async fn ask_http(action: HTTPGetAction) -> Answer {
    check(&Probe { http_get: Some(action), ..Probe::default() }, &target()).await
}

fn tls() -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("testdata/cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("testdata/key.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[test]
fn an_http_status_from_200_to_399_passes() {
    block_on(async {
        let (port, _) = serve(None, oracle).await;
        for (path, want) in [
            ("/200", Answer::Success),
            ("/204", Answer::Success),
            ("200", Answer::Success),
            ("/long", Answer::Success),
            ("/hop", Answer::Success),
            ("/absolute", Answer::Success),
            ("/304", Answer::Warning("Probe terminated redirects, Response body: ".into())),
            ("/nowhere", Answer::Warning("Probe terminated redirects, Response body: ".into())),
            ("/away", Answer::Warning("Probe terminated redirects, Response body: over there".into())),
            ("/400", Answer::Failure("HTTP probe failed with statuscode: 400".into())),
            ("/500", Answer::Failure("HTTP probe failed with statuscode: 500".into())),
            ("/loop", Answer::Failure(format!("Get \"http://127.0.0.1:{port}/loop\": stopped after 10 redirects"))),
            ("/nothing", Answer::Failure(format!("Get \"http://127.0.0.1:{port}/nothing\": EOF"))),
        ] {
            assert_eq!(ask_http(http(path, port)).await, want, "{path}");
        }
        for path in ["/bad", "/bad-and-long", "/noise"] {
            let answer = ask_http(http(path, port)).await;
            assert!(matches!(&answer, Answer::Failure(text) if text.len() <= MAX_TEXT), "{path}: {answer:?}");
        }
        assert!(
            matches!(ask_http(http("/short", port)).await, Answer::Error(_)),
            "a body that breaks off says nothing"
        );
    });
}

#[test]
fn requests_look_as_the_kubelets() {
    block_on(async {
        let (port, requests) = serve(None, oracle).await;
        assert_eq!(ask_http(http("/200", port)).await, Answer::Success);
        let mut action = http("/200?a=b c", port);
        let headers = [("Host", "web.example"), ("accept", ""), ("X-A", "1"), ("x-a", "2"), ("user-agent", "me")];
        action.http_headers = Some(headers.map(|(name, value)| header(name, value)).to_vec());
        assert!(matches!(ask_http(action).await, Answer::Failure(_)), "no number, so it is not found");
        let requests = requests.lock().unwrap();
        let lines = |request: &str| {
            let mut lines: Vec<String> = request.trim().lines().map(str::to_owned).collect();
            lines[1..].sort();
            lines
        };
        let host = format!("Host: 127.0.0.1:{port}");
        let plain = ["GET /200 HTTP/1.1", "Accept: */*", "Connection: close", &host, "User-Agent: kube-probe/1.36"];
        assert_eq!(lines(&requests[0]), plain);
        let own = [
            "GET /200?a=b%20c HTTP/1.1",
            "Connection: close",
            "Host: web.example",
            "User-Agent: me",
            "X-A: 1",
            "X-A: 2",
        ];
        assert_eq!(lines(&requests[1]), own);
    });
}

#[test]
fn a_custom_host_lasts_over_relative_redirects_only() {
    block_on(async {
        let (port, requests) = serve(None, oracle).await;
        for path in ["/hop", "/absolute"] {
            let mut action = http(path, port);
            action.http_headers = Some(vec![header("Host", "web.example")]);
            assert_eq!(ask_http(action).await, Answer::Success);
        }
        let hosts: Vec<bool> = requests.lock().unwrap().iter().map(|r| r.contains("Host: web.example\r\n")).collect();
        assert_eq!(hosts, [true, true, true, false]);
    });
}

#[test]
fn https_takes_any_certificate() {
    block_on(async {
        let (port, _) = serve(Some(tls()), oracle).await;
        let https = |path, port| HTTPGetAction { scheme: Some("HTTPS".into()), ..http(path, port) };
        assert_eq!(ask_http(https("/200", port)).await, Answer::Success);
        let failed = Answer::Failure("HTTP probe failed with statuscode: 503".into());
        assert_eq!(ask_http(https("/503", port)).await, failed);
        let named = HTTPGetAction { host: Some("localhost".into()), ..https("/200", port) };
        assert_eq!(ask_http(named).await, Answer::Success);
        let (plain, _) = serve(None, oracle).await;
        let text = format!("Get \"https://127.0.0.1:{plain}/200\": http: server gave HTTP response to HTTPS client");
        assert_eq!(ask_http(https("/200", plain)).await, Answer::Failure(text));
        assert!(matches!(ask_http(http("/200", port)).await, Answer::Failure(_)), "HTTP to a TLS port");
    });
}

#[test]
fn what_does_not_answer_fails_in_time() {
    block_on(async {
        // Nobody accepts: the kernel connects, and that is all.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let at = Instant::now();
        let text = format!(
            "Get \"http://127.0.0.1:{port}/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        );
        assert_eq!(ask_http(http("", port)).await, Answer::Failure(text));
        let grpc = Probe { grpc: Some(GRPCAction { port: port.into(), service: None }), ..Probe::default() };
        let text = "timeout: health rpc did not complete within 1s".to_owned();
        assert_eq!(check(&grpc, &target()).await, Answer::Failure(text));
        let took = at.elapsed();
        assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(4), "{took:?}");
        let tcp = |port| Probe {
            tcp_socket: Some(TCPSocketAction { host: None, port: IntOrString::Int(port) }),
            ..Probe::default()
        };
        assert_eq!(check(&tcp(port.into()), &target()).await, Answer::Success);
        drop(silent);
        let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(check(&tcp(port.into()), &target()).await, Answer::Failure(refused.clone()));
        let text = format!("Get \"http://127.0.0.1:{port}/\": {refused}");
        assert_eq!(ask_http(http("", port)).await, Answer::Failure(text));
        let text = format!("error: failed to connect service at \"127.0.0.1:{port}\": {refused}");
        assert_eq!(check(&grpc, &target()).await, Answer::Failure(text));
        assert_eq!(check(&tcp(0), &target()).await, Answer::Error("invalid port number: 0".into()));
        assert!(matches!(check(&Probe::default(), &target()).await, Answer::Error(_)));
    });
}

#[test]
fn ports_have_names_and_hosts_have_defaults() {
    let mut target = target();
    target.container = Arc::new(Container {
        name: "main".into(),
        ports: Some(vec![ContainerPort { name: Some("web".into()), container_port: 8080, ..ContainerPort::default() }]),
        ..Container::default()
    });
    let port = |name: &str| address::port(&IntOrString::String(name.into()), &target);
    assert_eq!(port("web"), Ok(8080));
    assert_eq!(port("9090"), Ok(9090));
    assert_eq!(port("other").unwrap_err(), "container \"main\" has no port named \"other\"");
    assert!(port("70000").is_err());
    assert_eq!(address::port(&IntOrString::Int(80), &target), Ok(80));
    assert_eq!(address::host(None, &target), "127.0.0.1");
    assert_eq!(address::host(Some("[fd00::1]"), &target), "fd00::1");
    target.ips = vec!["fd00::2".parse().unwrap()];
    assert_eq!(address::join(&address::host(Some(""), &target), 1), "[fd00::2]:1");
    target.ips.clear();
    assert_eq!(address::host(None, &target), "127.0.0.1");
    for (millis, text) in [(1000, "1s"), (90_000, "1m30s"), (7_200_000, "2h0m0s"), (500, "500ms"), (1500, "1.5s")] {
        assert_eq!(words(Duration::from_millis(millis)), text);
    }
}

/// A health server: the service's name is the status it has, `-N` is gRPC's error N, in the trailers or (`!N`) instead
/// of a message.
async fn grpc_server() -> (u16, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Requests::default();
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&seen);
            let service = service_fn(move |request: hyper::Request<Incoming>| health(request, Arc::clone(&seen)));
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (port, requests)
}

type Answered = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn health(request: hyper::Request<Incoming>, seen: Requests) -> Result<hyper::Response<Answered>, Infallible> {
    let head = format!("{} {} {:?}", request.method(), request.uri().path(), request.headers());
    seen.lock().unwrap().push(head);
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let service = body.get(7..).map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
    let response = hyper::Response::builder().header("content-type", "application/grpc");
    if let Some(code) = service.strip_prefix('!') {
        let response = response.header("grpc-status", code).header("grpc-message", "unknown service");
        return Ok(response.body(Full::new(Bytes::new()).boxed()).unwrap());
    }
    let (status, code) = match service.strip_prefix('-') {
        Some(code) => (0, code.to_owned()),
        None => (service.parse().unwrap_or(1), "0".to_owned()),
    };
    let mut trailers = hyper::HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    let frames =
        [Ok(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]))), Ok::<_, Infallible>(Frame::trailers(trailers))];
    Ok(response.body(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))).unwrap())
}

#[test]
fn grpc_passes_when_the_service_serves() {
    block_on(async {
        let (port, requests) = grpc_server().await;
        let ask = async |service: Option<&str>| {
            let action = GRPCAction { port: port.into(), service: service.map(str::to_owned) };
            check(&Probe { grpc: Some(action), ..Probe::default() }, &target()).await
        };
        let failed = |text: &str| Answer::Failure(text.to_owned());
        assert_eq!(ask(None).await, Answer::Success);
        assert_eq!(ask(Some("1")).await, Answer::Success);
        assert_eq!(ask(Some("2")).await, failed("service unhealthy (responded with \"NOT_SERVING\")"));
        assert_eq!(ask(Some("3")).await, failed("service unhealthy (responded with \"SERVICE_UNKNOWN\")"));
        assert_eq!(ask(Some("0")).await, failed("service unhealthy (responded with \"UNKNOWN\")"));
        assert_eq!(
            ask(Some("!12")).await,
            failed(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown service"
            )
        );
        let text = "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service";
        assert_eq!(ask(Some("!5")).await, failed(text));
        assert_eq!(ask(Some("-4")).await, failed("timeout: health rpc did not complete within 1s"));
        let text = "error: health rpc probe failed: rpc error: code = Unavailable desc = ";
        assert_eq!(ask(Some("-14")).await, failed(text));
        let first = requests.lock().unwrap()[0].clone();
        assert!(first.starts_with("POST /grpc.health.v1.Health/Check"), "{first}");
        for part in ["kube-probe/1.36", "application/grpc", "trailers", "grpc-timeout"] {
            assert!(first.contains(part), "{part} in {first}");
        }
        // A server of another protocol.
        let (web, _) = serve(None, oracle).await;
        let probe = Probe { grpc: Some(GRPCAction { port: web.into(), service: None }), ..Probe::default() };
        assert!(matches!(check(&probe, &target()).await, Answer::Failure(_)));
    });
}

#[test]
fn a_connection_ends_with_its_probe_whatever_the_server_does() {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Accepted connections take it over: the answers fill it soon.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let port = listener.local_addr().unwrap().port();
    // Settings, then pings without end, which have to be answered; nobody reads the answers.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
        loop {
            if stream.write_all(&frames).is_err() {
                return;
            }
            frames = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(1000);
        }
    });
    block_on(async {
        let metrics = tokio::runtime::Handle::current().metrics();
        let before = metrics.num_alive_tasks();
        let action = GRPCAction { port: port.into(), service: None };
        let probe = Probe { grpc: Some(action), timeout_seconds: Some(3), ..Probe::default() };
        assert!(matches!(check(&probe, &target()).await, Answer::Failure(_)));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(metrics.num_alive_tasks(), before);
    });
    server.join().unwrap();
}

#[test]
fn commands_expand_literal_variables_only() {
    let variable = |name: &str, value: Option<&str>, from: bool| EnvVar {
        name: name.into(),
        value: value.map(str::to_owned),
        value_from: from.then(EnvVarSource::default),
    };
    let container = Container {
        env: Some(vec![
            variable("A", Some("1"), false),
            variable("A", Some("2"), false),
            variable("B", Some("<$(A)>"), false),
            variable("FIELD", None, true),
        ]),
        ..Container::default()
    };
    let action = ExecAction {
        command: Some(["x", "$(A)", "$(B)", "[$(FIELD)]", "$(NOT)", "$$(A)"].map(str::to_owned).to_vec()),
    };
    assert_eq!(exec::expanded(&action, &container), ["x", "2", "<$(A)>", "[]", "$(NOT)", "$(A)"]);
}

#[test]
fn hooks_take_any_answer_and_tell_what_failed() {
    block_on(async {
        let (port, requests) = serve(None, oracle).await;
        let get = |action| LifecycleHandler { http_get: Some(action), ..LifecycleHandler::default() };
        for path in ["/200", "/500", "/away", "/short", "/hop"] {
            assert_eq!(hook(&get(http(path, port)), &target(), None).await, Ok(()), "{path}");
        }
        assert!(requests.lock().unwrap()[0].contains("User-Agent: kube-lifecycle/1.36\r\n"));
        requests.lock().unwrap().clear();

        // HTTPS to a server of plain HTTP: asked again in clear, without the secret.
        let secret = [header("Authorization", "Bearer secret"), header("X-Other", "kept")].to_vec();
        let https = HTTPGetAction { scheme: Some("HTTPS".into()), http_headers: Some(secret), ..http("/200", port) };
        assert_eq!(hook(&get(https.clone()), &target(), None).await, Ok(()));
        let seen = requests.lock().unwrap().join("\n");
        assert!(seen.contains("X-Other: kept") && !seen.contains("secret"), "{seen}");
        let (secure, requests) = serve(Some(tls()), oracle).await;
        let https = HTTPGetAction { port: IntOrString::Int(secure.into()), ..https };
        assert_eq!(hook(&get(https), &target(), None).await, Ok(()));
        assert!(requests.lock().unwrap()[0].contains("secret"));

        let error = hook(&get(http("/bad-and-long", port)), &target(), None).await.unwrap_err();
        assert_eq!(error.len(), MAX_TEXT, "{error}");
        let error = hook(&get(http("/loop", port)), &target(), None).await.unwrap_err();
        assert_eq!(error, format!("Get \"http://127.0.0.1:{port}/loop\": stopped after 10 redirects"));
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error = hook(&get(http("/", closed)), &target(), None).await.unwrap_err();
        assert!(error.contains("connection refused"), "{error}");

        let sleep = |seconds| LifecycleHandler { sleep: Some(SleepAction { seconds }), ..LifecycleHandler::default() };
        let at = Instant::now();
        assert_eq!(hook(&sleep(1), &target(), None).await, Ok(()));
        assert!(at.elapsed() >= Duration::from_secs(1));
        let limit = Some(Duration::from_millis(50));
        assert_eq!(hook(&sleep(60), &target(), limit).await.unwrap_err(), "the hook did not end within 50ms");
        assert_eq!(hook(&sleep(-1), &target(), limit).await, Ok(()));

        let tcp = TCPSocketAction { host: None, port: IntOrString::Int(port.into()) };
        let tcp = LifecycleHandler { tcp_socket: Some(tcp), ..LifecycleHandler::default() };
        assert!(hook(&tcp, &target(), None).await.unwrap_err().contains("tcpSocket"));
        assert!(hook(&LifecycleHandler::default(), &target(), None).await.is_err());
    });
}
