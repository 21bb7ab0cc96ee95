use super::*;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::Role;

const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time") })
}

type Socket = WebSocketStream<tokio::net::UnixStream>;

async fn pair(name: Option<&str>, wanted: Wanted, idle: Duration) -> (Session, Socket) {
    let (near, far) = tokio::net::UnixStream::pair().unwrap();
    let server = WebSocketStream::from_raw_socket(near, Role::Server, Some(config())).await;
    let client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    (serve(server, Protocol::named(name).unwrap(), wanted, idle), client)
}

/// What the server says until it closes, and with which code.
async fn heard(client: &mut Socket) -> (Vec<String>, Option<u16>) {
    let (mut all, mut code) = (Vec::new(), None);
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(bytes) => all.push(format!("{} {}", bytes[0], String::from_utf8_lossy(&bytes[1..]))),
            Message::Text(text) => all.push(format!("text {text}")),
            Message::Close(frame) => code = frame.map(|frame| u16::from(frame.code)),
            _ => {}
        }
    }
    (all, code)
}

#[test]
fn all_variants_carry_all_streams() {
    let talk = |name: Option<&'static str>, input: Vec<Message>| {
        block_on(async move {
            let (session, mut client) = pair(name, ALL, Duration::ZERO).await;
            for message in input {
                client.send(message).await.unwrap();
            }
            let Session { stdin, stdout, stderr, size, outcome } = session;
            let (mut stdin, stdout) = (stdin.unwrap(), stdout.unwrap());
            let typed = stdin.recv().await.unwrap();
            stdout.send(typed).await.unwrap();
            stderr.unwrap().send(Bytes::from_static(b"oops")).await.unwrap();
            drop(stdout);
            let size = *size.borrow();
            outcome.send(Outcome::Exited(3)).unwrap();
            let (mut said, code) = heard(&mut client).await;
            said.retain(|line| !line.ends_with("0 ") && line != "1 " && line != "text 1");
            (said, code, size)
        })
    };
    let binary = |channel: u8, text: &str| {
        let mut bytes = vec![channel];
        bytes.extend_from_slice(text.as_bytes());
        Message::Binary(bytes.into())
    };
    let size = br#"{"Width":80,"Height":24}"#;
    let plain = vec![binary(RESIZE, std::str::from_utf8(size).unwrap()), binary(9, "?"), binary(STDIN, ""), binary(STDIN, "hi")];
    let coded = vec![
        Message::Text(format!("4{}", BASE64_STANDARD.encode(size)).into()),
        Message::Text("0!".into()),
        Message::Text(format!("0{}", BASE64_STANDARD.encode("hi")).into()),
    ];
    let status = r#"{"details":{"causes":[{"message":"3","reason":"ExitCode"}]},"message":"command terminated with non-zero exit code: exit status 3","metadata":{},"reason":"NonZeroExitCode","status":"Failure"}"#;
    let text = "command terminated with non-zero exit code: exit status 3";
    for name in [V5, "v4.channel.k8s.io"] {
        let (said, code, size) = talk(Some(name), plain.clone());
        let wanted = vec!["1 hi".to_owned(), "2 oops".to_owned(), format!("3 {status}")];
        assert_eq!((sorted(said), code), (wanted, Some(1000)), "{name}");
        assert_eq!(size, Some(Size { width: 80, height: 24 }));
    }
    for name in [None, Some("channel.k8s.io")] {
        let (said, code, _) = talk(name, plain.clone());
        assert_eq!((sorted(said)[2].as_str(), code), (format!("3 {text}").as_str(), Some(1000)), "{name:?}");
    }
    for (name, end) in [("v4.base64.channel.k8s.io", status), ("base64.channel.k8s.io", text)] {
        let (said, code, size) = talk(Some(name), coded.clone());
        let wanted = [("1", "hi"), ("2", "oops"), ("3", end)];
        let wanted = wanted.map(|(channel, text)| format!("text {channel}{}", BASE64_STANDARD.encode(text)));
        assert_eq!((sorted(said), code), (wanted.to_vec(), Some(1000)), "{name}");
        assert_eq!(size, Some(Size { width: 80, height: 24 }));
    }
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

#[test]
fn input_ends_by_half_close_in_version_5_alone() {
    block_on(async {
        let (mut session, mut client) = pair(Some(V5), ALL, Duration::ZERO).await;
        client.send(Message::Binary(vec![STDIN, b'x'].into())).await.unwrap();
        client.send(Message::Binary(vec![CLOSE, STDIN].into())).await.unwrap();
        let stdin = session.stdin.as_mut().unwrap();
        assert_eq!(stdin.recv().await.as_deref(), Some(&b"x"[..]));
        assert_eq!(stdin.recv().await, None);

        let (mut session, mut client) = pair(Some("v4.channel.k8s.io"), ALL, Duration::ZERO).await;
        client.send(Message::Binary(vec![CLOSE, STDIN].into())).await.unwrap();
        client.send(Message::Binary(vec![STDIN, b'x'].into())).await.unwrap();
        assert_eq!(session.stdin.as_mut().unwrap().recv().await.as_deref(), Some(&b"x"[..]));
    });
}

#[test]
fn whoever_runs_the_command_sees_a_client_that_leaves_or_falls_silent() {
    block_on(async {
        let (mut session, client) = pair(Some(V5), ALL, Duration::ZERO).await;
        drop(client);
        session.outcome.closed().await;
        let (mut session, _client) = pair(Some(V5), ALL, Duration::from_millis(50)).await;
        session.outcome.closed().await;
    });
}

#[test]
fn the_first_word_is_on_the_lowest_channel_there_is() {
    let first = |wanted: Wanted| {
        block_on(async move {
            let (_session, mut client) = pair(Some(V5), wanted, Duration::ZERO).await;
            client.next().await.unwrap().unwrap().into_data().to_vec()
        })
    };
    assert_eq!(first(ALL), [STDOUT]);
    assert_eq!(first(Wanted { stdout: false, ..ALL }), [STDERR]);
    assert_eq!(first(Wanted { stdout: false, stderr: false, ..ALL }), [RESULT]);
}

#[test]
fn a_session_that_is_lost_is_a_failure_not_a_success() {
    block_on(async {
        let (session, mut client) = pair(Some(V5), ALL, Duration::ZERO).await;
        drop(session);
        let (said, _) = heard(&mut client).await;
        assert!(said.last().unwrap().contains("the session was lost"), "{said:?}");
    });
}

proptest! {
    #[test]
    fn messages_survive_both_codings(channel in 0u8..5, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for name in Protocol::names() {
            let protocol = Protocol::named(Some(name)).unwrap();
            let content = protocol.content(protocol.message(channel, &bytes));
            prop_assert_eq!(content, Some((channel, Bytes::from(bytes.clone()))));
        }
    }

    #[test]
    fn no_message_makes_it_panic(text in "\\PC{0,40}", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        for name in Protocol::names() {
            let protocol = Protocol::named(Some(name)).unwrap();
            let _ = (protocol.content(Message::Text(text.clone().into())), protocol.content(Message::Binary(bytes.clone().into())));
        }
    }
}
