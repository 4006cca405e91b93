//! Where to compute: libtorch and its CUDA half, devices, threads, the allocator, and what this machine is fast at.
//!
//! [`Compute`] is what the rest of the workspace is handed: a device, the dtype of the frozen base, and a number of threads. The
//! program links only the CPU half of libtorch; [`Compute::new`] loads the CUDA half when a CUDA device is asked for, so one
//! binary runs on machines with and without one.
//!
//! ```no_run
//! # fn main() -> problem::Result<()> {
//! device::tune_allocator();
//! let compute = device::Compute::new("cpu", "auto", Some(2))?;
//! println!("{} on {}", compute.dtype(), device::instruction_set());
//! # Ok(()) }
//! ```

mod allocator;
mod checked;
mod compute;
mod library;
mod machine;
mod probe;

pub use allocator::tune_allocator;
pub use checked::{Checked, machine_failure};
pub use compute::Compute;
pub use library::{LIBTORCH_VERSION, cuda_devices, libtorch_folder};
pub use machine::{CpuKind, cpu_kind, instruction_set, plain_kernels};
pub use probe::{Rate, product_rate, product_rates};
pub use tch::{Device, Kind};
