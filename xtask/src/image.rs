//! `cargo xtask image`: images made from Debian's packages, without a registry. Cached in `target/images/`.

use crate::{archive, debian, shell};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub fn run(which: &str, out: Option<&str>) -> Result<()> {
    let cached = make(which)?;
    match out {
        Some(out) => {
            // Copying a file onto itself would empty it.
            if fs::canonicalize(out).is_ok_and(|out| out == cached) {
                println!("{out}");
                return Ok(());
            }
            fs::copy(&cached, out).with_context(|| format!("cannot write {out}"))?;
            println!("{out}");
        }
        None => println!("{}", cached.display()),
    }
    Ok(())
}

/// The archive of an image, made when it is not there yet.
pub fn make(which: &str) -> Result<PathBuf> {
    let out = shell::root().join("target/images").join(format!("{which}.tar"));
    if out.metadata().is_ok_and(|m| m.len() > 0) {
        return Ok(out);
    }
    let work = shell::root().join("target/images").join(format!("{which}.work"));
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(work.join("rootfs"))?;
    match which {
        "nginx" => nginx(&work, &out)?,
        "node-exporter" => node_exporter(&work, &out)?,
        "busybox" => busybox(&work, &out)?,
        other => bail!("no such image: {other} (there are nginx, node-exporter and busybox)"),
    }
    fs::remove_dir_all(&work)?;
    Ok(out)
}

