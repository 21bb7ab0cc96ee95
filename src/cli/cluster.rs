//! `join` and `reset`: into a cluster, and out of it.

use super::client::{Client, decode};
use super::error::Error;
use super::print;
use super::start;
use crate::cluster::discovery::{self, Cluster, Endpoint, Pin, Token, discover};
use crate::config::{Config, DEFAULT_RUN_DIR, Flags};
use crate::server::types::{ClusterState, ClusterSummary, LeftCluster};
use crate::store;
use crate::sys::fs;
use clap::Args;
use hyper::Method;
use hyper::body::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// As kubeadm: between two questions for cluster-info.
const RETRY: Duration = Duration::from_secs(5);
/// Between two looks at how the agent gets on.
const LOOK: Duration = Duration::from_millis(500);
const PATH: &str = "/coracle/v1/cluster";

/// Which cluster.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The API server, as HOST:PORT
    #[arg(value_name = "ENDPOINT")]
    endpoint: Endpoint,
    /// Bootstrap token
    #[arg(long, value_name = "TOKEN", env = "CORACLE_JOIN_TOKEN", hide_env_values = true)]
    token: Token,
    /// SHA-256 of the key of the cluster's authority; may be given several times, for one of them to fit
    #[arg(long = "discovery-token-ca-cert-hash", value_name = "sha256:HEX")]
    hashes: Vec<Pin>,
    /// Believe whoever knows the token
    #[arg(long = "discovery-token-unsafe-skip-ca-verification", conflicts_with = "hashes")]
    unverified: bool,
    /// Longest wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::config::duration)]
    timeout: Duration,
}

/// Which agent, and where it looks for credentials when it does not run.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Run directory of the agent
    #[arg(long, value_name = "DIR", env = "CORACLE_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Configuration file, for an agent that does not run [default: /etc/coracle/config.yaml if present]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Persistent state, for an agent that does not run [default: /var/lib/coracle]
    #[arg(long, value_name = "DIR")]
    root_dir: Option<PathBuf>,
}

impl Place {
    fn client(&self) -> Client {
        Client::new(&self.run_dir)
    }

    /// The configuration of an agent that does not run.
    fn resolve(&self) -> Result<Config, Error> {
        let flags = Flags { config: self.config.clone(), root_dir: self.root_dir.clone(), ..Flags::default() };
        start::resolve(&flags).map(|(config, _)| config)
    }
}

/// Where credentials go.
struct Files {
    kubeconfig: PathBuf,
    bootstrap: PathBuf,
    cert_dir: PathBuf,
}

/// Runs `join`.
pub(super) async fn join(target: &Target, place: &Place) -> Result<i32, Error> {
    if target.hashes.is_empty() && !target.unverified {
        let what = "--discovery-token-ca-cert-hash is missing";
        return Err(Error::usage(what).hint("kubeadm token create --print-join-command prints it"));
    }
    let client = place.client();
    let agent = match client.probe().await {
        Ok(()) => Some(client.get::<ClusterSummary>(PATH).await?),
        Err(unreached) if unreached.is_absent => None,
        Err(unreached) => return Err(unreached.error),
    };
    if let Some(agent) = agent.as_ref().filter(|agent| agent.state == ClusterState::Joined) {
        let server = agent.server.as_deref().unwrap_or_default();
        return Err(Error::new("this node is in a cluster already", server).hint("leave it first: coracle reset"));
    }
    let files = match &agent {
        Some(agent) => Files {
            kubeconfig: agent.kubeconfig.clone(),
            bootstrap: agent.bootstrap_kubeconfig.clone(),
            cert_dir: agent.cert_dir.clone(),
        },
        None => {
            let cluster = place.resolve()?.cluster;
            Files {
                kubeconfig: cluster.kubeconfig,
                bootstrap: cluster.bootstrap_kubeconfig,
                cert_dir: cluster.cert_dir,
            }
        }
    };
    let end = Instant::now() + target.timeout;
    let cluster = found(target, end).await?;
    print(&format!("Found the cluster of {}.\n", cluster.server))?;
    write(&files, &cluster, &target.token)?;
    if agent.is_none() {
        return Err(Error::new("the agent does not run", "the credentials are where it looks for them")
            .hint("start it (systemctl start coracle), and look at coracle status"));
    }
    client.send(Method::POST, &format!("{PATH}/look"), Bytes::new()).await?;
    let node = registered(&client, end).await?;
    // It has done what it was for.
    if let Err(error) = store::delete(&files.bootstrap) {
        return Err(Error::caused("the token is left on the disk", &error));
    }
    print(&format!("Node {node} is part of the cluster.\n"))?;
    Ok(0)
}

