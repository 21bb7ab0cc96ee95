//! ConfigMaps, Secrets and tokens on their way into a pod's volumes.

use super::{Error, Runtime, credentials};
use crate::manifest::{Object, ObjectId};
use crate::pod::is_from_api;
use crate::pod::supply::{self, Answer, Supply};
use crate::volume::{self, Given};
use k8s_openapi::api::core::v1::{Pod, Secret};
use std::borrow::Cow;
use std::sync::Arc;

impl Runtime {
    /// What the pod's volumes are made from.
    pub(super) fn given(&self, pod: &Pod) -> Given {
        let mut given = Given { node: self.resources.allocatable.of_fields(), ..Given::default() };
        let (wanted, tokens) = (volume::objects(pod), supply::tokens(pod));
        if wanted.is_empty() && tokens.is_empty() {
            return given;
        }
        let supply = self.supply_or_none(pod);
        for id in wanted {
            match supply.find(&id) {
                Answer::There(Object::Secret(secret)) => match whole(pod, secret) {
                    Ok(Cow::Borrowed(_)) => drop(given.objects.insert(Object::Secret(Arc::clone(secret)))),
                    Ok(Cow::Owned(whole)) => drop(given.objects.insert(Object::Secret(Arc::new(whole)))),
                    Err(error) => drop(given.unavailable.insert(id, super::chain(&error))),
                },
                Answer::There(object) => drop(given.objects.insert(object.clone())),
                Answer::NotThere => {}
                Answer::Unread(why) => drop(given.unread.insert(id, why)),
            }
        }
        given.tokens = tokens.into_iter().map(|id| (id.clone(), supply.token(&id).cloned())).collect();
        given
    }

    /// What the pod is made from. Of the cluster nothing may be known yet; of the node's own sources nothing means that there
    /// is nothing.
    pub(super) fn supply_or_none(&self, pod: &Pod) -> Arc<Supply> {
        self.supply(pod).unwrap_or_else(|| Arc::new(Supply { whole: !is_from_api(pod), ..Supply::default() }))
    }

    /// Whether everything that the pod is made from was asked about. If not, the answer comes in a moment; or no API server
    /// answers.
    #[must_use]
    pub fn is_settled(&self, pod: &Pod) -> bool {
        !is_from_api(pod) || self.supply(pod).is_some_and(|supply| supply.is_settled(pod))
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

/// The Secret with all its values. Only the node's own refer to its service manager's credentials: who writes Secrets in a
/// cluster has no right to them.
pub(super) fn whole<'a>(pod: &Pod, secret: &'a Secret) -> Result<Cow<'a, Secret>, credentials::Error> {
    match is_from_api(pod) {
        true => Ok(Cow::Borrowed(secret)),
        false => credentials::unseal(secret, credentials::directory().as_deref()),
    }
}

/// An object of the pod's namespace.
pub(super) fn beside(pod: &Pod, kind: crate::manifest::ObjectKind, name: &str) -> ObjectId {
    ObjectId { kind, namespace: pod.metadata.namespace.clone().unwrap_or_default(), name: name.to_owned() }
}
