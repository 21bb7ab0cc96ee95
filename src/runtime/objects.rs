//! ConfigMaps and Secrets on their way into a pod's volumes.

use super::{Error, Runtime, credentials};
use crate::manifest::Object;
use crate::volume::{self, Given};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

impl Runtime {
    /// What the pod's volumes are made from.
    pub(super) fn given(&self, pod: &Pod) -> Given {
        let mut given = Given { node: self.resources.allocatable.of_fields(), ..Given::default() };
        let wanted = volume::objects(pod);
        if wanted.is_empty() {
            return given;
        }
        let (all, directory) = (self.objects(), credentials::directory());
        for id in wanted {
            match all.get(&id) {
                Some(Object::Secret(secret)) => match credentials::unseal(secret, directory.as_deref()) {
                    Ok(whole) => drop(given.objects.insert(Object::Secret(Arc::new(whole.into_owned())))),
                    Err(error) => drop(given.unavailable.insert(id, super::chain(&error))),
                },
                Some(object) => drop(given.objects.insert(object.clone())),
                None => {}
            }
        }
        given
    }

    /// Brings the volumes of a pod that are made from objects up to date, while its containers read them. Nothing else may
    /// act on the pod meanwhile. Tells how many were written anew.
    ///
    /// # Errors
    /// The first volume that fails; its readers keep the old files.
    pub fn refresh_volumes(&self, pod: &Pod) -> Result<usize, Error> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        Ok(volume::refresh(pod, &self.layout.volumes(uid), &self.given(pod))?)
    }
}
