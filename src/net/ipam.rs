//! Which pod has which address: the allocation itself, pure.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::{Cidr, PortMapping, Protocol};

/// What a pod holds of the node's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The pod's UID; empty for an address whose record could not be read, which nobody may have until
    /// [`super::Network::retain`] says that nobody does.
    pub uid: String,
    /// Ports of the node that lead to the pod.
    pub ports: Vec<PortMapping>,
}

/// Why there is no address or port for a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no free address in {network}: all {capacity} are in use")]
    Exhausted { network: Cidr, capacity: u32 },
    #[error("hostPort {port}/{protocol} is in use by pod {uid}")]
    PortInUse { port: u16, protocol: Protocol, uid: String },
}

/// The addresses of one IPv4 network, handed out round robin so that a freed one rests as long as possible: peers
/// and connection tracking may still remember its last owner.
#[derive(Debug, Clone)]
pub struct Pool {
    network: Cidr,
    /// The gateway, which is the first address; pods get `gateway+1 ..= last`.
    gateway: u32,
    /// The last address before the broadcast address.
    last: u32,
    /// Where the last search ended.
    cursor: u32,
    leases: BTreeMap<Ipv4Addr, Lease>,
    by_uid: HashMap<String, Ipv4Addr>,
}

impl Pool {
    /// A pool over an IPv4 network of at most 30 bits prefix (room for a gateway and a pod); `None` for any other.
    pub fn new(network: Cidr) -> Option<Pool> {
        let std::net::IpAddr::V4(address) = network.address() else { return None };
        if !(8..=30).contains(&network.prefix()) {
            return None;
        }
        let base = address.to_bits();
        let size = 1u32 << (32 - network.prefix());
        Some(Pool {
            network,
            gateway: base + 1,
            last: base + size - 2,
            cursor: base + 1,
            leases: BTreeMap::new(),
            by_uid: HashMap::new(),
        })
    }

