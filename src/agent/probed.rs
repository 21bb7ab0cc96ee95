//! How often the probes of the containers that run came out how: `/metrics/probes`.

use crate::pod::probe::{Kind, Outcome};
use crate::stats::text::{Kind as Family, Text};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// All counts. Those of a container go when it does.
#[derive(Debug, Default)]
pub struct Book(Mutex<BTreeMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    container: String,
    pod: String,
    namespace: String,
    uid: String,
    counts: Arc<Counts>,
}

/// By kind of probe, in the order of [`Kind::ALL`], and result, in that of [`RESULTS`].
type Counts = [[AtomicU64; 3]; 3];

/// As kubelet.
const RESULTS: [&str; 3] = ["successful", "failed", "unknown"];

/// The counts of one run.
#[derive(Debug)]
pub struct Page {
    book: Arc<Book>,
    id: String,
    counts: Arc<Counts>,
}

impl Book {
    /// Counts for the run `id` of a container, until the page is dropped.
    pub fn open(self: &Arc<Self>, id: &str, container: &str, pod: &Pod) -> Page {
        let (counts, meta) = (Arc::new(Counts::default()), &pod.metadata);
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let entry = Entry {
            container: container.to_owned(),
            pod: part(&meta.name),
            namespace: part(&meta.namespace),
            uid: part(&meta.uid),
            counts: Arc::clone(&counts),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), entry);
        Page { book: Arc::clone(self), id: id.to_owned(), counts }
    }

    /// The counts as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Text::default();
        let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
        text.family("prober_probe_total", help, Family::Counter);
        for entry in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            for (kind, counts) in Kind::ALL.into_iter().zip(&*entry.counts) {
                for (result, count) in RESULTS.into_iter().zip(counts) {
                    let count = count.load(Ordering::Relaxed);
                    let kind = kind.to_string();
                    let labels = [
                        ("probe_type", kind.as_str()),
                        ("result", result),
                        ("container", &entry.container),
                        ("pod", &entry.pod),
                        ("namespace", &entry.namespace),
                        ("pod_uid", &entry.uid),
                    ];
                    text.sample(&labels, Some(count as f64).filter(|_| count > 0), None);
                }
            }
        }
        text.finish()
    }
}

impl Page {
    /// A probe came out so.
    pub fn count(&self, kind: Kind, outcome: Outcome) {
        let result = match outcome {
            Outcome::Success => 0,
            Outcome::Failure => 1,
            Outcome::Discard => 2,
        };
        if let Some(at) = Kind::ALL.iter().position(|k| *k == kind) {
            self.counts[at][result].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let mut all = self.book.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The same run may have been taken up anew before.
        if all.get(&self.id).is_some_and(|entry| Arc::ptr_eq(&entry.counts, &self.counts)) {
            all.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_last_as_long_as_the_run() {
        let book = Arc::new(Book::default());
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".to_owned());
        let page = book.open("id", "c", &pod);
        page.count(Kind::Readiness, Outcome::Failure);
        page.count(Kind::Readiness, Outcome::Failure);
        let text = book.render();
        let sample = "prober_probe_total{probe_type=\"Readiness\",result=\"failed\",container=\"c\",pod=\"p\",namespace=\"\",\
                      pod_uid=\"\"} 2\n";
        assert!(text.ends_with(sample), "{text}");
        let again = book.open("id", "c", &pod);
        drop(page);
        again.count(Kind::Liveness, Outcome::Success);
        assert!(book.render().contains("Liveness"));
        drop(again);
        assert_eq!(book.render(), "");
    }
}
