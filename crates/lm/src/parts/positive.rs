//! A number of a configuration that divides or scales.

use problem::{Result, invalid};

/// Refuses a number that is zero, negative or infinite.
pub(crate) fn positive(value: f64, place: &str, field: &str) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    let place = format!("{place}, `{field}`");
    Err(invalid(place, "a positive number", value.to_string(), "fetch the model's config.json again"))
}
