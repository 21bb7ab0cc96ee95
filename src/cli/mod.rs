//! What a person types. Every command but `agent`, `validate`, `version`, `completion` and `hello` asks the agent over
//! its socket.

mod age;
mod attach;
mod client;
mod cluster;
mod columns;
mod describe;
mod error;
mod exec;
mod explain;
mod forward;
mod get;
mod hello;
mod history;
mod images;
mod kubelet;
mod logs;
mod manifests;
mod pull;
mod run;
mod session;
mod signature;
mod start;
mod status;
mod table;
mod terminal;
mod top;
mod validate;
mod verify;

pub use error::Error;

use crate::config::{DEFAULT_RUN_DIR, Flags};
use crate::server::types::NodeSummary;
use clap::{Args, CommandFactory, Parser, Subcommand};
use client::Client;
use get::{Output, Request, Resource};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Runs Kubernetes pods on this machine, without a cluster, a container runtime or a registry.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node agent
    Agent(Box<Flags>),
    /// Run pods in the foreground: print their logs, stop them on Ctrl-C
    Run {
        /// Manifest: a file, a URL, or - for standard input
        #[arg(value_name = "FILE|URL|-")]
        source: String,
        #[command(flatten)]
        options: run::Options,
        #[command(flatten)]
        agent: Agent,
    },
    /// List pods, nodes, events, configmaps, secrets or images
    Get {
        /// pods, nodes, events, configmaps, secrets (without values) or images; pod/NAME works too
        #[arg(value_name = "KIND")]
        kind: String,
        #[command(flatten)]
        list: List,
    },
    /// List pods (the same as get pods)
    Ps {
        #[command(flatten)]
        list: List,
    },
    /// Show all there is to know of a pod, with its events
    Describe {
        /// pod, or pod/NAME
        #[arg(value_name = "KIND")]
        kind: String,
        /// Pods [default: all of the namespace]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        scope: Scope,
    },
    /// Print the log of a container
    Logs {
        /// Pod
        #[arg(value_name = "POD")]
        pod: String,
        #[command(flatten)]
        options: logs::Options,
        #[command(flatten)]
        scope: Scope,
    },
    /// Run a command in a container
    Exec {
        #[command(flatten)]
        options: exec::Options,
        #[command(flatten)]
        scope: Scope,
    },
    /// Show what pods, containers and the node use
    #[command(subcommand)]
    Top(top::Top),
    /// See what a container writes from now on, and type into it
    Attach {
        #[command(flatten)]
        options: attach::Options,
        #[command(flatten)]
        scope: Scope,
    },
    /// Forward local ports to ports of a pod
    #[command(after_help = FORWARD_EXAMPLES)]
    PortForward {
        #[command(flatten)]
        options: forward::Options,
        #[command(flatten)]
        scope: Scope,
    },
    /// Write manifests to the manifest directory, once they are found valid
    Apply {
        /// Manifest: a file, a URL, or - for standard input
        #[arg(short = 'f', long = "filename", value_name = "FILE|URL|-", required = true)]
        sources: Vec<String>,
        #[command(flatten)]
        agent: Agent,
    },
    /// Remove manifests from the manifest directory, and wait until their pods are gone
    Delete {
        /// Pods; after the word configmap or secret, or with it and a slash before the name, these
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// What a manifest defines: a file, a URL, or - for standard input
        #[arg(short = 'f', long = "filename", value_name = "FILE|URL|-", conflicts_with = "names")]
        sources: Vec<String>,
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
        /// Longest wait
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::config::duration)]
        timeout: Duration,
        #[command(flatten)]
        scope: Scope,
    },
    /// Print all problems of manifests; needs no agent
    ///
    /// The ConfigMaps and Secrets of all manifests named serve the pods of all of them. What a pod refers to and none of them
    /// defines is a warning: another manifest of the node may define it, and only the node knows. A node does not start such a
    /// pod before it has the object; --strict is for those who name all that a node gets.
    Validate {
        /// Manifests: files, folders of them, URLs, or - for standard input
        #[arg(value_name = "FILE", required_unless_present = "explain")]
        sources: Vec<String>,
        /// Also check FILE.minisig against this minisign public key: a file or the key itself; may be repeated
        #[arg(long = "key", value_name = "FILE|KEY", conflicts_with = "explain")]
        keys: Vec<String>,
        /// Take warnings for errors
        #[arg(long, conflicts_with = "explain")]
        strict: bool,
        /// Tell which fields of a Pod work and why others are refused: all, or those in FIELD
        #[arg(long, value_name = "FIELD", num_args = 0..=1, default_missing_value = "", conflicts_with = "sources")]
        explain: Option<String>,
        /// Format of --explain
        #[arg(short, long, value_enum, value_name = "FORMAT", requires = "explain")]
        output: Option<JsonOnly>,
    },
    /// Show the revisions of a pod: what its manifest said, and what became of it
    #[command(after_help = HISTORY_EXAMPLES)]
    History {
        /// Pod; pod/NAME and pod NAME work too
        #[arg(value_name = "POD", required = true, num_args = 1..=2)]
        pod: Vec<String>,
        /// Show this revision whole
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
        /// Format
        #[arg(short, long, value_enum, value_name = "FORMAT")]
        output: Option<history::Format>,
        #[command(flatten)]
        scope: Scope,
    },
    /// Run an older revision of a pod until its manifest changes
    ///
    /// Rolling back to the newest revision has the pod follow its manifest again.
    Rollback {
        /// Pod; pod/NAME and pod NAME work too
        #[arg(value_name = "POD", required = true, num_args = 1..=2)]
        pod: Vec<String>,
        /// The revision to run [default: the one before]
        #[arg(long, value_name = "N")]
        to_revision: Option<u64>,
        #[command(flatten)]
        scope: Scope,
    },
    /// Manage images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Join a cluster
    ///
    /// Asks the API server at ENDPOINT for the cluster's authority, checks it by the token and the hash that `kubeadm token
    /// create --print-join-command` prints, has the agent ask for a certificate, and waits until the node is registered. What
    /// runs goes on.
    #[command(after_help = JOIN_EXAMPLES)]
    Join {
        #[command(flatten)]
        target: cluster::Target,
        #[command(flatten)]
        place: cluster::Place,
    },
    /// Leave the cluster: its pods end, static pods go on
    ///
    /// Mirror pods are deleted where the API server answers; credentials and all that is known of the cluster are removed from
    /// this machine. The Node object stays: only an administrator may delete it.
    Reset {
        #[command(flatten)]
        place: cluster::Place,
    },
    /// Show the node's health
    Status {
        /// Format
        #[arg(short, long, value_enum, value_name = "FORMAT")]
        output: Option<JsonOnly>,
        #[command(flatten)]
        agent: Agent,
    },
    /// Print the version
    Version {
        /// Format
        #[arg(short, long, value_enum, value_name = "FORMAT")]
        output: Option<JsonOnly>,
    },
    /// Print a completion script
    Completion {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Serve a page that says hello (the demo image)
    #[command(hide = true)]
    Hello {
        /// Port
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
}

const FORWARD_EXAMPLES: &str = "\
Examples:
  coracle port-forward web 8080:80             127.0.0.1:8080 here is port 80 of the pod
  coracle port-forward web :http               any free port, and the port that a container calls http
  coracle port-forward web 80 --address 0.0.0.0";

const HISTORY_EXAMPLES: &str = "\
Examples:
  coracle history pod web              all revisions
  coracle history web --revision 3     the third one, as YAML
  coracle rollback web                 back to the one before";

const JOIN_EXAMPLES: &str = "\
Examples:
  coracle join 10.0.0.1:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:8fe4...
  coracle status                   how it stands
  coracle reset                    leave again";

const LS_EXAMPLES: &str = "\
Examples:
  coracle image ls                 names, sizes, and which pods use what
  coracle image ls -o wide         also whole IDs, and what each image has to itself
  coracle image ls -o json         everything, for programs (also: yaml, name)";

const RM_EXAMPLES: &str = "\
Examples:
  coracle image rm nginx:1.27      a name, and the image with its last one
  coracle image rm 3c4f9a210be7    the image with all its names
  coracle image rm --force app:1   though it is pinned";

const PRUNE_EXAMPLES: &str = "\
Examples:
  coracle image prune --dry-run    what would go
  coracle image prune              unused images, but not those of the images folder";

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List images
    #[command(after_help = LS_EXAMPLES)]
    Ls {
        /// Names, or the beginnings of IDs [default: all]
        #[arg(value_name = "IMAGE")]
        names: Vec<String>,
        /// Format
        #[arg(short, long, value_enum, value_name = "FORMAT")]
        output: Option<Output>,
        /// Print no column names
        #[arg(long)]
        no_headers: bool,
        #[command(flatten)]
        agent: Agent,
    },
    /// Import archives (docker-archive, oci-archive) or OCI layout folders
    Import {
        /// Archives or folders; - for an archive on standard input
        #[arg(value_name = "PATH", required = true)]
        archives: Vec<String>,
        #[command(flatten)]
        agent: Agent,
    },
    /// Write images to an archive that docker, podman and containerd read
    Export {
        /// Names or IDs
        #[arg(value_name = "IMAGE", required = true)]
        names: Vec<String>,
        /// Where to [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// How to pack it [default: as the name of FILE says]
        #[arg(long, value_enum, value_name = "HOW")]
        compress: Option<images::Compress>,
        #[command(flatten)]
        agent: Agent,
    },
    /// Read everything of images and compare it with their digests
    Verify {
        /// Names or IDs [default: all images]
        #[arg(value_name = "IMAGE")]
        names: Vec<String>,
        #[command(flatten)]
        agent: Agent,
    },
    /// Pull images from registries
    Pull {
        /// Names, with a tag or digest
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        #[command(flatten)]
        agent: Agent,
    },
    /// Remove images that no pod uses
    ///
    /// A name is taken from an image that has others; with its last name, or when named by ID or digest, the image goes. An
    /// image that a pod uses stays, and so does a name that a pod's manifest has.
    #[command(after_help = RM_EXAMPLES)]
    Rm {
        /// Names, digests (name@sha256:...), IDs, or the beginnings of IDs
        #[arg(value_name = "IMAGE", required = true)]
        names: Vec<String>,
        /// Remove pinned images too; one that a pod uses is never removed
        #[arg(short, long)]
        force: bool,
        #[command(flatten)]
        agent: Agent,
    },
    /// Remove all images that no pod uses and that are not pinned, and what lies about in the store
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune {
        /// Pinned images too; those in the images folder come back when the agent starts
        #[arg(short, long)]
        all: bool,
        /// Only say what would be removed, and how much would be freed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        agent: Agent,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum JsonOnly {
    Json,
}

/// Which agent is asked.
#[derive(Debug, Args)]
struct Agent {
    /// Run directory of the agent
    #[arg(long, value_name = "DIR", env = "CORACLE_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
}

impl Agent {
    fn client(&self) -> Client {
        Client::new(&self.run_dir)
    }
}

/// Which namespace of which agent.
#[derive(Debug, Args)]
struct Scope {
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Debug, Args)]
struct List {
    /// Names [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Format
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Output>,
    /// Keep printing what changes
    #[arg(short, long)]
    watch: bool,
    /// Only objects with these labels (a=b, a!=b, a, !a)
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Print no column names
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    scope: Scope,
}

