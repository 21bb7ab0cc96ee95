//! `localAPI`: the Kubernetes API that a node without a cluster serves on loopback.

use super::Error;
use super::file::Section;
use super::server::LocalApi;
use serde_json::{Map, Value};

/// Reads the section of a `CoracleConfiguration`.
pub(super) fn own_section(map: &Map<String, Value>, local: &mut LocalApi) -> Result<(), Error> {
    let section = Section { path: "CoracleConfiguration.localAPI", map };
    section.reject_unknown(&["port", "readOnly"], &[])?;
    if let Some(port) = section.integer("port", 0, 65535)? {
        local.port = port as u16;
    }
    if let Some(read_only) = section.boolean("readOnly")? {
        local.read_only = read_only;
    }
    Ok(())
}
