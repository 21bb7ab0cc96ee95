//! Address translation: one nf_tables table per bridge, always replaced as a whole by one transaction.
//!
//! What the table amounts to, in nft's notation (`hostports` and what leads to it only while there are any):
//!
//! ```text
//! table ip coracle-<bridge> {
//!   chain guard       { type filter hook prerouting priority raw;
//!                       iifname <bridge> ip daddr 127.0.0.0/8 drop
//!                       iifname <bridge> ip saddr 127.0.0.0/8 drop }
//!   chain prerouting  { type nat hook prerouting priority dstnat; fib daddr type local jump hostports }
//!   chain output      { type nat hook output priority dstnat;     fib daddr type local jump hostports }
//!   chain hostports   { [ip daddr <host ip>] meta l4proto <p> th dport <host port> dnat to <pod ip>:<port> … }
//!   chain postrouting { type nat hook postrouting priority srcnat;
//!                       oifname <bridge> ip saddr <pods> ct status dnat masquerade
//!                       oifname <bridge> ip saddr 127.0.0.0/8 masquerade
//!                       oifname != <bridge> ip saddr <pods> ip daddr != <pods> ip daddr != 224.0.0.0/4 masquerade }
//! }
//! ```
//!
//! `guard` is the other side of `route_localnet`, which makes 127.0.0.1:hostPort work: without it, a pod could reach
//! what listens on the node's loopback (as kube-proxy guards against since CVE-2020-8558). It runs before connection
//! tracking, where the answers of translated connections still carry the bridge's address.
//!
//! What was translated from pod to pod, for a host port or by kube-proxy for a Service, is masqueraded: the bridge carries
//! the answer straight to the asking pod, past connection tracking, which would not know it for an answer to its question.
//! With the bridge's address as its source it comes back by the node. (br_netfilter would lead it through connection
//! tracking, too; but it may not be loaded, and its switch is older kernels' for all bridges of the machine.)
//!
//! Nothing is accepted explicitly: an accept here would not overrule a drop in somebody else's table.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use super::{Cidr, Protocol};
use crate::sys::netlink::{self, Socket, Writer};

/// `nfgenmsg` families.
const UNSPEC: u8 = 0;
const IPV4: u8 = 2;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEW_TABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const DEL_TABLE: u16 = NEW_TABLE + 2;
const NEW_CHAIN: u16 = NEW_TABLE + 3;
const NEW_RULE: u16 = NEW_TABLE + 6;

const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_SRCNAT: i32 = 100;

const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;

const VERDICT_DROP: i32 = 0;
const VERDICT_JUMP: i32 = -3;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;

const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const IP_SOURCE: u32 = 12;
const IP_DESTINATION: u32 = 16;
const PORT_DESTINATION: u32 = 2;

const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const RTN_LOCAL: u32 = 2;

const CT_STATUS: u32 = 2;
const CT_STATUS_DNAT: u32 = 1 << 5;

const NAT_DESTINATION: u32 = 1;

const LOOPBACK: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);
const MULTICAST: (Ipv4Addr, u8) = (Ipv4Addr::new(224, 0, 0, 0), 4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Equal = 0,
    Different = 1,
}

/// The socket to netfilter, opened when first needed and after an error.
#[derive(Default)]
pub struct Connection(Option<Socket>);

impl Connection {
    /// As [`Socket::transact`].
    pub fn transact(&mut self, batch: &[u8], last: u32, asked: impl Fn(u32) -> String) -> Result<(), netlink::Error> {
        let socket = match self.0.take() {
            Some(socket) => socket,
            None => Socket::open(netlink::Protocol::Netfilter)?,
        };
        self.0 = Some(socket.transact(batch, last, asked)?);
        Ok(())
    }
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub protocol: Protocol,
    pub to: SocketAddrV4,
}

/// All that the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub bridge: String,
    pub pods: Cidr,
    pub forwards: Vec<Forward>,
}

impl Ruleset {
    /// Makes the kernel's table this one, atomically: packets see the old rules or the new ones.
    pub fn program(&self, connection: &mut Connection) -> Result<(), netlink::Error> {
        self.build().send(connection)
    }

