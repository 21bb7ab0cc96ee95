//! What the configuration says of images: pulling, keeping, trusting.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use super::Error;
use super::file::Section;

/// Fields of a `KubeletConfiguration` that are read here.
pub(super) const KUBELET_FIELDS: &[&str] = &[
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "maxParallelImagePulls",
    "preloadedImagesVerificationAllowlist",
    "registryBurst",
    "registryPullQPS",
    "serializeImagePulls",
];

/// Fields of `CoracleConfiguration.images`.
const OWN_FIELDS: &[&str] = &["authFiles", "certsDirs", "minisignPublicKeys", "policy", "registriesConf"];

/// Which images in the store a pod may use without showing credentials for them (as kubelet's
/// `imagePullCredentialsVerificationPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialsVerification {
    /// All.
    NeverVerify,
    /// Those that this node has not pulled.
    NeverVerifyPreloadedImages,
    /// Those that the allow list names.
    NeverVerifyAllowlistedImages,
    /// None.
    AlwaysVerify,
}

/// Pulling, keeping and trusting images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Disk usage in percent at which unused images are removed; 100: never.
    pub gc_high_percent: u8,
    /// Disk usage in percent at which that ends.
    pub gc_low_percent: u8,
    /// An unused image younger than this is not removed.
    pub minimum_gc_age: Duration,
    /// An image that was not used for this long is removed; zero: never.
    pub maximum_gc_age: Duration,
    /// Most pulls at a time; `None`: no limit.
    pub max_parallel_pulls: Option<u32>,
    /// Pulls that may begin in a second; 0: no limit.
    pub pull_qps: u32,
    /// How many pulls may begin at once when none did for a while.
    pub pull_burst: u32,
    /// Whether pods must show credentials for images that are here.
    pub credentials_verification: CredentialsVerification,
    /// Images for [`CredentialsVerification::NeverVerifyAllowlistedImages`]: names, or prefixes that end in `/*`.
    pub preloaded_allowlist: Vec<String>,
    /// Mirrors, insecure and blocked registries: `registries.conf`, with the folder `registries.conf.d` beside it.
    pub registries_conf: PathBuf,
    /// Folders `<registry host>/` with containerd's `hosts.toml`, or `ca.crt`, `client.cert` and `client.key`.
    pub certs_dirs: Vec<PathBuf>,
    /// Credentials of the node besides kubelet's places; docker's `config.json` format.
    pub auth_files: Vec<PathBuf>,
    /// Which signatures images need: containers' `policy.json`. No such file: none.
    pub policy: PathBuf,
    /// Public keys that sign archives: minisign's one-line form, or absolute paths of its key files.
    pub minisign_public_keys: Vec<String>,
}

impl Default for Images {
    fn default() -> Images {
        Images {
            gc_high_percent: 85,
            gc_low_percent: 80,
            minimum_gc_age: Duration::from_secs(120),
            maximum_gc_age: Duration::ZERO,
            max_parallel_pulls: Some(1),
            pull_qps: 5,
            pull_burst: 10,
            credentials_verification: CredentialsVerification::NeverVerifyPreloadedImages,
            preloaded_allowlist: Vec::new(),
            registries_conf: "/etc/containers/registries.conf".into(),
            certs_dirs: ["/etc/containerd/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .into(),
            auth_files: Vec::new(),
            policy: "/etc/containers/policy.json".into(),
            minisign_public_keys: Vec::new(),
        }
    }
}

/// The fields of a `KubeletConfiguration`.
pub(super) fn kubelet_fields(document: &Section<'_>, images: &mut Images) -> Result<(), Error> {
    if let Some(percent) = document.integer("imageGCHighThresholdPercent", 0, 100)? {
        images.gc_high_percent = percent as u8;
    }
    if let Some(percent) = document.integer("imageGCLowThresholdPercent", 0, 100)? {
        images.gc_low_percent = percent as u8;
    }
    if images.gc_low_percent >= images.gc_high_percent {
        let reason = format!("must be less than imageGCHighThresholdPercent ({})", images.gc_high_percent);
        return Err(Error::invalid(document.at("imageGCLowThresholdPercent"), reason));
    }
    document.duration_into("imageMinimumGCAge", &mut images.minimum_gc_age)?;
    document.duration_into("imageMaximumGCAge", &mut images.maximum_gc_age)?;
    // As kubelet: zero is off, and any other age is longer than the least one.
    if !images.maximum_gc_age.is_zero() && images.maximum_gc_age <= images.minimum_gc_age {
        let reason = "must be greater than imageMinimumGCAge";
        return Err(Error::invalid(document.at("imageMaximumGCAge"), reason));
    }
    let serial = document.boolean("serializeImagePulls")?;
    let parallel = document.integer("maxParallelImagePulls", 1, i64::from(i32::MAX))?.map(|count| count as u32);
    images.max_parallel_pulls = match (serial, parallel) {
        // As kubelet: a limit above one says by itself that pulls are parallel.
        (None, Some(count)) => Some(count),
        (None, None) => images.max_parallel_pulls,
        (Some(true), None | Some(1)) => Some(1),
        (Some(true), Some(_)) => {
            let reason = "cannot be larger than 1 unless serializeImagePulls is false";
            return Err(Error::invalid(document.at("maxParallelImagePulls"), reason));
        }
        (Some(false), count) => count,
    };
    if let Some(rate) = document.integer("registryPullQPS", 0, i64::from(i32::MAX))? {
        images.pull_qps = rate as u32;
    }
    if let Some(burst) = document.integer("registryBurst", 0, i64::from(i32::MAX))? {
        images.pull_burst = burst as u32;
    }
    images.credentials_verification = match document.text("imagePullCredentialsVerificationPolicy")? {
        None | Some("") => images.credentials_verification,
        Some("NeverVerify") => CredentialsVerification::NeverVerify,
        Some("NeverVerifyPreloadedImages") => CredentialsVerification::NeverVerifyPreloadedImages,
        Some("NeverVerifyAllowlistedImages") => CredentialsVerification::NeverVerifyAllowlistedImages,
        Some("AlwaysVerify") => CredentialsVerification::AlwaysVerify,
        Some(other) => {
            let reason = format!(
                "{other:?} is not NeverVerify, NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages or AlwaysVerify"
            );
            return Err(Error::invalid(document.at("imagePullCredentialsVerificationPolicy"), reason));
        }
    };
    if let Some(list) = document.list("preloadedImagesVerificationAllowlist")? {
        if images.credentials_verification != CredentialsVerification::NeverVerifyAllowlistedImages && !list.is_empty()
        {
            let reason = "only for imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages";
            return Err(Error::invalid(document.at("preloadedImagesVerificationAllowlist"), reason));
        }
        images.preloaded_allowlist = list.into_iter().map(str::to_owned).collect();
    }
    Ok(())
}

/// `CoracleConfiguration.images`.
pub(super) fn own_section(map: &Map<String, Value>, images: &mut Images) -> Result<(), Error> {
    let section = Section { path: "CoracleConfiguration.images", map };
    section.reject_unknown(OWN_FIELDS, &[])?;
    section.path_into("registriesConf", &mut images.registries_conf)?;
    section.paths_into("certsDirs", &mut images.certs_dirs)?;
    section.paths_into("authFiles", &mut images.auth_files)?;
    section.path_into("policy", &mut images.policy)?;
    if let Some(keys) = section.list("minisignPublicKeys")? {
        images.minisign_public_keys = keys.into_iter().map(str::to_owned).collect();
    }
    Ok(())
}
