//! What this machine is, and what it is fast at.

use std::time::{Duration, Instant};

use tch::{Cuda, Device, Kind, Tensor, no_grad};

use crate::packed::{self, Packed};

/// A matrix product's rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// `float32` or `bfloat16`
    pub dtype: &'static str,
    /// libtorch's plain product, GFLOP/s.
    pub plain: f64,
    /// With a packed weight, as models run here, where that is used.
    pub packed: Option<f64>,
}

/// Rates of `[1024, 576] x [576, 1536]` on a device, each measured for `span`.
pub fn product_rates(device: Device, span: Duration) -> Vec<Rate> {
    let (m, k, n) = (1024, 576, 1536);
    let rate = |f: &dyn Fn() -> Tensor| {
        let start = Instant::now();
        let mut spans = Vec::new();
        while spans.len() < 3 || start.elapsed() < span {
            let begin = Instant::now();
            let y = f();
            if let Device::Cuda(index) = device {
                Cuda::synchronize(index as i64);
            }
            drop(y);
            spans.push(begin.elapsed().as_secs_f64());
        }
        spans.sort_by(f64::total_cmp);
        2.0 * (m * k * n) as f64 / 1e9 / spans[spans.len() / 2]
    };
    no_grad(|| {
        [("float32", Kind::Float), ("bfloat16", Kind::BFloat16)]
            .map(|(dtype, kind)| {
                let x = Tensor::randn([m, k], (Kind::Float, device)).to_kind(kind);
                let w = Tensor::randn([n, k], (Kind::Float, device)).to_kind(kind);
                let weight = Packed::default();
                let packed =
                    packed::available(device, kind).then(|| rate(&|| weight.product(&x, || w.shallow_clone(), None)));
                Rate { dtype, plain: rate(&|| x.linear::<&Tensor>(&w, None)), packed }
            })
            .to_vec()
    })
}

/// Loads CUDA's half of libtorch, if it is there, and counts devices.
pub fn cuda_devices() -> i64 {
    crate::compute::load_cuda();
    if Cuda::is_available() { Cuda::device_count() } else { 0 }
}

/// Folder and version of the libtorch in use.
pub fn libtorch() -> (Option<std::path::PathBuf>, &'static str) {
    (crate::compute::libtorch_folder(), crate::compute::LIBTORCH_VERSION)
}

/// Instruction sets that libtorch chooses kernels by, such as `x86_64+avx2+avx512f`.
pub fn machine() -> String {
    crate::compute::machine()
}
