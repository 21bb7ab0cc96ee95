//! The built-in pod network, driven through the library. Every test makes a "machine" of its own: a network namespace
//! in which the bridge, the rules and the routes are made, so that the real machine's stay untouched.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coracle::net::{Config, Error, Network, PortMapping, Protocol};
use coracle::sys::namespace::{self, Kinds};
use coracle::sys::netlink::{self, Socket, attributes, string};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

const NET: Kinds = Kinds { net: true, ipc: false, uts: false };
const PATIENCE: Duration = Duration::from_secs(5);
/// `NLM_F_CREATE | NLM_F_EXCL`
const CREATE: u16 = 0x600;
/// An address of the machine on a link of its own, in TEST-NET-2.
const MACHINE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// A network namespace that stands for the machine, one for the world outside, and the pods'.
struct Machine {
    dir: PathBuf,
    pods: Vec<PathBuf>,
}

impl Machine {
    fn new() -> Machine {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("coracle-net-{}-{number}", std::process::id()));
        let machine = Machine { dir, pods: Vec::new() };
        for side in ["machine", "outside"] {
            namespace::create(&machine.dir.join(side), NET, None, &[])
                .expect("network namespaces (needs root: CAP_SYS_ADMIN)");
        }
        machine
    }

    /// Links the machine to the world outside, which knows no route back to any pod.
    fn connect_outside(&self, mtu: u32) {
        let outside = fs::File::open(self.dir.join("outside/net")).unwrap();
        self.run(|| {
            use std::os::fd::AsRawFd;
            let mut peer = LinkMessage::default();
            peer.attributes = vec![
                LinkAttribute::IfName("up0".into()),
                LinkAttribute::NetNsFd(outside.as_raw_fd()),
                LinkAttribute::Mtu(mtu),
            ];
            let mut link = LinkMessage::default();
            link.attributes = vec![
                LinkAttribute::IfName("up0".into()),
                LinkAttribute::Mtu(mtu),
                LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Veth),
                    LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
                ]),
            ];
            let mut socket = Socket::open(netlink::Protocol::Route).unwrap();
            socket.execute(RouteNetlinkMessage::NewLink(link), CREATE, "creating up0").unwrap();
            bring_up("up0", MACHINE);
            default_route(OUTSIDE);
        });
        namespace::with_netns(&self.dir.join("outside/net"), || bring_up("up0", OUTSIDE)).unwrap();
    }

    fn pod(&mut self, name: &str) -> PathBuf {
        let dir = self.dir.join("pods").join(name);
        namespace::create(&dir, NET, None, &[]).unwrap();
        self.pods.push(dir.clone());
        dir.join("net")
    }

    fn config(&self, cidr: &str) -> Config {
        Config { bridge: "coracle0".into(), pod_cidr: cidr.parse().unwrap(), state_dir: self.dir.join("state") }
    }

    fn network(&self) -> Network {
        Network::open(self.config("10.88.0.0/24")).unwrap()
    }

    /// Runs `f` with the machine's network.
    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        namespace::with_netns(&self.dir.join("machine/net"), f).unwrap()
    }

    fn netns(&self, side: &str) -> PathBuf {
        self.dir.join(side).join("net")
    }

    fn links(&self) -> Vec<String> {
        self.run(links)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for pod in &self.pods {
            let _ = namespace::delete(pod);
        }
        for side in ["machine", "outside"] {
            let _ = namespace::delete(&self.dir.join(side));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn links() -> Vec<String> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answer = Socket::open(netlink::Protocol::Route).unwrap().dump(&request, "links").unwrap();
    let name =
        |body: &[u8]| attributes(&body[16..]).find(|(k, _)| *k == libc::IFLA_IFNAME).map(|(_, v)| string(v).to_owned());
    answer.iter().filter_map(|message| name(&message.body)).collect()
}

fn mtu(link: &str) -> u32 {
    fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/mtu")).unwrap().trim().parse().unwrap()
}

fn index(socket: &mut Socket, name: &str) -> u32 {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    let answer = socket.get(RouteNetlinkMessage::GetLink(message), "link").unwrap();
    u32::from_ne_bytes(answer.body[4..8].try_into().unwrap())
}

fn bring_up(name: &str, address: Ipv4Addr) {
    let mut socket = Socket::open(netlink::Protocol::Route).unwrap();
    let index = index(&mut socket, name);
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    socket.execute(RouteNetlinkMessage::SetLink(link), 0, "up").unwrap();
    let mut message = AddressMessage::default();
    message.header.family = netlink_packet_route::AddressFamily::Inet;
    message.header.prefix_len = 24;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    socket.execute(RouteNetlinkMessage::NewAddress(message), CREATE, "address").unwrap();
}

fn default_route(gateway: Ipv4Addr) {
    use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
    let mut route = RouteMessage::default();
    route.header.address_family = netlink_packet_route::AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
    let mut socket = Socket::open(netlink::Protocol::Route).unwrap();
    socket.execute(RouteNetlinkMessage::NewRoute(route), CREATE, "route").unwrap();
}

/// A server in a namespace that tells each client its name and the address it sees the client at.
struct Server {
    stop: Option<JoinHandle<()>>,
    netns: PathBuf,
    address: SocketAddr,
}

impl Server {
    fn tcp(netns: &Path, name: &str, port: u16) -> Server {
        let (ready, listening) = mpsc::channel();
        let (at, name) = (netns.to_owned(), name.to_owned());
        let thread = thread::spawn(move || {
            namespace::with_netns(&at, || {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
                ready.send(()).unwrap();
                loop {
                    let (mut stream, peer) = listener.accept().unwrap();
                    let mut hello = [0];
                    if stream.read(&mut hello).unwrap_or(0) == 1 && hello[0] == b'q' {
                        return;
                    }
                    let _ = write!(stream, "{name} {}", peer.ip());
                }
            })
            .unwrap();
        });
        listening.recv_timeout(PATIENCE).unwrap();
        Server { stop: Some(thread), netns: netns.to_owned(), address: (Ipv4Addr::LOCALHOST, port).into() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = namespace::with_netns(&self.netns, || {
            TcpStream::connect_timeout(&self.address, PATIENCE).and_then(|mut s| s.write_all(b"q"))
        });
        if let Some(thread) = self.stop.take() {
            let _ = thread.join();
        }
    }
}

/// What a server says to the calling thread's namespace.
fn ask(ip: impl Into<IpAddr>, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(ip.into(), port).into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn port(host_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping { host_ip: None, host_port, container_port: 80, protocol }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(|e| e.to_string()).collect::<Vec<_>>().join(": ")
}

#[test]
fn namespaces_are_set_up_kept_and_deleted() {
    let dir = std::env::temp_dir().join(format!("coracle-ns-{}", std::process::id()));
    let kinds = Kinds { net: true, ipc: true, uts: true };
    let sysctls = [
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned()),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
    ];
    namespace::create(&dir, kinds, Some("hull"), &sysctls).unwrap();
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(dir.join(name)).unwrap().ino()
    };
    let before = ["net", "ipc", "uts"].map(inode);
    namespace::create(&dir, kinds, Some("hull"), &sysctls).unwrap();
    assert_eq!(["net", "ipc", "uts"].map(inode), before, "live namespaces are kept");

    let (loopback, start) = namespace::with_netns(&dir.join("net"), || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let loopback = TcpStream::connect(listener.local_addr().unwrap()).map(drop);
        (loopback, fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap())
    })
    .unwrap();
    loopback.unwrap();
    assert_eq!(start.trim(), "80");
    assert_ne!(fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap().trim(), "80");
    let file = fs::File::open(dir.join("uts")).unwrap();
    let hostname = thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWUTS).unwrap();
        nix::unistd::gethostname().unwrap()
    });
    assert_eq!(hostname.join().unwrap(), "hull");
    assert_ne!(nix::unistd::gethostname().unwrap(), "hull");

    namespace::delete(&dir).unwrap();
    namespace::delete(&dir).unwrap();
    assert!(!dir.exists());
    let error = namespace::create(&dir, kinds, None, &[("vm.swappiness".into(), "1".into())]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    // Leftovers: a file that never became a mount.
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("net"), "").unwrap();
    namespace::delete(&dir).unwrap();
    assert!(!dir.exists());
}

