//! What was answered lately, for as long as it counts. Pure: the caller says what time it is.

use std::collections::HashMap;
use std::time::Duration;

/// What stands for a question; see [`Keys`](super::Keys).
pub(super) type Key = [u8; 32];

/// Answers, each until its time. `T` grows only, and nobody sets it.
#[derive(Debug)]
pub(super) struct Cache<V> {
    most: usize,
    known: HashMap<Key, (Duration, V)>,
}

impl<V: Clone> Cache<V> {
    /// At most that many answers: where one more comes in, the one whose time ends first leaves.
    pub(super) fn new(most: usize) -> Cache<V> {
        Cache { most, known: HashMap::new() }
    }

    /// What was answered, if that counts still.
    pub(super) fn get(&self, key: &Key, now: Duration) -> Option<V> {
        self.known.get(key).filter(|(until, _)| now < *until).map(|(_, value)| value.clone())
    }

    /// Remembers an answer until `until`.
    pub(super) fn put(&mut self, key: Key, value: V, until: Duration, now: Duration) {
        if self.known.len() >= self.most && !self.known.contains_key(&key) {
            self.known.retain(|_, (until, _)| now < *until);
        }
        if self.known.len() >= self.most && !self.known.contains_key(&key) {
            let first = self.known.iter().min_by_key(|(_, (until, _))| *until).map(|(key, _)| *key);
            first.map(|first| self.known.remove(&first));
        }
        self.known.insert(key, (until, value));
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> Key {
        [n; 32]
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_counts_until_its_time() {
        let mut cache = Cache::new(2);
        cache.put(key(1), "yes", at(10), at(0));
        assert_eq!((cache.get(&key(1), at(9)), cache.get(&key(1), at(10))), (Some("yes"), None));
        assert_eq!(cache.get(&key(2), at(0)), None);
        cache.put(key(1), "no", at(20), at(5));
        assert_eq!(cache.get(&key(1), at(15)), Some("no"));
        cache.clear();
        assert_eq!(cache.get(&key(1), at(15)), None);
    }

    #[test]
    fn a_full_cache_loses_what_would_end_first() {
        let mut cache = Cache::new(2);
        cache.put(key(1), 1, at(30), at(0));
        cache.put(key(2), 2, at(10), at(0));
        cache.put(key(3), 3, at(20), at(1));
        assert_eq!([1, 2, 3].map(|n| cache.get(&key(n), at(1))), [Some(1), None, Some(3)]);
        // What is over leaves before what counts.
        cache.put(key(4), 4, at(90), at(25));
        assert_eq!([1, 3, 4].map(|n| cache.get(&key(n), at(25))), [Some(1), None, Some(4)]);
    }

    proptest! {
        #[test]
        fn it_never_tells_what_it_was_not_told_and_never_grows(
            steps in proptest::collection::vec((0_u8..8, any::<u16>(), 0_u64..40), 0..60),
        ) {
            let (mut cache, mut told) = (Cache::new(4), HashMap::new());
            for (now, (n, value, ttl)) in steps.into_iter().enumerate() {
                let now = at(now as u64);
                cache.put(key(n), value, now + at(ttl), now);
                told.insert(n, (value, now + at(ttl)));
                prop_assert!(cache.known.len() <= 4);
                for n in 0..8 {
                    if let Some(got) = cache.get(&key(n), now) {
                        let (value, until) = told[&n];
                        prop_assert!(got == value && now < until);
                    }
                }
            }
        }
    }
}