impl List {
    fn request(self, resource: Resource) -> Request {
        Request {
            resource,
            names: self.names,
            namespace: self.scope.namespace,
            all_namespaces: self.all_namespaces,
            output: self.output.unwrap_or_default(),
            watch: self.watch,
            selector: self.selector,
            no_headers: self.no_headers,
        }
    }
}

/// Runs the command line `args` (with the program's name first); returns the exit code.
pub fn main(args: Vec<OsString>) -> i32 {
    let args = match kubelet::arguments(args) {
        kubelet::Asked::Version => return print(&kubelet::version()).map_or_else(|error| error.code(), |()| 0),
        kubelet::Asked::Run(args) => args,
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own words; a closed output changes nothing about the code.
            let _ = error.print();
            return error.exit_code();
        }
    };
    let done = match cli.command {
        Command::Agent(flags) => start::agent(&flags),
        command => block_on(client_command(command)),
    };
    done.unwrap_or_else(|error| {
        if !error.is_quiet() {
            eprintln!("{error}");
        }
        error.code()
    })
}

fn block_on(command: impl Future<Output = Result<i32, Error>>) -> Result<i32, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::new("cannot start", error))?;
    let done = runtime.block_on(command);
    // A thread that reads the terminal never ends by itself.
    runtime.shutdown_background();
    done
}

