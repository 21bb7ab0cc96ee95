//! Devices that go and come back while a container runs: other rules, and another node mounted in the place of the old one.
//!
//! Done by a throwaway child, which ends in the container's mount namespace; an alarm ends it if that takes too long.

use super::devices;
use super::protocol::{Devices, Node, Reply};
use crate::bundle::devices::{Number, Rule};
use crate::causes::distinct;
use crate::sys::fs::Dir;
use crate::sys::idmap;
use crate::sys::mount::{Namespace, Peers, Tree};
use crate::sys::process::{self, Exit};
use crate::volume::devices::Found;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How long a change may take, in seconds.
const LIMIT: u32 = 8;
/// Most bytes of a child's report that are read.
const REPORT: u64 = 4096;
/// How many numbers that may be mounted are kept in mind: each failed change adds one.
const MAX_MOUNTED: usize = 32;

/// What is there now, by path in the container.
pub(super) type Seen = BTreeMap<PathBuf, Option<Found>>;

/// Devices that a container was given.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Its other rules.
    rules: Vec<Rule>,
    nodes: Vec<HeldNode>,
}

#[derive(Debug)]
struct HeldNode {
    node: Node,
    /// Numbers of which one is mounted in the container.
    mounted: Vec<Number>,
}

impl Held {
    pub(super) fn new(devices: Devices) -> Held {
        let held = |node: Node| HeldNode { mounted: node.found.iter().map(|found| found.number).collect(), node };
        Held { rules: devices.rules, nodes: devices.nodes.into_iter().map(held).collect() }
    }

    /// The nodes as they should be; `None` when they are.
    ///
    /// # Errors
    /// For a path at which no device was given.
    pub(super) fn wanted(&self, seen: Seen) -> Result<Option<Vec<Node>>, String> {
        let mut wanted: Vec<Node> = self.nodes.iter().map(|held| held.node.clone()).collect();
        let mut differs = false;
        for (destination, found) in seen {
            let node = wanted.iter_mut().find(|node| node.destination == destination);
            let node = node.ok_or_else(|| format!("no device was given at {}", destination.display()))?;
            differs |= node.found != found;
            node.found = found;
        }
        Ok(differs.then_some(wanted))
    }

    /// From now on these may be what is mounted.
    pub(super) fn expect(&mut self, wanted: &[Node]) {
        for (held, node) in self.nodes.iter_mut().zip(wanted) {
            if let Some(found) = node.found
                && !held.mounted.contains(&found.number)
            {
                held.mounted.push(found.number);
                if held.mounted.len() > MAX_MOUNTED {
                    // Not the first: that one was seen to be mounted.
                    held.mounted.remove(1);
                }
            }
        }
    }

    /// They are. Tells what changed by that.
    pub(super) fn settle(&mut self, wanted: &[Node]) -> Reply {
        let (mut gone, mut back) = (Vec::new(), Vec::new());
        for (held, node) in self.nodes.iter_mut().zip(wanted) {
            match node.found {
                // The old node stays mounted.
                None if held.node.found.is_some() => gone.push(node.destination.clone()),
                None => {}
                Some(found) => {
                    if held.node.found != node.found {
                        back.push(node.destination.clone());
                    }
                    held.mounted = vec![found.number];
                }
            }
            held.node.found = node.found;
        }
        Reply::Devices { gone, back }
    }

    /// All rules of the container with these nodes.
    fn rules(&self, wanted: &[Node]) -> Vec<Rule> {
        if self.rules.is_empty() {
            return Vec::new();
        }
        let of = |node: &Node| node.found.map(|found| Rule::device(found.number, node.read_only));
        self.rules.iter().copied().chain(wanted.iter().filter_map(of)).collect()
    }
}

/// A change that a child makes.
pub(super) struct Change {
    pub(super) child: i32,
    /// Why it failed, if it did.
    pub(super) report: OwnedFd,
    pub(super) asked_by: OwnedFd,
    /// The container.
    pub(super) id: String,
    pub(super) wanted: Vec<Node>,
}

