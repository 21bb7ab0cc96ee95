//! `cargo xtask bench image`: one large image archive into coracle, containerd and podman, and its layers into folders
//! with `tar`, in turns in one run. Each begins with nothing, and with cold caches.

use crate::bench::{Row, print};
use crate::node::Node;
use crate::{debian, shell};
use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NAME: &str = "docker.io/library/bench:1";
/// What the layers are made of: folders of this machine, in this order, up to so many bytes each.
const LAYERS: [(&str, u64); 6] = [
    ("usr/lib/x86_64-linux-gnu", 110 << 20),
    ("usr/share/locale", 60 << 20),
    ("usr/share/doc", 60 << 20),
    ("usr/lib/python3", 60 << 20),
    ("usr/include", 60 << 20),
    ("usr/bin", 110 << 20),
];

pub fn run(rounds: u64) -> Result<()> {
    if rounds == 0 {
        bail!("--n must be at least 1");
    }
    if !shell::is_root() {
        bail!("owners and overlays need root\nhint: sudo -E cargo xtask bench image");
    }
    debian::install(&[debian::BUILD, &[debian::CONTAINERD, debian::PODMAN]])?;
    let image = Image::make()?;
    let binary = shell::release()?;
    println!("{}: {:.0} MB of content in {} layers", image.plain.display(), image.content as f64 / 1e6, LAYERS.len());
    let mut rows = Vec::new();
    for (what, archive) in [("tar", &image.plain), ("tar.gz", &image.packed)] {
        let (mut ours, mut containerd, mut podman, mut tar) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 1..=rounds {
            println!("{what}, round {round} of {rounds} …");
            ours.push(coracle(&binary, archive)?);
            containerd.push(Containerd::import(archive)?);
            podman.push(podman_load(archive)?);
            tar.push(untar(&image.layers)?);
        }
        let [ours, containerd, podman, tar] = [ours, containerd, podman, tar].map(Cost::typical);
        for (who, cost) in [("coracle", &ours), ("containerd", &containerd), ("podman", &podman), ("tar", &tar)] {
            println!(
                "  {who:10} {:6.2} s, on disk after {:6.2} s, {:6.0} MB written, {:5.1} MiB of memory at most",
                cost.done, cost.durable, cost.written, cost.memory
            );
        }
        let faster = if containerd.durable < podman.durable { &containerd } else { &podman };
        let ratio = faster.durable / ours.durable;
        rows.push(Row {
            what: format!("{what}: until everything is on disk"),
            coracle: format!("{:.2} s (tar x: {:.2} s)", ours.durable, tar.durable),
            other: format!("containerd {:.2} s, podman {:.2} s → 1/{ratio:.2}", containerd.durable, podman.durable),
            budget: "≤ 1/2 of the faster".into(),
            kept: ratio >= 2.0,
        });
        let ratio = containerd.done.min(podman.done) / ours.done;
        rows.push(Row {
            what: format!("{what}: until the command is done (only coracle's syncs)"),
            coracle: format!("{:.2} s", ours.done),
            other: format!("containerd {:.2} s, podman {:.2} s → 1/{ratio:.2}", containerd.done, podman.done),
            budget: "≤ 1/2 of the faster".into(),
            kept: ratio >= 2.0,
        });
        rows.push(Row {
            what: format!("{what}: most memory of the agent (VmHWM)"),
            coracle: format!("{:.1} MiB", ours.memory),
            other: format!("containerd {:.1} MiB", containerd.memory),
            budget: "≤ 64 MiB".into(),
            kept: ours.memory <= 64.0,
        });
        let part = ours.written / ours.unpacked;
        rows.push(Row {
            what: format!("{what}: bytes written of what it takes on disk ({:.0} MB)", ours.unpacked),
            coracle: format!("{:.0} MB, {part:.2} ×", ours.written),
            other: format!("containerd {:.0} MB, podman {:.0} MB", containerd.written, podman.written),
            budget: "≤ 1.1 ×".into(),
            kept: part <= 1.1,
        });
    }
    print(&rows);
    match rows.iter().filter(|row| !row.kept).count() {
        0 => Ok(()),
        missed => bail!("{missed} of {} budgets missed", rows.len()),
    }
}

