//! `apply`, `delete` and `validate`.

use super::client::{Client, decode};
use super::error::Error;
use super::{print, validate};
use crate::manifest::{self, Origin};
use crate::server::encode;
use crate::server::types::{Action, Applied, Cause, Status};
use hyper::Method;
use hyper::body::Bytes;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use std::io::Read;
use std::time::{Duration, Instant};

/// Largest manifest, in bytes.
const MAX_MANIFEST: u64 = 10 << 20;
/// How long a download may take.
const DOWNLOAD_TIME: Duration = Duration::from_secs(30);

/// Reads a manifest from a file, standard input (`-`) or a URL.
pub(super) async fn read(source: &str) -> Result<Bytes, Error> {
    let name = source.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        if name == "-" {
            limited(std::io::stdin().lock())
        } else if is_url(&name) {
            download(&name)
        } else {
            std::fs::File::open(&name).map_err(|error| error.to_string()).and_then(limited)
        }
    });
    let bytes = read.await.map_err(|error| error.to_string()).and_then(|bytes| bytes);
    bytes.map(Bytes::from).map_err(|why| Error::new(format!("cannot read {source}"), why))
}

fn is_url(source: &str) -> bool {
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

fn download(url: &str) -> Result<Vec<u8>, String> {
    let config = ureq::Agent::config_builder().timeout_global(Some(DOWNLOAD_TIME)).build();
    let agent = ureq::Agent::new_with_config(config);
    let answer = agent.get(url).call().map_err(|error| error.to_string())?;
    limited(answer.into_body().into_reader())
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

/// Sends a manifest to the agent; problems go to standard error.
pub(super) async fn send(client: &Client, source: &str, bytes: Bytes, query: &str) -> Result<Applied, Error> {
    match client.try_send(Method::POST, &format!("/coracle/v1/apply{query}"), bytes).await {
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

/// kubectl's line a pod.
fn report(applied: &Applied) -> String {
    let word = match applied.action {
        Action::Created => "created",
        Action::Configured => "configured",
        Action::Unchanged => "unchanged",
        Action::Deleted => "deleted",
    };
    applied.pods.iter().map(|pod| format!("pod/{} {word}\n", pod.name)).collect()
}

/// Runs `delete`: by names or by manifests; waits until the pods are gone unless told otherwise.
pub(super) async fn delete(
    client: &Client,
    namespace: &str,
    names: &[String],
    sources: &[String],
    wait: Option<Duration>,
) -> Result<i32, Error> {
    let mut wanted: Vec<(String, String)> =
        names.iter().map(|name| (namespace.to_owned(), name.strip_prefix("pod/").unwrap_or(name).to_owned())).collect();
    if !sources.is_empty() {
        let node = super::node_name(client).await?;
        for source in sources {
            let loaded = manifest::load(&read(source).await?, Origin::File(source), &node);
            if loaded.pods.is_empty() {
                let hint = format!("see what is wrong with it: coracle validate {source}");
                return Err(
                    Error::new(format!("{} defines no valid pod", shown(source)), "nothing to delete").hint(hint)
                );
            }
            let name = |field: Option<String>| field.unwrap_or_default();
            wanted.extend(loaded.pods.into_iter().map(|pod| (name(pod.metadata.namespace), name(pod.metadata.name))));
        }
    }
    if wanted.is_empty() {
        return Err(Error::usage("name a pod, or a manifest with -f"));
    }
    let query: Vec<String> =
        wanted.iter().map(|(namespace, name)| format!("pod={}", encode(&format!("{namespace}/{name}")))).collect();
    let path = format!("/coracle/v1/delete?{}", query.join("&"));
    let answer = client.try_send(Method::POST, &path, Bytes::new()).await.map_err(|(error, _)| error)?;
    let removed: Vec<Applied> = decode(&answer)?;
    removed.iter().try_for_each(|applied| print(&report(applied)))?;
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

/// Runs `validate`: needs no agent. Prints every problem; exit code 1 when one is an error, or, if `strict`, a warning.
pub(super) async fn validate(sources: &[String], strict: bool, node: &str) -> Result<i32, Error> {
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
    fn what_is_too_large_is_refused() {
        let endless = std::io::repeat(b'#');
        assert!(limited(endless).unwrap_err().contains("larger than 10 MiB"));
    }
}