    fn build(&self) -> Batch {
        let mut batch = Batch::begin(&self.bridge);
        batch.replace_table();
        batch.base_chain("guard", "filter", HOOK_PREROUTING, PRIORITY_RAW);
        batch.base_chain("postrouting", "nat", HOOK_POSTROUTING, PRIORITY_SRCNAT);
        for at in [IP_DESTINATION, IP_SOURCE] {
            batch.rule("guard", |w| {
                interface(w, META_IIFNAME, Is::Equal, &self.bridge);
                network(w, at, Is::Equal, LOOPBACK);
                verdict(w, VERDICT_DROP, None);
            });
        }
        let IpAddr::V4(address) = self.pods.address() else {
            // Network::open takes IPv4 networks only.
            return batch;
        };
        let pods = (address, self.pods.prefix());
        if !self.forwards.is_empty() {
            batch.chain("hostports");
            for (name, hook) in [("prerouting", HOOK_PREROUTING), ("output", HOOK_OUTPUT)] {
                batch.base_chain(name, "nat", hook, PRIORITY_DSTNAT);
                batch.rule(name, |w| {
                    destination_is_local(w);
                    verdict(w, VERDICT_JUMP, Some("hostports"));
                });
            }
            for forward in &self.forwards {
                batch.rule("hostports", |w| dnat(w, forward));
            }
            batch.rule("postrouting", |w| {
                interface(w, META_OIFNAME, Is::Equal, &self.bridge);
                network(w, IP_SOURCE, Is::Equal, LOOPBACK);
                expression(w, "masq", |_| {});
            });
        }
        // Not only for our own host ports: a Service is somebody else's translation.
        batch.rule("postrouting", |w| {
            interface(w, META_OIFNAME, Is::Equal, &self.bridge);
            network(w, IP_SOURCE, Is::Equal, pods);
            was_dnat(w);
            expression(w, "masq", |_| {});
        });
        batch.rule("postrouting", |w| {
            interface(w, META_OIFNAME, Is::Different, &self.bridge);
            network(w, IP_SOURCE, Is::Equal, pods);
            network(w, IP_DESTINATION, Is::Different, pods);
            network(w, IP_DESTINATION, Is::Different, MULTICAST);
            expression(w, "masq", |_| {});
        });
        batch
    }
}

/// Removes the bridge's table; fine if there is none.
pub fn remove(bridge: &str, connection: &mut Connection) -> Result<(), netlink::Error> {
    let mut batch = Batch::begin(bridge);
    // Creating first makes the deletion succeed either way.
    batch.create_table();
    batch.delete_table();
    batch.send(connection)
}

/// Whether an error means that this kernel cannot translate addresses at all, rather than that this request failed.
///
/// `ENOENT`: the transaction refers to nothing it has not created itself but expression and chain types.
pub fn is_unavailable(error: &netlink::Error) -> bool {
    matches!(
        error.errno(),
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOENT | libc::ENOPROTOOPT)
    )
}

struct Batch {
    writer: Writer,
    table: String,
    /// What each message is about, for errors.
    about: Vec<&'static str>,
}

impl Batch {
    fn begin(bridge: &str) -> Batch {
        let mut batch = Batch { writer: Writer::default(), table: format!("coracle-{bridge}"), about: Vec::new() };
        batch.frame(BATCH_BEGIN, "batch");
        batch
    }

    fn frame(&mut self, kind: u16, about: &'static str) {
        // The header's last field names the subsystem the batch is for.
        self.writer.message(kind, 0, |w| family(w, UNSPEC, NFNL_SUBSYS_NFTABLES));
        self.about.push(about);
    }

    fn message(&mut self, kind: u16, flags: u16, about: &'static str, body: impl FnOnce(&mut Writer)) {
        self.writer.message(kind, flags, |w| {
            family(w, IPV4, 0);
            body(w);
        });
        self.about.push(about);
    }

    fn create_table(&mut self) {
        let table = self.table.clone();
        self.message(NEW_TABLE, NLM_F_CREATE, "table", |w| w.name(1, &table));
    }

