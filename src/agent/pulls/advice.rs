//! What a person may do about a pull that failed.

use super::host;
use crate::config;
use crate::image;
use crate::image::registry::Error;
use std::path::Path;

/// The next step, if there is one that we know of. `full` is the image's full name, `root_dir` the kubelet's folder.
pub(super) fn advice(error: &Error, full: &str, rules: &config::Images, root_dir: &Path) -> Option<String> {
    let host = host(full);
    let advice = match error {
        Error::Unauthorized { .. } => {
            let mut files: Vec<String> = rules.auth_files.iter().map(|path| path.display().to_string()).collect();
            files.push(root_dir.join("config.json").display().to_string());
            files.push("~/.docker/config.json".to_owned());
            files.push("/run/containers/0/auth.json".to_owned());
            format!("credentials for {host} are read from {}", files.join(", "))
        }
        Error::Unavailable { reason, .. } if reason.to_lowercase().contains("certificate") => {
            let folder = rules.certs_dirs.first().map_or_else(|| "certs.d".into(), |dir| dir.join(host));
            format!(
                "if {host} has an authority of its own, its certificate belongs into {}",
                folder.join("ca.crt").display()
            )
        }
        Error::Unavailable { .. } => format!(
            "mirrors and registries without TLS are set in {}; without a network: coracle image import FILE",
            rules.registries_conf.display()
        ),
        Error::NotFound { .. } => format!(
            "look for a slip in the name and the tag; {host} may say the same to somebody who may not see the image"
        ),
        Error::Refused(_) => format!("what is accepted is set in {}", rules.policy.display()),
        Error::Image(image::Error::Platform { wanted, .. }) => {
            format!("the image has to be built, or pushed, for linux/{wanted} too")
        }
        Error::Image(image::Error::NoSpace { .. }) => {
            "coracle image prune removes what no pod uses; coracle image ls tells sizes".to_owned()
        }
        Error::Image(image::Error::InvalidImageName { .. }) => {
            "a name is [HOST[:PORT]/]PATH[:TAG][@sha256:DIGEST], for example registry.example/team/app:1.2".to_owned()
        }
        Error::Image(_) | Error::Protocol { .. } | Error::Settings { .. } | Error::Cancelled => return None,
    };
    Some(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_step_names_the_files_of_this_node() {
        let rules = config::Images {
            auth_files: vec!["/etc/edge/auth.json".into()],
            certs_dirs: vec!["/etc/edge/certs.d".into()],
            ..config::Images::default()
        };
        let of = |error: &Error| advice(error, "r.example:5000/team/app:1", &rules, Path::new("/var/lib/edge"));
        let (url, no) = (|| "https://r.example:5000".to_owned(), |reason: &str| reason.to_owned());
        for (error, parts) in [
            (
                Error::Unauthorized { url: url(), reason: no("401") },
                &["r.example:5000", "/etc/edge/auth.json", "/var/lib/edge/config.json"][..],
            ),
            (
                Error::Unavailable { url: url(), reason: no("invalid peer certificate: UnknownIssuer") },
                &["/etc/edge/certs.d/r.example:5000/ca.crt"],
            ),
            (
                Error::Unavailable { url: url(), reason: no("connection refused") },
                &["/etc/containers/registries.conf", "coracle image import"],
            ),
            (Error::NotFound { image: no("i") }, &["name", "tag"]),
        ] {
            let advice = of(&error).unwrap();
            assert!(parts.iter().all(|part| advice.contains(part)), "{error}: {advice}");
        }
        assert_eq!(of(&Error::Cancelled), None);
    }
}
