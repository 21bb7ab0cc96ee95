//! Resizing a pod in place: its cgroups get the wanted amounts, then its record says so.

use super::{Error, Note, Runtime};
use crate::pod::resources::{self, CgroupSettings};
use crate::pod::{Instance, Record, Spec};

/// One group to change, with what it has now and what it is to have.
struct Change {
    path: String,
    container: bool,
    old: CgroupSettings,
    new: CgroupSettings,
}

impl Runtime {
    /// Give the pod that is there the wanted pod's cpu and memory. A limit grows for the pod first and shrinks for its
    /// containers first (as kubelet), so that no container is ever promised more than its pod has. The runs `restart` (by
    /// container ID) keep what they have, as they are to end for it: that is recorded together with the new amounts, and
    /// [`Runtime::settle_resize`] gives the pod what it could not have while they ran.
    ///
    /// # Errors
    /// [`Error::Resize`] when it cannot be done, or not now; nothing has been changed then. Else what was in the way; what
    /// was done so far is done again by the next attempt.
    pub(super) fn resize(&self, wanted: &Spec, restart: &[String]) -> Result<Vec<Note>, Error> {
        let uid = wanted.uid();
        let mut record = self.record(uid)?.ok_or_else(|| Error::Missing(format!("the record of pod {uid}")))?;
        record.resize_restarts.extend(restart.iter().cloned());
        let restart = record.resize_restarts.clone();
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
        let mut changes = match &record.sandbox {
            // Nothing runs: the next sandbox is made with the wanted amounts.
            None => Vec::new(),
            Some(sandbox) => self.changes(&record.pod, wanted, &sandbox.cgroup)?,
        };
        let (leaving, staying): (Vec<Change>, Vec<Change>) =
            changes.into_iter().partition(|change| restart.iter().any(|id| change.path.ends_with(id.as_str())));
        changes = staying;
        let leaving: u64 = leaving.iter().map(|change| self.cgroups.memory_in_use(&change.path)).sum();
        for change in &changes {
            let limit = change.new.memory_limit.and_then(|limit| u64::try_from(limit).ok());
            let used = self.cgroups.memory_in_use(&change.path);
            let used = if change.container { used } else { used.saturating_sub(leaving) };
            if let Some(limit) =
                limit.filter(|limit| change.new.memory_limit != change.old.memory_limit && used > *limit)
            {
                let what = if change.container { "a container" } else { "the pod" };
                let message =
                    format!("attempting to set {what}'s memory limit ({limit}) below its current usage ({used})");
                return refuse("Deferred", message);
            }
        }
        if let Some(pod) = changes.first_mut().filter(|_| !restart.is_empty()) {
            // What shrinks for the pod waits for those that leave.
            pod.new = wider(&pod.old, &pod.new);
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
        match crate::volume::refresh(wanted.pod(), &self.layout.volumes(uid), &self.given(wanted.pod())) {
            // Nothing that a resize could change; whoever follows the pod's objects tells of it.
            Err(error) if !error.is_missing() => return Err(error.into()),
            _ => {}
        }
        Ok(vec![Note::normal("ResizeCompleted", "Pod resize completed")])
    }

    /// Give the pod's group its exact amounts once none of the runs that had to end for them is left.
    pub(super) fn settle_resize(&self, mut record: Record) -> Result<(), Error> {
        let (Some(spec), Some(sandbox)) = (Spec::new(record.pod.clone()), &record.sandbox) else { return Ok(()) };
        let runs = spec.all_containers().flat_map(|container| self.instances(spec.uid(), &container.name));
        if runs.into_iter().any(|run| run.is_running() && record.resize_restarts.contains(&run.id)) {
            return Ok(());
        }
        let settings = self.resources.enforcement.pod(&record.pod)?;
        let path = &sandbox.cgroup;
        // Each container has its own limits; the pod's is one more. No reason to keep one of them from starting.
        if let Err(source) = self.cgroups.update(path, &settings, false) {
            let error = Error::Cgroup { path: path.clone(), source };
            tracing::warn!(error = error.chain(), "the pod as a whole keeps the limits from before its resize");
        }
        record.resize_restarts.clear();
        self.save(&record)
    }

    /// The pod's group, then those of its running containers.
    fn changes(
        &self,
        old: &k8s_openapi::api::core::v1::Pod,
        wanted: &Spec,
        cgroup: &str,
    ) -> Result<Vec<Change>, Error> {
        let enforcement = self.resources.enforcement;
        let mut changes = vec![Change {
            path: cgroup.to_owned(),
            container: false,
            old: enforcement.pod(old)?,
            new: enforcement.pod(wanted.pod())?,
        }];
        let Some(before) = Spec::new(old.clone()) else { return Ok(changes) };
        for container in wanted.all_containers() {
            let Some(was) = before.container(&container.name) else { continue };
            for run in self.instances(wanted.uid(), &container.name).iter().filter(|run| Instance::is_running(run)) {
                changes.push(Change {
                    path: resources::container_cgroup(cgroup, &run.id),
                    container: true,
                    old: enforcement.container(old, was)?,
                    new: enforcement.container(wanted.pod(), container)?,
                });
            }
        }
        Ok(changes)
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

/// The new settings, with the larger of both limits.
fn wider(old: &CgroupSettings, new: &CgroupSettings) -> CgroupSettings {
    // The periods are the same: the node's.
    let (quota, limit) = (old.cpu_quota.zip(new.cpu_quota), old.memory_limit.zip(new.memory_limit));
    CgroupSettings {
        cpu_quota: quota.map(|(old, new)| old.max(new)),
        memory_limit: limit.map(|(old, new)| old.max(new)),
        ..new.clone()
    }
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
    fn the_wider_of_two_settings_limits_only_where_both_do() {
        let of = |memory_limit, cpu_quota| CgroupSettings { memory_limit, cpu_quota, ..CgroupSettings::default() };
        assert_eq!(wider(&of(Some(3), Some(5)), &of(Some(2), Some(7))), of(Some(3), Some(7)));
        assert_eq!(wider(&of(Some(3), None), &of(None, Some(7))), of(None, None));
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
