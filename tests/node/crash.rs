//! Images come in while the machine fails: the agent is killed at any moment, the disk is full, the disk errs. Whatever
//! happens, what can be used is whole, and in the end everything is as if nothing had happened.
//!
//! `CORACLE_LONG_TESTS=1` tries hundreds of points instead of some.

use crate::harness::{Node, Out, PATIENCE, eventually, output, resting, secs, signal, wait_child};
use crate::registry_server::{Auth, Registry};
use crate::shapes::{self, Tree, dir, file, layer, link, symlink, tree};
use coracle::image::Digest;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// How many points a test tries: `few` unless asked for all.
fn points(few: usize, all: usize) -> usize {
    match std::env::var_os("CORACLE_LONG_TESTS").is_some_and(|v| v == "1") {
        true => all,
        false => few,
    }
}

/// Numbers that look random and are the same every time (xorshift).
struct Dice(u64);

impl Dice {
    fn throw(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below.max(1)
    }
}

/// How an image is brought: the command, its name, and how many layers it has.
struct Way {
    args: Vec<String>,
    image: String,
    layers: usize,
    /// Where it comes from, if not from a file.
    _registry: Option<(Registry, Slow)>,
}

/// A registry's way to its clients: slow enough for a download to take longer than all else.
struct Slow {
    port: u16,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    fn before(registry: &Registry) -> Slow {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("address").port();
        let (target, over) = (registry.address(), Arc::new(AtomicBool::new(false)));
        let ended = over.clone();
        let thread = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(&target) else { continue };
                for (from, to, pause) in [(&client, &server, 0), (&server, &client, 1)] {
                    let (from, to) = (from.try_clone().expect("socket"), to.try_clone().expect("socket"));
                    thread::spawn(move || pass_on(from, to, Duration::from_millis(pause)));
                }
            }
        });
        Slow { port, over, thread: Some(thread) }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// At most 16 KiB for each `pause`, until either side ends.
fn pass_on(mut from: TcpStream, mut to: TcpStream, pause: Duration) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        sleep(pause);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Layers of some MB, small files and large ones; the first has busybox. No two nodes have the same: a layer that is
/// mounted anywhere on the machine is not removed.
fn big_layers(node: &Node) -> Vec<Vec<u8>> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok()).expect("busybox");
    let links = ["sh", "sleep", "cat"].map(|name| symlink(format!("bin/{name}"), "busybox"));
    let first = [dir("bin/"), file("bin/busybox", busybox).mode(0o755)].into_iter().chain(links);
    let whose = |i: u64| file(format!("node{i}"), node.dir.display().to_string());
    let mut layers = vec![layer(first.chain([whose(0)]))];
    for i in 0..4u64 {
        let mut dice = Dice(0x1a7e5 + i);
        // Nothing that packs well: it has to pass the wire.
        let big: Vec<u8> = (0..150_000).flat_map(|_| dice.throw(u64::MAX).to_le_bytes()).collect();
        let files = (0..120).map(|f| file(format!("l{i}/f{f}"), vec![b'a' + i as u8; 700 + f]));
        let rest = [file(format!("l{i}/big"), big), link(format!("too{i}"), format!("l{i}/big")), whose(1 + i)];
        layers.push(layer([dir(format!("l{i}/"))].into_iter().chain(files).chain(rest)));
    }
    layers
}

impl Way {
    /// From an archive that takes some hundred milliseconds to import.
    fn import(node: &Node) -> Way {
        let big: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let layers: Vec<_> = (0..4)
            .map(|i| {
                let folders = (0..8).map(|d| dir(format!("l{i}-{d}/")).mode(0o750).owner(i, d));
                let files = (0..160).map(|f| file(format!("l{i}-{}/f{f}", f % 8), vec![b'a' + i as u8; 1500]));
                let rest = [
                    file(format!("big{i}"), &big[i as usize..]),
                    link(format!("too{i}"), format!("big{i}")),
                    file(format!(".wh.gone{i}"), ""),
                ];
                layer(folders.chain(files).chain(rest))
            })
            .collect();
        let path = node.dir.join("share/crash.tar.gz");
        fs::write(&path, shapes::gzip(&shapes::docker_archive("crash:1", &layers))).expect("archive");
        Way {
            args: ["image", "import", &path.display().to_string()].map(str::to_owned).into(),
            image: "docker.io/library/crash:1".to_owned(),
            layers: 4,
            _registry: None,
        }
    }

