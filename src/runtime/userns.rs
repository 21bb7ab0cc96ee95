//! `hostUsers: false`: which IDs of the machine a pod gets, and what cannot be combined with that.
//!
//! As the kubelet: 65536 IDs per pod, user and group alike, the container's 0 being a multiple of 65536 other than 0. The
//! record is `<root>/pods/<uid>/userns`, in the kubelet's format; it lives as long as the pod's folder, and all records
//! together are the list of what is taken. Files on disk never show these IDs (all mounts are idmapped), so that nothing
//! is lost with a record.

use super::{Layout, Runtime};
use crate::bundle::{Mount, Propagation, ResolvedUser, UserNamespace};
use crate::pod::Spec;
use crate::store;
use crate::sys::idmap::{self, CloneError, IDS};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Why a pod cannot have a user namespace, or a container not run in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record of this pod cannot be written.
    #[error("cannot record the pod's user IDs")]
    Record(#[from] store::Error),
    /// All multiples are taken.
    #[error("all ranges of user IDs are taken by other pods with hostUsers: false")]
    Exhausted,
    /// `/etc/subuid` and `/etc/subgid` have an entry that cannot be used.
    #[error("the entries of user kubelet in /etc/subuid and /etc/subgid cannot be used: {0}")]
    SubordinateIds(&'static str),
    /// A field that `hostUsers: false` excludes.
    #[error("hostUsers: false cannot be combined with {0}")]
    Excluded(&'static str),
    /// `Bidirectional` mounts.
    #[error("mountPropagation: Bidirectional has no effect with hostUsers: false: its mounts cannot reach the machine")]
    Propagation,
    /// An ID that the namespace does not have.
    #[error("{what} {id} does not exist with hostUsers: false (0 to 65535 do)")]
    NoSuchId {
        /// Which kind of ID.
        what: &'static str,
        /// The ID.
        id: u32,
    },
    /// The user namespace of the pod cannot be opened.
    #[error("cannot open {}", .0.display())]
    Namespace(PathBuf, #[source] io::Error),
    /// A mount's files would have wrong owners.
    #[error(transparent)]
    Mount(#[from] CloneError),
}

impl Error {
    /// Whether the pod as a whole is concerned, and not one of its containers.
    pub(super) fn is_of_sandbox(&self) -> bool {
        matches!(self, Error::Record(_) | Error::Exhausted | Error::SubordinateIds(_) | Error::Excluded(_))
    }
}

/// The record of a pod's IDs, as the kubelet writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

impl Record {
    fn of(slot: u32) -> Record {
        let mapping = vec![Mapping { host_id: slot * IDS, container_id: 0, length: IDS }];
        Record { uid_mappings: mapping.clone(), gid_mappings: mapping }
    }

    /// The multiple of 65536, if it is one that [`Record::of`] could have been given.
    fn slot(&self) -> Option<u32> {
        let slot = self.uid_mappings.first()?.host_id / IDS;
        (SLOTS.contains(&slot) && *self == Record::of(slot)).then_some(slot)
    }
}

/// Multiples of 65536 that can be given: not the machine's own users, and not the range with the ID that means none.
const SLOTS: RangeInclusive<u32> = 1..=65_534;

/// One allocation at a time: pods are set up side by side.
static ALLOCATION: Mutex<()> = Mutex::new(());

/// A multiple from `slots` that is not in `used`. Which one follows from the pod's UID, so that a pod whose record is lost,
/// or pods of two nodes on one machine, will hardly ever meet another's IDs.
fn choose(uid: &str, used: &BTreeSet<u32>, slots: &RangeInclusive<u32>) -> Option<u32> {
    let (first, last) = (*slots.start(), *slots.end());
    let count = u64::from(last.checked_sub(first)?) + 1;
    let digest = Sha256::digest(uid);
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let tries = (0..count).map(|step| (number % count + step) % count);
    tries.filter_map(|offset| u32::try_from(offset).ok()).map(|offset| first + offset).find(|slot| !used.contains(slot))
}

/// The multiples that may be given: all, or what `/etc/subuid` and `/etc/subgid` give to the user `kubelet` (as kubelet,
/// which asks `getsubids`).
fn allowed(subuid: &str, subgid: &str) -> Result<RangeInclusive<u32>, Error> {
    let entry = |text: &str| -> Option<(u32, u32)> {
        let mut fields = text.lines().find_map(|line| line.trim().strip_prefix("kubelet:"))?.split(':');
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let named = |text: &str| text.lines().any(|line| line.trim().starts_with("kubelet:"));
    let wrong = |why| Err(Error::SubordinateIds(why));
    match (entry(subuid), entry(subgid)) {
        (None, None) if !named(subuid) && !named(subgid) => Ok(SLOTS),
        (Some(users), Some(groups)) if users != groups => wrong("users and groups differ"),
        (Some((first, count)), Some(_)) => {
            if first % IDS != 0 || count % IDS != 0 || first == 0 || count == 0 {
                return wrong("first ID and count must be multiples of 65536 other than 0");
            }
            let slots = first / IDS..=(first / IDS).saturating_add(count / IDS - 1).min(*SLOTS.end());
            if slots.is_empty() { wrong("the range lies beyond the last ID") } else { Ok(slots) }
        }
        _ => wrong("both must have one, as kubelet:<first ID>:<count>"),
    }
}

/// The first ID on the machine of the pod `uid`: recorded before, or chosen and recorded now.
fn allocate(layout: &Layout, uid: &str, slots: &RangeInclusive<u32>) -> Result<u32, Error> {
    let _one_at_a_time = ALLOCATION.lock().unwrap_or_else(PoisonError::into_inner);
    let path = layout.userns(uid);
    let mut used = BTreeSet::new();
    for entry in std::fs::read_dir(layout.pods()).into_iter().flatten().flatten() {
        if entry.file_name() != uid {
            used.extend(read(&entry.path().join("userns")));
        }
    }
    // A record of this pod that collides can only have been copied or edited.
    if let Some(slot) = read(&path).filter(|slot| !used.contains(slot)) {
        return Ok(slot * IDS);
    }
    let slot = choose(uid, &used, slots).ok_or(Error::Exhausted)?;
    store::write(&path, &Record::of(slot), 0o600)?;
    Ok(slot * IDS)
}

/// The multiple in a record; a damaged one is told and does not count.
fn read(path: &Path) -> Option<u32> {
    match store::read::<Record>(path) {
        Ok(record) => {
            let slot = record.as_ref().and_then(Record::slot);
            if record.is_some() && slot.is_none() {
                tracing::warn!(path = %path.display(), "a record of user IDs does not hold what was written");
            }
            slot
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), error = super::chain(&error), "a record of user IDs cannot be read");
            None
        }
    }
}

impl Runtime {
    /// The pod's IDs, before its sandbox is made; `None` when it uses the machine's.
    pub(super) fn allocate_users(&self, spec: &Spec) -> Result<Option<u32>, Error> {
        let pod = spec.spec();
        if pod.host_users != Some(false) {
            return Ok(None);
        }
        let excluded = [
            ("hostNetwork", spec.host_network()),
            ("hostPID", pod.host_pid == Some(true)),
            ("hostIPC", pod.host_ipc == Some(true)),
            ("volumeDevices", spec.all_containers().any(|c| c.volume_devices.as_ref().is_some_and(|d| !d.is_empty()))),
        ];
        if let Some((field, _)) = excluded.into_iter().find(|(_, set)| *set) {
            return Err(Error::Excluded(field));
        }
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        let slots = allowed(&text("/etc/subuid"), &text("/etc/subgid"))?;
        allocate(&self.layout, spec.uid(), &slots).map(Some)
    }

    /// The user namespace that the pod's sandbox has; `None` for the machine's.
    pub(super) fn user_namespace(&self, spec: &Spec) -> Result<Option<UserNamespace>, Error> {
        if spec.spec().host_users != Some(false) {
            return Ok(None);
        }
        let slot = read(&self.layout.userns(spec.uid())).ok_or(Error::Namespace(
            self.layout.userns(spec.uid()),
            io::Error::other("the record of the pod's user IDs is gone; a new sandbox is needed"),
        ))?;
        Ok(Some(UserNamespace {
            path: self.layout.namespaces(spec.uid()).join(idmap::FILE),
            first_id: slot * IDS,
            ids: IDS,
        }))
    }
}

/// Refuses what would go wrong in a user namespace: told in words, before anything of the container is made.
pub(super) fn check(namespace: &UserNamespace, user: &ResolvedUser, mounts: &[Mount]) -> Result<(), Error> {
    let ids = [("user", user.uid), ("group", user.gid)].into_iter().chain(user.groups.iter().map(|id| ("group", *id)));
    for (what, id) in ids {
        if id >= IDS {
            return Err(Error::NoSuchId { what, id });
        }
    }
    if mounts.iter().any(|mount| mount.propagation == Propagation::Bidirectional) {
        return Err(Error::Propagation);
    }
    let file = File::open(&namespace.path).map_err(|source| Error::Namespace(namespace.path.clone(), source))?;
    // What is put together for one container only is looked at by the shim.
    for mount in mounts.iter().filter(|mount| mount.image.is_none()) {
        idmap::clone(&mount.source, file.as_fd())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_chosen_is_free_and_allowed(
            uid in "[a-z0-9-]{0,36}",
            used in proptest::collection::btree_set(1_u32..40, 0..40),
            first in 1_u32..40,
            more in 0_u32..40,
        ) {
            let slots = first..=first + more;
            match choose(&uid, &used, &slots) {
                Some(slot) => prop_assert!(slots.contains(&slot) && !used.contains(&slot)),
                None => prop_assert!(slots.into_iter().all(|slot| used.contains(&slot))),
            }
        }

        #[test]
        fn records_are_read_as_written_and_nothing_else_is(slot in SLOTS, other in any::<u32>()) {
            let record = Record::of(slot);
            prop_assert_eq!(record.slot(), Some(slot));
            let text = serde_json::to_string(&record).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<Record>(&text).expect("record"), &record);
            let mut bent = record;
            bent.gid_mappings[0].host_id = other;
            prop_assert_eq!(bent.slot().is_some(), other == slot * IDS);
            prop_assert!(u64::from(slot) * u64::from(IDS) + u64::from(IDS) <= u64::from(u32::MAX));
        }

        #[test]
        fn any_subordinate_ids_are_refused_or_good(users in "(kubelet:[0-9:x]{0,14}\n|a:1:2\n){0,3}", same in any::<bool>()) {
            let groups = if same { users.clone() } else { String::new() };
            if let Ok(slots) = allowed(&users, &groups) {
                prop_assert!(!slots.is_empty() && *slots.start() >= 1 && *slots.end() <= 65_534);
            }
        }
    }

    #[test]
    fn a_pod_keeps_its_ids_and_others_get_others() {
        let root = std::env::temp_dir().join(format!("coracle-userns-{}", std::process::id()));
        let layout = Layout { root: root.clone(), run: root.clone(), pod_logs: root.clone() };
        let make = |uid: &str| std::fs::create_dir_all(layout.pod(uid)).expect("folder");
        let two = 5..=6;
        for uid in ["a", "b", "c"] {
            make(uid);
        }
        let a = allocate(&layout, "a", &two).expect("range");
        let b = allocate(&layout, "b", &two).expect("range");
        assert_ne!(a, b);
        assert_eq!(a % IDS, 0);
        assert_eq!(allocate(&layout, "a", &two).expect("range"), a, "as after a restart");
        assert!(matches!(allocate(&layout, "c", &two), Err(Error::Exhausted)));
        std::fs::write(layout.userns("c"), "{").expect("damage");
        std::fs::remove_dir_all(layout.pod("b")).expect("removed");
        assert_eq!(allocate(&layout, "c", &two).expect("range"), b, "freed with its pod");
        std::fs::remove_dir_all(root).expect("clean");
    }

    #[test]
    fn subordinate_ids_of_kubelet_count() {
        assert_eq!(allowed("", "").expect("all"), SLOTS);
        assert_eq!(allowed("a:1:2\nkubelet:65536:131072\n", "kubelet:65536:131072").expect("range"), 1..=2);
        for (users, groups) in [
            ("kubelet:65536:131072", ""),
            ("kubelet:1:65536", "kubelet:1:65536"),
            ("kubelet:x", "kubelet:x"),
            ("kubelet:65536:65536", "kubelet:131072:65536"),
        ] {
            assert!(allowed(users, groups).is_err(), "{users} {groups}");
        }
    }
}
