//! `top`: what pods, containers and the node use, in kubectl's columns.

use super::client::Client;
use super::error::Error;
use super::table::Table;
use super::{Agent, Scope, print};
use crate::manifest::quantity::Quantity;
use crate::server::encode;
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;
use std::cmp::Reverse;

/// What of.
#[derive(Debug, Subcommand)]
pub(super) enum Top {
    /// Pods, or their containers
    #[command(visible_aliases = ["pods", "po"])]
    Pod(Pods),
    /// This node
    #[command(visible_aliases = ["nodes", "no"])]
    Node {
        /// Compare with all that the node has [default: with what pods may request]
        #[arg(long)]
        show_capacity: bool,
        /// Print no column names
        #[arg(long)]
        no_headers: bool,
        #[command(flatten)]
        agent: Agent,
    },
}

/// Which pods, and how.
#[derive(Debug, Args)]
pub(super) struct Pods {
    /// Pod [default: all]
    #[arg(value_name = "NAME", conflicts_with = "selector")]
    name: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only pods with these labels (a=b, a!=b, a, !a)
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// A line for each container
    #[arg(long)]
    containers: bool,
    /// The largest first [default: by name]
    #[arg(long, value_enum, value_name = "RESOURCE")]
    sort_by: Option<SortBy>,
    /// Also print the sum
    #[arg(long)]
    sum: bool,
    /// Print no column names
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SortBy {
    Cpu,
    Memory,
}

/// CPU in billionths of a core, memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amounts {
    nano_cores: i128,
    bytes: i128,
}

impl Amounts {
    fn of(usage: &Value) -> Amounts {
        let read = |key: &str| usage[key].as_str().and_then(|text| Quantity::parse(text).ok());
        let cpu = usage["cpu"].as_str().and_then(|text| text.strip_suffix('n')?.parse().ok());
        Amounts {
            // As it is sent; other writings are read, too.
            nano_cores: cpu.or_else(|| read("cpu").map(|cpu| cpu.milli_ceil() * 1_000_000)).unwrap_or(0),
            bytes: read("memory").map_or(0, |memory| memory.ceil()),
        }
    }

    fn plus(self, other: Amounts) -> Amounts {
        Amounts { nano_cores: self.nano_cores + other.nano_cores, bytes: self.bytes + other.bytes }
    }

    fn by(self, sort: SortBy) -> i128 {
        match sort {
            SortBy::Cpu => self.nano_cores,
            SortBy::Memory => self.bytes,
        }
    }

    /// As kubectl: thousandths of a core rounded up, whole mebibytes.
    fn cells(self) -> [String; 2] {
        let milli = self.nano_cores.max(0).saturating_add(999_999) / 1_000_000;
        [format!("{milli}m"), format!("{}Mi", self.bytes / (1 << 20))]
    }
}

/// Runs `top`.
pub(super) async fn top(asked: Top) -> Result<i32, Error> {
    match asked {
        Top::Pod(pods) => of_pods(&pods.scope.agent.client(), &pods).await,
        Top::Node { show_capacity, no_headers, agent } => of_node(&agent.client(), show_capacity, no_headers).await,
    }
}

async fn of_pods(client: &Client, asked: &Pods) -> Result<i32, Error> {
    let namespace = &asked.scope.namespace;
    let mut path = "/apis/metrics.k8s.io/v1beta1/".to_owned();
    if !asked.all_namespaces {
        path += &format!("namespaces/{}/", encode(namespace));
    } else if asked.name.is_some() {
        return Err(Error::usage("a resource cannot be retrieved by name across all namespaces"));
    }
    path += "pods";
    if let Some(selector) = &asked.selector {
        path += &format!("?labelSelector={}", encode(selector));
    }
    let list: Value = client.get(&path).await?;
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    if let Some(name) = &asked.name {
        let full = format!("{name}-{}", super::node_name(client).await?);
        let is_named = |pod: &Value| pod["metadata"]["name"].as_str().is_some_and(|n| n == name || n == full);
        pods.retain(is_named);
        if pods.is_empty() {
            return Err(Error::new(format!("pod {name:?}"), "not found, or it does not run"));
        }
    }
    if pods.is_empty() {
        match asked.all_namespaces {
            true => eprintln!("No resources found"),
            false => eprintln!("No resources found in {namespace} namespace."),
        }
        return Ok(0);
    }
    print(&Table::default().rows(&pod_rows(&pods, asked)))?;
    Ok(0)
}

