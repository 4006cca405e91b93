//! personalised reward models: fit, score, evaluate
