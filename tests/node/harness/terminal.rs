//! A terminal with a program in it, and somebody who types.

use super::{secs, wait_child};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// What is seen is kept until somebody looks for it; the program ends with this.
pub struct Terminal {
    master: fs::File,
    child: Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// Starts `command` by `spawn` with a terminal of its own, so that it hears of changes of its size, too.
    #[track_caller]
    pub fn start(
        command: &Command,
        columns: u16,
        rows: u16,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let path = ptsname(&master, Vec::new()).expect("ptsname");
        let master = fs::File::from(master);
        resize(&master, columns, rows);
        let path = path.to_str().expect("a path");
        let end = || fs::OpenOptions::new().read(true).write(true).open(path).expect("the terminal's other end");
        let mut inside = Command::new("setsid");
        inside.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.stdin(end()).stdout(end()).stderr(end());
        let child = spawn(&mut inside).expect("setsid (apt-get install util-linux)");
        drop(inside);
        let mut reader = master.try_clone().expect("the terminal");
        let (sender, output) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { master, child, output, seen: String::new() }
    }

    pub fn type_in(&self, text: &str) {
        (&self.master).write_all(text.as_bytes()).expect("type");
    }

    /// Waits until `what` is on the screen; all since the last wait.
    #[track_caller]
    pub fn until(&mut self, what: &str) -> String {
        let end = Instant::now() + secs(30);
        while !self.seen.contains(what) {
            assert!(Instant::now() < end, "{what:?} was not seen: {:?}", self.seen);
            if let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(100)) {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        std::mem::take(&mut self.seen)
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        resize(&self.master, columns, rows);
    }

    /// The exit code of a program that ends by itself.
    #[track_caller]
    pub fn ends(mut self) -> Option<i32> {
        let status = wait_child(&mut self.child, secs(30));
        status.unwrap_or_else(|| panic!("the program in the terminal did not end: {:?}", self.seen)).code()
    }
}

fn resize(master: &fs::File, columns: u16, rows: u16) {
    tcsetwinsize(master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).expect("size");
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The session's leader hears of it, and all others hang up with the terminal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
