//! Which Linux capabilities a container gets (as containerd's CRI plugin).

use super::Error;
use k8s_openapi::api::core::v1::Capabilities;
use oci_spec::runtime::Capability;
use std::collections::BTreeSet;

/// Name without `CAP_`, number in the kernel, and what the runtime spec calls it.
const ALL: [(&str, u32, Capability); 41] = [
    ("CHOWN", 0, Capability::Chown),
    ("DAC_OVERRIDE", 1, Capability::DacOverride),
    ("DAC_READ_SEARCH", 2, Capability::DacReadSearch),
    ("FOWNER", 3, Capability::Fowner),
    ("FSETID", 4, Capability::Fsetid),
    ("KILL", 5, Capability::Kill),
    ("SETGID", 6, Capability::Setgid),
    ("SETUID", 7, Capability::Setuid),
    ("SETPCAP", 8, Capability::Setpcap),
    ("LINUX_IMMUTABLE", 9, Capability::LinuxImmutable),
    ("NET_BIND_SERVICE", 10, Capability::NetBindService),
    ("NET_BROADCAST", 11, Capability::NetBroadcast),
    ("NET_ADMIN", 12, Capability::NetAdmin),
    ("NET_RAW", 13, Capability::NetRaw),
    ("IPC_LOCK", 14, Capability::IpcLock),
    ("IPC_OWNER", 15, Capability::IpcOwner),
    ("SYS_MODULE", 16, Capability::SysModule),
    ("SYS_RAWIO", 17, Capability::SysRawio),
    ("SYS_CHROOT", 18, Capability::SysChroot),
    ("SYS_PTRACE", 19, Capability::SysPtrace),
    ("SYS_PACCT", 20, Capability::SysPacct),
    ("SYS_ADMIN", 21, Capability::SysAdmin),
    ("SYS_BOOT", 22, Capability::SysBoot),
    ("SYS_NICE", 23, Capability::SysNice),
    ("SYS_RESOURCE", 24, Capability::SysResource),
    ("SYS_TIME", 25, Capability::SysTime),
    ("SYS_TTY_CONFIG", 26, Capability::SysTtyConfig),
    ("MKNOD", 27, Capability::Mknod),
    ("LEASE", 28, Capability::Lease),
    ("AUDIT_WRITE", 29, Capability::AuditWrite),
    ("AUDIT_CONTROL", 30, Capability::AuditControl),
    ("SETFCAP", 31, Capability::Setfcap),
    ("MAC_OVERRIDE", 32, Capability::MacOverride),
    ("MAC_ADMIN", 33, Capability::MacAdmin),
    ("SYSLOG", 34, Capability::Syslog),
    ("WAKE_ALARM", 35, Capability::WakeAlarm),
    ("BLOCK_SUSPEND", 36, Capability::BlockSuspend),
    ("AUDIT_READ", 37, Capability::AuditRead),
    ("PERFMON", 38, Capability::Perfmon),
    ("BPF", 39, Capability::Bpf),
    ("CHECKPOINT_RESTORE", 40, Capability::CheckpointRestore),
];

/// What a container has that asks for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities, one bit each, numbered as the kernel does (`CapPrm` of `/proc/self/status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Set(u64);

impl Set {
    pub(super) fn has(self, name: &str) -> bool {
        ALL.iter().any(|(n, bit, _)| *n == name && self.0 & (1 << bit) != 0)
    }

    pub(super) fn spec(self) -> std::collections::HashSet<Capability> {
        ALL.iter().filter(|(_, bit, _)| self.0 & (1 << bit) != 0).map(|(_, _, c)| *c).collect()
    }
}

/// A name of the PodSpec, with or without `CAP_`, in any case, as its bit.
fn bit(name: &str) -> Result<u64, Error> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let found = ALL.iter().find(|(n, _, _)| *n == plain);
    found.map(|(_, bit, _)| 1 << bit).ok_or_else(|| Error::UnknownCapability(name.to_owned()))
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

