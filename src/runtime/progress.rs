//! What the agent did with runs beyond starting them: small files beside the shim, for the next agent.

use super::sandbox::write_private;
use super::{Error, Note, Runtime};
use crate::pod::{Instance, Progress, Spec, StopCause, Stopping, restarts_failed};
use crate::store;
use crate::sys::clock;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::sync::PoisonError;

impl Runtime {
    /// What was done with a run; `None`: nothing.
    pub(super) fn progress(&self, uid: &str, run: &Instance) -> Option<Progress> {
        // A damaged file costs a hook that is delivered twice, not the pod.
        store::read(&self.layout.progress(uid, &run.container, run.attempt)).ok().flatten().map(clock::recall)
    }

    /// Write down a step of a run. Volatile: the file need not outlive the machine. Once the sandbox has gone, nothing is
    /// written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn advance(
        &self,
        uid: &str,
        container: &str,
        attempt: u32,
        change: impl FnOnce(&mut Progress),
    ) -> Result<(), Error> {
        let path = self.layout.progress(uid, container, attempt);
        let _turn = self.advancing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut progress = clock::recall(store::read::<Progress>(&path).ok().flatten().unwrap_or_default());
        let before = progress.clone();
        change(&mut progress);
        if progress == before {
            return Ok(());
        }
        // Its parent comes and goes with the sandbox: what ends later than that has nobody to tell.
        let dir = self.layout.progress_dir(uid);
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::File { what: "make the folder", path: dir, source });
            }
            _ => {}
        }
        let staged = path.with_extension("new");
        let write = || {
            write_private(&staged, &serde_json::to_vec(&clock::inscribe(progress))?)?;
            std::fs::rename(&staged, &path)
        };
        write().map_err(|source| Error::File { what: "write", path: path.clone(), source })
    }

    /// Write down that a container is being stopped; a stop under way may only become shorter.
    pub(super) fn begin_stop(
        &self,
        spec: &Spec,
        container: &str,
        id: &str,
        cause: StopCause,
        grace_ms: u64,
    ) -> Result<Vec<Note>, Error> {
        let runs = self.instances(spec.uid(), container);
        let Some(run) = runs.iter().find(|run| run.id == id) else { return Ok(Vec::new()) };
        let now = clock::now();
        self.advance(spec.uid(), container, run.attempt, |progress| {
            let kill_at = progress.stopping.as_ref().and_then(|s| s.kill_at);
            progress.stopping = Some(Stopping { cause, begun: now, grace_ms, kill_at });
        })?;
        let again = spec.container(container).is_some_and(|c| restarts_failed(spec, c));
        let again = if again { ", will be restarted" } else { "" };
        let text = match cause {
            StopCause::Pod => format!("Stopping container {container}"),
            StopCause::Liveness => format!("Container {container} failed liveness probe{again}"),
            StopCause::Startup => format!("Container {container} failed startup probe{again}"),
            StopCause::PostStart => format!("FailedPostStartHook: stopping container {container}"),
            StopCause::RestartAll => format!("Container {container} restarts with all containers of its pod"),
            StopCause::Resize => format!("Container {container} restarts to be resized"),
            StopCause::Changed => format!("Container {container} definition changed, will be restarted"),
        };
        Ok(vec![Note::normal("Killing", text).about(container)])
    }
}
