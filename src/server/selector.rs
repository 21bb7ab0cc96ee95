//! `fieldSelector` and `labelSelector`. Pure.

use super::reply::Failure;
use super::route::Resource;
use std::collections::BTreeMap;

/// Which objects a list or watch is about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    fields: Vec<Requirement>,
    labels: Vec<Requirement>,
}

#[derive(Debug, PartialEq, Eq)]
enum Requirement {
    Equals(String, String),
    Differs(String, String),
    Exists(String),
    Absent(String),
}

/// The fields that can be selected by, of one object.
pub(super) trait Fields {
    /// Value of a field; `None`: the object's kind has no such field.
    fn field(&self, name: &str) -> Option<&str>;
    /// Labels.
    fn labels(&self) -> Option<&BTreeMap<String, String>>;
}

const POD_FIELDS: &[&str] =
    &["metadata.name", "metadata.namespace", "spec.nodeName", "spec.restartPolicy", "status.phase", "status.podIP"];
const NODE_FIELDS: &[&str] = &["metadata.name"];
const OBJECT_FIELDS: &[&str] = &["metadata.name", "metadata.namespace"];
const EVENT_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.fieldPath",
    "reason",
    "type",
];

impl Selector {
    /// Reads both selectors of a query.
    pub(super) fn parse(resource: Resource, fields: Option<&str>, labels: Option<&str>) -> Result<Selector, Failure> {
        let known = match resource {
            Resource::Pods => POD_FIELDS,
            Resource::Nodes => NODE_FIELDS,
            Resource::Events => EVENT_FIELDS,
            Resource::ConfigMaps | Resource::Secrets => OBJECT_FIELDS,
        };
        let fields = requirements(fields.unwrap_or_default())?;
        for requirement in &fields {
            match requirement {
                Requirement::Equals(key, _) | Requirement::Differs(key, _) if known.contains(&key.as_str()) => {}
                Requirement::Equals(key, _) | Requirement::Differs(key, _) => {
                    return Err(Failure::bad_request(format!("field label not supported: {key}")));
                }
                Requirement::Exists(key) | Requirement::Absent(key) => {
                    return Err(Failure::bad_request(format!("invalid field selector {key:?}: want field=value")));
                }
            }
        }
        Ok(Selector { fields, labels: requirements(labels.unwrap_or_default())? })
    }

    /// Whether an object is selected.
    pub(super) fn fits(&self, object: &dyn Fields) -> bool {
        let label = |key: &str| object.labels().and_then(|labels| labels.get(key)).map(String::as_str);
        self.fields.iter().all(|requirement| requirement.holds(|key| Some(object.field(key).unwrap_or_default())))
            && self.labels.iter().all(|requirement| requirement.holds(label))
    }
}

impl Requirement {
    fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Requirement::Equals(key, wanted) => value(key) == Some(wanted),
            // As Kubernetes: an absent label differs from everything.
            Requirement::Differs(key, unwanted) => value(key) != Some(unwanted),
            Requirement::Exists(key) => value(key).is_some(),
            Requirement::Absent(key) => value(key).is_none(),
        }
    }
}

fn requirements(text: &str) -> Result<Vec<Requirement>, Failure> {
    let mut requirements = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if part.contains(['(', ')', ' ']) {
            return Err(Failure::bad_request(format!(
                "selector {part:?}: only =, ==, != and existence are supported yet"
            )));
        }
        let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let requirement = if let Some((key, value)) = part.split_once("!=").map(pair) {
            Requirement::Differs(key, value)
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')).map(pair) {
            Requirement::Equals(key, value)
        } else if let Some(key) = part.strip_prefix('!') {
            Requirement::Absent(key.to_owned())
        } else {
            Requirement::Exists(part.to_owned())
        };
        requirements.push(requirement);
    }
    Ok(requirements)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Object(BTreeMap<String, String>);

    impl Fields for Object {
        fn field(&self, name: &str) -> Option<&str> {
            (name == "metadata.name").then_some("web")
        }
        fn labels(&self) -> Option<&BTreeMap<String, String>> {
            Some(&self.0)
        }
    }

    fn fits(fields: &str, labels: &str) -> bool {
        let object = Object(BTreeMap::from([("app".to_owned(), "web".to_owned())]));
        Selector::parse(Resource::Pods, Some(fields), Some(labels)).unwrap().fits(&object)
    }

    #[test]
    fn requirements_hold_as_in_kubernetes() {
        assert!(fits("", ""));
        assert!(fits("metadata.name=web", "app=web,app,!db,tier!=x"));
        assert!(!fits("metadata.name!=web", ""));
        assert!(!fits("", "app!=web"));
        assert!(!fits("", "db"));
        assert!(!fits("status.phase=Running", ""));
    }

    #[test]
    fn what_cannot_be_selected_by_is_refused() {
        for (fields, labels) in [("spec.color=red", ""), ("metadata.name", ""), ("", "app in (a,b)")] {
            assert!(Selector::parse(Resource::Pods, Some(fields), Some(labels)).is_err(), "{fields} {labels}");
        }
    }
}
