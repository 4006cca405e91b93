//! statistics on frozen features: bootstrap; rater and style-feature code
