//! Leases on disk: one record per address under `<state_dir>/leases`, named after it.
//!
//! A record appears and changes by rename, so a killed agent leaves the old one or the new one. Nothing is synced: a
//! lease matters while its pod's links exist, and those do not survive a power cut either. A record that a power cut
//! did leave torn still blocks its address, by its name.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PortMapping;
use super::ipam::Lease;

/// Where the round robin stands.
const CURSOR: &str = "last";
/// More than any pod's ports can take; a larger file is not a record.
const LARGEST: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortMapping>,
}

/// The directory of lease records.
#[derive(Debug, Clone)]
pub struct Records {
    state_dir: PathBuf,
    leases: PathBuf,
}

impl Records {
    /// Records under `state_dir`, which need not exist yet.
    pub fn new(state_dir: &Path) -> Records {
        Records { state_dir: state_dir.to_owned(), leases: state_dir.join("leases") }
    }

    /// All recorded leases. A record that cannot be read is one with an empty UID; names that are no addresses
    /// (temporary files of a killed writer) are removed.
    pub fn load(&self) -> io::Result<Vec<(Ipv4Addr, Lease)>> {
        let entries = match fs::read_dir(&self.leases) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut leases = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let Some(address) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Ipv4Addr>().ok())
            else {
                let _ = fs::remove_file(&path);
                continue;
            };
            let lease = match read(&path) {
                Ok(record) if !record.uid.is_empty() => Lease { uid: record.uid, ports: record.ports },
                Ok(_) => Lease { uid: String::new(), ports: Vec::new() },
                Err(error) => {
                    tracing::warn!(record = %path.display(), %error, "unreadable lease: its address stays blocked until no pod claims it");
                    Lease { uid: String::new(), ports: Vec::new() }
                }
            };
            leases.push((address, lease));
        }
        leases.sort_by_key(|(address, _)| *address);
        Ok(leases)
    }

    /// The address that was handed out last, if known.
    pub fn last(&self) -> Option<Ipv4Addr> {
        fs::read_to_string(self.state_dir.join(CURSOR)).ok()?.trim().parse().ok()
    }

    /// Records a lease; `newest` when its address has just been handed out.
    pub fn save(&self, address: Ipv4Addr, lease: &Lease, newest: bool) -> io::Result<()> {
        let record = Record { uid: lease.uid.clone(), ports: lease.ports.clone() };
        let bytes = serde_json::to_vec(&record).map_err(io::Error::other)?;
        if let Err(e) = replace(&self.leases, &address.to_string(), &bytes) {
            if e.kind() != io::ErrorKind::NotFound {
                return Err(e);
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&self.leases)?;
            replace(&self.leases, &address.to_string(), &bytes)?;
        }
        if newest {
            replace(&self.state_dir, CURSOR, address.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Removes a lease's record, if there is one.
    pub fn remove(&self, address: Ipv4Addr) -> io::Result<()> {
        match fs::remove_file(self.leases.join(address.to_string())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes everything.
    pub fn remove_all(&self) -> io::Result<()> {
        for (address, _) in self.load()? {
            self.remove(address)?;
        }
        for gone in [fs::remove_dir(&self.leases), fs::remove_file(self.state_dir.join(CURSOR))] {
            match gone {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.len() > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too large for a lease"));
    }
    serde_json::from_reader(io::BufReader::new(file)).map_err(io::Error::from)
}

fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let staged = dir.join(format!(".{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(bytes)?;
    fs::rename(&staged, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("coracle-lease-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn records_survive_and_torn_ones_block_their_address() {
        let scratch = Scratch::new("survive");
        let records = Records::new(&scratch.0.join("net"));
        assert!(records.load().unwrap().is_empty());
        let ports = vec![PortMapping {
            host_ip: Some("192.0.2.1".parse().unwrap()),
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Sctp,
        }];
        let lease = Lease { uid: "a".into(), ports };
        let (first, second) = ("10.0.0.2".parse().unwrap(), "10.0.0.10".parse().unwrap());
        records.save(first, &lease, true).unwrap();
        records.save(second, &Lease { uid: "b".into(), ports: vec![] }, true).unwrap();
        fs::write(records.leases.join("10.0.0.3"), "{\"uid\":\"c").unwrap();
        fs::write(records.leases.join(".10.0.0.4.new"), "").unwrap();

        let records = Records::new(&scratch.0.join("net"));
        let loaded = records.load().unwrap();
        assert_eq!(
            loaded.iter().map(|(a, l)| format!("{a}={}", l.uid)).collect::<Vec<_>>(),
            ["10.0.0.2=a", "10.0.0.3=", "10.0.0.10=b"]
        );
        assert_eq!(loaded[0].1, lease);
        assert_eq!(records.last(), Some(second));
        assert!(!records.leases.join(".10.0.0.4.new").exists());

        records.remove(first).unwrap();
        records.remove(first).unwrap();
        records.remove_all().unwrap();
        records.remove_all().unwrap();
        assert_eq!(fs::read_dir(scratch.0.join("net")).unwrap().count(), 0);
    }
}
