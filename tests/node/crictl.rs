//! crictl, as it is published, against `cri.sock` ("Done when" of the CRI: its listed commands work).

use crate::cluster::plane;
use crate::harness::{BUSYBOX, Node, Out, REST, eventually, free_port, image_archive, output, pod, resting, secs};
use crate::registry_server::{Auth, Registry};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// crictl with its configuration for this node: a longer time-out than its two seconds, which a loaded machine may need.
struct Crictl<'a>(&'a Node);

impl Crictl<'_> {
    fn program() -> PathBuf {
        let named = std::env::var_os("CORACLE_CRICTL");
        named.expect("CORACLE_CRICTL names no crictl; `cargo xtask crictl` builds it").into()
    }

    fn command(&self, args: &[&str]) -> Command {
        let config = self.0.dir.join("crictl.yaml");
        let socket = self.0.dir.join("run/cri.sock");
        let text = format!("runtime-endpoint: unix://{0}\nimage-endpoint: unix://{0}\ntimeout: 30\n", socket.display());
        fs::write(&config, text).expect("crictl.yaml");
        let mut command = Command::new(Crictl::program());
        command.arg("--config").arg(config).args(args);
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Out {
        self.run_with(args, b"")
    }

    #[track_caller]
    fn run_with(&self, args: &[&str], stdin: &[u8]) -> Out {
        output(&mut self.command(args), stdin, secs(60))
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let text = self.run(args).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}\n{text}"))
    }

    /// Of `-q`: an ID a line.
    #[track_caller]
    fn ids(&self, args: &[&str]) -> Vec<String> {
        self.run(args).ok().lines().map(str::to_owned).collect()
    }
}

