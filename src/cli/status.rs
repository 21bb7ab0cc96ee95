//! `status` and `version`.

use super::age::size;
use super::client::Client;
use super::error::Error;
use super::get::pretty;
use super::print;
use super::table::{align, printable};
use crate::server::types::{ClusterState, ClusterSummary, NodeSummary};

/// The Kubernetes version whose node behaviour is followed.
const KUBERNETES: &str = "1.36";

/// Runs `status`; exit code 1 when the node is not ready.
pub(super) async fn status(client: &Client, json: bool) -> Result<i32, Error> {
    let summary: NodeSummary = client.get("/coracle/v1/status").await?;
    print(&if json { pretty(&summary)? } else { text(&summary) })?;
    Ok(i32::from(!summary.ready))
}

fn text(summary: &NodeSummary) -> String {
    let ready = match (summary.ready, summary.message.as_str()) {
        (true, _) => "Ready".to_owned(),
        (false, "") => "NotReady".to_owned(),
        (false, why) => format!("NotReady: {}", printable(why)),
    };
    let pods: Vec<String> = summary.pods.iter().map(|(phase, count)| format!("{count} {}", printable(phase))).collect();
    let pods = if pods.is_empty() { "none".to_owned() } else { pods.join(", ") };
    let mut text = format!(
        "Node:\t{}\nStatus:\t{ready}\nAgent:\tcoracle {} (PID {})\nPods:\t{pods}\nImages:\t{} ({})\nManifests:\t{}\n",
        printable(&summary.node),
        printable(&summary.version),
        summary.pid,
        summary.images,
        size(summary.image_bytes),
        printable(&summary.manifest_dir),
    );
    text.extend(summary.cluster.iter().map(cluster));
    if !summary.warnings.is_empty() {
        text.push_str("Warnings:\n");
        text.extend(summary.warnings.iter().map(|warning| format!("  {}\n", printable(warning))));
    }
    align(&text, 2)
}

/// How the node stands to a cluster; a line, and one for the certificate.
fn cluster(of: &ClusterSummary) -> String {
    let server = printable(of.server.as_deref().unwrap_or_default());
    let message = printable(of.message.as_deref().unwrap_or_default());
    let mut text = match of.state {
        ClusterState::Alone => "Cluster:\tnone\n".to_owned(),
        ClusterState::Waiting => format!("Cluster:\twaiting: {message}\n"),
        ClusterState::Joined if of.registered => format!("Cluster:\t{server}\n"),
        ClusterState::Joined => format!("Cluster:\t{server} (no Node object yet)\n"),
        ClusterState::Unreachable => {
            let since = printable(of.since.as_deref().unwrap_or_default());
            format!("Cluster:\t{server}, unreachable since {since}: {message}\n")
        }
    };
    if let Some(expires) = &of.certificate_expires {
        text.push_str(&format!("Certificate:\texpires {}\n", printable(expires)));
    }
    text
}

/// Runs `version`.
pub(super) fn version(json: bool) -> Result<i32, Error> {
    let version = env!("CARGO_PKG_VERSION");
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    if json {
        let value = serde_json::json!({"version": version, "kubernetes": KUBERNETES, "platform": platform});
        print(&pretty(&value)?)?;
    } else {
        print(&format!("coracle {version} (Kubernetes {KUBERNETES} node, {platform})\n"))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn health_reads_at_a_glance() {
        let summary = NodeSummary {
            node: "edge-1".into(),
            version: "0.1.0".into(),
            pid: 7,
            ready: false,
            message: "the network is not up".into(),
            manifest_dir: "/etc/kubernetes/manifests".into(),
            pods: [("Failed".to_owned(), 1), ("Running".to_owned(), 3)].into(),
            images: 2,
            image_bytes: 123_456_789,
            warnings: vec!["pod/web BackOff: Back-off restarting".into()],
            cluster: Some(ClusterSummary {
                node: "edge-1".into(),
                state: ClusterState::Unreachable,
                server: Some("https://10.0.0.1:6443".into()),
                message: Some("no answer in 30 seconds".into()),
                since: Some("2026-11-02T03:04:05Z".into()),
                certificate_expires: Some("2027-01-01T00:00:00Z".into()),
                registered: true,
                registers: true,
                kubeconfig: "/k".into(),
                bootstrap_kubeconfig: "/b".into(),
                cert_dir: "/p".into(),
            }),
        };
        expect![[r#"
            Node:         edge-1
            Status:       NotReady: the network is not up
            Agent:        coracle 0.1.0 (PID 7)
            Pods:         1 Failed, 3 Running
            Images:       2 (123MB)
            Manifests:    /etc/kubernetes/manifests
            Cluster:      https://10.0.0.1:6443, unreachable since 2026-11-02T03:04:05Z: no answer in 30 seconds
            Certificate:  expires 2027-01-01T00:00:00Z
            Warnings:
              pod/web BackOff: Back-off restarting
        "#]]
        .assert_eq(&text(&summary));
    }
}