async fn client_command(command: Command) -> Result<i32, Error> {
    match command {
        Command::Agent(flags) => start::agent(&flags),
        Command::Run { source, options, agent } => run::run(&agent.client(), &source, options).await,
        Command::Get { kind, mut list } => {
            let (kind, name) = kind.split_once('/').map_or((kind.as_str(), None), |(kind, name)| (kind, Some(name)));
            let resource = kind.parse().map_err(|why| Error::usage(format!("unknown kind {kind:?}: {why}")))?;
            list.names.splice(0..0, name.map(str::to_owned));
            get::get(&list.scope.agent.client(), &list.request(resource)).await
        }
        Command::Ps { list } => get::get(&list.scope.agent.client(), &list.request(Resource::Pods)).await,
        Command::Describe { kind, mut names, scope } => {
            let (kind, name) = kind.split_once('/').map_or((kind.as_str(), None), |(kind, name)| (kind, Some(name)));
            if kind.parse() != Ok(Resource::Pods) {
                return Err(Error::usage(format!("cannot describe {kind:?}: want pod")));
            }
            names.splice(0..0, name.map(str::to_owned));
            get::describe(&scope.agent.client(), &scope.namespace, &names).await
        }
        Command::Logs { pod, options, scope } => {
            logs::logs(&scope.agent.client(), &scope.namespace, &pod, &options).await
        }
        Command::Exec { options, scope } => exec::exec(&scope.agent.client(), &scope.namespace, &options).await,
        Command::Top(asked) => top::top(asked).await,
        Command::Attach { options, scope } => {
            attach::attach(&scope.agent.client(), &scope.namespace, &options).await
        }
        Command::PortForward { options, scope } => {
            forward::forward(&scope.agent.client(), &scope.namespace, &options).await
        }
        Command::Apply { sources, agent } => manifests::apply(&agent.client(), &sources).await,
        Command::Delete { names, sources, no_wait, timeout, scope } => {
            let wait = (!no_wait).then_some(timeout);
            manifests::delete(&scope.agent.client(), &scope.namespace, &names, &sources, wait).await
        }
        Command::Validate { explain: Some(field), output, .. } => explain::explain(&field, output.is_some()),
        Command::Validate { sources, keys, strict, .. } => {
            manifests::validate(&sources, &keys, strict, &start::hostname().to_lowercase()).await
        }
        Command::History { pod, revision, output, scope } => {
            history::history(&scope.agent.client(), &scope.namespace, &one_pod(pod)?, revision, output).await
        }
        Command::Rollback { pod, to_revision, scope } => {
            history::roll_back(&scope.agent.client(), &scope.namespace, &one_pod(pod)?, to_revision).await
        }
        Command::Image(ImageCommand::Ls { names, output, no_headers, agent }) => {
            get::get(&agent.client(), &get::Request::of_images(names, output.unwrap_or_default(), no_headers)).await
        }
        Command::Image(ImageCommand::Import { archives, agent }) => images::import(&agent.client(), &archives).await,
        Command::Image(ImageCommand::Export { names, output, compress, agent }) => {
            images::export(&agent.client(), &names, output.as_deref(), compress).await
        }
        Command::Image(ImageCommand::Verify { names, agent }) => verify::verify(&agent.client(), &names).await,
        Command::Image(ImageCommand::Rm { names, force, agent }) => {
            images::remove(&agent.client(), &names, force).await
        }
        Command::Image(ImageCommand::Prune { all, dry_run, agent }) => {
            images::prune(&agent.client(), all, dry_run).await
        }
        Command::Image(ImageCommand::Pull { names, agent }) => pull::pull(&agent.client(), &names).await,
        Command::Join { target, place } => cluster::join(&target, &place).await,
        Command::Reset { place } => cluster::reset(&place).await,
        Command::Status { output, agent } => status::status(&agent.client(), output.is_some()).await,
        Command::Version { output } => status::version(output.is_some()),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "coracle", &mut script);
            print_bytes(&script)?;
            Ok(0)
        }
        Command::Hello { port } => hello::hello(port).await,
    }
}

