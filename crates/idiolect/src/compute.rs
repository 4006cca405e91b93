//! Where and how to compute, as typed.

use clap::Args;
use problem::{Result, mistake};

/// Where and how to compute.
#[derive(Args, Clone)]
pub(crate) struct ComputeArgs {
    /// `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Type of the frozen base: `auto`, `float32` or `bfloat16`; adapters are float32 everywhere
    #[arg(long, default_value = "auto")]
    dtype: String,
    /// libtorch's threads [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

impl ComputeArgs {
    pub(crate) fn resolve(&self) -> Result<device::Compute> {
        if self.threads == Some(0) {
            return Err(mistake("--threads: expected at least 1, found 0", "leave the flag out for all cores"));
        }
        device::Compute::new(&self.device, &self.dtype, self.threads)
    }
}
