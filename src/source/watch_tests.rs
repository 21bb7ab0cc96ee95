//! The watcher over real files, with real events.

use super::*;
use crate::source::directory::tests::{Bench, pod, shown};

type Snapshots = tokio::sync::watch::Receiver<Arc<Snapshot>>;

/// A rescan that no test waits for: what arrives, arrived by an event.
const NEVER: Duration = Duration::from_secs(3600);

fn start(bench: &Bench, rescan: Duration) -> (Snapshots, Rescan) {
    watch(bench.options(), rescan).unwrap()
}

/// Waits until the pods are these, and says how long that took.
fn until(snapshots: &mut Snapshots, pods: &[&str]) -> Duration {
    let begin = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let found = runtime.block_on(async {
        let wait = snapshots.wait_for(|snapshot| shown(snapshot) == pods);
        matches!(tokio::time::timeout(Duration::from_secs(10), wait).await, Ok(Ok(_)))
    });
    assert!(found, "wanted {pods:?}, have {:?}", shown(&snapshots.borrow()));
    begin.elapsed()
}

#[test]
fn the_first_snapshot_is_a_scan() {
    let bench = Bench::new();
    bench.write("a.yaml", &pod("a", "app:1"));
    let (snapshots, _rescan) = start(&bench, NEVER);
    assert_eq!(shown(&snapshots.borrow()), ["a app:1"]);
}

#[test]
fn a_rename_into_place_is_seen_at_once() {
    let bench = Bench::new();
    let (mut snapshots, _rescan) = start(&bench, NEVER);
    let mut times = Vec::new();
    for round in 0..20 {
        let image = format!("app:{round}");
        bench.write(".staged", &pod("a", &image));
        fs::rename(bench.file(".staged"), bench.file("a.yaml")).unwrap();
        times.push(until(&mut snapshots, &[&format!("a {image}")]));
    }
    times.sort();
    eprintln!("rename to snapshot: median {:?}, worst {:?}", times[10], times[19]);
    // On a machine that does much else meanwhile; alone it is a fraction of a millisecond.
    assert!(times[10] < Duration::from_millis(100), "{times:?}");
}

#[test]
fn writing_in_place_is_seen_when_the_file_is_closed() {
    use std::io::Write;
    let bench = Bench::new();
    let (mut snapshots, _rescan) = start(&bench, NEVER);
    let mut file = fs::File::create(bench.file("a.yaml")).unwrap();
    let text = format!("{}---\n{}", pod("a", "app:1"), pod("b", "app:1"));
    let (first, second) = text.split_at(text.find("---").unwrap());
    file.write_all(first.as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(shown(&snapshots.borrow()), [""; 0], "half a file, though a valid one");
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    assert!(until(&mut snapshots, &["a app:1", "b app:1"]) < Duration::from_millis(900));
    fs::remove_file(bench.file("a.yaml")).unwrap();
    until(&mut snapshots, &[]);
}

#[test]
fn a_broken_file_is_reported_once_it_settled() {
    let bench = Bench::new();
    let (mut snapshots, _rescan) = start(&bench, NEVER);
    bench.write("a.yaml", "broken: [");
    thread::sleep(Duration::from_millis(300));
    assert!(snapshots.borrow().problems.is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let wait = snapshots.wait_for(|snapshot| !snapshot.problems.is_empty());
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap() });
}

#[test]
fn a_directory_that_comes_later_or_again_is_watched() {
    let bench = Bench::new();
    let away = bench.state().with_extension("away");
    fs::remove_dir(bench.manifests()).unwrap();
    let (mut snapshots, _rescan) = start(&bench, NEVER);
    assert!(!snapshots.borrow().healthy);
    fs::create_dir(bench.manifests()).unwrap();
    bench.write("a.yaml", &pod("a", "app:1"));
    until(&mut snapshots, &["a app:1"]);
    bench.write("b.yaml", &pod("b", "app:1"));
    until(&mut snapshots, &["a app:1", "b app:1"]);

    // Another directory in its place.
    fs::rename(bench.manifests(), &away).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let wait = snapshots.wait_for(|snapshot| !snapshot.healthy && snapshot.pods.len() == 2);
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap() });
    fs::create_dir(bench.manifests()).unwrap();
    bench.write("c.yaml", &pod("c", "app:1"));
    until(&mut snapshots, &["c app:1"]);
    bench.write("d.yaml", &pod("d", "app:1"));
    until(&mut snapshots, &["c app:1", "d app:1"]);
}

#[test]
fn a_rescan_sees_what_no_event_told() {
    let bench = Bench::new();
    let target = bench.state().with_extension("target");
    fs::write(&target, pod("a", "app:1")).unwrap();
    std::os::unix::fs::symlink(&target, bench.file("a.yaml")).unwrap();
    let (mut snapshots, rescan) = start(&bench, NEVER);
    until(&mut snapshots, &["a app:1"]);
    // The link's target is elsewhere.
    fs::write(&target, pod("a", "app:22")).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(shown(&snapshots.borrow()), ["a app:1"]);
    rescan.now();
    until(&mut snapshots, &["a app:22"]);
}

#[test]
fn what_ran_is_on_disk_soon_after() {
    let bench = Bench::new();
    let (mut snapshots, rescan) = start(&bench, NEVER);
    bench.write("a.yaml", &pod("a", "app:1"));
    until(&mut snapshots, &["a app:1"]);
    thread::sleep(3 * SAVE_DELAY);
    bench.write("a.yaml", "broken: [");
    drop((snapshots, rescan));
    let (snapshots, _rescan) = start(&bench, NEVER);
    assert_eq!(shown(&snapshots.borrow()), ["a app:1"]);
}

#[test]
fn many_files_at_once_all_arrive() {
    let bench = Bench::new();
    let (mut snapshots, _rescan) = start(&bench, NEVER);
    let names: Vec<String> = (0..50).map(|number| format!("p{number:02}")).collect();
    for name in &names {
        bench.write(&format!("{name}.yaml"), &pod(name, "app:1"));
    }
    let wanted: Vec<String> = names.iter().map(|name| format!("{name} app:1")).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    until(&mut snapshots, &wanted);
}
