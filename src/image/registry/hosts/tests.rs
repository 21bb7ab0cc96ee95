//! Files as they are found on machines, and what they come to.

use std::fmt::Write;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::super::scratch::Scratch;
use super::*;

struct Bench {
    scratch: Scratch,
    hosts: Hosts,
}

impl Bench {
    /// With these files: `registries.conf`, `registries.conf.d/…`, `certs.d/…`, `docker/…`.
    fn new(files: &[(&str, &str)]) -> Bench {
        let scratch = Scratch::new();
        for (name, content) in files {
            scratch.write(name, content);
        }
        let settings = Settings {
            registries_conf: scratch.path().join("registries.conf"),
            certs_dirs: ["certs.d", "docker"].map(|name| scratch.path().join(name)).into(),
            ..Settings::default()
        };
        Bench { hosts: Hosts::new(&settings), scratch }
    }

    fn show(&self, repository: &str, by_digest: bool) -> String {
        let mut text = String::new();
        match self.hosts.endpoints(repository, by_digest) {
            Err(e) => writeln!(text, "error: {e}").unwrap(),
            Ok(endpoints) => {
                for e in endpoints {
                    write!(text, "{}/{} as {}", e.base, e.repository, e.host).unwrap();
                    if let Some(namespace) = &e.namespace {
                        write!(text, " ns={namespace}").unwrap();
                    }
                    if e.insecure {
                        text.push_str(" insecure");
                    }
                    if e.tls.skip_verify {
                        text.push_str(" skip-verify");
                    }
                    for ca in &e.tls.ca {
                        write!(text, " ca={}", ca.display()).unwrap();
                    }
                    for pair in &e.tls.clients {
                        write!(text, " client={}+{}", pair.certificate.display(), pair.key.display()).unwrap();
                    }
                    for (name, value) in &e.headers {
                        write!(text, " {name}={value:?}").unwrap();
                    }
                    if let Some(time) = e.dial_timeout {
                        write!(text, " dial={time:?}").unwrap();
                    }
                    match e.capabilities {
                        Capabilities { pull: true, resolve: true } => {}
                        other => write!(text, " {other:?}").unwrap(),
                    }
                    text.push('\n');
                }
            }
        }
        self.scratch.blank(&text)
    }

    fn check(&self, repository: &str, expected: Expect) {
        expected.assert_eq(&self.show(repository, false));
    }
}

#[test]
fn without_files_it_is_the_registry_itself() {
    let bench = Bench::new(&[]);
    for (repository, expected) in [
        ("docker.io/library/nginx", "https://registry-1.docker.io/v2/library/nginx as docker.io\n"),
        ("registry.k8s.io/pause", "https://registry.k8s.io/v2/pause as registry.k8s.io\n"),
        ("host.example:5000/a/b/c", "https://host.example:5000/v2/a/b/c as host.example:5000\n"),
        ("localhost/app", "https://localhost/v2/app as localhost insecure skip-verify\n"),
        ("localhost:5000/app", "https://localhost:5000/v2/app as localhost:5000 insecure skip-verify\n"),
        ("127.0.0.9:5000/app", "https://127.0.0.9:5000/v2/app as 127.0.0.9:5000 insecure skip-verify\n"),
        ("[::1]:5000/app", "https://[::1]:5000/v2/app as [::1]:5000 insecure skip-verify\n"),
        ("localhost.example/app", "https://localhost.example/v2/app as localhost.example\n"),
    ] {
        assert_eq!(bench.show(repository, true), expected);
    }
    for bad in ["nginx", "", "/app", "../app", "a..b/app", "host:port/app", "host/", "[::x]/app"] {
        assert!(bench.show(bad, false).starts_with("error: invalid image name"), "{bad}: {}", bench.show(bad, false));
    }
}

#[test]
fn plain_http_only_where_it_may_be() {
    let bench = Bench::new(&[]);
    let here = &bench.hosts.endpoints("localhost:5000/app", false).unwrap()[0];
    let plain = here.plain().unwrap();
    assert_eq!(plain.base, "http://localhost:5000/v2");
    assert_eq!(plain.authority(), "localhost:5000");
    assert_eq!(plain.plain(), None);
    assert_eq!(bench.hosts.endpoints("host.example/app", false).unwrap()[0].plain(), None);
}