#[test]
fn pods_reach_each_other_and_the_node() {
    let mut machine = Machine::new();
    let (a, b) = (machine.pod("a"), machine.pod("b"));
    let network = machine.network();
    let started = Instant::now();
    let ips = machine.run(|| [("a", &a), ("b", &b)].map(|(uid, ns)| network.attach(uid, ns, &[]).unwrap().ips[0]));
    println!("two pods attached in {:?}, bridge included", started.elapsed());
    assert_eq!(ips.map(|ip| ip.to_string()), ["10.88.0.2", "10.88.0.3"]);
    let _b = Server::tcp(&b, "b", 80);
    assert_eq!(namespace::with_netns(&a, || ask(ips[1], 80)).unwrap().unwrap(), "b 10.88.0.2");
    assert_eq!(machine.run(|| ask(ips[1], 80)).unwrap(), "b 10.88.0.1");
    let _node = Server::tcp(&machine.netns("machine"), "node", 8080);
    let gateway = Ipv4Addr::new(10, 88, 0, 1);
    assert_eq!(namespace::with_netns(&a, || ask(gateway, 8080)).unwrap().unwrap(), "node 10.88.0.2");
    let mut inside = namespace::with_netns(&a, links).unwrap();
    inside.sort();
    assert_eq!(inside, ["eth0", "lo"]);
}

