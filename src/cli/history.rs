//! `history` and `rollback`.

use super::age::age_or_unknown;
use super::client::{Client, decode};
use super::error::Error;
use super::get::{pretty, yaml};
use super::print;
use super::table::{Table, printable};
use crate::server::encode;
use crate::server::types::{PodHistory, PodRevision, RolledBack};
use crate::sys::clock;
use hyper::Method;
use hyper::body::Bytes;
use jiff::Timestamp;

/// How a history is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

fn path(namespace: &str, pod: &str, what: &str) -> String {
    format!("/coracle/v1/namespaces/{}/pods/{}/{what}", encode(namespace), encode(pod))
}

/// Runs `history`.
pub(super) async fn history(
    client: &Client,
    namespace: &str,
    pod: &str,
    revision: Option<u64>,
    format: Option<Format>,
) -> Result<i32, Error> {
    let query = revision.map(|number| format!("?revision={number}")).unwrap_or_default();
    let history: PodHistory = client.get(&format!("{}{query}", path(namespace, pod, "history"))).await?;
    let whole = revision.and(history.items.first()).and_then(|item| item.template.clone());
    match (whole, format) {
        (Some(template), Some(Format::Json)) => print(&pretty(&template)?)?,
        (Some(template), _) => print(&yaml(&template)?)?,
        (None, Some(Format::Json)) => print(&pretty(&history)?)?,
        (None, Some(Format::Yaml)) => {
            let value = serde_json::to_value(&history).map_err(|error| Error::new("cannot print YAML", error))?;
            print(&yaml(&value)?)?;
        }
        (None, None) => print(&table(&history, clock::wall()))?,
    }
    Ok(0)
}

fn table(history: &PodHistory, now: Timestamp) -> String {
    let header = ["REVISION", "ACCEPTED", "STATUS", "SOURCE"].map(str::to_owned).to_vec();
    let rows = history.items.iter().map(|item| {
        let accepted = item.accepted.parse().ok();
        vec![item.revision.to_string(), age_or_unknown(accepted, now), status(item), item.source.clone()]
    });
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let mut text = Table::default().rows(&rows);
    if let Some(why) = &history.held {
        text.push_str(&format!("\nThe manifest says something newer that is not accepted: {}\n", printable(why)));
    }
    text
}

/// `running, rolled back`, `failed: why`.
fn status(item: &PodRevision) -> String {
    let mut words = Vec::new();
    if item.running {
        words.push(if item.manifest { "running" } else { "running, rolled back" }.to_owned());
    }
    match (item.verdict.as_str(), &item.message) {
        ("Bad", Some(why)) => words.push(format!("failed: {why}")),
        ("Bad", None) => words.push("failed".to_owned()),
        ("Good", _) => words.push("good".to_owned()),
        _ => {}
    }
    if words.is_empty() { "unknown".to_owned() } else { words.join(", ") }
}

/// Runs `rollback`.
pub(super) async fn roll_back(client: &Client, namespace: &str, pod: &str, to: Option<u64>) -> Result<i32, Error> {
    let query = to.map(|number| format!("?toRevision={number}")).unwrap_or_default();
    let path = format!("{}{query}", path(namespace, pod, "rollback"));
    let answer = client.try_send(Method::POST, &path, Bytes::new()).await.map_err(|(error, _)| error)?;
    let done: RolledBack = decode(&answer)?;
    let (name, revision) = (printable(&done.pod.name), done.revision);
    // As kubectl.
    print(&match done.unchanged {
        true => format!("pod/{name} skipped rollback (current template already matches revision {revision})\n"),
        false => format!("pod/{name} rolled back to revision {revision}\n"),
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(revision: u64, verdict: &str, message: Option<&str>) -> PodRevision {
        PodRevision {
            revision,
            accepted: "2026-01-01T00:00:00Z".to_owned(),
            running: revision == 2,
            manifest: revision == 3,
            verdict: verdict.to_owned(),
            message: message.map(str::to_owned),
            source: "/etc/kubernetes/manifests/web.yaml".to_owned(),
            content: "0".to_owned(),
            template: None,
        }
    }

    #[test]
    fn the_table_tells_the_story() {
        let why = "not Ready within 60s: container main waits: CrashLoopBackOff";
        let items = vec![item(1, "Unknown", None), item(2, "Good", Some("…")), item(3, "Bad", Some(why))];
        let pod = crate::server::types::PodName { namespace: "default".into(), name: "web-n1".into() };
        let history = PodHistory { kind: String::new(), api_version: String::new(), pod, held: None, items };
        let text = table(&history, "2026-01-01T00:05:00Z".parse().unwrap());
        expect_test::expect![[r#"
            REVISION   ACCEPTED   STATUS                                                                 SOURCE
            1          5m         unknown                                                                /etc/kubernetes/manifests/web.yaml
            2          5m         running, rolled back, good                                             /etc/kubernetes/manifests/web.yaml
            3          5m         failed: not Ready within 60s: container main waits: CrashLoopBackOff   /etc/kubernetes/manifests/web.yaml
        "#]]
        .assert_eq(&text);
        let held = PodHistory { held: Some("spec.volumes[0].configMap.name: Not found".into()), ..history };
        assert!(table(&held, clock::wall()).contains("not accepted: spec.volumes[0].configMap.name: Not found"));
    }
}
