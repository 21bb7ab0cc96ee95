//! What hostile and broken registries, proxies and mirrors do, and what comes of it: an error that says so.

use super::*;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn reply(value: &Value) -> Reply {
    Reply::new(200, value.to_string().as_bytes())
}

/// The error of a pull of `team/app:1` by a client of its own.
#[track_caller]
fn fails(server: &Server) -> String {
    fails_with(server, &[])
}

#[track_caller]
fn fails_with(server: &Server, secrets: &[PullSecret]) -> String {
    let name = format!("{}/team/app:1", server.address());
    let (result, _) = Client::new().pull_with(&name, secrets, &AtomicBool::new(false));
    let text = result.unwrap_err().to_string();
    assert!(!text.contains("right") && text.len() < 2000 && !text.contains(['\r', '\n', '\u{1b}']), "{text}");
    text
}

#[test]
fn a_server_that_trickles_is_given_up() {
    let (server, sample) = server(|sample, seen, _| {
        let slow = Reply::new(200, &sample.layer).drip(Duration::from_millis(5));
        (seen.path == sample.layer_path()).then_some(slow)
    });
    let mut client = Client::new();
    client.registries.patience.progress = Duration::from_millis(300);
    let error = client.pull(&format!("{}/team/app:1", server.address())).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("too slow: "), "{error}");
    assert!(error.to_string().contains(&format!("of {} bytes)", sample.layer.len())), "{error}");

    // Documents, errors and tokens have a time as a whole.
    let drip = |status| move || Reply::new(status, &[b' '; 4000]).drip(Duration::from_millis(5));
    let (manifest, complaint) = (drip(200), drip(404));
    let (server, _) = self::server(move |_, seen, _| {
        Some(if seen.path.ends_with("/manifests/1") { manifest() } else { complaint() })
    });
    let mut client = Client::new();
    client.registries.patience.document = Duration::from_millis(100);
    let error = client.pull(&format!("{}/team/app:1", server.address())).unwrap_err();
    assert!(error.to_string().contains("takes too long"), "{error}");
    assert_eq!(server.count("/v2/team/app/manifests/1"), 3, "it is tried again");
    let error = client.pull(&format!("{}/team/app:2", server.address())).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}

#[test]
fn documents_are_exactly_what_points_to_them() {
    let point = |media_type: &str, content: &str, size: usize| json!({ "mediaType": media_type, "digest": Digest::of(content.as_bytes()), "size": size });
    type Make = fn(&Sample, &dyn Fn(&str, &str, usize) -> Value) -> Value;
    let cases: [(Make, &str); 9] = [
        (|s, point| json!({ "config": point(CONFIG, &s.config, s.config.len() + 1) }), "bytes, but the manifest says"),
        (
            |s, point| json!({ "config": point(CONFIG, &s.config, (4 << 20) + 1) }),
            "more than 4194304 bytes in a document",
        ),
        (
            |s, point| json!({ "manifests": [point(MANIFEST, &s.manifest, s.manifest.len() - 1)] }),
            "bytes, but the index says",
        ),
        (
            |s, point| json!({ "manifests": vec![point(MANIFEST, &s.manifest, s.manifest.len()); 10_000] }),
            "more than 1024 manifests in an index",
        ),
        (
            |s, point| json!({ "config": point(CONFIG, &s.config, s.config.len()), "layers": vec![point(LAYER, "x", 1); 1000] }),
            "more than 512 layers in an image",
        ),
        (
            |s, point| json!({ "config": point(CONFIG, &s.config, s.config.len()), "layers": [point("application/vnd.in-toto+json", "x", 1)] }),
            "is \"application/vnd.in-toto+json\", not of a container image",
        ),
        (
            |_, point| json!({ "config": point("application/vnd.oci.empty.v1+json", "{}", 2), "artifactType": "application/vnd.x" }),
            "not a container image, but \"application/vnd.oci.empty.v1+json\"",
        ),
        (
            |s, point| json!({ "config": point(CONFIG, &s.config, s.config.len()), "layers": [] }),
            "the configuration has 1 diff_ids, but the manifest lists 0 layers",
        ),
        (|_, _| json!({ "schemaVersion": 2, "config": { "digest": "sha512:00", "size": 1 } }), "cannot parse manifest"),
    ];
    for (make, why) in cases {
        let (server, _) = server(move |sample, seen, _| {
            let mut document = make(sample, &point);
            document["schemaVersion"] = json!(2);
            seen.path.ends_with("/manifests/1").then(|| reply(&document))
        });
        let said = fails(&server);
        assert!(said.contains(why), "{why}: {said}");
    }
    // Two layers that are the same are fetched once.
    let mut sample = Sample::new(architecture());
    let mut config: Value = serde_json::from_str(&sample.config).unwrap();
    let diff_id = config["rootfs"]["diff_ids"][0].clone();
    config["rootfs"]["diff_ids"] = json!([diff_id, diff_id, diff_id]);
    sample.config = config.to_string();
    sample.describe(sample.layer.len() as u64);
    let mut manifest: Value = serde_json::from_str(&sample.manifest).unwrap();
    manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 3]);
    sample.manifest = manifest.to_string();
    let (server, sample) = serve(sample, |_, _, _| None);
    let pulled = Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap();
    assert!(!pulled.image.layers.is_empty());
    assert_eq!(server.count(&sample.layer_path()), 1);
}

