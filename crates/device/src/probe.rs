//! How fast a device multiplies matrices.

use std::time::{Duration, Instant};

use tch::{Cuda, Device, Kind, Tensor, no_grad};

/// Rows, inner and outer size of the measured product: a micro-batch of 1,024 tokens through an MLP of SmolLM2-135M.
const SHAPE: (i64, i64, i64) = (1024, 576, 1536);

/// A matrix product's rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// Of the two factors.
    pub kind: Kind,
    /// `float32` or `bfloat16`
    pub dtype: &'static str,
    /// libtorch's plain product, GFLOP/s.
    pub plain: f64,
}

/// Median GFLOP/s of `product`, which gets `x` `[1024, 576]` and `w` `[1536, 576]` and gives `[1024, 1536]`, over at least
/// three calls and `span`.
pub fn product_rate(device: Device, kind: Kind, span: Duration, product: impl Fn(&Tensor, &Tensor) -> Tensor) -> f64 {
    let (m, k, n) = SHAPE;
    no_grad(|| {
        let x = Tensor::randn([m, k], (Kind::Float, device)).to_kind(kind);
        let w = Tensor::randn([n, k], (Kind::Float, device)).to_kind(kind);
        let start = Instant::now();
        let mut spans = Vec::new();
        while spans.len() < 3 || start.elapsed() < span {
            let begin = Instant::now();
            let y = product(&x, &w);
            if let Device::Cuda(index) = device {
                Cuda::synchronize(index as i64);
            }
            drop(y);
            spans.push(begin.elapsed().as_secs_f64());
        }
        spans.sort_by(f64::total_cmp);
        2.0 * (m * k * n) as f64 / 1e9 / spans[spans.len() / 2]
    })
}

/// Rates of libtorch's plain product on a device in both dtypes, each measured for `span`.
pub fn product_rates(device: Device, span: Duration) -> [Rate; 2] {
    [("float32", Kind::Float), ("bfloat16", Kind::BFloat16)].map(|(dtype, kind)| {
        let plain = product_rate(device, kind, span, |x, w| x.linear::<&Tensor>(w, None));
        Rate { kind, dtype, plain }
    })
}