/// The node's name, which is the suffix of its pods' names.
async fn node_name(client: &Client) -> Result<String, Error> {
    Ok(client.get::<NodeSummary>("/coracle/v1/status").await?.node)
}

fn print(text: &str) -> Result<(), Error> {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Error::broken_pipe(),
        _ => Error::new("cannot write", error),
    })
}

/// `web`, `pod web` or `pod/web`.
fn one_pod(words: Vec<String>) -> Result<String, Error> {
    let words = without_kind(words);
    let [word] = &words[..] else { return Err(Error::usage(format!("want one pod, not {}", words.join(" ")))) };
    match word.split_once('/') {
        None => Ok(word.clone()),
        Some(("pod" | "pods" | "po", name)) => Ok(name.to_owned()),
        Some((kind, _)) => Err(Error::usage(format!("unknown kind {kind:?}: want pod"))),
    }
}

/// kubectl's habit of naming the kind first: `delete pod web`.
fn without_kind(mut names: Vec<String>) -> Vec<String> {
    if names.len() > 1 && ["pod", "pods", "po"].contains(&names[0].as_str()) {
        names.remove(0);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn kubectl_s_habits_work() {
        for line in [
            "coracle get pods -A -o wide",
            "coracle get po/web -n kube-system -o yaml",
            "coracle ps -w",
            "coracle logs -f --tail=5 --since 5m web -c c",
            "coracle logs --tail -1 web",
            "coracle exec -it web -c c -- sh -c true",
            "coracle top pod -A --containers --sort-by=memory",
            "coracle top po web --no-headers",
            "coracle top nodes --show-capacity",
            "coracle attach -it web -c c",
            "coracle port-forward pod/web 8080:80 :http -n a --address localhost,10.0.0.1",
            "coracle apply -f a.yaml -f -",
            "coracle validate --key k.pub --key RWQ a.yaml",
            "coracle delete web --timeout 30s",
            "coracle history pod web -n kube-system --revision 2 -o json",
            "coracle rollback pod web --to-revision=2",
            "coracle agent --hostname-override n1 --node-ip 10.0.0.1,fd00::1 --v 4 --pod-cidr 10.1.0.0/16 --log-format json",
            "coracle image prune -a --dry-run",
            "coracle join 10.0.0.1 --token abcdef.0123456789abcdef --discovery-token-unsafe-skip-ca-verification",
            "coracle agent --rotate-certificates=false --fail-swap-on --container-runtime-endpoint=unix:///x",
            "coracle status -o json --run-dir /tmp/x",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "coracle",
            "coracle get",
            "coracle exec web sh",
            "coracle agent --pod-cidr x",
            "coracle delete a -f b",
            "coracle join a --token x.y",
        ] {
            let code = parse(line).map_or_else(|error| error.exit_code(), |_| 0);
            assert_eq!(code, 2, "{line}");
        }
    }
}
