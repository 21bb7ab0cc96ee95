//! Pod networking: a bridge of the node's own, addresses, host ports, and the files that tell containers about it.
//!
//! ```text
//! pod netns: eth0 10.83.0.5/24 ──veth── <bridge> 10.83.0.1/24 ── ip_forward ── masquerade ── the node's uplink
//! node:hostPort ── DNAT ──▶ pod:containerPort
//! ```
//!
//! [`ipam`] decides on addresses (pure) and [`lease`] records them; [`link`] and [`nft`] make the kernel match.
//! Everything is idempotent and rebuilt from the lease records after a crash, an upgrade or a reboot, and all names
//! derive from the bridge's and the pods', so that several agents share a machine by using bridges of their own.
//!
//! Whatever the calling thread's network namespace is, is "the node": nothing here looks at the process.

mod cidr;
mod conntrack;
pub mod hostname;
pub mod hosts;
pub mod ipam;
mod lease;
mod link;
mod nft;
pub mod resolv;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use cidr::{Cidr, CidrError};
pub use hostname::hostname;

use crate::causes::chain;
use crate::sys::netlink::{self, Socket};
use ipam::{Lease, Pool, Refusal};
use lease::Records;

/// What a network is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// The bridge's name (`--bridge`); it is created if it does not exist.
    pub bridge: String,
    /// Where pods get their addresses from (`--pod-cidr`); the first one becomes the bridge's.
    pub pod_cidr: Cidr,
    /// Where leases are recorded: `<root>/net`.
    pub state_dir: PathBuf,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The protocol's number in the IP header.
    fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// A port of the node that leads to a pod's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Only connections to this address of the node; none or unspecified: to any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

