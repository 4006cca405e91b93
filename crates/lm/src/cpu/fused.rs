//! The fused steps of `fused.cpp`, the attention of `attention.cpp` and of `decode.cpp`, for CPU tensors in float32 or bfloat16.
#![expect(unsafe_code, reason = "calls into C++")]

use std::ffi::c_char;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::packed::call;

unsafe extern "C" {
    fn idiolect_rms_norm(
        x: *const C_tensor,
        weight: *const C_tensor,
        epsilon: f64,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn idiolect_rotate(
        x: *const C_tensor,
        cosine: *const C_tensor,
        sine: *const C_tensor,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn idiolect_attends(narrow: bool) -> bool;
    fn idiolect_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        lengths: *const C_tensor,
        places: *const C_tensor,
        window: i64,
        scale: f64,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn idiolect_cache_write(
        store: *const C_tensor,
        slots: *const C_tensor,
        x: *const C_tensor,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn idiolect_decode(
        q: *const C_tensor,
        keys: *const C_tensor,
        values: *const C_tensor,
        newest: *const C_tensor,
        scale: f64,
        window: i64,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn idiolect_log_softmax(
        x: *const C_tensor,
        targets: *const C_tensor,
        wanted: bool,
        hit: f32,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn idiolect_draw(
        logits: *const C_tensor,
        uniforms: *const C_tensor,
        beta: f64,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn idiolect_gate(x: *const C_tensor, message: *mut c_char, capacity: usize) -> *mut C_tensor;
}

/// Can the fused steps run on this tensor?
pub(crate) fn fits(x: &Tensor) -> bool {
    x.device() == Device::Cpu
        && matches!(x.kind(), Kind::Float | Kind::BFloat16)
        && x.numel() > 0
        && !device::plain_kernels()
}

/// RMS norm of `x [.., E]` with a float32 `weight [E]`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Tensor {
    // SAFETY: valid pointers for the call; the shim holds references of its own to what its backward pass needs.
    call(|message, capacity| unsafe { idiolect_rms_norm(x.as_ptr(), weight.as_ptr(), epsilon, message, capacity) })
}

/// Rotates the halves of `x [N, H, D]` by cosines and sines `[N, 1, D]` of its type.
pub(crate) fn rotate(x: &Tensor, cosine: &Tensor, sine: &Tensor) -> Tensor {
    // SAFETY: as above.
    call(|message, capacity| unsafe { idiolect_rotate(x.as_ptr(), cosine.as_ptr(), sine.as_ptr(), message, capacity) })
}

/// `silu(gate) * up` of `x [N, 2M]` that holds both side by side.
pub(crate) fn gate(x: &Tensor) -> Tensor {
    // SAFETY: as above.
    call(|message, capacity| unsafe { idiolect_gate(x.as_ptr(), message, capacity) })
}

/// What becomes of logits whose log-probabilities are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logits {
    /// They stay.
    Stay,
    /// Probabilities, in place.
    Probabilities,
    /// Probabilities less 1 at the target, in place: the subtraction is in float32, before anything is rounded.
    LessTarget,
}

/// Log-probability of each target `[N]` under logits `[N, V]`: `[N]`, float32.
pub(crate) fn log_softmax_into(logits: &mut Tensor, targets: &Tensor, become_: Logits) -> Tensor {
    let (probabilities, hit) = (become_ != Logits::Stay, f32::from(u8::from(become_ == Logits::LessTarget)));
    let targets = targets.contiguous();
    // SAFETY: as above; the logits are ours alone, contiguous (checked), and hold a number for every target (an id below V).
    call(|message, capacity| unsafe {
        idiolect_log_softmax(logits.as_ptr(), targets.as_ptr(), probabilities, hit, message, capacity)
    })
}

/// The same by libtorch's own operations.
pub(crate) fn plain_log_softmax_into(logits: &mut Tensor, targets: &Tensor, become_: Logits) -> Tensor {
    let (kind, at) = (logits.kind(), targets.unsqueeze(1));
    let mut logp = logits.to_kind(Kind::Float).log_softmax(1, Kind::Float);
    let own = logp.gather(1, &at, false);
    let probabilities = match become_ {
        Logits::Stay => return own.squeeze_dim(1),
        Logits::Probabilities => logp.exp_(),
        Logits::LessTarget => logp.exp_().scatter_add_(1, &at, &Tensor::full_like(&own, -1.0)),
    };
    *logits = probabilities.to_kind(kind);
    own.squeeze_dim(1)
}

/// A token for each row of logits `[N, V]`, by inverse CDF at `uniforms` `[N]` (float32, from 0 to below 1): `[N]`, int64.
pub(crate) fn draw(logits: &Tensor, uniforms: &Tensor, temperature: f64) -> Tensor {
    // SAFETY: as above.
    call(|message, capacity| unsafe {
        idiolect_draw(logits.as_ptr(), uniforms.as_ptr(), 1.0 / temperature, message, capacity)
    })
}

/// Can [`attention`] take queries of this form, on this machine?
pub(crate) fn attends(q: &Tensor) -> bool {
    // SAFETY: asks the processor only.
    fits(q) && q.size()[2] % 2 == 0 && unsafe { idiolect_attends(q.kind() == Kind::BFloat16) }
}

/// Attention of queries `[N, H, D]` over keys and values `[N, KVH, D]`, in sequences of `lengths` `[B]` (int64) end to end, without
/// padding: `[N, H, D]`. A query sees its past. `seen` narrows that: branch and position of each token `[2, N]` (int32), by which it
/// sees the trunk (branch 0) and its own branch, and of that the last so many positions, unless it is 0.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &Tensor,
    seen: Option<(&Tensor, i64)>,
    scale: f64,
) -> Tensor {
    let (places, window) = seen.map_or((std::ptr::null(), 0), |(places, window)| (places.as_ptr(), window));
    // SAFETY: as above; shapes are checked there, and the places may be null.
    call(|message, capacity| unsafe {
        let [q, k, v] = [q, k, v].map(Tensor::as_ptr);
        idiolect_attention(q, k, v, lengths.as_ptr(), places, window, scale, message, capacity)
    })
}

/// Writes `x [N, KVH, D]` to rows `slots [N]` of `store [M, KVH, D]`, of the same type.
pub(crate) fn cache_write(store: &Tensor, slots: &Tensor, x: &Tensor) {
    // SAFETY: as above; the store is the cache's own and contiguous (checked), and every slot is inside it (checked).
    _ = call(|message, capacity| unsafe {
        idiolect_cache_write(store.as_ptr(), slots.as_ptr(), x.as_ptr(), message, capacity)
    });
}

/// Can [`decode`] take queries of this form?
pub(crate) fn decodes(q: &Tensor) -> bool {
    fits(q) && q.size()[2] % 16 == 0
}

/// Attention of queries `[B, H, D]` over keys and values `[B, C, KVH, D]`: row b sees its slots up to `newest[b]`, of
/// these the last `window`. `[B, H * D]`.
pub(crate) fn decode(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    newest: &Tensor,
    scale: f64,
    window: Option<i64>,
) -> Tensor {
    let window = window.unwrap_or(0);
    // SAFETY: as above; shapes and slots are checked there.
    call(|message, capacity| unsafe {
        let (k, v) = (keys.as_ptr(), values.as_ptr());
        idiolect_decode(q.as_ptr(), k, v, newest.as_ptr(), scale, window, message, capacity)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from -1 to 1 in a fixed order.
    fn numbers(shape: &[i64], kind: Kind) -> Tensor {
        tch::set_num_threads(1);
        let count: i64 = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * i * 31 + i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        Tensor::from_slice(&values).view(shape).to_kind(kind).set_requires_grad(true)
    }

    /// Value and input gradients of `ours` equal those of `reference`, computed in float32, to the type's precision.
    fn same(inputs: &[Tensor], ours: impl Fn(&[Tensor]) -> Tensor, reference: impl Fn(&[Tensor]) -> Tensor) {
        let wide: Vec<Tensor> =
            inputs.iter().map(|x| x.detach().to_kind(Kind::Float).set_requires_grad(true)).collect();
        let (y, want) = (ours(inputs), reference(&wide));
        let bound = if y.kind() == Kind::Float { 2e-6 } else { 2e-2 };
        let close = |a: &Tensor, b: &Tensor, what: &str| {
            let distance = (a.to_kind(Kind::Float) - b).norm().double_value(&[]);
            let size = b.norm().double_value(&[]);
            assert!(size > 0.1, "{what}: {distance} of {size}");
            assert!(distance <= bound * size, "{what}: {distance} of {size}");
        };
        close(&y, &want, "value");
        let g = numbers(&y.size(), Kind::Float).detach();
        let gradients = |y: &Tensor, inputs: &[Tensor]| {
            Tensor::run_backward(&[(y * &g).sum(Kind::Float)], &inputs.iter().collect::<Vec<_>>(), false, false)
        };
        for (a, b) in gradients(&y, inputs).iter().zip(gradients(&want, &wide)) {
            close(a, &b, "gradient");
        }
    }

    #[test]
    fn rms_norm_equals_its_formula() {
        let weight = numbers(&[37], Kind::Float).detach() + 1.5;
        for kind in [Kind::Float, Kind::BFloat16] {
            same(
                &[numbers(&[5, 37], kind)],
                |x| rms_norm(&x[0], &weight, 1e-5),
                |x| {
                    let mean = x[0].square().mean_dim(-1, true, Kind::Float);
                    &x[0] / (mean + 1e-5).sqrt() * &weight
                },
            );
        }
    }

    #[test]
    fn rotation_equals_its_formula_also_on_a_slice() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let angle = numbers(&[5, 1, 4], Kind::Float).detach() * 3.0;
            let angle = Tensor::cat(&[&angle, &angle], 2);
            let (c, s) = (angle.cos().to_kind(kind), angle.sin().to_kind(kind));
            let slice = |x: &Tensor| x.narrow(1, 4, 24).view([5, 3, 8]); // of a wider row, as one product gives it
            same(
                &[numbers(&[5, 40], kind)],
                |x| rotate(&slice(&x[0]), &c, &s),
                |x| {
                    let x = slice(&x[0]);
                    let turned = Tensor::cat(&[-x.narrow(2, 4, 4), x.narrow(2, 0, 4)], 2);
                    x * c.to_kind(Kind::Float) + turned * s.to_kind(Kind::Float)
                },
            );
        }
    }

    #[test]
    fn the_gate_equals_its_formula() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let x = (numbers(&[7, 38], kind).detach() * 6.0).set_requires_grad(true);
            same(&[x], |x| gate(&x[0]), |x| x[0].narrow(1, 0, 19).silu() * x[0].narrow(1, 19, 19));
        }
        let far = Tensor::from_slice(&[-200.0f32, 200.0, 1.0, 1.0]).view([1, 4]);
        let [low, high] = Vec::<f32>::try_from(gate(&far).view(-1)).unwrap()[..] else { panic!("two numbers") };
        assert!(low.abs() < 1e-30, "{low} {high}");
        assert!(high == 200.0, "{low} {high}");
    }

    #[test]
    fn log_softmax_equals_its_formula_and_leaves_probabilities() {
        let logits = numbers(&[6, 77], Kind::Float).detach() * 9.0;
        let targets = Tensor::from_slice(&[0i64, 76, 5, 5, 40, 8]);
        for kind in [Kind::Float, Kind::BFloat16] {
            let mut ours = logits.to_kind(kind).copy();
            let wide = ours.to_kind(Kind::Float).copy();
            let want = wide.log_softmax(1, Kind::Float).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
            let untouched = ours.copy();
            let logp = log_softmax_into(&mut ours, &targets, Logits::Stay);
            assert!((&logp - &want).abs().max().double_value(&[]) < 1e-5);
            assert!(ours.equal(&untouched));
            assert!(log_softmax_into(&mut ours, &targets, Logits::Probabilities).equal(&logp));
            let mut less = untouched.copy();
            assert!(log_softmax_into(&mut less, &targets, Logits::LessTarget).equal(&logp));
            let distance = (ours.to_kind(Kind::Float) - wide.softmax(1, Kind::Float)).abs().max().double_value(&[]);
            assert!(distance < if kind == Kind::Float { 1e-6 } else { 4e-3 }, "{distance}");
            let mut plain = untouched.copy();
            let by_libtorch = plain_log_softmax_into(&mut plain, &targets, Logits::LessTarget);
            assert!((by_libtorch - &logp).abs().max().double_value(&[]) < 1e-5);
            assert!((&plain - &less).abs().max().double_value(&[]) < if kind == Kind::Float { 1e-6 } else { 4e-3 });
            let at = targets.unsqueeze(1);
            let left = less.gather(1, &at, false).to_kind(Kind::Double);
            let want = wide.to_kind(Kind::Double).softmax(1, Kind::Double).gather(1, &at, false) - 1.0;
            // Relative to itself, however near to 1 the probability is.
            let distance = ((left - &want) / &want).abs().max().double_value(&[]);
            assert!(distance < if kind == Kind::Float { 1e-4 } else { 4e-3 }, "{distance}");
        }
    }

    #[test]
    fn attention_equals_its_formula_over_sequences_branches_and_windows() {
        // Three sequences: two of more than a block of keys, one of whose branches starts in the second block.
        let lengths = [5usize, 133, 171];
        let n: usize = lengths.iter().sum();
        let mut places: [Vec<i64>; 3] = Default::default(); // sequence, branch, position
        for (b, length) in lengths.iter().enumerate() {
            for t in 0..*length {
                let branch = if b == 2 && t >= 40 { t / 66 + 1 } else { 0 }; // from 40, 66, 132 on
                let begin = [0, 40, 66, 132][branch];
                let position = if branch == 0 { t } else { 40 + t - begin };
                [b, branch, position].iter().zip(&mut places).for_each(|(value, of)| of.push(*value as i64));
            }
        }
        let of = |i: usize| Tensor::from_slice(&places[i]);
        let (sequence, branch, position) = (of(0), of(1), of(2));
        let pairs = |f: &dyn Fn(&Tensor, &Tensor) -> Tensor, x: &Tensor| f(&x.unsqueeze(1), &x.unsqueeze(0));
        let order = Tensor::arange(n as i64, (Kind::Int64, Device::Cpu));
        let past = pairs(&|a, b| b.le_tensor(a), &order).logical_and(&pairs(&|a, b| a.eq_tensor(b), &sequence));
        let own = branch.unsqueeze(0).eq(0).logical_or(&pairs(&|a, b| a.eq_tensor(b), &branch));
        let known = Tensor::stack(&[&branch, &position], 0).to_kind(Kind::Int);
        let wide = |x: &Tensor| x.repeat_interleave_self_int(3, Some(1), None).transpose(0, 1); // [H, N, D]
        for kind in [Kind::Float, Kind::BFloat16] {
            for (window, all) in [(None, true), (Some(0), false), (Some(9), false)] {
                let mut seen = past.shallow_clone();
                if !all {
                    seen = seen.logical_and(&own);
                }
                if let Some(window @ 1..) = window {
                    seen = seen.logical_and(&pairs(&|a, b| (a - b).lt(window), &position));
                }
                let mask = Tensor::zeros([n as i64, n as i64], (Kind::Float, Device::Cpu))
                    .masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
                let n = n as i64;
                let inputs = [numbers(&[n, 6, 8], kind), numbers(&[n, 2, 8], kind), numbers(&[n, 24], kind)];
                if !attends(&inputs[0]) {
                    eprintln!("SKIPPED: this machine has no products of {kind:?} tiles");
                    return;
                }
                // Values as a slice of a wider tensor, as one product gives them.
                let values = |x: &Tensor| x.narrow(1, 4, 16).view([n, 2, 8]);
                same(
                    &inputs,
                    |x| {
                        let seen = window.map(|window| (&known, window));
                        attention(
                            &x[0],
                            &x[1],
                            &values(&x[2]),
                            &Tensor::from_slice(&lengths.map(|l| l as i64)),
                            seen,
                            0.9,
                        )
                    },
                    |x| {
                        let scores = x[0].transpose(0, 1).matmul(&wide(&x[1]).transpose(1, 2)) * 0.9 + &mask;
                        scores.softmax(-1, Kind::Float).matmul(&wide(&values(&x[2]))).transpose(0, 1)
                    },
                );
            }
        }
    }

    #[test]
    fn decoding_equals_its_formula_at_each_rows_own_length() {
        let (b, slots) = (3, 80);
        for (kind, bound) in [(Kind::Float, 2e-6), (Kind::BFloat16, 4e-3)] {
            // Seven queries a key head: four and three at a time.
            let q = numbers(&[b, 14, 32], kind).detach();
            let (k, v) = (numbers(&[b, slots, 2, 32], kind).detach(), numbers(&[b, slots, 2, 32], kind).detach());
            let v = v.flip([1]);
            let newest = [0, 40, 79];
            for window in [None, Some(5)] {
                let y = decode(&q, &k, &v, &Tensor::from_slice(&newest), 0.7, window).to_kind(Kind::Float);
                for (row, newest) in (0..b).zip(newest) {
                    let from = window.map_or(0, |w| (newest + 1 - w).max(0));
                    let own = |x: &Tensor| {
                        let x = x.get(row).narrow(0, from, newest + 1 - from).to_kind(Kind::Float);
                        x.repeat_interleave_self_int(7, Some(1), None).transpose(0, 1) // [H, S, D]
                    };
                    let q = q.get(row).to_kind(Kind::Float).unsqueeze(1);
                    let weights = (q.matmul(&own(&k).transpose(1, 2)) * 0.7).softmax(-1, Kind::Float);
                    let want = weights.matmul(&own(&v)).view(-1);
                    let distance = (y.get(row) - &want).norm().double_value(&[]);
                    assert!(distance <= bound * want.norm().double_value(&[]), "row {row}, {window:?}: {distance}");
                }
            }
        }
    }

    #[test]
    fn a_cache_takes_rows_of_a_wider_tensor() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let store = Tensor::zeros([9, 2, 4], (kind, Device::Cpu));
            let x = numbers(&[3, 20], kind).detach();
            let part = x.narrow(1, 8, 8).view([3, 2, 4]);
            cache_write(&store, &Tensor::from_slice(&[7i64, 0, 3]), &part);
            for (row, slot) in [7, 0, 3].into_iter().enumerate() {
                assert!(store.get(slot).equal(&part.get(row as i64)));
            }
            assert_eq!(store.get(1).abs().sum(Kind::Float).double_value(&[]), 0.0);
        }
    }
}
