//! What the configuration says of the Node object and of how it is kept up to date.

use super::cluster::Cluster;
use super::file::{Section, wants};
use super::value::labels;
use super::{Error, Flags};
use k8s_openapi::api::core::v1::Taint;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// Fields of a `KubeletConfiguration` that are read here.
pub(super) const KUBELET_FIELDS: &[&str] = &[
    "eventBurst",
    "eventRecordQPS",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "nodeLeaseDurationSeconds",
    "nodeStatusMaxImages",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "providerID",
    "registerNode",
    "registerWithTaints",
];
/// Fields of a `CoracleConfiguration` that are read here.
pub(super) const OWN_FIELDS: &[&str] = &["registerUnschedulable"];

/// Effects of taints.
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// The labels of Kubernetes' own domains that a node may give itself.
const OWN_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains of Kubernetes in which a node may give itself any label.
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Domains whose labels are others' to give.
const GUARDED_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];
/// The domain that exists to be kept from nodes.
const RESTRICTED_DOMAIN: &str = "node-restriction.kubernetes.io";

/// The fields of a `KubeletConfiguration`.
pub(super) fn kubelet_fields(document: &Section<'_>, cluster: &mut Cluster) -> Result<(), Error> {
    if let Some(on) = document.boolean("registerNode")? {
        cluster.register_node = on;
    }
    if let Some(value) = document.get("registerWithTaints") {
        cluster.register_with_taints = taint_list(document, value)?;
    }
    if let Some(id) = document.text("providerID")? {
        id.clone_into(&mut cluster.provider_id);
    }
    if let Some(seconds) = document.integer("nodeLeaseDurationSeconds", 0, i64::from(i32::MAX))?.filter(|s| *s > 0) {
        cluster.lease_duration_seconds = seconds as u32;
    }
    let default = cluster.status_update_frequency;
    document.duration_into("nodeStatusUpdateFrequency", &mut cluster.status_update_frequency)?;
    if cluster.status_update_frequency < Duration::from_secs(1) {
        return Err(Error::invalid(document.at("nodeStatusUpdateFrequency"), "shorter than 1s would only burn CPU"));
    }
    if cluster.status_update_frequency != default || is_written(document, "nodeStatusUpdateFrequency") {
        // As kubelet: who looks at another pace wants to be heard at it.
        cluster.status_report_frequency = cluster.status_update_frequency;
    }
    document.duration_into("nodeStatusReportFrequency", &mut cluster.status_report_frequency)?;
    if let Some(most) = document.integer("nodeStatusMaxImages", -1, i64::from(i32::MAX))? {
        cluster.status_max_images = usize::try_from(most).ok();
    }
    rate(document, ["eventRecordQPS", "eventBurst"], 0, &mut cluster.event_rate)?;
    rate(document, ["kubeAPIQPS", "kubeAPIBurst"], -1, &mut cluster.request_rate)
}

/// Whether a duration is there and not zero, which counts as absent.
fn is_written(document: &Section<'_>, field: &str) -> bool {
    let text = document.get(field).and_then(Value::as_str);
    text.is_some_and(|text| super::duration(text).is_ok_and(|read| !read.is_zero()))
}

/// A rate and its burst. A rate of 0 or less is no limit; a burst of 0 is the default.
fn rate(document: &Section<'_>, [qps, burst]: [&str; 2], least: i64, into: &mut (u32, u32)) -> Result<(), Error> {
    if let Some(read) = document.integer(qps, least, i64::from(i32::MAX))? {
        into.0 = u32::try_from(read).unwrap_or(0);
    }
    if let Some(read) = document.integer(burst, 0, i64::from(i32::MAX))?.filter(|burst| *burst > 0) {
        into.1 = read as u32;
    }
    Ok(())
}

/// The fields of a `CoracleConfiguration`.
pub(super) fn own_fields(document: &Section<'_>, cluster: &mut Cluster) -> Result<(), Error> {
    if let Some(on) = document.boolean("registerUnschedulable")? {
        cluster.register_unschedulable = on;
    }
    Ok(())
}

/// The flags.
pub(super) fn flags(flags: &Flags, cluster: &mut Cluster) -> Result<(), Error> {
    if let Some(on) = flags.register_node {
        cluster.register_node = on;
    }
    if let Some(on) = flags.register_unschedulable {
        cluster.register_unschedulable = on;
    }
    if let Some(text) = &flags.register_with_taints {
        cluster.register_with_taints =
            taints(text).map_err(|reason| Error::invalid("--register-with-taints", reason))?;
    }
    Ok(())
}