/// The cluster that the token is for; waits for one that does not answer, or does not know the token yet.
async fn found(target: &Target, end: Instant) -> Result<Cluster, Error> {
    let mut told = String::new();
    loop {
        let error = match discover(&target.endpoint, &target.token, &target.hashes).await {
            Ok(cluster) => return Ok(cluster),
            Err(error) => error,
        };
        if !error.may_pass() || Instant::now() + RETRY > end {
            return Err(Error::caused("cannot join", &error).hint(hint(&error)));
        }
        let text = crate::causes::chain(&error);
        if told != text {
            print(&format!("Waiting: {text}\n"))?;
            told = text;
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn hint(error: &discovery::Error) -> &'static str {
    match error {
        discovery::Error::Unreached { .. } => "is the address right, and the port open (6443 by default)?",
        discovery::Error::Token(_) | discovery::Error::Signature => {
            "make a new token on the control plane: kubeadm token create --print-join-command"
        }
        discovery::Error::Pin { .. } => {
            "compare it with what kubeadm token create --print-join-command prints; if it is another one, somebody else answers"
        }
        discovery::Error::Kubeconfig(_) | discovery::Error::Changed => {
            "look at the ConfigMap cluster-info in the namespace kube-public"
        }
    }
}

/// Puts the credentials where the agent looks for them. Those from before go: they would count more.
fn write(files: &Files, cluster: &Cluster, token: &Token) -> Result<(), Error> {
    let failed = |path: &Path| {
        let what = format!("cannot write {}", path.display());
        move |error: io::Error| Error::new(what.clone(), error)
    };
    let text = cluster.bootstrap_kubeconfig(token).map_err(|e| Error::caused("cannot join", &e))?;
    let stored = |error: store::Error| Error::caused("cannot join", &error);
    fs::create_dir_all(&files.cert_dir, 0o700).map_err(failed(&files.cert_dir))?;
    store::replace(&files.cert_dir.join("ca.crt"), &cluster.authority, 0o644).map_err(stored)?;
    store::delete(&files.kubeconfig).map_err(stored)?;
    crate::cluster::forget_certificates(&files.cert_dir).map_err(|problem| Error::new("cannot join", problem))?;
    let folder = files.bootstrap.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder, 0o755).map_err(failed(folder))?;
    store::replace(&files.bootstrap, text.as_bytes(), 0o600).map_err(stored)
}

/// Waits until the node is registered, and tells how it gets on; its name.
async fn registered(client: &Client, end: Instant) -> Result<String, Error> {
    let mut told = String::new();
    loop {
        let now: ClusterSummary = client.get(PATH).await?;
        let text = match now.state {
            ClusterState::Joined if now.registered || !now.registers => return Ok(now.node),
            ClusterState::Joined => "the certificate is here; the Node object is not registered yet".to_owned(),
            ClusterState::Alone => "the agent looks for credentials".to_owned(),
            ClusterState::Waiting | ClusterState::Unreachable => now.message.unwrap_or_default(),
        };
        if told != text {
            print(&format!("Waiting: {text}\n"))?;
            told = text;
        }
        if Instant::now() > end {
            return Err(Error::new("the node is not registered yet", told)
                .hint("the agent goes on trying: coracle status tells how it gets on, coracle reset gives up"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Runs `reset`; exit code 1 when something is left.
pub(super) async fn reset(place: &Place) -> Result<i32, Error> {
    let client = place.client();
    let left = match client.probe().await {
        Ok(()) => {
            let answer = client.try_send(Method::POST, &format!("{PATH}/leave"), Bytes::new()).await;
            decode::<LeftCluster>(&answer.map_err(|(error, _)| error)?)?
        }
        Err(unreached) if unreached.is_absent => {
            let config = place.resolve()?;
            let mut problems = crate::cluster::forget(&config.cluster, &config.root_dir.join("cluster"));
            problems.push("the agent does not run: mirror pods of this node may be left in the cluster".to_owned());
            LeftCluster { node: config.node_name, problems, ..LeftCluster::default() }
        }
        Err(unreached) => return Err(unreached.error),
    };
    let mut text = format!(
        "Node {} has left the cluster: {} mirror pods deleted, {} pods of the cluster end.\n",
        left.node, left.mirrors, left.pods
    );
    text.push_str(&format!("Its Node object stays; an administrator deletes it: kubectl delete node {}\n", left.node));
    print(&text)?;
    if left.problems.is_empty() { Ok(0) } else { Err(Error::new("something is left", left.problems.join("; "))) }
}
