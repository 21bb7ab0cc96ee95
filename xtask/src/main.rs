//! Tasks of coracle's developers. `cargo xtask help` lists them.

mod archive;
mod bench;
mod bench_boot;
mod bench_image;
mod bench_probes;
mod bench_stream;
mod cluster;
mod crictl;
mod debian;
mod demo;
mod fields;
mod fuzz;
mod image;
mod kubelet;
mod kubectl;
mod node;
mod shell;
mod test;
mod tidy;
mod vm;

use anyhow::{Context, Result, bail};

const HELP: &str = "\
cargo xtask <task>

  test [FILTER]                 all tests: format, layers, clippy, unit tests, privileged tests (root)
  demo                          build, start a private node, run examples/hello.yaml, show it, clean up
  demo bootstrap                a node runs the control plane of a cluster as static pods, then joins it (a test, aloud)
  tidy                          check the layers of src/ and the rules that rustc and clippy do not know
  fields                        write FIELDS.md from the table of the fields that work
  bench start [--n N]           coracle and runc side by side: start latency, memory, 50 pods, idle CPU
  bench image [--n N]           an image archive into coracle, containerd, podman and tar, side by side
  bench boot [--n N]            from the agent's start to the first of 20 pods, as after a reboot
  bench probes                  what 100 readiness probes a second cost
  bench stream [--n N]          exec and port-forward of coracle and of a kubelet with containerd, side by side
  fuzz [<target> [--seconds N]] run a fuzz target; without one, list them
  vm                            boot a Debian kernel in QEMU and check coracle on pure cgroup v2
  cluster build|up|down         Kubernetes' own control plane: build it from its Go modules, run it on the loopback
  kubectl                       fetch kubectl as it is published, for the tests
  crictl                        build crictl from its Go module, as the tests use it
  proto                         write src/cri/v1.rs, the CRI's messages, from its published proto (needs protoc)
  image NAME [--out F]          make a docker-archive from Debian's packages: nginx, node-exporter or busybox
";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test", filter @ ..] => test::run(filter),
        ["demo"] => demo::run(),
        ["demo", "bootstrap"] => demo::bootstrap(),
        ["tidy"] => tidy::run(),
        ["fields"] => fields::run(),
        ["vm"] => vm::run(),
        ["crictl"] => {
            println!("CORACLE_CRICTL={}", crictl::build()?.display());
            Ok(())
        }
        ["proto"] => crictl::proto(),
        ["cluster", "build"] => {
            println!("CORACLE_CONTROLPLANE={}", cluster::build()?.display());
            Ok(())
        }
        ["kubectl"] => {
            println!("CORACLE_KUBECTL={}", kubectl::fetch()?.display());
            Ok(())
        }
        ["cluster", "up"] => cluster::up(),
        ["cluster", "down"] => cluster::down(),
        ["bench", "image", rest @ ..] => bench_image::run(number(rest, "--n")?.unwrap_or(3)),
        ["bench", "boot", rest @ ..] => bench_boot::run(number(rest, "--n")?.unwrap_or(5)),
        ["bench", "probes"] => bench_probes::probes(),
        ["bench", "stream", rest @ ..] => bench_stream::run(number(rest, "--n")?.unwrap_or(3)),
        ["bench", "start", rest @ ..] => bench::start(number(rest, "--n")?.unwrap_or(21)),
        ["fuzz"] => fuzz::list(),
        ["fuzz", target, rest @ ..] => fuzz::run(target, number(rest, "--seconds")?.unwrap_or(60)),
        ["image", which, rest @ ..] => image::run(which, option(rest, "--out")?),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("no such task: {}\n\n{HELP}", other.join(" ")),
    }
}

/// The value of `name` in `args`; anything else there is an error.
fn option<'a>(args: &[&'a str], name: &str) -> Result<Option<&'a str>> {
    match args {
        [] => Ok(None),
        [key, value] if *key == name => Ok(Some(value)),
        other => bail!("expected `{name} VALUE`, found `{}`", other.join(" ")),
    }
}

fn number(args: &[&str], name: &str) -> Result<Option<u64>> {
    let value = option(args, name)?;
    value.map(|v| v.parse().with_context(|| format!("{name} takes a number, not {v:?}"))).transpose()
}
