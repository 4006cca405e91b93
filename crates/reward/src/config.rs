//! The settings of a reward stage: `idiolect config reward` shows them with their defaults.

use std::num::NonZero;

use lm::{Activations, AdamWConfig, AllBlocks, Blocks, LoraConfig, Middle, Owners, Pooling, Sharing};
use problem::{Problem, Result, invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use text::OverLong;

use crate::Objective;

/// Which factors are personal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Personal {
    /// The down-projection (the paper's better choice, its section D.3).
    #[default]
    Down,
    /// The up-projection.
    Up,
}

/// Does a phase train one adapter for all, or the users' own?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Factors {
    /// One for all.
    Global,
    /// As the variant says.
    Personal,
}

/// What a phase may train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Steps between two looks at `dev`.
    pub every_steps: NonZero<usize>,
    /// Looks without a new best before the end; what was best is kept.
    pub patience: NonZero<usize>,
}

/// Where something large lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// In memory, all of it.
    #[default]
    Memory,
    /// In files: a batch reads and writes its own part of them.
    Disk,
}

/// How to fit a reward model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

impl Default for RewardConfig {
    fn default() -> Self {
        let phase = |factors, epochs| Phase { factors, epochs, train: None };
        Self {
            variant: Variant::PShareLora,
            structure: Structure::default(),
            personal: Personal::default(),
            pooling: Pooling::Mean,
            depth: None,
            features: None,
            head_scale: 1.0,
            lora: LoraConfig::of_last_blocks(8, 32.0, 4),
            optimizer: AdamWConfig::with_rate(5e-3, 0.05),
            personal_rate: one(),
            objective: Objective::default(),
            batch_votes: lm::count(16),
            phases: vec![phase(Factors::Global, 0.3), phase(Factors::Personal, 2.7)],
            token_budget: 10_000_000,
            early_stopping: None,
            max_row_tokens: 1024,
            over_long: OverLong::Error,
            micro_batch_tokens: lm::count(4096),
            activations: Activations::Keep,
            save_every_steps: lm::count(10),
            newcomer_epochs: newcomer_epochs(),
            personal_factors: Kept::default(),
            frozen_states: Kept::default(),
            swap: false,
        }
    }
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
    pub fn scored(&self, split: data::Split) -> crate::predict::Scored {
        let Self { max_row_tokens, over_long, swap, .. } = *self;
        crate::predict::Scored { split, max_row_tokens, over_long, swap }
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

    /// Refuses settings that mean nothing, by their key.
    ///
    /// # Errors
    /// Such as an empty list, a number outside of its range, or settings that contradict each other.
    pub fn check(&self) -> Result<()> {
        // No `..`: a new setting that nobody looks at here does not compile. Enumerations and counts above zero mean something as they are.
        let Self {
            variant,
            structure: _,
            personal: _,
            pooling: _,
            depth: _,
            features,
            head_scale,
            ref lora,
            ref optimizer,
            personal_rate,
            objective,
            batch_votes: _,
            ref phases,
            token_budget,
            early_stopping: _,
            max_row_tokens,
            over_long: _,
            micro_batch_tokens: _,
            activations: _,
            save_every_steps: _,
            newcomer_epochs,
            personal_factors: _,
            frozen_states: _,
            swap: _,
        } = *self;
        lora.check("reward, `lora`")?;
        optimizer.check("reward, `optimizer`")?;
        if let Some((key, expected, found)) = objective.problem() {
            return Err(wrong(&format!("objective.{key}"), expected, found));
        }
        let epochs: f64 = phases.iter().map(|p| p.epochs).sum();
        let positive = [("newcomer_epochs", newcomer_epochs), ("personal_rate", personal_rate)];
        let of_phases = phases.iter().map(|p| ("phases, `epochs`", p.epochs));
        if let Some((key, found)) = positive.into_iter().chain(of_phases).find(|(_, x)| !(*x > 0.0 && x.is_finite())) {
            return Err(wrong(key, "a positive number", found));
        }
        for (key, found) in [("phases, `epochs`", epochs), ("newcomer_epochs", newcomer_epochs)] {
            if found > MOST_EPOCHS {
                return Err(wrong(key, &format!("at most {MOST_EPOCHS} passes over the votes"), found));
            }
        }
        if !(head_scale >= 0.0 && head_scale.is_finite()) {
            return Err(wrong("head_scale", "a number from 0", head_scale));
        }
        for (key, found) in [("token_budget", token_budget), ("max_row_tokens", max_row_tokens)] {
            if found == 0 {
                return Err(wrong(key, "a positive number of tokens", found));
            }
        }
        if (variant == Variant::Rfm) != features.is_some() {
            let found = if features.is_some() { "features" } else { "none" };
            return Err(wrong("features", "a number with `variant = \"rfm\"`, and only there", found));
        }
        if variant == Variant::Rfm && optimizer.weight_decay != 0.0 {
            let expected = "0 with reward features: it would move the number of a taste that fixes the scale";
            return Err(wrong("optimizer.weight_decay", expected, optimizer.weight_decay));
        }
        check_phases(phases)
    }
}

/// More passes over the votes than anybody waits for.
const MOST_EPOCHS: f64 = 1e6;

/// Phases in an order that has a meaning, each of which trains something.
fn check_phases(phases: &[Phase]) -> Result<()> {
    let personal = phases.iter().position(|p| p.factors == Factors::Personal);
    let late = personal.is_some_and(|p| phases[p..].iter().any(|p| p.factors == Factors::Global));
    if personal.is_none() || late {
        let found = if late { "a global phase behind a personal one" } else { "none" };
        return Err(wrong("phases", "global phases, if any, before at least one personal phase", found));
    }
    if phases.iter().any(|p| p.train.as_ref().is_some_and(Vec::is_empty)) {
        let expected = "at least one of down, up, kernel, scale, head, tastes, ties, lapse";
        return Err(wrong("phases, `train`", expected, "none"));
    }
    Ok(())
}

fn wrong(key: &str, expected: &str, found: impl std::fmt::Display) -> Problem {
    invalid(
        format!("reward, `{key}`"),
        expected,
        format!("{found}"),
        "`idiolect config reward` shows all settings and their defaults",
    )
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

    #[test]
    fn numbers_that_mean_nothing_are_refused_by_their_key() {
        type Change = fn(&mut RewardConfig);
        let cases: [(&str, Change); 17] = [
            ("`token_budget`", |c| c.token_budget = 0),
            ("`max_row_tokens`", |c| c.max_row_tokens = 0),
            ("`head_scale`", |c| c.head_scale = -1.0),
            ("`head_scale`", |c| c.head_scale = f64::NAN),
            ("`personal_rate`", |c| c.personal_rate = 0.0),
            ("`personal_rate`", |c| c.personal_rate = f64::INFINITY),
            ("`newcomer_epochs`", |c| c.newcomer_epochs = -1.0),
            ("`newcomer_epochs`", |c| c.newcomer_epochs = 1e300),
            ("`phases, `epochs``", |c| c.phases[0].epochs = f64::NAN),
            ("`phases, `epochs``", |c| c.phases[0].epochs = -0.5),
            ("`phases, `epochs``", |c| c.phases[1].epochs = 1e18),
            ("`phases, `train``", |c| c.phases[1].train = Some(vec![])),
            ("`phases`", |c| c.phases.clear()),
            ("`features`", |c| c.features = NonZero::new(4)),
            ("`objective.label_smoothing`", |c| c.objective.label_smoothing = 0.5),
            ("`objective.centering`", |c| c.objective.centering = f64::INFINITY),
            ("`objective.shrinkage`", |c| c.objective.shrinkage = -1.0),
        ];
        for (key, change) in cases {
            let mut config = config("");
            change(&mut config);
            let error = config.check().unwrap_err();
            assert!(error.to_string().contains(&format!("reward, {key}: expected")), "{key}: {error}");
            assert!(!error.is_not_finite() && error.hint().is_some(), "{key}");
        }
    }
}
