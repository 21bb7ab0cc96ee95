//! Which images go when the disk is full, or when nobody has used them for long. Pure: data in, a list out.
//!
//! As kubelet: least recently used first, then the oldest; never one that is in use, pinned, or younger than the least
//! age. Unlike it, layers that images share are counted once, and an image whose removal would free nothing stays.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Digest;

/// An image, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: Digest,
    pub layers: Vec<Digest>,
    /// When it came in, seconds since 1970.
    pub added: i64,
    /// When a container last used it; `None`: none ever did.
    pub last_used: Option<i64>,
    /// Whether it is kept whatever happens: used, pinned, or the program's own.
    pub exempt: bool,
}

/// When images are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Usage in percent at which images are removed; 100: never for space.
    pub high_percent: u8,
    /// Usage in percent at which that ends.
    pub low_percent: u8,
    /// A younger image is not removed.
    pub minimum_age: Duration,
    /// An image unused for longer is removed; zero: never for age.
    pub maximum_age: Duration,
}

impl Policy {
    /// Whether the regular collection has anything to do (as kubelet: a high threshold of 100 and no age switch it off).
    pub fn is_on(&self) -> bool {
        self.high_percent < 100 || !self.maximum_age.is_zero()
    }

    /// Bytes to free on a disk of `capacity` bytes of which `available` are left; zero below the high threshold (as
    /// kubelet: usage is rounded up to whole percents).
    pub fn needed(&self, capacity: u64, available: u64) -> u64 {
        let available = available.min(capacity);
        if self.high_percent >= 100 || capacity == 0 || self.usage(capacity, available) < u64::from(self.high_percent) {
            return 0;
        }
        let free = u128::from(capacity) * u128::from(100 - self.low_percent.min(100)) / 100;
        u64::try_from(free).unwrap_or(u64::MAX).saturating_sub(available)
    }

    /// Usage in percent.
    pub fn usage(&self, capacity: u64, available: u64) -> u64 {
        let left = u128::from(available.min(capacity)) * 100 / u128::from(capacity.max(1));
        100 - u64::try_from(left).unwrap_or(100)
    }
}

/// What to remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// In this order.
    pub images: Vec<Digest>,
    /// Bytes in layers that no other image has.
    pub freed: u64,
}

/// The images to remove so that `needed` bytes become free, or as many as may go. `sizes`: of layers, in bytes; `now` in
/// seconds since 1970. Times in the future count as now: the clock was set back.
pub fn for_space(images: &[Candidate], sizes: &HashMap<Digest, u64>, policy: &Policy, now: i64, needed: u64) -> Choice {
    let old_enough = |image: &&Candidate| age(image.added, now) >= policy.minimum_age;
    // Used in the future or right now: not unused, whatever the records of pods say (as kubelet).
    let unused = |image: &&Candidate| image.last_used.is_none_or(|at| at < now);
    let mut order: Vec<&Candidate> = images.iter().filter(|image| !image.exempt).filter(old_enough).collect();
    order.retain(|image| unused(image));
    order.sort_by_key(|image| (image.last_used, image.added, &image.id));
    choose(images, order, sizes, Some(needed))
}

/// The images that nothing has used for longer than the policy's greatest age; an image that was never used counts from
/// when it came in.
pub fn for_age(images: &[Candidate], sizes: &HashMap<Digest, u64>, policy: &Policy, now: i64) -> Choice {
    if policy.maximum_age.is_zero() {
        return Choice::default();
    }
    let idle = |image: &Candidate| age(image.last_used.unwrap_or(image.added), now);
    let mut order: Vec<&Candidate> = images.iter().filter(|image| !image.exempt).collect();
    order.retain(|image| age(image.added, now) >= policy.minimum_age && idle(image) > policy.maximum_age);
    order.sort_by_key(|image| (image.last_used, image.added, &image.id));
    choose(images, order, sizes, None)
}

/// All images that are not exempt, whatever their age: what a person asks for.
pub fn unused(images: &[Candidate], sizes: &HashMap<Digest, u64>) -> Choice {
    let mut order: Vec<&Candidate> = images.iter().filter(|image| !image.exempt).collect();
    order.sort_by_key(|image| (image.last_used, image.added, &image.id));
    choose(images, order, sizes, None)
}

