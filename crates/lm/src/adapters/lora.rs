//! What is adapted, as a stage's TOML says it.

use std::num::NonZero;

use problem::{Result, invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Lm;
use crate::count::count;

/// LoRA's settings (Hu et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

impl LoraConfig {
    /// The settings that stages start from: query and value projections of the last blocks.
    pub fn of_last_blocks(rank: usize, alpha: f64, blocks: usize) -> Self {
        Self {
            rank: count(rank),
            alpha,
            use_rslora: false,
            dropout: 0.0,
            targets: Targets::Names(["q_proj", "v_proj"].map(String::from).to_vec()),
            blocks: Blocks::Last { last: count(blocks) },
            init_bound: InitBound::default(),
            init_users: InitUsers::default(),
        }
    }
}

/// Names of layers, or all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    /// `"all-linear"`: every linear layer of the blocks.
    All(AllLinear),
    /// Such as `["q_proj", "v_proj"]`: the last part of a published path.
    Names(Vec<String>),
}

/// The word `all-linear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AllLinear {
    /// Every linear layer of the blocks.
    #[serde(rename = "all-linear")]
    AllLinear,
}

/// A range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AllBlocks {
    /// Every block.
    #[serde(rename = "all")]
    All,
}

/// The bound of a down-projection's first numbers. Published code differs here by factors of 5 to 11 (a
/// fan-in taken from another axis), so it is explicit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InitUsers {
    /// A draw for each user, by the user's id.
    #[default]
    Independent,
    /// One draw, repeated.
    Same,
}

impl LoraConfig {
    /// Refuses numbers that mean nothing and empty lists, whatever the model; `place` is where the table lies, such as "dpo, `lora`".
    ///
    /// # Errors
    /// The first of them, with the key's name.
    pub fn check(&self, place: &str) -> Result<()> {
        let wrong = |key: &str, expected: &str, found: String, hint: &str| {
            Err(invalid(format!("{place}, `{key}`"), expected, found, hint))
        };
        let Self { rank: _, alpha, use_rslora: _, dropout, ref targets, blocks, init_bound, init_users: _ } = *self;
        if !(alpha > 0.0 && alpha.is_finite()) {
            return wrong("alpha", "a positive number", alpha.to_string(), "twice the rank is ordinary");
        }
        if !(0.0..1.0).contains(&dropout) {
            return wrong("dropout", "a share from 0 to below 1", dropout.to_string(), "0 drops nothing");
        }
        if matches!(targets, Targets::Names(names) if names.is_empty()) {
            return wrong("targets", "names of layers", "none".into(), "\"all-linear\" names them all");
        }
        if let Blocks::Range { from, to } = blocks
            && from >= to
        {
            let found = format!("from {from} to {to}");
            return wrong("blocks", "a range of at least one block", found, "the end is excluded");
        }
        match init_bound {
            InitBound::Number(bound) if !(bound > 0.0 && bound.is_finite()) => {
                wrong("init_bound", "a positive number", bound.to_string(), "leave it out for 1/sqrt(in)")
            }
            InitBound::Number(_) | InitBound::Rule(_) => Ok(()),
        }
    }

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
        self.check("lora")?;
        if let Targets::Names(names) = &self.targets {
            let mut known: Vec<&str> = lm.layers().iter().map(crate::Layer::name).collect();
            known.sort_unstable();
            known.dedup();
            let unknown = names.iter().find(|n| !known.contains(&n.as_str()));
            if let Some(unknown) = unknown {
                let found = format!("`{unknown}`");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issue_22_numbers_that_mean_nothing_are_refused_with_the_keys_name() {
        let fine = LoraConfig {
            rank: NonZero::new(2).unwrap(),
            alpha: 4.0,
            use_rslora: false,
            dropout: 0.0,
            targets: Targets::Names(vec!["q_proj".into()]),
            blocks: Blocks::Range { from: 0, to: 1 },
            init_bound: InitBound::default(),
            init_users: InitUsers::Independent,
        };
        fine.check("dpo, `lora`").unwrap();
        let number = |value: f64| InitBound::Number(value);
        let cases = [
            (LoraConfig { alpha: 0.0, ..fine.clone() }, "alpha"),
            (LoraConfig { alpha: -4.0, ..fine.clone() }, "alpha"),
            (LoraConfig { alpha: f64::NAN, ..fine.clone() }, "alpha"),
            (LoraConfig { alpha: f64::INFINITY, ..fine.clone() }, "alpha"),
            (LoraConfig { dropout: -0.1, ..fine.clone() }, "dropout"),
            (LoraConfig { dropout: 1.0, ..fine.clone() }, "dropout"),
            (LoraConfig { dropout: f64::NAN, ..fine.clone() }, "dropout"),
            (LoraConfig { targets: Targets::Names(vec![]), ..fine.clone() }, "targets"),
            (LoraConfig { blocks: Blocks::Range { from: 3, to: 3 }, ..fine.clone() }, "blocks"),
            (LoraConfig { init_bound: number(0.0), ..fine.clone() }, "init_bound"),
            (LoraConfig { init_bound: number(f64::NAN), ..fine.clone() }, "init_bound"),
        ];
        for (config, key) in cases {
            let error = config.check("dpo, `lora`").unwrap_err().to_string();
            assert!(error.starts_with(&format!("dpo, `lora`, `{key}`: expected ")), "{key}: {error}");
        }
        let zero = serde_json::json!({"rank": 0, "alpha": 1.0, "targets": ["q_proj"], "blocks": "all"});
        assert!(serde_json::from_value::<LoraConfig>(zero).unwrap_err().to_string().contains("nonzero"));
    }
}
