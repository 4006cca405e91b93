//! What training changes: a model with its optimiser, phase by phase.

use std::collections::BTreeSet;

use lm::{AdamW, Bank, BankConfig, Lm, Parameter, ScalarHead, Sharing, Storage, Tensor, Tensors};
use problem::Result;
use run::Run;

use crate::config::{Factors, Phase, RewardConfig, Role};
use crate::habits::{Habits, TIE};
use crate::model::RewardModel;
use crate::plan::Plan;
use crate::pull::Means;
use crate::schedule::Steps;

/// A model in training.
pub(crate) struct Learner {
    pub(crate) model: RewardModel,
    pub(crate) adam: AdamW,
    /// What personal factors are pulled towards.
    pub(crate) means: Means,
    /// Number of the phase.
    pub(crate) phase: usize,
}

impl Learner {
    /// As it is after `step` steps but for its numbers: those of a fresh model, or of a checkpoint that is loaded next.
    pub(crate) fn at(
        step: usize,
        config: &RewardConfig,
        lm: &Lm,
        plan: &Plan,
        storage: &Storage,
        run: &Run,
    ) -> Result<Self> {
        // The checkpoint of a phase's last step still holds that phase's model.
        let phase = plan.steps.phase(step.saturating_sub(usize::from(plan.steps.turns(step))));
        let model = fresh(config, lm, plan, plan.steps.phases[phase].factors, storage, run)?;
        Self::over(model, config, &plan.steps, phase, storage)
    }

    /// Of a given model, at the start of a phase.
    pub(crate) fn over(
        model: RewardModel,
        config: &RewardConfig,
        steps: &Steps,
        phase: usize,
        storage: &Storage,
    ) -> Result<Self> {
        let (adam, means) = optimiser(&model, config, &steps.phases[phase], storage)?;
        Ok(Self { model, adam, means, phase })
    }

    /// Begins the phase of `step` if the one before ended: with an optimiser of its own, and behind a global phase with a copy of the
    /// adapter for every user.
    pub(crate) fn turn(&mut self, step: usize, config: &RewardConfig, steps: &Steps, storage: &Storage) -> Result<()> {
        if !steps.turns(step) {
            return Ok(());
        }
        let before = steps.phases[self.phase].factors;
        self.phase = steps.phase(step);
        let phase = &steps.phases[self.phase];
        if before == Factors::Global && phase.factors == Factors::Personal {
            let (owners, head_owner) = config.owners();
            self.model = self.model.personalised(owners, head_owner, storage)?;
        }
        (self.adam, self.means) = optimiser(&self.model, config, phase, storage)?;
        Ok(())
    }

    /// All that a resumed run needs.
    pub(crate) fn state(&self) -> Vec<(String, Tensor)> {
        let mut tensors = self.adam.state();
        tensors.extend(self.untrained().into_iter().map(|p| (format!("frozen.{}", p.name), p.tensor)));
        tensors.extend(self.means.state());
        tensors
    }

    /// Puts back what [`Self::state`] gave.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen or left over.
    pub(crate) fn load(&mut self, tensors: &mut Tensors) -> Result<()> {
        for mut parameter in self.untrained() {
            let shape = parameter.tensor.size();
            let value = tensors.take(&format!("frozen.{}", parameter.name), &shape)?;
            tch::no_grad(|| parameter.tensor.copy_(&value));
        }
        self.means.load(tensors)?;
        self.adam.load_state(tensors)
    }

    /// What this phase does not train: an earlier one may have.
    fn untrained(&self) -> Vec<Parameter> {
        let trained: BTreeSet<String> = self.adam.names().collect();
        self.model.parameters().into_iter().filter(|p| !trained.contains(&p.name)).collect()
    }
}

/// The optimiser of what a phase trains, and the means that personal factors are pulled towards.
fn optimiser(model: &RewardModel, config: &RewardConfig, phase: &Phase, storage: &Storage) -> Result<(AdamW, Means)> {
    let (mut parameters, others) = trained(model, phase);
    parameters.extend(others);
    let users = model.users.len().try_into().expect("at least one user");
    let adam = AdamW::new(config.optimizer.clone(), parameters, users, storage)?;
    Ok((adam, Means::of(model, config.objective.shrinkage, storage)))
}

/// A model that has learnt nothing yet: in a global phase one adapter for all, else the users' own.
fn fresh(
    config: &RewardConfig,
    lm: &Lm,
    plan: &Plan,
    factors: Factors,
    storage: &Storage,
    run: &Run,
) -> Result<RewardModel> {
    let one = factors == Factors::Global;
    let sharing = |own: Sharing| if one { Sharing::Shared } else { own };
    let (owners, head_owner) = config.owners();
    let users = plan.users;
    let depth = config.depth_of(lm.depth())?;
    let bank = BankConfig {
        lora: config.lora_within(depth)?,
        down: sharing(owners.down),
        up: sharing(owners.up),
        middle: config.middle(sharing(owners.middle)),
        users: users.len(),
    };
    let bank = Bank::new(&bank, lm, users, storage, |name| run.rng(&["init", name]))?;
    let bank = if one { bank.ahead_of(owners) } else { bank };
    let (width, scale, rng) = (lm.shape.hidden_size, config.head_scale as f32, &mut run.rng(&["head"]));
    let head = match config.features.map(|d| d.get().min(users.len())) {
        None => ScalarHead::new(width, scale, rng, lm.device),
        // Of more features than users some could not be told apart.
        Some(d) => ScalarHead::of_features(d, width, scale, rng, lm.device),
    };
    let personal_head = sharing(head_owner) == Sharing::Personal;
    Ok(RewardModel {
        bank,
        head: if personal_head { head.personalised(users.len(), storage)? } else { head },
        habits: Habits::new(&config.objective, sharing(head_owner), users.len(), plan.tied_share, lm.device),
        pooling: config.pooling,
        depth,
        users: users.to_vec(),
        probes: vec![],
    })
}

/// What a parameter is, by its name.
pub(crate) fn role_of(name: &str) -> Role {
    match name.rsplit('.').next() {
        _ if name == ScalarHead::NAME || name == ScalarHead::FEATURES => Role::Head,
        _ if name == ScalarHead::TASTES => Role::Tastes,
        Some("down") => Role::Down,
        Some("up") => Role::Up,
        Some("kernel") => Role::Kernel,
        Some("scale") => Role::Scale,
        Some(TIE) => Role::Ties,
        _ => Role::Lapse,
    }
}

/// What a phase trains: of the bank, and of the rest.
pub(crate) fn trained(model: &RewardModel, phase: &Phase) -> (Vec<Parameter>, Vec<Parameter>) {
    let wanted = |p: &Parameter| phase.train.as_ref().is_none_or(|roles| roles.contains(&role_of(&p.name)));
    let of_bank: Vec<String> = model.bank.parameters().into_iter().map(|p| p.name).collect();
    model.parameters().into_iter().filter(wanted).partition(|p| of_bank.contains(&p.name))
}
