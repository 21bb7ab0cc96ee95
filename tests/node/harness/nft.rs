//! nf_tables as raw netlink messages: no tool is needed, and none of the code under test.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::collections::BTreeMap;

const GETTABLE: u16 = 10 << 8 | 1;
const GETCHAIN: u16 = 10 << 8 | 4;
const GETRULE: u16 = 10 << 8 | 7;
const DELTABLE: u16 = 10 << 8 | 2;

fn message(kind: u16, flags: u16, family: u8, subsystem: u16, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((20 + attributes.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(subsystem.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn open() -> Socket {
    let mut socket = Socket::new(NETLINK_NETFILTER).expect("netfilter socket");
    socket.bind_auto().expect("bind");
    socket.connect(&SocketAddr::new(0, 0)).expect("connect");
    socket
}

/// Names of all nf_tables tables in this network namespace.
pub fn tables() -> Vec<String> {
    const NAME: u16 = 1;
    dump(GETTABLE).into_iter().filter_map(|mut table| table.remove(&NAME)).collect()
}

/// Table and name of all nf_tables chains in this network namespace.
pub fn chains() -> Vec<(String, String)> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    dump(GETCHAIN).into_iter().filter_map(|mut chain| Some((chain.remove(&TABLE)?, chain.remove(&NAME)?))).collect()
}

/// The attributes of every nf_tables rule in this network namespace, as the kernel sends them.
pub fn rules() -> Vec<Vec<u8>> {
    messages(GETRULE)
}

/// All objects of a kind: their attributes, as text.
fn dump(kind: u16) -> Vec<BTreeMap<u16, String>> {
    messages(kind).iter().map(|attributes| attributes_of(attributes)).collect()
}

fn attributes_of(mut attributes: &[u8]) -> BTreeMap<u16, String> {
    let mut object = BTreeMap::new();
    while attributes.len() >= 4 {
        let size = u16::from_ne_bytes([attributes[0], attributes[1]]) as usize;
        let name = u16::from_ne_bytes([attributes[2], attributes[3]]);
        if size < 4 || size > attributes.len() {
            break;
        }
        let text = String::from_utf8_lossy(&attributes[4..size]).trim_end_matches('\0').to_owned();
        object.insert(name, text);
        attributes = attributes.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    object
}

/// The attributes of all objects of a kind.
fn messages(kind: u16) -> Vec<Vec<u8>> {
    const REQUEST_DUMP: u16 = 0x1 | 0x300;
    let socket = open();
    socket.send(&message(kind, REQUEST_DUMP, 0, 0, &[]), 0).expect("send");
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().expect("receive");
        let mut rest = bytes.as_slice();
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let answer = u16::from_ne_bytes([rest[4], rest[5]]);
            // The end of the dump, or an error.
            if answer == 3 || answer == 2 || length < 16 || length > rest.len() {
                return found;
            }
            found.push(rest.get(20..length).unwrap_or_default().to_vec());
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

pub fn delete_table(name: &str) {
    const BEGIN: u16 = 16;
    const END: u16 = 17;
    const SUBSYSTEM: u16 = 10;
    let mut attribute = Vec::new();
    attribute.extend((4 + name.len() as u16 + 1).to_ne_bytes());
    attribute.extend(1u16.to_ne_bytes());
    attribute.extend(name.as_bytes());
    attribute.push(0);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    // One try per family: inet, ip, ip6, netdev, bridge.
    for family in [1, 2, 10, 5, 7] {
        let mut batch = message(BEGIN, 1, 0, SUBSYSTEM, &[]);
        batch.extend(message(DELTABLE, 1, family, 0, &attribute));
        batch.extend(message(END, 1, 0, SUBSYSTEM, &[]));
        let _ = open().send(&batch, 0);
    }
}