#[test]
fn host_ports_from_everywhere() {
    let mut machine = Machine::new();
    machine.connect_outside(1500);
    let (a, b) = (machine.pod("a"), machine.pod("b"));
    let network = machine.network();
    machine.run(|| {
        network.attach("a", &a, &[port(8080, Protocol::Tcp)]).unwrap();
        network.attach("b", &b, &[]).unwrap();
    });
    let _server = Server::tcp(&a, "a", 80);
    assert_eq!(machine.run(|| ask(MACHINE, 8080)).unwrap(), "a 198.51.100.1", "from the node by its address");
    assert_eq!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8080)).unwrap(), "a 10.88.0.1", "from the node by loopback");
    let outside = namespace::with_netns(&machine.netns("outside"), || ask(MACHINE, 8080)).unwrap();
    assert_eq!(outside.unwrap(), "a 198.51.100.2", "from outside, the client's address preserved");
    let from = |netns: &Path| namespace::with_netns(netns, || ask(MACHINE, 8080)).unwrap().unwrap();
    assert_eq!(from(&b), "a 10.88.0.1", "from another pod");
    assert_eq!(from(&a), "a 10.88.0.1", "from the pod itself, by hairpin");
    machine.run(|| network.detach("a").unwrap());
    assert!(machine.run(|| ask(MACHINE, 8080)).is_err(), "gone with its pod");
}

#[test]
fn a_host_ip_narrows_a_host_port() {
    let mut machine = Machine::new();
    machine.connect_outside(1500);
    let (a, b) = (machine.pod("a"), machine.pod("b"));
    let network = machine.network();
    let on = |ip: Ipv4Addr| PortMapping { host_ip: Some(ip.into()), ..port(8080, Protocol::Tcp) };
    machine.run(|| {
        network.attach("a", &a, &[on(MACHINE)]).unwrap();
        network.attach("b", &b, &[on(Ipv4Addr::LOCALHOST)]).unwrap();
    });
    let (_a, _b) = (Server::tcp(&a, "a", 80), Server::tcp(&b, "b", 80));
    assert!(machine.run(|| ask(MACHINE, 8080)).unwrap().starts_with("a "));
    assert!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8080)).unwrap().starts_with("b "));
}

#[test]
fn udp_host_port() {
    let mut machine = Machine::new();
    let a = machine.pod("a");
    let network = machine.network();
    machine.run(|| network.attach("a", &a, &[port(5353, Protocol::Udp)]).unwrap());
    let server = namespace::with_netns(&a, || UdpSocket::bind("0.0.0.0:80").unwrap()).unwrap();
    let client = machine.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(b"ping", "127.0.0.1:5353").unwrap();
    let mut buffer = [0; 16];
    let (length, peer) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"ping");
    server.send_to(b"pong", peer).unwrap();
    let (length, peer) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], peer.to_string().as_str()), (&b"pong"[..], "127.0.0.1:5353"));
}

