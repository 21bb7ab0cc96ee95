//! ConfigMaps and Secrets. No message holds a value.

use super::{Report, metadata, name, names};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use std::collections::BTreeMap;

/// The values of one object may not be longer than this together, in bytes.
const MAX_DATA: usize = 1024 * 1024;

/// Checks a ConfigMap.
pub(in crate::manifest) fn config_map(map: &ConfigMap, report: &mut Report<'_>) {
    name(&map.metadata, report);
    metadata(&map.metadata, report);
    let mut total = 0;
    for (key, value) in map.data.iter().flatten() {
        total += value.len();
        let field = format!("data[{key}]");
        self::key(&field, key, report);
        if map.binary_data.as_ref().is_some_and(|binary| binary.contains_key(key)) {
            report.invalid(field, key, "duplicate of key present in binaryData");
        }
    }
    for (key, value) in map.binary_data.iter().flatten() {
        total += value.0.len();
        let field = format!("binaryData[{key}]");
        self::key(&field, key, report);
        if map.data.as_ref().is_some_and(|data| data.contains_key(key)) {
            report.invalid(field, key, "duplicate of key present in data");
        }
    }
    size("data", total, report);
}

/// Checks a Secret, `stringData` merged. Keys of `credentials` count as there (`None`: they are not known, and may be any);
/// `is_text` are the keys written in `stringData`.
pub(in crate::manifest) fn secret(
    secret: &Secret,
    credentials: Option<&BTreeMap<String, String>>,
    is_text: &dyn Fn(&str) -> bool,
    report: &mut Report<'_>,
) {
    name(&secret.metadata, report);
    metadata(&secret.metadata, report);
    let field = |key: &str| if is_text(key) { format!("stringData[{key}]") } else { format!("data[{key}]") };
    let mut total = 0;
    for (key, value) in secret.data.iter().flatten() {
        total += value.0.len();
        self::key(&field(key), key, report);
        if credentials.is_some_and(|credentials| credentials.contains_key(key)) {
            report.invalid(field(key), key, "duplicate of key present in the credentials' annotation");
        }
    }
    let annotation = format!("metadata.annotations[{}]", super::super::CREDENTIALS);
    for key in credentials.into_iter().flat_map(BTreeMap::keys) {
        self::key(&annotation, key, report);
    }
    let all_text = secret.data.iter().flatten().all(|(key, _)| is_text(key));
    size(if all_text { "stringData" } else { "data" }, total, report);

    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice());
    let is_kept = |key: &str| credentials.is_none_or(|credentials| credentials.contains_key(key));
    let has = |key: &str| data(key).is_some() || is_kept(key);
    let mut required = |key: &str| report.required(format!("data[{key}]"), "");
    match secret.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            let account = secret.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ACCOUNT));
            if account.is_none_or(String::is_empty) {
                report.required(format!("metadata.annotations[{ACCOUNT}]"), "");
            }
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            required("username");
            required("password");
        }
        "kubernetes.io/ssh-auth" => {
            let there = data("ssh-privatekey").is_some_and(|value| !value.is_empty());
            if !there && !is_kept("ssh-privatekey") {
                required("ssh-privatekey");
            }
        }
        "kubernetes.io/tls" => {
            ["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)).for_each(required);
        }
        "kubernetes.io/dockercfg" if !has(".dockercfg") => required(".dockercfg"),
        "kubernetes.io/dockerconfigjson" if !has(".dockerconfigjson") => required(".dockerconfigjson"),
        kind @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
            let key = if kind.ends_with("json") { ".dockerconfigjson" } else { ".dockercfg" };
            let is_object = |value| serde_json::from_slice::<BTreeMap<String, serde::de::IgnoredAny>>(value).is_ok();
            if data(key).is_some_and(|value| !is_object(value)) && !report.has_error(&field(key)) {
                report.invalid(field(key), "<secret contents redacted>", "must be a JSON object");
            }
        }
        _ => {}
    }
}

fn size(field: &str, total: usize, report: &mut Report<'_>) {
    if total > MAX_DATA {
        report.error(field, format!("Too long: may not be more than {MAX_DATA} bytes"));
    }
}

/// A key of an object's values, which is also the name of a file.
pub(super) fn key(field: &str, key: &str, report: &mut Report<'_>) {
    if key.len() > names::SUBDOMAIN_LENGTH {
        report.invalid(field, key, &names::too_long(names::SUBDOMAIN_LENGTH));
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if key.is_empty() || !key.bytes().all(fits) {
        let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                    'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
        report.invalid(field, key, rule);
    }
    match key {
        "." => report.invalid(field, key, "must not be '.'"),
        ".." => report.invalid(field, key, "must not be '..'"),
        _ if key.starts_with("..") => report.invalid(field, key, "must not start with '..'"),
        _ => {}
    }
}