/// Takes images in `order` until `needed` bytes are free; `None`: takes all, also those that free nothing.
fn choose(images: &[Candidate], order: Vec<&Candidate>, sizes: &HashMap<Digest, u64>, needed: Option<u64>) -> Choice {
    let mut owners: BTreeMap<&Digest, usize> = BTreeMap::new();
    for layer in images.iter().flat_map(distinct) {
        *owners.entry(layer).or_default() += 1;
    }
    let (mut taken, mut freed) = (Vec::new(), 0_u64);
    for image in order {
        if needed.is_some_and(|needed| freed >= needed) {
            break;
        }
        for layer in distinct(image) {
            let left = owners.entry(layer).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                freed = freed.saturating_add(sizes.get(layer).copied().unwrap_or(0));
            }
        }
        taken.push(image);
    }
    if needed.is_some() {
        // All it has is kept by others: to lose it would help nobody. That it stays keeps nothing else.
        taken.retain(|image| image.layers.iter().any(|layer| owners.get(layer).is_some_and(|left| *left == 0)));
    }
    Choice { images: taken.into_iter().map(|image| image.id.clone()).collect(), freed }
}

/// An image's layers, each once.
fn distinct(image: &Candidate) -> impl Iterator<Item = &Digest> {
    let layers = &image.layers;
    layers.iter().enumerate().filter(|(at, layer)| !layers[..*at].contains(layer)).map(|(_, layer)| layer)
}

