//! `port-forward`: ports of a pod on this machine. Every connection is one of its own to the agent: none waits for another,
//! and one that fails takes no other along.

use super::client::Client;
use super::error::Error;
use super::logs::pod_path;
use super::print;
use crate::stream::forward::{PROTOCOL, copy};
use crate::stream::spdy::{self, Headers, Limits, Role};
use k8s_openapi::api::core::v1::Pod;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// What to forward.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Addresses to listen on; localhost is 127.0.0.1 and ::1
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "localhost")]
    pub address: Vec<String>,
    /// Pod; pod/NAME works too
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Ports: REMOTE, LOCAL:REMOTE, or :REMOTE for any free local port; REMOTE is a number or the name of a container's port
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub ports: Vec<String>,
}

/// Bytes that may wait for a local client.
const BUFFER: usize = 256 * 1024;
/// Most bytes of what went wrong.
const MAX_ERROR: usize = 4096;
/// How long it may take until a connection is open.
const OPEN_TIME: Duration = Duration::from_secs(30);

/// A pair of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    /// 0: any.
    local: u16,
    remote: u16,
}

/// Reads `[LOCAL:]REMOTE` (as kubectl).
fn ports(text: &str, pod: &Pod) -> Result<Ports, Error> {
    let bad = || Error::usage(format!("{text:?} is no [LOCAL:]REMOTE with ports from 1 to 65535"));
    let (local, remote) = text.split_once(':').unzip();
    let named = remote.unwrap_or(text);
    let remote = match named.parse() {
        Ok(0) => return Err(bad()),
        Ok(number) => number,
        Err(_) if named.bytes().any(|byte| byte.is_ascii_alphabetic()) => {
            let what = || Error::new(format!("the pod has no port named {named:?}"), "");
            named_port(named, pod).ok_or_else(what)?
        }
        Err(_) => return Err(bad()),
    };
    let local = match local {
        None => remote,
        Some("") => 0,
        Some(local) => local.parse().map_err(|_| bad())?,
    };
    Ok(Ports { local, remote })
}

fn named_port(name: &str, pod: &Pod) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let port = containers.flat_map(|c| c.ports.iter().flatten()).find(|port| port.name.as_deref() == Some(name))?;
    u16::try_from(port.container_port).ok()
}

/// Addresses to listen on, each with whether it may be missing: of localhost's two one is enough (as kubectl).
fn addresses(texts: &[String]) -> Result<Vec<(IpAddr, bool)>, Error> {
    let mut all = Vec::new();
    for text in texts {
        match text.as_str() {
            "localhost" => {
                all.extend([(IpAddr::V4(Ipv4Addr::LOCALHOST), true), (IpAddr::V6(Ipv6Addr::LOCALHOST), true)]);
            }
            other => {
                let address = other.parse().map_err(|_| Error::usage(format!("{other:?} is no IP address")))?;
                all.push((address, false));
            }
        }
    }
    Ok(all)
}

