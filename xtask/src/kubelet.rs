//! A kubelet with containerd and one pod, to compare with: built from its published Go modules (`tests/kubelet`), run in a
//! folder of its own. Whatever happens, it is ended, and the machine is as it was.

use crate::{archive, cluster, image, shell};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// What a kubelet sets on a machine, whatever it is told.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Folders that both make, whatever they are told.
const FOLDERS: [&str; 4] = ["/var/lib/kubelet", "/usr/libexec/kubernetes", "/var/log/containers", "/run/containerd"];

/// The kubelet and the client of `bench stream`: what `CORACLE_KUBELET` names, else it is built where that is due.
pub fn build() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CORACLE_KUBELET").map(PathBuf::from) {
        if !named.is_file() {
            bail!("CORACLE_KUBELET: there is no file {}", named.display());
        }
        return Ok(named);
    }
    cluster::go_program("kubelet", &shell::root().join("tests/kubelet"))
}

/// Fields of a KubeletConfiguration by which whoever has a certificate of the bench's authority may do everything.
pub fn access(dir: &Path, port: u16) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": port,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": false },
            "x509": { "clientCAFile": dir.join("ca.crt") },
        },
        "authorization": { "mode": "AlwaysAllow" },
    })
}

pub struct Kubelet {
    dir: PathBuf,
    sysctls: Vec<(PathBuf, String)>,
    strange: Vec<PathBuf>,
    containerd: Option<Child>,
    kubelet: Option<Child>,
}

impl Kubelet {
    /// Starts both in `dir`, where the certificates are, and waits until `pod` runs as `<name>-bench`.
    pub fn start(program: &Path, dir: &Path, port: u16, pod: &Value) -> Result<Kubelet> {
        let sysctls = SYSCTLS.iter().map(|name| {
            let path = Path::new("/proc/sys").join(name);
            let value = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            Ok((path, value))
        });
        let mut this = Kubelet {
            dir: dir.to_owned(),
            sysctls: sysctls.collect::<Result<_>>()?,
            strange: FOLDERS.iter().map(PathBuf::from).filter(|path| !path.exists()).collect(),
            containerd: None,
            kubelet: None,
        };
        this.start_containerd()?;
        this.start_kubelet(program, port, pod)?;
        Ok(this)
    }

    fn start_containerd(&mut self) -> Result<()> {
        let d = self.dir.display();
        let config = format!(
            "version = 2\nroot = \"{d}/root\"\nstate = \"{d}/state\"\ndisabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{d}/socket\"\n[ttrpc]\naddress = \"{d}/ttrpc\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"docker.io/library/pause:1\"\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{d}/cni\"\nconf_dir = \"{d}/cni\"\n"
        );
        fs::write(self.dir.join("containerd.toml"), config)?;
        let mut daemon = Command::new("containerd");
        daemon.arg("--config").arg(self.dir.join("containerd.toml"));
        self.containerd = Some(self.spawn(&mut daemon, "containerd.log")?);
        shell::wait("containerd answers", Duration::from_secs(30), || {
            Ok(self.ctr(&["version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
        })?;
        let rootfs = self.dir.join("pause");
        image::busybox_rootfs(&rootfs)?;
        let pause = self.dir.join("pause.tar");
        let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sleep", "1000000000"] });
        archive::write(&pause, "docker.io/library/pause:1", &rootfs, &config)?;
        for archive in [pause, image::make("busybox")?] {
            shell::read(self.ctr(&["images", "import"]).arg(archive))?;
        }
        Ok(())
    }

    fn start_kubelet(&mut self, program: &Path, port: u16, pod: &Value) -> Result<()> {
        let manifests = self.dir.join("manifests");
        fs::create_dir(&manifests)?;
        fs::write(manifests.join("pod.json"), pod.to_string())?;
        let mut config = access(&self.dir, port);
        let more = json!({
            "staticPodPath": manifests,
            "podLogsDir": self.dir.join("logs"),
            "volumePluginDir": self.dir.join("plugins"),
            "containerRuntimeEndpoint": format!("unix://{}/socket", self.dir.display()),
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "healthzPort": 0,
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": false,
            "localStorageCapacityIsolation": false,
            "registerNode": false,
            "resolvConf": "",
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let file = self.dir.join("kubelet.yaml");
        fs::write(&file, config.to_string())?;
        let mut kubelet = Command::new(program);
        kubelet.args(["kubelet", "--hostname-override=bench", "--config"]).arg(file);
        kubelet.arg("--root-dir").arg(self.dir.join("kubelet")).arg("--cert-dir").arg(self.dir.join("pki"));
        self.kubelet = Some(self.spawn(&mut kubelet, "kubelet.log")?);
        // The sandbox, and the container in it.
        let tasks = shell::wait("the kubelet's pod runs", Duration::from_secs(60), || Ok(self.tasks()? == 2));
        tasks.with_context(|| tail(&self.dir.join("kubelet.log")))
    }

    fn spawn(&self, command: &mut Command, log: &str) -> Result<Child> {
        let log = fs::File::create(self.dir.join(log))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| shell::line(command))
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.join("socket")).args(["--namespace", "k8s.io"]).args(args);
        command
    }

    fn tasks(&self) -> Result<usize> {
        Ok(shell::read(&mut self.ctr(&["tasks", "ls", "--quiet"]))?.lines().count())
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // The kubelet ends its pod, else nobody would end containerd's shims.
        let _ = fs::remove_file(self.dir.join("manifests/pod.json"));
        if self.kubelet.is_some() {
            let _ = shell::wait("the pod is gone", Duration::from_secs(40), || Ok(self.tasks()? == 0));
        }
        for mut child in [self.kubelet.take(), self.containerd.take()].into_iter().flatten() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            for _ in 0..100 {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    break;
                }
                sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in
            mounts.lines().rev().filter_map(|l| l.split(' ').nth(4)).filter(|p| Path::new(p).starts_with(&self.dir))
        {
            let _ = Command::new("umount").args(["--lazy", point]).stderr(Stdio::null()).status();
        }
        for (path, value) in &self.sysctls {
            let _ = fs::write(path, value);
        }
        for hierarchy in mounts.lines().filter(|l| l.contains(" - cgroup")).filter_map(|l| l.split(' ').nth(4)) {
            // Where containerd has put the pod; not if somebody else is there, too.
            let _ = fs::remove_dir(Path::new(hierarchy).join("k8s.io"));
        }
        for entry in fs::read_dir("/var/log/containers").into_iter().flatten().flatten() {
            if entry.path().read_link().is_ok_and(|to| to.starts_with(&self.dir)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        for path in &self.strange {
            let _ = fs::remove_dir_all(path);
        }
    }
}
