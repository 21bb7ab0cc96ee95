//! A browser without a screen, driven by its debugging protocol.

use super::{PATIENCE, secs};
use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, client};

/// A browser with one page; it ends with this.
pub struct Browser {
    process: Child,
    socket: WebSocket<TcpStream>,
    session: String,
    serial: u64,
    /// What pages complained of: exceptions, refused content, failed requests.
    complaints: Vec<String>,
    dir: PathBuf,
}

impl Browser {
    /// Starts one that keeps its files below `dir`.
    #[track_caller]
    pub fn start(dir: &Path) -> Browser {
        let dir = dir.join("browser");
        fs::create_dir_all(&dir).expect("folder");
        let process = Command::new("chromium-headless-shell")
            // Root has no sandbox of its own there; what it is shown is ours.
            .args(["--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-proxy-server", "about:blank"])
            .arg(format!("--user-data-dir={}", dir.display()))
            .env("HOME", &dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // It is several processes, behind a script.
            .process_group(0)
            .spawn()
            .expect("chromium-headless-shell");
        let end = Instant::now() + PATIENCE;
        let (port, path) = loop {
            let text = fs::read_to_string(dir.join("DevToolsActivePort")).unwrap_or_default();
            if let Some((port, path)) = text.trim().split_once('\n') {
                break (port.to_owned(), path.to_owned());
            }
            assert!(Instant::now() < end, "the browser does not start");
            sleep(Duration::from_millis(30));
        };
        let stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("the browser");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let (mut socket, _) = client(format!("ws://127.0.0.1:{port}{path}"), stream).expect("the browser's protocol");
        socket.get_ref().set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
        socket.set_config(|config| config.max_message_size = Some(64 << 20));
        let complaints = Vec::new();
        let mut browser = Browser { process, socket, session: String::new(), serial: 0, complaints, dir };
        let page = browser.ask("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.ask("Target.attachToTarget", json!({ "targetId": page, "flatten": true }));
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// A window of this size, in CSS pixels.
    #[track_caller]
    pub fn resize(&mut self, width: u32, height: u32, phone: bool) {
        let scale = if phone { 2 } else { 1 };
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone });
        self.ask("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Whose user likes it dark.
    #[track_caller]
    pub fn darken(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.ask("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    #[track_caller]
    pub fn open(&mut self, url: &str) {
        let answer = self.ask("Page.navigate", json!({ "url": url }));
        assert_eq!(answer["errorText"], Value::Null, "{url}");
    }

    /// The value of an expression.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let question = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.ask("Runtime.evaluate", question);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn wait(&mut self, expression: &str) {
        let end = Instant::now() + PATIENCE;
        while self.eval(expression) != true {
            if Instant::now() > end {
                let text = self.eval("document.body.innerText");
                panic!("not so: {expression}\n{}\n{:#?}", text.as_str().unwrap_or_default(), self.complaints);
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// A picture of what is seen, as PNG.
    #[track_caller]
    pub fn picture(&mut self, path: &Path) {
        let answer = self.ask("Page.captureScreenshot", json!({ "format": "png" }));
        let data = answer["data"].as_str().expect("a picture");
        let png = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        fs::write(path, png).expect("a picture");
    }

    /// What pages complained of so far.
    pub fn complaints(&mut self) -> Vec<String> {
        self.eval("0");
        self.complaints.clone()
    }

    #[track_caller]
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.serial += 1;
        let mut question = json!({ "id": self.serial, "method": method, "params": params });
        if !self.session.is_empty() {
            question["sessionId"] = json!(self.session);
        }
        self.socket.send(Message::text(question.to_string())).expect("the browser listens");
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            let message = match self.socket.read() {
                Ok(message) => message,
                Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    assert!(Instant::now() < end, "{method}: no answer");
                    continue;
                }
                Err(error) => panic!("{method}: {error}"),
            };
            let Message::Text(text) = message else { continue };
            let said: Value = serde_json::from_str(&text).expect("JSON");
            if said["id"] == self.serial {
                assert_eq!(said["error"], Value::Null, "{method}");
                return said["result"].clone();
            }
            match said["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.complaints.push(said["params"].to_string()),
                Some("Log.entryAdded") if said["params"]["entry"]["level"] == "error" => {
                    self.complaints.push(said["params"]["entry"].to_string());
                }
                _ => {}
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.process.wait();
        // Its children end with it, and write until they do.
        let end = Instant::now() + secs(5);
        while fs::remove_dir_all(&self.dir).is_err() && self.dir.exists() && Instant::now() < end {
            sleep(Duration::from_millis(50));
        }
    }
}
