//! What runs at this moment, for lines about what is silent.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest that a phase is silent.
pub(crate) const LINE_EVERY: Duration = Duration::from_secs(10);

/// What a mutex guards, whatever happened to a thread that held it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What runs, in the order in which it began: a number of its own, its name, and since when.
static RUNNING: Mutex<Vec<(u64, String, Instant)>> = Mutex::new(Vec::new());

/// While this lives, a line names what runs whenever nothing was said for ten seconds.
#[derive(Debug)]
pub(crate) struct Watch(u64);

impl Watch {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        lock(&RUNNING).push((id, name.to_owned(), Instant::now()));
        Self(id)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&RUNNING).retain(|(id, ..)| *id != self.0);
    }
}

/// What began last of all that runs, and when.
pub(crate) fn newest() -> Option<(String, Instant)> {
    lock(&RUNNING).last().map(|(_, name, since)| (name.clone(), *since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_last_is_named_until_it_ends() {
        let running = || lock(&RUNNING).iter().map(|(_, name, _)| name.clone()).collect::<Vec<_>>();
        let outer = Watch::new("outer");
        let inner = Watch::new("inner");
        assert_eq!(running(), ["outer", "inner"]);
        drop(outer); // in any order
        assert_eq!(running(), ["inner"]);
        drop(inner);
        assert!(running().is_empty());
    }
}
