//! Device rules of a container, where libcontainer does not enforce them, or not these.

use super::cgroup;
use crate::bundle::devices::{READ, Rule, STANDARD, TUN, WRITE, permits};
use crate::sys::bpf;
use libcontainer::oci_spec::runtime::LinuxDeviceCgroup;
use std::fs;
use std::io;

/// Puts the rules of a runtime spec, and the standard ones after them, in force for all processes of a cgroup, now and
/// later. Without any rule nothing is done.
///
/// # Errors
/// When they are not in force: the container must not run then.
pub(super) fn enforce(cgroup: &str, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let mut rules = rules.iter().map(Rule::of_spec).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    rules.extend(STANDARD);
    let folders = cgroup::folders(cgroup)?;
    if let Some(v1) = folders.iter().find(|dir| dir.join("devices.deny").exists()) {
        if !permits(&rules, TUN, READ | WRITE) {
            fs::write(v1.join("devices.deny"), format!("c {}:{} rw", TUN.major, TUN.minor))?;
        }
        return Ok(());
    }
    let everything = Rule { allow: true, kind: None, major: None, minor: None, access: crate::bundle::devices::FULL };
    if rules.first() == Some(&everything) && rules.iter().all(|rule| rule.allow) {
        return Ok(());
    }
    let v2 = folders.iter().find(|dir| dir.join("cgroup.controllers").exists());
    let v2 = v2.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("cgroup {cgroup} is gone")))?;
    let program = bpf::assemble(&rules).map_err(io::Error::other)?;
    bpf::attach(v2, &program)
}
