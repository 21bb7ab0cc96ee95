//! Which images go when the disk is full, or when nobody has used them for long. Pure: data in, a list out.
//!
//! As kubelet: least recently used first, then the oldest; never one that is in use, pinned, or younger than the least
//! age. Unlike it, layers that images share are counted once, and an image whose removal would free nothing stays.
//!
//! The machine's clock is not to be trusted: a device without a battery begins in 1970 and learns the time later, and
//! people set clocks wrong and right again. So nothing is ever old that this process has not known for as long, by a clock
//! that nobody sets; times in the future say nothing; and when the clock jumps, what was noted by it jumps along.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Digest;

/// Seconds that a clock may be put right by between two looks without having jumped.
const SLEW: u64 = 5;

/// An image, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: Digest,
    pub layers: Vec<Digest>,
    /// When it came in, seconds since 1970.
    pub added: i64,
    /// When a container last used it; `None`: none ever did.
    pub last_used: Option<i64>,
    /// How long it is known to be here, by a clock that nobody sets.
    pub known_for: Duration,
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
/// seconds since 1970.
pub fn for_space(images: &[Candidate], sizes: &HashMap<Digest, u64>, policy: &Policy, now: i64, needed: u64) -> Choice {
    // As kubelet: from when it was first seen, which a restart forgets.
    let old_enough = |image: &&Candidate| image.known_for >= policy.minimum_age;
    // Used in the future or right now: not unused, whatever the records of pods say (as kubelet).
    let unused = |image: &&Candidate| image.last_used.is_none_or(|at| at < now);
    let mut order: Vec<&Candidate> = images.iter().filter(|image| !image.exempt).filter(old_enough).collect();
    order.retain(|image| unused(image));
    order.sort_by_key(|image| (image.last_used, image.added, &image.id));
    choose(images, order, sizes, Some(needed))
}

