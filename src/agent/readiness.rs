//! Whether the node can run pods at all: what would keep any of them from starting.

use super::node::Shared;
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks while containers cannot start.
const LOOK: Duration = Duration::from_secs(30);

/// What is known of it.
#[derive(Debug)]
pub struct Readiness {
    /// Why containers cannot start.
    runtime: Option<String>,
    /// Whether the node was ready when it was looked at last, and since when.
    last: (bool, Timestamp),
}

impl Readiness {
    /// Nothing is wrong as far as is known.
    pub fn new(now: Timestamp) -> Readiness {
        Readiness { runtime: None, last: (true, now) }
    }

    /// Why containers cannot start; `None`: they can.
    pub fn set_runtime(&mut self, problem: Option<String>) {
        self.runtime = problem;
    }

    /// Why containers cannot start; `None`: they can.
    pub fn runtime_problem(&self) -> Option<String> {
        self.runtime.clone()
    }

    /// What is wrong, as kubelet words it, and since when it is so, or well. `network` is what is wrong with the pod network.
    pub fn look(&mut self, network: Option<String>, now: Timestamp) -> (Option<String>, Timestamp) {
        let runtime = self.runtime.as_ref().map(|why| format!("container runtime is down: {why}"));
        let network = network.map(|why| format!("container runtime network not ready: {why}"));
        let mut problems: Vec<String> = [runtime, network].into_iter().flatten().collect();
        if self.last.0 != problems.is_empty() {
            self.last = (problems.is_empty(), now);
        }
        let problem = match problems.len() {
            0 | 1 => problems.pop(),
            _ => Some(format!("[{}]", problems.join(", "))),
        };
        (problem, self.last.1)
    }
}

/// Looks whether containers can start on the file system of this folder until they can; `error` is why they cannot now.
pub async fn watch(shared: Arc<Shared>, root: PathBuf, error: String) {
    shared.set_runtime_problem(Some(error));
    loop {
        tokio::time::sleep(LOOK).await;
        let root = root.clone();
        let look = tokio::task::spawn_blocking(move || crate::sys::overlay::probe(&root));
        match look.await {
            Ok(Ok(())) => return shared.set_runtime_problem(None),
            Ok(Err(error)) => shared.set_runtime_problem(Some(error.to_string())),
            // The agent is shutting down.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_can_run_nothing_is_not_ready_and_says_why() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut readiness = Readiness::new(at(0));
        assert_eq!(readiness.look(None, at(1)), (None, at(0)));
        readiness.set_runtime(Some("no overlay".to_owned()));
        let down = "container runtime is down: no overlay".to_owned();
        assert_eq!(readiness.look(None, at(2)), (Some(down.clone()), at(2)));
        let both = format!("[{down}, container runtime network not ready: no bridge]");
        assert_eq!(readiness.look(Some("no bridge".to_owned()), at(3)), (Some(both), at(2)));
        readiness.set_runtime(None);
        assert_eq!(readiness.look(None, at(4)), (None, at(4)));
    }
}
