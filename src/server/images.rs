//! The image store over the socket.

use super::Node;
use super::reply::{self, Failure, Reply, blocking};
use super::route::Query;
use super::types::{ImageItem, ImageList, Pruned, PrunedImage, RemovedImage};
use crate::image::blob::Compression;
use crate::image::{Account, Error, Image, Users};
use crate::runtime::chain;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, StatusCode};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;

/// Pieces of an archive that wait between the socket and the store.
const PIECES: usize = 4;
/// How long either side may be silent: what writes or reads the other end of a pipe may have work to do.
const STREAM_TIME: Duration = Duration::from_secs(600);

/// Answers `GET /coracle/v1/images`.
pub(super) async fn list(node: Arc<dyn Node>) -> Result<Reply, Failure> {
    image_list(items(node).await?)
}

/// All images, also those that are damaged.
pub(super) async fn items(node: Arc<dyn Node>) -> Result<Vec<ImageItem>, Failure> {
    let store = node.images();
    let images = blocking(move || [store.list(), store.broken()].concat()).await?;
    image_items(images, node).await
}

/// Answers `POST /coracle/v1/images/import?path=…` with the images of the archive; without a path it is the body.
pub(super) async fn import(node: Arc<dyn Node>, query: &Query, request: Request<Incoming>) -> Result<Reply, Failure> {
    let store = node.images();
    let imported = match query.get("path").map(PathBuf::from) {
        Some(path) if !path.is_absolute() => {
            return Err(Failure::bad_request(format!("path: {} is not absolute", path.display())));
        }
        Some(path) => blocking(move || store.import(&path).map_err(|error| chain(&error))).await?,
        None => {
            let (sender, receiver) = mpsc::channel(PIECES);
            let source = Upload { receiver, piece: Bytes::new() };
            let import = blocking(move || {
                let name = Path::new("standard input");
                store.import_stream(name, source).map_err(|error| chain(&error))
            });
            let ((), imported) = tokio::join!(forward(request.into_body(), sender), import);
            imported?
        }
    };
    // Also after a failure: other images of the archive may have come in.
    node.images_changed();
    let images = imported.map_err(|error| Failure::invalid(error, Vec::new()))?;
    image_list(image_items(images, node).await?)
}

/// Hands the pieces of a body on; to its end even when nobody wants them any more, because a client that is still writing
/// would not read the answer.
async fn forward(mut body: Incoming, sender: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let piece = match tokio::time::timeout(STREAM_TIME, body.frame()).await {
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the rest did not arrive in time")),
            Ok(None) => return,
            Ok(Some(Err(error))) => Err(io::Error::other(error)),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(piece) => Ok(piece),
                Err(_) => continue,
            },
        };
        let last = piece.is_err();
        // Nobody listens after a failure, which is the answer.
        let _ = sender.send(piece).await;
        if last {
            return;
        }
    }
}

/// A body as a blocking reader.
struct Upload {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Upload {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buf.len());
        buf[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// Answers `GET /coracle/v1/images/export?name=…&compress=…` with an archive of the images.
pub(super) async fn export(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let names: Vec<String> = query.all("name").filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(Failure::bad_request("name: an image is required"));
    }
    let packing = match query.get("compress") {
        None | Some("none") => Compression::None,
        Some("gzip") => Compression::Gzip,
        Some("zstd") => Compression::Zstd,
        Some(other) => return Err(Failure::bad_request(format!("compress: {other:?} is not none, gzip or zstd"))),
    };
    let store = node.images();
    // The beginning of an ID is enough, as lists show it.
    let whole = |store: &crate::image::ImageStore, name: String| match store.pick(&name) {
        Ok(image) if store.lookup(&name).is_none() => image.id.clone(),
        _ => name,
    };
    let names = move |store: &crate::image::ImageStore| -> Vec<String> {
        names.into_iter().map(|name| whole(store, name)).collect()
    };
    let prepare = move || match store.export(&names(&store)) {
        Ok(export) => Ok((store, export)),
        Err(error @ Error::NotFound { .. }) => Err(Failure::not_found(chain(&error))),
        Err(error) => Err(Failure::conflict(chain(&error))),
    };
    let (store, export) = blocking(prepare).await??;
    let (sender, receiver) = mpsc::channel(PIECES);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut out = Download { sender, runtime };
        if let Err(error) = store.write_export(&export, &mut out, packing) {
            tracing::warn!(error = chain(&error), "an export broke off");
            // Cuts the connection: half an archive must not be taken for whole.
            let _ = out.sender.blocking_send(Err(io::Error::other(chain(&error))));
        }
    });
    Ok(reply::with_type(StatusCode::OK, "application/x-tar", reply::stream(receiver)))
}

/// The body of an answer as a blocking writer.
struct Download {
    sender: mpsc::Sender<io::Result<Bytes>>,
    runtime: tokio::runtime::Handle,
}

