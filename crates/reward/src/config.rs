//! A reward stage, as written in `configs/reward/*.toml`.

use std::num::NonZero;

use lm::{Activations, AdamWConfig, AllBlocks, Blocks, LoraConfig, Middle, Owners, Pooling, Sharing};
use problem::{Problem, Result, invalid};
use serde::{Deserialize, Serialize};
use text::OverLong;

use crate::Objective;

/// Which factors are personal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// One factor of every adapted layer personal, everything else shared, the head included (P-ShareLoRA).
    PShareLora,
    /// Everything shared: the ordinary reward model.
    LoraGlobal,
    /// Everything personal, head included: a model each.
    LoraLocal,
    /// The first 70% of the blocks frozen and shared, adapters and head of the last 30% personal (Park et al. 2024, as
    /// P-ShareLoRA compares with it). `lora.blocks` is not read.
    ShareRep,
    /// The bank shared, and a head of `features` reward features with a personal taste (RFM, arXiv 2503.17338).
    Rfm,
}

/// What P-ShareLoRA shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Structure {
    /// `up down`, one of the two personal.
    #[default]
    Lora,
    /// `up K down` with a personal matrix `K [r, r]`.
    Kernel,
    /// `up diag(s) down` with a personal `s [r]`.
    Svd,
}

/// The personal factor of [`Structure::Lora`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Personal {
    /// The down-projection (the paper's better choice, its section D.3).
    #[default]
    Down,
    /// The up-projection.
    Up,
}

/// Does a phase train one adapter for all, or the users' own?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Factors {
    /// One for all.
    Global,
    /// As the variant says.
    Personal,
}

/// What a phase may train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Down-projections.
    Down,
    /// Up-projections.
    Up,
    /// Kernels.
    Kernel,
    /// Diagonals.
    Scale,
    /// The scalar head, or its features.
    Head,
    /// Tastes over features.
    Tastes,
    /// The tie parameter.
    Ties,
    /// Users' lapse rates.
    Lapse,
}

/// A part of the training. The learning rate runs over all phases as one schedule, so that the last of three epochs under a
/// linear one starts at a third of the peak (the paper's variant G); every phase starts with an optimiser of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// One adapter for all, or the users' own. A global phase stands before personal ones.
    pub factors: Factors,
    /// Passes over the votes; may be fractional.
    pub epochs: f64,
    /// What it trains; everything unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<Vec<Role>>,
}

/// When to stop before the last step: by the log-loss of the split `dev`, never of `test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Steps between two looks at `dev`.
    pub every_steps: NonZero<usize>,
    /// Looks without a new best before the end; what was best is kept.
    pub patience: NonZero<usize>,
}

/// Where something large lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// In memory, all of it.
    #[default]
    Memory,
    /// In files: a batch reads and writes its own part of them.
    Disk,
}

/// How to fit a reward model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardConfig {
    /// Which factors are personal.
    pub variant: Variant,
    /// What P-ShareLoRA shares.
    #[serde(default)]
    pub structure: Structure,
    /// The personal factor of `structure = "lora"`.
    #[serde(default)]
    pub personal: Personal,
    /// Which hidden states the head reads.
    pub pooling: Pooling,
    /// Behind which block the head reads; the blocks above are not run. All unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<NonZero<usize>>,
    /// Reward features of variant `rfm`, d; there are at most as many as users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<NonZero<usize>>,
    /// The head's start, relative to a deviation of `1 / sqrt(E + 1)`.
    pub head_scale: f64,
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Peak learning rate, schedule, clip.
    pub optimizer: AdamWConfig,
    /// Times the learning rate for what is users' own. A kernel or a scale of r numbers a user needs more of it than a projection.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub personal_rate: f64,
    /// The likelihood of a vote.
    #[serde(default)]
    pub objective: Objective,
    /// Votes in a batch; users are mixed.
    pub batch_votes: NonZero<usize>,
    /// What is trained, in order.
    pub phases: Vec<Phase>,
    /// Training ends with the last batch that fits into so many tokens (both rows of every vote); phases keep their shares.
    pub token_budget: usize,
    /// When to stop before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// Tokens of prompt and answer.
    pub max_row_tokens: usize,
    /// What becomes of a longer row.
    pub over_long: OverLong,
    /// A batch is computed in parts of so many tokens; the result does not change.
    pub micro_batch_tokens: NonZero<usize>,
    /// What a part keeps for its backward pass.
    pub activations: Activations,
    /// Steps between two checkpoints.
    pub save_every_steps: NonZero<usize>,
    /// Passes over the votes of split `adapt`, which fit what is personal of users who have no training votes.
    #[serde(default = "newcomer_epochs")]
    pub newcomer_epochs: f64,
    /// Where users' own factors and the optimiser's moments of them lie; memory then grows with the batch and not with the number of users.
    #[serde(default)]
    pub personal_factors: Kept,
    /// Where the hidden states below the first adapted block lie. On disk, in the pipeline's folder, the other cells of a matrix
    /// read them there instead of computing them.
    #[serde(default)]
    pub frozen_states: Kept,
    /// Judge every user's votes by every other user's factors as well.
    #[serde(default)]
    pub swap: bool,
}

fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_one(rate: &f64) -> bool {
    *rate == 1.0
}

fn newcomer_epochs() -> f64 {
    10.0
}

impl RewardConfig {
    /// Where what is personal lies in a run.
    pub(crate) fn storage(&self, run: &run::Run) -> lm::Storage {
        match self.personal_factors {
            Kept::Memory => lm::Storage::memory(),
            Kept::Disk => lm::Storage::on_disk(run.state("factors")),
        }
    }

    /// How the votes of a split are scored.
    pub fn scored(&self, split: data::Split) -> crate::Scored {
        let Self { max_row_tokens, over_long, swap, .. } = *self;
        crate::Scored { split, max_row_tokens, over_long, swap }
    }
}

/// Share of the blocks that are personal in [`Variant::ShareRep`].
const SHARE_REP: f64 = 0.3;

impl RewardConfig {
    /// Who owns the bank's factors when training ends, and who the head.
    pub(crate) fn owners(&self) -> (Owners, Sharing) {
        use Sharing::{Personal as Own, Shared};
        let (down, up, middle) = match (self.variant, self.structure, self.personal) {
            (Variant::LoraGlobal | Variant::Rfm, _, _) => (Shared, Shared, Shared),
            (Variant::LoraLocal | Variant::ShareRep, _, _) => (Own, Own, Own),
            (Variant::PShareLora, Structure::Lora, Personal::Down) => (Own, Shared, Shared),
            (Variant::PShareLora, Structure::Lora, Personal::Up) => (Shared, Own, Shared),
            (Variant::PShareLora, Structure::Kernel | Structure::Svd, _) => (Shared, Shared, Own),
        };
        let own_head = self.independent() || self.variant == Variant::Rfm;
        (Owners { down, up, middle }, if own_head { Own } else { Shared })
    }

    /// Is everything personal? Then nobody's training touches another's, unless factors are shrunk to their mean.
    pub(crate) fn independent(&self) -> bool {
        matches!(self.variant, Variant::LoraLocal | Variant::ShareRep)
    }

    /// What stands between the projections, owned by `sharing`.
    pub(crate) fn middle(&self, sharing: Sharing) -> Middle {
        match self.structure {
            Structure::Lora => Middle::None,
            Structure::Kernel => Middle::Kernel(sharing),
            Structure::Svd => Middle::Scale(sharing),
        }
    }

    /// Blocks that are run, of a model that has `depth`.
    pub(crate) fn depth_of(&self, depth: usize) -> Result<usize> {
        let own = self.depth.map_or(depth, NonZero::get);
        if own > depth {
            return Err(wrong("depth", &format!("at most the model's {depth} blocks"), own));
        }
        Ok(own)
    }

    /// The adapters' settings in a model of which `depth` blocks are run.
    pub(crate) fn lora_within(&self, depth: usize) -> Result<LoraConfig> {
        let last = |n: usize| Blocks::Range { from: depth.saturating_sub(n), to: depth };
        let blocks = match (self.variant, self.lora.blocks) {
            (Variant::ShareRep, _) => last((SHARE_REP * depth as f64).round().max(1.0) as usize),
            (_, Blocks::All(AllBlocks::All)) => last(depth),
            (_, Blocks::Last { last: n }) if n.get() <= depth => last(n.get()),
            (_, range @ Blocks::Range { to, .. }) if to <= depth => range,
            (_, Blocks::Last { last: to }) => {
                return Err(wrong("lora.blocks", &format!("at most {depth} blocks"), to));
            }
            (_, Blocks::Range { to, .. }) => {
                return Err(wrong("lora.blocks", &format!("blocks below {depth}, where the head reads"), to));
            }
        };
        Ok(LoraConfig { blocks, ..self.lora.clone() })
    }

    /// The phases of this variant: a global model is global throughout, and separate ones have no warm-up.
    pub(crate) fn own_phases(&self) -> Vec<Phase> {
        let all = |factors| {
            let epochs = self.phases.iter().map(|p| p.epochs).sum();
            vec![Phase { factors, epochs, train: None }]
        };
        match self.variant {
            Variant::PShareLora | Variant::Rfm => self.phases.clone(),
            Variant::LoraGlobal => all(Factors::Global),
            Variant::LoraLocal | Variant::ShareRep => all(Factors::Personal),
        }
    }

