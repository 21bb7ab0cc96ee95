//! Pulls from registries that misbehave.

mod hostile;
mod parts;
mod server;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use server::{Reply, Seen, Server};

use super::*;
use crate::image::{Error as ImageError, architecture};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image as a registry has it.
struct Sample {
    layer: Vec<u8>,
    config: String,
    manifest: String,
}

impl Sample {
    fn new(machine: &str) -> Sample {
        let mut tar = tar::Builder::new(Vec::new());
        // More than fits the pieces and sockets on the way, and does not compress.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        let content: Vec<u8> = (0..3_000_000).map(|_| random()).collect();
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        tar.append_data(&mut header, "content", &content[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        let diff_id = Digest::of(&tar);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        let layer = gzip.finish().unwrap();
        let config = json!({
            "architecture": machine, "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        })
        .to_string();
        let mut sample = Sample { layer, config, manifest: String::new() };
        sample.describe(sample.layer.len() as u64);
        sample
    }

    /// Makes the manifest, which says that the layer has `size` bytes.
    fn describe(&mut self, size: u64) {
        self.manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(self.config.as_bytes()), "size": self.config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(&self.layer), "size": size,
            }],
        })
        .to_string();
    }

    fn digest(&self) -> Digest {
        Digest::of(self.manifest.as_bytes())
    }

    fn layer_path(&self) -> String {
        format!("/v2/team/app/blobs/{}", Digest::of(&self.layer))
    }

    /// As an honest registry answers.
    fn serve(&self, seen: &Seen) -> Reply {
        let known = [
            (format!("/v2/team/app/blobs/{}", Digest::of(self.config.as_bytes())), self.config.as_bytes()),
            ("/v2/team/app/manifests/1".to_owned(), self.manifest.as_bytes()),
            (format!("/v2/team/app/manifests/{}", self.digest()), self.manifest.as_bytes()),
            (self.layer_path(), &self.layer[..]),
        ];
        match known.iter().find(|(path, _)| *path == seen.path) {
            Some((path, content)) if path.contains("manifests") => {
                Reply::new(200, content).with("Content-Type", MANIFEST)
            }
            Some((_, content)) => Reply::new(200, content),
            None => Reply::new(404, br#"{"errors":[{"code":"UNKNOWN","message":"never heard of it"}]}"#),
        }
    }
}

/// A client with a store and settings of its own.
struct Client {
    dir: PathBuf,
    registries: Registries,
    store: ImageStore,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = crate::sys::fs::remove_tree(&self.dir);
    }
}

impl Client {
    fn new() -> Client {
        Client::configured("")
    }

