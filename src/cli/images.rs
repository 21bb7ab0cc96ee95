//! `image import`, `rm` and `prune`.

use super::client::{Client, decode};
use super::error::Error;
use super::print;
use super::table::printable;
use crate::server::encode;
use crate::server::types::{ImageList, Pruned};
use hyper::Method;
use hyper::body::Bytes;

/// Runs `image import`.
pub(super) async fn import(client: &Client, archives: &[String]) -> Result<i32, Error> {
    for archive in archives {
        // The agent has another working directory.
        let path =
            std::path::absolute(archive).map_err(|error| Error::new(format!("cannot import {archive}"), error))?;
        if let Err(error) = std::fs::metadata(&path) {
            return Err(Error::new(format!("cannot import {archive}"), error));
        }
        let path =
            path.to_str().ok_or_else(|| Error::new(format!("cannot import {archive}"), "the path is not UTF-8"))?;
        let path = format!("/coracle/v1/images/import?path={}", encode(path));
        let answer = client.try_send(Method::POST, &path, Bytes::new()).await;
        let answer = answer.map_err(|(error, status)| match status.message {
            message if message.is_empty() => error,
            message => Error::new(format!("cannot import {archive}"), message),
        })?;
        let list: ImageList = decode(&answer)?;
        for image in &list.items {
            let name = image.names.first().unwrap_or(&image.id);
            print(&format!("{} imported ({})\n", printable(name), super::age::size(image.size)))?;
        }
    }
    Ok(0)
}

/// Runs `image rm`.
pub(super) async fn remove(client: &Client, names: &[String], force: bool) -> Result<i32, Error> {
    for name in names {
        let path = format!("/coracle/v1/images?name={}&force={force}", encode(name));
        let answer = client.try_send(Method::DELETE, &path, Bytes::new()).await;
        answer.map_err(|(error, status)| match status.message {
            message if message.is_empty() => error,
            message => Error::new(format!("cannot remove {name}"), message),
        })?;
        print(&format!("{} removed\n", printable(name)))?;
    }
    Ok(0)
}

/// Runs `image prune`.
pub(super) async fn prune(client: &Client, all: bool, dry_run: bool) -> Result<i32, Error> {
    let path = format!("/coracle/v1/images/prune?all={all}&dryRun={dry_run}");
    let answer = client.try_send(Method::POST, &path, Bytes::new()).await;
    let answer = answer.map_err(|(error, status)| match status.message {
        message if message.is_empty() => error,
        message => Error::new("cannot prune images", message),
    })?;
    let pruned: Pruned = decode(&answer)?;
    let (done, total) = match dry_run {
        true => ("would be removed", "would be freed"),
        false => ("removed", "freed"),
    };
    for image in &pruned.items {
        let name = image.names.first().unwrap_or(&image.id);
        print(&format!("{} {done} ({})\n", printable(name), super::age::size(image.size)))?;
    }
    print(&format!("{} {total}\n", super::age::size(pruned.freed)))?;
    Ok(0)
}
