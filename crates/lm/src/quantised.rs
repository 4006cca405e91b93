//! What is said of quantised checkpoints, wherever one is found out.

/// Why a quantised checkpoint is not read, and what to do.
pub(crate) const QUANTISED_HINT: &str = "quantised checkpoints are not read: take the original in float32, float16 or bfloat16, which the model's page names";
