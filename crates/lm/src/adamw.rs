//! AdamW (Loshchilov and Hutter 2019) whose state can be saved, with a step count, a gradient norm and a clip of its own
//! for every user: a user who is absent from a batch is not touched.

use std::num::NonZero;

use device::Checked;
use problem::{Problem, Result, invalid, not_finite};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::{Place, Storage, Tensors, UserIndex};

/// Who owns a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Everyone: one step count, clipped together with the other shared parameters.
    Shared,
    /// The first axis is the user.
    PerUser,
}

/// A tensor to train.
#[derive(Debug)]
pub struct Parameter {
    /// Unique in an optimiser.
    pub name: String,
    /// A leaf that requires a gradient; `[U, ..]` if per user.
    pub tensor: Tensor,
    /// Shared or per user.
    pub owner: Owner,
}

/// As written in a stage's TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Peak learning rate. At 0 nothing moves: a run to try out everything else.
    pub learning_rate: f64,
    /// How it changes over the steps.
    pub schedule: Schedule,
    /// Steps of linear warm-up, as a share of all.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Gradients are scaled down to this norm: a user's own, and that of all shared parameters. A large number, such as 1e9, scales none.
    pub max_grad_norm: f64,
}

/// Learning rate over the steps, behind the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// The peak throughout.
    Constant,
    /// Linearly to zero.
    Linear,
    /// Along half a cosine to zero.
    Cosine,
    /// The last part of a linear schedule, which an earlier training ran up to the share `from`: starts at
    /// `learning_rate * (1 - from)`. P-ShareLoRA's variant G trains its personal epoch so (`from` = 2/3).
    LinearTail {
        /// Share of the schedule that lies behind, from 0 to below 1.
        from: f64,
    },
}

impl AdamWConfig {
    /// The settings that stages start from: this peak rate, reached after a share of `warmup_ratio` of all steps and falling linearly, no
    /// weight decay, gradients clipped to norm 1.
    pub fn with_rate(learning_rate: f64, warmup_ratio: f64) -> Self {
        Self {
            learning_rate,
            schedule: Schedule::Linear,
            warmup_ratio,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            max_grad_norm: 1.0,
        }
    }
}

impl AdamWConfig {
    /// Refuses numbers that mean nothing; `place` is where the table lies, such as "dpo, `optimizer`".
    ///
    /// # Errors
    /// The first of them, with the key's name.
    pub fn check(&self, place: &str) -> Result<()> {
        let Self { learning_rate, schedule, warmup_ratio, weight_decay, betas, epsilon, max_grad_norm } = *self;
        let wrong = |key: &str, expected: &str, found: f64| {
            let hint = "learning_rate = 1e-3, warmup_ratio = 0.1, weight_decay = 0.0, betas = [0.9, 0.999], epsilon = 1e-8 and \
                        max_grad_norm = 1.0 are ordinary";
            Err(invalid(format!("{place}, `{key}`"), expected, found.to_string(), hint))
        };
        if !(learning_rate >= 0.0 && learning_rate.is_finite()) {
            return wrong("learning_rate", "a number of at least 0, at which nothing moves", learning_rate);
        }
        for (key, value) in [("epsilon", epsilon), ("max_grad_norm", max_grad_norm)] {
            if !(value > 0.0 && value.is_finite()) {
                return wrong(key, "a positive number", value);
            }
        }
        if !(0.0..=1.0).contains(&warmup_ratio) {
            return wrong("warmup_ratio", "a share of the steps, from 0 to 1", warmup_ratio);
        }
        if !(weight_decay >= 0.0 && weight_decay.is_finite()) {
            return wrong("weight_decay", "a number of at least 0", weight_decay);
        }
        if let Some(beta) = betas.into_iter().find(|beta| !(0.0..1.0).contains(beta)) {
            return wrong("betas", "two numbers from 0 to below 1", beta);
        }
        match schedule {
            Schedule::LinearTail { from } if !(0.0..1.0).contains(&from) => {
                wrong("schedule.linear-tail.from", "a share of the schedule, from 0 to below 1", from)
            }
            Schedule::Constant | Schedule::Linear | Schedule::Cosine | Schedule::LinearTail { .. } => Ok(()),
        }
    }

    /// The learning rate of step `step` (from 0) of `steps`.
    pub fn rate(&self, step: usize, steps: usize) -> f64 {
        let warmup = (self.warmup_ratio * steps as f64).ceil();
        let step = step as f64;
        if step < warmup {
            return self.learning_rate * (step + 1.0) / warmup;
        }
        let left = (steps as f64 - step) / (steps as f64 - warmup).max(1.0); // 1 at the end of the warm-up
        let share = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => left,
            Schedule::Cosine => 0.5 - 0.5 * (std::f64::consts::PI * left).cos(),
            Schedule::LinearTail { from } => (1.0 - from) * left,
        };
        self.learning_rate * share
    }
}