/// How long ago; a time in the future is now.
fn age(then: i64, now: i64) -> Duration {
    Duration::from_secs(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        high_percent: 85,
        low_percent: 80,
        minimum_age: Duration::from_secs(120),
        maximum_age: Duration::from_secs(1000),
    };
    const NOW: i64 = 100_000;

    fn layer(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn image(n: u8, layers: &[u8], last_used: Option<i64>, added: i64) -> Candidate {
        let layers = layers.iter().map(|n| layer(*n)).collect();
        Candidate { id: Digest::of(&[b'i', n]), layers, added, last_used, exempt: false }
    }

    /// Layer `n` has `n` bytes.
    fn sizes() -> HashMap<Digest, u64> {
        (0..=255).map(|n| (layer(n), u64::from(n))).collect()
    }

    fn names(choice: &Choice) -> Vec<u8> {
        let of = |id: &Digest| (0..=255).find(|n| Digest::of(&[b'i', *n]) == *id).unwrap();
        choice.images.iter().map(of).collect()
    }

    #[test]
    fn thresholds_are_the_kubelets() {
        assert_eq!(POLICY.needed(1000, 160), 0);
        // 15.9 % left are 85 % used.
        assert_eq!(POLICY.needed(1000, 159), 41);
        assert_eq!(POLICY.needed(1000, 150), 50);
        assert_eq!(POLICY.needed(1000, 0), 200);
        assert_eq!(POLICY.needed(0, 0), 0);
        assert_eq!(POLICY.needed(u64::MAX, 0), u64::MAX / 5);
        let off = Policy { high_percent: 100, ..POLICY };
        assert_eq!(off.needed(1000, 0), 0);
        assert!(off.is_on());
        assert!(!Policy { maximum_age: Duration::ZERO, ..off }.is_on());
    }

    #[test]
    fn the_least_recently_used_goes_first_then_the_oldest() {
        let images = [
            image(1, &[10], Some(500), 1),
            image(2, &[11], Some(400), 2),
            image(3, &[12], None, 9),
            image(4, &[13], None, 8),
        ];
        let all = for_space(&images, &sizes(), &POLICY, NOW, u64::MAX);
        assert_eq!((names(&all), all.freed), (vec![4, 3, 2, 1], 46));
        assert_eq!(names(&for_space(&images, &sizes(), &POLICY, NOW, 14)), [4, 3]);
        assert_eq!(names(&for_space(&images, &sizes(), &POLICY, NOW, 13)), [4]);
        assert!(for_space(&images, &sizes(), &POLICY, NOW, 0).images.is_empty());
    }

    #[test]
    fn young_and_exempt_images_stay() {
        let mut images = vec![image(1, &[10], None, NOW - 119), image(2, &[11], None, NOW - 120)];
        images.push(Candidate { exempt: true, ..image(3, &[12], None, 1) });
        // The clock was set back since it came in, or was used.
        images.extend([image(4, &[13], None, NOW + 500), image(5, &[14], Some(NOW + 500), 1)]);
        assert_eq!(names(&for_space(&images, &sizes(), &POLICY, NOW, u64::MAX)), [2]);
        assert_eq!(names(&unused(&images, &sizes())), [2, 1, 4, 5], "a person's word counts for the young too");
    }

    #[test]
    fn shared_layers_count_once_and_only_when_nobody_keeps_them() {
        let mut images = vec![image(1, &[100, 1], None, 1), image(2, &[100, 2, 2], None, 2), image(3, &[100], None, 3)];
        let all = for_space(&images, &sizes(), &POLICY, NOW, u64::MAX);
        assert_eq!((names(&all), all.freed), (vec![1, 2, 3], 103));
        images[2].exempt = true;
        let some = for_space(&images, &sizes(), &POLICY, NOW, u64::MAX);
        assert_eq!((names(&some), some.freed), (vec![1, 2], 3));
        // Nothing of the second is its own.
        images[1].layers = vec![layer(100)];
        assert_eq!(names(&for_space(&images, &sizes(), &POLICY, NOW, u64::MAX)), [1]);
        assert_eq!(names(&unused(&images, &sizes())), [1, 2]);
    }

    #[test]
    fn old_images_go_by_age() {
        let images = [
            image(1, &[1], Some(NOW - 1001), 1),
            image(2, &[2], Some(NOW - 1000), 1),
            image(3, &[3], None, NOW - 1001),
            image(4, &[4], None, NOW - 1000),
        ];
        assert_eq!(names(&for_age(&images, &sizes(), &POLICY, NOW)), [3, 1]);
        let off = Policy { maximum_age: Duration::ZERO, ..POLICY };
        assert!(for_age(&images, &sizes(), &off, NOW).images.is_empty());
    }

    prop_compose! {
        fn candidates()(
            images in prop::collection::vec(
                (prop::collection::vec(0u8..12, 0..5), any::<bool>(), prop::option::of(0..NOW * 2), 0..NOW * 2),
                0..20,
            )
        ) -> Vec<Candidate> {
            let make = |(n, (layers, exempt, used, added)): (usize, (Vec<u8>, bool, Option<i64>, i64))| {
                Candidate { exempt, ..image(n as u8, &layers, used, added) }
            };
            images.into_iter().enumerate().map(make).collect()
        }
    }

    /// Bytes in layers that only these images have.
    fn freed(images: &[Candidate], gone: &[Digest]) -> u64 {
        let (gone, kept): (Vec<_>, Vec<_>) = images.iter().partition(|image| gone.contains(&image.id));
        let mut layers: Vec<&Digest> = gone.iter().flat_map(|image| &image.layers).collect();
        layers.sort();
        layers.dedup();
        layers.retain(|layer| !kept.iter().any(|image| image.layers.contains(layer)));
        layers.iter().map(|layer| sizes()[layer]).sum()
    }

    proptest! {
        #[test]
        fn no_more_goes_than_must(images in candidates(), needed in 0u64..80) {
            let choice = for_space(&images, &sizes(), &POLICY, NOW, needed);
            let of = |id: &Digest| images.iter().find(|image| image.id == *id).unwrap();
            for id in &choice.images {
                let image = of(id);
                prop_assert!(!image.exempt);
                prop_assert!(NOW - image.added >= 120);
                prop_assert!(image.last_used.is_none_or(|at| at < NOW));
                // It frees something, if only an empty layer.
                let rest: Vec<Digest> = choice.images.iter().filter(|other| *other != id).cloned().collect();
                prop_assert!(freed(&images, &choice.images) >= freed(&images, &rest));
            }
            prop_assert_eq!(choice.freed, freed(&images, &choice.images));
            let last = choice.images.last().map_or(0, |id| freed(&images[..], std::slice::from_ref(id)).max(
                of(id).layers.iter().map(|layer| sizes()[layer]).sum()));
            prop_assert!(choice.freed <= needed + last, "{} for {needed}, the last of {last}", choice.freed);
            if let Some((_, before)) = choice.images.split_last() {
                prop_assert!(freed(&images, before) < needed.max(1));
            }
            prop_assert_eq!(&for_space(&images, &sizes(), &POLICY, NOW, needed), &choice);
            let mut other = images.clone();
            other.reverse();
            prop_assert_eq!(for_space(&other, &sizes(), &POLICY, NOW, needed), choice, "whatever the order of the input");
        }

        #[test]
        fn what_is_missing_cannot_be_had(images in candidates(), needed in 0u64..200) {
            let choice = for_space(&images, &sizes(), &POLICY, NOW, needed);
            if choice.freed < needed {
                prop_assert_eq!(for_space(&images, &sizes(), &POLICY, NOW, u64::MAX).freed, choice.freed);
            }
        }

        #[test]
        fn thresholds_never_overflow(capacity: u64, available: u64, high in 0u8..=100, low in 0u8..=100) {
            let policy = Policy { high_percent: high, low_percent: low, ..POLICY };
            prop_assert!(policy.needed(capacity, available) <= capacity);
        }
    }
}