#[test]
fn crictl_shows_what_is_on_the_node() {
    let node = Node::up();
    let crictl = Crictl(&node);
    let mode = fs::metadata(node.dir.join("run/cri.sock")).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let said = crictl.run(&["version"]).ok();
    for line in
        ["RuntimeName:  coracle", "RuntimeApiVersion:  v1", concat!("RuntimeVersion:  ", env!("CARGO_PKG_VERSION"))]
    {
        assert!(said.contains(line), "{said}");
    }
    let info = crictl.json(&["info"]);
    for condition in info["status"]["conditions"].as_array().expect("conditions") {
        assert_eq!(condition["status"], true, "{condition}");
    }
    assert_eq!(info["status"]["conditions"][1]["type"], "NetworkReady");
    assert_eq!(info["config"]["rootDir"], node.dir.join("root").to_string_lossy().as_ref(), "{info}");
    assert!(crictl.run(&["runtime-config"]).ok().contains("CGROUPFS"));

    let mut web = pod("web", &format!("echo hello; echo trouble >&2; {REST}"));
    web["metadata"]["labels"] = json!({"app": "web"});
    web["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    web["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data", "readOnly": true}]);
    web["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "500m"}});
    let web = node.run(&web);
    let mut done = pod("done", "echo over; exit 3");
    done["spec"]["restartPolicy"] = json!("Never");
    let done = node.run_to_end(&done);

    // Pods and containers, with the filters that the server applies.
    let pods = crictl.json(&["pods", "-o", "json"]);
    let items = pods["items"].as_array().expect("items");
    assert_eq!(items.len(), 2, "{pods}");
    let own = items.iter().find(|item| item["metadata"]["name"] == web.name()).expect("web's sandbox");
    assert_eq!((&own["metadata"]["uid"], &own["metadata"]["namespace"]), (&json!(web.uid()), &json!("default")));
    assert_eq!((&own["state"], &own["labels"]["app"]), (&json!("SANDBOX_READY"), &json!("web")));
    let sandbox = own["id"].as_str().expect("an ID").to_owned();
    assert_eq!(crictl.ids(&["pods", "-q", "--label", "app=web"]), [sandbox.as_str()]);
    assert_eq!(crictl.ids(&["pods", "-q", "--no-trunc", "--id", &sandbox[..13]]), [sandbox.as_str()]);
    assert_eq!(crictl.ids(&["pods", "-q", "--label", "app=else"]), [""; 0]);
    let table = crictl.run(&["pods"]).ok();
    assert!(table.lines().any(|line| line.contains(&sandbox[..13]) && line.contains("Ready")), "{table}");

    let (main, over) = (web.id("main"), done.id("main"));
    assert_eq!(crictl.ids(&["ps", "-q"]), [main.as_str()]);
    let mut all = crictl.ids(&["ps", "-a", "-q"]);
    all.sort();
    let mut both = [main.clone(), over.clone()];
    both.sort();
    assert_eq!(all, both);
    assert_eq!(crictl.ids(&["ps", "-a", "-q", "--state", "exited"]), [over.as_str()]);
    assert_eq!(crictl.ids(&["ps", "-a", "-q", "--pod", &sandbox[..13]]), [main.as_str()]);
    let of_pod = format!("io.kubernetes.pod.name={}", done.name());
    assert_eq!(crictl.ids(&["ps", "-a", "-q", "--label", &of_pod]), [over.as_str()]);
    assert_eq!(crictl.ids(&["ps", "-a", "-q", "--id", &over[..10]]), [over.as_str()]);
    assert_eq!(crictl.ids(&["ps", "-a", "-q", "--image", BUSYBOX]).len(), 2);
    let table = crictl.run(&["ps", "-a"]).ok();
    let row = table.lines().find(|line| line.contains(&over[..13])).unwrap_or_default();
    assert!(row.contains("Exited") && row.contains("main") && row.contains(done.name()), "{table}");

    // One of each.
    let seen = crictl.json(&["inspect", &main[..12]]);
    let status = &seen["status"];
    assert_eq!((&status["id"], &status["state"]), (&json!(main), &json!("CONTAINER_RUNNING")));
    assert_eq!(status["metadata"], json!({"name": "main", "attempt": 0}));
    assert_eq!(seen["info"]["pid"], node.init_pid(&main), "{seen}");
    assert_eq!(seen["info"]["sandboxID"], json!(sandbox));
    assert!(seen["info"]["runtimeSpec"]["process"]["args"].is_array(), "{seen}");
    assert_eq!(status["resources"]["linux"]["memoryLimitInBytes"], "67108864");
    assert_eq!(status["resources"]["linux"]["cpuQuota"], "50000");
    let mounts = status["mounts"].as_array().expect("mounts");
    let data = mounts.iter().find(|mount| mount["containerPath"] == "/data").unwrap_or_else(|| panic!("{seen}"));
    assert_eq!(data["readonly"], true);
    assert!(status["startedAt"].as_str().is_some_and(|at| at.starts_with("20")), "{status}");
    let ended = &crictl.json(&["inspect", &over])["status"];
    assert_eq!((&ended["state"], &ended["exitCode"]), (&json!("CONTAINER_EXITED"), &json!(3)));
    assert_eq!(ended["reason"], "Error");
    let seen = crictl.json(&["inspectp", &sandbox]);
    assert_eq!(seen["status"]["network"]["ip"], json!(web.ip()));
    assert_eq!(seen["status"]["linux"]["namespaces"]["options"]["network"], "POD");
    assert!(fs::exists(seen["info"]["netns"].as_str().expect("netns")).expect("netns"), "{seen}");
    let missing = crictl.run(&["inspect", "ffff"]).fails(1);
    assert!(missing.contains("NotFound"), "{missing}");
    let missing = crictl.run(&["inspectp", "ffff"]).fails(1);
    assert!(missing.contains("NotFound"), "{missing}");

    // Logs are read where the status says they are.
    let logs = crictl.run(&["logs", &main]);
    assert_eq!((&*logs.stdout, &*logs.stderr), ("hello\n", "trouble\n"));
    assert_eq!(crictl.run(&["logs", "--tail", "1", "-t", &over]).ok().split(' ').next_back(), Some("over\n"));
    assert_eq!(crictl.run(&["logs", "-f", &over]).ok(), "over\n");

    // Usage: of what runs.
    eventually("crictl stats tells of the container", secs(30), || {
        crictl.run(&["stats"]).ok().lines().any(|line| line.starts_with(&main[..13]) && line.contains("main"))
    });
    let stats = crictl.json(&["stats", "-o", "json"]);
    let stats = stats["stats"].as_array().expect("stats");
    assert_eq!(stats.len(), 1, "{stats:?}");
    assert_eq!(stats[0]["attributes"]["id"], json!(main));
    let number = |value: &Value| value["value"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0_u64);
    assert!(number(&stats[0]["cpu"]["usageCoreNanoSeconds"]) > 0, "{stats:?}");
    assert!(number(&stats[0]["memory"]["workingSetBytes"]) > 0, "{stats:?}");
    assert_eq!(crictl.json(&["stats", "-o", "json", "--id", &over])["stats"], json!([]));
    let pods = crictl.json(&["statsp", "-o", "json"]);
    let of_web = pods["stats"].as_array().expect("stats").iter().find(|one| one["attributes"]["id"] == json!(sandbox));
    let of_web = of_web.unwrap_or_else(|| panic!("{pods}"));
    assert!(number(&of_web["linux"]["memory"]["usageBytes"]) > 0, "{of_web}");
    assert_eq!(of_web["linux"]["network"]["defaultInterface"]["name"], "eth0", "{of_web}");
    let fs = crictl.json(&["imagefsinfo"]);
    let images = &fs["status"]["imageFilesystems"][0];
    assert!(number(&images["usedBytes"]) > 0, "{fs}");
    let store = node.dir.join("root/store");
    assert_eq!(images["fsId"]["mountpoint"], store.to_string_lossy().as_ref());

    // What makes and ends containers is not here, and says so.
    for args in [&["stop", &main][..], &["rm", "-f", &main], &["stopp", &sandbox], &["rmp", "-f", &sandbox]] {
        let said = crictl.run(args).fails(1);
        assert!(said.contains("Unimplemented"), "{args:?}: {said}");
    }
    assert!(node.pod("web").expect("web").up());

    // Garbage disturbs nobody.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff"] {
        let mut peer = UnixStream::connect(node.dir.join("run/cri.sock")).expect("the socket");
        peer.set_read_timeout(Some(secs(30))).expect("a limit");
        // It may be closed before all of it is written.
        let _ = peer.write_all(bytes);
        let _ = peer.read_to_end(&mut Vec::new());
    }
    assert_eq!(crictl.ids(&["ps", "-q"]), [main.as_str()]);
    node.finish();
}

#[test]
fn crictl_pulls_and_removes_images() {
    let registry = Registry::start(Auth::Plain);
    registry.push(&image_archive("pulled:1"), "team/app:1");
    let image = registry.reference("team/app:1");
    let node = Node::up();
    let crictl = Crictl(&node);
    let said = crictl.run(&["pull", &image]).ok();
    assert!(said.starts_with("Image is up to date for sha256:"), "{said}");
    let seen = crictl.json(&["inspecti", &image]);
    let id = seen["status"]["id"].as_str().expect("an ID").to_owned();
    assert_eq!(seen["status"]["repoTags"], json!([image]));
    let digest = seen["status"]["repoDigests"][0].as_str().unwrap_or_default();
    assert!(digest.starts_with(&format!("{}@sha256:", image.trim_end_matches(":1"))), "{seen}");
    assert!(seen["info"]["imageSpec"].is_object(), "{seen}");
    assert_eq!(crictl.ids(&["images", "-q", &image]), [id.as_str()]);
    assert_eq!(crictl.ids(&["images", "-q", image.trim_end_matches(":1")]), [id.as_str()]);
    let table = crictl.run(&["images"]).ok();
    assert!(table.lines().any(|line| line.contains("team/app") && line.contains(&id[7..20])), "{table}");

    // One in use stays.
    let mut own = resting("own");
    own["spec"]["containers"][0]["image"] = json!(image);
    node.run(&own);
    let said = crictl.run(&["rmi", &image]).fails(1);
    assert!(said.contains("FailedPrecondition") && said.contains("default/own-"), "{said}");
    node.remove("own.yaml");
    node.wait_gone("own");
    let said = crictl.run(&["rmi", &id[7..20]]).ok();
    assert_eq!(said.trim(), format!("Deleted: {image}"));
    assert_eq!(crictl.ids(&["images", "-q", &image]), [""; 0]);
    let said = crictl.run(&["rmi", &image]).fails(1);
    assert!(said.contains("no such image"), "{said}");

    let said = crictl.run(&["pull", &registry.reference("team/none:1")]).fails(1);
    assert!(said.contains("team/none:1"), "{said}");
    let said = crictl.run(&["pull", "UPPER CASE"]).fails(1);
    assert!(said.contains("InvalidArgument"), "{said}");
    let said = crictl.run(&["pull", "--creds", "user:hidden", &image]).fails(1);
    assert!(said.contains("credentials") && !said.contains("hidden"), "{said}");
    node.finish();
}

/// kubeadm looks for a runtime that answers, says how it divides cgroups, and is ready.
#[test]
fn kubeadm_s_preflight_finds_a_container_runtime() {
    let node = Node::up();
    let socket = node.dir.join("run/cri.sock");
    let config = node.dir.join("kubeadm.yaml");
    let text = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nnodeRegistration:\n  criSocket: unix://{}\n---\n\
         apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.36.3\n",
        socket.display()
    );
    fs::write(&config, text).expect("kubeadm.yaml");
    let preflight = || {
        let mut kubeadm = plane::program("kubeadm");
        kubeadm.args(["init", "phase", "preflight", "--dry-run", "--ignore-preflight-errors=all", "--config"]);
        kubeadm.arg(&config).env("KUBEADM_INIT_DRYRUN_DIR", node.dir.join("dry"));
        let said = output(&mut kubeadm, b"", secs(60));
        said.stdout + &said.stderr
    };
    let said = preflight();
    assert!(said.contains("[preflight]"), "{said}");
    assert!(!said.contains(" CRI]") && !said.contains(" ContainerRuntimeVersion]"), "{said}");
    // It does look: without the socket both fail.
    let aside = socket.with_extension("aside");
    fs::rename(&socket, &aside).expect("the socket aside");
    let said = preflight();
    assert!(said.contains(" CRI]") && said.contains(" ContainerRuntimeVersion]"), "{said}");
    fs::rename(&aside, &socket).expect("the socket back");
    node.finish();
}

