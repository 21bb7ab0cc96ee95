//! What `validate` finds in several manifests together.

use super::error::Error;
use super::manifests::problem_line;
use crate::manifest::{self, Loaded, Objects, Problem, Severity};
use crate::server::types::Cause;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// The manifests to read: a folder stands for those in it, as a node reads its manifest directory: by name, not deeper.
pub(super) fn files(sources: &[String]) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for source in sources {
        if !Path::new(source).is_dir() {
            found.push(source.clone());
            continue;
        }
        let failure = |why: String| Error::new(format!("cannot read {source}"), why);
        let mut names = Vec::new();
        for entry in fs::read_dir(source).map_err(|error| failure(error.to_string()))? {
            let path = entry.map_err(|error| failure(error.to_string()))?.path();
            let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            let manifest =
                path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
            if manifest && !hidden && !path.is_dir() {
                names.push(path.to_string_lossy().into_owned());
            }
        }
        if names.is_empty() {
            return Err(failure("no manifest is in it (.yaml, .yml or .json)".to_owned()));
        }
        names.sort();
        found.extend(names);
    }
    Ok(found)
}

/// What is to be said of some manifests.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// A line for each problem and each file without an error.
    pub(super) text: String,
    pub(super) errors: usize,
    pub(super) warnings: usize,
}

/// All problems of these manifests, by name: those of each alone, what no other has of what its pods refer to, and what is in
/// two of them.
pub(super) fn report(files: &mut [(String, Loaded)], node: &str) -> Report {
    let objects: Objects = files.iter().flat_map(|(_, loaded)| loaded.objects.iter().cloned()).collect();
    let mut owners: HashMap<String, String> = HashMap::new();
    let mut report = Report::default();
    for (name, loaded) in files {
        let mut others = missing(loaded, &objects);
        let own = loaded.pods.iter().map(|pod| (format!("pod {}", pod_name(pod, node)), pod_key(pod)));
        let own = own.chain(loaded.objects.iter().map(|object| (object.id().to_string(), None)));
        let defined: Vec<_> = own.collect();
        for (what, pod) in &defined {
            if let Some(other) = owners.get(what) {
                let reason = format!("Duplicate value: {what} is in {other}, too: of two a node takes one");
                let field = "metadata.name".to_owned();
                let severity = Severity::Warning;
                others.push(Problem { line: None, column: None, field, reason, severity, pod: pod.clone() });
            }
        }
        for (what, _) in &defined {
            owners.insert(what.clone(), name.clone());
        }
        loaded.problems.extend(others);
        loaded.problems.sort_by_key(|problem| problem.line);
        let mut errors = 0;
        for problem in &loaded.problems {
            let is_error = problem.severity == Severity::Error;
            errors += usize::from(is_error);
            report.warnings += usize::from(!is_error);
            report.text.push_str(&problem_line(name, &Cause::from(problem)));
        }
        if errors == 0 && defined.is_empty() {
            report.text.push_str(&format!("{name}: defines no pod and no object\n"));
            errors = 1;
        } else if errors == 0 {
            let pods = loaded.pods.iter().map(|pod| pod_name(pod, node));
            let all: Vec<String> = pods.chain(loaded.objects.iter().map(|object| object.id().to_string())).collect();
            report.text.push_str(&format!("{name}: valid: {}\n", all.join(", ")));
        }
        report.errors += errors;
    }
    report
}

/// What the pods of a manifest refer to and nothing defines. A warning: the node may have it.
fn missing(loaded: &Loaded, objects: &Objects) -> Vec<Problem> {
    let pods = loaded.pods.iter().chain(&loaded.refused);
    let mut found: Vec<Problem> = pods.flat_map(|pod| manifest::unresolved(pod, objects)).collect();
    manifest::locate(&mut found, &loaded.places);
    for problem in &mut found {
        problem.severity = Severity::Warning;
        problem.reason.push_str(" (unless the node has it from elsewhere)");
    }
    found
}

fn pod_key(pod: &Pod) -> Option<(String, String)> {
    Some((pod.metadata.namespace.clone()?, pod.metadata.name.clone()?))
}

