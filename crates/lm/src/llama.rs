//! Llama: RMS norms, rotary positions, grouped-query attention, gated MLP. Paths are spelt as in the checkpoint.

use std::ops::Range;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::bank::{Projection, RowFactors};
use crate::{Compute, LlamaConfig, Result, Tensors, read_folder};

/// The frozen base: weights in `kind`, never trained in place.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "lm_head is the checkpoint's name")]
pub struct Lm {
    /// `config.json`
    pub config: LlamaConfig,
    /// Type of weights and activations.
    pub kind: Kind,
    /// Where the weights are.
    pub device: Device,
    embed: Tensor, // [V, E]
    blocks: Vec<Block>,
    norm: Tensor,     // [E]
    lm_head: Tensor,  // [V, E]; the embedding if tied
    inv_freq: Tensor, // [D / 2], float32
}

#[derive(Debug)]
struct Block {
    input_layernorm: Tensor,
    q_proj: Tensor,
    k_proj: Tensor,
    v_proj: Tensor,
    o_proj: Tensor,
    post_attention_layernorm: Tensor,
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
}

/// Cosines and sines of the rotary embedding for some positions: `[B or 1, 1, T, D]` in the model's type.
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    fn apply(&self, x: &Tensor) -> Tensor {
        let half = x.size()[3] / 2;
        let rotated = Tensor::cat(&[-x.narrow(3, half, half), x.narrow(3, 0, half)], 3);
        x * &self.cos + rotated * &self.sin
    }
}

/// Keys and values of everything that generation has seen, per block, with room for `capacity` tokens.
#[derive(Debug)]
pub struct Cache {
    keys: Vec<Tensor>,   // [B, KVH, capacity, D]
    values: Vec<Tensor>, // the same
    len: i64,
}

impl Cache {
    /// Tokens stored, padding included.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Is nothing stored?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps (or repeats) these rows, in this order.
    pub fn select_rows(&mut self, rows: &Tensor) {
        for tensor in self.keys.iter_mut().chain(&mut self.values) {
            *tensor = tensor.index_select(0, rows);
        }
    }

    fn append(&mut self, block: usize, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let t = k.size()[2];
        self.keys[block].narrow(2, self.len, t).copy_(k);
        self.values[block].narrow(2, self.len, t).copy_(v);
        (self.keys[block].narrow(2, 0, self.len + t), self.values[block].narrow(2, 0, self.len + t))
    }
}

impl Lm {
    /// Loads a published folder strictly: every tensor that the configuration describes and no other.
    pub fn load(folder: &Path, compute: &Compute) -> Result<Self> {
        let config = LlamaConfig::read(folder)?;
        Self::new(config, read_folder(folder, compute.device, compute.kind)?, compute)
    }