impl Change {
    /// How it went, when the child has ended so.
    pub(super) fn outcome(&self, exit: Exit) -> Result<(), String> {
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(code) => {
                let mut text = String::new();
                let report = self.report.try_clone().map(File::from);
                let read = report.and_then(|file| file.take(REPORT).read_to_string(&mut text));
                match read {
                    Ok(read) if read > 0 => Err(text),
                    _ => Err(format!("changing the devices ended with code {code}")),
                }
            }
            Exit::Signal(libc::SIGALRM) => Err(format!("changing the devices took longer than {LIMIT} s")),
            Exit::Signal(signal) => Err(format!("changing the devices was ended by signal {signal}")),
        }
    }
}

/// Starts the child that changes the devices of the container whose init is `pid`. Returns its PID and its report.
///
/// # Errors
/// When there is no child.
pub(super) fn begin(
    held: &Held,
    wanted: &[Node],
    pid: i32,
    cgroup: Option<&str>,
    machine: &Namespace,
) -> io::Result<(i32, OwnedFd)> {
    let (report, end) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = process::fork(|| {
        process::reset_signals();
        nix::unistd::alarm::set(LIMIT);
        match change(held, wanted, pid, cgroup, machine) {
            Ok(()) => 0,
            Err(e) => {
                // Without a report the code says that it failed.
                let _ = File::from(end).write_all(e.to_string().as_bytes());
                1
            }
        }
    })?;
    Ok((child, report))
}

fn change(held: &Held, wanted: &[Node], pid: i32, cgroup: Option<&str>, machine: &Namespace) -> io::Result<()> {
    let container = Namespace::of(pid)?;
    let users = other_users(pid)?;
    if let Some(cgroup) = cgroup {
        devices::change(cgroup, &held.rules(wanted)).map_err(|e| named("change the device rules", &e))?;
    }
    let trees = machine.visit(|| {
        let mut trees = Vec::new();
        for (held, node) in held.nodes.iter().zip(wanted) {
            let Some(found) = node.found else { continue };
            let tree = take(node, found, users.as_ref());
            trees.push((held, node, found, tree.map_err(|e| named(&format!("open {}", node.source.display()), &e))));
        }
        Ok(trees)
    })?;
    container.enter()?;
    // One that fails is no reason for the others to be away.
    let mut result = Ok(());
    for (held, node, found, tree) in trees {
        let done = tree.and_then(|tree| {
            put(&held.mounted, node, found, &tree)
                .map_err(|e| named(&format!("replace the device at {}", node.destination.display()), &e))
        });
        result = result.and(done);
    }
    result
}

/// The user namespace of a process, if it is not ours.
fn other_users(pid: i32) -> io::Result<Option<File>> {
    let other = File::open(format!("/proc/{pid}/ns/user"))?;
    let own = std::fs::metadata("/proc/self/ns/user")?;
    let meta = other.metadata()?;
    Ok(((meta.dev(), meta.ino()) != (own.dev(), own.ino())).then_some(other))
}