#[test]
fn an_endless_udp_flow_follows_its_port_to_the_next_pod() {
    let mut machine = Machine::new();
    let (a, b) = (machine.pod("a"), machine.pod("b"));
    let network = machine.network();
    let client = machine.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut buffer = [0; 16];
    for (uid, netns) in [("a", &a), ("b", &b)] {
        machine.run(|| network.attach(uid, netns, &[port(514, Protocol::Udp)]).unwrap());
        let server = namespace::with_netns(netns, || UdpSocket::bind("0.0.0.0:80").unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        client.send_to(uid.as_bytes(), "127.0.0.1:514").unwrap();
        let (length, _) = server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("pod {uid}: {e}"));
        assert_eq!(&buffer[..length], uid.as_bytes());
        machine.run(|| network.detach(uid).unwrap());
        // Nobody is there now: the flow goes to the node itself, and is remembered as such.
        let _ = client.send_to(b"lost", "127.0.0.1:514");
        let _ = client.take_error();
    }
}

#[test]
fn pods_reach_the_world_behind_the_nodes_address() {
    let mut machine = Machine::new();
    machine.connect_outside(1400);
    let a = machine.pod("a");
    let network = machine.network();
    machine.run(|| network.attach("a", &a, &[]).unwrap());
    let _outside = Server::tcp(&machine.netns("outside"), "outside", 80);
    assert_eq!(namespace::with_netns(&a, || ask(OUTSIDE, 80)).unwrap().unwrap(), "outside 198.51.100.1");
    assert_eq!(namespace::with_netns(&a, || mtu("eth0")).unwrap(), 1400, "the uplink's MTU");
}

#[test]
fn the_nodes_loopback_is_closed_to_pods() {
    let mut machine = Machine::new();
    let a = machine.pod("a");
    let network = machine.network();
    machine.run(|| network.attach("a", &a, &[port(8080, Protocol::Tcp)]).unwrap());
    let node = machine.run(|| UdpSocket::bind("0.0.0.0:9090").unwrap());
    node.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let send = |to: &str| {
        namespace::with_netns(&a, || {
            // What any pod can do: send 127.0.0.1 out by eth0 instead of its own loopback.
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &"eth0".into()).unwrap();
            socket.send_to(b"hello", to).unwrap();
        })
        .unwrap();
    };
    let mut buffer = [0; 16];
    send("10.88.0.1:9090");
    node.recv_from(&mut buffer).expect("the way is open");
    send("127.0.0.1:9090");
    assert!(node.recv_from(&mut buffer).is_err(), "127.0.0.1 of the node is not");
}

#[test]
fn a_restart_keeps_addresses_and_connections() {
    let mut machine = Machine::new();
    let (a, b, c) = (machine.pod("a"), machine.pod("b"), machine.pod("c"));
    let ports = [port(8080, Protocol::Tcp)];
    let network = machine.network();
    let before = machine.run(|| {
        network.attach("gone", &c, &[]).unwrap();
        network.detach("gone").unwrap();
        network.attach("a", &a, &ports).unwrap()
    });
    assert_eq!(before.ips[0].to_string(), "10.88.0.3", "freed addresses rest");
    let _server = Server::tcp(&a, "a", 80);
    let mut stream = machine.run(|| TcpStream::connect((before.ips[0], 80)).unwrap());
    drop(network);

    let network = machine.network();
    let links = machine.links();
    assert_eq!(machine.run(|| network.attach("a", &a, &ports).unwrap()), before);
    assert_eq!(machine.links(), links, "adopted, not made anew");
    stream.write_all(b"?").unwrap();
    let mut answer = String::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "a 10.88.0.1", "an open connection outlives the restart");
    assert!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8080)).unwrap().starts_with("a "));
    let error = machine.run(|| network.attach("b", &b, &ports)).unwrap_err();
    assert_eq!(chain(&error), "hostPort 8080/TCP is in use by pod a");
    assert_eq!(machine.run(|| network.attach("b", &b, &[])).unwrap().ips[0].to_string(), "10.88.0.4");
}

