//! Resizing a pod in place: its cgroups get the wanted amounts, then its record says so.

use super::{Error, Note, Runtime};
use crate::pod::resources::{self, CgroupSettings};
use crate::pod::{self, Instance, Spec};

/// One group to change, with what it has now and what it is to have.
struct Change {
    path: String,
    container: bool,
    old: CgroupSettings,
    new: CgroupSettings,
}

impl Runtime {
    /// Give the pod that is there the wanted pod's cpu and memory. A limit grows for the pod first and shrinks for its
    /// containers first (as kubelet), so that no container is ever promised more than its pod has. Containers that have to
    /// start anew for it are the plan's business.
    ///
    /// # Errors
    /// [`Error::Resize`] when it cannot be done, or not now; nothing has been changed then. Else what was in the way; what
    /// was done so far is done again by the next attempt.
    pub(super) fn resize(&self, wanted: &Spec) -> Result<Vec<Note>, Error> {
        let uid = wanted.uid();
        let mut record = self.record(uid)?.ok_or_else(|| Error::Missing(format!("the record of pod {uid}")))?;
        let refuse = |reason, message| Err(Error::Resize { reason, message });
        if resources::qos(&record.pod)? != resources::qos(wanted.pod())? {
            return refuse("Infeasible", "a resize must not change the QoS class of a pod".to_owned());
        }
        let total = resources::effective(wanted.pod())?.requests;
        let allocatable = &self.resources.allocatable;
        for (name, request, has) in [
            ("cpu", total.cpu_milli.unwrap_or(0), allocatable.cpu_milli),
            ("memory", total.memory.unwrap_or(0), allocatable.memory),
        ] {
            if request > has {
                let message =
                    format!("Node didn't have enough capacity: {name}, requested: {request}, capacity: {has}");
                return refuse("Infeasible", message);
            }
        }
        let (mut changes, leaving) = match &record.sandbox {
            // Nothing runs: the next sandbox is made with the wanted amounts.
            None => (Vec::new(), Vec::new()),
            Some(sandbox) => self.changes(&record.pod, wanted, &sandbox.cgroup)?,
        };
        let given_back = leaving.iter().map(|path| self.cgroups.memory_in_use(path)).sum::<u64>();
        for change in &mut changes {
            let limit = change.new.memory_limit.and_then(|limit| u64::try_from(limit).ok());
            let limit = limit.filter(|_| change.new.memory_limit != change.old.memory_limit);
            let now = self.cgroups.memory_in_use(&change.path);
            let used = if change.container { now } else { now.saturating_sub(given_back) };
            if limit.is_some_and(|limit| now > limit && used <= limit) {
                // As soon as what starts anew for it has gone: see `settle_memory`.
                change.new.memory_limit = change.old.memory_limit;
            } else if let Some(limit) = limit.filter(|limit| used > *limit) {
                let what = if change.container { "a container" } else { "the pod" };
                let message =
                    format!("attempting to set {what}'s memory limit ({limit}) below its current usage ({used})");
                return refuse("Deferred", message);
            }
        }
        for part in [cpu, memory] {
            let Some(pod) = changes.first() else { break };
            let grows = grows(&part(&pod.old), &part(&pod.new));
            let order: Box<dyn Iterator<Item = &Change>> =
                if grows { Box::new(changes.iter()) } else { Box::new(changes.iter().rev()) };
            for change in order {
                let settings = step(&part(&change.old), &part(&change.new));
                self.cgroups
                    .update(&change.path, &settings, change.container)
                    .map_err(|source| Error::Cgroup { path: change.path.clone(), source })?;
            }
        }
        let seen = record.pod.metadata.annotations.as_ref().and_then(|a| a.get(SEEN)).cloned();
        record.pod = wanted.pod().clone();
        if let Some(seen) = seen {
            record.pod.metadata.annotations.get_or_insert_default().insert(SEEN.to_owned(), seen);
        }
        self.save(&record)?;
        crate::volume::refresh(wanted.pod(), &self.layout.volumes(uid), &self.node_facts(Vec::new()).allocatable)?;
        Ok(vec![Note::normal("ResizeCompleted", "Pod resize completed")])
    }

