//! The bridge and the pods' veth pairs, over rtnetlink.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Cidr, Error};
use crate::sys::namespace;
use crate::sys::netlink::{self, Message, Protocol, Socket, attributes, number, string};

/// The pod's side of its veth pair.
pub const POD_LINK: &str = "eth0";
/// An address of TEST-NET-1 (RFC 5737): the route to it is the one to the outside world.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A link that went away with its namespace is still in the way for as long as the kernel takes to clean up.
const CREATE_RETRIES: u32 = 5;
/// `IF_OPER_UP` of `linux/if.h`.
const OPERATIONAL: u8 = 6;
const SETTLE_PAUSE: Duration = Duration::from_micros(200);
const SETTLE_MOST: Duration = Duration::from_millis(200);

/// What this node looks at in a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Able to carry packets, as far as the kernel has noticed.
    pub operational: bool,
    pub mtu: Option<u32>,
    pub master: Option<u32>,
    pub kind: String,
    pub hardware: Vec<u8>,
}

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub address: IpAddr,
    pub prefix: u8,
}

/// The way out of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    pub index: u32,
    pub gateway: Option<Ipv4Addr>,
}

/// A hardware address derived from an IPv4 address, locally administered: whoever takes over the address takes over
/// the hardware address too, and no neighbour's cache is ever wrong. A bridge that has it is one of ours.
pub fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0xc0, a, b, c, d]
}

/// The link of that name in the socket's namespace.
pub fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, netlink::Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    one(socket, message, &format!("looking up link {name}"))
}

fn find_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, netlink::Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    one(socket, message, &format!("looking up link number {index}"))
}

fn one(socket: &mut Socket, message: LinkMessage, asked: &str) -> Result<Option<Link>, netlink::Error> {
    match socket.get(RouteNetlinkMessage::GetLink(message), asked) {
        Ok(answer) => Ok(link(&answer)),
        Err(e) if e.is_absent() => Ok(None),
        Err(e) => Err(e),
    }
}

/// All links of the socket's namespace.
pub fn all(socket: &mut Socket) -> Result<Vec<Link>, netlink::Error> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    Ok(socket.dump(&request, "listing links")?.iter().filter_map(link).collect())
}

/// All IPv4 addresses of the socket's namespace.
pub fn addresses(socket: &mut Socket) -> Result<Vec<Address>, netlink::Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let request = RouteNetlinkMessage::GetAddress(message);
    Ok(socket.dump(&request, "listing addresses")?.iter().filter_map(address).collect())
}

/// Where traffic to the outside world goes; `None` without a route there.
pub fn uplink(socket: &mut Socket) -> Option<Uplink> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(OUTSIDE)));
    // ENETUNREACH, EHOSTUNREACH, EINVAL (a blackhole), EACCES (prohibit): all mean that there is no way out.
    let answer = socket.get(RouteNetlinkMessage::GetRoute(message), "looking up the default route").ok()?;
    let (mut index, mut gateway) = (None, None);
    for (kind, value) in attributes(answer.body.get(12..)?) {
        match kind {
            4 => index = number(value),
            5 => gateway = ipv4(value),
            _ => {}
        }
    }
    Some(Uplink { index: index?, gateway })
}

/// The MTU of the link to the outside world, if there is one.
pub fn uplink_mtu(socket: &mut Socket) -> Option<u32> {
    let uplink = uplink(socket)?;
    let link = find_index(socket, uplink.index).ok()??;
    // Loopback's 65536 is no real link's, and veth would refuse it.
    link.mtu.filter(|mtu| (576..=65535).contains(mtu))
}

/// Makes sure that the bridge exists, has the gateway's address and is up; returns its index.
pub fn ensure_bridge(socket: &mut Socket, name: &str, gateway: Ipv4Addr, network: Cidr) -> Result<u32, Error> {
    let bridge = match find(socket, name)? {
        Some(bridge) => bridge,
        None => {
            check_overlap(socket, name, network)?;
            create_bridge(socket, name, gateway)?;
            refuse_router_advertisements(name);
            find(socket, name)?.ok_or_else(|| Error::BridgeVanished { bridge: name.to_owned() })?
        }
    };
    if bridge.kind != "bridge" {
        return Err(Error::NotABridge { name: name.to_owned(), kind: bridge.kind });
    }
    let assigned = addresses(socket)?;
    if !assigned.iter().any(|a| a.index == bridge.index && a.address == IpAddr::V4(gateway)) {
        add_address(socket, bridge.index, gateway, network.prefix(), name)?;
    }
    if !bridge.up {
        set_up(socket, bridge.index, name)?;
    }
    Ok(bridge.index)
}