const FLEET: &str = r#"
# What a fleet behind a pull-through cache has.
unqualified-search-registries = ["registry.fedoraproject.org", "docker.io"]
short-name-mode = "enforcing"
credential-helpers = ["containers-auth.json"]

[[registry]]
location = "docker.io"

[[registry.mirror]]
location = "cache.lan:5000/hub/"
insecure = true

[[registry.mirror]]
location = "mirror.example"
pull-from-mirror = "digest-only"

[[registry.mirror]]
location = "localhost:5000"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "docker.io/acme"
location = "registry.acme.example/team"

[[registry]]
prefix = "*.corp.example"
insecure = true

[[registry]]
prefix = "*.new.corp.example"
location = "new.example"

[[registry]]
prefix = "quay.io"
blocked = true

[[registry]]
prefix = "quay.io/good"
mirror-by-digest-only = true
[[registry.mirror]]
location = "docker.io/good"

[aliases]
"fedora" = "registry.fedoraproject.org/fedora"
"#;

#[test]
fn registries_conf_of_a_fleet() {
    let bench = Bench::new(&[("registries.conf", FLEET)]);
    bench.check(
        "docker.io/library/nginx",
        expect![[r#"
            https://cache.lan:5000/v2/hub/library/nginx as cache.lan:5000 insecure skip-verify
            https://localhost:5000/v2/library/nginx as localhost:5000 insecure skip-verify
            https://registry-1.docker.io/v2/library/nginx as docker.io
        "#]],
    );
    expect![[r#"
        https://cache.lan:5000/v2/hub/library/nginx as cache.lan:5000 insecure skip-verify
        https://mirror.example/v2/library/nginx as mirror.example
        https://registry-1.docker.io/v2/library/nginx as docker.io
    "#]]
    .assert_eq(&bench.show("docker.io/library/nginx", true));
    bench.check(
        "docker.io/acme/app",
        expect![[r#"
            https://registry.acme.example/v2/team/app as registry.acme.example
        "#]],
    );
    // As containers: the port is no part of the prefix, and stays.
    assert_eq!(bench.show("quay.io:8443/some/app", false), "error: /registries.conf: registry quay.io is blocked\n");
    // Not acme, only its letters.
    assert!(bench.show("docker.io/acmeco/app", false).contains("registry-1.docker.io/v2/acmeco/app"));
    bench.check(
        "a.b.corp.example/app",
        expect![[r#"
            https://a.b.corp.example/v2/app as a.b.corp.example insecure skip-verify
        "#]],
    );
    bench.check(
        "a.new.corp.example:5000/app",
        expect![[r#"
            https://new.example:5000/v2/app as new.example:5000
        "#]],
    );
    bench.check(
        "corp.example/app",
        expect![[r#"
            https://corp.example/v2/app as corp.example
        "#]],
    );
    bench.check(
        "quay.io/some/app",
        expect![[r#"
            error: /registries.conf: registry quay.io is blocked
        "#]],
    );
    bench.check(
        "quay.io/good/app",
        expect![[r#"
            https://quay.io/v2/good/app as quay.io
        "#]],
    );
    expect![[r#"
        https://registry-1.docker.io/v2/good/app as docker.io
        https://quay.io/v2/good/app as quay.io
    "#]]
    .assert_eq(&bench.show("quay.io/good/app", true));
}

#[test]
fn later_files_replace_what_earlier_ones_say_of_a_prefix() {
    let bench = Bench::new(&[
        (
            "registries.conf",
            "[[registry]]\nlocation = \"a.example\"\nblocked = true\n[[registry]]\nlocation = \"b.example\"\ninsecure = true\n",
        ),
        ("registries.conf.d/10-a.conf", "[[registry]]\nprefix = \"a.example\"\nlocation = \"ten.example\"\n"),
        ("registries.conf.d/20-a.conf", "[[registry]]\nprefix = \"a.example\"\nlocation = \"twenty.example\"\n"),
        ("registries.conf.d/30-a.conf.bak", "[[registry]]\nprefix = \"a.example\"\nlocation = \"thirty.example\"\n"),
    ]);
    assert_eq!(bench.show("a.example/app", false), "https://twenty.example/v2/app as twenty.example\n");
    assert_eq!(bench.show("b.example/app", false), "https://b.example/v2/app as b.example insecure skip-verify\n");
}

#[test]
fn damaged_registries_conf_is_told_with_its_line() {
    for (content, expected) in [
        ("[[registry]\n", expect![[r#"line 1: unclosed array table, expected `]`"#]]),
        ("\n[[registry]]\nlocation = 5\n", expect!["line 3: invalid type: integer `5`, expected a string"]),
        (
            "[registries.search]\nregistries = ['docker.io']\n",
            expect![
                "line 1: [registries.*] is version 1 of the format; only version 2, with [[registry]], is understood"
            ],
        ),
        ("a = 1\n\n[[registry]]\ninsecure = true\n", expect!["line 3: a registry needs a prefix or a location"]),
        (
            "[[registry]]\nlocation = \"https://a.example\"\n",
            expect![[r#"line 1: location "https://a.example" has a URL scheme, which does not belong there"#]],
        ),
        (
            "[[registry]]\nprefix = \"*.a.example/b\"\n",
            expect![[r#"line 1: prefix "*.a.example/b": a wildcard stands before a domain: *.example.com"#]],
        ),
        (
            "[[registry]]\nprefix = \"a.*.example\"\n",
            expect![[r#"line 1: prefix "a.*.example" has a character that no location has"#]],
        ),
        (
            "[[registry]]\nprefix = \"a\"\n[[registry]]\nlocation = \"a\"\n",
            expect![[r#"line 3: a second registry with the prefix "a""#]],
        ),
        (
            "[[registry]]\nprefix = \"a\"\n\n[[registry.mirror]]\ninsecure = true\n",
            expect![[r#"line 4: mirror location "" is empty"#]],
        ),
        (
            "[[registry]]\nprefix = \"a\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"all\"\n",
            expect!["line 6: pull-from-mirror cannot be set where mirror-by-digest-only is true"],
        ),
        (
            "[[registry]]\nprefix = \"a\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"never\"\n",
            expect!["line 5: unknown variant `never`, expected one of `all`, `digest-only`, `tag-only`"],
        ),
    ] {
        let bench = Bench::new(&[("registries.conf", content)]);
        let text = bench.show("host.example/app", false);
        let reason = text.strip_prefix("error: /registries.conf: ").unwrap_or(&text).trim_end();
        expected.assert_eq(reason);
        // What it says was kept; it still is an error the second time.
        assert_eq!(bench.show("host.example/app", false), text);
    }
    let bench = Bench::new(&[]);
    bench.scratch.write("registries.conf", b"a = 1\nb = \"\xff\"\n");
    assert!(bench.show("host.example/app", false).contains("line 2: not UTF-8"));
    bench.scratch.write("registries.conf", vec![b'\n'; kept::LIMIT as usize + 1]);
    assert!(bench.show("host.example/app", false).contains("cannot read: more than 1048576 bytes"));
    std::fs::remove_file(bench.scratch.path().join("registries.conf")).unwrap();
    bench.scratch.write("registries.conf.d/00-bad.conf", "x");
    assert!(bench.show("host.example/app", false).starts_with("error: /registries.conf.d/00-bad.conf: line 1: "));
}

const HOSTS_TOML: &str = r#"
server = "https://docker.io"
capabilities = ["pull", "resolve"]
ca = "upstream.pem"

[host."https://zeta.example"]
  capabilities = ["pull"]
  ca = ["/etc/ca/a.pem", "b.pem"]
  client = [["client.cert", "client.key"], ["both.pem", ""]]
  [host."https://zeta.example".header]
    x-team = ["edge", "fleet"]
    authorization = "Basic c2VjcmV0"

[host."http://alpha.lan:5000"]
  capabilities = ["pull", "resolve", "push"]

[host."https://proxy.example/v2/hub"]
  override_path = true
  dial_timeout = "1m30.5s"
  skip_verify = true
  client = "pair.pem"

[host."mirror.example/cache/"]
"#;

#[test]
fn hosts_toml_in_the_order_of_the_file() {
    let bench = Bench::new(&[("certs.d/docker.io/hosts.toml", HOSTS_TOML)]);
    bench.check(
        "docker.io/library/nginx",
        expect![[r#"
            https://zeta.example/v2/library/nginx as zeta.example ns=docker.io ca=/etc/ca/a.pem ca=/certs.d/docker.io/b.pem client=/certs.d/docker.io/client.cert+/certs.d/docker.io/client.key client=/certs.d/docker.io/both.pem+/certs.d/docker.io/both.pem authorization="Basic c2VjcmV0" x-team="edge" x-team="fleet" Capabilities { pull: true, resolve: false }
            http://alpha.lan:5000/v2/library/nginx as alpha.lan:5000 ns=docker.io insecure
            https://proxy.example/v2/hub/library/nginx as proxy.example ns=docker.io skip-verify client=/certs.d/docker.io/pair.pem+/certs.d/docker.io/pair.pem dial=90.5s
            https://mirror.example/cache/v2/library/nginx as mirror.example ns=docker.io
            https://registry-1.docker.io/v2/library/nginx as docker.io ca=/certs.d/docker.io/upstream.pem
        "#]],
    );
    let endpoints = bench.hosts.endpoints("docker.io/library/nginx", false).unwrap();
    let debug = format!("{endpoints:?}");
    assert!(debug.contains("authorization") && !debug.contains("c2VjcmV0"), "{debug}");
}

#[test]
fn hosts_toml_without_a_server_ends_with_the_registry_itself() {
    let bench = Bench::new(&[
        ("certs.d/host.example_5000_/hosts.toml", "[host.\"https://m.example\"]\n"),
        ("certs.d/localhost:5000/hosts.toml", "ca = 'ca.pem'\n"),
        ("certs.d/localhost:5001/hosts.toml", "server = 'https://localhost:5001'\n"),
        ("certs.d/localhost:5002/hosts.toml", ""),
    ]);
    bench.check(
        "host.example:5000/app",
        expect![[r#"
            https://m.example/v2/app as m.example ns=host.example:5000
            https://host.example:5000/v2/app as host.example:5000
        "#]],
    );
    assert_eq!(
        bench.show("localhost:5000/app", false),
        "https://localhost:5000/v2/app as localhost:5000 ca=/certs.d/localhost:5000/ca.pem\n"
    );
    assert_eq!(bench.show("localhost:5001/app", false), "https://localhost:5001/v2/app as localhost:5001\n");
    assert_eq!(
        bench.show("localhost:5002/app", false),
        "https://localhost:5002/v2/app as localhost:5002 insecure skip-verify\n"
    );
}

#[test]
fn places_that_registries_lead_to_are_known_by_their_own_settings() {
    let bench = Bench::new(&[
        (
            "registries.conf",
            "[[registry]]\nlocation = \"tokens.lan:5001\"\ninsecure = true\n[[registry]]\nprefix = \"moved.lan\"\nlocation = \"other.lan\"\n",
        ),
        ("certs.d/cdn.example/hosts.toml", "ca = \"cdn.pem\"\n"),
        ("docker/blobs.example:8443/ca.crt", ""),
    ]);
    let named = |authority: &str| bench.hosts.named(authority);
    assert!(named("tokens.lan:5001").is_some_and(|place| place.insecure && place.tls.skip_verify));
    assert!(named("tokens.lan").is_some_and(|place| !place.insecure && !place.tls.skip_verify));
    for (authority, ca) in
        [("cdn.example", "/certs.d/cdn.example/cdn.pem"), ("blobs.example:8443", "/docker/blobs.example:8443/ca.crt")]
    {
        let place = named(authority).unwrap();
        assert_eq!(bench.scratch.blank(&place.tls.ca[0].display().to_string()), ca);
        assert!(!place.tls.skip_verify);
    }
    assert!(named("127.0.0.1:9000").is_some_and(|place| place.insecure));
    // What is elsewhere is not that place.
    assert!(named("moved.lan").is_none() && named("docker.io").is_none() && named("").is_none());
}

#[test]
fn who_wins_where_several_files_know_a_registry() {
    let bench = Bench::new(&[
        (
            "registries.conf",
            "[[registry]]\nlocation = \"a.example\"\n[[registry.mirror]]\nlocation = \"conf.example\"\n\
             [[registry]]\nlocation = \"b.example\"\n[[registry.mirror]]\nlocation = \"conf.example\"\n\
             [[registry]]\nlocation = \"c.example\"\nblocked = true\n",
        ),
        ("certs.d/a.example/hosts.toml", "server = 'https://toml.example'\n"),
        ("certs.d/c.example/hosts.toml", "server = 'https://toml.example'\n"),
        ("certs.d/_default/hosts.toml", "[host.'https://default.example']\n"),
    ]);
    assert_eq!(bench.show("a.example/app", false), "https://toml.example/v2/app as toml.example ns=a.example\n");
    assert_eq!(
        bench.show("b.example/app", false),
        "https://conf.example/v2/app as conf.example\nhttps://b.example/v2/app as b.example\n"
    );
    assert_eq!(bench.show("c.example/app", false), "error: /registries.conf: registry c.example is blocked\n");
    assert_eq!(
        bench.show("d.example/app", false),
        "https://default.example/v2/app as default.example ns=d.example\nhttps://d.example/v2/app as d.example\n"
    );
}

#[test]
fn damaged_hosts_toml_is_told_with_its_line() {
    for (content, expected) in [
        ("server = \n", expect![[r#"line 1: string values must be quoted, expected literal string"#]]),
        ("\n[host.\"ftp://a\"]\n", expect![[r#"line 2: "ftp://a" is neither http nor https"#]]),
        ("[host.\"https://user:hunter2@a b\"]\n", expect![[r#"line 1: "a b" is not host[:port]"#]]),
        ("server = \"https://a/../b\"\n", expect![[r#"line 1: "../b" is not a path"#]]),
        (
            "\n[host.\"https://a\"]\ncapabilities = [\"pull\",\n\"fly\"]\n",
            expect![[r#"line 4: unknown capability "fly""#]],
        ),
        (
            "\n[host.\"https://a\"]\nclient = [[\"a\", \"b\", \"c\"]]\n",
            expect!["line 2: client: a certificate and its key are expected"],
        ),
        (
            "[host.\"https://a\".header]\n\"x y\" = \"1\"\n",
            expect![[r#"line 1: header "x y" is not a name of a header"#]],
        ),
        (
            "[host.\"https://a\".header]\nx = \"hunter2\\n\"\n",
            expect!["line 1: the value of header x has a control character"],
        ),
        (
            "\n[host.\"https://a\"]\ndial_timeout = \"soon\"\n",
            expect![[r#"line 3: dial_timeout: "soon" is not a duration such as 300ms, 20s, 1h30m"#]],
        ),
        ("skip_verify = \"yes\"\n", expect![[r#"line 1: invalid type: string "yes", expected a boolean"#]]),
    ] {
        let bench = Bench::new(&[("certs.d/host.example/hosts.toml", content)]);
        let text = bench.show("host.example/app", false);
        let reason = text.strip_prefix("error: /certs.d/host.example/hosts.toml: ").unwrap_or(&text).trim_end();
        expected.assert_eq(reason);
    }
}

#[test]
fn certificates_of_docker() {
    let bench = Bench::new(&[
        ("docker/host.example:5000/ca.crt", ""),
        ("docker/host.example:5000/more.crt", ""),
        ("docker/host.example:5000/client.cert", ""),
        ("docker/host.example:5000/client.key", ""),
        ("docker/localhost:5000/ca.crt", ""),
        ("docker/docker.io/ca.crt", ""),
        ("docker/lone.example/client.cert", ""),
        ("docker/key.example/client.key", ""),
        ("certs.d/toml.example/hosts.toml", ""),
        ("certs.d/toml.example/ca.crt", ""),
        (
            "registries.conf",
            "[[registry]]\nlocation = \"a.example\"\n[[registry.mirror]]\nlocation = \"host.example:5000\"\n",
        ),
    ]);
    let certificates = "ca=/docker/host.example:5000/ca.crt ca=/docker/host.example:5000/more.crt \
                        client=/docker/host.example:5000/client.cert+/docker/host.example:5000/client.key";
    assert_eq!(
        bench.show("host.example:5000/app", false),
        format!("https://host.example:5000/v2/app as host.example:5000 {certificates}\n")
    );
    // A mirror has those of its own host.
    assert_eq!(
        bench.show("a.example/app", false),
        format!(
            "https://host.example:5000/v2/app as host.example:5000 {certificates}\nhttps://a.example/v2/app as a.example\n"
        )
    );
    // Who gives an authority for this machine means it.
    assert_eq!(
        bench.show("localhost:5000/app", false),
        "https://localhost:5000/v2/app as localhost:5000 ca=/docker/localhost:5000/ca.crt\n"
    );
    assert_eq!(
        bench.show("docker.io/library/nginx", false),
        "https://registry-1.docker.io/v2/library/nginx as docker.io ca=/docker/docker.io/ca.crt\n"
    );
    assert_eq!(bench.show("toml.example/app", false), "https://toml.example/v2/app as toml.example\n");
    assert_eq!(
        bench.show("lone.example/app", false),
        "error: /docker/lone.example/client.cert: there is no .key file beside it\n"
    );
    assert_eq!(
        bench.show("key.example/app", false),
        "error: /docker/key.example/client.key: there is no .cert file beside it\n"
    );
}

#[test]
fn files_are_read_anew_when_they_change() {
    let bench = Bench::new(&[]);
    let itself = "https://host.example/v2/app as host.example\n";
    assert_eq!(bench.show("host.example/app", false), itself);
    for location in ["one.example", "two.example"] {
        bench.scratch.write("registries.conf", format!("[[registry]]\nprefix='host.example'\nlocation='{location}'\n"));
        assert_eq!(bench.show("host.example/app", false), format!("https://{location}/v2/app as {location}\n"));
    }
    bench.scratch.write("registries.conf", "]");
    assert!(bench.show("host.example/app", false).starts_with("error: "));
    std::fs::remove_file(bench.scratch.path().join("registries.conf")).unwrap();
    assert_eq!(bench.show("host.example/app", false), itself);
}

/// Pieces of both formats, in any order, and noise.
fn toml_like() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("[[registry]]\n".to_owned()),
        Just("[[registry.mirror]]\n".to_owned()),
        Just("[registries.search]\n".to_owned()),
        "\\[host\\.\"(https?://)?[a-z.:/\\[\\]*@?#-]{0,12}\"(\\.header)?\\]\n",
        "(prefix|location|server|ca|client|capabilities|x-a) = (\"[a-z*.:/\\\\n @]{0,12}\"|\\[\"[a-z]{0,5}\"\\]|\\[\\[\"a\"(,\"b\"){0,2}\\]\\]|[0-9]{1,3}|true)\n",
        "(insecure|blocked|mirror-by-digest-only|skip_verify|override_path) = (true|false|1)\n",
        "pull-from-mirror = \"(all|digest-only|tag-only|x)\"\n",
        "\\PC{0,10}\n?",
    ];
    prop_oneof![
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_bytes_make_a_parser_panic(content in toml_like()) {
        let path = Path::new("/certs.d/host/hosts.toml");
        for reason in [registries_conf::parse(path, &content).err(), hosts_toml::parse(path, &content).err()].into_iter().flatten() {
            prop_assert!(!reason.is_empty());
        }
        if let Ok(hosts) = hosts_toml::parse(path, &content) {
            prop_assert!(hosts.last().is_some());
            for url in hosts.iter().filter_map(|host| host.url.as_ref()) {
                prop_assert!(url.path.is_empty() || (url.path.starts_with('/') && !url.path.ends_with('/')));
            }
        }
        for registry in registries_conf::parse(path, &content).into_iter().flatten() {
            for repository in ["docker.io/library/nginx", "a.b/c", "a/b"] {
                if let Some(end) = registry.matches(repository) {
                    prop_assert!(end <= repository.len());
                }
            }
        }
    }

    #[test]
    fn what_comes_out_is_always_a_url(
        host in "([a-z0-9]{1,8}\\.){1,3}[a-z]{2,5}(:[0-9]{1,4})?",
        path in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}",
        mirror in "[a-z]{1,8}\\.[a-z]{2}(:[0-9]{1,4})?(/[a-z]{1,8}){0,2}/{0,2}",
    ) {
        let bench = Bench::new(&[(
            "registries.conf",
            &format!("[[registry]]\nlocation = \"{host}\"\n[[registry.mirror]]\nlocation = \"{mirror}\"\n"),
        )]);
        let endpoints = bench.hosts.endpoints(&format!("{host}/{path}"), false).unwrap();
        prop_assert_eq!(endpoints.len(), 2);
        for endpoint in &endpoints {
            let url: ureq::http::Uri = format!("{}/{}/manifests/latest", endpoint.base, endpoint.repository).parse().unwrap();
            prop_assert_eq!(url.authority().unwrap().as_str(), endpoint.authority());
            prop_assert!(endpoint.repository.ends_with(&path));
        }
        prop_assert_eq!(&endpoints[1].repository, &path);
    }
}
