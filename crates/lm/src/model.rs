//! The frozen base: one object for every family.

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use device::Compute;
use problem::{Result, invalid};
use tch::{Device, Kind, Tensor};

use crate::adapters::RowFactors;
use crate::cache::Cache;
use crate::config::ModelConfig;
use crate::families::Family;
use crate::layout::Layout;
use crate::pass::{Pass, Tokens};
use crate::shape::Shape;
use crate::source::{Layer, Source};
use crate::token_row::TokenRow;
use crate::{cpu, families};

/// A causal language model whose weights are never trained in place.
#[derive(Debug)]
pub struct Lm {
    /// Sizes.
    pub shape: Shape,
    /// Type of weights and activations.
    pub kind: Kind,
    /// Where the weights are.
    pub device: Device,
    family: Box<dyn Family>,
    layers: Vec<Layer>,
    prefixes: Option<(PathBuf, String)>,
}

/// Says, once, which of this crate's kernels the machine cannot run, so that libtorch's plain operations stand in for them.
fn report_fallbacks(compute: &Compute) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if compute.device == Device::Cpu && !cpu::available(compute.device, compute.kind) {
            let asked = device::plain_kernels();
            let cpu = format!("this processor ({}) has no AVX-512", device::cpu_kind().name());
            let why = if asked { "IDIOLECT_KERNELS asks for that" } else { cpu.as_str() };
            tracing::info!("{} products with frozen weights are libtorch's plain ones: {why}", compute.dtype());
        }
    });
}

impl Lm {
    /// Loads a published folder strictly: every tensor that the configuration describes and no other. Weights of the
    /// wanted type stay in the file's map; nothing is copied.
    pub fn load(folder: &Path, compute: &Compute) -> Result<Self> {
        let config = ModelConfig::read(folder)?;
        let source = Source::open(folder, compute)?;
        let family = families::build(config.kind, &config.value, &source.root(), &config.place)?;
        let layers = source.finish()?;
        report_fallbacks(compute);
        Ok(Self { shape: config.shape, kind: compute.kind, device: compute.device, family, layers, prefixes: None })
    }

    /// Keeps the hidden states of every [`crate::Prefix`] in a file in `folder`, named by what decides them, and reads them from there
    /// the next time: another run on the same rows starts training at once and gets the same numbers. `base` says which
    /// base this is and how it computes.
    #[must_use]
    pub fn keeping_prefixes(self, folder: impl Into<PathBuf>, base: impl Into<String>) -> Self {
        Self { prefixes: Some((folder.into(), base.into())), ..self }
    }

    /// Where the hidden states of rows behind the first `depth` blocks are kept.
    pub(crate) fn kept_prefix(&self, rows: &[TokenRow], depth: usize) -> Option<PathBuf> {
        let (folder, base) = self.prefixes.as_ref().filter(|_| depth > 0 && !rows.is_empty())?;
        // The order of the rows decides which are computed together.
        let mut key = format!("1 {base} {depth} {:?} {:?}", self.kind, self.device).into_bytes();
        for TokenRow { ids, answer_start } in rows {
            key.extend([*answer_start as i64, ids.len() as i64].iter().chain(ids).flat_map(|n| n.to_le_bytes()));
        }
        Some(folder.join(format!("{}.safetensors", run::hash_bytes(&key))))
    }

    /// The most tokens that a row can have: no position beyond `max_position_embeddings` or `n_positions` is computed.
    pub fn context(&self) -> usize {
        self.shape.max_positions.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// Refuses `tokens` tokens of `place` if they are more than the model has positions for.
    ///
    /// # Errors
    /// The user's: the text, or the number of tokens that are to follow it, is too long.
    pub fn refuse_longer(&self, tokens: usize, place: &str) -> Result<()> {
        if tokens <= self.context() {
            return Ok(());
        }
        let (expected, found) = (format!("at most {} tokens", self.context()), tokens.to_string());
        Err(invalid(place, expected, found, text::context_hint(self.context())))
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.shape.blocks
    }

    /// The linear layers of all blocks, which adapters can sit on.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Embeddings `[N, E]` of ids at positions `[N]`.
    pub(crate) fn embed(&self, ids: &[i64], positions: &Tensor) -> Tensor {
        self.family.embed(&Tensor::from_slice(ids).to_device(self.device), positions)
    }

    /// A pass over whole sequences.
    pub(crate) fn over<'a>(
        &self,
        layout: &'a Layout,
        adapter: Option<&'a RowFactors>,
        cache: Option<&'a RefCell<Cache>>,
    ) -> Pass<'a> {
        Pass { ropes: self.family.ropes(&layout.positions), tokens: Tokens::Sequences(layout), adapter, cache }
    }

    /// A pass over one new token a row, at positions `[B]`.
    pub(crate) fn next<'a>(
        &self,
        positions: &Tensor,
        adapter: Option<&'a RowFactors>,
        cache: &'a RefCell<Cache>,
    ) -> Pass<'a> {
        Pass { ropes: self.family.ropes(positions), tokens: Tokens::Next, adapter, cache: Some(cache) }
    }

    /// Runs some blocks over `[N, E]`.
    pub(crate) fn blocks(&self, x: Tensor, range: Range<usize>, pass: &Pass) -> Tensor {
        range.fold(x, |x, index| self.family.block(index, &x, pass))
    }

    /// An empty cache.
    pub(crate) fn cache(&self, rows: usize, capacity: usize, multiple: usize) -> RefCell<Cache> {
        let heads = (self.shape.heads.key_values, self.shape.heads.size);
        let options = (self.kind, self.device);
        RefCell::new(Cache::new(self.depth(), rows as i64, capacity as i64, multiple as i64, heads, options))
    }

    /// The norm behind the last block.
    pub(crate) fn final_norm(&self, x: &Tensor) -> Tensor {
        self.family.final_norm(x)
    }

    /// Logits `[N, V]` of normed hidden states `[N, E]`, in the model's type.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Tensor {
        self.family.head().products(hidden).pop().expect("a layer has a part")
    }

    /// The vocabulary projection's weight, `[V, E]`.
    pub(crate) fn head_weight(&self) -> &Tensor {
        self.family.head().plain_weight()
    }
}
