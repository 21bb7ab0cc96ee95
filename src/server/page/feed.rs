//! What the page shows, as server-sent events: each section when somebody begins to look, and again when it is another one.
//! Nothing is read while nobody looks.

use super::super::reply::{self, Failure, Reply, blocking};
use super::super::{Node, images};
use super::{certificates, view};
use hyper::StatusCode;
use hyper::body::Bytes;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Between two looks at what changes by itself: what is used, and the time.
const TICK: Duration = Duration::from_secs(5);
/// Between two looks at what takes reading files: images and certificates.
const SLOW: Duration = Duration::from_secs(30);
/// At least between two looks: many changes are one.
const PAUSE: Duration = Duration::from_millis(500);
/// How long somebody may not read.
const STALLED: Duration = Duration::from_secs(60);
/// Sections on their way to somebody.
const QUEUE: usize = 4;

/// Answers with all of it, for as long as somebody listens.
pub(super) fn feed(node: Arc<dyn Node>) -> Reply {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(Feed { node, sender, sent: HashMap::new() }.run());
    reply::with_type(StatusCode::OK, "text/event-stream", reply::stream(receiver))
}

/// Why it ends: nobody listens, or the agent is going down.
struct Over;

impl From<Failure> for Over {
    fn from(_: Failure) -> Over {
        Over
    }
}

struct Feed {
    node: Arc<dyn Node>,
    sender: mpsc::Sender<io::Result<Bytes>>,
    /// What somebody has seen of each section, as a hash.
    sent: HashMap<&'static str, u64>,
}

impl Feed {
    async fn run(mut self) {
        let mut changes = self.node.changes();
        let mut slow = None;
        loop {
            changes.borrow_and_update();
            let with_slow = slow.is_none_or(|last: Instant| last.elapsed() >= SLOW);
            if with_slow {
                slow = Some(Instant::now());
            }
            if self.look(with_slow).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
            // Cancel-safe: all of them only wait.
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(TICK) => {}
                () = self.sender.closed() => return,
            }
        }
    }

    async fn look(&mut self, with_slow: bool) -> Result<(), Over> {
        let node = Arc::clone(&self.node);
        self.tell("node", &view::node(node.as_ref())).await?;
        self.tell("pods", &view::pods(&node.pods())).await?;
        self.tell("events", &view::events(&node.events())).await?;
        if with_slow {
            let items = images::items(Arc::clone(&node)).await?;
            self.tell("images", &view::images(&items)).await?;
            let config = node.config();
            let found = blocking(move || certificates::all(&certificates::folders(&config))).await?;
            self.tell("certificates", &json!(found)).await?;
        }
        let stats = node.stats(TICK).await;
        self.tell("usage", &view::usage(&stats)).await
    }

    async fn tell(&mut self, section: &'static str, value: &Value) -> Result<(), Over> {
        let text = value.to_string();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        if self.sent.insert(section, hash) == Some(hash) {
            return Ok(());
        }
        // JSON in one line has no line end that could be taken for the event's.
        let event = Bytes::from(format!("event: {section}\ndata: {text}\n\n"));
        self.sender.send_timeout(Ok(event), STALLED).await.map_err(|_| Over)
    }
}
