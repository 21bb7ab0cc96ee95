//! `attach`.

use super::client::Client;
use super::error::Error;
use super::logs::{default_container, pod_path};
use super::session::{self, Streams};
use crate::server::encode;
use k8s_openapi::api::core::v1::{Container, Pod};

/// What to attach to.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Pass the terminal on
    #[arg(short, long)]
    pub tty: bool,
    /// Container [default: the pod's default or first]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Pod
    #[arg(value_name = "POD")]
    pub pod: String,
}

/// Runs `attach`, until the container ends.
pub(super) async fn attach(client: &Client, namespace: &str, options: &Options) -> Result<i32, Error> {
    let path = pod_path(namespace, &options.pod);
    let pod: Pod = client.get(&path).await?;
    let name = options.container.clone().unwrap_or_else(|| default_container(&pod));
    let spec = pod.spec.unwrap_or_default();
    let container = spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name);
    let streams = streams(options, container);
    let socket = client.upgrade(&format!("{path}/attach?container={}&{}", encode(&name), streams.query())).await?;
    if streams.stdin && streams.tty {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    let status = session::interact(socket, streams).await?;
    session::exit_code("cannot attach", &status)
}

/// As kubectl: what the container was not made for is left out, and said.
fn streams(options: &Options, container: Option<&Container>) -> Streams {
    let mut streams = Streams { stdin: options.stdin, tty: options.tty };
    if let Some(container) = container {
        if streams.tty && container.tty != Some(true) {
            eprintln!("error: Unable to use a TTY - container {} did not allocate one", container.name);
            streams.tty = false;
        } else if !streams.tty && streams.stdin && container.tty == Some(true) {
            // Its terminal is what there is to type into.
            streams.tty = super::terminal::is_input();
        }
        if streams.stdin && container.stdin != Some(true) {
            eprintln!("warning: container {} takes no input (stdin is not set)", container.name);
            streams.stdin = false;
        }
    }
    streams.possible()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_what_it_was_made_for() {
        let made = |stdin, tty| {
            let container = Container { name: "c".into(), stdin: Some(stdin), tty: Some(tty), ..Container::default() };
            let options = Options { stdin: true, tty: false, container: None, pod: "p".into() };
            let streams = streams(&options, Some(&container));
            (streams.stdin, streams.tty)
        };
        assert_eq!(made(true, false), (true, false));
        assert_eq!(made(false, false), (false, false));
        let options = Options { stdin: false, tty: true, container: None, pod: "p".into() };
        assert!(!streams(&options, Some(&Container::default())).tty);
    }
}