    /// The node's own address in the network.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway)
    }

    /// How many pods fit.
    pub fn capacity(&self) -> u32 {
        self.last - self.gateway
    }

    /// Continues the round robin after `address`.
    pub fn resume_after(&mut self, address: Ipv4Addr) {
        self.cursor = address.to_bits().clamp(self.gateway, self.last);
    }

    /// Takes over a recorded lease; false if its address is not one of the pool's, or its pod has another already.
    pub fn adopt(&mut self, address: Ipv4Addr, lease: Lease) -> bool {
        let ours = (self.gateway + 1..=self.last).contains(&address.to_bits());
        if !ours || self.leases.contains_key(&address) || self.by_uid.contains_key(&lease.uid) {
            return false;
        }
        if !lease.uid.is_empty() {
            self.by_uid.insert(lease.uid.clone(), address);
        }
        self.leases.insert(address, lease);
        true
    }

    /// The pod's address, and its ports on the node: the same address as before for a pod that has one. A refusal
    /// changes nothing.
    pub fn allocate(&mut self, uid: &str, ports: &[PortMapping]) -> Result<Ipv4Addr, Refusal> {
        self.check_ports(uid, ports)?;
        let address = match self.by_uid.get(uid) {
            Some(address) => *address,
            None => self.next_free().ok_or(Refusal::Exhausted { network: self.network, capacity: self.capacity() })?,
        };
        self.by_uid.insert(uid.to_owned(), address);
        self.leases.insert(address, Lease { uid: uid.to_owned(), ports: ports.to_vec() });
        Ok(address)
    }

    /// Takes the pod's ports away; true if it had any. Its address stays.
    pub fn clear_ports(&mut self, uid: &str) -> bool {
        let lease = self.by_uid.get(uid).and_then(|address| self.leases.get_mut(address));
        lease.is_some_and(|lease| !std::mem::take(&mut lease.ports).is_empty())
    }

    /// Frees the pod's address and ports; its address if it had one.
    pub fn release(&mut self, uid: &str) -> Option<Ipv4Addr> {
        let address = self.by_uid.remove(uid)?;
        self.leases.remove(&address);
        Some(address)
    }

    /// Frees the addresses whose record could not be read.
    pub fn release_unreadable(&mut self) -> Vec<Ipv4Addr> {
        let unreadable: Vec<_> = self.leases.iter().filter(|(_, l)| l.uid.is_empty()).map(|(a, _)| *a).collect();
        unreadable.iter().for_each(|address| drop(self.leases.remove(address)));
        unreadable
    }

    /// The pod's address and lease.
    pub fn get(&self, uid: &str) -> Option<(Ipv4Addr, &Lease)> {
        let address = *self.by_uid.get(uid)?;
        Some((address, self.leases.get(&address)?))
    }

    /// All leases by address.
    pub fn leases(&self) -> impl Iterator<Item = (Ipv4Addr, &Lease)> {
        self.leases.iter().map(|(address, lease)| (*address, lease))
    }

    fn next_free(&mut self) -> Option<Ipv4Addr> {
        let first = self.gateway + 1;
        let after = (self.cursor + 1).max(first);
        let free = (after..=self.last)
            .chain(first..after.min(self.last + 1))
            .find(|bits| !self.leases.contains_key(&Ipv4Addr::from_bits(*bits)))?;
        self.cursor = free;
        Some(Ipv4Addr::from_bits(free))
    }

    fn check_ports(&self, uid: &str, ports: &[PortMapping]) -> Result<(), Refusal> {
        for port in ports {
            let taken =
                self.leases.values().filter(|l| l.uid != uid).find(|l| l.ports.iter().any(|p| p.overlaps(port)));
            if let Some(lease) = taken {
                let uid = lease.uid.clone();
                return Err(Refusal::PortInUse { port: port.host_port, protocol: port.protocol, uid });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use proptest::prelude::*;

    fn pool(network: &str) -> Pool {
        Pool::new(network.parse().unwrap()).unwrap()
    }

    fn port(host_ip: Option<&str>, host_port: u16, protocol: Protocol) -> PortMapping {
        PortMapping { host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, container_port: 80, protocol }
    }

    #[test]
    fn only_networks_with_room_for_pods() {
        for network in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/64", "0.0.0.0/0"] {
            assert!(Pool::new(network.parse().unwrap()).is_none(), "{network}");
        }
        assert_eq!(pool("10.0.0.0/30").capacity(), 1);
        assert_eq!(pool("10.0.0.0/24").capacity(), 253);
    }

    #[test]
    fn freed_addresses_rest_until_the_others_had_their_turn() {
        let mut pool = pool("10.0.0.0/29");
        assert_eq!(pool.allocate("a", &[]).unwrap().to_string(), "10.0.0.2");
        pool.release("a");
        assert_eq!(pool.allocate("b", &[]).unwrap().to_string(), "10.0.0.3");
        for uid in ["c", "d", "e"] {
            pool.allocate(uid, &[]).unwrap();
        }
        assert_eq!(pool.allocate("f", &[]).unwrap().to_string(), "10.0.0.2");
        assert_eq!(
            pool.allocate("g", &[]).unwrap_err().to_string(),
            "no free address in 10.0.0.0/29: all 5 are in use"
        );
        assert_eq!(pool.allocate("b", &[]).unwrap().to_string(), "10.0.0.3", "idempotent even when full");
    }

    #[test]
    fn a_host_port_belongs_to_one_pod() {
        let mut pool = pool("10.0.0.0/24");
        pool.allocate("a", &[port(None, 80, Protocol::Tcp)]).unwrap();
        pool.allocate("a", &[port(None, 80, Protocol::Tcp)]).unwrap();
        pool.allocate("b", &[port(None, 80, Protocol::Udp)]).unwrap();
        pool.allocate("c", &[port(Some("192.0.2.1"), 81, Protocol::Tcp)]).unwrap();
        pool.allocate("d", &[port(Some("192.0.2.2"), 81, Protocol::Tcp)]).unwrap();
        let error = pool.allocate("e", &[port(Some("192.0.2.1"), 80, Protocol::Tcp)]).unwrap_err();
        assert_eq!(error.to_string(), "hostPort 80/TCP is in use by pod a");
        assert!(pool.get("e").is_none());
        assert!(pool.allocate("e", &[port(Some("0.0.0.0"), 81, Protocol::Tcp)]).is_err());
        assert!(pool.clear_ports("a"));
        pool.allocate("e", &[port(Some("192.0.2.1"), 80, Protocol::Tcp)]).unwrap();
    }

    #[test]
    fn unreadable_records_block_their_address() {
        let mut pool = pool("10.0.0.0/30");
        assert!(pool.adopt("10.0.0.2".parse().unwrap(), Lease { uid: String::new(), ports: vec![] }));
        assert!(pool.allocate("a", &[]).is_err());
        assert_eq!(pool.release_unreadable().len(), 1);
        pool.allocate("a", &[]).unwrap();
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u8),
        Release(u8),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..40).prop_map(Step::Allocate),
            3 => (0u8..40).prop_map(Step::Release),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Against a model: an address is never shared, never reserved, stable for its pod, and refused only when
        /// all are taken; a restart from the leases changes nothing.
        #[test]
        fn allocation_is_sound(prefix in 26u8..=30, steps in proptest::collection::vec(step(), 0..200)) {
            let network: Cidr = format!("10.1.2.0/{prefix}").parse().unwrap();
            let mut pool = Pool::new(network).unwrap();
            let mut model: HashMap<String, Ipv4Addr> = HashMap::new();
            for step in steps {
                match step {
                    Step::Allocate(n) => {
                        let uid = n.to_string();
                        match pool.allocate(&uid, &[]) {
                            Ok(address) => {
                                prop_assert!(network.contains(address.into()));
                                let host = address.octets()[3];
                                prop_assert!(host > 1 && u32::from(host) < (1 << (32 - prefix)) - 1);
                                if let Some(before) = model.get(&uid) {
                                    prop_assert_eq!(*before, address);
                                }
                                prop_assert!(model.iter().all(|(u, a)| *u == uid || *a != address));
                                model.insert(uid, address);
                            }
                            Err(Refusal::Exhausted { .. }) => {
                                prop_assert!(!model.contains_key(&uid));
                                prop_assert_eq!(model.len() as u32, pool.capacity());
                            }
                            Err(e) => prop_assert!(false, "{e}"),
                        }
                    }
                    Step::Release(n) => {
                        let uid = n.to_string();
                        prop_assert_eq!(pool.release(&uid), model.remove(&uid));
                    }
                    Step::Restart => {
                        let mut fresh = Pool::new(network).unwrap();
                        for (address, lease) in pool.leases() {
                            prop_assert!(fresh.adopt(address, lease.clone()));
                        }
                        pool = fresh;
                    }
                }
            }
        }
    }
}