    /// From a registry that is slow.
    fn pull(node: &Node) -> Way {
        let layers = big_layers(node);
        let path = node.dir.join("share/crash.tar");
        fs::write(&path, shapes::docker_archive("crash:1", &layers)).expect("archive");
        let registry = Registry::start(Auth::Plain);
        registry.push(&path, "team/crash:1");
        let slow = Slow::before(&registry);
        let image = format!("127.0.0.1:{}/team/crash:1", slow.port);
        Way {
            args: ["image", "pull", &image].map(str::to_owned).into(),
            image,
            layers: layers.len(),
            _registry: Some((registry, slow)),
        }
    }

    fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }
}

/// A node without images, whose agent runs.
fn bare() -> Node {
    let mut node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).expect("no test images");
    node.start();
    node
}

/// All of the store that counts: the trees of its layers, and its records but for the time in them.
struct Store {
    layers: BTreeMap<String, Tree>,
    records: BTreeMap<String, Value>,
    others: Vec<String>,
}

impl Store {
    fn read(root: &Path) -> Store {
        let mut store = Store { layers: BTreeMap::new(), records: BTreeMap::new(), others: Vec::new() };
        for sub in ["images", "copies", "layers", "pulled"] {
            let entries = fs::read_dir(root.join(sub)).into_iter().flatten().flatten();
            for entry in entries {
                let (path, name) = (entry.path(), format!("{sub}/{}", entry.file_name().display()));
                if path.is_dir() {
                    store.layers.insert(name, of_the_image(tree(&path)));
                } else if name.contains("/.") {
                    store.others.push(name);
                } else {
                    store.records.insert(name, of_the_file(&path));
                }
            }
        }
        for sub in ["staging", "quarantine", "pulling"] {
            let found = fs::read_dir(root.join(sub)).into_iter().flatten().flatten();
            store.others.extend(found.map(|e| format!("{sub}/{}", e.file_name().display())));
        }
        let top = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.file_name().display().to_string());
        store.others.extend(top.filter(|name| name.starts_with('.')));
        store
    }

    /// Everything that `self` says can be used is as in `clean`.
    #[track_caller]
    fn is_part_of(&self, clean: &Store, when: &str) {
        for (name, record) in &self.records {
            assert_eq!(Some(record), clean.records.get(name), "{when}: another record {name}");
            // A record vouches for the layers it names, or for the folder beside it.
            let vouched = |folder: &&String| is_image(name) || name.strip_suffix(".json") == Some(folder);
            for folder in clean.layers.keys().filter(vouched) {
                let found = difference(self.layers.get(folder), clean.layers.get(folder));
                assert!(found.is_none(), "{when}: {name} is there, but {folder} differs: {found:?}");
            }
        }
    }
}

/// What a file beside the layers and images says, whenever it was written.
fn of_the_file(path: &Path) -> Value {
    let bytes = fs::read(path).expect("a file of the store");
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => {
            let mut record: Value = serde_json::from_slice(&bytes).expect("a record is never half");
            let fields = record.as_object_mut().expect("an object");
            fields.retain(|field, _| field != "added" && field != "xxh3");
            record
        }
        // Knows the inodes of its folder.
        Some("seal") => Value::Null,
        _ => Digest::of(&bytes).to_string().into(),
    }
}

fn is_image(record: &str) -> bool {
    record.starts_with("images/") && record.ends_with(".json")
}

/// What the archive does not say about a layer's folder and whiteouts is the time when they were made.
fn of_the_image(mut tree: Tree) -> Tree {
    tree.remove(".");
    tree.values_mut().filter(|fact| fact.is_whiteout()).for_each(|fact| fact.modified = (0, 0));
    tree
}

/// The first difference of two trees.
fn difference(is: Option<&Tree>, should: Option<&Tree>) -> Option<String> {
    let (Some(is), Some(should)) = (is, should) else {
        return (is.is_some() != should.is_some()).then(|| format!("there: {}", is.is_some()));
    };
    let differs = |path: &&String| is.get(*path) != should.get(*path);
    let path = is.keys().chain(should.keys()).find(differs)?;
    Some(format!("{path}: is {:?}, should be {:?}", is.get(path), should.get(path)))
}

