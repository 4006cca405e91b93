//! Counts of settings, which are at least one.

use std::num::NonZero;

/// A number of something, as defaults of settings give it; 0 becomes 1.
pub fn count(n: usize) -> NonZero<usize> {
    NonZero::new(n).unwrap_or(NonZero::<usize>::MIN)
}
