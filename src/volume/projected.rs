//! Which files a volume of the projected family holds. Pure: every source becomes part of one [`Payload`].

use super::Error;
use super::downward;
use super::payload::Payload;
use crate::pod::resources::Allocatable;
use k8s_openapi::api::core::v1::{Pod, Volume};

/// A volume that is made from objects, and written by [`super::atomic`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Projection {
    /// Its folder below `volumes/`, as kubelet names it.
    pub(super) plugin: &'static str,
    pub(super) payload: Payload,
}

/// The content of `volume`; `None` for a kind that is not made from objects.
///
/// # Errors
/// [`Error::Field`], [`Error::Resources`], [`Error::Payload`]; [`Error::Unsupported`] for a source that this node does not
/// have.
pub(super) fn projection(pod: &Pod, volume: &Volume, node: &Allocatable) -> Result<Option<Projection>, Error> {
    let mut payload = Payload::default();
    let plugin = match (&volume.downward_api, &volume.projected) {
        (Some(source), None) => {
            let mode = source.default_mode.unwrap_or(downward::DEFAULT_MODE);
            downward::add(&mut payload, pod, source.items.as_deref().unwrap_or_default(), mode, node)?;
            "kubernetes.io~downward-api"
        }
        (None, Some(source)) => {
            let mode = source.default_mode.unwrap_or(downward::DEFAULT_MODE);
            for part in source.sources.iter().flatten() {
                let Some(api) = &part.downward_api else {
                    let what = "a projected source other than downwardAPI".to_owned();
                    return Err(Error::Unsupported { name: volume.name.clone(), what });
                };
                downward::add(&mut payload, pod, api.items.as_deref().unwrap_or_default(), mode, node)?;
            }
            "kubernetes.io~projected"
        }
        _ => return Ok(None),
    };
    Ok(Some(Projection { plugin, payload }))
}