/// A pod must not become the node's IPv6 router (as in CVE-2020-10749): the pod network is IPv4 only. Without IPv6 in
/// the kernel there is nothing to refuse.
fn refuse_router_advertisements(link: &str) {
    for (setting, value) in [("accept_ra", "0"), ("disable_ipv6", "1")] {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/{setting}");
        match std::fs::write(&path, value) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%path, %error, "pods may advertise IPv6 routes to this node");
            }
            _ => {}
        }
    }
}

/// Refuses a pod network that would take addresses away from the machine's own networks: a node that nobody can
/// drive to must not lose its way out. A pod network inside a larger one of the machine's is only warned about.
fn check_overlap(socket: &mut Socket, bridge: &str, network: Cidr) -> Result<(), Error> {
    for found in addresses(socket)? {
        let Ok(theirs) = Cidr::containing(found.address, found.prefix) else { continue };
        if !theirs.overlaps(&network) {
            continue;
        }
        let link = find_index(socket, found.index)?.map_or_else(|| format!("link {}", found.index), |l| l.name);
        if link == bridge {
            continue;
        }
        if network.contains(found.address) || theirs.prefix() >= network.prefix() {
            return Err(Error::Overlap { network, link, address: found.address, prefix: found.prefix });
        }
        tracing::warn!(%network, %link, theirs = %theirs, "pod network lies inside another network of this machine: its addresses there become unreachable");
    }
    if let Some(Uplink { gateway: Some(gateway), .. }) = uplink(socket)
        && network.contains(gateway.into())
    {
        return Err(Error::HidesGateway { network, gateway });
    }
    Ok(())
}

fn create_bridge(socket: &mut Socket, name: &str, gateway: Ipv4Addr) -> Result<(), netlink::Error> {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        // Given, or the bridge would take its ports' lowest one and change it as pods come and go.
        LinkAttribute::Address(hardware_address(gateway).to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    let asked = format!("creating bridge {name}");
    match socket.execute(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, &asked) {
        Err(e) if !e.is_present() => Err(e),
        _ => Ok(()),
    }
}

/// A pod's place in the network.
#[derive(Debug, Clone, Copy)]
pub struct Port<'a> {
    /// The name of the node's side of the veth pair.
    pub name: &'a str,
    /// The bridge's index.
    pub bridge: u32,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub mtu: Option<u32>,
}

/// Connects a pod's network namespace to the bridge; whatever of it is there already, and right, stays untouched.
pub fn connect(host: &mut Socket, netns: &Path, port: &Port<'_>) -> Result<(), Error> {
    let inside = |source| Error::Namespace { path: netns.to_owned(), source };
    let namespace = File::open(netns).map_err(inside)?;
    let mut pod = namespace::with_netns(netns, || Socket::open(Protocol::Route)).map_err(inside)??;
    let mut fresh = false;
    let index = match find(&mut pod, POD_LINK)? {
        Some(link) if is_connected(host, &mut pod, &link, port)? => link.index,
        found => {
            disconnect(host, port.name)?;
            if found.is_some() {
                delete(&mut pod, POD_LINK)?;
            }
            create_pair(host, &namespace, port)?;
            let made = find(&mut pod, POD_LINK)?.ok_or_else(|| Error::LinkVanished { link: POD_LINK.to_owned() })?;
            set_up(&mut pod, made.index, POD_LINK)?;
            fresh = true;
            made.index
        }
    };
    let assigned = addresses(&mut pod)?;
    if !assigned.iter().any(|a| a.index == index && a.address == IpAddr::V4(port.address)) {
        add_address(&mut pod, index, port.address, port.prefix, POD_LINK)?;
    }
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(port.gateway)), RouteAttribute::Oif(index)];
    let asked = format!("adding the pod's default route by {}", port.gateway);
    pod.execute(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE, &asked)?;
    if fresh {
        let outer = find(host, port.name)?.ok_or_else(|| Error::LinkVanished { link: port.name.to_owned() })?;
        settle(host, outer.index)?;
        settle(host, port.bridge)?;
    }
    Ok(())
}

/// Waits until a link carries packets. The kernel sees to that in the background (link watch), and until then a bridge
/// drops what it should forward: a pod's first packets, which are resent after a whole second.
fn settle(socket: &mut Socket, index: u32) -> Result<(), netlink::Error> {
    let started = Instant::now();
    while started.elapsed() < SETTLE_MOST {
        match find_index(socket, index)? {
            Some(link) if !link.operational => std::thread::sleep(SETTLE_PAUSE),
            _ => return Ok(()),
        }
    }
    // Not worth failing a pod over: it will carry packets a little later.
    Ok(())
}

