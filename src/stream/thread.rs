//! Where streams run: a thread with an event loop of its own. Copying a gigabyte through TLS takes seconds of a core; the
//! workers of pods share the agent's loop, and must not wait for it.

use std::io;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// Threads for blocking work (starting exec helpers, asking shims); they end when idle.
const BLOCKING_THREADS: usize = 16;
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const STACK: usize = 512 * 1024;

static LOOP: OnceLock<Option<Handle>> = OnceLock::new();

/// Runs `task` on the streams' thread, which begins with the first one. What it registers with an event loop (descriptors,
/// timers) is registered there. Must be called on a tokio runtime, which takes the task when there can be no thread.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let handle = LOOP.get_or_init(|| {
        begin().inspect_err(|error| tracing::warn!(%error, "no thread for streams: they share the agent's")).ok()
    });
    match handle {
        Some(handle) => handle.spawn(task),
        None => tokio::spawn(task),
    }
}

fn begin() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_ALIVE)
        .thread_stack_size(STACK)
        .thread_name("coracle-stream")
        .build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(std::future::pending::<()>());
    thread::Builder::new().name("coracle-streams".to_owned()).stack_size(STACK).spawn(run)?;
    Ok(handle)
}
