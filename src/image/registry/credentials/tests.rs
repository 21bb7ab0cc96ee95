//! Files and secrets as they are found, and helpers.

use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::super::scratch::Scratch;
use super::*;

fn auth(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

fn password(username: &str, password: &str) -> Login {
    Login::Password { username: username.into(), password: password.into() }
}

fn secret(name: &str, content: &str) -> PullSecret {
    PullSecret { name: format!("default/{name}"), content: content.as_bytes().into() }
}

/// Credentials of a node with no files but these, in a home.
fn node(scratch: &Scratch, auth_files: &[&str]) -> Credentials {
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    Credentials::new(&Settings {
        auth_files: auth_files.iter().map(|name| scratch.path().join(name)).collect(),
        root_dir: scratch.path().join("root"),
        environment: Environment::from([
            ("HOME", path("home").as_str()),
            ("XDG_RUNTIME_DIR", path("run").as_str()),
            ("PATH", path("bin").as_str()),
        ]),
        ..Settings::default()
    })
}

/// User names (or `token:…`) of the candidates, with the secret they come from.
fn names(found: &Candidates) -> Vec<String> {
    let name = |credential: &Credential| {
        let login = match &credential.login {
            Login::Password { username, .. } => username.clone(),
            Login::IdentityToken(token) => format!("token:{token}"),
        };
        credential.secret.as_ref().map_or_else(|| login.clone(), |secret| format!("{login} of {secret}"))
    };
    found.credentials.iter().map(name).collect()
}

#[test]
fn secrets_come_first_the_most_specific_key_before_others() {
    let scratch = Scratch::new();
    scratch
        .write("root/config.json", format!(r#"{{"auths": {{"host.example": {{"auth": "{}"}}}}}}"#, auth("node", "n")));
    let secrets = [
        secret(
            "new",
            &format!(
                r#"{{"auths": {{
                    "host.example": {{"auth": "{}"}},
                    "https://host.example/v1/team": {{"username": "team", "password": "t"}},
                    "*.example": {{"username": "any", "password": "a"}},
                    "host.example:5000": {{"username": "port", "password": "p"}},
                    "host.example/other": {{"username": "other", "password": "o"}},
                    "empty.example": {{}}
                }}}}"#,
                auth("all", "with:colon")
            ),
        ),
        secret("old", r#"{"host.example": {"username": "old", "password": "o", "email": "a@b.example"}}"#),
    ];
    let credentials = node(&scratch, &[]);
    let found = credentials.candidates("host.example", "team/app", &secrets);
    assert_eq!(found.problems, [""; 0]);
    assert_eq!(
        names(&found),
        ["team of default/new", "all of default/new", "any of default/new", "old of default/old", "node"]
    );
    assert_eq!(found.credentials[1].login, password("all", "with:colon"));
    assert_eq!(names(&credentials.candidates("host.example:5000", "app", &secrets)), ["port of default/new"]);
    assert_eq!(names(&credentials.candidates("empty.example", "app", &secrets)), ["any of default/new"]);
    assert_eq!(credentials.candidates("host.invalid", "app", &secrets), Candidates::default());
    let debug = format!("{:?} {credentials:?}", found.credentials);
    assert!(debug.contains("team") && !debug.contains("with:colon"), "{debug}");
}