#[test]
fn a_reboot_keeps_addresses_and_rebuilds_the_rest() {
    let mut machine = Machine::new();
    let a = machine.pod("a");
    let ports = [port(8080, Protocol::Tcp)];
    let before = machine.run(|| machine.network().attach("a", &a, &ports).unwrap());
    // All namespaces go; only the leases stay.
    namespace::delete(a.parent().unwrap()).unwrap();
    namespace::delete(&machine.dir.join("machine")).unwrap();
    namespace::create(&machine.dir.join("machine"), NET, None, &[]).unwrap();
    let a = machine.pod("a");
    assert_eq!(machine.links(), ["lo"]);
    let network = machine.network();
    assert_eq!(machine.run(|| network.attach("a", &a, &ports).unwrap()), before);
    let _server = Server::tcp(&a, "a", 80);
    assert!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8080)).unwrap().starts_with("a "));
}

#[test]
fn retain_drops_what_no_pod_owns() {
    let mut machine = Machine::new();
    let (a, b, c) = (machine.pod("a"), machine.pod("b"), machine.pod("c"));
    machine.run(|| {
        let network = machine.network();
        network.attach("a", &a, &[port(8080, Protocol::Tcp)]).unwrap();
        network.attach("b", &b, &[port(8081, Protocol::Tcp)]).unwrap();
        network.attach("c", &c, &[]).unwrap();
    });
    // A record that was lost, and one that was torn.
    fs::remove_file(machine.dir.join("state/leases/10.88.0.4")).unwrap();
    fs::write(machine.dir.join("state/leases/10.88.0.9"), "").unwrap();
    let network = machine.network();
    let _server = Server::tcp(&b, "b", 80);
    machine.run(|| network.retain(&["b".to_owned()]).unwrap());
    let veths = machine.links().iter().filter(|name| name.starts_with("veth")).count();
    assert_eq!(veths, 1);
    let mut leases: Vec<_> =
        fs::read_dir(machine.dir.join("state/leases")).unwrap().map(|e| e.unwrap().file_name()).collect();
    leases.sort();
    assert_eq!(leases, ["10.88.0.3"]);
    assert!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8081)).unwrap().starts_with("b "));
    assert!(machine.run(|| network.attach("a", &a, &[port(8080, Protocol::Tcp)])).is_ok());
}

#[test]
fn an_exhausted_network_says_so() {
    let mut machine = Machine::new();
    let pods = ["a", "b"].map(|name| machine.pod(name));
    let network = Network::open(machine.config("10.88.0.0/30")).unwrap();
    machine.run(|| {
        network.attach("a", &pods[0], &[]).unwrap();
        let error = network.attach("b", &pods[1], &[]).unwrap_err();
        assert_eq!(error.to_string(), "no free address in 10.88.0.0/30: all 1 are in use");
        network.detach("a").unwrap();
        network.detach("a").unwrap();
        assert_eq!(network.attach("b", &pods[1], &[]).unwrap().ips[0].to_string(), "10.88.0.2");
    });
}

#[test]
fn remove_all_leaves_nothing() {
    let mut machine = Machine::new();
    let a = machine.pod("a");
    let network = machine.network();
    machine.run(|| {
        network.attach("a", &a, &[port(8080, Protocol::Tcp)]).unwrap();
        network.remove_all().unwrap();
        network.remove_all().unwrap();
    });
    assert_eq!(machine.links(), ["lo"]);
    assert_eq!(machine.run(nf_tables_tables), 0);
    assert_eq!(fs::read_dir(machine.dir.join("state")).unwrap().count(), 0);
    machine.run(|| network.attach("a", &a, &[port(8080, Protocol::Tcp)]).unwrap());
    assert_eq!(machine.run(nf_tables_tables), 1);
}

