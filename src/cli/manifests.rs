//! `apply`, `delete` and `validate`.

use super::client::{Client, decode};
use super::error::Error;
use super::get::Resource;
use super::{print, signature, validate};
use crate::manifest::{self, Object, ObjectId, Origin};
use crate::server::encode;
use crate::server::types::{Action, Applied, Cause, ObjectName, Status};
use crate::source;
use hyper::Method;
use hyper::body::Bytes;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use std::io::Read;
use std::time::{Duration, Instant};

/// Largest manifest, in bytes.
const MAX_MANIFEST: u64 = 10 << 20;

/// Reads a manifest from a file, standard input (`-`) or a URL.
pub(super) async fn read(source: &str) -> Result<Bytes, Error> {
    let name = source.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        if name == "-" {
            limited(std::io::stdin().lock())
        } else if is_url(&name) {
            source::url::download(&name)
        } else {
            std::fs::File::open(&name).map_err(|error| error.to_string()).and_then(limited)
        }
    });
    let bytes = read.await.map_err(|error| error.to_string()).and_then(|bytes| bytes);
    bytes.map(Bytes::from).map_err(|why| Error::new(format!("cannot read {source}"), why))
}

pub(super) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

fn limited(reader: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    reader.take(MAX_MANIFEST + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(format!("larger than {} MiB", MAX_MANIFEST >> 20));
    }
    Ok(bytes)
}

/// How a source is called in messages, and by `validate`'s `FILE:LINE`.
fn shown(source: &str) -> &str {
    if source == "-" { "<stdin>" } else { source }
}

/// `FILE:LINE: field: reason`.
pub(super) fn problem_line(source: &str, problem: &Cause) -> String {
    let place = match problem.line {
        Some(line) => format!("{}:{line}", shown(source)),
        None => shown(source).to_owned(),
    };
    let severity = if problem.reason == "Warning" { "warning: " } else { "" };
    let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
    format!("{place}: {severity}{field}{}\n", problem.message)
}