    /// A model from its tensors, which must be exactly those that the configuration describes.
    pub fn new(config: LlamaConfig, mut weights: Tensors, compute: &Compute) -> Result<Self> {
        let (v, e, m, d) = (config.vocab_size, config.hidden_size, config.intermediate_size, config.head_dim());
        let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads() * d);
        let embed = weights.take("model.embed_tokens.weight", &[v, e])?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let mut take = |name: &str, shape: &[i64]| weights.take(&format!("model.layers.{i}.{name}.weight"), shape);
            blocks.push(Block {
                input_layernorm: take("input_layernorm", &[e])?,
                q_proj: take("self_attn.q_proj", &[q, e])?,
                k_proj: take("self_attn.k_proj", &[kv, e])?,
                v_proj: take("self_attn.v_proj", &[kv, e])?,
                o_proj: take("self_attn.o_proj", &[e, q])?,
                post_attention_layernorm: take("post_attention_layernorm", &[e])?,
                gate_proj: take("mlp.gate_proj", &[m, e])?,
                up_proj: take("mlp.up_proj", &[m, e])?,
                down_proj: take("mlp.down_proj", &[e, m])?,
            });
        }
        let norm = weights.take("model.norm.weight", &[e])?;
        let lm_head = if config.tie_word_embeddings {
            weights.by_name.remove("lm_head.weight"); // some writers store the tied copy as well
            embed.shallow_clone()
        } else {
            weights.take("lm_head.weight", &[v, e])?
        };
        weights.refuse_rest()?;
        let exponents = Tensor::arange_start_step(0, d, 2, (Kind::Float, compute.device)) / d as f64;
        let inv_freq = (exponents * -config.rope_theta().ln()).exp();
        Ok(Self { kind: compute.kind, device: compute.device, embed, blocks, norm, lm_head, inv_freq, config })
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Embeddings `[B, T, E]` of ids `[B, T]`.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embed, ids, -1, false, false)
    }

    /// Rotary embedding for positions `[B or 1, T]`.
    pub fn rope(&self, positions: &Tensor) -> Rope {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.inv_freq; // [B, T, D / 2]
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1); // [B, 1, T, D]
        Rope { cos: angles.cos().to_kind(self.kind), sin: angles.sin().to_kind(self.kind) }
    }

    /// Rotary embedding for positions `0..t`, the same for every row.
    pub fn rope_range(&self, t: i64) -> Rope {
        self.rope(&Tensor::arange(t, (Kind::Int64, self.device)).unsqueeze(0))
    }

    /// Runs some blocks over `[B, T, E]`. Rows are padded on the right, so causality alone keeps padding out of every
    /// real token.
    pub fn blocks(&self, x: Tensor, range: Range<usize>, rope: &Rope, adapter: Option<&RowFactors>) -> Tensor {
        let groups = self.config.num_attention_heads / self.config.num_key_value_heads();
        let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
            let (k, v) = (repeat_heads(k, groups), repeat_heads(v, groups));
            Tensor::scaled_dot_product_attention::<&Tensor>(q, &k, &v, None, 0.0, true, None, false)
        };
        range.fold(x, |x, i| self.block(i, &x, rope, adapter, attend))
    }

    /// A cache for `rows` rows of up to `capacity` tokens.
    pub fn cache(&self, rows: i64, capacity: i64) -> Cache {
        let shape = [rows, self.config.num_key_value_heads(), capacity, self.config.head_dim()];
        let room = || (0..self.depth()).map(|_| Tensor::empty(shape, (self.kind, self.device))).collect();
        Cache { keys: room(), values: room(), len: 0 }
    }

    /// Runs all blocks over prompts `[B, T, E]`, padded on the right, and stores their keys and values.
    pub fn prefill(&self, x: Tensor, rope: &Rope, cache: &mut Cache, adapter: Option<&RowFactors>) -> Tensor {
        let groups = self.config.num_attention_heads / self.config.num_key_value_heads();
        let t = x.size()[1];
        let y = (0..self.depth()).fold(x, |x, i| {
            self.block(i, &x, rope, adapter, |q, k, v| {
                _ = cache.append(i, k, v);
                let (k, v) = (repeat_heads(k, groups), repeat_heads(v, groups));
                Tensor::scaled_dot_product_attention::<&Tensor>(q, &k, &v, None, 0.0, true, None, false)
            })
        });
        cache.len += t;
        y
    }

    /// One new token a row, `[B, 1, E]`. `bias` `[B, 1, 1, S]` is 0 at stored tokens and -inf at padding, S counting the
    /// new token.
    pub fn decode(
        &self,
        x: Tensor,
        rope: &Rope,
        cache: &mut Cache,
        bias: &Tensor,
        adapter: Option<&RowFactors>,
    ) -> Tensor {
        let (kv_heads, d) = (self.config.num_key_value_heads(), self.config.head_dim());
        let y = (0..self.depth()).fold(x, |x, i| {
            self.block(i, &x, rope, adapter, |q, k, v| {
                let (k, v) = cache.append(i, k, v);
                // The heads that share a key head are queries of one small attention: no key is copied.
                let b = q.size()[0];
                let q = q.view([b, kv_heads, -1, d]);
                Tensor::scaled_dot_product_attention(&q, &k, &v, Some(bias), 0.0, false, None, false)
                    .view([b, -1, 1, d])
            })
        });
        cache.len += 1;
        y
    }

    /// The final norm.
    pub fn final_norm(&self, x: &Tensor) -> Tensor {
        self.rms_norm(x, &self.norm)
    }

    /// Logits `[.., V]` of normed hidden states `[.., E]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        hidden.linear::<&Tensor>(&self.lm_head, None)
    }

    /// The frozen weight of one projection, `[out, in]`.
    pub fn weight(&self, block: usize, projection: Projection) -> &Tensor {
        let b = &self.blocks[block];
        match projection {
            Projection::Q => &b.q_proj,
            Projection::K => &b.k_proj,
            Projection::V => &b.v_proj,
            Projection::O => &b.o_proj,
            Projection::Gate => &b.gate_proj,
            Projection::Up => &b.up_proj,
            Projection::Down => &b.down_proj,
        }
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        x.rms_norm([self.config.hidden_size], Some(weight), self.config.rms_norm_eps)
    }

    fn block(
        &self,
        index: usize,
        x: &Tensor,
        rope: &Rope,
        adapter: Option<&RowFactors>,
        mut attend: impl FnMut(&Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> Tensor {
        let block = &self.blocks[index];
        let linear = |x: &Tensor, projection: Projection| {
            let y = x.linear::<&Tensor>(self.weight(index, projection), None);
            adapter.and_then(|a| a.add(index, projection, x, &y)).unwrap_or(y)
        };
        let (b, t, d) = (x.size()[0], x.size()[1], self.config.head_dim());
        let heads = |y: Tensor| y.view([b, t, -1, d]).transpose(1, 2); // [B, H, T, D]

        let h = self.rms_norm(x, &block.input_layernorm);
        let q = rope.apply(&heads(linear(&h, Projection::Q)));
        let k = rope.apply(&heads(linear(&h, Projection::K)));
        let v = heads(linear(&h, Projection::V));
        let attended = attend(&q, &k, &v).transpose(1, 2).reshape([b, t, -1]);
        let x = x + linear(&attended, Projection::O);

        let h = self.rms_norm(&x, &block.post_attention_layernorm);
        let gated = linear(&h, Projection::Gate).silu() * linear(&h, Projection::Up);
        x + linear(&gated, Projection::Down)
    }
}

/// `[B, KVH, T, D]` to `[B, KVH * groups, T, D]`, each head repeated.
fn repeat_heads(x: &Tensor, groups: i64) -> Tensor {
    if groups == 1 {
        return x.shallow_clone();
    }
    let (b, h, t, d) = x.size4().expect("four axes");
    x.unsqueeze(2).expand([b, h, groups, t, d], false).reshape([b, h * groups, t, d])
}
