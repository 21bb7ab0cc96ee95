//! What a pod is called on the network.

use k8s_openapi::api::core::v1::PodSpec;

/// As kubelet: a DNS label.
const LABEL_MOST: usize = 63;
/// As kubelet: what `struct utsname` holds, without the terminating NUL.
const KERNEL_MOST: usize = 64;

/// A pod's name on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostname {
    /// The first label, or a whole `hostnameOverride`.
    pub host: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`, if the pod has a subdomain.
    pub domain: Option<String>,
    as_fqdn: bool,
}

/// Why a pod cannot have its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    #[error("hostname {0:?} has nothing left once cut to 63 characters")]
    Empty(String),
    #[error("setHostnameAsFQDN: {name} has {length} characters, the kernel takes at most 64")]
    TooLong { name: String, length: usize },
}

/// The pod's name, as kubelet: `hostnameOverride`, else `spec.hostname`, else the pod's own name, cut to 63
/// characters without trailing `-` or `.`; the domain only with a subdomain, and never with an override.
pub fn hostname(
    spec: &PodSpec,
    pod_name: &str,
    namespace: &str,
    cluster_domain: &str,
) -> Result<Hostname, HostnameError> {
    if let Some(name) = &spec.hostname_override {
        return Ok(Hostname { host: cut(name)?, domain: None, as_fqdn: false });
    }
    let name = spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(pod_name);
    let subdomain = spec.subdomain.as_deref().filter(|name| !name.is_empty());
    Ok(Hostname {
        host: cut(name)?,
        // Unlike kubelet: without a cluster domain the name does not end in a dot.
        domain: subdomain.map(|subdomain| match cluster_domain {
            "" => format!("{subdomain}.{namespace}.svc"),
            _ => format!("{subdomain}.{namespace}.svc.{cluster_domain}"),
        }),
        as_fqdn: spec.set_hostname_as_fqdn == Some(true),
    })
}

impl Hostname {
    /// What `uname -n` says in the pod: the whole name with `setHostnameAsFQDN`, else the first label.
    pub fn for_kernel(&self) -> Result<String, HostnameError> {
        match &self.domain {
            Some(domain) if self.as_fqdn => {
                let name = format!("{}.{domain}", self.host);
                match name.len() {
                    ..=KERNEL_MOST => Ok(name),
                    length => Err(HostnameError::TooLong { name, length }),
                }
            }
            _ => Ok(self.host.clone()),
        }
    }
}

fn cut(name: &str) -> Result<String, HostnameError> {
    if name.len() <= LABEL_MOST {
        return Ok(name.to_owned());
    }
    // Validated names are ASCII; others must not split a character.
    let end = (0..=LABEL_MOST).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    match name[..end].trim_end_matches(['-', '.']) {
        "" => Err(HostnameError::Empty(name.to_owned())),
        cut => Ok(cut.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(spec: &PodSpec, pod: &str) -> Hostname {
        hostname(spec, pod, "ns", "cluster.local").unwrap()
    }

    #[test]
    fn override_then_hostname_then_pod_name() {
        let mut spec = PodSpec { subdomain: Some("sub".into()), ..PodSpec::default() };
        assert_eq!(name(&spec, "web-node").host, "web-node");
        spec.hostname = Some("host".into());
        let full = name(&spec, "web-node");
        assert_eq!((full.host.as_str(), full.domain.as_deref()), ("host", Some("sub.ns.svc.cluster.local")));
        assert_eq!(full.for_kernel().unwrap(), "host");
        assert_eq!(hostname(&spec, "p", "ns", "").unwrap().domain.as_deref(), Some("sub.ns.svc"));
        spec.set_hostname_as_fqdn = Some(true);
        assert_eq!(name(&spec, "web-node").for_kernel().unwrap(), "host.sub.ns.svc.cluster.local");
        spec.hostname_override = Some("outer.example".into());
        assert_eq!(name(&spec, "web-node").for_kernel().unwrap(), "outer.example");
        assert_eq!(name(&spec, "web-node").domain, None);
    }

    #[test]
    fn long_names_are_cut_and_never_end_in_a_dash() {
        let spec = PodSpec::default();
        assert_eq!(name(&spec, &"a".repeat(80)).host, "a".repeat(63));
        assert_eq!(name(&spec, &format!("{}--.b", "a".repeat(61))).host, "a".repeat(61));
        assert_eq!(name(&spec, &"ä".repeat(40)).host, "ä".repeat(31));
        assert!(hostname(&spec, &"-".repeat(70), "ns", "d").is_err());
    }

    #[test]
    fn a_kernel_name_of_65_characters_is_refused() {
        let spec = |length| PodSpec {
            hostname: Some("h".repeat(length)),
            subdomain: Some("s".into()),
            set_hostname_as_fqdn: Some(true),
            ..PodSpec::default()
        };
        let fits = 64 - ".s.ns.svc.cluster.local".len();
        assert_eq!(name(&spec(fits), "p").for_kernel().unwrap().len(), 64);
        let error = name(&spec(fits + 1), "p").for_kernel().unwrap_err();
        assert!(matches!(error, HostnameError::TooLong { length: 65, .. }));
    }
}