fn store_of(node: &Node) -> std::path::PathBuf {
    node.dir.join("root/store")
}

fn forget(node: &Node) {
    fs::remove_dir_all(store_of(node)).expect("forget the store");
}

/// Removes the image, in one of two ways; then nothing is left of it, and the node is stopped.
#[track_caller]
fn comes_to_nothing(node: &mut Node, way: &Way, prune: bool, when: &str) {
    match prune {
        // What is used is not known before the manifests have been read.
        true => eventually("unused images go", PATIENCE, || node.cli(&["image", "prune"]).code == Some(0)),
        false => drop(node.cli(&["image", "rm", &way.image]).ok()),
    }
    assert!(!listed(node), "{when}: the image was removed");
    node.restart();
    let store = Store::read(&store_of(node));
    let rests = (store.layers.keys().collect::<Vec<_>>(), store.records.keys().collect::<Vec<_>>(), &store.others);
    assert!(rests.0.is_empty() && rests.1.is_empty() && rests.2.is_empty(), "{when}: left over: {rests:?}");
    node.stop();
}

fn listed(node: &Node) -> bool {
    node.cli(&["image", "ls"]).ok().contains("crash")
}

/// Brings the image with a healthy agent, which must work, and checks that the store is as if nothing had happened.
#[track_caller]
fn ends_well(node: &Node, way: &Way, clean: &Store, when: &str) {
    node.cli(&way.args()).ok();
    assert!(listed(node), "{when}: the image is not there");
    eventually("leftovers are removed", PATIENCE, || {
        fs::read_dir(store_of(node).join("staging")).is_ok_and(|dir| dir.count() == 0)
    });
    let store = Store::read(&store_of(node));
    assert!(store.others.is_empty(), "{when}: left over: {:?}", store.others);
    store.is_part_of(clean, when);
    let names = |store: &Store| (store.layers.keys().cloned().collect(), store.records.keys().cloned().collect());
    let (is, should): ((Vec<_>, Vec<_>), _) = (names(&store), names(clean));
    assert_eq!(is, should, "{when}: the store is not what a clean import makes");
}

/// What a clean import makes, and how long it takes.
fn clean_import(node: &mut Node, way: &Way) -> (Store, Duration) {
    let begin = Instant::now();
    node.cli(&way.args()).ok();
    let duration = begin.elapsed();
    let clean = Store::read(&store_of(node));
    assert!(clean.records.keys().any(|name| is_image(name)) && clean.others.is_empty(), "{:?}", clean.others);
    assert_eq!((clean.layers.len(), shapes::layers_of(node, &way.image).len()), (way.layers, way.layers));
    comes_to_nothing(node, way, false, "a clean import");
    (clean, duration)
}

fn kill_at_random_points(node: &mut Node, way: &Way, count: usize) {
    let (clean, duration) = clean_import(node, way);
    let mut dice = Dice(0x5eed_c0ac1e);
    let (mut interrupted, mut in_staging, mut complete) = (0, 0, 0);
    for point in 0..count {
        node.start();
        let quiet = |args: &[&str]| -> Child {
            node.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("command")
        };
        let mut bringing = quiet(&way.args());
        let delay = Duration::from_micros(dice.throw(duration.as_micros() as u64));
        sleep(delay);
        node.kill9();
        // A command whose agent is gone ends too.
        let status = wait_child(&mut bringing, PATIENCE).expect("the command ends");
        let when = format!("point {point}, killed after {delay:?} of {duration:?}");
        let store = Store::read(&store_of(node));
        store.is_part_of(&clean, &when);
        in_staging += usize::from(store.others.iter().any(|name| name.starts_with("staging/")));
        let whole = store.records.keys().any(|name| is_image(name));
        assert!(whole || !status.success(), "{when}: said to be imported, but is not");
        interrupted += usize::from(!whole);
        complete += usize::from(whole);
        // Some of the time the next agent is the next victim: leftovers of several crashes come together.
        if whole || dice.throw(4) == 0 {
            node.start();
            assert_eq!(listed(node), whole, "{when}: what is listed is what is recorded");
            ends_well(node, way, &clean, &when);
            comes_to_nothing(node, way, point % 2 == 0, &when);
        }
    }
    node.start();
    ends_well(node, way, &clean, "the end");
    println!(
        "{count} points: {interrupted} without an image yet ({in_staging} within staging), {complete} with a whole one"
    );
    assert!(in_staging >= count / 10, "only {in_staging} of {count} points were within the import");
}

