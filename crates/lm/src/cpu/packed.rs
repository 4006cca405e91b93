//! Packed products: a frozen weight is laid out once for oneDNN, and a second time, transposed, when gradients first
//! flow through it. The C++ is in `packed.cpp`.
#![expect(unsafe_code, reason = "calls into packed.cpp")]

use std::cell::OnceCell;
use std::ffi::{CStr, c_char};

use tch::{Device, Kind, Tensor, no_grad};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn idiolect_pack(weight: *const C_tensor, rows: i64, message: *mut c_char, capacity: usize) -> *mut C_tensor;
    fn idiolect_packed_linear(
        x: *const C_tensor,
        forward: *const C_tensor,
        backward: *const C_tensor,
        bias: *const C_tensor,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
}

/// Runs a call of the shim. A refusal is a bug of ours (shapes are checked where weights are loaded), so it panics as
/// tch's plain operations do.
pub(crate) fn call(f: impl FnOnce(*mut c_char, usize) -> *mut C_tensor) -> Tensor {
    let mut message = [0; 1024];
    let pointer = f(message.as_mut_ptr(), message.len());
    // SAFETY: the buffer holds zeros, or the terminated text that the shim wrote before it returned null.
    let said = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy();
    assert!(!pointer.is_null(), "in the C++ shim: {said}");
    // SAFETY: the shim returns a heap-allocated tensor that this wrapper alone owns.
    unsafe { Tensor::from_ptr(pointer) }
}

/// Rows that the layout is chosen for. On AMX and AVX512-BF16 machines the layouts for 64 and 512 rows ran alike from 1
/// to 2048 rows.
const TYPICAL_ROWS: i64 = 64;

fn pack(weight: &Tensor) -> Tensor {
    // SAFETY: the pointer is valid for the call; the shim keeps no reference to the argument.
    call(|message, capacity| unsafe { idiolect_pack(weight.as_ptr(), TYPICAL_ROWS, message, capacity) })
}

/// Can this machine multiply packed weights of this type faster than plain ones?
pub(crate) fn available(device: Device, kind: Kind) -> bool {
    #[cfg(target_arch = "x86_64")]
    let wide = std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512dq");
    #[cfg(not(target_arch = "x86_64"))]
    let wide = false;
    device == Device::Cpu && wide && matches!(kind, Kind::Float | Kind::BFloat16) && !::device::plain_kernels()
}

/// The packed forms of one weight `[out, in]`, each made at its first use.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    forward: OnceCell<Tensor>,
    backward: OnceCell<Tensor>,
}

impl Packed {
    /// `x [N, in]` times the weight transposed, plus `bias`. `weight` gives `[out, in]` when a packed form is missing.
    pub(crate) fn product(&self, x: &Tensor, weight: impl Fn() -> Tensor, bias: Option<&Tensor>) -> Tensor {
        let forward = self.forward.get_or_init(|| pack(&weight()));
        let backward = x
            .requires_grad()
            .then(|| self.backward.get_or_init(|| no_grad(|| pack(&weight().tr().contiguous()))).as_ptr());
        let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
        // SAFETY: all pointers are valid for the call or null where the shim allows it; it shares ownership of what the
        // backward pass needs through libtorch's reference counts.
        call(|message, capacity| unsafe {
            let backward = backward.unwrap_or(std::ptr::null());
            idiolect_packed_linear(x.as_ptr(), forward.as_ptr(), backward, bias, message, capacity)
        })
    }
}

/// Median GFLOP/s of a product with a frozen weight as models run it on `device` in `kind`, measured for `span`: packed where
/// this machine has that, else `None`.
pub fn packed_product_rate(device: Device, kind: Kind, span: std::time::Duration) -> Option<f64> {
    let weight = Packed::default();
    available(device, kind)
        .then(|| ::device::product_rate(device, kind, span, |x, w| weight.product(x, || w.shallow_clone(), None)))
}
