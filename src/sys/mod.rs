//! The kernel's interfaces, and the only place with unsafe code; each block says why it is sound.

pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod fs;
pub mod idmap;
pub mod inotify;
pub mod keyfile;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod ntp;
pub mod overlay;
pub mod pause;
pub mod poll;
pub mod process;
pub mod socket;
