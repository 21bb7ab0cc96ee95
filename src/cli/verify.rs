//! `image verify`.

use super::client::{Client, decode};
use super::error::Error;
use super::print;
use super::table::printable;
use crate::server::encode;
use crate::server::types::VerifyLine;

/// Runs `image verify`; 1 when something is damaged.
pub(super) async fn verify(client: &Client, names: &[String]) -> Result<i32, Error> {
    let query: Vec<String> = names.iter().map(|name| format!("name={}", encode(name))).collect();
    let mut stream = client.stream_post(&format!("/coracle/v1/images/verify?{}", query.join("&"))).await?;
    let mut damaged = false;
    while let Some(line) = stream.line().await? {
        let line: VerifyLine = decode(&line)?;
        damaged |= line.damaged;
        let mark = if line.damaged && !line.healing { "DAMAGED: " } else { "" };
        print(&format!("{}: {mark}{}\n", printable(&line.image), printable(&line.message)))?;
    }
    Ok(i32::from(damaged))
}