#[test]
fn the_hub_is_known_by_its_oldest_name() {
    let scratch = Scratch::new();
    scratch.write(
        "home/.docker/config.json",
        format!(r#"{{"auths": {{"https://index.docker.io/v1/": {{"auth": "{}"}}}}}}"#, auth("hub", "h")),
    );
    let credentials = node(&scratch, &[]);
    assert_eq!(names(&credentials.candidates("docker.io", "library/nginx", &[])), ["hub"]);
    assert_eq!(names(&credentials.candidates("quay.io", "library/nginx", &[])), [""; 0]);
    // As kubelet: only where nothing else matches.
    let own = [secret("own", r#"{"docker.io/library": {"username": "own"}, "index.docker.io": {"username": "hub"}}"#)];
    assert_eq!(names(&credentials.candidates("docker.io", "library/nginx", &own)), ["own of default/own", "hub"]);
    assert_eq!(names(&credentials.candidates("docker.io", "team/app", &own)), ["hub of default/own", "hub"]);
}

#[test]
fn the_nodes_places_in_their_order() {
    let scratch = Scratch::new();
    let config = |user: &str| format!(r#"{{"auths": {{"host.example": {{"username": "{user}", "password": "x"}}}}}}"#);
    let old = |user: &str| format!(r#"{{"host.example": {{"username": "{user}", "password": "x"}}}}"#);
    let credentials = node(&scratch, &["one.json", "two.json", "absent.json"]);
    let found = || names(&credentials.candidates("host.example", "app", &[]));
    assert_eq!(found(), [""; 0]);
    scratch.write("home/.dockercfg", old("old home"));
    assert_eq!(found(), ["old home"]);
    scratch.write("root/.dockercfg", old("old root"));
    assert_eq!(found(), ["old root"]);
    scratch.write("home/.docker/config.json", config("home"));
    assert_eq!(found(), ["home"]);
    scratch.write("root/config.json", config("root"));
    assert_eq!(found(), ["root"]);
    scratch.write("run/containers/auth.json", config("containers"));
    assert_eq!(found(), ["root", "containers"]);
    scratch.write("two.json", config("two"));
    scratch.write("one.json", config("one"));
    assert_eq!(found(), ["one", "two", "root", "containers"]);
    // Changed, and damaged: the next place is asked.
    scratch.write("one.json", config("another"));
    scratch.write("root/config.json", "{\n  \"auths\": {\"hunter2");
    assert_eq!(found(), ["another", "two", "home", "containers"]);
    let problems = credentials.candidates("host.example", "app", &[]).problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(scratch.blank(&problems[0]), "/root/config.json: line 2, column 20: not JSON");
}

#[test]
fn namespaced_keys_of_containers() {
    let scratch = Scratch::new();
    scratch.write(
        "run/containers/auth.json",
        r#"{"auths": {
            "host.example": {"username": "host"},
            "host.example/a": {"username": "a"},
            "host.example/a/b": {"username": "b"},
            "host.example/a/b/c": {"username": "c"},
            "host.example/z": {"username": "z"}
        }}"#,
    );
    let credentials = node(&scratch, &[]);
    assert_eq!(names(&credentials.candidates("host.example", "a/b/c", &[])), ["c", "b", "a", "host"]);
    assert_eq!(names(&credentials.candidates("host.example", "x", &[])), ["host"]);
}

#[test]
fn what_is_damaged_is_told_without_its_secrets() {
    let scratch = Scratch::new();
    let entry =
        |entry: &str| format!(r#"{{"auths": {{"good.example": {{"username": "good"}}, "host.example": {entry}}}}}"#);
    for (content, problem) in [
        (entry("\"hunter2\""), "auths \"host.example\": not an object"),
        (entry(r#"{"auth": "hunter2!"}"#), "auths \"host.example\": auth is not base 64"),
        (entry(r#"{"auth": "aHVudGVyMg=="}"#), "auths \"host.example\": auth does not decode to user:password"),
        (entry(r#"{"auth": "/w=="}"#), "auths \"host.example\": auth does not decode to UTF-8"),
        (entry(r#"{"auth": ["hunter2"]}"#), "auths \"host.example\": auth is not a string"),
        (entry(r#"{"username": "a", "password": 5}"#), "auths \"host.example\": password is not a string"),
        (entry(r#"{"identitytoken": {"x": "hunter2"}}"#), "auths \"host.example\": identitytoken is not a string"),
        (r#"{"auths": "hunter2"}"#.to_owned(), "auths is not an object"),
        ("\"hunter2\"".to_owned(), "not a JSON object"),
        ("hunter2".to_owned(), "line 1, column 1: not JSON"),
        (String::new(), "line 1, column 0: not JSON"),
    ] {
        let found = node(&scratch, &[]).candidates("good.example", "app", &[secret("bad", &content)]);
        assert_eq!(found.problems, [format!("secret default/bad: {problem}")]);
        // One bad entry does not hide the others.
        assert_eq!(found.credentials.is_empty(), !content.contains("good.example"), "{content}");
    }
    for content in [r#"{"credHelpers": []}"#, r#"{"credsStore": {}}"#, r#"{"auths": 1}"#] {
        scratch.write("root/config.json", content);
        assert_eq!(node(&scratch, &[]).candidates("good.example", "app", &[]).problems.len(), 1, "{content}");
    }
}

#[test]
fn odd_but_good_entries() {
    let scratch = Scratch::new();
    for (entry, login) in [
        (r#"{"auth": "dXNlcjpwYXNz"}"#, password("user", "pass")),
        (r#"{"auth": "YTpi"}"#, password("a", "b")),
        // Without padding, and with docker's old NUL at the end.
        (r#"{"auth": "dXNlcjpw"}"#, password("user", "p")),
        (r#"{"auth": "YTpiYw"}"#, password("a", "bc")),
        (r#"{"auth": "YTpiAAA="}"#, password("a", "b")),
        (r#"{"auth": "dXNlcjo="}"#, password("user", "")),
        // `auth` is what counts.
        (r#"{"username": "x", "password": "y", "auth": "YTpi"}"#, password("a", "b")),
        (r#"{"username": "x", "password": "y", "auth": null}"#, password("x", "y")),
        (r#"{"auth": "YTpi", "identitytoken": "refresh"}"#, Login::IdentityToken("refresh".into())),
    ] {
        let secrets = [secret("s", &format!(r#"{{"auths": {{"https://user@host.example/v2/?x#y": {entry}}}}}"#))];
        let found = node(&scratch, &[]).candidates("host.example", "app", &secrets);
        assert_eq!(found.problems, [""; 0]);
        assert_eq!(found.credentials[0].login, login, "{entry}");
    }
}

/// A helper that notes what it was asked, and a shell script for the rest.
fn helper(scratch: &Scratch, name: &str, script: &str) {
    let asked = scratch.path().join("asked");
    let text =
        format!("#!/bin/sh\n{{ printf '%s ' {name} \"$1\"; /bin/cat; echo; }} >> {}\n{script}\n", asked.display());
    let path = scratch.write(&format!("bin/docker-credential-{name}"), text);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Another test that forks at the wrong moment holds the script open for writing a little longer.
fn patiently(find: impl Fn() -> Candidates) -> Candidates {
    loop {
        let found = find();
        if !found.problems.iter().any(|problem| problem.contains("cannot start it")) {
            return found;
        }
        std::thread::yield_now();
    }
}

#[test]
fn helpers_are_asked_where_one_is_configured() {
    let scratch = Scratch::new();
    helper(&scratch, "store", r#"echo '{"ServerURL": "x", "Username": "stored", "Secret": "s"}'"#);
    helper(&scratch, "token", r#"echo '{"Username": "<token>", "Secret": "refresh"}'"#);
    helper(&scratch, "none", "echo 'credentials not found in native keychain'; exit 1");
    helper(&scratch, "fails", "echo hunter2; exit 3");
    helper(&scratch, "talks", "while :; do echo hunter2hunter2hunter2; done");
    helper(&scratch, "odd", "echo '{\"Username\": \"hunter2\"}'");
    scratch.write(
        "root/config.json",
        r#"{
            "credsStore": "store",
            "credHelpers": {"token.example": "token", "none.example": "none", "fails.example": "fails",
                "talks.example": "talks", "odd.example": "odd", "absent.example": "absent", "evil.example": "../evil"},
            "auths": {"host.example": {}, "none.example": {"username": "written", "password": "w"}}
        }"#,
    );
    let credentials = node(&scratch, &[]);
    let ask = |host: &str| patiently(|| credentials.candidates(host, "app", &[]));
    assert_eq!(ask("host.example").credentials[0].login, password("stored", "s"));
    assert_eq!(names(&ask("docker.io")), ["stored"]);
    assert_eq!(names(&ask("token.example")), ["token:refresh"]);
    assert_eq!(names(&ask("none.example")), ["written"]);
    for (host, problem) in [
        ("fails.example", "docker-credential-fails: exit status: 3"),
        ("talks.example", "docker-credential-talks: its answer is longer than 65536 bytes"),
        ("odd.example", "docker-credential-odd: its answer has no Username and Secret"),
        ("absent.example", "docker-credential-absent: not found in PATH"),
        ("evil.example", "docker-credential-../evil: not a name of a helper"),
    ] {
        let found = ask(host);
        assert_eq!(found.credentials, []);
        assert_eq!(
            found.problems.iter().map(|p| scratch.blank(p)).collect::<Vec<_>>(),
            [format!("/root/config.json: {problem}")]
        );
    }
    let asked = std::fs::read_to_string(scratch.path().join("asked")).unwrap();
    for line in ["store get host.example", "store get https://index.docker.io/v1/", "token get token.example"] {
        assert!(asked.lines().any(|l| l == line), "{asked}");
    }
    // A pod names no programs.
    let secrets = [secret("evil", r#"{"auths": {}, "credsStore": "store", "credHelpers": {"a.example": "store"}}"#)];
    std::fs::remove_file(scratch.path().join("root/config.json")).unwrap();
    assert_eq!(credentials.candidates("a.example", "app", &secrets), Candidates::default());
}

#[test]
fn a_helper_that_hangs_is_ended_with_its_children() {
    let scratch = Scratch::new();
    let pid = scratch.path().join("pid");
    helper(&scratch, "hangs", &format!("/bin/sleep 1000 &\necho $! > {}\nwait", pid.display()));
    let program = scratch.path().join("bin/docker-credential-hangs");
    // Long enough for the script to have come to its end.
    let mut patience = std::time::Duration::from_millis(200);
    let child: i32 = loop {
        let error = helper::ask(&program, "host.example", patience).unwrap_err();
        match (error, std::fs::read_to_string(&pid).ok().and_then(|pid| pid.trim().parse().ok())) {
            (helper::Error::Late, Some(child)) => break child,
            (helper::Error::Late | helper::Error::Io { .. }, _) => patience *= 2,
            (other, _) => panic!("{other}"),
        }
    };
    // It was killed; init, or whoever adopts it, may not have reaped it yet.
    let state = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    while !matches!(state().rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X')) {
        std::thread::yield_now();
    }
}

/// Documents that look like the real ones, and noise.
fn json_like() -> impl Strategy<Value = Vec<u8>> {
    let value = "(\"[a-zA-Z0-9+/=:]{0,12}\"|[0-9]{1,3}|null|\\[\\]|\\{\\})";
    let entry = format!(
        "\"[a-z.:/*\\\\\\\\?#@\\[\\]-]{{0,16}}\": (\\{{(\"auth\": {value})?\\}}|\\{{\"username\": {value}, \"identitytoken\": {value}\\}}|{value})"
    );
    let document = format!("\\{{\"(auths|credHelpers|credsStore|x)\": (\\{{({entry}(, {entry})?)?\\}}|{value})\\}}");
    prop_oneof![
        prop::string::string_regex(&document).unwrap().prop_map(String::into_bytes),
        prop::string::string_regex(&format!("\\{{{entry}\\}}")).unwrap().prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_bytes_make_a_parser_panic(content in json_like(), host in "[a-z.:]{1,10}|\\PC{1,10}") {
        for ring in [keyring::config_json(&content), keyring::dockercfg(&content), keyring::secret(&content)].into_iter().flatten() {
            ring.lookup(&format!("{host}/app"));
            ring.helper(&host);
        }
    }

    #[test]
    fn what_a_key_holds_is_found(
        host in "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}(:[0-9]{1,4})?",
        path in "(/[a-z]{1,6}){0,2}",
        user in "[a-z]{1,8}",
        word in "[ -~]{0,20}",
    ) {
        let login = password(&user, &word);
        let content = format!(r#"{{"auths": {{"{host}{path}": {{"auth": "{}"}}}}}}"#, auth(&user, &word));
        let ring = keyring::secret(content.as_bytes()).unwrap();
        prop_assert_eq!(ring.lookup(&format!("{host}{path}/app")), vec![login]);
        prop_assert_eq!(ring.lookup(&format!("other.{host}{path}/app")), vec![]);
    }
}