/// What one import took.
struct Cost {
    /// Seconds until the command said that it was done, and until the file system was synced after it.
    done: f64,
    durable: f64,
    /// MB handed to the disk, by the kernel's accounting.
    written: f64,
    /// MB of blocks of the result; 0 where it was not asked.
    unpacked: f64,
    /// Highest resident memory of the service, MiB; 0 where there is none.
    memory: f64,
}

impl Cost {
    /// The median of everything.
    fn typical(costs: Vec<Cost>) -> Cost {
        let median = |of: fn(&Cost) -> f64| {
            let mut all: Vec<f64> = costs.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Cost {
            done: median(|c| c.done),
            durable: median(|c| c.durable),
            written: median(|c| c.written),
            unpacked: median(|c| c.unpacked),
            memory: median(|c| c.memory),
        }
    }
}

/// A folder on the disk that is measured; gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(purpose: &str) -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("coracle-bench-{purpose}-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Nothing to be written and nothing to be read from memory: the same for all.
fn cold() -> Result<()> {
    shell::read(&mut Command::new("sync"))?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")
}

/// Times `command`, then a sync of the file system of `folder`.
fn timed(command: &mut Command, folder: &Path) -> Result<(f64, f64, String)> {
    let begin = Instant::now();
    let said = shell::read(command)?;
    let done = begin.elapsed().as_secs_f64();
    shell::read(Command::new("sync").arg("-f").arg(folder))?;
    Ok((done, begin.elapsed().as_secs_f64(), said))
}

/// A number of a `/proc` file with lines `NAME: NUMBER …`.
fn number(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|v| v.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
}

fn memory(pid: u32) -> f64 {
    number(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), "VmHWM") / 1024.0
}

fn written(pid: u32) -> f64 {
    number(&fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default(), "write_bytes") / 1e6
}

/// Runs what follows as arguments, then prints its accounts and its children's.
fn accounted(program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "\"$@\" >/dev/null && exec cat /proc/$$/io", "sh", program]);
    command
}

fn is_packed(archive: &Path) -> bool {
    archive.extension().is_some_and(|extension| extension == "gz")
}

/// Runs what follows as arguments. A packed archive is unpacked into its standard input: `ctr` takes plain ones only, and
/// Debian's podman fails on what gzip packed.
fn fed(program: &str, archive: &Path) -> Command {
    if !is_packed(archive) {
        return accounted(program);
    }
    let mut command = accounted("sh");
    command.args(["-c", "archive=$1 && shift && gzip -dc \"$archive\" | \"$@\"", "sh"]).arg(archive).arg(program);
    command
}

fn coracle(binary: &Path, archive: &Path) -> Result<Cost> {
    let node = Node::start(binary, "bench-image")?;
    cold()?;
    let before = written(node.agent_pid());
    let mut command = node.cli(&["image", "import", &archive.display().to_string()]);
    let (done, durable, _) = timed(&mut command, &node.dir)?;
    let cost = Cost {
        done,
        durable,
        written: written(node.agent_pid()) - before,
        unpacked: blocks(&node.dir.join("root/store/layers"))?,
        memory: memory(node.agent_pid()),
    };
    node.finish()?;
    Ok(cost)
}

/// MB of blocks of all files below `dir`, links once.
fn blocks(dir: &Path) -> Result<f64> {
    let text = shell::read(Command::new("du").args(["-s", "--block-size=1"]).arg(dir))?;
    text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).map(|n| n / 1e6).context("du")
}

struct Containerd {
    daemon: Child,
    dir: Scratch,
}

