//! The image store over the socket.

use super::Node;
use super::reply::{self, Failure, Reply, blocking};
use super::route::Query;
use super::types::{ImageItem, ImageList};
use crate::image::Image;
use crate::runtime::chain;
use hyper::StatusCode;
use hyper::body::Bytes;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Answers `GET /coracle/v1/images`.
pub(super) async fn list(node: Arc<dyn Node>) -> Result<Reply, Failure> {
    let store = node.images();
    let images = blocking(move || store.list()).await?;
    reply::json(&image_list(&images, node.as_ref()))
}

/// Answers `POST /coracle/v1/images/import?path=…` with the images of the archive.
pub(super) async fn import(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let path = PathBuf::from(query.get("path").ok_or_else(|| Failure::bad_request("path: an archive is required"))?);
    if !path.is_absolute() {
        return Err(Failure::bad_request(format!("path: {} is not absolute", path.display())));
    }
    let store = node.images();
    let imported = blocking(move || store.import(&path).map_err(|error| chain(&error))).await?;
    let images = imported.map_err(|error| Failure::invalid(error, Vec::new()))?;
    node.rescan();
    reply::json(&image_list(&images, node.as_ref()))
}

/// Answers `DELETE /coracle/v1/images?name=…`.
pub(super) async fn remove(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let name = query.get("name").ok_or_else(|| Failure::bad_request("name: an image is required"))?.to_owned();
    let (store, in_use) = (node.images(), node.images_in_use());
    let removed = blocking(move || {
        if store.resolve(&name).is_none() {
            return Err(Failure::not_found(format!("image {name:?} not found")));
        }
        store.remove(&name, &in_use).map_err(|error| Failure::conflict(chain(&error)))
    });
    removed.await??;
    reply::json(&serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
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

/// By image ID, the pods that use it.
fn users(node: &dyn Node) -> HashMap<String, BTreeSet<String>> {
    let mut users: HashMap<String, BTreeSet<String>> = HashMap::new();
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

fn image_list(images: &[Arc<Image>], node: &dyn Node) -> ImageList {
    let in_use: HashSet<String> = node.images_in_use().into_iter().collect();
    let users = users(node);
    let item = |image: &Arc<Image>| ImageItem {
        added: image.added,
        pinned: image.pinned,
        used_by: users.get(&image.id).into_iter().flatten().cloned().collect(),
        id: image.id.clone(),
        names: image.names.clone(),
        size: image.size,
        created: image.config.created().clone(),
        in_use: in_use.contains(image.id.as_str()),
    };
    let mut items: Vec<ImageItem> = images.iter().map(item).collect();
    items.sort_by(|a, b| (&a.names, &a.id).cmp(&(&b.names, &b.id)));
    ImageList { kind: "ImageList".to_owned(), api_version: "coracle.dev/v1alpha1".to_owned(), items }
}
