use super::*;
use proptest::prelude::*;
use serde_json::json;

const VENDOR: &str = r#"
cdiVersion: 0.6.0
kind: vendor.com/cam
containerEdits:
  env: [CAM_HOME=/opt/cam]
devices:
- name: front
  containerEdits:
    env: [CAM=front, PATH=/cam/bin]
    deviceNodes:
    - {path: /dev/cam0, hostPath: /dev/video7, permissions: rw}
    - {path: /dev/disk, type: b, major: 8, minor: 1, fileMode: 384, uid: 7, gid: 8}
    mounts:
    - {hostPath: /usr/lib/cam, containerPath: /opt/cam/lib, options: [ro, nosuid]}
    hooks:
    - {hookName: createContainer, path: /usr/bin/link, args: [link, all]}
    additionalGids: [44, 0]
- name: rear
  containerEdits:
    hooks: [{hookName: poststop, path: /bin/x}]
- name: net
  containerEdits: {netDevices: [{hostInterfaceName: eth7, name: eth0}]}
"#;

fn registry(files: &[(usize, &str, &str)]) -> Registry {
    Registry {
        dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        files: files.iter().map(|(d, p, t)| (*d, PathBuf::from(p), parse(t, Format::Yaml).expect("file"))).collect(),
        problems: vec!["/etc/cdi/bad.json: it is not a CDI specification".into()],
    }
}

fn runtime_spec() -> RuntimeSpec {
    serde_json::from_value(json!({
        "ociVersion": "1.2.0",
        "process": {"cwd": "/", "env": ["PATH=/bin", "A=1"], "user": {"uid": 1000, "gid": 1001, "additionalGids": [5]}},
        "mounts": [{"destination": "/opt/cam/lib/x", "source": "/x", "type": "bind"}, {"destination": "/dev", "type": "tmpfs"}],
        "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]}}
    }))
    .expect("spec")
}