/// Runs `port-forward`, until it is interrupted.
pub(super) async fn forward(client: &Client, namespace: &str, options: &Options) -> Result<i32, Error> {
    let name = options.pod.strip_prefix("pod/").or_else(|| options.pod.strip_prefix("pods/")).unwrap_or(&options.pod);
    let path = pod_path(namespace, name);
    let pod: Pod = client.get(&path).await?;
    let wanted = options.ports.iter().map(|text| ports(text, &pod)).collect::<Result<Vec<_>, _>>()?;
    let phase = pod.status.and_then(|status| status.phase).unwrap_or_else(|| "Pending".to_owned());
    if phase != "Running" {
        return Err(Error::new("unable to forward ports", format!("the pod is not running but {phase}")));
    }
    let failed = |error| Error::new("cannot watch for signals", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let listeners = listen(&wanted, &addresses(&options.address)?).await?;
    let mut serving = JoinSet::new();
    let path: Arc<str> = format!("{path}/portforward").into();
    for (listener, ports) in listeners {
        serving.spawn(serve(listener, ports, client.clone(), Arc::clone(&path)));
    }
    tokio::select! {
        _ = serving.join_next() => Err(Error::new("cannot accept connections any more", "")),
        _ = tokio::signal::ctrl_c() => Ok(0),
        _ = terminate.recv() => Ok(0),
    }
}

/// Listens on all ports, and says so.
async fn listen(wanted: &[Ports], addresses: &[(IpAddr, bool)]) -> Result<Vec<(TcpListener, Ports)>, Error> {
    let mut listeners = Vec::new();
    for ports in wanted {
        let mut local = ports.local;
        let mut missing = None;
        for (address, may_miss) in addresses {
            let failed = |error| Error::new(format!("cannot listen on {address} port {local}"), error);
            let listener = match TcpListener::bind((*address, local)).await {
                Ok(listener) => listener,
                Err(error) if *may_miss => {
                    missing = Some(failed(error));
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            // Any free port is the same one on all addresses.
            let bound = listener.local_addr().map_err(failed)?;
            local = bound.port();
            print(&format!("Forwarding from {bound} -> {}\n", ports.remote))?;
            listeners.push((listener, Ports { local, remote: ports.remote }));
        }
        if !listeners.iter().any(|(_, known)| known.remote == ports.remote && known.local == local)
            && let Some(error) = missing
        {
            return Err(error);
        }
    }
    Ok(listeners)
}

async fn serve(listener: TcpListener, ports: Ports, client: Client, path: Arc<str>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => {
                    // Who counts on this line reads it; a closed output is no reason to stop.
                    let _ = print(&format!("Handling connection for {}\n", ports.local));
                    let (client, path) = (client.clone(), Arc::clone(&path));
                    running.spawn(async move {
                        if let Err(error) = connection(tcp, ports.remote, &client, &path).await {
                            eprintln!("{error}");
                        }
                    });
                }
                // Descriptors run out, or the client has given up already.
                Err(error) => {
                    eprintln!("error: cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = running.join_next(), if !running.is_empty() => {}
        }
    }
}

/// One connection, to its end.
async fn connection(tcp: TcpStream, port: u16, client: &Client, path: &str) -> Result<(), Error> {
    let lost = |error: spdy::Error| Error::new(format!("cannot forward to port {port}"), error);
    let _ = tcp.set_nodelay(true);
    let limits = Limits { buffer: BUFFER, stall: None, streams: 4, idle: Duration::ZERO };
    let (connection, _) = spdy::start(client.upgrade_spdy(path, PROTOCOL).await?, Role::Client, limits);
    let number = port.to_string();
    let headers = |kind| Headers::new([("streamType", kind), ("port", number.as_str()), ("requestID", "0")]);
    let open = async {
        let (error, mut unused) = connection.open(headers("error")).await?;
        unused.finish().await?;
        Ok((error, connection.open(headers("data")).await?))
    };
    let opened = tokio::time::timeout(OPEN_TIME, open).await.unwrap_or(Err(spdy::Error::Lost));
    let (mut error, (reader, writer)) = opened.map_err(lost)?;
    let mut told = Vec::new();
    let listen = async {
        while let Ok(Some(bytes)) = error.read().await {
            told.extend_from_slice(&bytes[..bytes.len().min(MAX_ERROR - told.len())]);
        }
    };
    tokio::join!(copy(tcp, reader, writer), listen);
    connection.close().await;
    if told.is_empty() {
        return Ok(());
    }
    Err(Error::new(String::from_utf8_lossy(&told), ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_or_names() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        }))
        .unwrap();
        let read = |text| ports(text, &pod).map(|ports| (ports.local, ports.remote));
        assert_eq!(read("80"), Ok((80, 80)));
        assert_eq!(read("8000:80"), Ok((8000, 80)));
        assert_eq!(read(":80"), Ok((0, 80)));
        assert_eq!(read("0:80"), Ok((0, 80)));
        assert_eq!(read("http"), Ok((8080, 8080)));
        assert_eq!(read("80:http"), Ok((80, 8080)));
        assert_eq!(read("https").unwrap_err().to_string(), "error: the pod has no port named \"https\"");
        for bad in ["", ":", "0", "80:", "x:80", "65536", "1:2:3", "-1", "80:0"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_addresses() {
        let read = |text: &str| addresses(&[text.to_owned()]).map(|all| all.len());
        assert_eq!(read("localhost"), Ok(2));
        assert_eq!(read("0.0.0.0"), Ok(1));
        assert_eq!(read("::"), Ok(1));
        assert!(read("example.com").is_err());
    }
}