    /// Refuses settings that mean nothing.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some((key, expected, found)) = self.objective.problem() {
            return Err(wrong(&format!("objective.{key}"), expected, found));
        }
        if let Some(phase) = self.phases.iter().find(|p| !(p.epochs > 0.0 && p.epochs.is_finite())) {
            return Err(wrong("phases, `epochs`", "a positive number", phase.epochs));
        }
        if !(self.newcomer_epochs > 0.0 && self.newcomer_epochs.is_finite()) {
            return Err(wrong("newcomer_epochs", "a positive number", self.newcomer_epochs));
        }
        if !(self.personal_rate > 0.0 && self.personal_rate.is_finite()) {
            return Err(wrong("personal_rate", "a positive number", self.personal_rate));
        }
        if (self.variant == Variant::Rfm) != self.features.is_some() {
            let found = if self.features.is_some() { "features" } else { "none" };
            return Err(wrong("features", "a number with `variant = \"rfm\"`, and only there", found));
        }
        if self.variant == Variant::Rfm && self.optimizer.weight_decay != 0.0 {
            let expected = "0 with reward features: it would move the number of a taste that fixes the scale";
            return Err(wrong("optimizer.weight_decay", expected, self.optimizer.weight_decay));
        }
        let personal = self.phases.iter().position(|p| p.factors == Factors::Personal);
        let late = personal.is_some_and(|p| self.phases[p..].iter().any(|p| p.factors == Factors::Global));
        if self.phases.is_empty() || personal.is_none() || late {
            let found = if late { "a global phase behind a personal one" } else { "none" };
            return Err(wrong("phases", "global phases, if any, before at least one personal phase", found));
        }
        if self.phases.iter().any(|p| p.train.as_ref().is_some_and(Vec::is_empty)) {
            return Err(wrong(
                "phases, `train`",
                "at least one of down, up, kernel, scale, head, tastes, ties, lapse",
                "none",
            ));
        }
        Ok(())
    }
}

fn wrong(key: &str, expected: &str, found: impl std::fmt::Display) -> Problem {
    invalid(format!("reward, `{key}`"), expected, format!("{found}"), "configs/reward/p-share-lora.toml is an example")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> RewardConfig {
        let text = format!(
            "variant = \"p-share-lora\"\npooling = \"mean\"\nhead_scale = 1.0\nbatch_votes = 8\ntoken_budget = 10\n\
             phases = [{{ factors = \"global\", epochs = 0.3 }}, {{ factors = \"personal\", epochs = 2.7 }}]\n\
             max_row_tokens = 9\nover_long = \"error\"\nmicro_batch_tokens = 9\nactivations = \"keep\"\nsave_every_steps = 1\n{extra}\n\
             [lora]\nrank = 2\nalpha = 4\ntargets = [\"q_proj\"]\nblocks = {{ last = 2 }}\n\
             [optimizer]\nlearning_rate = 1e-2\nschedule = \"linear\"\nwarmup_ratio = 0.0\nweight_decay = 0.0\n\
             betas = [0.9, 0.999]\nepsilon = 1e-8\nmax_grad_norm = 1.0\n"
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn blocks_count_from_where_the_head_reads() {
        let blocks = |config: &RewardConfig, depth| config.lora_within(depth).map(|l| l.blocks);
        assert_eq!(blocks(&config(""), 30).unwrap(), Blocks::Range { from: 28, to: 30 });
        let cut = config("depth = 16");
        assert_eq!(cut.depth_of(30).unwrap(), 16);
        assert_eq!(blocks(&cut, 16).unwrap(), Blocks::Range { from: 14, to: 16 });
        let rep = RewardConfig { variant: Variant::ShareRep, ..config("") };
        assert_eq!(blocks(&rep, 30).unwrap(), Blocks::Range { from: 21, to: 30 });
        assert!(cut.depth_of(12).is_err() && blocks(&config(""), 1).is_err());
    }

    #[test]
    fn phases_that_mean_nothing_are_told() {
        assert!(config("").check().is_ok());
        let with = |phases: Vec<Phase>| RewardConfig { phases, ..config("") }.check();
        let phase = |factors, epochs| Phase { factors, epochs, train: None };
        assert!(with(vec![]).is_err() && with(vec![phase(Factors::Global, 1.0)]).is_err());
        assert!(with(vec![phase(Factors::Personal, 1.0), phase(Factors::Global, 1.0)]).is_err());
        assert!(with(vec![phase(Factors::Personal, 0.0)]).is_err());
        let empty = Phase { train: Some(vec![]), ..phase(Factors::Personal, 1.0) };
        assert!(with(vec![empty]).is_err());
        assert!(config("personal_rate = 3.0").check().is_ok() && config("personal_rate = -1.0").check().is_err());
        let global = RewardConfig { variant: Variant::LoraGlobal, ..config("") };
        assert_eq!(global.own_phases(), vec![phase(Factors::Global, 3.0)]);
    }
}
