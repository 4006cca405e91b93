//! Numbers of a `config.json` that no model has. They are refused by name here, so that nothing divides by zero, overflows or
//! allocates without end later.

use problem::{Problem, Result, invalid};

use crate::parts::Heads;
use crate::shape::Shape;

const HINT: &str = "fetch the model's config.json again";

fn wrong(place: &str, what: &str, expected: impl Into<String>, found: impl std::fmt::Display) -> Problem {
    invalid(format!("{place}, {what}"), expected, found.to_string(), HINT)
}

/// Bounds far beyond any model: products of two stay within 64 bits.
const MOST_TOKENS: i64 = 1 << 31;
const MOST_NUMBERS: i64 = 1 << 24;
const MOST_BLOCKS: usize = 1 << 14;

fn within(place: &str, what: &str, found: i64, most: i64) -> Result<()> {
    if (1..=most).contains(&found) {
        return Ok(());
    }
    Err(wrong(place, what, format!("a number from 1 to {most}"), found))
}

/// Refuses sizes that are zero, negative or beyond any model.
pub(super) fn sizes(shape: &Shape, place: &str) -> Result<()> {
    let Shape { vocab_size, hidden_size, blocks, heads, max_positions } = *shape;
    within(place, "size of the vocabulary", vocab_size, MOST_TOKENS)?;
    within(place, "hidden size", hidden_size, MOST_NUMBERS)?;
    within(place, "number of blocks", i64::try_from(blocks).unwrap_or(i64::MAX), MOST_BLOCKS as i64)?;
    within(place, "number of heads", heads.queries, MOST_NUMBERS)?;
    within(place, "number of key/value heads", heads.key_values, MOST_NUMBERS)?;
    within(place, "size of a head", heads.size, MOST_NUMBERS)?;
    if let Some(positions) = max_positions {
        within(place, "number of positions", positions, i64::MAX)?;
    }
    if heads.queries % heads.key_values != 0 {
        return Err(wrong(
            place,
            "numbers of heads",
            "a positive multiple of the key/value heads",
            format!("{} heads of size {}, {} key/value heads", heads.queries, heads.size, heads.key_values),
        ));
    }
    Ok(())
}

/// Refuses heads that do not share the hidden numbers among them.
pub(super) fn whole_heads(heads: Heads, hidden_size: i64, place: &str) -> Result<()> {
    if heads.queries * heads.size == hidden_size {
        return Ok(());
    }
    let found = format!("{} heads for {hidden_size} numbers", heads.queries);
    Err(wrong(place, "numbers of heads", "a divisor of the hidden size", found))
}

/// Refuses to rotate numbers that a head does not have.
pub(super) fn rotated(numbers: i64, heads: Heads, place: &str) -> Result<i64> {
    if (2..=heads.size).contains(&numbers) {
        return Ok(numbers);
    }
    Err(wrong(place, "numbers of a head that are rotated", format!("from 2 to {}", heads.size), numbers))
}

/// Refuses an epsilon of a norm that is negative or no number.
pub(super) fn epsilon(value: f64, place: &str) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(wrong(place, "epsilon of the norms", "a number of at least 0", value))
}

/// Refuses a window without tokens.
pub(super) fn window(tokens: i64, place: &str) -> Result<i64> {
    within(place, "`sliding_window`", tokens, i64::MAX).map(|()| tokens)
}