/// Norms before clipping.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientNorms {
    /// Over all shared parameters; 0 if there are none.
    pub shared: f64,
    /// Over each present user's own, in the order in which they were given.
    pub users: Vec<f64>,
}

#[derive(Debug)]
struct Slot {
    parameter: Parameter,
    first: Tensor,  // running mean of the gradient
    second: Tensor, // running mean of its square
}

/// The optimiser of a set of parameters.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    shared_steps: i64,
    user_steps: Vec<i64>,
}

impl AdamW {
    /// An optimiser with empty moments; those of personal parameters lie in `storage`.
    ///
    /// # Errors
    /// A disk without room for them.
    pub fn new(
        config: AdamWConfig,
        parameters: Vec<Parameter>,
        users: NonZero<usize>,
        storage: &Storage,
    ) -> Result<Self> {
        let zeros = |p: &Parameter| match p.owner {
            Owner::Shared => Ok(p.tensor.detach().zeros_like()),
            Owner::PerUser => storage.zeros(&p.tensor.size(), p.tensor.device()),
        };
        let slot = |p: Parameter| Ok(Slot { first: zeros(&p)?, second: zeros(&p)?, parameter: p });
        let slots = parameters.into_iter().map(slot).collect::<Result<_>>()?;
        Ok(Self { config, slots, shared_steps: 0, user_steps: vec![0; users.get()] })
    }

    /// Takes one step along `gradients`, which are in the order of the parameters: shared parameters at learning rate
    /// `shared`, and those of the `present` users, (index, learning rate) each. A personal parameter's gradient is `[P, ..]`, a
    /// slice for every present user in that order; nobody else is touched, whatever their number.
    ///
    /// # Errors
    /// A norm that is not finite, named by `place`; nothing is changed then.
    pub fn step(
        &mut self,
        gradients: &[Tensor],
        shared: f64,
        present: &[(UserIndex, f64)],
        place: &str,
    ) -> Result<GradientNorms> {
        let refuse = |what: String| not_finite(place, what);
        no_grad(|| self.apply(gradients, shared, present, refuse))
    }

    /// The norms of `gradients` as [`Self::step`] would find them, before anything is changed: so that several optimisers step together or
    /// not at all.
    pub fn norms(&self, gradients: &[Tensor], present: usize) -> Result<GradientNorms> {
        let (mut shared, mut users) = (0.0, vec![0.0; present]);
        for (slot, gradient) in self.slots.iter().zip(gradients) {
            match slot.parameter.owner {
                Owner::Shared => shared += gradient.square().sum(Kind::Double).double_value(&[]),
                Owner::PerUser => {
                    let each = gradient.square().reshape([gradient.size()[0], -1]);
                    let square: Vec<f64> = Vec::try_from(each.sum_dim_intlist(1, false, Kind::Double)).checked()?;
                    users.iter_mut().zip(square).for_each(|(sum, s)| *sum += s);
                }
            }
        }
        Ok(GradientNorms { shared: shared.sqrt(), users: users.into_iter().map(f64::sqrt).collect() })
    }