/// Sends a manifest to the agent, and the signature beside it; problems go to standard error.
pub(super) async fn send(client: &Client, source: &str, bytes: Bytes, query: &str) -> Result<Applied, Error> {
    let signature = signature::sent(source, query)?;
    match client.try_send(Method::POST, &format!("/coracle/v1/apply{query}{signature}"), bytes).await {
        Ok(answer) => {
            let applied: Applied = decode(&answer)?;
            for problem in &applied.problems {
                eprint!("{}", problem_line(source, problem));
            }
            Ok(applied)
        }
        Err((error, Status { details: Some(details), .. })) if !details.causes.is_empty() => {
            for problem in &details.causes {
                eprint!("{}", problem_line(source, problem));
            }
            let errors = details.causes.iter().filter(|problem| problem.reason != "Warning").count();
            let _ = error;
            Err(Error::new(format!("{} is refused", shown(source)), format!("{errors} problem{}", plural(errors))))
        }
        Err((error, _)) => Err(error),
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Runs `apply -f`.
pub(super) async fn apply(client: &Client, sources: &[String]) -> Result<i32, Error> {
    for source in sources {
        let applied = send(client, source, read(source).await?, "").await?;
        print(&report(&applied))?;
    }
    Ok(0)
}

/// kubectl's line a pod or object.
fn report(applied: &Applied) -> String {
    let word = match applied.action {
        Action::Created => "created",
        Action::Configured => "configured",
        Action::Unchanged => "unchanged",
        Action::Deleted => "deleted",
    };
    let pods = applied.pods.iter().map(|pod| format!("pod/{} {word}\n", pod.name));
    let object = |object: &ObjectName| format!("{}/{} {word}\n", object.kind.to_lowercase(), object.name);
    pods.chain(applied.objects.iter().map(object)).collect()
}

/// What people name as kubectl wants it (`web`, `pod/web`, `configmap settings`), as the agent's query wants it.
fn named(namespace: &str, words: &[String]) -> Result<Vec<String>, Error> {
    let mut words = words.iter().map(String::as_str).peekable();
    let mut kind = "pod";
    if words.len() > 1
        && let Some(known) = words.peek().and_then(|word| removable(word))
    {
        kind = known;
        words.next();
    }
    let query = |word: &str| {
        let (kind, name) = match word.split_once('/') {
            None => (kind, word),
            Some((other, name)) => {
                let unknown = || Error::usage(format!("cannot delete {other:?}: want pod, configmap or secret"));
                (removable(other).ok_or_else(unknown)?, name)
            }
        };
        Ok(match kind {
            "pod" => format!("pod={}", encode(&format!("{namespace}/{name}"))),
            kind => format!("object={}", encode(&format!("{kind}/{namespace}/{name}"))),
        })
    };
    words.map(query).collect()
}

/// A kind that manifests define, by any of its names.
fn removable(word: &str) -> Option<&'static str> {
    match word.parse() {
        Ok(Resource::Pods) => Some("pod"),
        Ok(Resource::ConfigMaps) => Some("configmap"),
        Ok(Resource::Secrets) => Some("secret"),
        _ => None,
    }
}

/// Runs `delete`: by names or by manifests; waits until the pods are gone unless told otherwise.
pub(super) async fn delete(
    client: &Client,
    namespace: &str,
    names: &[String],
    sources: &[String],
    wait: Option<Duration>,
) -> Result<i32, Error> {
    let mut wanted = named(namespace, names)?;
    if !sources.is_empty() {
        let node = super::node_name(client).await?;
        for source in sources {
            let loaded = manifest::load(&read(source).await?, Origin::File(source), &node);
            if loaded.pods.is_empty() && loaded.objects.is_empty() {
                let hint = format!("see what is wrong with it: coracle validate {source}");
                return Err(
                    Error::new(format!("{} defines nothing valid", shown(source)), "nothing to delete").hint(hint)
                );
            }
            for pod in loaded.pods {
                let (namespace, name) = (pod.metadata.namespace, pod.metadata.name.unwrap_or_default());
                wanted.extend(named(&namespace.unwrap_or_default(), &[format!("pod/{name}")])?);
            }
            for ObjectId { kind, namespace, name } in loaded.objects.iter().map(Object::id) {
                wanted.extend(named(&namespace, &[format!("{}/{name}", kind.as_str().to_lowercase())])?);
            }
        }
    }
    if wanted.is_empty() {
        return Err(Error::usage("name a pod, configmap or secret, or a manifest with -f"));
    }
    let path = format!("/coracle/v1/delete?{}", wanted.join("&"));
    let answer = client.try_send(Method::POST, &path, Bytes::new()).await.map_err(|(error, _)| error)?;
    let removed: Vec<Applied> = decode(&answer)?;
    for applied in &removed {
        print(&report(applied))?;
        for problem in &applied.problems {
            eprint!("{}", problem_line(&applied.file, problem));
        }
    }
    if let Some(limit) = wait {
        let gone = removed.into_iter().flat_map(|applied| applied.pods).map(|pod| (pod.namespace, pod.name)).collect();
        wait_until_gone(client, gone, limit).await?;
    }
    Ok(0)
}

/// Waits until none of the pods exists.
pub(super) async fn wait_until_gone(
    client: &Client,
    pods: Vec<(String, String)>,
    limit: Duration,
) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        let list: List<Pod> = client.get("/api/v1/pods").await?;
        let there = list.items.iter().find(|pod| {
            let metadata = &pod.metadata;
            pods.iter().any(|(namespace, name)| {
                metadata.namespace.as_ref() == Some(namespace) && metadata.name.as_ref() == Some(name)
            })
        });
        let Some(pod) = there else { return Ok(()) };
        if started.elapsed() >= limit {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            return Err(Error::new(format!("pod {name} is still there"), "timed out waiting for it to stop"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs `validate`: needs no agent. Prints every problem; exit code 1 when one is an error, or, if `strict`, a warning, or
/// when there are keys and a manifest is not signed by one of them.
pub(super) async fn validate(sources: &[String], keys: &[String], strict: bool, node: &str) -> Result<i32, Error> {
    let verifier = signature::verifier(keys)?;
    let mut code = 0;
    let mut files = Vec::new();
    for source in &validate::files(sources)? {
        let bytes = match read(source).await {
            Ok(bytes) => bytes,
            Err(error) => {
                // The other files are still worth a look.
                eprintln!("{error}");
                code = 1;
                continue;
            }
        };
        if let Some(verifier) = &verifier {
            match signature::check(verifier, source, &bytes).await {
                Ok(line) => print(&format!("{}: {line}\n", shown(source)))?,
                Err(error) => {
                    eprintln!("{error}");
                    code = 1;
                }
            }
        }
        let origin = if is_url(source) { Origin::Url(source) } else { Origin::File(source) };
        files.push((shown(source).to_owned(), manifest::load(&bytes, origin, node)));
    }
    let report = validate::report(&mut files, node);
    print(&report.text)?;
    Ok(if report.errors > 0 || (strict && report.warnings > 0) { 1 } else { code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_file_line_field_and_reason() {
        let mut problem = Cause {
            reason: "FieldValueInvalid".into(),
            message: "Required value".into(),
            field: "spec.containers[0].image".into(),
            line: Some(7),
            column: Some(3),
        };
        assert_eq!(problem_line("a.yaml", &problem), "a.yaml:7: spec.containers[0].image: Required value\n");
        problem = Cause { reason: "Warning".into(), line: None, field: String::new(), ..problem };
        assert_eq!(problem_line("-", &problem), "<stdin>: warning: Required value\n");
    }

    #[test]
    fn what_is_deleted_is_named_as_kubectl_wants_it() {
        let query =
            |words: &str| named("ns", &words.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap().join("&");
        assert_eq!(query("web db"), query("pod/web po/db"));
        assert_eq!(query("pod web db"), query("web db"));
        assert_eq!(query("cm settings"), query("configmap/settings"));
        assert_eq!(query("pod"), query("pod/pod"), "a name of its own");
        assert_eq!(query("secret db cm/settings"), query("secret/db configmaps/settings"));
        assert_ne!(query("secret/db"), query("configmap/db"));
        assert!(named("ns", &["node/x".to_owned()]).is_err());
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let endless = std::io::repeat(b'#');
        assert!(limited(endless).unwrap_err().contains("larger than 10 MiB"));
    }
}
