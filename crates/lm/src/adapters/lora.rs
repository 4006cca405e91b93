//! What is adapted, as a stage's TOML says it.

use std::num::NonZero;

use problem::{Result, invalid};
use serde::{Deserialize, Serialize};

use crate::Lm;

/// LoRA's settings (Hu et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// r
    pub rank: NonZero<usize>,
    /// The product is scaled by `alpha / r`.
    pub alpha: f64,
    /// Scale by `alpha / sqrt(r)` instead (Kalajdzievski 2023).
    #[serde(default)]
    pub use_rslora: bool,
    /// Share of the layer's input that training drops, by streams that do not depend on a row's neighbours.
    #[serde(default)]
    pub dropout: f64,
    /// Which linear layers.
    pub targets: Targets,
    /// Of which blocks; what lies below the first is computed once per text.
    pub blocks: Blocks,
    /// Down-projections start uniform within this bound; up-projections start at zero.
    #[serde(default)]
    pub init_bound: InitBound,
    /// Do users start alike?
    #[serde(default)]
    pub init_users: InitUsers,
}

/// Names of layers, or all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// `"all-linear"`: every linear layer of the blocks.
    All(AllLinear),
    /// Such as `["q_proj", "v_proj"]`: the last part of a published path.
    Names(Vec<String>),
}

/// The word `all-linear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllLinear {
    /// Every linear layer of the blocks.
    #[serde(rename = "all-linear")]
    AllLinear,
}

/// A range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Blocks {
    /// `"all"`
    All(AllBlocks),
    /// `{ last = 4 }`
    Last {
        /// So many.
        last: NonZero<usize>,
    },
    /// `{ from = 2, to = 10 }`, the end excluded.
    Range {
        /// The first block.
        from: usize,
        /// Behind the last block.
        to: usize,
    },
}

impl Blocks {
    /// How many, in a model of `depth` blocks.
    pub fn count(&self, depth: usize) -> usize {
        match self {
            Self::All(_) => depth,
            Self::Last { last } => last.get().min(depth),
            Self::Range { from, to } => to.min(&depth).saturating_sub(*from),
        }
    }
}

/// The word `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllBlocks {
    /// Every block.
    #[serde(rename = "all")]
    All,
}

/// The bound of a down-projection's first numbers. Published code differs here by factors of 5 to 11 (a
/// fan-in taken from another axis), so it is explicit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InitBound {
    /// A number.
    Number(f64),
    /// A rule.
    Rule(InitRule),
}

impl Default for InitBound {
    fn default() -> Self {
        Self::Rule(InitRule::Inputs)
    }
}

/// A bound from the factor's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitRule {
    /// PEFT's, PyTorch's for a linear layer `[r, in]`.
    #[serde(rename = "1/sqrt(in)")]
    Inputs,
    /// P-ShareLoRA's code for one user's slice `[in, r]`.
    #[serde(rename = "1/sqrt(r)")]
    Rank,
    /// P-ShareLoRA's older code, for all users' `[U, in, r]`.
    #[serde(rename = "1/sqrt(in*r)")]
    InputsTimesRank,
}

/// How users' first numbers relate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitUsers {
    /// A draw for each user, by the user's id.
    #[default]
    Independent,
    /// One draw, repeated.
    Same,
}

impl LoraConfig {
    /// `alpha / r`, or `alpha / sqrt(r)`.
    pub fn scale(&self) -> f64 {
        let rank = self.rank.get() as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The bound of a down-projection of `inputs` inputs.
    pub(crate) fn bound(&self, inputs: i64) -> f32 {
        let (rank, inputs) = (self.rank.get() as f32, inputs as f32);
        match self.init_bound {
            InitBound::Number(bound) => bound as f32,
            InitBound::Rule(InitRule::Inputs) => 1.0 / inputs.sqrt(),
            InitBound::Rule(InitRule::Rank) => 1.0 / rank.sqrt(),
            InitBound::Rule(InitRule::InputsTimesRank) => 1.0 / (inputs * rank).sqrt(),
        }
    }

    /// The model's layers that are adapted, as indices.
    ///
    /// # Errors
    /// Blocks or names that the model lacks; a dropout or bound that is no such thing.
    pub(crate) fn layers(&self, lm: &Lm) -> Result<Vec<usize>> {
        let depth = lm.depth();
        let (from, to) = match self.blocks {
            Blocks::All(AllBlocks::All) => (0, depth),
            Blocks::Last { last } => (depth.saturating_sub(last.get()), depth),
            Blocks::Range { from, to } => (from, to),
        };
        let fits = match self.blocks {
            Blocks::Last { last } => last.get() <= depth,
            _ => from < to && to <= depth,
        };
        if !fits {
            let found = serde_json::to_string(&self.blocks).expect("plain data");
            let hint = "lower the stage's `lora.blocks`";
            return Err(invalid("lora, `blocks`", format!("blocks among the model's {depth}"), found, hint));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let hint = "0 drops nothing";
            return Err(invalid("lora, `dropout`", "a share from 0 to below 1", self.dropout.to_string(), hint));
        }
        if let InitBound::Number(bound) = self.init_bound
            && !(bound > 0.0 && bound.is_finite())
        {
            let hint = "leave it out for 1/sqrt(in)";
            return Err(invalid("lora, `init_bound`", "a positive number", bound.to_string(), hint));
        }
        if let Targets::Names(names) = &self.targets {
            let mut known: Vec<&str> = lm.layers().iter().map(crate::Layer::name).collect();
            known.sort_unstable();
            known.dedup();
            let unknown = names.iter().find(|n| !known.contains(&n.as_str()));
            if unknown.is_some() || names.is_empty() {
                let found = unknown.map_or("none".into(), |n| format!("`{n}`"));
                let hint = "\"all-linear\" names them all";
                return Err(invalid("lora, `targets`", format!("layers among {}", known.join(", ")), found, hint));
            }
        }
        let wanted = |name: &str| match &self.targets {
            Targets::All(AllLinear::AllLinear) => true,
            Targets::Names(names) => names.iter().any(|n| n == name),
        };
        let layers = lm.layers().iter().enumerate();
        Ok(layers.filter(|(_, l)| (from..to).contains(&l.block) && wanted(l.name())).map(|(i, _)| i).collect())
    }
}