    fn delete_table(&mut self) {
        let table = self.table.clone();
        self.message(DEL_TABLE, 0, "table", |w| w.name(1, &table));
    }

    fn replace_table(&mut self) {
        self.create_table();
        self.delete_table();
        self.create_table();
    }

    fn chain(&mut self, name: &'static str) {
        let table = self.table.clone();
        self.message(NEW_CHAIN, NLM_F_CREATE, name, |w| {
            w.name(1, &table);
            w.name(3, name);
        });
    }

    fn base_chain(&mut self, name: &'static str, kind: &str, hook: u32, priority: i32) {
        let table = self.table.clone();
        self.message(NEW_CHAIN, NLM_F_CREATE, name, |w| {
            w.name(1, &table);
            w.name(3, name);
            w.nested(4, |w| {
                w.number_be(1, hook);
                w.attribute(2, &priority.to_be_bytes());
            });
            w.name(7, kind);
        });
    }

    fn rule(&mut self, chain: &'static str, expressions: impl FnOnce(&mut Writer)) {
        let table = self.table.clone();
        self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, chain, |w| {
            w.name(1, &table);
            w.name(2, chain);
            w.nested(4, expressions);
        });
    }

    fn send(mut self, connection: &mut Connection) -> Result<(), netlink::Error> {
        // The messages are carried out in turn: the last one's acknowledgement speaks for all.
        let last = self.writer.acknowledge().unwrap_or_default();
        self.frame(BATCH_END, "batch");
        connection.transact(self.writer.bytes(), last, |number| {
            let about = self.about.get(number as usize).copied().unwrap_or("batch");
            format!("programming nf_tables table ip {} ({about})", self.table)
        })
    }
}

fn family(w: &mut Writer, family: u8, resource: u16) {
    let resource = resource.to_be_bytes();
    w.raw(&[family, 0, resource[0], resource[1]]);
}

fn expression(w: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    w.nested(1, |w| {
        w.name(1, name);
        w.nested(2, data);
    });
}

fn compare(w: &mut Writer, register: u32, is: Is, value: &[u8]) {
    expression(w, "cmp", |w| {
        w.number_be(1, register);
        w.number_be(2, is as u32);
        w.nested(3, |w| w.attribute(1, value));
    });
}

fn mask(w: &mut Writer, register: u32, mask: [u8; 4]) {
    expression(w, "bitwise", |w| {
        w.number_be(1, register);
        w.number_be(2, register);
        w.number_be(3, 4);
        w.nested(4, |w| w.attribute(1, &mask));
        w.nested(5, |w| w.attribute(1, &[0; 4]));
    });
}

fn payload(w: &mut Writer, base: u32, offset: u32, length: u32) {
    expression(w, "payload", |w| {
        w.number_be(1, REGISTER_1);
        w.number_be(2, base);
        w.number_be(3, offset);
        w.number_be(4, length);
    });
}

fn meta(w: &mut Writer, key: u32) {
    expression(w, "meta", |w| {
        w.number_be(1, REGISTER_1);
        w.number_be(2, key);
    });
}

fn interface(w: &mut Writer, key: u32, is: Is, name: &str) {
    let mut padded = [0; libc::IFNAMSIZ];
    let length = name.len().min(libc::IFNAMSIZ - 1);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    meta(w, key);
    compare(w, REGISTER_1, is, &padded);
}

fn network(w: &mut Writer, field: u32, is: Is, (address, prefix): (Ipv4Addr, u8)) {
    let bits = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    payload(w, BASE_NETWORK, field, 4);
    mask(w, REGISTER_1, bits.to_be_bytes());
    compare(w, REGISTER_1, is, &address.octets());
}

fn destination_is_local(w: &mut Writer) {
    expression(w, "fib", |w| {
        w.number_be(1, REGISTER_1);
        w.number_be(2, FIB_RESULT_ADDRTYPE);
        w.number_be(3, FIB_DESTINATION);
    });
    compare(w, REGISTER_1, Is::Equal, &RTN_LOCAL.to_ne_bytes());
}

