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

#[cfg(test)]
mod tests {
    use super::super::{Config, Facts, File, Flags};
    use super::*;

    #[test]
    fn the_local_api_is_off_until_it_is_configured() {
        let read = |text: &str| {
            let head = "apiVersion: coracle.dev/v1alpha1\nkind: CoracleConfiguration\n";
            let text = format!("{head}{text}");
            let facts = Facts { hostname: "edge".to_owned() };
            let resolved = Config::resolve(&Flags::default(), &[File::main("config.yaml", &text)], &facts);
            resolved.map(|(config, _)| config.server.local_api).map_err(|error| crate::causes::chain(&error))
        };
        assert_eq!(read(""), Ok(LocalApi { port: 0, read_only: false }));
        assert_eq!(read("localAPI: {port: 10251, readOnly: true}"), Ok(LocalApi { port: 10251, read_only: true }));
        for bad in ["localAPI: {port: 65536}", "localAPI: {readonly: true}", "localAPI: {readOnly: 1}", "localAPI: 1"] {
            assert!(read(bad).is_err_and(|error| error.contains("CoracleConfiguration.localAPI")), "{bad}");
        }
    }
}
