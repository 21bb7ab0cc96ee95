//! `cp`: files between this machine and containers.

use super::client::Client;
use super::error::Error;
use super::logs::{default_container, pod_path};
use super::session;
use crate::causes::chain;
use crate::server::encode;
use crate::shim::copy::{self, Belief};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Pieces of an archive that may wait.
const QUEUE: usize = 4;

/// What to copy where.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Container [default: the pod's default or first]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// What to copy: a path here, or [NAMESPACE/]POD:PATH
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Where to: the same; into it if it is a folder
    #[arg(value_name = "TO")]
    pub to: String,
}

/// A file somewhere.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    Pod { namespace: Option<String>, pod: String, path: String },
}

impl Place {
    /// As kubectl, but a path that begins with `/` or `.` is one of this machine, whatever else is in it.
    fn parse(text: &str) -> Result<Place, Error> {
        let wrong = |why: &str| Error::usage(format!("{text:?}: {why}: want PATH, POD:PATH or NAMESPACE/POD:PATH"));
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        let (pod, path) = match text.split_once(':') {
            Some(split) if !text.starts_with(['/', '.']) => split,
            _ => return Ok(Place::Here(text.into())),
        };
        if path.is_empty() {
            return Err(wrong("the path is missing"));
        }
        let (namespace, pod) = match pod.split_once('/') {
            Some((namespace, pod)) => (Some(namespace.to_owned()), pod),
            None => (None, pod),
        };
        if pod.is_empty() || pod.contains('/') || namespace.as_deref() == Some("") {
            return Err(wrong("the pod's name is wrong"));
        }
        Ok(Place::Pod { namespace, pod: pod.to_owned(), path: path.to_owned() })
    }
}

/// Runs `cp`.
pub(super) async fn cp(client: &Client, namespace: &str, options: &Options) -> Result<i32, Error> {
    let container = options.container.as_deref();
    match (Place::parse(&options.from)?, Place::parse(&options.to)?) {
        (Place::Here(from), Place::Pod { namespace: other, pod, path }) => {
            let url = url(client, other.as_deref().unwrap_or(namespace), &pod, container, "to", &path).await?;
            send(client, &url, from).await
        }
        (Place::Pod { namespace: other, pod, path }, Place::Here(to)) => {
            let url = url(client, other.as_deref().unwrap_or(namespace), &pod, container, "from", &path).await?;
            receive(client, &url, to).await
        }
        (Place::Here(_), Place::Here(_)) => Err(Error::usage("one of the two has to be in a pod: POD:PATH")),
        _ => Err(Error::usage("one of the two has to be on this machine; its path may begin with ./")),
    }
}

async fn url(
    client: &Client,
    namespace: &str,
    pod: &str,
    container: Option<&str>,
    way: &str,
    path: &str,
) -> Result<String, Error> {
    let container = match container {
        Some(container) => container.to_owned(),
        None => default_container(&client.get(&pod_path(namespace, pod)).await?),
    };
    let (namespace, pod) = (encode(namespace), encode(pod));
    let (container, path) = (encode(&container), encode(path));
    Ok(format!("/coracle/v1/namespaces/{namespace}/pods/{pod}/copy?container={container}&{way}={path}"))
}

async fn send(client: &Client, url: &str, from: PathBuf) -> Result<i32, Error> {
    // Before anything is asked of the container.
    std::fs::metadata(&from).map_err(|error| Error::new(format!("cannot read {}", from.display()), error))?;
    let socket = client.upgrade(url).await?;
    let (near, far) = pipe();
    let packing = std::thread::spawn(move || {
        let mut warnings = Warnings::default();
        copy::pack(&from, near, &mut |text| warnings.say(&text))
    });
    let status = session::talk(socket, Some(session::read_from(far)), false, |_| Ok(())).await?;
    let code = session::exit_code("cannot copy", &status)?;
    // What went wrong there has been said; one that ended early takes the rest of the archive no more.
    match packing.join() {
        Ok(Err(error)) if code == 0 => Err(Error::new("cannot copy", chain(&error))),
        _ => Ok(code),
    }
}

async fn receive(client: &Client, url: &str, to: PathBuf) -> Result<i32, Error> {
    let socket = client.upgrade(url).await?;
    let (mut near, far) = pipe();
    let unpacking = std::thread::spawn(move || {
        let mut far = far;
        let belief = Belief { links: false, owners: false };
        let mut warnings = Warnings::default();
        let result = copy::unpack(&mut far, &to, belief, &mut |text| warnings.say(&text));
        if result.is_ok() {
            // Padding after the archive's end.
            let _ = io::copy(&mut far, &mut io::sink());
        }
        result
    });
    let mut is_open = true;
    let status = session::talk(socket, None, false, |bytes| {
        // When unpacking has failed, that is told below; the far side need not go on.
        is_open = is_open && near.write_all(bytes).is_ok();
        if is_open { Ok(()) } else { Err(Error::broken_pipe()) }
    })
    .await;
    drop(near);
    let unpacked = unpacking.join().map_err(|_| Error::new("cannot copy", "the unpacking thread failed"))?;
    match status {
        Ok(status) => match session::exit_code("cannot copy", &status)? {
            0 => unpacked.map(|()| 0).map_err(|error| Error::new("cannot copy", chain(&error))),
            code => Ok(code),
        },
        Err(error) => match unpacked {
            Err(first) if !is_open => Err(Error::new("cannot copy", chain(&first))),
            _ => Err(error),
        },
    }
}

/// Most warnings that are shown: a folder of links is told in one line.
const SHOWN: usize = 5;

/// How many there were; dropping it tells of those that were not shown.
#[derive(Default)]
struct Warnings(usize);

impl Warnings {
    fn say(&mut self, text: &str) {
        self.0 += 1;
        if self.0 <= SHOWN {
            eprintln!("warning: {text}");
        }
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        if self.0 > SHOWN {
            eprintln!("warning: and {} more", self.0 - SHOWN);
        }
    }
}

/// A pipe within this process.
fn pipe() -> (Writing, Reading) {
    let (sender, receiver) = sync_channel(QUEUE);
    (Writing(sender), Reading { pieces: receiver, rest: io::Cursor::default() })
}

struct Writing(SyncSender<Vec<u8>>);

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Reading {
    pieces: Receiver<Vec<u8>>,
    rest: io::Cursor<Vec<u8>>,
}

impl Read for Reading {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.rest.read(room)? {
                0 if room.is_empty() => return Ok(0),
                0 => match self.pieces.recv() {
                    Ok(piece) => self.rest = io::Cursor::new(piece),
                    Err(_) => return Ok(0),
                },
                count => return Ok(count),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_kubectl_reads_them() {
        let pod = |namespace: Option<&str>, path: &str| Place::Pod {
            namespace: namespace.map(str::to_owned),
            pod: "web".to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(Place::parse("web:/etc/hosts").unwrap(), pod(None, "/etc/hosts"));
        assert_eq!(Place::parse("kube/web:a:b").unwrap(), pod(Some("kube"), "a:b"));
        for here in ["file", "./web:x", "/a:b", "dir/file"] {
            assert_eq!(Place::parse(here).unwrap(), Place::Here(here.into()));
        }
        for bad in ["", ":x", "web:", "a/b/c:x"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }
}