#[test]
fn kill_9_at_any_point_of_an_import_leaves_nothing_half() {
    let mut node = bare();
    let way = Way::import(&node);
    kill_at_random_points(&mut node, &way, points(24, 240));
    node.finish();
}

#[test]
fn kill_9_at_any_point_of_a_pull_leaves_nothing_half() {
    let mut node = bare();
    let way = Way::pull(&node);
    kill_at_random_points(&mut node, &way, points(10, 240));
    node.finish();
}

/// Nobody asks again: the pod wants its image, and that is enough.
#[test]
fn a_pod_gets_its_image_though_the_agent_is_killed_while_pulling_it() {
    let mut node = bare();
    let way = Way::pull(&node);
    let (clean, mut duration) = clean_import(&mut node, &way);
    let mut pod = resting("app");
    pod["spec"]["containers"][0]["image"] = way.image.clone().into();
    let mut dice = Dice(0x90d);
    let count = points(3, 60);
    let (mut point, mut interrupted) = (0, 0);
    // At least one that was interrupted: each that was not brings the next kills nearer to the start.
    while point < count || interrupted == 0 {
        node.apply("app.yaml", &pod);
        for _ in 0..1 + dice.throw(3) {
            node.start();
            sleep(Duration::from_micros(dice.throw(duration.as_micros() as u64 * 3 / 2)));
            node.kill9();
        }
        let when = format!("point {point}");
        let store = Store::read(&store_of(&node));
        store.is_part_of(&clean, &when);
        match store.records.keys().any(|name| is_image(name)) {
            true => duration = duration * 2 / 3,
            false => interrupted += 1,
        }
        node.start();
        node.wait_up("app");
        assert_eq!(node.sh("app", "cat /l3/f7"), "d".repeat(707), "{when}");
        let store = Store::read(&store_of(&node));
        store.is_part_of(&clean, &when);
        assert_eq!(store.records.len(), clean.records.len(), "{when}: not what a clean pull makes");
        node.remove("app.yaml");
        node.wait_gone("app");
        // Else the next agent would hold it for wanted until it has looked twice.
        let known = node.dir.join("root/manifests");
        let records = || fs::read_dir(&known).map(|dir| dir.flatten().filter(|e| e.path().is_file()).count());
        eventually("it is no longer known", PATIENCE, || records().is_ok_and(|count| count == 0));
        comes_to_nothing(&mut node, &way, point % 2 == 0, &when);
        point += 1;
    }
    println!("{point} pods: {interrupted} were without their image when the agent was last killed");
    node.start();
    node.finish();
}

/// An agent under strace: its system calls are counted, or fail.
struct Traced(Child);

impl Traced {
    /// `None` when the agent did not get over its start.
    fn start(node: &Node, arguments: &[&str]) -> Option<Traced> {
        let agent = node.agent_command();
        let log = fs::File::options().create(true).append(true).open(node.dir.join("agent.log")).expect("agent.log");
        let strace = Command::new("strace")
            .args(["-f", "-qqq", "--seccomp-bpf"])
            .args(arguments)
            .arg(agent.get_program())
            .args(agent.get_args())
            .envs(agent.get_envs().filter_map(|(key, value)| Some((key, value?))))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("agent.log"))
            .stderr(log)
            .spawn()
            .expect("strace");
        let mut traced = Traced(strace);
        let end = Instant::now() + PATIENCE;
        // One that neither answers nor ends lost something that it cannot do without.
        while traced.runs() && Instant::now() < end {
            if node.cli(&["get", "pods", "-A"]).code == Some(0) {
                return Some(traced);
            }
            sleep(Duration::from_millis(20));
        }
        None
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().expect("strace").is_none()
    }
}

impl Drop for Traced {
    /// Ends the agent; strace follows it. The other way round the agent would live on, without some system calls.
    fn drop(&mut self) {
        let pid = self.0.id();
        for _ in 0..500 {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                signal(child, Signal::KILL);
            }
            if wait_child(&mut self.0, Duration::from_millis(20)).is_some() {
                return;
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The calls in strace's log, each where it ended: those that others came between are put together.
fn calls_of(log: &str) -> Vec<String> {
    let mut begun: BTreeMap<&str, String> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, begin.trim().to_owned());
        } else if let Some((_, end)) = rest.split_once(" resumed>") {
            calls.push(begun.remove(thread).unwrap_or_default() + end);
        } else {
            calls.push(rest.trim().to_owned());
        }
    }
    calls
}

