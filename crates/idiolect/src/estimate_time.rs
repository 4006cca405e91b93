//! How long a pipeline will take on this machine, from a second of matrix products.

use std::time::Instant;

use lm::{Compute, Tensor};

use crate::stages::Budget;

/// Seconds per token of the two kinds of work.
pub(crate) struct Speed {
    sampled: f64,
    trained: f64,
}

/// Forward passes at the measured rate that a counted token costs: in decoding, one at what small products and the cache leave of
/// it; in training, forward and backward, less what rows share and what stops below the last block. Set by hand, on two idle
/// EPYC cores in bfloat16, where the quickstart is then said to take 9 minutes (it takes 9 to 10), `ppo.toml` 26 (23) and a seed of
/// `llmfao-full.toml` 113 (about 105, by its cells' times). Not measurements.
const DECODING_PASSES: f64 = 1.8;
const TRAINING_PASSES: f64 = 2.4;

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
    let pass = 2.0 * parameters;
    Speed { sampled: DECODING_PASSES * pass / rate(64), trained: TRAINING_PASSES * pass / rate(1024) }
}

impl Speed {
    /// Expected seconds of stages, of whose trained tokens each is counted by the share of the blocks that are adapted.
    pub(crate) fn seconds(&self, budget: Budget) -> f64 {
        budget.sampled as f64 * self.sampled + budget.weighted * self.trained
    }
}
