//! `kubeconfig`: what kubectl needs to talk to a node that is in no cluster.

use super::client::{Client, decode};
use super::error::Error;
use super::get::yaml;
use super::print;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;

/// Path of the agent's answer.
const PATH: &str = "/coracle/v1/kubeconfig";

/// `coracle kubeconfig`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct KubeconfigArgs {
    /// For who may look, and change or enter nothing
    #[arg(long, conflicts_with = "revoke")]
    read_only: bool,
    /// Port of the local API on 127.0.0.1; it is remembered [default: 10251]
    #[arg(long, value_name = "PORT", conflicts_with = "revoke")]
    port: Option<u16>,
    /// Close the local API: no kubeconfig that was printed counts any more
    #[arg(long)]
    revoke: bool,
}

/// Runs `kubeconfig`.
pub(super) async fn kubeconfig(client: &Client, args: &KubeconfigArgs) -> Result<i32, Error> {
    if args.revoke {
        client.send(Method::DELETE, PATH, Bytes::new()).await?;
        eprintln!("The local API is closed, and no kubeconfig for it counts any more.");
        return Ok(0);
    }
    let port = args.port.map(|port| format!("&port={port}")).unwrap_or_default();
    let path = format!("{PATH}?readOnly={}{port}", args.read_only);
    let answer = client.try_send(Method::POST, &path, Bytes::new()).await.map_err(|(error, _)| error)?;
    print(&yaml(&decode::<Value>(&answer)?)?)?;
    Ok(0)
}