fn was_dnat(w: &mut Writer) {
    expression(w, "ct", |w| {
        w.number_be(1, REGISTER_1);
        w.number_be(2, CT_STATUS);
    });
    mask(w, REGISTER_1, CT_STATUS_DNAT.to_ne_bytes());
    compare(w, REGISTER_1, Is::Different, &[0; 4]);
}

fn verdict(w: &mut Writer, code: i32, chain: Option<&str>) {
    expression(w, "immediate", |w| {
        w.number_be(1, REGISTER_VERDICT);
        w.nested(2, |w| {
            w.nested(2, |w| {
                w.attribute(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    w.name(2, chain);
                }
            });
        });
    });
}

fn immediate(w: &mut Writer, register: u32, value: &[u8]) {
    expression(w, "immediate", |w| {
        w.number_be(1, register);
        w.nested(2, |w| w.attribute(1, value));
    });
}

fn dnat(w: &mut Writer, forward: &Forward) {
    if let Some(host_ip) = forward.host_ip {
        payload(w, BASE_NETWORK, IP_DESTINATION, 4);
        compare(w, REGISTER_1, Is::Equal, &host_ip.octets());
    }
    meta(w, META_L4PROTO);
    compare(w, REGISTER_1, Is::Equal, &[forward.protocol.number()]);
    payload(w, BASE_TRANSPORT, PORT_DESTINATION, 2);
    compare(w, REGISTER_1, Is::Equal, &forward.host_port.to_be_bytes());
    immediate(w, REGISTER_1, &forward.to.ip().octets());
    immediate(w, REGISTER_2, &forward.to.port().to_be_bytes());
    expression(w, "nat", |w| {
        w.number_be(1, NAT_DESTINATION);
        w.number_be(2, IPV4.into());
        w.number_be(3, REGISTER_1);
        w.number_be(5, REGISTER_2);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::attributes;
    use expect_test::expect;
    use proptest::prelude::*;

    fn ruleset(forwards: Vec<Forward>) -> Ruleset {
        Ruleset { bridge: "coracle0".to_owned(), pods: "10.88.0.0/24".parse().unwrap(), forwards }
    }

    fn forward(host_ip: Option<Ipv4Addr>, host_port: u16, protocol: Protocol) -> Forward {
        Forward { host_ip, host_port, protocol, to: SocketAddrV4::new(Ipv4Addr::new(10, 88, 0, 2), 80) }
    }

    /// One line per message: what it is about, its type, and for a rule its expressions with their values.
    fn listing(batch: &Batch) -> String {
        let mut text = String::new();
        let mut rest = batch.writer.bytes();
        for about in &batch.about {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(rest[4..6].try_into().unwrap());
            let name = match kind {
                BATCH_BEGIN => "begin",
                NEW_TABLE => "add table",
                DEL_TABLE => "delete table",
                NEW_CHAIN => "add chain",
                NEW_RULE => "add rule",
                _ => "?",
            };
            text.push_str(&format!("{name} {about}"));
            let body = &rest[netlink::HEADER + 4..length];
            if kind == NEW_RULE {
                let (_, expressions) = attributes(body).find(|(kind, _)| *kind == 4).unwrap();
                for (_, expression) in attributes(expressions) {
                    let part = |wanted| attributes(expression).find(|(kind, _)| *kind == wanted).unwrap().1;
                    text.push_str(&format!(" | {}", netlink::string(part(1))));
                    for (kind, value) in attributes(part(2)) {
                        let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
                        text.push_str(&format!(" {kind}={}", hex.trim_start_matches("000000")));
                    }
                }
            }
            text.push('\n');
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        text
    }

    #[test]
    fn without_host_ports_only_the_guard_and_masquerade() {
        expect![[r#"
            begin batch
            add table table
            delete table table
            add table table
            add chain guard
            add chain postrouting
            add rule guard | meta 1=01 2=06 | cmp 1=01 2=00 3=14000100636f7261636c65300000000000000000 | payload 1=01 2=01 3=10 4=04 | bitwise 1=01 2=01 3=04 4=08000100ff000000 5=0800010000000000 | cmp 1=01 2=00 3=080001007f000000 | immediate 1=00 2=0c0002800800010000000000
            add rule guard | meta 1=01 2=06 | cmp 1=01 2=00 3=14000100636f7261636c65300000000000000000 | payload 1=01 2=01 3=0c 4=04 | bitwise 1=01 2=01 3=04 4=08000100ff000000 5=0800010000000000 | cmp 1=01 2=00 3=080001007f000000 | immediate 1=00 2=0c0002800800010000000000
            add rule postrouting | meta 1=01 2=07 | cmp 1=01 2=00 3=14000100636f7261636c65300000000000000000 | payload 1=01 2=01 3=0c 4=04 | bitwise 1=01 2=01 3=04 4=08000100ffffff00 5=0800010000000000 | cmp 1=01 2=00 3=080001000a580000 | ct 1=01 2=02 | bitwise 1=01 2=01 3=04 4=0800010020000000 5=0800010000000000 | cmp 1=01 2=01 3=0800010000000000 | masq
            add rule postrouting | meta 1=01 2=07 | cmp 1=01 2=01 3=14000100636f7261636c65300000000000000000 | payload 1=01 2=01 3=0c 4=04 | bitwise 1=01 2=01 3=04 4=08000100ffffff00 5=0800010000000000 | cmp 1=01 2=00 3=080001000a580000 | payload 1=01 2=01 3=10 4=04 | bitwise 1=01 2=01 3=04 4=08000100ffffff00 5=0800010000000000 | cmp 1=01 2=01 3=080001000a580000 | payload 1=01 2=01 3=10 4=04 | bitwise 1=01 2=01 3=04 4=08000100f0000000 5=0800010000000000 | cmp 1=01 2=01 3=08000100e0000000 | masq
        "#]].assert_eq(&listing(&ruleset(vec![]).build()));
    }

    #[test]
    fn host_ports() {
        let forwards =
            vec![forward(None, 8080, Protocol::Tcp), forward(Some(Ipv4Addr::new(192, 0, 2, 1)), 53, Protocol::Udp)];
        let listing = listing(&ruleset(forwards).build());
        let wanted = |line: &&str| line.contains("hostports") || line.contains("output");
        let lines: Vec<&str> = listing.lines().filter(wanted).collect();
        expect![[r#"
            add chain hostports
            add chain output
            add rule output | fib 1=01 2=03 3=02 | cmp 1=01 2=00 3=0800010002000000 | immediate 1=00 2=1c00028008000100fffffffd0e000200686f7374706f727473000000
            add rule hostports | meta 1=01 2=10 | cmp 1=01 2=00 3=0500010006000000 | payload 1=01 2=02 3=02 4=02 | cmp 1=01 2=00 3=060001001f900000 | immediate 1=01 2=080001000a580002 | immediate 1=02 2=0600010000500000 | nat 1=01 2=02 3=01 5=02
            add rule hostports | payload 1=01 2=01 3=10 4=04 | cmp 1=01 2=00 3=08000100c0000201 | meta 1=01 2=10 | cmp 1=01 2=00 3=0500010011000000 | payload 1=01 2=02 3=02 4=02 | cmp 1=01 2=00 3=0600010000350000 | immediate 1=01 2=080001000a580002 | immediate 1=02 2=0600010000500000 | nat 1=01 2=02 3=01 5=02"#]].assert_eq(&lines.join("\n"));
    }

    proptest! {
        /// Whatever the ports: messages and attributes that add up, one rule per port.
        #[test]
        fn batches_are_well_formed(ports in proptest::collection::vec((any::<u16>(), any::<bool>()), 0..50), bridge in "[a-z0-9.-]{1,15}") {
            let count = ports.len();
            let forwards = ports.into_iter()
                .map(|(port, any_ip)| forward((!any_ip).then_some(Ipv4Addr::LOCALHOST), port, Protocol::Sctp)).collect();
            let text = listing(&Ruleset { bridge, ..ruleset(forwards) }.build());
            prop_assert_eq!(text.lines().filter(|line| line.starts_with("add rule hostports")).count(), count);
        }
    }
}