/// A file of length zero that counts for whole after a power cut was renamed before its content was on disk. Nothing here
/// is: content, then the layer's place, then its record, then the image's record.
#[test]
fn what_a_record_vouches_for_is_on_disk_before_it() {
    let mut node = bare();
    let way = Way::import(&node);
    node.stop();
    let log = node.dir.join("order.log");
    let trace = "trace=syncfs,fsync,fdatasync,rename,renameat,renameat2";
    let traced =
        Traced::start(&node, &["-y", "-o", &log.display().to_string(), "-e", trace]).expect("the agent starts");
    node.cli(&way.args()).ok();
    drop(traced);
    let mut calls = calls_of(&fs::read_to_string(&log).expect("strace's log"));
    // Others remember something, too.
    calls.retain(|call| ["images", "layers", "staging"].iter().any(|dir| call.contains(&format!("/store/{dir}"))));
    let at = |call: &str, parts: &[&str]| -> Vec<usize> {
        let fits =
            |line: &String| line.starts_with(&format!("{call}(")) && parts.iter().all(|part| line.contains(part));
        (0..calls.len()).filter(|&i| fits(&calls[i])).collect()
    };
    let content = at("syncfs", &["/store/staging/"]);
    let folders = at("renameat2", &["/store/staging/", "/store/layers>"]);
    let beside = at("rename", &["/store/staging/", "/store/layers/"]);
    let synced = at("fsync", &["/store/layers>"]);
    let layers = at("renameat", &["/store/layers>", ".json\")"]);
    let configuration = at("renameat", &["/store/images>", ".config\")"]);
    let image = at("renameat", &["/store/images>", ".json\")"]);
    let counts = (content.len(), folders.len(), beside.len(), layers.len(), configuration.len(), image.len());
    assert_eq!(counts, (1, 4, 8, 4, 1, 1), "{calls:#?}");
    assert!(folders.iter().chain(&beside).all(|&moved| content[0] < moved), "{calls:#?}");
    let moved = folders.iter().chain(&beside).max().expect("some");
    assert!(synced.iter().any(|sync| moved < sync && layers.iter().all(|record| sync < record)), "{calls:#?}");
    assert!(layers.iter().chain(&configuration).all(|&record| record < image[0]), "{calls:#?}");
    // Each record is on disk before it has its name, and has it for good before the next step.
    for &record in layers.iter().chain(&configuration).chain(&image) {
        assert!(calls[record - 1].starts_with("fsync(") && calls[record - 1].contains(".tmp-"), "{calls:#?}");
        assert!(calls[record + 1].starts_with("fsync("), "{calls:#?}");
    }
    node.start();
    node.finish();
}

/// What an import needs of the system.
const CALLS: [&str; 20] = [
    "rename",
    "renameat",
    "unlinkat",
    "unlink",
    "fdatasync",
    "read",
    "openat",
    "openat2",
    "mkdirat",
    "write",
    "fsync",
    "syncfs",
    "renameat2",
    "linkat",
    "mknodat",
    "fchmod",
    "utimensat",
    "pread64",
    "fsetxattr",
    "ftruncate",
];

