//! `POST /coracle/v1/images/verify`: one line of JSON for each step, as it happens.

use super::Node;
use super::reply::{self, Failure, Reply};
use super::route::Query;
use super::types::VerifyLine;
use crate::image::{Error, Step};
use crate::runtime::chain;
use hyper::StatusCode;
use hyper::body::Bytes;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Steps that wait for a slow reader.
const WAITING: usize = 16;

/// Answers `POST /coracle/v1/images/verify?name=…&name=…`; all images without a name. A verification goes on to its end
/// when nobody listens any more, so that what it finds is dealt with.
pub(super) async fn verify(node: Arc<dyn Node>, query: &Query) -> Result<Reply, Failure> {
    let names: Vec<String> = query.all("name").filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let store = node.images();
    let known = store.clone();
    let wanted = names.clone();
    // A name that is not there is a refusal, not a line.
    let absent = reply::blocking(move || wanted.into_iter().find(|name| !known.has(name))).await?;
    if let Some(name) = absent {
        return Err(Failure::not_found(format!("image {name:?} not found")));
    }
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(WAITING);
    tokio::task::spawn_blocking(move || {
        let tell = |line: &VerifyLine| {
            if let Ok(mut bytes) = serde_json::to_vec(line) {
                bytes.push(b'\n');
                // Nobody listens: it is still worth knowing.
                let _ = sender.blocking_send(Ok(bytes.into()));
            }
        };
        let mut told = |step: Step| {
            tell(&VerifyLine { image: step.image, message: step.message, damaged: step.damaged, healing: false });
        };
        match store.verify(&names, &mut told) {
            Ok(damages) => {
                for damage in damages {
                    let image = damage.names.first().unwrap_or(&damage.image).clone();
                    let message = "it is not used until it is brought back, which has begun".to_owned();
                    tell(&VerifyLine { image, message, damaged: true, healing: true });
                }
            }
            Err(error) => {
                let image = match &error {
                    Error::NotFound { reference } => reference.clone(),
                    _ => String::new(),
                };
                tell(&VerifyLine { image, message: chain(&error), damaged: true, healing: false });
            }
        }
    });
    Ok(reply::with_type(StatusCode::OK, "application/json", reply::stream(receiver)))
}
