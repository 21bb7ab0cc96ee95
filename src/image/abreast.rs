//! Jobs of one kind, some at a time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Does `jobs` on at most `most` threads, this one included; `name` is that of the others. After the first failure no job
/// is begun any more, and `stop` is to end those under way.
///
/// # Errors
/// The first failure; what the others fail of then is a consequence.
pub(super) fn abreast<T: Send, E: Send>(
    name: &str,
    most: usize,
    jobs: VecDeque<T>,
    work: impl Fn(T) -> Result<(), E> + Sync,
    stop: impl Fn() + Sync,
) -> Result<(), E> {
    let threads = jobs.len().min(most);
    let left = Mutex::new(jobs);
    let first = Mutex::new(None);
    let one = || {
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(job) = next else { return };
            if let Err(error) = work(job) {
                // Before the others are stopped, and fail of that.
                first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                left.lock().unwrap_or_else(PoisonError::into_inner).clear();
                stop();
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without more threads it only takes longer.
            let _ = thread::Builder::new().name(name.into()).spawn_scoped(scope, one);
        }
        one();
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[test]
    fn all_is_done_and_no_more_at_a_time_than_asked() {
        let (done, now) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let together = Barrier::new(3);
        let work = |_| {
            assert!(now.fetch_add(1, Ordering::Relaxed) < 3);
            together.wait();
            now.fetch_sub(1, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
            together.wait();
            Ok::<(), ()>(())
        };
        assert_eq!(abreast("job", 3, (0..12).collect(), work, || unreachable!()), Ok(()));
        assert_eq!(done.into_inner(), 12);
        assert_eq!(abreast("job", 3, VecDeque::<u8>::new(), |_| Err(()), || ()), Ok(()));
    }

    #[test]
    fn the_first_failure_ends_it_and_is_told() {
        let stopped = AtomicBool::new(false);
        let begun = AtomicUsize::new(0);
        let work = |job: u8| {
            begun.fetch_add(1, Ordering::Relaxed);
            if job == 0 {
                return Err("the disk is full");
            }
            while !stopped.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            Err("stopped")
        };
        let result = abreast("job", 2, (0..9).collect(), work, || stopped.store(true, Ordering::Relaxed));
        assert_eq!(result, Err("the disk is full"));
        assert!(begun.into_inner() <= 2);
    }
}
