//! Whether an image is used as it is here, pulled, or waited for: pull policy, back-off, and who may use what others
//! have pulled.

use super::Spec;
use crate::config::CredentialsVerification;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// First pause after a failed pull (as kubelet).
pub const MIN_BACKOFF: SignedDuration = SignedDuration::from_secs(10);
/// The longest one.
pub const MAX_BACKOFF: SignedDuration = SignedDuration::from_secs(300);
/// After this long without a failure the next one is the first.
pub const RESET: SignedDuration = SignedDuration::from_secs(600);
/// How long the failure itself is told before the wait for the next attempt is. The kubelet tells it until it happens to
/// look again.
pub const TELL: SignedDuration = SignedDuration::from_secs(2);

/// Kubelet's word for a registry that does not answer.
const UNAVAILABLE: &str = "RegistryUnavailable";

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// At each start of a container.
    Always,
    /// When there is none of its name that the pod may use.
    IfNotPresent,
    /// Never.
    Never,
}

impl Policy {
    /// Reads an `imagePullPolicy`. Without one, as the API server defaults it: `:latest` moves, everything else stays.
    #[must_use]
    pub fn of(text: Option<&str>, image: &str) -> Policy {
        match text {
            Some("Always") => Policy::Always,
            Some("IfNotPresent") => Policy::IfNotPresent,
            Some("Never") => Policy::Never,
            _ => {
                let last = image.rsplit('/').next().unwrap_or(image);
                let tagged = last.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest");
                if tagged { Policy::IfNotPresent } else { Policy::Always }
            }
        }
    }
}

/// The images that a container cannot start without, with their policies: its own, then those of the volumes it mounts.
pub fn needs<'a>(spec: &'a Spec, container: &'a Container) -> impl Iterator<Item = (&'a str, Policy)> {
    let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let volumes = spec.spec().volumes.iter().flatten().filter(move |volume| mounted(&volume.name));
    let sources = volumes.filter_map(|volume| volume.image.as_ref());
    let of_volumes = sources.map(|source| (source.reference.as_deref(), source.pull_policy.as_deref()));
    let own = (container.image.as_deref(), container.image_pull_policy.as_deref());
    std::iter::once(own).chain(of_volumes).map(|(image, policy)| {
        let image = image.unwrap_or_default();
        (image, Policy::of(policy, image))
    })
}

/// What the store has under an image's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// Nothing.
    Absent,
    /// An image that this pod may use.
    Usable,
    /// An image that was pulled with credentials this pod has not shown.
    Inaccessible,
    /// An image without the signatures that are wanted now, and what is wrong with it.
    Refused(String),
    /// As [`Local::Refused`], but the registry it is from may have the signatures.
    Unverified(String),
}

/// All that a decision depends on, besides the time.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// As the manifest writes it.
    pub image: &'a str,
    /// What is wrong with the name, if anything is.
    pub invalid: Option<&'a str>,
    /// When to pull.
    pub policy: Policy,
    /// What is here.
    pub local: &'a Local,
    /// How earlier pulls for this pod went.
    pub backoff: Option<&'a Backoff>,
    /// The pod's pull secrets as they are now.
    pub shown: &'a [Secret],
}

/// What to do about an image that a container is about to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Start from what is here.
    Use,
    /// Pull it now.
    Pull,
    /// Do not start.
    Wait(Waiting),
}

/// Why a container waits for its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Kubelet's word for it.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When it is looked at again; `None`: when something else changes.
    pub until: Option<Timestamp>,
}

/// Decides, as kubelet, but for one thing: a pull that failed with other pull secrets than the pod has now is tried again at
/// once, so that who corrects a Secret does not wait for what was wrong with the old one.
#[must_use]
pub fn decide(question: &Question<'_>, now: Timestamp) -> Decision {
    let Question { image, policy, .. } = *question;
    let never = |reason, message| Decision::Wait(Waiting { reason, message, until: None });
    if let Some(why) = question.invalid {
        let message =
            format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}");
        return never("InvalidImageName", message);
    }
    match (policy, question.local) {
        (Policy::Never | Policy::IfNotPresent, Local::Usable) => return Decision::Use,
        (Policy::Never, Local::Absent) => {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            return never("ErrImageNeverPull", message);
        }
        (Policy::Never, Local::Inaccessible) => {
            let message = format!(
                "Container image {image:?} was pulled with credentials that this pod does not have, with pull policy of \
                 Never"
            );
            return never("ErrImageNeverPull", message);
        }
        // It is here, so the network is not asked: the policy is what has to change, or the image, by hand.
        (Policy::Never | Policy::IfNotPresent, Local::Refused(why)) | (Policy::Never, Local::Unverified(why)) => {
            return never("SignatureValidationFailed", why.clone());
        }
        _ => {}
    }
    match question.backoff.filter(|backoff| backoff.holds(now) && backoff.shown == question.shown) {
        // It has come in another way, and may be used when the registry is still away: that is found out at once.
        Some(backoff) if backoff.reason == UNAVAILABLE && *question.local == Local::Usable => Decision::Pull,
        Some(backoff) => {
            let mut waiting = backoff.waiting(image, now);
            // Not that a registry is away keeps it from starting, but that only there may be what it lacks.
            if let Local::Unverified(why) = question.local {
                waiting.reason = "SignatureValidationFailed";
                waiting.message = format!("{why}; {}", waiting.message);
            }
            Decision::Wait(waiting)
        }
        None => Decision::Pull,
    }
}