#[test]
fn answers_that_make_no_sense_are_told_and_leave_nothing() {
    let raw = |head: &[u8], body: &str| [head, b"\r\n\r\n", body.as_bytes()].concat();
    let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}", "x".repeat(1 << 20));
    let many = format!("HTTP/1.1 200 OK{}", "\r\nX-Many: 1".repeat(2000));
    for (answer, why) in [
        (raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html", "<html>log in</html>"), "a web page instead of a manifest"),
        (raw(b"HTTP/1.0 200 OK", "\n<!doctype html>"), "a web page instead of a manifest"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip", "{}"), "is encoded (gzip)"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10", "{}"), "/manifests/1: "),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1", "{}"), "/manifests/1: "),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", "zz\r\n{}"), "/manifests/1: "),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", "ffffffffffffffffff\r\n{}"), "/manifests/1: "),
        (raw(b"HTTP/1.1 200 OK", "{\"schemaVersion\":2}"), "neither an index nor a manifest"),
        (raw(b"HTTP/1.1 200 OK", "[[[["), "cannot parse manifest"),
        (raw(b"HTTP/1.1 204 No Content", ""), "answers 204"),
        (raw(b"HTTP/1.1 307 x\r\nLocation: \xff\xfe", ""), "redirects to nowhere"),
        (raw(b"HTTP/1.1 307 x\r\nLocation: http://169.254.169.254/latest", ""), "an address of this machine's link"),
        (raw(b"HTTP/1.1 307 x\r\nLocation: //2852039166/", ""), "an address in an unusual form"),
        (
            raw(b"HTTP/1.1 401 x\r\nWWW-Authenticate: \xff, =,,,\"\"\" Bearer", ""),
            "401 Unauthorized; there are no credentials",
        ),
        (raw(b"HTTP/1.1 401 x\r\nWWW-Authenticate: Negotiate", ""), "wants authentication by negotiate"),
        (raw(b"HTTP/1.1 403 x", "{\"errors\":[{\"message\":\"\\u001b[2J\\r\\nno\"}]}"), "403  [2J  no"),
        (raw(b"SSH-2.0-OpenSSH_9.2", ""), "/manifests/1: "),
        (raw(long.as_bytes(), "{}"), "/manifests/1: "),
        (raw(many.as_bytes(), "{}"), "/manifests/1: "),
        (Vec::new(), "/manifests/1: "),
    ] {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(120)]).into_owned();
        let (server, _) = server(move |_, _, _| Some(Reply::raw(&answer)));
        let said = fails(&server);
        assert!(said.contains(why), "{shown}: {said}");
    }
    // Odd, but right: no length, an old version, headers that are no text.
    let (server, _) = server(|sample, seen, _| {
        let honest = sample.manifest.as_bytes();
        let head = b"HTTP/1.0 200 OK\r\nServer: \xff\xfe\r\nContent-Type: text/plain\r\n\r\n";
        seen.path.contains("/manifests/").then(|| Reply::raw(&[head, honest].concat()))
    });
    Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap();
    // What breaks off is asked for again, wherever that was.
    for cut in [0, 1, 100, 300] {
        let (server, _) = self::server(move |sample, seen, n| (n == 0).then(|| sample.serve(seen).cut(cut)));
        Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap();
    }
}

