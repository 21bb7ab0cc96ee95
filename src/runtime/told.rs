//! What was told of a pod's conditions: a small file beside the shim, for the next agent.

use super::sandbox::write_private;
use super::{Error, Runtime};
use crate::pod::Told;
use crate::store;
use crate::sys::clock;
use k8s_openapi::api::core::v1::PodCondition;
use std::io::ErrorKind;

impl Runtime {
    /// What was last told of a pod's conditions, in this life of its sandbox; empty: nothing is known.
    #[must_use]
    pub fn told(&self, uid: &str) -> Vec<PodCondition> {
        // A damaged file costs the truth about when a condition began, not the pod.
        let told = store::read::<Told>(&self.layout.told(uid)).ok().flatten();
        told.map(|told| clock::recall(told).conditions).unwrap_or_default()
    }

    /// Writes down what is told. Volatile: the file need not outlive the machine. Once the sandbox has gone, nothing is
    /// written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_told(&self, uid: &str, conditions: Vec<PodCondition>) -> Result<(), Error> {
        let path = self.layout.told(uid);
        let staged = path.with_extension("new");
        let write = || {
            write_private(&staged, &serde_json::to_vec(&clock::inscribe(Told { conditions, clock: None }))?)?;
            std::fs::rename(&staged, &path)
        };
        match write() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| Error::File { what: "write", path, source }),
        }
    }
}