/// Whether the pair is whole: both ends up, ours on the bridge, and no other address on the pod's than its own.
fn is_connected(host: &mut Socket, pod: &mut Socket, link: &Link, port: &Port<'_>) -> Result<bool, netlink::Error> {
    let outer = find(host, port.name)?;
    if !link.up || !outer.is_some_and(|outer| outer.up && outer.master == Some(port.bridge)) {
        return Ok(false);
    }
    Ok(addresses(pod)?.iter().all(|a| a.index != link.index || a.address == IpAddr::V4(port.address)))
}

fn create_pair(host: &mut Socket, namespace: &File, port: &Port<'_>) -> Result<(), netlink::Error> {
    let asked = format!("creating veth pair {}", port.name);
    for attempt in 0.. {
        match host.execute(pair(namespace, port), NLM_F_CREATE | NLM_F_EXCL, &asked) {
            Err(e) if e.is_present() && attempt < CREATE_RETRIES => disconnect(host, port.name)?,
            Err(e) => return Err(e),
            Ok(()) => break,
        }
    }
    // A pod that reaches itself by one of its host ports comes back by the port it left from.
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(port.name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]),
    ];
    host.execute(RouteNetlinkMessage::NewLink(message), 0, &format!("setting hairpin mode of {}", port.name))
}

/// The request that makes both ends at once, each in its place, the pod's never visible on the node. Only the node's
/// end can be up from the start: the pod's has no peer yet when the kernel comes to it (ENOTCONN).
fn pair(namespace: &File, port: &Port<'_>) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(POD_LINK.to_owned()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        LinkAttribute::Address(hardware_address(port.address).to_vec()),
    ];
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(port.name.to_owned()), LinkAttribute::Controller(port.bridge)];
    if let Some(mtu) = port.mtu {
        peer.attributes.push(LinkAttribute::Mtu(mtu));
        message.attributes.push(LinkAttribute::Mtu(mtu));
    }
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

/// Removes the node's side of a pod's veth pair and the pod's with it; fine if there is none.
pub fn disconnect(host: &mut Socket, name: &str) -> Result<(), netlink::Error> {
    delete(host, name)
}

/// Removes a link; fine if there is none.
pub fn delete(socket: &mut Socket, name: &str) -> Result<(), netlink::Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match socket.execute(RouteNetlinkMessage::DelLink(message), 0, &format!("deleting link {name}")) {
        Err(e) if !e.is_absent() => Err(e),
        _ => Ok(()),
    }
}

fn set_up(socket: &mut Socket, index: u32, name: &str) -> Result<(), netlink::Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    socket.execute(RouteNetlinkMessage::SetLink(message), 0, &format!("setting link {name} up"))
}

fn add_address(
    socket: &mut Socket,
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
    name: &str,
) -> Result<(), netlink::Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    let asked = format!("adding address {address}/{prefix} to {name}");
    match socket.execute(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, &asked) {
        Err(e) if !e.is_present() => Err(e),
        _ => Ok(()),
    }
}

/// Reads an `ifinfomsg` and its attributes.
fn link(message: &Message) -> Option<Link> {
    let header = message.body.get(..16)?;
    let mut link = Link {
        index: number(&header[4..8])?,
        name: String::new(),
        up: number(&header[8..12])? & libc::IFF_UP as u32 != 0,
        operational: false,
        mtu: None,
        master: None,
        kind: String::new(),
        hardware: Vec::new(),
    };
    for (kind, value) in attributes(&message.body[16..]) {
        match kind {
            libc::IFLA_ADDRESS => link.hardware = value.to_vec(),
            libc::IFLA_IFNAME => link.name = string(value).to_owned(),
            libc::IFLA_MTU => link.mtu = number(value),
            libc::IFLA_OPERSTATE => link.operational = value == [OPERATIONAL],
            libc::IFLA_MASTER => link.master = number(value),
            libc::IFLA_LINKINFO => {
                if let Some((_, kind)) = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND) {
                    link.kind = string(kind).to_owned();
                }
            }
            _ => {}
        }
    }
    Some(link)
}

/// Reads an `ifaddrmsg` and its attributes.
fn address(message: &Message) -> Option<Address> {
    let header = message.body.get(..8)?;
    let found = |wanted: u16| attributes(&message.body[8..]).find(|(kind, _)| *kind == wanted);
    // On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is ours.
    let (_, value) = found(libc::IFA_LOCAL).or_else(|| found(libc::IFA_ADDRESS))?;
    Some(Address { prefix: header[1], index: number(&header[4..8])?, address: ipv4(value)?.into() })
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = value.try_into().ok()?;
    Some(octets.into())
}