fn pod_rows(pods: &[Value], asked: &Pods) -> Vec<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_containers = |pod: &Value| -> Vec<(String, Amounts)> {
        let containers = pod["containers"].as_array().into_iter().flatten();
        containers.map(|container| (text(&container["name"]), Amounts::of(&container["usage"]))).collect()
    };
    let total = |pod: &Value| of_containers(pod).into_iter().fold(Amounts::default(), |sum, (_, one)| sum.plus(one));
    let mut pods: Vec<&Value> = pods.iter().collect();
    pods.sort_by_key(|pod| {
        let names = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        (Reverse(asked.sort_by.map(|sort| total(pod).by(sort))), names)
    });
    let mut rows = Vec::new();
    // Columns before the amounts.
    let lead = 1 + usize::from(asked.all_namespaces) + usize::from(asked.containers);
    if !asked.no_headers {
        let mut head: Vec<&str> = Vec::new();
        head.extend(asked.all_namespaces.then_some("NAMESPACE"));
        head.extend(asked.containers.then_some("POD"));
        head.extend(["NAME", "CPU(cores)", "MEMORY(bytes)"]);
        rows.push(head.into_iter().map(str::to_owned).collect());
    }
    for pod in &pods {
        let mut row = Vec::new();
        row.extend(asked.all_namespaces.then(|| text(&pod["metadata"]["namespace"])));
        row.push(text(&pod["metadata"]["name"]));
        if asked.containers {
            let mut containers = of_containers(pod);
            containers.sort_by_key(|(name, one)| (Reverse(asked.sort_by.map(|sort| one.by(sort))), name.clone()));
            for (name, amounts) in containers {
                rows.push(row.iter().cloned().chain([name]).chain(amounts.cells()).collect());
            }
        } else {
            row.extend(total(pod).cells());
            rows.push(row);
        }
    }
    if asked.sum {
        let blank = || std::iter::repeat_n(String::new(), lead);
        let sum = pods.iter().fold(Amounts::default(), |sum, pod| sum.plus(total(pod)));
        rows.push(blank().chain(["________".to_owned(), "________".to_owned()]).collect());
        rows.push(blank().chain(sum.cells()).collect());
    }
    rows
}

async fn of_node(client: &Client, show_capacity: bool, no_headers: bool) -> Result<i32, Error> {
    let name = super::node_name(client).await?;
    let metrics: Value = client.get(&format!("/apis/metrics.k8s.io/v1beta1/nodes/{}", encode(&name))).await?;
    let node: Node = client.get(&format!("/api/v1/nodes/{}", encode(&name))).await?;
    let status = node.status.unwrap_or_default();
    let there = if show_capacity { status.capacity } else { status.allocatable }.unwrap_or_default();
    let there = |key: &str| there.get(key).and_then(|text| Quantity::parse(&text.0).ok());
    let used = Amounts::of(&metrics["usage"]);
    let [cpu, memory] = used.cells();
    let cores = there("cpu").map(|cpu| cpu.milli_ceil() * 1_000_000);
    let bytes = there("memory").map(|memory| memory.ceil());
    let mut rows = Vec::new();
    if !no_headers {
        rows.push(["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"].map(str::to_owned).to_vec());
    }
    rows.push(vec![name, cpu, share(used.nano_cores, cores), memory, share(used.bytes, bytes)]);
    print(&Table::default().rows(&rows))?;
    Ok(0)
}

/// How many hundredths of all there is.
fn share(part: i128, all: Option<i128>) -> String {
    match all {
        None => "<unknown>".to_owned(),
        Some(all) if all <= 0 => "0%".to_owned(),
        Some(all) => format!("{}%", part.saturating_mul(100) / all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn rows(options: &[&str]) -> String {
        use clap::Parser;
        #[derive(Debug, Parser)]
        struct Line {
            #[command(flatten)]
            pods: Pods,
        }
        let pod = |namespace: &str, name: &str, containers: Value| {
            json!({ "metadata": { "namespace": namespace, "name": name }, "containers": containers })
        };
        let of = |name: &str, cpu: &str, memory: &str| json!({ "name": name, "usage": { "cpu": cpu, "memory": memory } });
        let pods = [
            pod("default", "web", json!([of("app", "1500001n", "2048Ki"), of("side", "250m", "10Mi")])),
            pod("default", "idle", json!([of("app", "1n", "1023Ki")])),
        ];
        let line = Line::try_parse_from([&["top"], options].concat()).expect("a command line");
        Table::default().rows(&pod_rows(&pods, &line.pods))
    }

    #[test]
    fn pods_are_shown_as_kubectl_does() {
        expect![[r#"
            NAME   CPU(cores)   MEMORY(bytes)
            idle   1m           0Mi
            web    252m         12Mi
        "#]]
        .assert_eq(&rows(&[]));
        expect![[r#"
            default   web    side   250m       10Mi
            default   web    app    2m         2Mi
            default   idle   app    1m         0Mi
                                    ________   ________
                                    252m       12Mi
        "#]]
        .assert_eq(&rows(&["--containers", "-A", "--sort-by", "cpu", "--no-headers", "--sum"]));
    }

    #[test]
    fn shares_are_rounded_down() {
        assert_eq!(share(1_999_000_000, Some(2_000_000_000)), "99%");
        assert_eq!((share(1, Some(0)).as_str(), share(1, None).as_str()), ("0%", "<unknown>"));
    }
}
