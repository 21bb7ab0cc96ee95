//! ConfigMaps and Secrets: golden tests, and what holds for any of them.

use super::tests::{check_problems, mutations, problems, read};
use super::*;
use expect_test::expect;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use proptest::prelude::*;
use std::sync::Arc;

const OBJECTS: &str = include_str!("../../tests/corpus/objects.yaml");
const BAD: &str = include_str!("../../tests/corpus/bad/objects.yaml");

/// All objects that a pod refers to, with all keys that it needs, as text.
pub(super) fn serving(pod: &Pod) -> Objects {
    let mut objects = Objects::default();
    for reference in references(pod) {
        let known = objects.get(&reference.object).map(Object::data).unwrap_or_default();
        let keys = known.into_keys().chain(reference.keys);
        objects.insert(match reference.object.kind {
            ObjectKind::ConfigMap => {
                let mut map =
                    ConfigMap { data: Some(keys.map(|key| (key, "x".into())).collect()), ..Default::default() };
                map.metadata.name = Some(reference.object.name);
                map.metadata.namespace = Some(reference.object.namespace);
                Object::ConfigMap(Arc::new(map))
            }
            ObjectKind::Secret => {
                let data = keys.map(|key| (key, ByteString(b"x".to_vec()))).collect();
                let mut secret = Secret { data: Some(data), ..Default::default() };
                secret.metadata.name = Some(reference.object.name);
                secret.metadata.namespace = Some(reference.object.namespace);
                Object::Secret(Arc::new(secret))
            }
        });
    }
    objects
}

fn config_map(loaded: &Loaded, index: usize) -> &ConfigMap {
    match &loaded.objects[index] {
        Object::ConfigMap(map) => map,
        other => panic!("{other:?}"),
    }
}

fn secret(loaded: &Loaded, index: usize) -> &Secret {
    match &loaded.objects[index] {
        Object::Secret(secret) => secret,
        other => panic!("{other:?}"),
    }
}

