//! Scalars of configurations: Go durations, quantities, names, networks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A network of pod addresses, such as `10.83.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCidr {
    /// First address of the network; host bits are zero.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl PodCidr {
    /// The network used when none is configured.
    pub const DEFAULT: PodCidr = PodCidr { address: IpAddr::V4(std::net::Ipv4Addr::new(10, 83, 0, 0)), prefix: 16 };
}

impl fmt::Display for PodCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for PodCidr {
    type Err = String;

    fn from_str(text: &str) -> Result<PodCidr, String> {
        let (address, prefix) =
            text.split_once('/').ok_or_else(|| format!("{text:?} is not a network: want ADDRESS/PREFIX"))?;
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix.parse().map_err(|_| format!("{prefix:?} is not a prefix length"))?;
        if prefix == 0 || prefix > bits - 2 {
            return Err(format!("prefix /{prefix} leaves no room for a gateway and pods: want 1 to {}", bits - 2));
        }
        let network = match address {
            IpAddr::V4(v4) => IpAddr::from((u32::from(v4) & (u32::MAX << (32 - prefix))).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & (u128::MAX << (128 - prefix))).to_be_bytes()),
        };
        if network != address {
            return Err(format!("{text} has host bits set: did you mean {network}/{prefix}?"));
        }
        Ok(PodCidr { address, prefix })
    }
}

/// Which of a pod's namespaces a sysctl belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlGroup {
    /// The network namespace.
    Net,
    /// The IPC namespace.
    Ipc,
}

/// The namespace of a sysctl, by its name with dots; `None`: it is the whole machine's.
pub fn sysctl_group(name: &str) -> Option<SysctlGroup> {
    if name.starts_with("net.") {
        return Some(SysctlGroup::Net);
    }
    let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|group| name.starts_with(group));
    (of_ipc || name == "kernel.sem").then_some(SysctlGroup::Ipc)
}

/// Reads a quantity of bytes (`10Mi`, `500k`, `1048576`).
///
/// # Errors
/// Says what is wrong with the text; fractions that are no whole bytes are rounded up, as Kubernetes does.
pub fn quantity_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size such as 10Mi or 500k");
    let quantity = crate::manifest::Quantity::parse(text).map_err(|_| bad())?;
    // What is larger than any number of bytes reads as the largest.
    match u64::try_from(quantity.ceil()) {
        Ok(bytes) if bytes < i64::MAX as u64 => Ok(bytes),
        Ok(_) => Err(format!("{text:?} is too large")),
        Err(_) => Err(bad()),
    }
}

/// Reads `key=value,…`.
pub(super) fn labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not key=value"))?;
        let name = match key.split_once('/') {
            Some((prefix, name)) => {
                dns_subdomain(prefix).map_err(|reason| format!("prefix of label {key:?}: {reason}"))?;
                name
            }
            None => key,
        };
        if name.is_empty() || !label_text(name) {
            return Err(format!("{key:?} is not a label key"));
        }
        if !label_text(value) {
            return Err(format!("{value:?} is not a label value"));
        }
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("label {key:?} is given twice"));
        }
    }
    Ok(labels)
}

/// Whether the text is a label value (or the name part of a key): 63 characters, alphanumeric at both ends.
fn label_text(text: &str) -> bool {
    let ends = |c: Option<u8>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}

/// Checks for an RFC 1123 subdomain, Kubernetes' rule for object names.
pub(super) fn dns_subdomain(name: &str) -> Result<(), String> {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    if name.len() > 253 {
        return Err(format!("{name:?} is longer than 253 characters"));
    }
    if !name.split('.').all(label) {
        return Err(format!("{name:?} is not a DNS subdomain (lower case letters, digits, '-' and '.')"));
    }
    Ok(())
}

/// The kernel's rule for interface names, narrowed to what nobody has to quote.
pub(super) fn interface_name(name: &str) -> Result<(), String> {
    let fits = (1..=15).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
        && name != "."
        && name != "..";
    if fits {
        Ok(())
    } else {
        Err(format!("{name:?} is not an interface name (1 to 15 of letters, digits, '-', '_', '.')"))
    }
}

/// Makes a path absolute in form only: refuses relative ones, drops trailing slashes.
pub(super) fn absolute(path: &mut PathBuf) -> Result<(), String> {
    use std::path::Component;
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path", path.display()));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{} contains ..", path.display()));
    }
    *path = path.components().collect::<PathBuf>();
    if path == Path::new("/") {
        return Err("/ cannot be used".to_owned());
    }
    Ok(())
}
