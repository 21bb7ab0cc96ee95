//! Images of the control plane's programs, and of Debian's, made here: there is no registry.

use super::plane::found;
use crate::harness::{append, docker_archive, output, secs};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The image of the control plane's parts; each is a command of it.
pub const CONTROL_PLANE: &str = "controlplane:1";
/// The image of kubeadm's kube-proxy add-on.
pub const KUBE_PROXY: &str = "registry.k8s.io/kube-proxy:v1.36.3";
/// Debian's, in a folder that images have on their PATH.
const NFT: [&str; 2] = ["/usr/sbin/nft", "/sbin/nft"];

/// A docker-archive with [`CONTROL_PLANE`] and [`KUBE_PROXY`], made once per run.
pub fn control_plane() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let mut programs = Vec::new();
        let mut links = Vec::new();
        for name in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            let (path, in_one) = found(name);
            if in_one {
                links.push((format!("usr/local/bin/{name}"), "controlplane"));
                programs.push((path, "usr/local/bin/controlplane".to_owned()));
            } else {
                programs.push((path, format!("usr/local/bin/{name}")));
            }
        }
        programs.dedup();
        let nft = NFT.iter().map(PathBuf::from).find(|path| path.is_file());
        programs.push((nft.expect("nft is missing: apt-get install nftables"), "usr/sbin/nft".to_owned()));
        let layer = layer(&programs, &links);
        let config = json!({ "Env": ["PATH=/usr/local/bin:/usr/sbin"] });
        docker_archive("controlplane", &[(CONTROL_PLANE, config.clone()), (KUBE_PROXY, config)], &layer)
    })
}

/// Prometheus' node exporter of Debian's package, made by `cargo xtask image node-exporter`: archive and name.
pub fn node_exporter() -> (PathBuf, &'static str) {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images/node-exporter.tar");
    let path = std::env::var_os("CORACLE_NODE_EXPORTER_IMAGE").map_or(made, PathBuf::from);
    assert!(path.is_file(), "{} is missing: cargo xtask image node-exporter", path.display());
    (path, "docker.io/prom/node-exporter:latest")
}

/// Some of this machine's programs with the libraries that they name, and links beside them.
pub fn layer(programs: &[(PathBuf, String)], links: &[(String, &str)]) -> Vec<u8> {
    let mut libraries: BTreeSet<PathBuf> = BTreeSet::new();
    for (program, _) in programs {
        // A static program has none, which ldd takes for an error.
        let listed = output(Command::new("ldd").arg(program), b"", secs(10)).stdout;
        let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
        libraries.extend(paths.map(|path| PathBuf::from(path.trim_end_matches(':'))));
    }
    let mut builder = tar::Builder::new(Vec::new());
    for path in libraries {
        let inside = path.strip_prefix("/").expect("absolute").display().to_string();
        append(&mut builder, &inside, &fs::read(&path).expect("library"), 0o755);
    }
    for (program, inside) in programs {
        append(&mut builder, inside, &fs::read(program).expect("program"), 0o755);
    }
    for (link, target) in links {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        builder.append_link(&mut header, link, target).expect("link");
    }
    builder.into_inner().expect("layer")
}
