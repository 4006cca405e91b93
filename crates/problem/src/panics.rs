//! Panics of libraries that are expected on damaged input.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `read`, a library that panics on some damaged files; none if it did. The program's panic hook stays quiet meanwhile.
pub fn unless_it_panics<T>(read: impl FnOnce() -> T) -> Option<T> {
    let before = EXPECTED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    EXPECTED.set(before);
    result.ok()
}

/// Is the panic of this thread one that [`unless_it_panics`] turns into an error?
pub fn is_expected_panic() -> bool {
    EXPECTED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_expected_only_inside() {
        assert!(!is_expected_panic());
        assert_eq!(unless_it_panics(|| u8::from(is_expected_panic())), Some(1));
        assert_eq!(unless_it_panics(|| -> u8 { panic!("damaged") }), None);
        assert!(!is_expected_panic());
    }
}
