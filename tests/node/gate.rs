//! A gate before a registry: tells what was asked for, and keeps answers back until it is opened.

use super::registry_server::Registry;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A gate; gone when dropped, with all who wait at it.
pub struct Gate {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// `host:port` of the registry.
    registry: String,
    state: Mutex<State>,
    serial: AtomicU64,
    ended: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What is kept back: part of the request's line, and how many bytes of its answer go through.
    shut: Option<(String, usize)>,
    /// The lines of all requests.
    asked: Vec<String>,
    /// Those who wait now.
    held: Vec<(u64, String)>,
}

impl Gate {
    /// Before this registry, which speaks plain HTTP.
    pub fn before(registry: &Registry) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("address").port();
        let shared = Arc::new(Shared {
            registry: registry.address(),
            state: Mutex::default(),
            serial: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let accepted = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepted.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepted);
                thread::spawn(move || {
                    // A client that leaves is no failure of the gate.
                    let _ = shared.serve(&client);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Gate { port, shared, thread: Some(thread) }
    }

    /// The full reference of an image behind it.
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Answers to requests with `text` in their line stop after so many bytes, head included.
    pub fn shut(&self, text: &str, after: usize) {
        self.shared.state().shut = Some((text.to_owned(), after));
    }

    /// Everything goes through, also what was kept back.
    pub fn open(&self) {
        self.shared.state().shut = None;
    }

    /// How many answers are kept back now.
    pub fn held(&self) -> usize {
        self.shared.state().held.len()
    }

    /// How many requests had `text` in their line.
    pub fn asked(&self, text: &str) -> usize {
        self.shared.state().asked.iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.open();
        // Wakes it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the gate")
    }

    /// One request and its answer.
    fn serve(&self, mut client: &TcpStream) -> std::io::Result<()> {
        client.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut reader = BufReader::new(client);
        let mut head = Vec::new();
        // A TLS greeting: a plain server says that it does not understand.
        if reader.fill_buf()?.first() == Some(&0x16) {
            return client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            if !line.to_ascii_lowercase().starts_with("connection:") {
                head.push(line);
            }
        }
        let line = head.first().cloned().unwrap_or_default().trim().to_owned();
        self.state().asked.push(line.clone());
        let mut registry = TcpStream::connect(&self.registry)?;
        registry.write_all(format!("{}Connection: close\r\n\r\n", head.concat()).as_bytes())?;
        let mut sent = 0;
        let mut piece = [0; 16 << 10];
        loop {
            let most = match &self.state().shut {
                Some((text, after)) if line.contains(text) => after.saturating_sub(sent).min(piece.len()),
                _ => piece.len(),
            };
            if most == 0 {
                if !self.wait(client, &line) {
                    return Ok(());
                }
                continue;
            }
            let count = registry.read(&mut piece[..most])?;
            if count == 0 {
                return Ok(());
            }
            client.write_all(&piece[..count])?;
            sent += count;
        }
    }

    /// Waits until the gate is open; `false`: the client has left.
    fn wait(&self, client: &TcpStream, line: &str) -> bool {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.state().held.push((serial, line.to_owned()));
        let _ = client.set_read_timeout(Some(Duration::from_millis(20)));
        let stays = loop {
            let shut = self.state().shut.as_ref().is_some_and(|(text, _)| line.contains(text));
            if !shut {
                break true;
            }
            match client.peek(&mut [0]) {
                Ok(0) => break false,
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break false,
                Ok(_) => thread::sleep(Duration::from_millis(20)),
                Err(_) => {}
            }
        };
        self.state().held.retain(|(other, _)| *other != serial);
        stays
    }
}
