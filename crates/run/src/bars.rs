//! The progress bars on the screen, which lines are printed above.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use indicatif::{MultiProgress, ProgressBar};

/// All bars of this process: lines are printed above them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
static SHOWN: AtomicUsize = AtomicUsize::new(0);

/// Prints without tearing the bars that are shown.
pub(crate) fn above_bars<T>(print: impl FnOnce() -> T) -> T {
    if has_bar() { BARS.suspend(print) } else { print() }
}

/// Is a bar on the screen?
pub(crate) fn has_bar() -> bool {
    SHOWN.load(Ordering::Relaxed) > 0
}

/// Shows a bar below the others.
pub(crate) fn add(bar: ProgressBar) -> ProgressBar {
    SHOWN.fetch_add(1, Ordering::Relaxed);
    BARS.add(bar)
}

/// Takes a bar off the screen.
pub(crate) fn remove(bar: &ProgressBar) {
    bar.finish_and_clear();
    SHOWN.fetch_sub(1, Ordering::Relaxed);
}
