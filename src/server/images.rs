//! The image store over the socket.

use super::Node;
use super::reply::{self, Failure, Reply, blocking};
use super::route::Query;
use super::types::{ImageItem, ImageList};
use crate::image::Image;
use crate::runtime::chain;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Answers `GET /coracle/v1/images`.
pub(super) async fn list(node: Arc<dyn Node>) -> Result<Reply, Failure> {
    let store = node.images();
    let images = blocking(move || store.list()).await?;
    reply::json(&image_list(&images, &node.images_in_use()))
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
    reply::json(&image_list(&images, &node.images_in_use()))
}

/// Answers `DELETE /coracle/v1/images?name=…`.
pub(super) async fn remove(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let name = query.get("name").ok_or_else(|| Failure::bad_request("name: an image is required"))?.to_owned();
    let (store, in_use) = (node.images(), node.images_in_use());
    let removed = blocking(move || {
        if !store.has(&name) {
            return Err(Failure::not_found(format!("image {name:?} not found")));
        }
        store.remove(&name, &in_use).map_err(|error| Failure::conflict(chain(&error)))
    });
    removed.await??;
    reply::json(&serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
}

fn image_list(images: &[Arc<Image>], in_use: &[String]) -> ImageList {
    let in_use: HashSet<&str> = in_use.iter().map(String::as_str).collect();
    let item = |image: &Arc<Image>| ImageItem {
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