    fn configured(registries_conf: &str) -> Client {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("coracle-client-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("registries.conf"), registries_conf).unwrap();
        let settings =
            Settings { registries_conf: dir.join("registries.conf"), root_dir: dir.clone(), ..Settings::default() };
        let mut registries = Registries::new(settings, Arc::new(Trust::new(trust::Settings::default())));
        registries.patience = Patience {
            attempts: 3,
            pause: Duration::from_millis(1),
            connect: Duration::from_secs(20),
            stall: Duration::from_millis(500),
            progress: Duration::from_secs(20),
            document: Duration::from_secs(20),
            documents: Duration::from_secs(60),
        };
        let store = ImageStore::open(&dir.join("store")).unwrap();
        Client { dir, registries, store }
    }

    fn pull(&self, image: &str) -> Result<Pulled, Error> {
        self.pull_with(image, &[], &AtomicBool::new(false)).0
    }

    fn pull_with(
        &self,
        image: &str,
        secrets: &[PullSecret],
        cancelled: &AtomicBool,
    ) -> (Result<Pulled, Error>, Vec<Progress>) {
        let told = Mutex::new(Vec::new());
        let progress = |event| told.lock().unwrap().push(event);
        let result = self.registries.pull(&self.store, &Request { image, secrets, cancelled }, &progress);
        if result.is_err() {
            assert!(self.store.list().is_empty(), "an image of a pull that failed");
        }
        assert_eq!(fs::read_dir(self.dir.join("store/staging")).unwrap().count(), 0, "leftovers in staging");
        (result, told.into_inner().unwrap())
    }
}

/// A server of the sample, but for what `odd` answers: the `n`th request (from 0) of a path.
fn server(odd: impl Fn(&Sample, &Seen, usize) -> Option<Reply> + Send + Sync + 'static) -> (Server, Arc<Sample>) {
    serve(Sample::new(architecture()), odd)
}

fn serve(
    sample: Sample,
    odd: impl Fn(&Sample, &Seen, usize) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Arc<Sample>) {
    let sample = Arc::new(sample);
    let shared = sample.clone();
    let server = Server::start(move |seen, n| odd(&shared, seen, n).unwrap_or_else(|| shared.serve(seen)));
    (server, sample)
}

fn secret(server: &Server, name: &str, password: &str) -> PullSecret {
    let auths = json!({ "auths": { server.address(): { "username": "edge", "password": password } } });
    PullSecret { name: name.into(), content: auths.to_string().into_bytes() }
}

#[test]
fn an_image_is_pulled_once_and_told_as_it_comes() {
    let (server, sample) = server(|_, _, _| None);
    let client = Client::new();
    let name = format!("{}/team/app:1", server.address());
    let (pulled, told) = client.pull_with(&name, &[], &AtomicBool::new(false));
    let pulled = pulled.unwrap();
    assert!(pulled.fetched && pulled.secret.is_none());
    assert_eq!(pulled.digest, sample.digest());
    assert_eq!(pulled.image.names, std::slice::from_ref(&name));
    assert_eq!(pulled.image.id, Digest::of(sample.config.as_bytes()).as_str());
    assert_eq!(pulled.image.digests, [sample.digest().as_str()]);
    let repository = format!("{}/team/app", server.address());
    let origin = Origin::Registry { repository, digest: sample.digest() };
    assert_eq!(pulled.image.origins, std::slice::from_ref(&origin));
    assert_eq!(fs::metadata(pulled.image.layers[0].join("content")).unwrap().len(), 3_000_000);
    assert_eq!(told[0], Progress::Resolved { digest: sample.digest(), layers: 1 });
    let (digest, size) = (Digest::of(&sample.layer), sample.layer.len() as u64);
    let layer = |done, state| Progress::Layer { digest: digest.clone(), size, done, state };
    assert_eq!(told[1], layer(0, LayerState::Waiting));
    assert_eq!(told.last(), Some(&layer(size, LayerState::Done)));

    let (again, told) = client.pull_with(&name, &[], &AtomicBool::new(false));
    assert!(!again.unwrap().fetched);
    assert_eq!(told.last(), Some(&layer(size, LayerState::Present)));
    assert_eq!(server.count(&sample.layer_path()), 1);

    // The same by digest has no name of its own, and what was lost comes back by its origin.
    client.store.remove(&pulled.image.id, &[]).unwrap();
    let again = client.registries.refetch(&client.store, &origin, &AtomicBool::new(false), &|_| {}).unwrap();
    assert!(again.fetched && again.image.names.is_empty());
    assert_eq!(again.image.id, pulled.image.id);
    assert!(again.image.layers[0].join("content").is_file());
    let nowhere = client.registries.refetch(&client.store, &Origin::BuiltIn, &AtomicBool::new(false), &|_| {});
    assert!(matches!(nowhere, Err(Error::NotFound { .. })));
}

#[test]
fn a_download_goes_on_where_it_broke() {
    // A server that knows ranges, and one that does not.
    for ranges in [true, false] {
        let (server, sample) = server(move |sample, seen, n| {
            if seen.path != sample.layer_path() {
                return None;
            }
            let from =
                seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            let reply = match from.filter(|_| ranges) {
                Some(from) => {
                    assert_eq!(seen.header("if-range"), Some("\"this very one\""));
                    let (from, total): (usize, usize) = (from, sample.layer.len());
                    Reply::new(206, &sample.layer[from..])
                        .with("Content-Range", &format!("bytes {from}-{}/{total}", total - 1))
                }
                None => Reply::new(200, &sample.layer),
            };
            let reply = reply.with("ETag", "\"this very one\"");
            // Breaks more often than one request would be tried: there is progress in between.
            Some(if n < 6 { reply.cut(if ranges { 400_000 } else { (n + 1) * 400_000 }) } else { reply })
        });
        let (pulled, told) =
            Client::new().pull_with(&format!("{}/team/app:1", server.address()), &[], &AtomicBool::new(false));
        pulled.unwrap();
        assert_eq!(server.count(&sample.layer_path()), 7);
        assert_eq!(told.iter().filter(|event| matches!(event, Progress::Retry { .. })).count(), 6, "{told:?}");
    }
}

#[test]
fn a_download_without_progress_ends() {
    for hang in [false, true] {
        let (server, sample) = server(move |sample, seen, _| {
            let reply = || Reply::new(200, &sample.layer).cut(1000);
            (seen.path == sample.layer_path()).then(|| if hang { reply().hang() } else { reply() })
        });
        let error = Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(&format!("of {} bytes", sample.layer.len())), "{error}");
        assert_eq!(server.count(&sample.layer_path()), 3);
    }
}

