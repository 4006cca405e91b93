//! libtorch's CPU allocator.
#![expect(unsafe_code, reason = "setting the allocator is a call into C++")]

/// Makes libtorch keep freed CPU blocks instead of giving them back and faulting them in again at the next step: large
/// temporaries come and go in training. To be called once, before the first tensor.
pub fn tune_allocator() {
    unsafe extern "C" {
        fn idiolect_keep_memory();
    }
    // SAFETY: replaces libtorch's CPU allocator; tensors that exist already keep their own deleter.
    unsafe { idiolect_keep_memory() }
}
