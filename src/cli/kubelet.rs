//! The program under the kubelet's name, as kubeadm and its unit files call it.

use std::ffi::OsString;
use std::path::Path;

/// The release whose behaviour is followed, as kubeadm compares it with its own.
const RELEASE: &str = "v1.36.3";
/// Where a kubelet keeps certificates, which kubeadm knows.
const CERT_DIR: &str = "/var/lib/kubelet/pki";

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// `kubelet --version`.
    Version,
    /// This one.
    Run(Vec<OsString>),
}

/// Reads a command line: under the kubelet's name all flags are the agent's.
pub(super) fn arguments(args: Vec<OsString>) -> Asked {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    if name.is_none_or(|name| name != "kubelet") {
        return Asked::Run(args);
    }
    let given = |flag: &str| {
        let with_value = format!("{flag}=");
        args.iter().skip(1).filter_map(|arg| arg.to_str()).any(|arg| arg == flag || arg.starts_with(&with_value))
    };
    if given("--version") {
        return Asked::Version;
    }
    let mut all: Vec<OsString> = vec!["kubelet".into(), "agent".into()];
    if !given("--cert-dir") {
        all.push(format!("--cert-dir={CERT_DIR}").into());
    }
    all.extend(args.into_iter().skip(1));
    Asked::Run(all)
}

/// What kubeadm reads.
pub(super) fn version() -> String {
    format!("Kubernetes {RELEASE}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Asked {
        arguments(line.split(' ').map(OsString::from).collect())
    }

    fn run(line: &str) -> Asked {
        Asked::Run(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn under_the_kubelets_name_the_agent_runs() {
        assert_eq!(asked("/usr/bin/kubelet --version"), Asked::Version);
        assert_eq!(asked("kubelet --version=raw"), Asked::Version);
        assert_eq!(asked("/usr/bin/kubelet --v=2"), run("kubelet agent --cert-dir=/var/lib/kubelet/pki --v=2"));
        assert_eq!(asked("kubelet --cert-dir /x"), run("kubelet agent --cert-dir /x"));
        assert_eq!(asked("coracle --version"), run("coracle --version"));
        assert_eq!(version(), "Kubernetes v1.36.3\n");
    }
}
