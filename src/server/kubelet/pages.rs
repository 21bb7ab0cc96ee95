//! Pages of text about the agent itself: health, `statusz`, `flagz`. Pure but for what the node says.

use super::super::Node;
use super::super::reply::{self, Failure, Reply};
use crate::sys::clock;
use hyper::StatusCode;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

/// Checks, and the oldest that a sign of life of the loop may be (as kubelet: at least 5 minutes).
const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];
const STALLED: Duration = Duration::from_mins(5);

/// What its reader is told first.
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

fn is_well(node: &dyn Node, check: &str) -> bool {
    // Who answers is there, and writes its log.
    check != "syncloop" || node.quiet_for() < STALLED
}

/// All checks or one (as kubelet: `ok`, or who failed without why).
pub(super) fn health(node: &dyn Node, one: Option<&str>, verbose: bool) -> Result<Reply, Failure> {
    let checks: Vec<&str> = CHECKS.into_iter().filter(|check| one.is_none_or(|one| one == *check)).collect();
    if checks.is_empty() {
        return Err(Failure::not_found("404 page not found"));
    }
    let results: Vec<(&str, bool)> = checks.iter().map(|check| (*check, is_well(node, check))).collect();
    Ok(shown(&results, one, verbose))
}

fn shown(results: &[(&str, bool)], one: Option<&str>, verbose: bool) -> Reply {
    let well = results.iter().all(|(_, well)| *well);
    if well && !(verbose && one.is_none()) {
        return reply::text("ok");
    }
    if let (Some(check), false) = (one, well) {
        let text = format!("internal server error: {check} has failed\n");
        return reply::with_type(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", reply::bytes(text));
    }
    let mut text = String::new();
    for (check, well) in results {
        text += &if *well { format!("[+]{check} ok\n") } else { format!("[-]{check} failed: reason withheld\n") };
    }
    text += if well { "healthz check passed\n" } else { "healthz check failed\n" };
    let code = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    reply::with_type(code, "text/plain; charset=utf-8", reply::bytes(text))
}

/// How the checks stand, in the Prometheus text format.
pub(super) fn health_metrics(node: &dyn Node) -> String {
    let mut text = "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
                    # TYPE kubernetes_healthcheck gauge\n"
        .to_owned();
    for check in CHECKS {
        let well = u8::from(is_well(node, check));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "kubernetes_healthcheck{{name=\"{check}\",type=\"healthz\"}} {well}");
    }
    text
}

/// What runs since when.
pub(super) fn statusz(node: &dyn Node) -> String {
    let up = clock::now().duration_since(node.started());
    let up = u64::try_from(up.as_secs()).unwrap_or_default();
    format!(
        "kubelet statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\n\
         Paths: /checkpoint /configz /containerLogs /exec /attach /flagz /healthz /logs /metrics /pods /portForward /run \
         /runningpods /stats\n",
        clock::shown(node.started()),
        up / 3600,
        up / 60 % 60,
        up % 60,
        node.node().status.and_then(|status| status.node_info).map(|info| info.kubelet_version).unwrap_or_default(),
    )
}

/// What it was told, one value a line.
pub(super) fn flagz(config: &Value) -> String {
    let mut lines = Vec::new();
    flatten("", config, &mut lines);
    format!("kubelet flagz\n{WARNING}\n\n{}\n", lines.join("\n"))
}

fn flatten(path: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, lines);
            }
        }
        Value::String(text) => lines.push(format!("{path}={text}")),
        other => lines.push(format!("{path}={other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use serde_json::json;

    #[tokio::test]
    async fn health_is_told_in_the_kubelets_words() {
        for (results, one, verbose, code, text) in [
            (&[("ping", true), ("syncloop", true)][..], None, false, 200, "ok"),
            (&[("ping", true)], Some("ping"), true, 200, "ok"),
            (&[("ping", true), ("log", true)], None, true, 200, "[+]ping ok\n[+]log ok\nhealthz check passed\n"),
            (
                &[("ping", true), ("syncloop", false)],
                None,
                false,
                500,
                "[+]ping ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n",
            ),
            (&[("syncloop", false)], Some("syncloop"), false, 500, "internal server error: syncloop has failed\n"),
        ] {
            let reply = shown(results, one, verbose);
            assert_eq!(reply.status().as_u16(), code);
            assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn a_configuration_is_shown_one_value_a_line() {
        let text = flagz(&json!({"a": {"b": "c", "d": [1]}, "e": true}));
        assert!(text.ends_with("\n\na.b=c\na.d=[1]\ne=true\n"), "{text}");
    }
}