impl Containerd {
    /// One import by a containerd of its own.
    fn import(archive: &Path) -> Result<Cost> {
        let mut this = Containerd::start()?;
        cold()?;
        let pid = this.daemon.id();
        let before = written(pid);
        let mut command = fed("ctr", archive);
        command.arg("--address").arg(this.socket()).args(["images", "import", "--snapshotter", "overlayfs"]);
        command.arg(if is_packed(archive) { Path::new("-") } else { archive });
        let (done, durable, said) = timed(&mut command, &this.dir.0)?;
        let list = shell::read(Command::new("ctr").arg("--address").arg(this.socket()).args(["images", "ls", "-q"]))?;
        if list.trim() != NAME {
            bail!("containerd did not import the image: {list}");
        }
        if this.daemon.try_wait()?.is_some() {
            bail!("containerd ended");
        }
        let written = written(pid) - before + number(&said, "write_bytes") / 1e6;
        Ok(Cost { done, durable, written, unpacked: 0.0, memory: memory(pid) })
    }

    fn socket(&self) -> PathBuf {
        self.dir.0.join("socket")
    }

    fn start() -> Result<Containerd> {
        let dir = Scratch::new("containerd")?;
        let d = dir.0.display();
        let config = format!(
            "version = 2\nroot = \"{d}/root\"\nstate = \"{d}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{d}/socket\"\n[ttrpc]\naddress = \"{d}/ttrpc\"\n"
        );
        fs::write(dir.0.join("config.toml"), config)?;
        let log = fs::File::create(dir.0.join("log"))?;
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(dir.0.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("containerd")?;
        let this = Containerd { daemon, dir };
        shell::wait("containerd answers", Duration::from_secs(30), || {
            let mut command = Command::new("ctr");
            command.arg("--address").arg(this.socket()).arg("version");
            Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
        })?;
        Ok(this)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn podman_load(archive: &Path) -> Result<Cost> {
    let dir = Scratch::new("podman")?;
    let podman = |command: &mut Command| {
        command.arg("--root").arg(dir.0.join("root")).arg("--runroot").arg(dir.0.join("run"));
        command.arg("--tmpdir").arg(dir.0.join("tmp")).args(["--storage-driver", "overlay"]);
        // What it unpacks on the way goes to the same disk.
        command.env("TMPDIR", &dir.0);
    };
    cold()?;
    let mut command = fed("podman", archive);
    podman(&mut command);
    command.args(["load", "--quiet"]);
    if !is_packed(archive) {
        command.arg("--input").arg(archive);
    }
    let (done, durable, said) = timed(&mut command, &dir.0)?;
    let mut list = Command::new("podman");
    podman(&mut list);
    let list = shell::read(list.args(["image", "exists", NAME]));
    list.context("podman did not import the image")?;
    // Its driver leaves a mount of its own behind.
    let _ = Command::new("umount").arg(dir.0.join("root/overlay")).stderr(Stdio::null()).status();
    Ok(Cost { done, durable, written: number(&said, "write_bytes") / 1e6, unpacked: 0.0, memory: 0.0 })
}

/// What the machine can do: the layers, unpacked already, one after another.
fn untar(layers: &[PathBuf]) -> Result<Cost> {
    let dir = Scratch::new("tar")?;
    cold()?;
    let mut script = String::from("set -e\n");
    for (i, layer) in layers.iter().enumerate() {
        let to = dir.0.join(i.to_string());
        fs::create_dir(&to)?;
        script += &format!("tar -xf '{}' -C '{}'\n", layer.display(), to.display());
    }
    let mut command = accounted("sh");
    command.arg("-c").arg(script);
    let (done, durable, said) = timed(&mut command, &dir.0)?;
    Ok(Cost { done, durable, written: number(&said, "write_bytes") / 1e6, unpacked: blocks(&dir.0)?, memory: 0.0 })
}

/// The image: made once for this machine.
struct Image {
    plain: PathBuf,
    packed: PathBuf,
    layers: Vec<PathBuf>,
    /// Bytes of the layers' tar streams.
    content: u64,
}

impl Image {
    fn make() -> Result<Image> {
        let dir = shell::root().join("target/images/bench");
        let (plain, packed) = (dir.join("image.tar"), dir.join("image.tar.gz"));
        let layers: Vec<PathBuf> = (0..LAYERS.len()).map(|i| dir.join(format!("{i}.tar"))).collect();
        if !packed.is_file() {
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            println!("making the image …");
            for (path, (source, most)) in layers.iter().zip(LAYERS) {
                layer(path, source, most)?;
            }
            archive(&plain, &layers)?;
            let part = dir.join("part.gz");
            shell::step(Command::new("gzip").args(["-6", "--stdout"]).arg(&plain).stdout(fs::File::create(&part)?))?;
            fs::rename(part, &packed)?;
        }
        let content = layers.iter().map(|path| Ok(fs::metadata(path)?.len())).sum::<Result<u64>>()?;
        if content < 300 << 20 {
            bail!("only {content} bytes of files on this machine: too few to measure");
        }
        Ok(Image { plain, packed, layers, content })
    }
}

/// The first files below `/source`, in order of their names, up to `most` bytes, as a layer.
fn layer(out: &Path, source: &str, most: u64) -> Result<()> {
    let mut builder = tar::Builder::new(std::io::BufWriter::new(fs::File::create(out)?));
    let mut left = most;
    let mut above = PathBuf::new();
    for part in Path::new(source) {
        above.push(part);
        add(&mut builder, &above, &mut 0)?;
    }
    walk(&mut builder, Path::new(source), &mut left)?;
    builder.into_inner()?.flush().with_context(|| out.display().to_string())
}

fn walk(builder: &mut tar::Builder<impl Write>, below: &Path, left: &mut u64) -> Result<()> {
    let root = Path::new("/");
    let mut names: Vec<_> =
        fs::read_dir(root.join(below))?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let path = below.join(name);
        if *left == 0 {
            return Ok(());
        }
        add(builder, &path, left)?;
        if root.join(&path).symlink_metadata()?.is_dir() {
            walk(builder, &path, left)?;
        }
    }
    Ok(())
}

/// One entry with its owner and mode.
fn add(builder: &mut tar::Builder<impl Write>, path: &Path, left: &mut u64) -> Result<()> {
    let source = Path::new("/").join(path);
    let facts = source.symlink_metadata().with_context(|| source.display().to_string())?;
    let kind = facts.file_type();
    if kind.is_socket() || kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
        return Ok(());
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&facts);
    let added = if kind.is_symlink() {
        builder.append_link(&mut header, path, fs::read_link(&source)?)
    } else if kind.is_dir() {
        header.set_size(0);
        builder.append_data(&mut header, path, std::io::empty())
    } else {
        *left = left.saturating_sub(facts.size());
        builder.append_data(&mut header, path, fs::File::open(&source)?.take(facts.size()))
    };
    added.with_context(|| source.display().to_string())
}

/// A docker-archive of the layers.
fn archive(out: &Path, layers: &[PathBuf]) -> Result<()> {
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let diff_ids = layers.iter().map(|path| Ok(format!("sha256:{}", digest(&fs::read(path)?))));
    let diff_ids: Vec<String> = diff_ids.collect::<Result<_>>()?;
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string();
    let id = format!("{}.json", digest(config.as_bytes()));
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = json!([{ "Config": id, "RepoTags": [NAME], "Layers": names }]).to_string();
    let mut builder = tar::Builder::new(std::io::BufWriter::new(fs::File::create(out)?));
    let header = |size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(size);
        header
    };
    for (name, path) in names.iter().zip(layers) {
        builder.append_data(&mut header(fs::metadata(path)?.len()), name, fs::File::open(path)?)?;
    }
    builder.append_data(&mut header(config.len() as u64), &id, config.as_bytes())?;
    builder.append_data(&mut header(manifest.len() as u64), "manifest.json", manifest.as_bytes())?;
    builder.into_inner()?.flush().with_context(|| out.display().to_string())
}