#[test]
fn content_that_is_not_what_it_should_be_never_gets_in() {
    let (server, _) = server(|sample, seen, _| {
        let mut other = sample.layer.clone();
        *other.last_mut().unwrap() ^= 1;
        (seen.path == sample.layer_path()).then(|| Reply::new(200, &other))
    });
    let error = Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap_err();
    // gzip has its own check of the last bytes, which sees this first.
    assert!(matches!(error, Error::Image(ImageError::Mismatch { .. } | ImageError::Stream { .. })), "{error:?}");

    let (server, _) = serve(Sample::new(architecture()), |sample, seen, _| {
        (seen.path == sample.layer_path()).then(|| Reply::new(200, &Sample::new("other").layer[..1000]))
    });
    let error = Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap_err();
    assert!(error.to_string().contains("has 1000 bytes, but the manifest says"), "{error}");

    for (claimed, endless, why) in [
        (1_000_000, false, "has "),
        (1_000_000, true, "has more than the 1000000 bytes"),
        (1 << 30, false, ", but the manifest says 1073741824"),
    ] {
        let mut sample = Sample::new(architecture());
        sample.describe(claimed);
        let (server, _) = serve(sample, move |sample, seen, _| {
            let reply = || Reply::new(200, &sample.layer);
            (seen.path == sample.layer_path()).then(|| if endless { reply().endless() } else { reply() })
        });
        let error = Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }

    // A manifest by digest, whatever its server says of it.
    let (server, sample) = serve(Sample::new(architecture()), |sample, seen, _| {
        let other = sample.manifest.replace("schemaVersion", "schemaversion");
        seen.path
            .contains("/manifests/sha256:")
            .then(|| Reply::new(200, other.as_bytes()).with("Docker-Content-Digest", sample.digest().as_str()))
    });
    let error = Client::new().pull(&format!("{}/team/app@{}", server.address(), sample.digest())).unwrap_err();
    assert!(matches!(error, Error::Image(ImageError::Mismatch { what: "manifest", .. })), "{error:?}");
}

#[test]
fn documents_have_a_limit() {
    for endless in [false, true] {
        let (server, _) = server(move |_, seen, _| {
            let reply = || Reply::new(200, &vec![b' '; (4 << 20) + 1]);
            seen.path
                .contains("/manifests/")
                .then(|| if endless { Reply::new(200, &[b'['; 65536]).endless() } else { reply() })
        });
        let error = Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap_err();
        assert!(matches!(error, Error::Image(ImageError::Limit { limit: 4_194_304, .. })), "{error:?}");
    }
}

