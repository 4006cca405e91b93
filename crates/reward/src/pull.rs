//! Shrinkage: personal factors are pulled towards their mean over users (see [`crate::Objective::shrinkage`]).

use lm::{Owner, Parameter, Present, Storage, Tensor, Tensors};
use problem::Result;
use tch::no_grad;

use crate::RewardModel;

/// The means over all users of every personal factor and head, kept up to date as users move: nobody absent is read.
#[derive(Debug)]
pub(crate) struct Means(Vec<(String, Tensor)>);

/// What is pulled: the users' own factors and heads, not their habits.
fn personal(model: &RewardModel) -> Vec<Parameter> {
    let mut all = model.bank.parameters();
    all.extend(model.head.parameters());
    all.retain(|p| p.owner == Owner::PerUser);
    all
}

impl Means {
    /// None are kept where nothing is pulled.
    pub(crate) fn of(model: &RewardModel, strength: f64, storage: &Storage) -> Self {
        if strength == 0.0 {
            return Self(vec![]);
        }
        let mean = |p: &Parameter| {
            let mean = p.tensor.detach().mean_dim(Some([0i64].as_slice()), false, tch::Kind::Float);
            storage.release();
            mean
        };
        Self(personal(model).iter().map(|p| (p.name.clone(), mean(p))).collect())
    }

    /// Moves the `present` users, who have just been trained from what `before` holds, `share` of their way to the mean.
    pub(crate) fn pull(&mut self, model: &RewardModel, before: &RewardModel, present: &Present, share: f64) {
        if self.0.is_empty() {
            return;
        }
        let users = model.users.len() as f64;
        no_grad(|| {
            for ((p, old), (_, mean)) in personal(model).iter().zip(personal(before)).zip(&mut self.0) {
                for (place, user) in present.iter() {
                    let mut own = p.tensor.get(user.0 as i64);
                    // What was trained is on the compute device, what is kept may be on disk, and so on the CPU.
                    let old = old.tensor.get(place.0 as i64).to_device(own.device());
                    *mean += (&own - old) / users;
                    let way = (&*mean - &own) * share;
                    *mean += &way / users;
                    own += way;
                }
            }
        });
    }

    pub(crate) fn state(&self) -> Vec<(String, Tensor)> {
        self.0.iter().map(|(name, mean)| (format!("mean.{name}"), mean.shallow_clone())).collect()
    }

    pub(crate) fn load(&mut self, tensors: &mut Tensors) -> Result<()> {
        for (name, mean) in &mut self.0 {
            let shape = mean.size();
            mean.copy_(&tensors.take(&format!("mean.{name}"), &shape)?);
        }
        Ok(())
    }
}