fn video(path: &Path) -> Result<HostNode, String> {
    match path.to_str() {
        Some("/dev/video7") => Ok(HostNode { number: Number { kind: Kind::Char, major: 81, minor: 7 }, mode: 0o660 }),
        _ => Err("no such file".into()),
    }
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn a_device_changes_the_container() {
    let registry = registry(&[(0, "/etc/cdi/cam.yaml", VENDOR)]);
    let mut spec = runtime_spec();
    let found = registry.find(&names(&["vendor.com/cam=front"])).expect("found");
    apply(&mut spec, &found, &video).expect("applied");
    let text = serde_json::to_string_pretty(&spec).expect("JSON") + "\n";
    expect_test::expect_file!["../../tests/golden/bundle/cdi.json"].assert_eq(&text);
}

#[test]
fn what_cannot_be_given_is_said() {
    let twice = [(0, "/etc/cdi/a.yaml", VENDOR), (0, "/etc/cdi/b.yaml", VENDOR)];
    let fail = |registry: &Registry, name: &str| registry.find(&names(&[name])).expect_err(name).to_string();
    let one = registry(&twice[..1]);
    let texts = [
        fail(&one, "vendor.com/cam=side"),
        fail(&one, "vendor.com/cam=rear"),
        fail(&one, "vendor.com/cam=net"),
        fail(&registry(&twice), "vendor.com/cam=front"),
        apply(&mut runtime_spec(), &one.find(&names(&["vendor.com/cam=front"])).expect("found"), &|_| {
            Err("no such file or directory".into())
        })
        .expect_err("no device")
        .to_string(),
    ];
    expect_test::expect![[r#"
        unresolvable CDI device vendor.com/cam=side: no such device in /etc/cdi, /var/run/cdi; /etc/cdi/bad.json: it is not a CDI specification
        CDI device vendor.com/cam=rear: poststop hooks are not run here
        CDI device vendor.com/cam=net: netDevices are not supported
        unresolvable CDI device vendor.com/cam=front: both /etc/cdi/a.yaml and /etc/cdi/b.yaml define it
        CDI device vendor.com/cam=front: /dev/video7: no such file or directory"#]].assert_eq(&texts.join("\n"));
}

#[test]
fn the_later_folder_wins() {
    let other = VENDOR.replace("CAM=front", "CAM=mine");
    let registry = registry(&[(1, "/var/run/cdi/cam.yaml", &other), (0, "/etc/cdi/cam.yaml", VENDOR)]);
    let mut spec = runtime_spec();
    apply(&mut spec, &registry.find(&names(&["vendor.com/cam=front"])).expect("found"), &video).expect("applied");
    assert!(spec.process().as_ref().expect("process").env().iter().flatten().any(|e| e == "CAM=mine"));
}

#[test]
fn files_with_mistakes() {
    let of = |devices: serde_json::Value| json!({"cdiVersion": "0.6.0", "kind": "v.com/c", "devices": devices});
    let edits = |edits: serde_json::Value| of(json!([{"name": "d", "containerEdits": edits}]));
    let all = [
        json!({}),
        json!({"cdiVersion": "9.0", "kind": "v.com/c", "devices": []}),
        json!({"cdiVersion": "0.6.0", "kind": "v.com", "devices": []}),
        of(json!([])),
        of(json!([{"name": "-x"}])),
        of(json!([{"name": "x"}, {"name": "x"}])),
        of(json!([{"name": "x", "containerEdit": {}}])),
        edits(json!({"env": ["A"]})),
        edits(json!({"deviceNodes": [{"path": "/x"}]})),
        edits(json!({"deviceNodes": [{"path": "/dev/../x"}]})),
        edits(json!({"deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]})),
        edits(json!({"deviceNodes": [{"path": "/dev/x", "type": "p"}]})),
        edits(json!({"mounts": [{"hostPath": "/x", "containerPath": "/proc"}]})),
        edits(json!({"hooks": [{"hookName": "later", "path": "/x"}]})),
        edits(json!({"hooks": [{"hookName": "poststart", "path": "x"}]})),
    ];
    let said: Vec<String> =
        all.iter().map(|v| parse(&v.to_string(), Format::Json).expect_err("a mistake").to_string()).collect();
    expect_test::expect![[r#"
        it is not a CDI specification: missing field `cdiVersion` at line 1 column 2
        cdiVersion: "9.0" is not one of 0.1.0, 0.2.0, 0.3.0, 0.4.0, 0.5.0, 0.6.0, 0.7.0, 0.8.0, 0.8.1, 1.0.0, 1.1.0
        kind: "v.com" is not of the form vendor.com/class
        devices: is empty
        devices[0].name: "-x" is not a device name
        devices[1].name: "x" is there twice
        it is not a CDI specification: unknown field `containerEdit`, expected one of `name`, `annotations`, `containerEdits` at line 1 column 49
        devices[0].containerEdits.env[0]: must be NAME=value
        devices[0].containerEdits.deviceNodes[0].path: must be a path below /dev without '..'
        devices[0].containerEdits.deviceNodes[0].path: must be a path below /dev without '..'
        devices[0].containerEdits.deviceNodes[0].permissions: must be letters of rwm
        devices[0].containerEdits.deviceNodes[0].type: must be b, c or u
        devices[0].containerEdits.mounts[0].containerPath: must be a path below / without '..', and not /dev, /proc or /sys
        devices[0].containerEdits.hooks[0].hookName: is not the name of a hook
        devices[0].containerEdits.hooks[0].path: must be an absolute path without '..'"#]].assert_eq(&said.join("\n"));
}

#[test]
fn annotations_name_devices() {
    let of = |value: &str| {
        requested(&BTreeMap::from([("cdi.k8s.io/x".to_owned(), value.to_owned()), ("other".into(), "=".into())]))
    };
    assert_eq!(of("v.com/c=a, v.com/c=b,v.com/c=a").expect("names"), ["v.com/c=a", "v.com/c=b"]);
    for bad in ["", "v.com/c", "v.com=c", "v.com/c=", "/c=a", "v.com/c=a,", "v.com/c=a b"] {
        assert!(matches!(of(bad), Err(Error::Name { .. })), "{bad:?}");
    }
    assert_eq!(requested(&BTreeMap::new()).expect("none"), Vec::<String>::new());
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(text in "\\PC{0,200}", piece in "[-:a-z{}\\[\\]\", \n0-9]{0,60}") {
        prop_assert!(parse(&text, Format::Json).is_err());
        prop_assert!(parse(&text, Format::Yaml).is_err());
        let _ = parse(&format!("cdiVersion: 0.6.0\nkind: v.com/c\ndevices:\n{piece}"), Format::Yaml);
    }

    #[test]
    fn any_annotation_is_answered(value in "\\PC{0,60}") {
        let _ = requested(&BTreeMap::from([("cdi.k8s.io/x".to_owned(), value)]));
    }
}
