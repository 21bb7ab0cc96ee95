use super::*;
use spdy::Headers;
use tokio::net::UnixStream;

const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
const LIMITS: Limits = Limits { buffer: BUFFER, stall: None, streams: 16, idle: FOREVER };

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time") })
}

/// A client, and the session that is there once it has opened its streams.
fn pair(name: &str, wanted: Wanted) -> (Connection, tokio::task::JoinHandle<Result<Session, Lost>>) {
    let (near, far) = UnixStream::pair().unwrap();
    let protocol = Protocol::named(name).unwrap();
    let serving = tokio::spawn(serve(near, protocol, wanted, Duration::ZERO));
    (spdy::start(far, Role::Client, LIMITS).0, serving)
}

async fn open(client: &Connection, kind: &str) -> Pair {
    client.open(Headers::new([("streamType", kind)])).await.unwrap()
}

async fn rest(reader: &mut Reader) -> Result<String, spdy::Error> {
    let mut all = Vec::new();
    while let Some(bytes) = reader.read().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(String::from_utf8(all).unwrap())
}

#[test]
fn all_versions_carry_a_command_s_streams_and_its_end() {
    let end = |name: &'static str, outcome: Outcome| {
        block_on(async move {
            let (client, serving) = pair(name, ALL);
            let (mut error, mut unused) = open(&client, "error").await;
            // As clients do.
            unused.finish().await.unwrap();
            let (mut idle, mut stdin) = open(&client, "stdin").await;
            let (mut stdout, _a) = open(&client, "stdout").await;
            let (mut stderr, _b) = open(&client, "stderr").await;
            let session = serving.await.unwrap().unwrap();
            stdin.write(Bytes::from_static(b"hello")).await.unwrap();
            stdin.finish().await.unwrap();
            let mut typed = session.stdin.unwrap();
            let said = typed.recv().await.unwrap();
            assert_eq!(typed.recv().await, None, "the end of the input arrives");
            session.stdout.as_ref().unwrap().send(said).await.unwrap();
            drop(session.stdout);
            assert_eq!(rest(&mut stdout).await.unwrap(), "hello");
            session.stderr.as_ref().unwrap().send(Bytes::from_static(b"oops")).await.unwrap();
            drop(session.stderr);
            assert_eq!(rest(&mut stderr).await.unwrap(), "oops");
            session.outcome.send(outcome).unwrap();
            let told = rest(&mut error).await.unwrap();
            assert_eq!(rest(&mut idle).await.unwrap(), "");
            client.closed().await;
            told
        })
    };
    assert_eq!(end("v4.channel.k8s.io", Outcome::Exited(0)), r#"{"metadata":{},"status":"Success"}"#);
    assert!(end("v4.channel.k8s.io", Outcome::Exited(7)).contains(r#"{"message":"7","reason":"ExitCode"}"#));
    for name in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        assert_eq!(end(name, Outcome::Exited(0)), "");
        assert_eq!(end(name, Outcome::Exited(7)), "command terminated with non-zero exit code: exit status 7");
    }
}

#[test]
fn sizes_come_over_a_stream_of_their_own() {
    block_on(async {
        let (client, serving) = pair("v3.channel.k8s.io", Wanted { stdin: false, stderr: false, tty: true, ..ALL });
        let _error = open(&client, "error").await;
        let _stdout = open(&client, "stdout").await;
        let (_unused, mut resize) = open(&client, "resize").await;
        let mut session = serving.await.unwrap().unwrap();
        resize.write(Bytes::from_static(b"{\"Width\":80,\"Height\":24}\n")).await.unwrap();
        session.size.changed().await.unwrap();
        assert_eq!(*session.size.borrow(), Some(Size { width: 80, height: 24 }));
    });
}

#[test]
fn whoever_runs_the_command_sees_a_client_that_leaves() {
    block_on(async {
        let (client, serving) = pair("v4.channel.k8s.io", Wanted { stdin: false, stderr: false, ..ALL });
        let error = open(&client, "error").await;
        let stdout = open(&client, "stdout").await;
        let mut session = serving.await.unwrap().unwrap();
        drop((client, error, stdout));
        session.outcome.closed().await;
    });
}

#[test]
fn a_client_that_opens_something_else_is_sent_away() {
    block_on(async {
        let (client, serving) = pair("v4.channel.k8s.io", ALL);
        let _ = client.open(Headers::new([("streamType", "data")])).await;
        assert!(matches!(serving.await.unwrap(), Err(Lost::Protocol(_))));
        let (client, serving) = pair("v4.channel.k8s.io", ALL);
        client.close().await;
        assert!(matches!(serving.await.unwrap(), Err(Lost::Protocol(_))));
    });
}