/// A detached copy of the node's mount, which is the one that was seen.
fn take(node: &Node, found: Found, users: Option<&File>) -> io::Result<Tree> {
    let tree = match users {
        None => {
            Tree::copy(rustix::fs::openat(CWD, &node.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?.as_fd())?
        }
        Some(users) => {
            Tree::from(idmap::clone(&node.source, users.as_fd()).map_err(|e| io::Error::other(distinct(&e)))?)
        }
    };
    let stat = rustix::fs::fstat(&tree)?;
    let is = Found::of(stat.st_mode, stat.st_rdev, (stat.st_dev, stat.st_ino));
    // Other rules than for this one are in force.
    if is != Some(found) {
        return Err(io::Error::other("it has just changed again"));
    }
    tree.set_peers(Peers::None)?;
    if node.read_only {
        tree.set_read_only()?;
    }
    Ok(tree)
}

/// In the container's mount namespace, whose root is the container's: no path leads out of it.
fn put(mounted: &[Number], node: &Node, found: Found, tree: &Tree) -> io::Result<()> {
    let root = Dir::open(Path::new("/"))?;
    let (Some(parent), Some(name)) = (node.destination.parent(), node.destination.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"));
    };
    let parent = root.in_root(parent.as_os_str())?;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(&parent, name, flags, StatxFlags::BASIC_STATS)?;
    let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let rdev = rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
    let there = Found::of(u32::from(stat.stx_mode), rdev, (device, stat.stx_ino));
    if there == Some(found) {
        return Ok(());
    }
    // The container may have moved its folders and laid links: only what was given to it is replaced.
    let given = there.is_some_and(|there| mounted.contains(&there.number));
    if !given || !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(io::Error::other("what is there is not the device that the container was given"));
    }
    tree.replace(parent.as_fd(), name)
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::devices::{FULL, Kind};

    fn found(minor: u32, inode: u64) -> Option<Found> {
        Some(Found { number: Number { kind: Kind::Char, major: 188, minor }, node: (5, inode) })
    }

    fn held() -> Held {
        let node = |destination: &str, found| Node {
            destination: destination.into(),
            source: "/dev/serial/by-id/x".into(),
            read_only: false,
            found,
        };
        let deny = Rule { allow: false, kind: None, major: None, minor: None, access: FULL };
        Held::new(Devices { rules: vec![deny], nodes: vec![node("/dev/a", found(0, 1)), node("/dev/b", found(9, 2))] })
    }

    fn seen(a: Option<Found>) -> Seen {
        BTreeMap::from([("/dev/a".into(), a)])
    }

    fn told(reply: &Reply) -> (usize, usize) {
        let Reply::Devices { gone, back } = reply else { panic!("{reply:?}") };
        (gone.len(), back.len())
    }

    #[test]
    fn what_is_the_same_is_not_touched() {
        let held = held();
        assert_eq!(held.wanted(seen(found(0, 1))), Ok(None));
        assert_eq!(held.wanted(Seen::new()), Ok(None));
        assert!(held.wanted(seen(found(0, 7))).expect("known").is_some(), "another node of the same device");
        let other = BTreeMap::from([("/etc/passwd".into(), None)]);
        assert!(held.wanted(other).expect_err("not given").contains("/etc/passwd"));
    }

    #[test]
    fn a_device_that_went_is_forbidden_and_its_node_remembered() {
        let mut held = held();
        let numbers =
            |held: &Held, wanted: &[Node]| -> Vec<_> { held.rules(wanted).iter().filter_map(|r| r.minor).collect() };
        let wanted = held.wanted(seen(None)).expect("known").expect("gone");
        assert_eq!(numbers(&held, &wanted), [9]);
        held.expect(&wanted);
        assert_eq!(told(&held.settle(&wanted)), (1, 0));
        let wanted = held.wanted(seen(found(1, 3))).expect("known").expect("back");
        assert_eq!(numbers(&held, &wanted), [1, 9]);
        held.expect(&wanted);
        let minors = |held: &Held| held.nodes[0].mounted.iter().map(|n| n.minor).collect::<Vec<_>>();
        assert_eq!(minors(&held), [0, 1], "either is mounted until that is known");
        assert_eq!(told(&held.settle(&wanted)), (0, 1));
        assert_eq!(minors(&held), [1]);
        assert_eq!(held.wanted(seen(found(1, 3))), Ok(None));
    }

    #[test]
    fn changes_that_fail_for_ever_are_not_remembered_for_ever() {
        let mut held = held();
        for minor in 1..1000 {
            let wanted = held.wanted(seen(found(minor, 3))).expect("known").expect("new");
            held.expect(&wanted);
        }
        let minors: Vec<_> = held.nodes[0].mounted.iter().map(|n| n.minor).collect();
        assert_eq!((minors.len(), minors[0], minors[MAX_MOUNTED - 1]), (MAX_MOUNTED, 0, 999));
    }

    #[test]
    fn without_rules_none_are_made() {
        let free = Held { rules: Vec::new(), ..held() };
        let wanted = free.wanted(seen(found(1, 3))).expect("known").expect("new");
        assert_eq!(free.rules(&wanted), []);
    }
}