#[test]
fn a_part_that_is_not_the_part_that_was_asked_for_is_no_use() {
    for (range, why) in [
        ("bytes 200000-299999/TOTAL", Some("the part from byte 200000 instead of 100000")),
        ("bytes 100000-100001/7", Some("it does not say which")),
        ("bytes 0-99999999/100000000", Some("has 100000000 bytes, but the manifest says")),
        ("pages 1-2/3", Some("it does not say which")),
        ("", Some("it does not say which")),
        // Some of it again does no harm.
        ("bytes 50000-LAST/TOTAL", None),
        ("bytes 50000-LAST/*", None),
    ] {
        let (server, _) = server(move |sample, seen, n| {
            let total = sample.layer.len();
            let range = range.replace("TOTAL", &total.to_string()).replace("LAST", &(total - 1).to_string());
            (seen.path == sample.layer_path()).then(|| match n {
                0 => Reply::new(200, &sample.layer).cut(100_000),
                _ => Reply::new(206, &sample.layer[50_000..]).with("Content-Range", &range),
            })
        });
        match why {
            Some(why) => assert!(fails(&server).contains(why), "{range}"),
            None => drop(Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap()),
        }
    }
    // Other content in the second half: the digest tells.
    let (server, _) = server(|sample, seen, n| {
        let other: Vec<u8> = sample.layer.iter().map(|byte| byte ^ 1).collect();
        (seen.path == sample.layer_path())
            .then(|| if n == 0 { Reply::new(200, &sample.layer).cut(100_000) } else { Reply::new(200, &other) })
    });
    fails(&server);
    // Who has to begin again each time is not listened to for ever.
    let (server, sample) = self::server(|sample, seen, n| {
        (seen.path == sample.layer_path()).then(|| Reply::new(200, &sample.layer).cut(2_000_000 + n * 70_000))
    });
    let said = fails(&server);
    assert!(said.contains("begins from the start again and again"), "{said}");
    assert!(server.count(&sample.layer_path()) < 20);
}

/// A registry with tokens of this realm, whose token server (`/token`) answers so.
fn token_server(realm: &'static str, answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
    let serve = move |_: &Sample, seen: &Seen, _| {
        if seen.path.starts_with("/token") {
            return Some(answer(seen));
        }
        if seen.header("authorization").is_some_and(|header| header.starts_with("Bearer ")) {
            return None;
        }
        let realm = realm.replace("HOST", seen.header("host").unwrap());
        Some(Reply::new(401, b"").with("WWW-Authenticate", &format!("Bearer realm=\"{realm}\"")))
    };
    server(serve).0
}

#[test]
fn passwords_go_only_where_they_may() {
    for (realm, why) in [
        ("http://tokens.example/token", "passwords are not sent without TLS, unless registries.conf has a registry"),
        ("http://10.255.255.1:5001/token?s3cret", "a registry \"10.255.255.1:5001\" that is insecure"),
        ("http://169.254.169.254/token", "asks for a token of an address of this machine's link"),
        ("https://[fe80::1]/token", "asks for a token of an address of this machine's link"),
        ("http://user:s3cret@HOST/token", "which is no URL"),
        ("file:///etc/shadow", "which is no URL"),
        ("/token", "which is no URL"),
    ] {
        let registry = token_server(realm, |_| panic!("asked for a token"));
        for secrets in [&[secret(&registry, "ns/a", "right")][..], &[]] {
            if secrets.is_empty() && why.contains("registry") {
                continue;
            }
            let said = fails_with(&registry, secrets);
            assert!(said.contains(why) && !said.contains("s3cret"), "{said}");
        }
        assert!(registry.seen().iter().all(|seen| seen.header("authorization").is_none()));
    }
    // Where the node's settings say so, it may be; nobody is there.
    let registry = token_server("http://192.0.2.1:1/token", |_| panic!("asked for a token"));
    let client = Client::configured("[[registry]]\nlocation = \"192.0.2.1:1\"\ninsecure = true\n");
    let cancelled = AtomicBool::new(false);
    thread::scope(|scope| {
        let (client, cancelled, registry) = (&client, &cancelled, &registry);
        let name = format!("{}/team/app:1", registry.address());
        let secrets = [secret(registry, "ns/a", "right")];
        let pull = scope.spawn(move || client.pull_with(&name, &secrets, cancelled).0);
        while !pull.is_finished() && registry.seen().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        cancelled.store(true, Ordering::Relaxed);
        let error = pull.join().unwrap().unwrap_err();
        assert!(!matches!(error, Error::Protocol { .. }), "{error}");
    });
}

