//! See [`image::fuzzing`](crate::image::fuzzing).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::auth::{self, TokenService};
use super::credentials::{Credentials, Login};
use super::hosts::{Endpoint, Hosts};
use super::manifest::{self, Manifest};
use super::{Environment, PullSecret, Settings, download, exchange};
use crate::http::place;

/// Headers and bodies of answers.
pub(in super::super) fn answers(bytes: &[u8]) {
    // Headers that are not of visible characters are not looked at.
    if let Ok(text) = std::str::from_utf8(bytes) {
        headers(text);
    }
    let complaint = exchange::complaint(500, bytes, &[]);
    assert!(complaint.chars().count() <= 300 && !complaint.chars().any(char::is_control), "{complaint:?}");
    let now = Instant::now();
    if let Ok(token) = auth::Token::parse(bytes, now) {
        assert!(token.header().bytes().all(|b| b.is_ascii_graphic() || b == b' '), "not a header");
        assert!(!token.fresh(now + Duration::from_secs(24 * 3600)), "for good");
    }
    for content_type in ["application/vnd.oci.image.index.v1+json", ""] {
        match manifest::parse(bytes, content_type) {
            Ok(Manifest::Index(manifests)) => {
                let count = manifests.len();
                for variant in [None, Some("v3")] {
                    let (chosen, elsewhere) = manifest::choose(manifests.clone(), variant);
                    assert!(chosen.len() + elsewhere.len() <= count);
                }
            }
            Ok(Manifest::Image { config, layers }) => {
                let _ = manifest::check_image(&config, &layers);
                for layer in layers {
                    let _ = layer.is_foreign();
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn headers(text: &str) {
    let challenges = auth::challenges(text);
    assert!(challenges.len() <= 16);
    for challenge in &challenges {
        assert!(!challenge.scheme.bytes().any(|b| b.is_ascii_uppercase()));
        let Ok(service) = TokenService::of(challenge, "team/app") else { continue };
        let url = service.url();
        let lower = url.to_ascii_lowercase();
        assert!(lower.starts_with("https://") || lower.starts_with("http://"), "a token of {url:?}");
        // What the registry says cannot add fields, nor end the identity token.
        assert_eq!(service.form("a&b=c").matches('&').count(), 4);
    }
    if let Some((first, total)) = download::parse_range(text) {
        assert!(total.is_none_or(|total| first < total));
    }
    for from in ["https://r.example:5000/v2/team/app/blobs/x?y=z", "http://r.example/v2/team/app/blobs/x"] {
        if let Ok(url) = place::redirect(from, text).map(|url| url.to_ascii_lowercase()) {
            let secure = from.starts_with("https://");
            assert!(url.starts_with("https://") || (!secure && url.starts_with("http://")), "{from} to {url}");
            let authority =
                url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next()).unwrap_or_default();
            let host = !authority.is_empty() && !authority.starts_with(':');
            assert!(host && !authority.contains('@'), "{from} to {url}");
        }
    }
}

/// Files that say where registries are and who may ask them.
pub(in super::super) fn settings(bytes: &[u8], dir: &Path) {
    let settings = |registries_conf: &str, certs: &str| Settings {
        registries_conf: dir.join(registries_conf),
        certs_dirs: vec![dir.join(certs)],
        auth_files: vec![dir.join("it")],
        root_dir: dir.join("none"),
        // No PATH: no helper is started, whatever its name.
        environment: Environment::default(),
    };
    fs::create_dir_all(dir.join("certs.d/host.example")).expect("folder");
    for name in ["it", "certs.d/host.example/hosts.toml"] {
        fs::write(dir.join(name), bytes).expect("file");
    }
    for settings in [settings("it", "none"), settings("none", "certs.d")] {
        let hosts = Hosts::new(&settings);
        for repository in ["host.example/team/app", "docker.io/library/nginx", "a.b.host.example:5000/app"] {
            for by_digest in [true, false] {
                match hosts.endpoints(repository, by_digest) {
                    Ok(endpoints) => {
                        assert!(!endpoints.is_empty());
                        endpoints.iter().for_each(check);
                    }
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
    }
    let credentials = Credentials::new(&settings("none", "none"));
    let secret = PullSecret { name: "default/secret".into(), content: bytes.to_vec() };
    for host in ["host.example", "docker.io"] {
        for found in credentials.candidates(host, "team/app", std::slice::from_ref(&secret)).credentials {
            if let Login::Password { username, password } = found.login {
                let header = auth::basic(&username, &password);
                assert!(header.bytes().all(|b| b.is_ascii_graphic() || b == b' '), "not a header");
            }
        }
    }
}

fn check(endpoint: &Endpoint) {
    let Endpoint { base, insecure, headers, .. } = endpoint;
    assert!(base.starts_with("https://") || (*insecure && base.starts_with("http://")), "{base}");
    assert!(!endpoint.repository.is_empty() && !endpoint.authority().is_empty());
    assert!(!endpoint.authority().contains(['@', '?', '#', ' ']), "{base}");
    assert!(endpoint.plain().is_none_or(|plain| plain.base.starts_with("http://")));
    assert!(headers.iter().all(|(name, value)| !format!("{name}{value}").contains(['\r', '\n'])), "{headers:?}");
}