    /// Before a container starts again: a resize may have left the pod more memory than it is to have while the run
    /// before was still there.
    pub(super) fn settle_memory(&self, spec: &Spec) {
        let settle = || {
            let path = self.pod_cgroup(spec.uid(), spec)?;
            let limit = memory(&self.resources.enforcement.pod(spec.pod())?);
            self.cgroups.update(&path, &limit, false).map_err(|source| Error::Cgroup { path, source })
        };
        if let Err(error) = settle() {
            tracing::warn!(error = error.chain(), "the memory limit of pod {} is not what it should be", spec.key());
        }
    }

    /// The pod's group, then those of its running containers; apart, the groups of those that start anew for it, and so
    /// keep their memory for as long as they are there.
    fn changes(
        &self,
        old: &k8s_openapi::api::core::v1::Pod,
        wanted: &Spec,
        cgroup: &str,
    ) -> Result<(Vec<Change>, Vec<String>), Error> {
        let mut leaving = Vec::new();
        let enforcement = self.resources.enforcement;
        let mut changes = vec![Change {
            path: cgroup.to_owned(),
            container: false,
            old: enforcement.pod(old)?,
            new: enforcement.pod(wanted.pod())?,
        }];
        let Some(before) = Spec::new(old.clone()) else { return Ok((changes, leaving)) };
        let anew: Vec<&str> = pod::restarts(&before, wanted).map(|container| container.name.as_str()).collect();
        for container in wanted.all_containers() {
            let Some(was) = before.container(&container.name) else { continue };
            for run in self.instances(wanted.uid(), &container.name).iter().filter(|run| Instance::is_running(run)) {
                let path = resources::container_cgroup(cgroup, &run.id);
                let (old, mut new) =
                    (enforcement.container(old, was)?, enforcement.container(wanted.pod(), container)?);
                if anew.contains(&container.name.as_str()) {
                    new.memory_limit = old.memory_limit;
                    leaving.push(path.clone());
                }
                changes.push(Change { path, container: true, old, new });
            }
        }
        Ok((changes, leaving))
    }
}

/// When the node first saw the pod: not part of the wanted pod.
const SEEN: &str = "kubernetes.io/config.seen";

fn cpu(settings: &CgroupSettings) -> CgroupSettings {
    CgroupSettings {
        cpu_shares: settings.cpu_shares,
        cpu_quota: settings.cpu_quota,
        cpu_period: settings.cpu_period,
        ..CgroupSettings::default()
    }
}

fn memory(settings: &CgroupSettings) -> CgroupSettings {
    CgroupSettings { memory_limit: settings.memory_limit, ..CgroupSettings::default() }
}

/// Whether a limit becomes larger; none at all is the largest.
fn grows(old: &CgroupSettings, new: &CgroupSettings) -> bool {
    let larger = |old: Option<i64>, new: Option<i64>| match (old, new) {
        (Some(old), Some(new)) => new > old,
        (old, new) => old.is_some() && new.is_none(),
    };
    larger(old.memory_limit, new.memory_limit) || larger(old.cpu_quota, new.cpu_quota)
}

/// What to write: a limit that is gone has to be taken back explicitly.
fn step(old: &CgroupSettings, new: &CgroupSettings) -> CgroupSettings {
    let lifted = |old: Option<i64>, new: Option<i64>| new.or(old.map(|_| -1));
    CgroupSettings {
        cpu_quota: lifted(old.cpu_quota, new.cpu_quota),
        memory_limit: lifted(old.memory_limit, new.memory_limit),
        ..new.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_gone_is_lifted() {
        let limited = CgroupSettings { memory_limit: Some(10), cpu_quota: Some(5), ..CgroupSettings::default() };
        let free = CgroupSettings::default();
        let lifted = step(&limited, &free);
        assert_eq!((lifted.memory_limit, lifted.cpu_quota), (Some(-1), Some(-1)));
        assert_eq!(step(&free, &free), free, "what was never limited is left alone");
        assert_eq!(step(&free, &limited), limited);
    }

    #[test]
    fn no_limit_is_the_largest() {
        let of = |memory_limit| CgroupSettings { memory_limit, ..CgroupSettings::default() };
        for (old, new, expected) in [
            (Some(1), Some(2), true),
            (Some(2), Some(1), false),
            (Some(1), None, true),
            (None, Some(1), false),
            (None, None, false),
        ] {
            assert_eq!(grows(&of(old), &of(new)), expected, "{old:?} {new:?}");
        }
    }
}