#[test]
fn what_was_sent_is_not_told_though_a_server_repeats_it() {
    let (registry, _) = server(|_, seen, _| {
        Some(match seen.header("authorization") {
            None => Reply::new(401, b"").with("WWW-Authenticate", "Basic realm=\"x\""),
            Some(sent) => {
                let message = format!("{sent} is the password copyright of {}", auth::password(&sent[6..]).unwrap());
                Reply::new(403, json!({ "errors": [{ "message": message }] }).to_string().as_bytes())
            }
        })
    });
    let name = format!("{}/team/app:1", registry.address());
    let secrets = [secret(&registry, "ns/a", "s3cret-of-ours")];
    let (result, told) = Client::new().pull_with(&name, &secrets, &AtomicBool::new(false));
    let said = format!("{} {told:?}", result.unwrap_err());
    assert!(said.contains("403 Basic *** is the password copyright of ***"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn token_servers_that_give_no_token_are_told() {
    let large = format!("{{\"token\":\"{}\"}}", "x".repeat(2 << 20));
    for (content, why) in [
        ("<html>log in</html>".to_owned(), "the answer is not a token's JSON"),
        ("{}".to_owned(), "no token in the answer"),
        ("{\"token\":\"a b\"}".to_owned(), "characters that no header can have"),
        ("[".repeat(100_000), "the answer is not a token's JSON"),
        (large, "more than 1048576 bytes in a document"),
    ] {
        let registry = token_server("http://HOST/token", move |_| Reply::new(200, content.as_bytes()));
        let said = fails_with(&registry, &[secret(&registry, "ns/a", "right")]);
        assert!(said.contains(why), "{why}: {said}");
    }
    // However short a token lives, it is used at least once, and nobody asks for ever.
    for life in ["0", "-5", "1", "1e300", "null"] {
        let content = format!("{{\"token\":\"t\",\"expires_in\":{life}}}");
        let registry = token_server("http://HOST/token", move |_| Reply::new(200, content.as_bytes()));
        Client::new().pull(&format!("{}/team/app:1", registry.address())).unwrap();
        assert!(registry.seen().len() < 12, "{life}: {} requests", registry.seen().len());
    }
    // An identity token in a form is not posted a second time, wherever that leads.
    let registry = token_server("http://HOST/token", |_| Reply::new(307, b"").with("Location", "/token2"));
    let auths = json!({ "auths": { registry.address(): { "identitytoken": "right" } } });
    let said = fails_with(&registry, &[PullSecret { name: "ns/a".into(), content: auths.to_string().into() }]);
    assert!(said.contains("redirects a request for a token"), "{said}");
    assert_eq!(registry.seen().len(), 2);
}

#[test]
fn a_refusal_without_a_question_leads_to_the_next_credential() {
    for bearer in [true, false] {
        let (registry, _) = server(move |_, seen, _| {
            let asks = if bearer {
                format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())
            } else {
                "Basic".into()
            };
            let known = |name| seen.header("authorization") == Some(&auth::basic("edge", name));
            if seen.path.starts_with("/token") {
                let name = if known("weak") { "weak" } else { "right" };
                return Some(reply(&json!({ "token": name })));
            }
            match seen.header("authorization") {
                None => Some(Reply::new(401, b"").with("WWW-Authenticate", &asks)),
                Some("Bearer right") => None,
                Some(_) if known("right") => None,
                Some(_) => Some(Reply::new(403, br#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#)),
            }
        });
        let (weak, strong) = (secret(&registry, "ns/weak", "weak"), secret(&registry, "ns/strong", "right"));
        let name = format!("{}/team/app:1", registry.address());
        let (pulled, _) = Client::new().pull_with(&name, &[weak.clone(), strong], &AtomicBool::new(false));
        assert_eq!(pulled.unwrap().secret.as_deref(), Some("ns/strong"));
        let said = fails_with(&registry, &[weak]);
        assert!(said.contains("DENIED: not for you") && said.contains("secret ns/weak"), "{said}");
    }
}

#[test]
fn mirrors_get_nothing_of_the_registry_and_decide_nothing() {
    let (origin, sample) = server(|_, seen, _| {
        let basic = auth::basic("edge", "of-the-registry");
        let open = seen.header("authorization") == Some(&basic);
        (!open).then(|| Reply::new(401, b"").with("WWW-Authenticate", "Basic realm=\"x\""))
    });
    // Asks for a password and is never content with it.
    let (greedy, _) = server(|_, _, _| Some(Reply::new(401, b"").with("WWW-Authenticate", "Basic realm=\"x\"")));
    // Has something else under every name.
    let (wrong, _) = serve(Sample::new("s390x"), |sample, seen, _| {
        seen.path.contains("/manifests/").then(|| Reply::new(200, sample.manifest.as_bytes()))
    });
    let client = Client::configured(&format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
        origin.address(),
        greedy.address(),
        wrong.address(),
    ));
    let secrets = [secret(&greedy, "ns/mirror", "of-the-mirror"), secret(&origin, "ns/registry", "of-the-registry")];
    for name in
        [format!("{}/team/app:1", origin.address()), format!("{}/team/app@{}", origin.address(), sample.digest())]
    {
        let (pulled, _) = client.pull_with(&name, &secrets, &AtomicBool::new(false));
        let pulled = pulled.unwrap();
        assert_eq!(pulled.digest, sample.digest());
        assert_eq!(pulled.secret.as_deref(), Some("ns/registry"));
    }
    assert!(wrong.seen().len() >= 2);
    let sent = |server: &Server, password: &str| {
        let basic = auth::basic("edge", password);
        server.seen().iter().filter(|seen| seen.header("authorization") == Some(&basic)).count()
    };
    assert!(sent(&greedy, "of-the-mirror") > 0 && sent(&origin, "of-the-registry") > 0);
    assert_eq!((sent(&greedy, "of-the-registry"), sent(&origin, "of-the-mirror")), (0, 0));
    assert!(wrong.seen().iter().all(|seen| seen.header("authorization").is_none()));
}
