//! `logs`.

use super::client::Client;
use super::error::Error;
use super::print_bytes;
use crate::config::duration;
use crate::server::encode;
use k8s_openapi::api::core::v1::{Container, Pod};

/// Which part of which log.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Keep printing what the container writes, across restarts, until it ends for good
    #[arg(short, long)]
    pub follow: bool,
    /// The run before the present one
    #[arg(short, long)]
    pub previous: bool,
    /// Container [default: the pod's default or first]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Only the last N lines; -1 for all
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub tail: i64,
    /// Only lines of the last DURATION (5s, 2m, 3h)
    #[arg(long, value_name = "DURATION", conflicts_with = "since_time")]
    pub since: Option<String>,
    /// Only lines of this time or later (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub since_time: Option<String>,
    /// Print the time before each line
    #[arg(long)]
    pub timestamps: bool,
    /// Stop after N bytes
    #[arg(long, value_name = "N")]
    pub limit_bytes: Option<u64>,
}

impl Options {
    /// The query of the log endpoint.
    fn query(&self, container: &str) -> Result<String, Error> {
        let mut query = format!("container={}", encode(container));
        for (name, on) in [("follow", self.follow), ("previous", self.previous), ("timestamps", self.timestamps)] {
            if on {
                query.push_str(&format!("&{name}=true"));
            }
        }
        if self.tail >= 0 {
            query.push_str(&format!("&tailLines={}", self.tail));
        } else if self.tail < -1 {
            return Err(Error::usage("--tail must be greater than or equal to -1"));
        }
        if let Some(since) = &self.since {
            let since = duration(since).map_err(|why| Error::usage(format!("--since: {why}")))?;
            // As kubectl: whole seconds, rounded up.
            let seconds = since.as_secs() + u64::from(since.subsec_nanos() > 0);
            if seconds > 0 {
                query.push_str(&format!("&sinceSeconds={seconds}"));
            }
        }
        if let Some(time) = &self.since_time {
            query.push_str(&format!("&sinceTime={}", encode(time)));
        }
        if let Some(limit) = self.limit_bytes {
            query.push_str(&format!("&limitBytes={limit}"));
        }
        Ok(query)
    }
}

/// Runs `logs`.
pub(super) async fn logs(client: &Client, namespace: &str, name: &str, options: &Options) -> Result<i32, Error> {
    let path = pod_path(namespace, name);
    let container = match &options.container {
        Some(container) => container.clone(),
        None => default_container(&client.get(&path).await?),
    };
    let mut stream = client.stream(&format!("{path}/log?{}", options.query(&container)?)).await?;
    while let Some(bytes) = stream.piece().await? {
        print_bytes(&bytes)?;
    }
    Ok(0)
}

/// Path of a pod in the API.
pub(super) fn pod_path(namespace: &str, name: &str) -> String {
    // kubectl's pod/NAME.
    let name = name.strip_prefix("pod/").or_else(|| name.strip_prefix("pods/")).unwrap_or(name);
    format!("/api/v1/namespaces/{}/pods/{}", encode(namespace), encode(name))
}

/// The container meant when none is named; says so when there was a choice, as kubectl.
pub(super) fn default_container(pod: &Pod) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let annotated =
        pod.metadata.annotations.as_ref().and_then(|all| all.get("kubectl.kubernetes.io/default-container"));
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let exists = |name: &&String| init.iter().chain(&spec.containers).any(|container| container.name == **name);
    if let Some(name) = annotated.filter(exists) {
        return name.clone();
    }
    let first = spec.containers.first().map(|container| container.name.clone()).unwrap_or_default();
    if spec.containers.len() + init.len() > 1 {
        let plain = spec.containers.iter().map(|container| container.name.clone());
        let init = init.iter().map(|container: &Container| format!("{} (init)", container.name));
        let all: Vec<String> = plain.chain(init).collect();
        eprintln!("Defaulted container {first:?} out of: {}", all.join(", "));
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_become_the_endpoint_s_query() {
        let options =
            Options { follow: true, tail: 5, since: Some("1m0.5s".into()), limit_bytes: Some(7), ..Options::default() };
        assert_eq!(options.query("a").unwrap(), "container=a&follow=true&tailLines=5&sinceSeconds=61&limitBytes=7");
        assert_eq!(Options { tail: -1, ..Options::default() }.query("a").unwrap(), "container=a");
        assert!(Options { tail: -2, ..Options::default() }.query("a").is_err());
        assert!(Options { since: Some("x".into()), ..Options::default() }.query("a").is_err());
    }

    #[test]
    fn the_default_container_is_the_annotated_or_the_first() {
        let pod = |annotation: &str| {
            serde_json::from_value::<Pod>(json!({
                "metadata": {"annotations": {"kubectl.kubernetes.io/default-container": annotation}},
                "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]}
            }))
            .unwrap()
        };
        assert_eq!(default_container(&pod("b")), "b");
        assert_eq!(default_container(&pod("gone")), "a");
        assert_eq!(default_container(&Pod::default()), "");
    }
}