#[test]
fn a_busy_registry_is_asked_again_and_a_broken_one_not_for_ever() {
    let (server, _) = server(|_, seen, n| {
        (seen.path.contains("/manifests/") && n < 2).then(|| Reply::new(429, b"").with("Retry-After", "0"))
    });
    Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap();

    let (server, _) = serve(Sample::new(architecture()), |_, _, _| {
        Some(Reply::new(503, br#"{"errors":[{"code":"UNAVAILABLE","message":"back\nsoon"}]}"#))
    });
    let error = Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap_err();
    let url = format!("http://{}/v2/team/app/manifests/1", server.address());
    assert_eq!(error.to_string(), format!("{url}: 503 UNAVAILABLE: back soon"));
    assert_eq!(error.reason(), "RegistryUnavailable");
    assert_eq!(server.count("/v2/team/app/manifests/1"), 3);
    let address = server.address();
    drop(server);
    let error = Client::new().pull(&format!("{address}/team/app:1")).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[test]
fn what_is_not_there_or_not_for_us_is_said() {
    let foreign = Sample::new("s390x");
    let (digest, size) = (foreign.digest(), foreign.manifest.len());
    let (server, _) = serve(foreign, move |_, seen, _| {
        let entry = |os: &str, machine: &str, digest: &Digest| json!({ "mediaType": MANIFEST, "digest": digest, "size": size, "platform": { "os": os, "architecture": machine } });
        let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
            entry("windows", "amd64", &digest), entry("linux", "mips64le", &digest),
            entry("unknown", "unknown", &digest), { "mediaType": MANIFEST, "digest": digest, "size": size },
        ]});
        let old = json!({ "schemaVersion": 1, "name": "team/app", "fsLayers": [] });
        let both = json!({ "schemaVersion": 2, "manifests": [], "layers": [] });
        let reply = |value: Value| Some(Reply::new(200, value.to_string().as_bytes()).with("Content-Type", INDEX));
        match seen.path.as_str() {
            "/v2/team/app/manifests/list" => reply(list),
            "/v2/team/app/manifests/old" => reply(old),
            "/v2/team/app/manifests/both" => reply(both),
            _ => None,
        }
    });
    let client = Client::new();
    let why = |tag: &str| client.pull(&format!("{}/team/app:{tag}", server.address())).unwrap_err().to_string();
    let here = architecture();
    assert_eq!(why("list"), format!("no image for linux/{here}, only for linux/mips64le, linux/s390x, windows/amd64"));
    assert_eq!(why("1"), format!("no image for linux/{here}, only for linux/s390x"));
    assert!(why("old").contains("schema 1"));
    assert!(why("both").contains("both an index and a manifest"));
    assert_eq!(why("2"), format!("{}/team/app:2: not found", server.address()));
    assert!(client.pull("Not A Name").unwrap_err().reason() == "InvalidImageName");
}

#[test]
fn indexes_within_indexes_are_followed_but_not_for_ever() {
    let (server, sample) = server(|sample, seen, _| {
        let nested = |inner: &str| {
            let list = json!({ "schemaVersion": 2, "manifests": [
                { "mediaType": INDEX, "digest": Digest::of(inner.as_bytes()), "size": inner.len() },
            ]});
            list.to_string()
        };
        let mut chain = vec![sample.manifest.clone()];
        for _ in 0..6 {
            chain.push(nested(&chain[chain.len() - 1]));
        }
        let asked = seen.path.strip_prefix("/v2/team/app/manifests/")?;
        let by_depth = asked.strip_prefix("nested-").and_then(|depth| chain.get(depth.parse::<usize>().ok()?));
        let found =
            by_depth.or_else(|| chain.iter().find(|content| Digest::of(content.as_bytes()).as_str() == asked))?;
        Some(Reply::new(200, found.as_bytes()))
    });
    let client = Client::new();
    let pulled = client.pull(&format!("{}/team/app:nested-2", server.address())).unwrap();
    assert_eq!(pulled.image.digests.len(), 3);
    assert_ne!(pulled.digest, sample.digest());
    assert!(client.store.resolve(&format!("{}/team/app@{}", server.address(), pulled.digest)).is_some());
    let error = Client::new().pull(&format!("{}/team/app:nested-6", server.address())).unwrap_err();
    assert!(matches!(error, Error::Image(ImageError::Limit { .. })), "{error:?}");
}

