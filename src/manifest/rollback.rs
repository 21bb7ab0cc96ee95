//! The annotation that puts a new revision of a pod on trial.

use super::duration;
use super::report::Report;
use k8s_openapi::api::core::v1::Pod;
use std::time::Duration;

/// Annotation of a pod: a new revision that is not Ready by then is rolled back (`60s`, as Go writes durations).
pub const ROLLBACK_AFTER: &str = "coracle.dev/rollback-after";

/// The shortest limit: container starts take tenths of a second.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// The longest.
const MAX_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a new revision of this pod has to become Ready; `None`: it is not to be rolled back.
///
/// # Errors
/// Why the annotation [`ROLLBACK_AFTER`] cannot be followed. A pod of a manifest has no such annotation.
pub fn rollback_after(pod: &Pod) -> Result<Option<Duration>, String> {
    let Some(text) = pod.metadata.annotations.as_ref().and_then(|all| all.get(ROLLBACK_AFTER)) else { return Ok(None) };
    let window = duration(text).map_err(|why| format!("Invalid value: {why}"))?;
    if window < MIN_WINDOW || window > MAX_WINDOW {
        return Err(format!("Invalid value: {text:?}: must be from 1s to 24h"));
    }
    Ok(Some(window))
}

/// Reports a limit that cannot be followed.
pub(super) fn check(pod: &Pod, report: &mut Report<'_>) {
    if let Err(reason) = rollback_after(pod) {
        report.error(format!("metadata.annotations[{ROLLBACK_AFTER}]"), reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Origin, load};
    use serde_json::json;

    fn annotated(value: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"annotations": {ROLLBACK_AFTER: value}}})).unwrap()
    }

    #[test]
    fn the_annotation_is_a_duration() {
        assert_eq!(rollback_after(&Pod::default()), Ok(None));
        assert_eq!(rollback_after(&annotated("60s")), Ok(Some(Duration::from_secs(60))));
        assert_eq!(rollback_after(&annotated("1h30m")), Ok(Some(Duration::from_secs(5400))));
        for bad in ["", "60", "soon", "-5s", "0", "999ms", "25h", "60s "] {
            let why = rollback_after(&annotated(bad)).unwrap_err();
            assert!(why.starts_with("Invalid value: ") && why.contains(bad), "{bad}: {why}");
        }
    }

    #[test]
    fn a_manifest_with_a_limit_that_cannot_be_followed_is_refused_with_its_place() {
        let manifest = |value: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    {ROLLBACK_AFTER}: {value}\n\
                 spec:\n  containers:\n  - {{name: c, image: i}}\n"
            );
            load(text.as_bytes(), Origin::File("/m/web.yaml"), "n")
        };
        assert_eq!(manifest("90s").problems, []);
        let loaded = manifest("soon");
        let told: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
        let want = "line 6: metadata.annotations[coracle.dev/rollback-after]: Invalid value: \"soon\" is not a duration \
                    such as 300ms, 20s, 1h30m";
        assert_eq!((told, loaded.pods.len()), (vec![want.to_owned()], 0));
    }
}