/// Unpacks busybox and a link per applet below `rootfs`.
pub fn busybox_rootfs(rootfs: &Path) -> Result<()> {
    debian::install(&[&[debian::BUSYBOX]])?;
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|p| p.is_file());
    let program = program.context("busybox was not found after its installation")?;
    for dir in ["bin", "etc", "tmp", "dev", "proc", "sys"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    fs::copy(program, rootfs.join("bin/busybox"))?;
    fs::set_permissions(rootfs.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    for applet in shell::read(Command::new(program).arg("--list"))?.lines() {
        if applet != "busybox" && !applet.contains('/') {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

fn busybox(work: &Path, out: &Path) -> Result<()> {
    let rootfs = work.join("rootfs");
    busybox_rootfs(&rootfs)?;
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
    archive::write(out, "docker.io/library/busybox:latest", &rootfs, &config)
}

/// Prometheus' node exporter, as its package gives it.
fn node_exporter(work: &Path, out: &Path) -> Result<()> {
    let rootfs = work.join("rootfs");
    unpack(work, &rootfs, &["prometheus-node-exporter", "libc6", "base-passwd"])?;
    users(&rootfs)?;
    let config = json!({
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": ["prometheus-node-exporter"],
        "ExposedPorts": { "9100/tcp": {} },
        "User": "nobody",
    });
    archive::write(out, "docker.io/prom/node-exporter:latest", &rootfs, &config)
}

/// Packages and the libraries that they need, without documentation, below `rootfs`.
fn unpack(work: &Path, rootfs: &Path, packages: &[&str]) -> Result<()> {
    debian::install(&[&[debian::DPKG]])?;
    let packages = closure(packages)?;
    println!("packages: {}", packages.iter().map(String::as_str).collect::<Vec<_>>().join(" "));
    let mut download = Command::new("apt-get");
    download
        .arg("download")
        .args(&packages)
        .current_dir(work)
        .stdin(Stdio::null())
        .env("DEBIAN_FRONTEND", "noninteractive");
    // Packages are written by an unprivileged user unless the folder is root's only; that warning is of no interest.
    download.args(["-o", "APT::Sandbox::User=root"]);
    if shell::read(&mut download).is_err() {
        shell::step(Command::new("apt-get").arg("update"))?;
        shell::read(&mut download)?;
    }
    // Merged /usr, as every Debian system: the packages' /bin and /lib land in /usr.
    for dir in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(rootfs.join("usr").join(dir))?;
        symlink(format!("usr/{dir}"), rootfs.join(dir))?;
    }
    for entry in fs::read_dir(work)?.collect::<std::io::Result<Vec<_>>>()? {
        if entry.path().extension().is_some_and(|e| e == "deb") {
            extract(&entry.path(), rootfs)?;
        }
    }
    for dir in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug"] {
        let path = rootfs.join(dir);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    for dir in ["dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    Ok(())
}

/// The users of every Debian system.
fn users(rootfs: &Path) -> Result<()> {
    for (file, source) in [("passwd", "passwd.master"), ("group", "group.master")] {
        fs::copy(rootfs.join("usr/share/base-passwd").join(source), rootfs.join("etc").join(file))?;
    }
    Ok(())
}

/// nginx-light with everything it depends on, as its packages give it.
fn nginx(work: &Path, out: &Path) -> Result<()> {
    let rootfs = work.join("rootfs");
    unpack(work, &rootfs, &["nginx-light", "nginx-common", "libc6", "base-passwd"])?;
    for dir in ["var/log/nginx", "var/lib/nginx", "etc/nginx/modules-enabled"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    symlink("/dev/stdout", rootfs.join("var/log/nginx/access.log"))?;
    symlink("/dev/stderr", rootfs.join("var/log/nginx/error.log"))?;
    // What the packages' maintainer scripts would have done: users, default site, page.
    users(&rootfs)?;
    let site = rootfs.join("etc/nginx/sites-enabled/default");
    if fs::symlink_metadata(&site).is_err() {
        fs::create_dir_all(rootfs.join("etc/nginx/sites-enabled"))?;
        symlink("/etc/nginx/sites-available/default", site)?;
    }
    fs::create_dir_all(rootfs.join("var/www/html"))?;
    fs::copy(rootfs.join("usr/share/nginx/html/index.html"), rootfs.join("var/www/html/index.html"))?;
    let config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": ["nginx", "-g", "daemon off;"],
        "ExposedPorts": { "80/tcp": {} },
        "StopSignal": "SIGQUIT",
    });
    archive::write(out, "docker.io/library/nginx:latest", &rootfs, &config)
}

/// Unpacks a package through the links of a merged `/usr` (`dpkg-deb -x` would replace them by folders).
fn extract(package: &Path, rootfs: &Path) -> Result<()> {
    let mut unpack = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn()?;
    let stream = unpack.stdout.take().context("dpkg-deb has no output")?;
    let status = Command::new("tar")
        .args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"])
        .arg(rootfs)
        .stdin(stream)
        .status()?;
    if !unpack.wait()?.success() || !status.success() {
        bail!("cannot unpack {}", package.display());
    }
    Ok(())
}

/// The packages that `start` needs to run: libraries, not what installs or configures them.
fn closure(start: &[&str]) -> Result<BTreeSet<String>> {
    let mut all: BTreeSet<String> = BTreeSet::new();
    let mut todo: Vec<String> = start.iter().map(|s| s.to_string()).collect();
    while let Some(package) = todo.pop() {
        if !all.insert(package.clone()) {
            continue;
        }
        let text = shell::read(Command::new("apt-cache").args(["show", "--no-all-versions", &package]))
            .with_context(|| format!("package {package} is not known (apt-get update?)"))?;
        let depends =
            text.lines().filter_map(|l| l.strip_prefix("Depends:").or_else(|| l.strip_prefix("Pre-Depends:")));
        for one in depends.flat_map(|d| d.split(',')) {
            let first = one.split('|').next().unwrap_or_default().trim();
            let name = first.split([' ', '(', ':']).next().unwrap_or_default();
            let library = name == "zlib1g" || name.starts_with("lib") && !name.starts_with("libdebconf");
            // nginx-abi-… is a name that nginx provides, no package.
            if library || name == "nginx" || name == "nginx-common" {
                todo.push(name.to_owned());
            }
        }
    }
    Ok(all)
}