/// The capabilities of a container. `held` are those of this process: what it lacks, nobody can be given. That is an
/// error for a capability that is asked for by name; `ALL` and privileged get what there is.
///
/// `mknod` says whether device nodes may be part of the default set: without a device cgroup a node once made could
/// also be opened.
pub(super) fn resolve(asked: Option<&Capabilities>, privileged: bool, held: u64, mknod: bool) -> Result<Set, Error> {
    let add: BTreeSet<&str> = asked.and_then(|c| c.add.as_ref()).into_iter().flatten().map(String::as_str).collect();
    let drop: BTreeSet<&str> = asked.and_then(|c| c.drop.as_ref()).into_iter().flatten().map(String::as_str).collect();
    let every = ALL.iter().fold(0, |set, (_, bit, _)| set | 1 << bit);
    let mut set = 0;
    for name in DEFAULT {
        if name != "MKNOD" || mknod {
            set |= bit(name)?;
        }
    }
    if add.iter().any(|n| is_all(n)) {
        set = every;
    }
    if drop.iter().any(|n| is_all(n)) {
        set = 0;
    }
    for name in add.iter().filter(|n| !is_all(n)) {
        let one = bit(name)?;
        if held & one == 0 {
            return Err(Error::CapabilityNotHeld((*name).to_owned()));
        }
        set |= one;
    }
    for name in drop.iter().filter(|n| !is_all(n)) {
        set &= !bit(name)?;
    }
    Ok(Set(if privileged { every } else { set } & held))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(add: &[&str], drop: &[&str]) -> Result<Vec<&'static str>, Error> {
        let list = |names: &[&str]| Some(names.iter().map(|n| (*n).to_owned()).collect());
        let set = resolve(Some(&Capabilities { add: list(add), drop: list(drop) }), false, u64::MAX, true)?;
        Ok(ALL.iter().filter(|(n, _, _)| set.has(n)).map(|(n, _, _)| *n).collect())
    }

    #[test]
    fn adding_and_dropping() {
        assert_eq!(asked(&[], &[]).expect("defaults").len(), DEFAULT.len());
        assert_eq!(asked(&[], &["ALL"]).expect("none"), [""; 0]);
        assert_eq!(asked(&["NET_BIND_SERVICE"], &["all"]).expect("one"), ["NET_BIND_SERVICE"]);
        assert_eq!(asked(&["cap_sys_time"], &["ALL"]).expect("one"), ["SYS_TIME"]);
        assert_eq!(asked(&["ALL"], &[]).expect("all").len(), ALL.len());
        assert_eq!(asked(&["ALL"], &["SYS_ADMIN"]).expect("all but one").len(), ALL.len() - 1);
        assert!(matches!(asked(&["FLY"], &[]), Err(Error::UnknownCapability(n)) if n == "FLY"));
        assert!(matches!(asked(&[], &["FLY"]), Err(Error::UnknownCapability(n)) if n == "FLY"));
    }

    #[test]
    fn nobody_is_given_what_this_process_lacks() {
        let without_resource = !(1_u64 << 24);
        assert!(!resolve(None, true, without_resource, true).expect("privileged").has("SYS_RESOURCE"));
        let add = Capabilities { add: Some(vec!["SYS_RESOURCE".into()]), drop: None };
        assert!(matches!(resolve(Some(&add), false, without_resource, true), Err(Error::CapabilityNotHeld(_))));
    }

    #[test]
    fn no_device_nodes_without_a_device_cgroup() {
        assert!(!resolve(None, false, u64::MAX, false).expect("defaults").has("MKNOD"));
        let add = Capabilities { add: Some(vec!["MKNOD".into()]), drop: None };
        assert!(resolve(Some(&add), false, u64::MAX, false).expect("asked for").has("MKNOD"));
    }

    #[test]
    fn numbers_are_a_permutation() {
        assert!(ALL.iter().enumerate().all(|(i, (_, bit, _))| i as u32 == *bit));
        assert!(ALL.iter().all(|(name, _, c)| c.to_string() == *name));
    }

    proptest! {
        #[test]
        fn a_dropped_capability_is_never_there(add in proptest::collection::vec(0..ALL.len(), 0..9), drop in 0..ALL.len()) {
            let add: Vec<&str> = add.into_iter().map(|i| ALL[i].0).collect();
            let set = asked(&add, &[ALL[drop].0]).expect("known names");
            prop_assert!(!set.contains(&ALL[drop].0));
            prop_assert!(add.iter().filter(|n| **n != ALL[drop].0).all(|n| set.contains(n)));
        }

        #[test]
        fn names_never_panic(name in "\\PC*") {
            let _ = asked(&[&name], &[&name]);
        }
    }
}
