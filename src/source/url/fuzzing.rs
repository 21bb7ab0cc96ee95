//! What the fuzz target does with a server's answer: only fuzzing and tests see this, so that each seed is a unit test too.

use std::collections::BTreeMap;

use super::answer::{Failure, Kind, Verdict, judge};
use super::content::contents;
use super::said::Said;
use crate::http::{Answer, Body};
use crate::source::SourceKind;

const URL: &str = "https://host.example/pods";

/// A body of status 200, whether or not it is known to be whole: understood or refused, the same each time, and no failure
/// after it changes what is to run.
pub fn url_answers(bytes: &[u8]) {
    for delimited in [true, false] {
        let body = Body { bytes: bytes.to_vec(), delimited };
        let answer = Answer { status: 200, body, ..Answer::default() };
        let Verdict::Document(document, _) = judge(Ok(answer), false) else { continue };
        let Ok(contents) = contents(&document) else { continue };
        assert!(!contents.manifests.is_empty(), "a document without a manifest would remove all pods");
        assert!(contents.manifests.keys().all(|name| !name.contains(char::is_control)), "a name that cannot be shown");
        let mut said = Said::new(URL.to_owned(), URL.to_owned(), "node".to_owned(), BTreeMap::new());
        said.hear(said.read(&contents), contents.ignored.clone());
        let first = said.snapshot();
        assert!(first.healthy && first.pods.iter().all(|d| SourceKind::of(&d.pod) == Some(SourceKind::Http)));
        said.hear(said.read(&contents), contents.ignored);
        assert_eq!(said.snapshot(), first, "the same document says the same");
        said.fail(Failure::new(Kind::Empty, "nothing"));
        let failed = said.snapshot();
        assert!(!failed.healthy && failed.pods == first.pods && failed.objects == first.objects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn seeds_of_url_answers() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/url_answers");
        let mut count = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display());
            url_answers(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{}: no seeds", dir.display());
    }
}