/// How the last pull of an image for a pod failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    /// From the failure until the next pull.
    pub delay: SignedDuration,
    /// When it failed.
    pub failed: Timestamp,
    /// Kubelet's word for it.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The pull secrets it failed with, in the order in which they were tried.
    pub shown: Vec<Secret>,
}

impl Backoff {
    /// A pull with these secrets failed; `previous` is the failure before it.
    #[must_use]
    pub fn after(
        previous: Option<&Backoff>,
        reason: &'static str,
        message: String,
        shown: Vec<Secret>,
        now: Timestamp,
    ) -> Backoff {
        let recent = previous.filter(|previous| now.duration_since(previous.failed) <= RESET);
        let delay = recent.map_or(MIN_BACKOFF, |previous| (previous.delay * 2).min(MAX_BACKOFF));
        Backoff { delay, failed: now, reason, message, shown }
    }

    /// When the next pull may begin.
    #[must_use]
    pub fn until(&self) -> Timestamp {
        self.failed.checked_add(self.delay).unwrap_or(Timestamp::MAX)
    }

    /// Whether it is too early for the next pull. A clock that was set back ends the wait, so that it never takes longer
    /// than the delay.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        now >= self.failed && now < self.until()
    }

    /// Whether it can be forgotten.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        now.duration_since(self.failed).abs() > RESET
    }

    /// What a container says meanwhile.
    #[must_use]
    pub fn waiting(&self, image: &str, now: Timestamp) -> Waiting {
        let told = self.failed.checked_add(TELL).unwrap_or(Timestamp::MAX);
        if now < told {
            return Waiting { reason: self.reason, message: self.message.clone(), until: Some(told) };
        }
        Waiting { reason: "ImagePullBackOff", message: self.back_off_message(image), until: Some(self.until()) }
    }

    /// As kubelet, with the last error.
    #[must_use]
    pub fn back_off_message(&self, image: &str) -> String {
        format!("Back-off pulling image {image:?}: {}: {}", self.reason, self.message)
    }
}

/// Who may use an image that this node has pulled (as kubelet's `ImagePulledRecord`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// ID of the image.
    pub image: String,
    /// By the repository it was pulled from, without tag. A repository that is not here: nobody, before a pull of theirs.
    pub repositories: BTreeMap<String, Access>,
}

/// With what a repository was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// The node's own credentials, or none: it is open to every pod.
    #[serde(default)]
    pub node: bool,
    /// Pull secrets.
    #[serde(default)]
    pub secrets: BTreeSet<Secret>,
}

/// A pull secret without what is secret (as kubelet's `ImagePullSecret`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Where it is.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Which of this name: one that was deleted and made anew is another.
    pub uid: String,
    /// `sha256:…` of its content.
    pub credential_hash: String,
}

impl Secret {
    /// Whether who shows this shows what was recorded: the same object, whatever is in it by now, or the same content,
    /// wherever it is.
    fn is_as_good_as(&self, recorded: &Secret) -> bool {
        let same_object =
            (&self.namespace, &self.name, &self.uid) == (&recorded.namespace, &recorded.name, &recorded.uid);
        let same_content = !self.credential_hash.is_empty() && self.credential_hash == recorded.credential_hash;
        same_content || same_object
    }
}

impl std::fmt::Display for Secret {
    /// `namespace/name`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The rules of who must show credentials for images that are here.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// `imagePullCredentialsVerificationPolicy`.
    pub verification: CredentialsVerification,
    /// `preloadedImagesVerificationAllowlist`.
    pub allowlist: &'a [String],
}

impl Credentials<'_> {
    /// Whether a pod with these pull secrets may use the image that is here under this (full) repository. `preloaded`: it
    /// came to this machine in another way than by a pull, too.
    #[must_use]
    pub fn allow(&self, repository: &str, preloaded: bool, record: Option<&Record>, secrets: &[Secret]) -> bool {
        use CredentialsVerification as Verify;
        let free = match self.verification {
            Verify::NeverVerify => true,
            Verify::NeverVerifyPreloadedImages => preloaded || record.is_none(),
            Verify::NeverVerifyAllowlistedImages => self.allowlist.iter().any(|entry| covers(entry, repository)),
            Verify::AlwaysVerify => false,
        };
        let opened = || record.and_then(|record| record.repositories.get(repository));
        let shown =
            |access: &Access| access.secrets.iter().any(|known| secrets.iter().any(|own| own.is_as_good_as(known)));
        free || opened().is_some_and(|access| access.node || shown(access))
    }
}

/// Whether an entry of the allow list (`host/path`, `host/path/*`) names a repository.
fn covers(entry: &str, repository: &str) -> bool {
    match entry.strip_suffix("/*") {
        Some(folder) => repository.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')),
        None => entry == repository,
    }
}

/// A duration as Go prints it, to the millisecond: `345ms`, `1.2s`, `2m3.5s`.
#[must_use]
pub fn go_duration(duration: std::time::Duration) -> String {
    let total = duration.as_millis();
    let (hours, minutes, millis) = (total / 3_600_000, total / 60_000 % 60, total % 60_000);
    if total == 0 {
        return "0s".to_owned();
    }
    if total < 1000 {
        return format!("{total}ms");
    }
    let fraction = format!("{:03}", millis % 1000);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{point}{fraction}s", millis / 1000);
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, m) => format!("{m}m{seconds}"),
        (h, m) => format!("{h}h{m}m{seconds}"),
    }
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