/// A registry and its token server in one: `Bearer good-N` opens the registry, where N is the last that was given.
fn with_tokens(works: bool) -> (Server, Arc<Sample>) {
    let given = AtomicU32::new(0);
    let asked = AtomicU32::new(0);
    server(move |_, seen, _| {
        if seen.path.starts_with("/token") {
            let basic = auth::basic("edge", "right");
            if seen.header("authorization") != Some(&basic) {
                return Some(Reply::new(401, br#"{"details":"who are you?"}"#));
            }
            assert_eq!(seen.path, "/token?service=tests&scope=repository%3Ateam%2Fapp%3Apull");
            let token = json!({ "token": format!("good-{}", given.fetch_add(1, Ordering::Relaxed) + 1) });
            return Some(Reply::new(200, token.to_string().as_bytes()));
        }
        let current = format!("Bearer good-{}", given.load(Ordering::Relaxed));
        // Tokens are taken back now and then.
        let fresh = asked.fetch_add(1, Ordering::Relaxed) % 3 != 2;
        if works && fresh && seen.header("authorization") == Some(&current) {
            return None;
        }
        let realm = format!("http://{}/token", seen.header("host").unwrap());
        let challenge = format!(r#"Negotiate, Bearer realm="{realm}",service="tests",error="invalid_token""#);
        Some(Reply::new(401, b"").with("WWW-Authenticate", &challenge))
    })
}

#[test]
fn credentials_are_tried_in_order_and_tokens_renewed() {
    let (server, sample) = with_tokens(true);
    let secrets =
        [secret(&server, "ns/wrong", "wrong"), secret(&server, "ns/right", "right"), secret(&server, "ns/unused", "x")];
    let client = Client::new();
    let name = format!("{}/team/app:1", server.address());
    let (pulled, _) = client.pull_with(&name, &secrets, &AtomicBool::new(false));
    assert_eq!(pulled.unwrap().secret.as_deref(), Some("ns/right"));
    assert!(server.count(&sample.layer_path()) >= 1);
    assert!(server.seen().iter().all(|seen| seen.header("authorization") != Some(&auth::basic("edge", "x"))));

    let (server, _) = with_tokens(true);
    let secrets = [secret(&server, "ns/wrong", "wr0ng")];
    let (refused, _) =
        Client::new().pull_with(&format!("{}/team/app:1", server.address()), &secrets, &AtomicBool::new(false));
    let error = refused.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("secret ns/wrong") && text.contains("who are you?") && !text.contains("wr0ng"), "{text}");
    let error = Client::new().pull(&format!("{}/team/app:1", server.address())).unwrap_err();
    assert!(error.to_string().contains("who are you?"), "{error}");
}

#[test]
fn a_registry_that_never_has_enough_is_left_alone() {
    let (server, _) = with_tokens(false);
    let secrets = [secret(&server, "ns/one", "right"), secret(&server, "ns/two", "right")];
    let (refused, _) =
        Client::new().pull_with(&format!("{}/team/app:1", server.address()), &secrets, &AtomicBool::new(false));
    assert!(matches!(refused, Err(Error::Unauthorized { .. })), "{refused:?}");
    assert!(server.seen().len() <= 6, "{} requests", server.seen().len());
}

#[test]
fn redirects_take_no_secrets_along() {
    let (elsewhere, sample) = server(|sample, seen, _| {
        let asked = seen.path.strip_prefix("/cache/")?;
        Some(if asked == "layer?signature=s3cret" { Reply::new(200, &sample.layer) } else { Reply::new(403, b"no") })
    });
    let target = elsewhere.address();
    let (registry, _) = server(move |sample, seen, _| {
        if seen.header("authorization") != Some(&auth::basic("edge", "right")) {
            return Some(Reply::new(401, b"").with("WWW-Authenticate", "Basic realm=\"x\""));
        }
        let tag = seen.path.strip_prefix("/v2/team/app/manifests/");
        let location = match tag {
            Some("loop") => "loop".to_owned(),
            Some("file") => "file:///etc/passwd".to_owned(),
            Some("user") => format!("http://user:password@{target}/cache/x"),
            Some("denied") => format!("http://{target}/cache/denied?signature=s3cret"),
            // Within the host all stays as it is.
            Some("moved") => "/v2/team/app/manifests/1".to_owned(),
            _ if seen.path == sample.layer_path() => format!("http://{target}/cache/layer?signature=s3cret"),
            _ => return None,
        };
        Some(Reply::new(307, b"").with("Location", &location))
    });
    let secrets = [secret(&registry, "ns/right", "right")];
    let client = Client::new();
    let name = |tag: &str| format!("{}/team/app:{tag}", registry.address());
    let pull = |client: &Client, tag: &str| client.pull_with(&name(tag), &secrets, &AtomicBool::new(false)).0;
    for (tag, why) in
        [("loop", "more than 10 redirects"), ("file", "no URL"), ("user", "no URL"), ("denied", "403 Forbidden")]
    {
        let error = pull(&client, tag).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("s3cret") && !error.contains("password"), "{error}");
    }
    pull(&client, "moved").unwrap();
    assert_eq!(elsewhere.count("/cache/layer?signature=s3cret"), 1);
    assert!(elsewhere.seen().iter().all(|seen| seen.header("authorization").is_none()));
    assert!(sample.layer_path().contains("sha256:"));
}

#[test]
fn a_pull_can_be_given_up_at_any_time() {
    for path in ["/manifests/", "/blobs/"] {
        let (server, _) = server(move |sample, seen, _| {
            seen.path
                .contains(path)
                .then(|| Reply::new(200, &sample.layer).cut(if path == "/blobs/" { 10 } else { 0 }).hang())
        });
        let mut client = Client::new();
        client.registries.patience.stall = Duration::from_secs(3600);
        let cancelled = AtomicBool::new(false);
        thread::scope(|scope| {
            let name = format!("{}/team/app:1", server.address());
            let (client, cancelled) = (&client, &cancelled);
            let pull = scope.spawn(move || client.pull_with(&name, &[], cancelled).0);
            while !pull.is_finished() && !server.seen().iter().any(|seen| seen.path.contains(path)) {
                thread::sleep(Duration::from_millis(1));
            }
            cancelled.store(true, Ordering::Relaxed);
            let result = pull.join().unwrap();
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        });
    }
}

#[test]
fn mirrors_come_first_and_cannot_lie() {
    let (origin, sample) = server(|_, _, _| None);
    let (empty, _) = server(|_, _, _| Some(Reply::new(404, b"")));
    // Has the right documents, but another layer.
    let (liar, _) = server(|sample, seen, _| {
        let mut other = sample.layer.clone();
        other[20] ^= 0xff;
        (seen.path == sample.layer_path()).then(|| Reply::new(200, &other))
    });
    let client = Client::configured(&format!(
        "[[registry]]\nprefix = \"{0}\"\nlocation = \"{0}\"\n\
         [[registry.mirror]]\nlocation = \"{1}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{2}\"\ninsecure = true\n",
        origin.address(),
        empty.address(),
        liar.address(),
    ));
    let (pulled, told) = client.pull_with(&format!("{}/team/app:1", origin.address()), &[], &AtomicBool::new(false));
    assert_eq!(pulled.unwrap().digest, sample.digest());
    assert_eq!(empty.count("/v2/team/app/manifests/1"), 1);
    assert_eq!(liar.count("/v2/team/app/manifests/1"), 1);
    assert_eq!(liar.count(&sample.layer_path()), 1);
    assert_eq!(origin.count("/v2/team/app/manifests/1"), 0);
    assert_eq!(origin.count(&sample.layer_path()), 1);
    assert!(told.iter().any(|event| matches!(event, Progress::Retry { .. })), "{told:?}");
}
