//! How long a pipeline will take on this machine, from a second of matrix products.

use std::time::{Duration, Instant};

use device::Compute;
use lm::Tensor;

use crate::stages::Budget;

const SPAN: Duration = Duration::from_millis(200);

/// How fast this machine is, and what that means for the two kinds of work.
pub(crate) struct Speed {
    /// Seconds per token.
    sampled: f64,
    trained: f64,
    /// GFLOP/s of products with frozen weights, as models run them.
    products: f64,
}

/// Forward passes at the measured rate that a counted token costs: in decoding, one at what small products and the cache leave of
/// it; in training, forward and backward, less what rows share and what stops below the last block. Set by hand, on two idle
/// EPYC cores in bfloat16, where the quickstart is then said to take 9 minutes (it takes 9 to 10), `ppo.toml` 26 (23) and a seed of
/// `llmfao-full.toml` 113 (about 105, by its cells' times). Not measurements.
const DECODING_PASSES: f64 = 1.8;
const TRAINING_PASSES: f64 = 2.4;

/// GFLOP/s of the machine whose minutes docs/benchmarks/quickstart.md gives, by the same measurement: two cores of an AMD EPYC
/// with AVX512-BF16, bfloat16, packed weights, 2026-11-28.
const DOCUMENTED: f64 = 415.0;

impl Speed {
    /// Measures products of the shapes that decoding (64 rows) and training (1024 rows) use, for a base of so many `parameters`.
    pub(crate) fn measure(compute: &Compute, parameters: f64) -> Self {
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
        let (small, large) = (rate(64), rate(1024));
        let packed = lm::packed_product_rate(compute.device, compute.kind, SPAN);
        let products = packed.unwrap_or(large / 1e9);
        Self { sampled: DECODING_PASSES * pass / small, trained: TRAINING_PASSES * pass / large, products }
    }

    /// Expected seconds of stages, of whose trained tokens each is counted by the share of the blocks that are adapted.
    pub(crate) fn seconds(&self, budget: Budget) -> f64 {
        budget.sampled as f64 * self.sampled + budget.weighted * self.trained
    }

    /// How this machine compares with the one whose minutes the documents give.
    pub(crate) fn compared_with_the_documents(&self) -> String {
        format!(
            "matrix products at {:.0} GFLOP/s, {:.2} times the machine of docs/benchmarks/quickstart.md",
            self.products,
            self.products / DOCUMENTED
        )
    }
}