/// Namespace and name as the manifest has it, without the node's suffix.
fn pod_name(pod: &Pod, node: &str) -> String {
    let (namespace, name) = pod_key(pod).unwrap_or_default();
    format!("{namespace}/{}", name.strip_suffix(&format!("-{node}")).unwrap_or(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Origin, load};
    use expect_test::expect;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: c\n    image: \"app:1\"\n    \
                       envFrom:\n    - secretRef: {name: db}\n";
    const SECRET: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: db}\nstringData: {password: hunter2}\n";

    fn check(texts: &[(&str, &str)]) -> Report {
        let read = |(name, text): &(&str, &str)| ((*name).to_owned(), load(text.as_bytes(), Origin::File(name), "n1"));
        report(&mut texts.iter().map(read).collect::<Vec<_>>(), "n1")
    }

    #[test]
    fn objects_of_one_manifest_serve_the_pods_of_all() {
        let said = check(&[("pod.yaml", POD), ("secret.yaml", SECRET)]);
        assert_eq!((said.errors, said.warnings), (0, 0));
        expect![[r#"
            pod.yaml: valid: default/web
            secret.yaml: valid: Secret default/db
        "#]]
        .assert_eq(&said.text);
        let said = check(&[("pod.yaml", POD)]);
        assert_eq!((said.errors, said.warnings), (0, 1));
        expect![[r#"
            pod.yaml:9: warning: spec.containers[0].envFrom[0].secretRef.name: Not found: "db": no source defines Secret default/db; add a Secret document to a manifest or to the objects folder (unless the node has it from elsewhere)
            pod.yaml: valid: default/web
        "#]].assert_eq(&said.text);
    }

    #[test]
    fn all_that_is_wrong_is_told_also_of_what_is_refused() {
        let refused = POD.replace("spec:\n", "spec:\n  serviceAccountName: a\n");
        let said = check(&[("a.yaml", &refused), ("b.yaml", ""), ("c.yaml", "apiVersion: v1\nkind: List\n")]);
        assert_eq!((said.errors, said.warnings), (3, 1));
        expect![[r#"
            a.yaml:5: spec.serviceAccountName: static pods may not reference serviceaccounts
            a.yaml:10: warning: spec.containers[0].envFrom[0].secretRef.name: Not found: "db": no source defines Secret default/db; add a Secret document to a manifest or to the objects folder (unless the node has it from elsewhere)
            b.yaml: holds no object; a Pod is expected
            c.yaml: defines no pod and no object
        "#]].assert_eq(&said.text);
    }

    #[test]
    fn a_time_to_become_ready_that_a_node_refuses_is_an_error() {
        let soon = POD.replace("{name: web}", "{name: web, annotations: {coracle.dev/rollback-after: soon}}");
        let said = check(&[("a.yaml", &soon), ("b.yaml", SECRET)]);
        assert_eq!((said.errors, said.warnings), (1, 0));
        expect![[r#"
            a.yaml:3: metadata.annotations[coracle.dev/rollback-after]: Invalid value: "soon" is not a duration such as 300ms, 20s, 1h30m
            b.yaml: valid: Secret default/db
        "#]]
        .assert_eq(&said.text);
    }

    #[test]
    fn what_two_manifests_define_is_told() {
        let said = check(&[("a.yaml", &format!("{POD}---\n{SECRET}")), ("b.yaml", SECRET), ("c.yaml", POD)]);
        assert_eq!((said.errors, said.warnings), (0, 2));
        expect![[r#"
            a.yaml: valid: default/web, Secret default/db
            b.yaml: warning: metadata.name: Duplicate value: Secret default/db is in a.yaml, too: of two a node takes one
            b.yaml: valid: Secret default/db
            c.yaml: warning: metadata.name: Duplicate value: pod default/web is in a.yaml, too: of two a node takes one
            c.yaml: valid: default/web
        "#]].assert_eq(&said.text);
    }

    #[test]
    fn a_folder_stands_for_its_manifests() {
        let dir = std::env::temp_dir().join(format!("coracle-validate-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub.yaml")).unwrap();
        let of =
            |names: &[&str]| names.iter().map(|name| dir.join(name).to_string_lossy().into_owned()).collect::<Vec<_>>();
        let folder = of(&[""]);
        assert!(files(&folder).is_err());
        for name in ["b.yml", "a.yaml", "c.json", ".hidden.yaml", "a.yaml~", "notes.txt"] {
            fs::write(dir.join(name), "").unwrap();
        }
        let mut sources = folder;
        sources.push("-".to_owned());
        let mut expected = of(&["a.yaml", "b.yml", "c.json"]);
        expected.push("-".to_owned());
        assert_eq!(files(&sources).unwrap(), expected);
        fs::remove_dir_all(&dir).unwrap();
    }
}
