//! `cargo xtask vm`: a Debian kernel in QEMU (software emulation) with nothing but cgroup v2, busybox and coracle.

use crate::{debian, image, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const APPLETS: &[&str] = &[
    "sh",
    "mount",
    "mkdir",
    "cp",
    "cat",
    "date",
    "echo",
    "sleep",
    "ls",
    "grep",
    "modprobe",
    "depmod",
    "poweroff",
    "switch_root",
    "head",
    "find",
    "ip",
    "sed",
    "kill",
    "rm",
    "test",
    "tail",
    "tr",
    "sort",
];
/// Folders of the kernel's modules that the checks need something of.
const MODULES: &[&str] = &["net", "fs/overlayfs", "drivers/net/veth.ko", "lib", "crypto"];

pub fn run() -> Result<()> {
    debian::install(&[debian::BUILD, &[debian::BUSYBOX, debian::QEMU, debian::CPIO, debian::DPKG]])?;
    let binary = shell::release()?;
    let work = shell::root().join("target/vm");
    let kernel = kernel(&work)?;
    let initrd = initrd(&work, &kernel, &binary)?;
    let image = fs::read_dir(kernel.join("boot"))?
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz")))
        .context("the kernel package has no kernel")?;
    let mut qemu = Command::new("timeout");
    qemu.args(["600", "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"])
        // No battery: the checks set the clock while pods run.
        .args(["-rtc", "base=1970-01-01T00:00:00"])
        .args(["-nographic", "-no-reboot", "-append", "console=ttyS0 panic=-1 quiet", "-kernel"])
        .arg(image)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    println!("\x1b[1m$ {}\x1b[0m", shell::line(&qemu));
    let mut machine = qemu.spawn().context("qemu")?;
    let output = machine.stdout.take().context("qemu has no output")?;
    let (mut passed, mut failed, mut ended) = (0, 0, false);
    let mut log = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        match line.split_once("vm: ") {
            Some((_, "end")) => ended = true,
            Some((_, text)) => {
                println!("{text}");
                passed += u32::from(text.ends_with("... ok"));
                failed += u32::from(text.ends_with("... FAILED"));
            }
            None => log.push(line),
        }
    }
    machine.wait()?;
    if failed > 0 || !ended || passed == 0 {
        eprintln!("{}", log.join("\n"));
        bail!("{passed} passed, {failed} failed{}", if ended { "" } else { "; the machine did not come to the end" });
    }
    println!("{passed} passed, 0 failed");
    Ok(())
}

/// Debian's kernel for virtual machines, unpacked once.
fn kernel(work: &Path) -> Result<PathBuf> {
    let dir = work.join("kernel");
    if dir.join("boot").is_dir() {
        return Ok(dir);
    }
    fs::create_dir_all(work)?;
    let depends = shell::read(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends.lines().find_map(|l| l.trim().strip_prefix("Depends: ")).context("no kernel package")?;
    shell::step(Command::new("apt-get").args(["download", package]).current_dir(work))?;
    let archive = fs::read_dir(work)?
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .context("the kernel was not downloaded")?;
    shell::step(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&dir))?;
    Ok(dir)
}

fn initrd(work: &Path, kernel: &Path, binary: &Path) -> Result<PathBuf> {
    let root = work.join("initrd");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for dir in ["bin", "proc", "sys", "dev", "new", "images", "manifests"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).is_file()).context("busybox")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::copy(binary, root.join("bin/coracle"))?;
    fs::copy(image::make("busybox")?, root.join("images/busybox.tar"))?;
    let scripts = shell::root().join("xtask/vm");
    for file in ["init", "checks", "resources", "config.yaml", "resources.yaml", "elastic.yaml"] {
        fs::copy(scripts.join(file), root.join(file))?;
        fs::set_permissions(root.join(file), fs::Permissions::from_mode(0o755))?;
    }
    fs::copy(scripts.join("pods.yaml"), root.join("manifests/pods.yaml"))?;
    let versions = kernel.join("lib/modules");
    let version = fs::read_dir(&versions)?.next().context("no modules")??.file_name();
    let (from, to) = (versions.join(&version), root.join("lib/modules").join(&version));
    fs::create_dir_all(to.join("kernel"))?;
    for list in ["modules.builtin", "modules.order"] {
        fs::copy(from.join(list), to.join(list))?;
    }
    for module in MODULES {
        let target = to.join("kernel").join(module);
        fs::create_dir_all(target.parent().context("a path with a parent")?)?;
        shell::read(Command::new("cp").arg("-r").arg(from.join("kernel").join(module)).arg(target))?;
    }
    let archive = work.join("initrd.gz");
    let script = format!("find . | cpio --quiet -o -H newc | gzip -1 > '{}'", archive.display());
    shell::read(Command::new("sh").args(["-c", &script]).current_dir(&root))?;
    Ok(archive)
}
