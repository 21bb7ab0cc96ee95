//! An HTTP server that does what it is told, which may be wrong.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// With its query.
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
    hang: bool,
    endless: bool,
    raw: bool,
    drip: Option<Duration>,
}

impl Reply {
    pub fn new(status: u16, body: &[u8]) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: body.to_vec(),
            cut: None,
            hang: false,
            endless: false,
            raw: false,
            drip: None,
        }
    }

    /// These bytes and nothing else, head and all.
    pub fn raw(bytes: &[u8]) -> Reply {
        Reply { raw: true, ..Reply::new(0, bytes) }
    }

    /// One byte of the body after the other, with such pauses in between.
    pub fn drip(mut self, pause: Duration) -> Reply {
        self.drip = Some(pause);
        self
    }

    pub fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Only so many bytes of the body come, though all are promised.
    pub fn cut(mut self, bytes: usize) -> Reply {
        self.cut = Some(bytes);
        self
    }

    /// Then nothing more comes, and the connection stays open.
    pub fn hang(mut self) -> Reply {
        self.hang = true;
        self
    }

    /// In chunks, and again and again.
    pub fn endless(mut self) -> Reply {
        self.endless = true;
        self
    }

    fn write(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        if self.raw {
            return stream.write_all(&self.body);
        }
        write!(stream, "HTTP/1.1 {} x\r\nConnection: close\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        if self.endless {
            write!(stream, "Transfer-Encoding: chunked\r\n\r\n")?;
            loop {
                write!(stream, "{:x}\r\n", self.body.len())?;
                stream.write_all(&self.body)?;
                write!(stream, "\r\n")?;
            }
        }
        write!(stream, "Content-Length: {}\r\n\r\n", self.body.len())?;
        if let Some(pause) = self.drip {
            for byte in &self.body {
                stream.write_all(&[*byte])?;
                thread::sleep(pause);
            }
            return Ok(());
        }
        stream.write_all(&self.body[..self.cut.unwrap_or(usize::MAX).min(self.body.len())])
    }
}

pub struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `answer` is told which time a path is asked for, beginning with 0.
    pub fn start(answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (all, ended) = (seen.clone(), stop.clone());
        let answer = Arc::new(answer);
        let times = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (all, answer, times, ended) = (all.clone(), answer.clone(), times.clone(), ended.clone());
                thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    let n = {
                        let mut times = times.lock().unwrap();
                        let count = times.entry(request.path.clone()).or_default();
                        *count += 1;
                        *count - 1
                    };
                    let reply = answer(&request, n);
                    all.lock().unwrap().push(request);
                    let mut stream = stream;
                    // The other side may have heard enough.
                    let _ = reply.write(&mut stream);
                    while reply.hang && !ended.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(5));
                    }
                });
            }
        });
        Server { port, seen, stop, thread: Some(thread) }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How often this path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path == path).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn read(stream: &TcpStream) -> Option<Seen> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let seen = Seen { path, headers };
    let mut body = vec![0; seen.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(seen)
}