#[test]
fn objects_come_beside_pods() {
    let loaded = read(OBJECTS);
    assert_eq!(problems(&loaded), "");
    let ids: Vec<String> = loaded.objects.iter().map(|object| object.id().to_string()).collect();
    assert_eq!(
        ids,
        [
            "ConfigMap edge/settings",
            "Secret edge/db",
            "Secret edge/web",
            "Secret default/second",
            "ConfigMap default/second"
        ]
    );
    let map = serde_json::to_value(config_map(&loaded, 0)).unwrap();
    expect![[r#"{"apiVersion":"v1","binaryData":{"logo.png":"iVBORw0KGgo="},"data":{"LEVEL":"debug","app.ini":"[server]\nport = 8080\n"},"kind":"ConfigMap","metadata":{"labels":{"app":"web"},"name":"settings","namespace":"edge"}}"#]]
        .assert_eq(&map.to_string());
    // Text wins over data, and is gone; the type has its default.
    let db = serde_json::to_value(secret(&loaded, 1)).unwrap();
    expect![[r#"{"apiVersion":"v1","data":{"password":"bmV3","user":"YWRtaW4="},"immutable":true,"kind":"Secret","metadata":{"annotations":{"coracle.dev/credentials":"token=edge-token"},"name":"db","namespace":"edge"},"type":"Opaque"}"#]]
        .assert_eq(&db.to_string());
    assert_eq!(credentials(secret(&loaded, 1)).unwrap()["token"], "edge-token");
    assert_eq!(secret(&loaded, 2).type_.as_deref(), Some("kubernetes.io/tls"));
    let records: Vec<Secret> = [1, 2, 3]
        .map(|index| serde_json::from_value(serde_json::to_value(secret(&loaded, index)).unwrap()).unwrap())
        .into();
    assert_eq!(records[0], *secret(&loaded, 1), "does not survive a record");
}

#[test]
fn what_a_pod_refers_to_is_listed_in_order() {
    let loaded = read(OBJECTS);
    let line = |reference: Reference| {
        let optional = if reference.optional { ", optional" } else { "" };
        format!("{}: {} {:?}{optional}\n", reference.field, reference.object, reference.keys)
    };
    let lines: String = references(&loaded.pods[0]).into_iter().map(line).collect();
    expect![[r#"
        spec.initContainers[0].envFrom[0].configMapRef: ConfigMap edge/settings []
        spec.initContainers[0].envFrom[1].secretRef: Secret edge/extra [], optional
        spec.containers[0].envFrom[0].secretRef: Secret edge/db []
        spec.containers[0].env[0].valueFrom.configMapKeyRef: ConfigMap edge/settings ["LEVEL"]
        spec.containers[0].env[1].valueFrom.secretKeyRef: Secret edge/db ["token"]
        spec.containers[0].env[2].valueFrom.configMapKeyRef: ConfigMap edge/settings ["flags"], optional
        spec.volumes[0].configMap: ConfigMap edge/settings ["app.ini"]
        spec.volumes[1].secret: Secret edge/db ["password"]
        spec.volumes[2].projected.sources[0].secret: Secret edge/web ["tls.crt", "tls.key"]
        spec.volumes[2].projected.sources[1].configMap: ConfigMap edge/settings []
        spec.volumes[2].projected.sources[2].secret: Secret edge/later [], optional
    "#]]
    .assert_eq(&lines);
    let objects: Objects = loaded.objects.iter().cloned().collect();
    assert_eq!(unresolved(&loaded.pods[0], &objects), []);
}

#[test]
fn what_is_not_there_is_told_with_its_place() {
    let told = |text: &str| {
        let loaded = read(text);
        assert_eq!(problems(&loaded), "");
        let objects: Objects = loaded.objects.iter().cloned().collect();
        let mut found = unresolved(&loaded.pods[0], &objects);
        locate(&mut found, &loaded.places);
        assert!(found.iter().all(|problem| problem.severity == Severity::Error && problem.column.is_some()));
        let pod = ("edge".to_owned(), "web-edge1".to_owned());
        assert!(found.iter().all(|problem| problem.pod.as_ref() == Some(&pod)));
        found.iter().map(|problem| format!("{problem}\n")).collect::<String>()
    };
    let without = OBJECTS.split("---\n").nth(3).unwrap();
    expect![[r#"
        line 9: spec.initContainers[0].envFrom[0].configMapRef.name: Not found: "settings": no source defines ConfigMap edge/settings; add a ConfigMap document to a manifest or to the objects folder
        line 15: spec.containers[0].envFrom[0].secretRef.name: Not found: "db": no source defines Secret edge/db; add a Secret document to a manifest or to the objects folder
        line 17: spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Not found: "settings": no source defines ConfigMap edge/settings; add a ConfigMap document to a manifest or to the objects folder
        line 18: spec.containers[0].env[1].valueFrom.secretKeyRef.name: Not found: "db": no source defines Secret edge/db; add a Secret document to a manifest or to the objects folder
        line 21: spec.volumes[0].configMap.name: Not found: "settings": no source defines ConfigMap edge/settings; add a ConfigMap document to a manifest or to the objects folder
        line 22: spec.volumes[1].secret.secretName: Not found: "db": no source defines Secret edge/db; add a Secret document to a manifest or to the objects folder
        line 26: spec.volumes[2].projected.sources[0].secret.name: Not found: "web": no source defines Secret edge/web; add a Secret document to a manifest or to the objects folder
        line 27: spec.volumes[2].projected.sources[1].configMap.name: Not found: "settings": no source defines ConfigMap edge/settings; add a ConfigMap document to a manifest or to the objects folder
    "#]].assert_eq(&told(without));
    let other = OBJECTS
        .replace("  name: settings\n", "  name: setings\n")
        .replace("{name: web, namespace: edge}\nstringData", "{name: web}\nstringData")
        .replace("token=edge-token", "tokn=edge-token")
        .replace("  password: ", "  pwd: ");
    expect![[r#"
        line 43: spec.initContainers[0].envFrom[0].configMapRef.name: Not found: "settings": no source defines ConfigMap edge/settings; did you mean "setings"?
        line 51: spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Not found: "settings": no source defines ConfigMap edge/settings; did you mean "setings"?
        line 52: spec.containers[0].env[1].valueFrom.secretKeyRef.key: Not found: "token": Secret edge/db has no such key; did you mean "tokn"?
        line 55: spec.volumes[0].configMap.name: Not found: "settings": no source defines ConfigMap edge/settings; did you mean "setings"?
        line 56: spec.volumes[1].secret.items[0].key: Not found: "password": Secret edge/db has no such key; it has "pwd", "tokn", "user"
        line 60: spec.volumes[2].projected.sources[0].secret.name: Not found: "web": no source defines Secret edge/web; the one of namespace "default" serves the pods of that namespace only
        line 61: spec.volumes[2].projected.sources[1].configMap.name: Not found: "settings": no source defines ConfigMap edge/settings; did you mean "setings"?
    "#]].assert_eq(&told(&other));
    let binary = OBJECTS.replace("key: LEVEL", "key: logo.png").replace("key: app.ini", "key: logo.png");
    expect![[r#"
        line 51: spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Not found: "logo.png": no text of ConfigMap edge/settings has this key; it is in binaryData, and a variable is text
    "#]].assert_eq(&told(&binary));
}

#[test]
fn a_pod_of_nothing_but_lost_references_is_told_of_soon() {
    use std::fmt::Write as _;
    let (mut text, mut env) = (String::new(), String::from("env:\n"));
    for n in 0..5_000 {
        let _ = write!(text, "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a-settings-of-a-length-{n}}}\n");
        let _ = writeln!(
            env,
            "- {{name: A{n}, valueFrom: {{configMapKeyRef: {{name: b-settings-of-a-width-{n}, key: k}}}}}}"
        );
    }
    let loaded = read(&format!("{}{text}", tests::with_container(&env)));
    assert_eq!(problems(&loaded), "");
    let objects: Objects = loaded.objects.iter().cloned().collect();
    let at = std::time::Instant::now();
    assert_eq!(unresolved(&loaded.pods[0], &objects).len(), 5_000);
    // A moment; minutes, were every name compared with every other.
    assert!(at.elapsed() < std::time::Duration::from_secs(20), "{:?}", at.elapsed());
}

#[test]
fn all_that_is_wrong_with_objects_is_told_and_no_value_of_a_secret() {
    let loaded = read(BAD);
    assert_eq!(loaded.objects.len(), 2, "{:?}", loaded.objects);
    expect![[r#"
        line 4: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        line 5: metadata.namespace: Invalid value: "kube.system": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        line 6: warning: metadata.uid: is set by the API server only: ignored
        line 7: warning: metadata.resourceVersion: is set by the API server only: ignored
        line 8: warning: metadata.annotations[coracle.dev/credentials]: is for Secrets only: ignored
        line 9: warning: imutable: unknown field, ignored; did you mean "immutable"?
        line 11: data[port]: Invalid value: 8080: must be a string, not a number (put it in quotes)
        line 12: data[debug]: Invalid value: true: must be a string, not a boolean (y, yes, on, n, no and off are booleans, too: put it in quotes)
        line 13: data[list]: Invalid value: must be a string, not a list
        line 14: data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
        line 15: data[..]: Invalid value: "..": must not be '..'
        line 16: data[..data]: Invalid value: "..data": must not start with '..'
        line 17: data[both]: Invalid value: "both": duplicate of key present in binaryData
        line 19: binaryData[both]: Invalid value: "both": duplicate of key present in data
        line 20: binaryData[text]: Invalid value: illegal base64 data at input byte 5 (text as it is belongs in data)
        line 24: metadata.name: Required value
        line 25: immutable: Invalid value: "true": must be a boolean, not a string
        line 26: data: Invalid value: must be an object, not a list
        line 28: metadata.name: Required value
        line 35: data[text]: Invalid value: illegal base64 data at input byte 7 (text as it is belongs in stringData)
        line 36: data[number]: Invalid value: must be a string, not a number (put it in quotes)
        line 38: stringData[number2]: Invalid value: must be a string, not a number (put it in quotes)
        line 39: stringData[object]: Invalid value: must be a string, not an object
        line 40: stringData[/etc]: Invalid value: "/etc": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
        line 41: warning: sringData: unknown field, ignored; did you mean "stringData"?
        line 43: data[tls.key]: Required value
        line 49: data[username]: Required value
        line 49: data[password]: Required value
        line 54: data[ssh-privatekey]: Required value
        line 65: stringData[.dockerconfigjson]: Invalid value: "<secret contents redacted>": must be a JSON object
        line 67: data[.dockercfg]: Required value
        line 75: metadata.annotations[kubernetes.io/service-account.name]: Required value
        line 82: metadata.annotations[coracle.dev/credentials]: Invalid value: the credential of key "tls.crt" must be a plain name of at most 255 printable ASCII characters without '/' and ':'
        line 88: metadata.annotations[coracle.dev/credentials]: Invalid value: "b/c": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
        line 89: stringData[a]: Invalid value: "a": duplicate of key present in the credentials' annotation
        line 97: metadata.name: Duplicate value: "fine": this manifest has a ConfigMap of that name already
        line 104: kind: Unsupported value: "Secrets": supported values: "ConfigMap", "ConfigMapList", "List", "Pod", "PodList", "Secret", "SecretList"
        line 110: items[0]: is a string, but an object with apiVersion and kind is expected
        line 111: items[1].data: Invalid value: must be an object, not a string
    "#]].assert_eq(&problems(&loaded));
    let shown = format!("{loaded:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("55512345"), "{shown}");
}

#[test]
fn sizes_are_limited() {
    let long = "x".repeat(1 << 20);
    for kind in ["ConfigMap", "Secret"] {
        let field = if kind == "Secret" { "stringData" } else { "data" };
        let text = |more: &str| {
            format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: a}}\n{field}:\n  a: {long}\n  b: \"{more}\"\n")
        };
        assert_eq!(problems(&read(&text(""))), "");
        let told = problems(&read(&text("y")));
        assert_eq!(told, format!("line 4: {field}: Too long: may not be more than 1048576 bytes\n"));
    }
    let key = "k".repeat(253);
    let text = |key: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{{key}: a}}\n");
    assert_eq!(problems(&read(&text(&key))), "");
    assert!(problems(&read(&text(&format!("{key}k")))).contains("must be no more than 253 bytes"));
}

#[test]
fn base64_is_read_as_the_api_server_reads_it() {
    let value = |text: &str| {
        let loaded = read(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\ndata:\n  k: {text}\n"));
        (!loaded.has_errors()).then(|| loaded.objects[0].data()["k"].clone())
    };
    assert_eq!(value("aGVsbG8="), Some(b"hello".to_vec()));
    assert_eq!(value("|\n    aGVs\n    bG8=\n"), Some(b"hello".to_vec()), "in lines");
    assert_eq!(value("aGVsbG9="), Some(b"hello".to_vec()), "bits too many");
    assert_eq!(value("\"\""), Some(Vec::new()));
    assert_eq!(value("~"), Some(Vec::new()));
    for bad in ["aGVsbG8", "aGVs bG8=", "aGVsbG8=x", "-_-_", "a"] {
        assert_eq!(value(bad), None, "{bad}");
    }
}

#[test]
fn pods_fields_for_objects_are_checked() {
    check_problems(
        &tests::with_spec(
            "volumes:\n\
             - {name: a, configMap: {defaultMode: 512, items: [{key: \"\", path: ../a, mode: -1}, {key: k, path: p}, {key: l, path: p}]}}\n\
             - {name: b, secret: {defaultMode: 0o1000, itms: [], items: [{key: k}]}}\n\
             - {name: c, projected: {sources: [{configMap: {}}, {secret: {items: [{key: k, path: /p, mode: 0o1777}]}}, \
             {configMap: {name: a, items: [{key: a, path: same}]}}, {secret: {name: b, items: [{key: b, path: same}]}}]}}\n\
             - {name: d, configMap: {name: a}, secret: {secretName: b}}",
        ),
        &expect![[r#"
            line 7: spec.volumes[0].configMap.name: Required value
            line 7: spec.volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive
            line 7: spec.volumes[0].configMap.items[0].key: Required value
            line 7: spec.volumes[0].configMap.items[0].path: Invalid value: "../a": must not contain '..'
            line 7: spec.volumes[0].configMap.items[0].mode: Invalid value: -1: must be a number between 0 and 0777 (octal), both inclusive
            line 7: spec.volumes[0].configMap.items[2].path: Duplicate value: "p"
            line 8: spec.volumes[1].secret.secretName: Required value
            line 8: spec.volumes[1].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive
            line 8: warning: spec.volumes[1].secret.itms: unknown field, ignored; did you mean "items"?
            line 8: spec.volumes[1].secret.items[0].path: Required value
            line 9: spec.volumes[2].projected.sources[0].configMap.name: Required value
            line 9: spec.volumes[2].projected.sources[1].secret.name: Required value
            line 9: spec.volumes[2].projected.sources[1].secret.items[0].path: Invalid value: "/p": must be a relative path
            line 9: spec.volumes[2].projected.sources[1].secret.items[0].mode: Invalid value: 1023: must be a number between 0 and 0777 (octal), both inclusive
            line 9: spec.volumes[2].projected.sources[3].secret.items[0].path: Duplicate value: "same"
            line 10: spec.volumes[3].secret: Forbidden: may not specify more than 1 volume type
        "#]],
    );
    check_problems(
        &tests::with_container(
            "envFrom: [{}, {prefix: \"a=\", configMapRef: {name: A_b}, secretRef: {}}, {secretRef: {nam: a}}]\n\
             env:\n\
             - {name: A, valueFrom: {configMapKeyRef: {name: -a, key: \"a b\"}}}\n\
             - {name: B, valueFrom: {secretKeyRef: {optinal: true}}}\n\
             - {name: C, valueFrom: {secretKeyRef: {name: a, key: ..}, fieldRef: {fieldPath: metadata.name}}}",
        ),
        &expect![[r#"
            line 8: spec.containers[0].envFrom[0]: Invalid value: "": must specify one of: `configMapRef` or `secretRef`
            line 8: spec.containers[0].envFrom[1]: Invalid value: "": may not have more than one field specified at a time
            line 8: spec.containers[0].envFrom[1].prefix: Invalid value: "a=": a valid environment variable name must consist only of printable ASCII characters other than '='
            line 8: spec.containers[0].envFrom[1].configMapRef.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            line 8: spec.containers[0].envFrom[1].secretRef.name: Required value
            line 8: spec.containers[0].envFrom[2].secretRef.name: Required value
            line 8: warning: spec.containers[0].envFrom[2].secretRef.nam: unknown field, ignored; did you mean "name"?
            line 10: spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Invalid value: "-a": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            line 10: spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
            line 11: spec.containers[0].env[1].valueFrom.secretKeyRef.name: Required value
            line 11: spec.containers[0].env[1].valueFrom.secretKeyRef.key: Required value
            line 11: warning: spec.containers[0].env[1].valueFrom.secretKeyRef.optinal: unknown field, ignored; did you mean "optional"?
            line 12: spec.containers[0].env[2].valueFrom: Invalid value: "": may not have more than one field specified at a time
            line 12: spec.containers[0].env[2].valueFrom.secretKeyRef.key: Invalid value: "..": must not be '..'
        "#]],
    );
}

/// Documents in which something is wrong, or almost, right beside a value.
fn careless() -> impl Strategy<Value = String> {
    let value = prop::sample::select(
        &[
            "hunter2",
            "\"hunter2\"",
            "[hunter2]",
            "{a: hunter2}",
            "*hunter2",
            "!hunter2 x",
            "!!binary hunter2",
            "!!int hunter2",
            "!!float hunter2",
            "@hunter2",
            "%hunter2",
            "'hunter2",
            "\"hunter2",
            "\"\\xhunter2\"",
            "\"hunter2\\q\"",
            "[hunter2",
            "{hunter2: ",
            "| hunter2",
            ">9\n hunter2",
            "hunter2: hunter2",
            "- hunter2",
            "\thunter2",
            "hunter2\n\t x",
            "`hunter2",
            "? hunter2",
            "&a hunter2 &b",
            "55512345",
            "5551234555512345555123455551234555512345",
            "0x55512345",
            "-55512345",
            "5.55512345e9999",
            "0o55512345",
            "hunter2\u{0}",
            "hunter2\u{85}x",
            "<<: hunter2",
            "2026-55512345",
            "!include hunter2",
            "!hunter2",
            "!!hunter2 x",
            "!<hunter2> x",
            ".inf",
            "!!null hunter2",
            "!!bool hunter2",
            "!!int 55512345",
            "!!str 55512345",
            "!!timestamp hunter2",
            "!!set {hunter2}",
            "!!binary aHVudGVyMg==",
        ][..],
    );
    let field = prop::sample::select(
        &[
            "stringData:\n  k: V",
            "data:\n  k: V",
            "data: V",
            "stringData: V",
            "stringData:\nk: V",
            "data: {k: V}",
            "data: {k: V, k: V}",
            "stringData: [V]",
            "immutable: V",
            "stringData:\n  k: V\n V",
            "strngData: {k: V}",
            "stringData:\n  <<: V",
            "stringData:\n  k:\n    - V",
            "stringData:\n  k: x\n  V",
            "binaryData: {k: V}",
        ][..],
    );
    let head = prop::sample::select(
        &[
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n",
            "apiVersion: v1\nkind: Secret\nmetadata: {}\n",
            "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/dockerconfigjson\nmetadata: {name: s}\n",
            "kind: Secret\nmetadata: {name: s}\n",
            "apiVersion: v2\nkind: Secret\n",
        ][..],
    );
    (head, field, value).prop_map(|(head, field, value)| format!("{head}{}\n", field.replace('V', value)))
}

/// The same in JSON.
fn careless_json() -> impl Strategy<Value = String> {
    let value = prop::sample::select(
        &[
            "\"hunter2\"",
            "hunter2",
            "'hunter2'",
            "\"hunter2",
            "[\"hunter2\"]",
            "{\"a\": \"hunter2\"}",
            "\"\\xhunter2\"",
            "\"hunter2\\ud800\"",
            "55512345",
            "5551234555512345555123455551234555512345",
            "55512345e9999",
            "55512345x",
            "\"hunter2\" 1",
            "\"hunter2\n\"",
            "tru\"hunter2\"",
            "-hunter2",
        ][..],
    );
    let field = prop::sample::select(
        &[
            "\"data\": {\"k\": V}",
            "\"stringData\": {\"k\": V}",
            "\"data\": V",
            "\"stringData\": {\"k\": V, \"k\": V}",
            "\"x\": V",
            "\"immutable\": V",
        ][..],
    );
    (field, value).prop_map(|(field, value)| {
        let head = "{\"apiVersion\": \"v1\", \"kind\": \"Secret\", \"metadata\": {\"name\": \"s\"}, ";
        format!("{head}{}}}\n", field.replace('V', value))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_message_shows_a_secret_value(text in prop_oneof![careless(), careless_json()]) {
        let loaded = read(&text);
        let shown = format!("{loaded:?} {}", problems(&loaded));
        // As a key of its own it is no value any more; only a key that is asked for shows it.
        let hidden = !shown.contains("hunter2") && !shown.contains("55512345") && !shown.contains("5.551234");
        prop_assert!(hidden, "{text:?}: {shown}");
    }
}

proptest! {
    #[test]
    fn mutated_objects_load(bytes in mutations(&[OBJECTS, BAD])) {
        let first = load(&bytes, Origin::File("f"), "n");
        prop_assert_eq!(&first, &load(&bytes, Origin::File("f"), "n"), "not deterministic");
        let mut ids = HashSet::new();
        for object in &first.objects {
            let id = object.id();
            prop_assert!(!id.name.is_empty() && !id.namespace.is_empty());
            prop_assert!(object.data().keys().all(|key| !key.contains('/') && key != "." && !key.starts_with("..") && !key.is_empty()));
            match object {
                Object::ConfigMap(map) => {
                    let text = serde_json::to_vec(&**map).unwrap();
                    prop_assert_eq!(&**map, &serde_json::from_slice::<ConfigMap>(&text).unwrap());
                }
                Object::Secret(secret) => {
                    let text = serde_json::to_vec(&**secret).unwrap();
                    prop_assert_eq!(&**secret, &serde_json::from_slice::<Secret>(&text).unwrap());
                    prop_assert!(secret.string_data.is_none() && credentials(secret).is_ok());
                }
            }
            prop_assert!(ids.insert(id), "twice");
        }
        for pod in &first.pods {
            prop_assert_eq!(unresolved(pod, &serving(pod)), []);
            let needed = references(pod).iter().any(|reference| !reference.optional);
            let mut missing = unresolved(pod, &Objects::default());
            prop_assert_eq!(missing.is_empty(), !needed);
            locate(&mut missing, &first.places);
            prop_assert!(missing.iter().all(|problem| problem.line.is_some()));
        }
    }
}