/// A list of mappings, each with key, value and effect.
fn taint_list(document: &Section<'_>, value: &Value) -> Result<Vec<Taint>, Error> {
    let at = document.at("registerWithTaints");
    let list = value.as_array().ok_or_else(|| Error::invalid(&at, wants("a list", value)))?;
    let mut read = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let path = format!("{at}[{index}]");
        let map: &Map<String, Value> =
            value.as_object().ok_or_else(|| Error::invalid(&path, wants("a mapping", value)))?;
        let section = Section { path: &path, map };
        section.reject_unknown(&["effect", "key", "timeAdded", "value"], &[])?;
        let text = |field: &str| section.text(field).map(Option::unwrap_or_default);
        let one = taint(text("key")?, text("value")?, text("effect")?);
        add(&mut read, one).map_err(|reason| Error::invalid(&path, reason))?;
    }
    Ok(read)
}

/// Reads `key=value:Effect,key:Effect,…`.
fn taints(text: &str) -> Result<Vec<Taint>, String> {
    let mut read = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (pair, effect) =
            part.rsplit_once(':').ok_or_else(|| format!("{part:?} is not key=value:Effect or key:Effect"))?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        add(&mut read, taint(key, value, effect))?;
    }
    Ok(read)
}

fn taint(key: &str, value: &str, effect: &str) -> Result<Taint, String> {
    // The rules for keys and values are those of labels.
    labels(&format!("{key}={value}")).map_err(|reason| format!("as a taint, {reason}"))?;
    if key.is_empty() || key.contains(['=', ',']) || value.contains([',', '=']) {
        return Err(format!("{key:?} is not the key of a taint"));
    }
    if !EFFECTS.contains(&effect) {
        return Err(format!("{effect:?} is not an effect of a taint: want {}", EFFECTS.join(", ")));
    }
    Ok(Taint {
        key: key.to_owned(),
        value: Some(value.to_owned()).filter(|value| !value.is_empty()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

fn add(taints: &mut Vec<Taint>, taint: Result<Taint, String>) -> Result<(), String> {
    let taint = taint?;
    if taints.iter().any(|other| (&other.key, &other.effect) == (&taint.key, &taint.effect)) {
        return Err(format!("taint {:?} with effect {} is given twice", taint.key, taint.effect));
    }
    taints.push(taint);
    Ok(())
}

/// Whether a node may give itself these labels: as the kubelet's flag and the API server's NodeRestriction have it. Checked
/// at the start, because a Node with another label would never be registered.
///
/// # Errors
/// Which labels it may not.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    let refused: Vec<&str> = labels.keys().map(String::as_str).filter(|key| !is_own(key)).collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(format!(
        "a node may not give itself {}: of the domains kubernetes.io and k8s.io these are free: {}, and all below {}; set \
         others with kubectl label",
        refused.join(", "),
        OWN_LABELS.join(", "),
        OWN_DOMAINS.join(" and ")
    ))
}

fn is_own(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within = |of: &str| domain.strip_suffix(of).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if within(RESTRICTED_DOMAIN) {
        return false;
    }
    OWN_LABELS.contains(&key) || OWN_DOMAINS.into_iter().any(within) || !GUARDED_DOMAINS.into_iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Facts, File};
    use proptest::prelude::*;

    fn resolve(flags: &Flags, body: &str) -> Result<Cluster, String> {
        let file = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{body}");
        let facts = Facts { hostname: "n".to_owned() };
        let config = Config::resolve(flags, &[File::main("config.yaml", &file)], &facts);
        config.map(|(config, _)| config.cluster).map_err(|error| crate::causes::chain(&error))
    }

    fn fields(body: &str) -> Result<Cluster, String> {
        resolve(&Flags::default(), body)
    }

    #[test]
    fn a_node_is_registered_as_the_file_says_and_the_flags_after_it() {
        let body = "registerNode: false
registerWithTaints: [{key: a, value: b, effect: NoExecute}, {key: example.com/c, effect: NoSchedule}]
providerID: edge://7
nodeLeaseDurationSeconds: 60
nodeStatusUpdateFrequency: 20s
nodeStatusMaxImages: -1
eventRecordQPS: 0
eventBurst: 7
kubeAPIQPS: -1
kubeAPIBurst: 0
";
        let cluster = fields(body).unwrap();
        assert!(!cluster.register_node && cluster.register_unschedulable);
        let taints: Vec<String> =
            cluster.register_with_taints.iter().map(|t| format!("{}={:?}:{}", t.key, t.value, t.effect)).collect();
        assert_eq!(taints, ["a=Some(\"b\"):NoExecute", "example.com/c=None:NoSchedule"]);
        assert_eq!((cluster.provider_id.as_str(), cluster.lease_duration_seconds), ("edge://7", 60));
        assert_eq!(cluster.status_report_frequency, Duration::from_secs(20), "follows the pace of the looks");
        assert_eq!((cluster.status_max_images, cluster.event_rate, cluster.request_rate), (None, (0, 7), (0, 100)));
        let flags = Flags {
            register_node: Some(true),
            register_unschedulable: Some(false),
            register_with_taints: Some("x=y:PreferNoSchedule,z:NoExecute".to_owned()),
            ..Flags::default()
        };
        let cluster = resolve(&flags, body).unwrap();
        assert!(cluster.register_node && !cluster.register_unschedulable);
        assert_eq!(cluster.register_with_taints.len(), 2);
        assert_eq!(cluster.register_with_taints[1].key, "z");
    }

    #[test]
    fn two_paces_may_be_told_apart() {
        let both = fields("nodeStatusUpdateFrequency: 10s\nnodeStatusReportFrequency: 1m\n").unwrap();
        assert_eq!(both.status_report_frequency, Duration::from_secs(60));
        // What kubeadm writes for what nobody set.
        let unset = fields("nodeStatusUpdateFrequency: 0s\nnodeStatusReportFrequency: 0s\n").unwrap();
        assert_eq!((unset.status_update_frequency.as_secs(), unset.status_report_frequency.as_secs()), (10, 300));
        assert_eq!(fields("nodeStatusUpdateFrequency: 10s\n").unwrap().status_report_frequency.as_secs(), 10);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let of = |body: &str| fields(body).unwrap_err();
        expect_test::expect![[r#"
            config.yaml: KubeletConfiguration.registerWithTaints[0]: "Never" is not an effect of a taint: want NoSchedule, PreferNoSchedule, NoExecute
            config.yaml: KubeletConfiguration.registerWithTaints[1]: taint "a" with effect NoExecute is given twice
            config.yaml: KubeletConfiguration.registerWithTaints[0].keys: unknown field (did you mean key?)
            config.yaml: KubeletConfiguration.registerWithTaints[0]: as a taint, "-" is not a label key
            config.yaml: KubeletConfiguration.nodeStatusUpdateFrequency: shorter than 1s would only burn CPU
            config.yaml: KubeletConfiguration.nodeStatusMaxImages: -2 is not between -1 and 2147483647
            config.yaml: KubeletConfiguration.eventRecordQPS: -1 is not between 0 and 2147483647"#]]
        .assert_eq(
            &[
                of("registerWithTaints: [{key: a, effect: Never}]"),
                of("registerWithTaints: [{key: a, effect: NoExecute}, {key: a, value: b, effect: NoExecute}]"),
                of("registerWithTaints: [{keys: a}]"),
                of("registerWithTaints: [{key: \"-\", effect: NoExecute}]"),
                of("nodeStatusUpdateFrequency: 10ms"),
                of("nodeStatusMaxImages: -2"),
                of("eventRecordQPS: -1"),
            ]
            .join("\n"),
        );
        let flags = Flags { register_with_taints: Some("a=b".to_owned()), ..Flags::default() };
        let refused = resolve(&flags, "").unwrap_err();
        assert_eq!(refused, "--register-with-taints: \"a=b\" is not key=value:Effect or key:Effect");
    }

    #[test]
    fn labels_of_kubernetes_are_its_own_with_few_exceptions() {
        for (key, own) in [
            ("site", true),
            ("example.com/site", true),
            ("mykubernetes.io/site", true),
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("node.kubernetes.io/anything", true),
            ("x.kubelet.kubernetes.io/anything", true),
            ("kubernetes.io/role", false),
            ("node-role.kubernetes.io/edge", false),
            ("x.k8s.io/y", false),
            ("node-restriction.kubernetes.io/x", false),
            ("a.node-restriction.kubernetes.io/x", false),
        ] {
            assert_eq!(is_own(key), own, "{key}");
        }
        let flags = Flags { node_labels: Some("node-role.kubernetes.io/edge=".to_owned()), ..Flags::default() };
        let refused = resolve(&flags, "").unwrap_err();
        assert!(
            refused.starts_with("node labels (--node-labels, nodeLabels): a node may not give itself node-role"),
            "{refused}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_taints_or_refused(text in "[a-zA-Z/=:,.-]{0,30}") {
            if let Ok(read) = taints(&text) {
                let again: Vec<String> = read
                    .iter()
                    .map(|t| format!("{}={}:{}", t.key, t.value.as_deref().unwrap_or_default(), t.effect))
                    .collect();
                prop_assert_eq!(taints(&again.join(",")).unwrap(), read);
            }
        }
    }
}
