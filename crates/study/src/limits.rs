//! Numbers of a configuration that mean something, refused by their key where they do not.

use std::fmt::Display;

use problem::{Problem, Result, invalid};

fn wrong(stage: &str, key: &str, expected: &str, found: impl Display) -> Problem {
    invalid(
        format!("{stage}, `{key}`"),
        expected,
        found.to_string(),
        format!("`idiolect config {stage}` shows all settings and their defaults"),
    )
}

/// Refuses 0, negative numbers, and what is not finite.
pub(crate) fn positive(stage: &str, key: &str, number: f64) -> Result<()> {
    if number > 0.0 && number.is_finite() { Ok(()) } else { Err(wrong(stage, key, "a positive number", number)) }
}

/// Refuses negative numbers, and what is not finite.
pub(crate) fn not_negative(stage: &str, key: &str, number: f64) -> Result<()> {
    if number >= 0.0 && number.is_finite() { Ok(()) } else { Err(wrong(stage, key, "a number from 0", number)) }
}

/// Refuses what is no share.
pub(crate) fn share(stage: &str, key: &str, number: f64) -> Result<()> {
    if (0.0..=1.0).contains(&number) { Ok(()) } else { Err(wrong(stage, key, "a share from 0 to 1", number)) }
}

/// Refuses fewer than `least`.
pub(crate) fn at_least(stage: &str, key: &str, least: usize, number: usize) -> Result<()> {
    if number >= least { Ok(()) } else { Err(wrong(stage, key, &format!("at least {least}"), number)) }
}

/// Refuses an amount of tokens that cannot be counted.
pub(crate) fn countable(stage: &str, key: &str, factors: &[usize]) -> Result<()> {
    let product = factors.iter().try_fold(1usize, |product, factor| product.checked_mul(*factor));
    let fits = product.is_some_and(|product| i64::try_from(product).is_ok());
    let shown = || factors.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
    if fits { Ok(()) } else { Err(wrong(stage, key, "a number of tokens below 2^63", shown())) }
}
