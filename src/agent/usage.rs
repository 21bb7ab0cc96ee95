//! What pods and the node use, for all who ask. Nothing is looked at while nobody does; and one pass, at most one a second,
//! serves all of them.

use crate::image::ImageStore;
use crate::runtime::Runtime;
use crate::stats::{self, Disk, Meter, Snapshot, Subject};
use k8s_openapi::api::core::v1::Pod;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Between two passes, at least: rates of less say little.
const LEAST: Duration = Duration::from_secs(1);
/// How long a pass waits for files to be counted. What takes longer is in a later one.
const PATIENCE: Duration = Duration::from_millis(300);

/// Makes passes.
pub struct Usage {
    runtime: Arc<Runtime>,
    disk: Arc<Disk>,
    meter: Arc<Mutex<Meter>>,
    /// Held while a pass is made: who comes then waits for it.
    turn: tokio::sync::Mutex<Turn>,
}

#[derive(Default)]
struct Turn {
    last: Option<(Instant, Arc<Snapshot>)>,
    counting: Option<JoinHandle<()>>,
}

impl Usage {
    /// Of a node that nobody has asked about.
    #[must_use]
    pub fn new(runtime: &Arc<Runtime>) -> Usage {
        let disk = Arc::new(Disk::default());
        let meter = Meter::new(Arc::clone(runtime), Arc::clone(&disk));
        Usage {
            runtime: Arc::clone(runtime),
            disk,
            meter: Arc::new(Mutex::new(meter)),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// What these pods and the node use, as of at most `max_age` ago, or a second.
    pub async fn look(&self, max_age: Duration, pods: Vec<Arc<Pod>>) -> Arc<Snapshot> {
        let mut turn = self.turn.lock().await;
        if let Some((at, last)) = &turn.last
            && at.elapsed() < max_age.max(LEAST)
        {
            return Arc::clone(last);
        }
        let subjects: Vec<Subject> =
            pods.iter().filter_map(|pod| Subject::of(pod, self.runtime.layout())).collect();
        self.count(&mut turn, &subjects).await;
        let (begin, meter) = (Instant::now(), Arc::clone(&self.meter));
        let pass = move || meter.lock().unwrap_or_else(PoisonError::into_inner).look(&subjects);
        // An error means that the agent is shutting down.
        let snapshot = Arc::new(tokio::task::spawn_blocking(pass).await.unwrap_or_default());
        turn.last = Some((begin, Arc::clone(&snapshot)));
        snapshot
    }

    /// Has files counted beside the passes, and waits for it a little.
    async fn count(&self, turn: &mut Turn, subjects: &[Subject]) {
        let counting = turn.counting.get_or_insert_with(|| {
            let (disk, trees) = (Arc::clone(&self.disk), stats::trees(subjects));
            let images: Arc<ImageStore> = self.runtime.images();
            tokio::task::spawn_blocking(move || disk.count(&trees, &images))
        });
        if tokio::time::timeout(PATIENCE, counting).await.is_ok() {
            turn.counting = None;
        }
    }
}
