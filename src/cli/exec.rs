//! `exec`.

use super::client::Client;
use super::error::Error;
use super::logs::{default_container, pod_path};
use super::session::{self, Streams};
use crate::server::encode;

/// What to run where.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Container [default: the pod's default or first]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Pod
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Command and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Runs `exec`; returns the command's exit code.
pub(super) async fn exec(client: &Client, namespace: &str, options: &Options) -> Result<i32, Error> {
    let path = pod_path(namespace, &options.pod);
    let container = match &options.container {
        Some(container) => container.clone(),
        None => default_container(&client.get(&path).await?),
    };
    let streams = Streams { stdin: options.stdin, tty: options.tty }.possible();
    let mut query = format!("container={}&{}", encode(&container), streams.query());
    for word in &options.command {
        query.push_str(&format!("&command={}", encode(word)));
    }
    let socket = client.upgrade(&format!("{path}/exec?{query}")).await?;
    let status = session::interact(socket, streams).await?;
    let code = session::exit_code("cannot exec", &status)?;
    if code != 0 {
        eprintln!("command terminated with exit code {code}");
    }
    Ok(code)
}