/// The images that nothing has used for longer than the policy's greatest age; an image that was never used counts from
/// when it came in. None that is known for less time, whatever the clock says.
pub fn for_age(images: &[Candidate], sizes: &HashMap<Digest, u64>, policy: &Policy, now: i64) -> Choice {
    if policy.maximum_age.is_zero() {
        return Choice::default();
    }
    let mut order: Vec<&Candidate> = images.iter().filter(|image| !image.exempt).collect();
    order.retain(|image| image.known_for >= policy.minimum_age && idle(image, now) > policy.maximum_age);
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

/// How long nothing has used an image.
fn idle(image: &Candidate, now: i64) -> Duration {
    let ago = now.saturating_sub(image.last_used.unwrap_or(image.added));
    match u64::try_from(ago) {
        Ok(seconds) => Duration::from_secs(seconds).min(image.known_for),
        // A time in the future: the clock was wrong then, or is now.
        Err(_) => image.known_for,
    }
}

/// How far the clock has jumped: it says `now` and said `earlier` when, truly, `passed` less time had gone by. Seconds.
pub fn jump(earlier: i64, now: i64, passed: Duration) -> i64 {
    let passed = i64::try_from(passed.as_secs()).unwrap_or(i64::MAX);
    let jump = now.saturating_sub(earlier).saturating_sub(passed);
    if jump.unsigned_abs() <= SLEW { 0 } else { jump }
}

/// Moves times along with a clock that jumped, so that how long ago they are stays as it was. None is left in the future:
/// it would be new for ever.
pub fn follow<'a>(times: impl Iterator<Item = &'a mut i64>, jump: i64, now: i64) {
    for time in times {
        *time = time.saturating_add(jump).min(now);
    }
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
    const LONG: Duration = Duration::from_secs(50_000);

    fn layer(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn image(n: u8, layers: &[u8], last_used: Option<i64>, added: i64) -> Candidate {
        let layers = layers.iter().map(|n| layer(*n)).collect();
        Candidate { id: Digest::of(&[b'i', n]), layers, added, last_used, known_for: LONG, exempt: false }
    }

    fn known(seconds: u64, image: Candidate) -> Candidate {
        Candidate { known_for: Duration::from_secs(seconds), ..image }
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
        // The clock says of both that they are a day old.
        let mut images = vec![known(119, image(1, &[10], None, 2)), known(120, image(2, &[11], None, 1))];
        images.push(Candidate { exempt: true, ..image(3, &[12], None, 1) });
        // The clock was set back since it came in: it is old all the same. What is used this moment is not unused.
        images.extend([image(4, &[13], None, NOW + 500), image(5, &[14], Some(NOW), 1)]);
        assert_eq!(names(&for_space(&images, &sizes(), &POLICY, NOW, u64::MAX)), [2, 4]);
        assert_eq!(names(&unused(&images, &sizes())), [2, 1, 4, 5], "a person's word counts for the young too");
    }

    #[test]
    fn a_wrong_clock_neither_ages_an_image_nor_keeps_it_young() {
        // Pulled in 1970, before the time was known; the node is up for long, the image is not.
        let fresh = known(900, image(1, &[1], None, 7));
        let just_used = known(900, image(2, &[2], Some(7), 7));
        // Pulled in the year after next, by a clock that was wrong.
        let future = image(3, &[3], None, NOW + 70_000_000);
        let images = [fresh, just_used, future];
        assert_eq!(names(&for_age(&images, &sizes(), &POLICY, NOW)), [3]);
        // An hour in 1970, then the clock is right: what was used ten minutes ago still was.
        let (begin, year) = (1000, 1_700_000_000);
        let mut times = [begin + 3000, begin + 600, begin + 99_999];
        let by = jump(begin + 3590, year + 10, Duration::from_secs(20));
        assert_eq!(by, year + 10 - begin - 3610);
        follow(times.iter_mut(), by, year + 10);
        assert_eq!(times.map(|time| year + 10 - time), [610, 3010, 0]);
        assert_eq!(jump(1000, 1303, Duration::from_secs(300)), 0, "put right a little");
        assert_eq!(jump(1000, 1300, Duration::from_secs(u64::MAX)), 300 - i64::MAX);
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

    /// Layers, whether it is exempt, when it was used and came in, and for how long it is known.
    type Drawn = (Vec<u8>, bool, Option<i64>, i64, u64);

    prop_compose! {
        fn candidates()(
            images in prop::collection::vec(
                (prop::collection::vec(0u8..12, 0..5), any::<bool>(), prop::option::of(0..NOW * 2), 0..NOW * 2, 0u64..5000),
                0..20,
            )
        ) -> Vec<Candidate> {
            let make = |(n, (layers, exempt, used, added, for_)): (usize, Drawn)| {
                known(for_, Candidate { exempt, ..image(n as u8, &layers, used, added) })
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
                prop_assert!(image.known_for >= POLICY.minimum_age);
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
        fn nothing_goes_for_an_age_it_was_not_seen_to_have(images in candidates(), now: i64) {
            for id in for_age(&images, &sizes(), &POLICY, now).images {
                let image = images.iter().find(|image| image.id == id).unwrap();
                prop_assert!(!image.exempt && image.known_for > POLICY.maximum_age);
            }
        }

        #[test]
        fn ages_survive_a_jump_of_the_clock(
            ago in prop::collection::vec(0i64..1 << 40, 0..8), then in 0i64..1 << 40, now in 0i64..1 << 40, passed in 0u64..1 << 30,
        ) {
            let by = jump(then, now, Duration::from_secs(passed));
            let mut times: Vec<i64> = ago.iter().map(|ago| then - ago).collect();
            follow(times.iter_mut(), by, now);
            for (time, ago) in times.iter().zip(&ago) {
                prop_assert!(*time <= now);
                let off = now - time - ago - passed as i64;
                prop_assert!(off.unsigned_abs() <= SLEW, "off by {off}");
            }
        }

        #[test]
        fn thresholds_never_overflow(capacity: u64, available: u64, high in 0u8..=100, low in 0u8..=100) {
            let policy = Policy { high_percent: high, low_percent: low, ..POLICY };
            prop_assert!(policy.needed(capacity, available) <= capacity);
        }
    }
}