impl Write for Download {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let send = self.sender.send_timeout(Ok(Bytes::copy_from_slice(buf)), STREAM_TIME);
        match self.runtime.block_on(send) {
            Ok(()) => Ok(buf.len()),
            Err(SendTimeoutError::Timeout(_)) => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads it")),
            Err(SendTimeoutError::Closed(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers `POST /coracle/v1/images/prune?all=…&dryRun=…` with the images that went, or would go.
pub(super) async fn prune(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let (all, dry_run) = (query.flag("all")?, query.flag("dryRun")?);
    let collector = node.collector();
    let pruned = blocking(move || collector.prune(all, dry_run).map_err(|error| Failure::conflict(chain(&error))));
    let collected = pruned.await??;
    let item = |image: crate::image::Removed| PrunedImage { id: image.id, names: image.names, size: image.size };
    reply::json(&Pruned {
        kind: "PrunedImages".to_owned(),
        api_version: "coracle.dev/v1alpha1".to_owned(),
        items: collected.removed.into_iter().map(item).collect(),
        freed: collected.freed,
        dry_run,
    })
}

/// Answers `DELETE /coracle/v1/images?name=…&force=…`.
pub(super) async fn remove(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let name = query.get("name").ok_or_else(|| Failure::bad_request("name: an image is required"))?.to_owned();
    let force = query.flag("force")?;
    let collector = node.collector();
    let removed = blocking(move || {
        collector.remove(&name, force).map_err(|error| match error {
            Error::NotFound { .. } => Failure::not_found("no such image"),
            error => Failure::conflict(chain(&error)),
        })
    });
    let removed = removed.await??;
    reply::json(&RemovedImage {
        kind: "RemovedImage".to_owned(),
        api_version: "coracle.dev/v1alpha1".to_owned(),
        id: removed.id,
        names: removed.names,
        left: removed.left,
        freed: removed.freed,
    })
}

/// Answers `POST /coracle/v1/images/pull?name=…` with a [`PullLine`](super::types::PullLine) a line. When the client
/// leaves, the pull is given up.
pub(super) fn pull(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let name = query.get("name").ok_or_else(|| Failure::bad_request("name: an image is required"))?;
    let mut lines = node.pull(name);
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        // Both arms only wait.
        while let Some(line) = tokio::select! { line = lines.recv() => line, () = sender.closed() => None } {
            let line = serde_json::to_vec(&line).map(|mut line| {
                line.push(b'\n');
                Bytes::from(line)
            });
            if sender.send(line.map_err(io::Error::other)).await.is_err() {
                return;
            }
        }
    });
    Ok(reply::with_type(StatusCode::OK, "application/x-ndjson", reply::stream(receiver)))
}

/// By image ID, the pods that run on it, as they say themselves: when it cannot be told what is used beyond that.
fn running(node: &dyn Node) -> Users {
    let mut users = Users::new();
    for pod in node.pods() {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let name = format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name));
        let lists = pod.status.iter().flat_map(|s| [&s.init_container_statuses, &s.container_statuses]);
        for container in lists.flatten().flatten().filter(|container| !container.image_id.is_empty()) {
            users.entry(container.image_id.clone()).or_default().insert(name.clone());
        }
    }
    users
}

/// These images, with what a removal would go by.
async fn image_items(images: Vec<Arc<Image>>, node: Arc<dyn Node>) -> Result<Vec<ImageItem>, Failure> {
    let (store, collector) = (node.images(), node.collector());
    let (account, broken) = blocking(move || (collector.account(), store.broken())).await?;
    let account = account.unwrap_or_else(|error| {
        tracing::debug!(error = chain(&error), "images are listed with what runs on them");
        Account { users: running(node.as_ref()), ..Account::default() }
    });
    let item = |image: &Arc<Image>| ImageItem {
        added: image.added,
        pinned: image.pinned,
        used_by: account.users.get(&image.id).into_iter().flatten().cloned().collect(),
        id: image.id.clone(),
        names: image.names.clone(),
        size: image.size,
        unique: account.unique.get(&image.id).copied().unwrap_or(0),
        created: image.config.created().clone(),
        in_use: account.users.contains_key(&image.id),
        damaged: broken.iter().any(|other| other.id == image.id),
        verified: image.verified.clone(),
    };
    let mut items: Vec<ImageItem> = images.iter().map(item).collect();
    items.sort_by(|a, b| (&a.names, &a.id).cmp(&(&b.names, &b.id)));
    Ok(items)
}

fn image_list(items: Vec<ImageItem>) -> Result<Reply, Failure> {
    reply::json(&ImageList { kind: "ImageList".to_owned(), api_version: "coracle.dev/v1alpha1".to_owned(), items })
}