impl PortMapping {
    fn host_ip(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether a connection could be meant for either: same protocol and port, and no two different host addresses.
    pub fn overlaps(&self, other: &PortMapping) -> bool {
        (self.protocol, self.host_port) == (other.protocol, other.host_port)
            && match (self.host_ip(), other.host_ip()) {
                (Some(ours), Some(theirs)) => ours == theirs,
                _ => true,
            }
    }
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The pod's addresses; today exactly one, IPv4.
    pub ips: Vec<IpAddr>,
}

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name:?} cannot be a bridge's name: {reason}")]
    BridgeName { name: String, reason: &'static str },
    #[error("pod network {0} must be IPv4 with a prefix of 8 to 30 bits")]
    Unsupported(Cidr),
    #[error("pod network {network} overlaps {address}/{prefix} on {link}: choose another one")]
    Overlap { network: Cidr, link: String, address: IpAddr, prefix: u8 },
    #[error("pod network {network} would hide this machine's gateway {gateway}: choose another one")]
    HidesGateway { network: Cidr, gateway: Ipv4Addr },
    #[error("{name} exists and is not a bridge but {}", if kind.is_empty() { "another kind of link" } else { kind })]
    NotABridge { name: String, kind: String },
    #[error("bridge {bridge} was deleted while it was being set up")]
    BridgeVanished { bridge: String },
    #[error("link {link} was deleted while it was being set up")]
    LinkVanished { link: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("hostPort {port}/{protocol}: {reason}")]
    HostPort { port: u16, protocol: Protocol, reason: String },
    #[error("pod has no UID")]
    NoUid,
    #[error("network namespace {}", path.display())]
    Namespace { path: PathBuf, source: io::Error },
    #[error("lease records in {}", path.display())]
    Records { path: PathBuf, source: io::Error },
    #[error("{}", path.display())]
    Sysctl { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// For how long what was wrong with the bridge is taken for what is: a pod without a network is tried again sooner.
const PROBLEM: Duration = Duration::from_secs(60);

/// The built-in pod network.
pub struct Network {
    config: Config,
    records: Records,
    state: Mutex<State>,
    problem: Mutex<Option<(Instant, String)>>,
}

struct State {
    pool: Pool,
    translation: Translation,
    nft: nft::Connection,
    forwarding_checked: bool,
}

/// How far the kernel's table follows the leases.
enum Translation {
    /// Not yet written by this process.
    Stale,
    /// As the leases say.
    Current,
    /// This kernel cannot do it; why.
    Unavailable(String),
}

impl Network {
    /// Reads the leases; touches neither links nor rules until the first attach.
    ///
    /// # Errors
    ///
    /// A bridge name the kernel would refuse, a pod network that is not IPv4 or has no room, unreadable records.
    pub fn open(config: Config) -> Result<Network, Error> {
        check_bridge_name(&config.bridge)?;
        let mut pool = Pool::new(config.pod_cidr).ok_or(Error::Unsupported(config.pod_cidr))?;
        let records = Records::new(&config.state_dir);
        let on_records = |source| Error::Records { path: config.state_dir.clone(), source };
        for (address, lease) in records.load().map_err(on_records)? {
            let uid = lease.uid.clone();
            if !pool.adopt(address, lease) {
                tracing::warn!(%address, %uid, network = %config.pod_cidr, "dropping a lease that is not of this pod network");
                records.remove(address).map_err(on_records)?;
            }
        }
        if let Some(last) = records.last() {
            pool.resume_after(last);
        }
        let state =
            State { pool, translation: Translation::Stale, nft: nft::Connection::default(), forwarding_checked: false };
        Ok(Network { config, records, state: Mutex::new(state), problem: Mutex::default() })
    }

    /// Connects a pod's network namespace to the bridge and its host ports to the pod. Idempotent: the same pod
    /// keeps its address, and what is in place stays in place. After a failure the pod's lease remains until
    /// [`Network::detach`].
    ///
    /// # Errors
    ///
    /// No free address; a host port that another pod holds, or that cannot be translated here; what the kernel refuses.
    pub fn attach(&self, uid: &str, netns: &Path, ports: &[PortMapping]) -> Result<Attachment, Error> {
        if uid.is_empty() {
            return Err(Error::NoUid);
        }
        check_ports(ports)?;
        let mut socket = Socket::open(netlink::Protocol::Route)?;
        let (address, gateway, bridge, changed) = {
            let mut state = self.state();
            let before = state.pool.get(uid).map(|(_, lease)| lease.ports.clone());
            let address = state.pool.allocate(uid, ports)?;
            if before.as_deref() != Some(ports) {
                let lease = Lease { uid: uid.to_owned(), ports: ports.to_vec() };
                if let Err(source) = self.records.save(address, &lease, before.is_none()) {
                    if before.is_none() {
                        state.pool.release(uid);
                    }
                    return Err(Error::Records { path: self.config.state_dir.clone(), source });
                }
            }
            let gateway = state.pool.gateway();
            let bridge = link::ensure_bridge(&mut socket, &self.config.bridge, gateway, self.config.pod_cidr);
            self.note(bridge.as_ref().err());
            let bridge = bridge?;
            if !state.forwarding_checked {
                enable_forwarding();
                state.forwarding_checked = true;
            }
            (address, gateway, bridge, before.unwrap_or_default() != ports)
        };
        let mtu = link::uplink_mtu(&mut socket);
        let prefix = self.config.pod_cidr.prefix();
        let name = link_name(uid);
        link::connect(&mut socket, netns, &link::Port { name: &name, bridge, address, prefix, gateway, mtu })?;
        let mut state = self.state();
        self.translate(&mut state, changed)?;
        if changed {
            forget_flows(&mut state.nft, ports);
        }
        if let (Translation::Unavailable(reason), Some(port)) = (&state.translation, ports.first()) {
            let reason = format!("this kernel cannot translate addresses: {reason}");
            return Err(Error::HostPort { port: port.host_port, protocol: port.protocol, reason });
        }
        Ok(Attachment { ips: vec![address.into()] })
    }

    /// Disconnects a pod and frees what it held. Idempotent, also for pods never attached.
    pub fn detach(&self, uid: &str) -> Result<(), Error> {
        {
            // Ports first: none may lead to an address that somebody else gets.
            let mut state = self.state();
            let ports = state.pool.get(uid).map(|(_, lease)| lease.ports.clone()).unwrap_or_default();
            if state.pool.clear_ports(uid) {
                self.translate(&mut state, true)?;
                forget_flows(&mut state.nft, &ports);
            }
        }
        link::disconnect(&mut Socket::open(netlink::Protocol::Route)?, &link_name(uid))?;
        let mut state = self.state();
        if let Some((address, _)) = state.pool.get(uid) {
            // The record first: an address is free again once nothing says otherwise.
            self.forget(address)?;
            state.pool.release(uid);
        }
        Ok(())
    }

    /// Drops everything of pods that are not in `live`: leases, links, rules. For after a restart, once it is known
    /// which pods there are, and before others come up.
    pub fn retain(&self, live: &[String]) -> Result<(), Error> {
        let stale: Vec<String> = {
            let mut state = self.state();
            for address in state.pool.release_unreadable() {
                self.forget(address)?;
            }
            let dead = |uid: &String| !live.contains(uid);
            state.pool.leases().map(|(_, lease)| lease.uid.clone()).filter(dead).collect()
        };
        for uid in &stale {
            self.detach(uid)?;
        }
        let mut socket = Socket::open(netlink::Protocol::Route)?;
        let Some(bridge) = link::find(&mut socket, &self.config.bridge)? else { return Ok(()) };
        let owned: Vec<String> = live.iter().map(|uid| link_name(uid)).collect();
        for link in link::all(&mut socket)? {
            if link.master == Some(bridge.index) && is_link_name(&link.name) && !owned.contains(&link.name) {
                link::disconnect(&mut socket, &link.name)?;
            }
        }
        self.translate(&mut self.state(), true)
    }

    /// Removes the whole network: pods' links, the bridge (unless somebody else made it), rules and leases.
    pub fn remove_all(&self) -> Result<(), Error> {
        let mut state = self.state();
        let mut socket = Socket::open(netlink::Protocol::Route)?;
        if let Some(bridge) = link::find(&mut socket, &self.config.bridge)? {
            for link in link::all(&mut socket)? {
                if link.master == Some(bridge.index) && is_link_name(&link.name) {
                    link::disconnect(&mut socket, &link.name)?;
                }
            }
            if bridge.kind == "bridge" && bridge.hardware == link::hardware_address(state.pool.gateway()) {
                link::delete(&mut socket, &self.config.bridge)?;
            }
        }
        match nft::remove(&self.config.bridge, &mut state.nft) {
            Err(e) if !nft::is_unavailable(&e) => return Err(e.into()),
            _ => {}
        }
        self.records.remove_all().map_err(|source| self.on_records(source))?;
        let uids: Vec<String> = state.pool.leases().map(|(_, lease)| lease.uid.clone()).collect();
        for uid in &uids {
            state.pool.release(uid);
        }
        state.pool.release_unreadable();
        state.translation = Translation::Stale;
        state.forwarding_checked = false;
        Ok(())
    }

    /// The bridge is every pod's: what is wrong with it is no pod's fault.
    fn note(&self, error: Option<&Error>) {
        let problem = error.map(|error| (Instant::now(), chain(error)));
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// What is wrong with the bridge, if a pod met it lately: nobody looks when no pod needs it.
    pub fn problem(&self) -> Option<String> {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.as_ref().filter(|(at, _)| at.elapsed() < PROBLEM).map(|(_, why)| why.clone())
    }

    /// The address a pod holds.
    pub fn address(&self, uid: &str) -> Option<IpAddr> {
        self.state().pool.get(uid).map(|(address, _)| address.into())
    }

    /// Brings the kernel's table in line with the leases if it is not, or if they `changed`.
    fn translate(&self, state: &mut State, changed: bool) -> Result<(), Error> {
        match state.translation {
            Translation::Unavailable(_) => return Ok(()),
            Translation::Current if !changed => return Ok(()),
            _ => {}
        }
        let forwards: Vec<nft::Forward> =
            state.pool.leases().flat_map(|(address, lease)| forwards(address, lease)).collect();
        let local = !forwards.is_empty();
        let ruleset = nft::Ruleset { bridge: self.config.bridge.clone(), pods: self.config.pod_cidr, forwards };
        // Whatever happens next, the table is not known to be right until it has been written.
        state.translation = Translation::Stale;
        if let Err(error) = ruleset.program(&mut state.nft) {
            if !nft::is_unavailable(&error) {
                return Err(error.into());
            }
            let reason = chain(&error);
            tracing::warn!(%reason, "no address translation on this kernel: pods reach other machines only where those route back");
            state.translation = Translation::Unavailable(reason);
            return Ok(());
        }
        // Only once the table's guard is in place.
        if local {
            let path = PathBuf::from(format!("/proc/sys/net/ipv4/conf/{}/route_localnet", self.config.bridge));
            if let Err(error) = ensure_one(&path) {
                tracing::warn!(path = %path.display(), %error, "host ports do not work by way of 127.0.0.1");
            }
        }
        state.translation = Translation::Current;
        Ok(())
    }

    fn forget(&self, address: Ipv4Addr) -> Result<(), Error> {
        self.records.remove(address).map_err(|source| self.on_records(source))
    }

    fn on_records(&self, source: io::Error) -> Error {
        Error::Records { path: self.config.state_dir.clone(), source }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the pool is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forwards(address: Ipv4Addr, lease: &Lease) -> impl Iterator<Item = nft::Forward> {
    lease.ports.iter().map(move |port| nft::Forward {
        host_ip: match port.host_ip() {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        },
        host_port: port.host_port,
        protocol: port.protocol,
        to: SocketAddrV4::new(address, port.container_port),
    })
}

/// Makes endless flows notice that their port leads elsewhere now. TCP needs none of it: its flows end.
fn forget_flows(connection: &mut nft::Connection, ports: &[PortMapping]) {
    for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        if let Err(error) = conntrack::forget(connection, port.protocol.number(), port.host_port) {
            tracing::debug!(port = port.host_port, error = %chain(&error), "senders that keep their port may have to pause for 30 s");
        }
    }
}

fn check_ports(ports: &[PortMapping]) -> Result<(), Error> {
    for (at, port) in ports.iter().enumerate() {
        let refused = |reason: &str| {
            Err(Error::HostPort { port: port.host_port, protocol: port.protocol, reason: reason.to_owned() })
        };
        if port.host_port == 0 || port.container_port == 0 {
            return refused("a port cannot be 0");
        }
        if let Some(IpAddr::V6(ip)) = port.host_ip() {
            return refused(&format!("hostIP {ip} is IPv6, and the pod network has only IPv4"));
        }
        if ports[..at].iter().any(|earlier| earlier.overlaps(port)) {
            return refused("mapped twice by the same pod");
        }
    }
    Ok(())
}

/// As the kernel's `dev_valid_name`.
fn check_bridge_name(name: &str) -> Result<(), Error> {
    let refused = |reason| Err(Error::BridgeName { name: name.to_owned(), reason });
    match name {
        "" => refused("it is empty"),
        "." | ".." | "all" | "default" => refused("it is reserved"),
        _ if name.len() >= libc::IFNAMSIZ => refused("it is longer than 15 bytes"),
        _ if name.bytes().any(|b| b == b'/' || b == b':' || !b.is_ascii_graphic()) => {
            refused("it has a slash, a colon, a space or a non-ASCII character")
        }
        _ => Ok(()),
    }
}

/// The node's side of a pod's veth pair: `veth` and 11 digits (44 bits) of the UID's hash, 15 bytes in all.
fn link_name(uid: &str) -> String {
    let digest = Sha256::digest(uid.as_bytes());
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("veth{}", &hex[..11])
}

fn is_link_name(name: &str) -> bool {
    name.strip_prefix("veth")
        .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

/// Lets the node route between the bridge and its other links. Without it pods still reach the node and one another.
fn enable_forwarding() {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    if let Err(error) = ensure_one(path) {
        tracing::warn!(path = %path.display(), %error, "cannot enable forwarding: pods reach this node only");
    }
}

/// Writes 1 where there is a 0: rewriting `ip_forward` resets other settings, and /proc may be read-only.
fn ensure_one(path: &Path) -> io::Result<()> {
    match std::fs::read_to_string(path)?.trim() {
        "0" => std::fs::write(path, "1"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_and_are_recognised() {
        let name = link_name("0f2b6d4e7c8a4b1d9e3f5a6b7c8d9e0f");
        assert_eq!(name.len(), 15);
        assert!(is_link_name(&name));
        assert_ne!(name, link_name("another"));
        assert!(!is_link_name("veth0") && !is_link_name("vethABCDEF01234"));
    }

    #[test]
    fn bad_bridge_names_are_refused() {
        for name in ["", ".", "..", "all", "a/b", "a b", "sixteen-bytes-xx", "brücke", "a:b"] {
            assert!(check_bridge_name(name).is_err(), "{name}");
        }
        check_bridge_name("coracle0").unwrap();
    }

    #[test]
    fn ports_are_checked_before_anything_is_touched() {
        let port = |host_ip: Option<&str>, host_port| PortMapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port: 80,
            protocol: Protocol::Tcp,
        };
        let error = |ports: &[PortMapping]| check_ports(ports).unwrap_err().to_string();
        assert_eq!(error(&[port(None, 0)]), "hostPort 0/TCP: a port cannot be 0");
        assert_eq!(
            error(&[port(Some("::1"), 80)]),
            "hostPort 80/TCP: hostIP ::1 is IPv6, and the pod network has only IPv4"
        );
        assert_eq!(
            error(&[port(None, 80), port(Some("0.0.0.0"), 80)]),
            "hostPort 80/TCP: mapped twice by the same pod"
        );
        check_ports(&[port(Some("::"), 80), port(None, 81)]).unwrap();
    }
}