    /// Names of what is trained, in order.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.slots.iter().map(|s| s.parameter.name.clone())
    }

    /// What is trained, in order.
    pub fn parameters(&self) -> Vec<Tensor> {
        self.slots.iter().map(|s| s.parameter.tensor.shallow_clone()).collect()
    }

    fn apply(
        &mut self,
        gradients: &[Tensor],
        shared_rate: f64,
        present: &[(UserIndex, f64)],
        refuse: impl Fn(String) -> Problem,
    ) -> Result<GradientNorms> {
        let norms = self.norms(gradients, present.len())?;
        if !norms.shared.is_finite() {
            return Err(refuse("the gradient of the shared parameters".into()));
        }
        if let Some(number) = norms.users.iter().position(|n| !n.is_finite()) {
            return Err(refuse(format!("the gradient of user number {}", present[number].0)));
        }

        self.shared_steps += 1;
        present.iter().for_each(|(user, _)| self.user_steps[user.0] += 1);
        let clip = |norm: f64| (self.config.max_grad_norm / (norm + 1e-6)).min(1.0); // as torch.nn.utils.clip_grad_norm_
        let [beta1, beta2] = self.config.betas;
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let (tensor, m, v) = (&mut slot.parameter.tensor, &mut slot.first, &mut slot.second);
            // An owner's slices of parameter and moments, and of the gradient; its norm and its step count.
            let update = |slices: Option<(UserIndex, Place)>, rate: f64, norm: f64, steps: i64| {
                let pick =
                    |t: &Tensor, index: Option<usize>| index.map_or_else(|| t.shallow_clone(), |i| t.get(i as i64));
                let own = slices.map(|(user, _)| user.0);
                let (mut p, mut m, mut v) = (pick(tensor, own), pick(m, own), pick(v, own));
                let g = pick(gradient, slices.map(|(_, place)| place.0)).to_device(p.device()) * clip(norm);
                _ = p.g_mul_scalar_(1.0 - rate * self.config.weight_decay);
                _ = m.g_mul_scalar_(beta1).g_add_(&(&g * (1.0 - beta1)));
                _ = v.g_mul_scalar_(beta2).g_add_(&(g.square() * (1.0 - beta2)));
                let (bias1, bias2) = (1.0 - beta1.powi(steps as i32), 1.0 - beta2.powi(steps as i32));
                let root = (&v / bias2).sqrt() + self.config.epsilon;
                p -= (&m / bias1) / root * rate;
            };
            match slot.parameter.owner {
                Owner::Shared => update(None, shared_rate, norms.shared, self.shared_steps),
                Owner::PerUser => {
                    for (place, (user, rate)) in Place::all(present.len()).zip(present) {
                        update(Some((*user, place)), *rate, norms.users[place.0], self.user_steps[user.0]);
                    }
                }
            }
        }
        Ok(norms)
    }

    /// Parameters, moments and step counts by name: all that a resumed run needs.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut out = vec![
            ("steps.shared".to_owned(), Tensor::from_slice(&[self.shared_steps])),
            ("steps.users".to_owned(), Tensor::from_slice(&self.user_steps)),
        ];
        for Slot { parameter, first, second } in &self.slots {
            out.push((format!("value.{}", parameter.name), parameter.tensor.shallow_clone()));
            out.push((format!("first.{}", parameter.name), first.shallow_clone()));
            out.push((format!("second.{}", parameter.name), second.shallow_clone()));
        }
        out
    }

    /// Puts back what [`Self::state`] gave, into parameters of the same names and shapes.
    pub fn load_state(&mut self, state: &mut Tensors) -> Result<()> {
        let counts = |t: Tensor| -> Result<Vec<i64>> { Vec::try_from(t).checked() };
        self.shared_steps = counts(state.take("steps.shared", &[1])?)?[0];
        self.user_steps = counts(state.take("steps.users", &[self.user_steps.len() as i64])?)?;
        no_grad(|| {
            for slot in &mut self.slots {
                let shape = slot.parameter.tensor.size();
                for (role, tensor) in
                    [("value", &mut slot.parameter.tensor), ("first", &mut slot.first), ("second", &mut slot.second)]
                {
                    tensor.copy_(&state.take(&format!("{role}.{}", slot.parameter.name), &shape)?);
                }
            }
            state.refuse_rest()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issue_22_numbers_that_mean_nothing_are_refused_with_the_keys_name() {
        let fine = AdamWConfig {
            learning_rate: 1e-3,
            schedule: Schedule::LinearTail { from: 0.5 },
            warmup_ratio: 1.0,
            weight_decay: 0.0,
            betas: [0.0, 0.999],
            epsilon: 1e-8,
            max_grad_norm: 1.0,
        };
        fine.check("dpo, `optimizer`").unwrap();
        AdamWConfig { learning_rate: 0.0, ..fine.clone() }.check("dpo, `optimizer`").unwrap();
        let with = |change: fn(&mut AdamWConfig, f64), bad: &[f64], key: &str| {
            for value in bad {
                let mut config = fine.clone();
                change(&mut config, *value);
                let error = config.check("dpo, `optimizer`").unwrap_err().to_string();
                assert!(
                    error.starts_with(&format!("dpo, `optimizer`, `{key}`: expected ")),
                    "{key} = {value}: {error}"
                );
                assert!(error.ends_with(&format!(", found {value}")), "{key} = {value}: {error}");
            }
        };
        let not_positive = [0.0, -1e-3, f64::NAN, f64::INFINITY];
        with(|c, v| c.learning_rate = v, &not_positive[1..], "learning_rate");
        with(|c, v| c.epsilon = v, &not_positive, "epsilon");
        with(|c, v| c.max_grad_norm = v, &not_positive, "max_grad_norm");
        with(|c, v| c.warmup_ratio = v, &[-0.1, 1.1, f64::NAN], "warmup_ratio");
        with(|c, v| c.weight_decay = v, &[-0.1, f64::NAN, f64::INFINITY], "weight_decay");
        with(|c, v| c.betas[0] = v, &[-0.1, 1.0, f64::NAN], "betas");
        with(|c, v| c.betas[1] = v, &[-0.1, 1.0, f64::NAN], "betas");
        let tail = |c: &mut AdamWConfig, from: f64| c.schedule = Schedule::LinearTail { from };
        with(tail, &[-0.1, 1.0, f64::NAN], "schedule.linear-tail.from");
    }
}