#[test]
fn crictl_runs_commands_and_streams() {
    let node = Node::up();
    let crictl = Crictl(&node);
    node.run(&pod("web", REST));
    let mut echo = pod("echo", "while read line; do echo \"said: $line\"; done; sleep 3600");
    echo["spec"]["containers"][0]["stdin"] = json!(true);
    let echo = node.run(&echo).id("main");
    let main = node.wait_up("web").id("main");

    // At once.
    let said = crictl.run(&["exec", "-s", &main, "sh", "-c", "echo out; echo err >&2"]).ok();
    assert!(said.contains("out\n") && said.contains("err\n"), "{said}");
    crictl.run(&["exec", "-s", &main, "sh", "-c", "exit 7"]).fails(1);
    let late = crictl.run(&["exec", "-s", "--timeout", "1", &main, "sleep", "300"]).fails(1);
    assert!(late.contains("DeadlineExceeded") && late.contains("timeout 1s exceeded"), "{late}");
    eventually("the command is killed", secs(30), || {
        !node.sh("web", "ps").lines().any(|line| line.contains("sleep 300"))
    });
    // More than fits an answer: the rest is thrown away, and the command ends as if it had been read.
    let long = crictl.run(&["exec", "-s", &main, "sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x"]).ok();
    assert!(long.len() > 8_000_000 && long.len() < 20_000_000, "{}", long.len());

    // With streams, over both transports.
    for transport in ["spdy", "websocket"] {
        let exec = ["exec", "--transport", transport];
        let said = crictl.run(&[&exec[..], &[&main, "sh", "-c", "echo out; echo err >&2"]].concat());
        assert_eq!((said.code, &*said.stdout, &*said.stderr), (Some(0), "out\n", "err\n"), "{transport}");
        let input = "line\n".repeat(100_000);
        let said = crictl.run_with(&[&exec[..], &["-i", &main, "cat"]].concat(), input.as_bytes()).ok();
        assert!(said == input, "{transport}: {} bytes came back", said.len());
        let said = crictl.run(&[&exec[..], &[&main, "sh", "-c", "exit 7"]].concat()).fails(1);
        assert!(said.contains("command terminated with exit code 7"), "{transport}: {said}");
    }
    let ended = crictl.run(&["exec", "ffff", "true"]).fails(1);
    assert!(ended.contains("NotFound"), "{ended}");

    // Attach: what the container says from now on.
    let mut attach = crictl.command(&["attach", "-i", &echo]);
    let mut attached = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("attach");
    let mut stdin = attached.stdin.take().expect("piped");
    let mut lines = BufReader::new(attached.stdout.take().expect("piped")).lines();
    stdin.write_all(b"hello\n").expect("type");
    assert_eq!(lines.next().expect("a line").expect("a line"), "said: hello");
    // Who goes away leaves the container as it is.
    attached.kill().expect("kill");
    attached.wait().expect("wait");
    assert!(node.pod("echo").expect("echo").running("main"));

    // Port-forward, over both transports.
    let served = pod(
        "served",
        &format!("mkdir -p /tmp/www; echo served > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; {REST}"),
    );
    let served = node.run(&served);
    let sandbox = crictl.ids(&["pods", "-q", "--name", served.name()]).remove(0);
    for transport in ["spdy", "websocket"] {
        let local = free_port();
        let ports = format!("{local}:8080");
        let mut forward = crictl.command(&["port-forward", "--transport", transport, &sandbox, &ports]);
        let mut forward = forward.stdout(Stdio::null()).spawn().expect("port-forward");
        eventually("the page comes through", secs(30), || {
            let Ok(mut peer) = TcpStream::connect(("127.0.0.1", local)) else { return false };
            let mut said = String::new();
            let asked =
                peer.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").and_then(|()| peer.read_to_string(&mut said));
            asked.is_ok() && said.ends_with("served\n")
        });
        forward.kill().expect("kill");
        forward.wait().expect("wait");
    }

    // An address counts once, and says nothing to who guesses.
    let listeners = || {
        let pid = node.agent_pid();
        let sockets = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds").flatten();
        let own: Vec<String> =
            sockets.filter_map(|fd| fs::read_link(fd.path()).ok()?.to_str().map(str::to_owned)).collect();
        let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("net/tcp");
        let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = rows.filter(|row| row[3] == "0A" && own.contains(&format!("socket:[{}]", row[9])));
        ours.map(|row| u16::from_str_radix(row[1].rsplit(':').next().expect("a port"), 16).expect("hex"))
            .collect::<Vec<_>>()
    };
    let ports: Vec<u16> = listeners().into_iter().filter(|port| *port != node.healthz).collect();
    let [port] = ports[..] else { panic!("one listener for streams: {ports:?}") };
    for path in ["/", "/exec/", "/exec/AAAAAAAAAAAAAAAAAAAAAA", "/attach/../exec"] {
        let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        write!(peer, "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("ask");
        peer.set_read_timeout(Some(secs(30))).expect("a limit");
        let mut said = String::new();
        peer.read_to_string(&mut said).expect("an answer");
        assert!(said.starts_with("HTTP/1.1 404 "), "{path}: {said}");
    }
    node.finish();
}