/// How many nf_tables tables there are, by a dump of `NFT_MSG_GETTABLE`.
fn nf_tables_tables() -> usize {
    let mut request = vec![20, 0, 0, 0];
    request.extend(((10u16 << 8) | 1).to_ne_bytes());
    request.extend(0x301u16.to_ne_bytes());
    request.extend([0; 12]);
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.send_to(&request, &netlink_sys::SocketAddr::new(0, 0), 0).unwrap();
    let (mut count, done) = (0, 3);
    loop {
        let (datagram, _) = socket.recv_from_full().unwrap();
        let mut rest = &datagram[..];
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(rest[4..6].try_into().unwrap());
            if kind == done {
                return count;
            }
            assert_eq!(kind, 10 << 8, "a table");
            count += 1;
            rest = &rest[((length + 3) & !3).min(rest.len())..];
        }
    }
}

#[test]
fn a_pod_network_that_collides_with_the_machines_is_refused() {
    let mut machine = Machine::new();
    machine.connect_outside(1500);
    let a = machine.pod("a");
    let network = Network::open(machine.config("198.51.100.0/24")).unwrap();
    let error = machine.run(|| network.attach("a", &a, &[])).unwrap_err();
    assert_eq!(error.to_string(), "pod network 198.51.100.0/24 overlaps 198.51.100.1/24 on up0: choose another one");
    let taken = Network::open(Config { bridge: "up0".into(), ..machine.config("10.88.0.0/24") }).unwrap();
    let error = machine.run(|| taken.attach("a", &a, &[])).unwrap_err();
    assert_eq!(error.to_string(), "up0 exists and is not a bridge but veth");
    assert!(matches!(Network::open(machine.config("fd00::/64")), Err(Error::Unsupported(_))));
}

#[test]
fn two_networks_side_by_side() {
    let mut machine = Machine::new();
    let (a, b) = (machine.pod("a"), machine.pod("b"));
    let first = machine.network();
    let second = Network::open(Config {
        bridge: "coracle1".into(),
        pod_cidr: "10.89.0.0/24".parse().unwrap(),
        state_dir: machine.dir.join("state2"),
    })
    .unwrap();
    machine.run(|| {
        first.attach("a", &a, &[port(8080, Protocol::Tcp)]).unwrap();
        second.attach("b", &b, &[port(8081, Protocol::Tcp)]).unwrap();
    });
    let (_a, _b) = (Server::tcp(&a, "a", 80), Server::tcp(&b, "b", 80));
    assert!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8080)).unwrap().starts_with("a "));
    assert!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8081)).unwrap().starts_with("b "));
    machine.run(|| first.remove_all().unwrap());
    assert!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8081)).unwrap().starts_with("b "));
}

#[test]
fn a_hundred_ports_and_twenty_pods_at_once() {
    let mut machine = Machine::new();
    let many = machine.pod("many");
    let pods: Vec<PathBuf> = (0..20).map(|n| machine.pod(&n.to_string())).collect();
    let network = machine.network();
    let ports: Vec<PortMapping> = (10_000..10_100).map(|p| port(p, Protocol::Tcp)).collect();
    machine.run(|| {
        let started = Instant::now();
        network.attach("many", &many, &ports).unwrap();
        println!("first pod with 100 host ports: {:?}", started.elapsed());
        let started = Instant::now();
        network.attach("0", &pods[0], &[port(9_000, Protocol::Tcp)]).unwrap();
        let one_more = started.elapsed();
        println!("one more host port: {one_more:?}");
        assert!(one_more < Duration::from_millis(250), "{one_more:?}");
        let started = Instant::now();
        thread::scope(|scope| {
            for (n, pod) in pods.iter().enumerate().skip(1) {
                let network = &network;
                scope.spawn(move || network.attach(&n.to_string(), pod, &[]).unwrap());
            }
        });
        println!("19 pods by 19 threads: {:?}", started.elapsed());
    });
    let _server = Server::tcp(&many, "many", 80);
    assert!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 10_099)).unwrap().starts_with("many "));
    let ips: std::collections::BTreeSet<_> = (0..20).map(|n| network.address(&n.to_string()).unwrap()).collect();
    assert_eq!(ips.len(), 20);
}