/// How often one thread of an agent that imports makes each call: later ones cannot fail.
fn calls_of_an_import(node: &mut Node, way: &Way) -> BTreeMap<String, u64> {
    let log = node.dir.join("calls.log");
    let arguments = ["-o", &log.display().to_string(), "-e", &format!("trace={}", CALLS.join(","))];
    let traced = Traced::start(node, &arguments).expect("the agent starts");
    node.cli(&way.args()).ok();
    drop(traced);
    let text = fs::read_to_string(&log).expect("strace's log");
    let mut by_thread: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in text.lines() {
        if let Some((thread, rest)) = line.split_once(' ')
            && let Some((call, _)) = rest.trim_start().split_once('(')
        {
            *by_thread.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let known = most.entry(call.to_owned()).or_default();
        *known = count.max(*known);
    }
    forget(node);
    most
}

fn errors_at_random_points(node: &mut Node, way: &Way, count: usize) {
    let (clean, _) = clean_import(node, way);
    let most = calls_of_an_import(node, way);
    let calls: Vec<(&String, &u64)> = most.iter().collect();
    let mut dice = Dice(0xbad_d15c);
    let (mut refused, mut worked, mut ended) = (0, 0, 0);
    for point in 0..count {
        let (call, most) = calls[point % calls.len()];
        let n = 1 + dice.throw(*most + *most / 4);
        let error = ["EIO", "ENOSPC"][dice.throw(2) as usize];
        // Once, or from then on.
        let on = ["", "+"][dice.throw(2) as usize];
        let when = format!("point {point}, {call} {n}{on} of {most} with {error}");
        // Each thread counts its own calls.
        let inject = format!("inject={call}:error={error}:when={n}{on}");
        let arguments = ["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
        if let Some(mut cursed) = Traced::start(node, &arguments) {
            let out: Out = output(&mut node.command(&way.args()), b"", secs(40));
            match out.code {
                Some(0) => worked += 1,
                _ => {
                    refused += 1;
                    assert!(!out.stderr.trim().is_empty(), "{when}: no word of it");
                }
            }
            ended += usize::from(!cursed.runs());
            let store = Store::read(&store_of(node));
            store.is_part_of(&clean, &when);
            assert!(
                out.code != Some(0) || store.records.keys().any(|name| is_image(name)),
                "{when}: said to be imported, but is not"
            );
        } else {
            ended += 1;
        }
        node.start();
        ends_well(node, way, &clean, &when);
        comes_to_nothing(node, way, point % 2 == 0, &when);
    }
    println!(
        "{count} points: {worked} imports worked all the same, {refused} were refused; the agent ended {ended} times"
    );
    assert!(refused >= count / 10, "only {refused} of {count} failed: is anything injected?");
    node.start();
}

#[test]
fn errors_of_the_disk_at_any_call_are_said_and_leave_nothing_half() {
    let mut node = bare();
    let way = Way::import(&node);
    errors_at_random_points(&mut node, &way, points(14, 224));
    node.finish();
}

#[test]
fn errors_of_the_disk_at_any_call_of_a_pull_are_said_and_leave_nothing_half() {
    let mut node = bare();
    let way = Way::pull(&node);
    errors_at_random_points(&mut node, &way, points(7, 224));
    node.finish();
}

/// On a file system that is too small, by a little or by a lot, the import fails with the reason, the store is as before
/// and the agent lives; with more room the same import works.
#[test]
fn a_full_disk_leaves_the_store_clean_and_the_agent_alive() {
    let mut node = bare();
    let way = Way::import(&node);
    let (clean, _) = clean_import(&mut node, &way);
    let root = node.dir.join("root");
    let mount = |arguments: &[&str]| output(Command::new("mount").args(arguments).arg(&root), b"", PATIENCE).ok();
    mount(&["-t", "tmpfs", "-o", "size=700k", "tmpfs"]);
    let mut dice = Dice(0xf011);
    let count = points(4, 40);
    node.start();
    let mut full = 0;
    for point in 0..count {
        // The image takes about 8 MiB.
        let room = 700 + dice.throw(9_000);
        mount(&["-o", &format!("remount,size={room}k")]);
        let when = format!("point {point}, {room} KiB");
        let out = node.cli(&way.args());
        if out.code != Some(0) {
            full += 1;
            let words = ["No space left on device", "no space left in", "not enough space on"];
            assert!(words.iter().any(|words| out.stderr.contains(words)), "{when}: {}", out.stderr);
            let store = Store::read(&store_of(&node));
            assert!(store.others.is_empty(), "{when}: left over: {:?}", store.others);
            store.is_part_of(&clean, &when);
            assert!(!listed(&node), "{when}");
        }
        mount(&["-o", "remount,size=64m"]);
        ends_well(&node, &way, &clean, &when);
        node.cli(&["image", "rm", "crash:1"]).ok();
    }
    assert!(full >= count / 2, "only {full} of {count} were too small");
    println!("{count} sizes: {full} were too small");
    node.stop();
    output(Command::new("umount").arg(&root), b"", PATIENCE).ok();
    node.start();
    node.finish();
}
