//! Path patterns such as `spec.containers[*].env[*].valueFrom`, matched against a document.

use super::tree::{Node, Value};

/// Every node that the pattern matches, with its path. `[*]` stands for any index of a list.
pub(super) fn matches<'d>(document: &'d Node, pattern: &str) -> Vec<(String, &'d Node)> {
    let mut found = vec![(String::new(), document)];
    for step in pattern.split('.') {
        let (name, each) = step.strip_suffix("[*]").map_or((step, false), |name| (name, true));
        let mut next = Vec::new();
        for (path, node) in found {
            let Some(child) = node.get(name) else { continue };
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            match &child.value {
                Value::List(items) if each => {
                    next.extend(items.iter().enumerate().map(|(index, item)| (format!("{path}[{index}]"), item)));
                }
                _ if each => {}
                _ => next.push((path, child)),
            }
        }
        found = next;
    }
    found
}
