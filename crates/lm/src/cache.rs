//! Keys and values of everything that generation has seen.

use std::cell::RefCell;
use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use crate::cpu::fused;

/// The KV cache of a batch: a token's slot is its position in its row, so a row's content does not depend on its
/// neighbours.
#[derive(Debug)]
pub(crate) struct Cache {
    keys: Vec<Tensor>,   // of each block [B, C, KVH, D]
    values: Vec<Tensor>, // the same
    capacity: i64,
    multiple: i64,
    kind: Kind,
    /// Where the tokens of the current pass go, `[N]`, counted over rows and slots.
    slots: Tensor,
    /// Position of each row's newest token, `[B]`.
    newest: Tensor,
    /// Slots that any row uses, rounded up.
    used: i64,
    biases: RefCell<HashMap<Option<i64>, Tensor>>,
}

impl Cache {
    /// Room for `rows` rows of up to `capacity` tokens; attention reads a multiple of `multiple` slots.
    pub(crate) fn new(
        blocks: usize,
        rows: i64,
        capacity: i64,
        multiple: i64,
        heads: (i64, i64),
        options: (Kind, Device),
    ) -> Self {
        let capacity = (capacity + multiple - 1) / multiple * multiple;
        let shape = [rows, capacity, heads.0, heads.1];
        // Zeros: what attention masks out must still be finite.
        let room = || (0..blocks).map(|_| Tensor::zeros(shape, options)).collect();
        let none = || Tensor::zeros([0], (Kind::Int64, options.1));
        Self {
            keys: room(),
            values: room(),
            capacity,
            multiple,
            kind: options.0,
            slots: none(),
            newest: none(),
            used: 0,
            biases: RefCell::default(),
        }
    }

    /// Before a pass: the row and position of each of its tokens, and every row's newest position.
    pub(crate) fn expect(&mut self, rows: &[i64], positions: &[i64], newest: &[i64]) {
        let slots: Vec<i64> = rows.iter().zip(positions).map(|(r, p)| r * self.capacity + p).collect();
        self.slots = Tensor::from_slice(&slots).to_device(self.slots.device());
        self.newest = Tensor::from_slice(newest).to_device(self.slots.device());
        let longest = newest.iter().max().copied().unwrap_or(0) + 1;
        self.used = (longest + self.multiple - 1) / self.multiple * self.multiple;
        self.biases.get_mut().clear();
    }

    /// Stores keys and values `[N, KVH, D]` of the current pass.
    pub(crate) fn write(&mut self, block: usize, k: &Tensor, v: &Tensor) {
        for (store, new) in [(&self.keys[block], k), (&self.values[block], v)] {
            let (_, _, h, d) = store.size4().expect("four axes");
            if fused::fits(new) {
                fused::cache_write(&store.view([-1, h, d]), &self.slots, new);
            } else {
                _ = store.view([-1, h, d]).index_copy_(0, &self.slots, new);
            }
        }
    }

    /// Attention of one query a row `[B, H, D]` over what the row has stored, `[B, H * D]`.
    pub(crate) fn attend(&self, block: usize, q: &Tensor, scale: Option<f64>, window: Option<i64>) -> Tensor {
        if fused::decodes(q) {
            let scale = scale.unwrap_or_else(|| (q.size()[2] as f64).powf(-0.5));
            return fused::decode(q, &self.keys[block], &self.values[block], &self.newest, scale, window);
        }
        let read = |store: &Tensor| store.narrow(1, 0, self.used).transpose(1, 2); // [B, KVH, S, D]
        let (k, v) = (read(&self.keys[block]), read(&self.values[block]));
        let (b, kv_heads, _, d) = k.size4().expect("four axes");
        // The heads that share a key head are queries of one small attention: no key is copied.
        let q = q.reshape([b, kv_heads, -1, d]);
        let bias = self.bias(window);
        Tensor::scaled_dot_product_attention(&q, &k, &v, Some(&bias), 0.0, false, scale, false).reshape([b, -1])
    }

    /// 0 at slots that a row's newest token sees, -inf elsewhere: `[B, 1, 1, S]`.
    fn bias(&self, window: Option<i64>) -> Tensor {
        if let Some(bias) = self.biases.borrow().get(&window) {
            return bias.shallow_clone();
        }
        let device = self.newest.device();
        let slots = Tensor::arange(self.used, (Kind::Int64, device)).unsqueeze(0); // [1, S]
        let newest = self.newest.unsqueeze(1); // [B, 1]
        let mut hidden = slots.gt_tensor(&newest);
        if let Some(window) = window {
            hidden = hidden.logical_or(&(&newest - &slots).ge(window));
        }
        let bias = Tensor::zeros(hidden.size(), (self.kind, device)).masked_fill(&hidden, f64::NEG_INFINITY);
        let bias = bias.unsqueeze(1).unsqueeze(1);
        self.biases.borrow_mut().insert(window, bias.shallow_clone());
        bias
    }

    /// Keeps (or repeats) these rows, in this order.
    pub(crate) fn select_rows(&mut self, rows: &[i64]) {
        let rows = Tensor::from_slice(rows).to_device(self.slots.device());
        for tensor in self.keys.iter_mut().chain(&mut self.values) {
            *tensor = tensor.index_select(0, &rows);
        }
    }
}
