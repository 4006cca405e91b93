//! How long a pipeline will take on this machine, from a second of matrix products.

use std::time::Instant;

use lm::{Compute, Tensor};

use crate::stages::Budget;

/// Seconds per token of the two kinds of work.
pub(crate) struct Speed {
    sampled: f64,
    trained: f64,
}

/// Share of the measured product rate that decoding and training are taken to reach: set by hand so that the quickstart's
/// total is about right on two EPYC cores in bfloat16. Not a measurement.
const DECODING_SHARE: f64 = 0.55;
const TRAINING_SHARE: f64 = 0.45;

/// Forward passes through the adapted blocks that a trained token costs: forward, backward, and by experience the frozen blocks,
/// scoring and evaluation.
const PASSES: f64 = 3.5;

/// Measures products of the shapes that decoding (64 rows) and training (1024 rows) use.
pub(crate) fn measure(compute: &Compute, parameters: f64) -> Speed {
    let rate = |rows: i64| {
        let options = (compute.kind, compute.device);
        let (x, w) = (Tensor::ones([rows, 576], options), Tensor::ones([1536, 576], options));
        let flop = 2.0 * rows as f64 * 576.0 * 1536.0;
        let mut done = 0.0;
        _ = x.linear::<&Tensor>(&w, None);
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < 0.25 {
            _ = x.linear::<&Tensor>(&w, None).get(0).get(0).double_value(&[]); // reading waits for a GPU
            done += flop;
        }
        done / start.elapsed().as_secs_f64()
    };
    let per_token = 2.0 * parameters;
    Speed {
        sampled: per_token / (rate(64) * DECODING_SHARE),
        trained: PASSES * per_token / (rate(1024) * TRAINING_SHARE),
    }
}

impl Speed {
    /// Expected seconds of stages, of whose trained tokens each is counted by the share of the blocks that are adapted.
    pub(crate) fn seconds(&self, budget: Budget) -> f64 {
        budget.sampled as f64 * self.sampled + budget.weighted * self.trained
    }
}
