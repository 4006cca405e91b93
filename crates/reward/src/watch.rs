//! Early stopping: the log-loss of the split `dev`, looked at every few steps; what was best is kept.

use data::{Split, Vote};
use lm::{Lm, Owner, Parameter, Prefix, Quarantine, Storage, Tensor, Tensors, UserIndex};
use problem::{Result, invalid};
use serde::{Deserialize, Serialize};
use tch::no_grad;
use text::Tokenizer;

use crate::{EarlyStopping, RewardConfig, RewardModel, Texts};

/// The best look so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// Behind so many steps.
    step: usize,
    loss: f64,
    /// Looks since then.
    since: usize,
}

/// Nothing is looked at where the configuration asks for none.
#[derive(Debug)]
pub(crate) struct Watch {
    setting: Option<(EarlyStopping, Dev)>,
    best: Option<Best>,
    /// Parameters of the best look.
    kept: Vec<(String, Tensor)>,
}

/// Decided votes of `dev`.
#[derive(Debug)]
struct Dev {
    prefix: Prefix,
    /// Rows of (chosen, rejected) of each user's votes.
    votes: Vec<(UserIndex, Vec<usize>)>,
}

impl Watch {
    pub(crate) fn new(
        config: &RewardConfig,
        lm: &Lm,
        tokenizer: &Tokenizer,
        votes: &[Vote],
        model: &RewardModel,
    ) -> Result<Self> {
        let Some(setting) = config.early_stopping else { return Ok(Self { setting: None, best: None, kept: vec![] }) };
        let dev: Vec<&Vote> = votes.iter().filter(|v| v.split == Split::Dev && !v.tie && v.counts()).collect();
        let texts = Texts::new(tokenizer, dev, config.max_row_tokens, config.over_long)?;
        let mut by_user: std::collections::BTreeMap<UserIndex, Vec<usize>> = std::collections::BTreeMap::new();
        for (vote, (chosen, rejected)) in texts.votes.iter().zip(&texts.pairs) {
            if let Ok(user) = model.users.binary_search(&vote.user_id) {
                by_user.entry(UserIndex(user)).or_default().extend([*chosen, *rejected]);
            }
        }
        if by_user.is_empty() {
            return Err(invalid(
                "reward, `early_stopping`",
                "decided votes of known users in the split `dev`",
                format!("{} decided votes", texts.votes.len()),
                "give `dev` a share in the data stage's `split`, or leave `early_stopping` out",
            ));
        }
        let prefix = model.prefix(lm, texts.rows, |_| ())?;
        let dev = Dev { prefix, votes: by_user.into_iter().collect() };
        Ok(Self { setting: Some((setting, dev)), best: None, kept: vec![] })
    }

    /// Looks no more at users who are in quarantine. What was best is forgotten if there are new ones: looks at other votes cannot be compared.
    pub(crate) fn leave_out(&mut self, quarantine: &Quarantine) {
        let Some((_, dev)) = &mut self.setting else { return };
        let before = dev.votes.len();
        dev.votes.retain(|(user, _)| !quarantine.holds(*user));
        if dev.votes.len() < before {
            (self.best, self.kept) = (None, vec![]);
        }
    }

    /// Has it been long enough since the best?
    pub(crate) fn over(&self) -> bool {
        let patience = self.setting.as_ref().map_or(usize::MAX, |(s, _)| s.patience.get());
        self.best.is_some_and(|b| b.since >= patience)
    }

    /// Looks, if it is time: mean log-loss over votes.
    pub(crate) fn look(
        &mut self,
        lm: &Lm,
        model: &RewardModel,
        step: usize,
        last: usize,
        storage: &Storage,
    ) -> Result<Option<f64>> {
        let Some((setting, dev)) = self.setting.as_ref() else { return Ok(None) };
        if !step.is_multiple_of(setting.every_steps.get()) && step != last {
            return Ok(None);
        }
        if dev.votes.is_empty() {
            return Ok(None);
        }
        let (mut sum, mut count) = (0.0, 0);
        for (user, rows) in &dev.votes {
            let scores = model.score(lm, &dev.prefix, rows, *user);
            for pair in scores.chunks(2) {
                sum += stats::log_loss(model.probability(pair[0], pair[1], *user));
                count += 1;
            }
        }
        let loss = sum / f64::from(count);
        match &mut self.best {
            Some(best) if loss >= best.loss || loss.is_nan() => best.since += 1,
            _ => {
                self.best = Some(Best { step, loss, since: 0 });
                let current = model.parameters();
                let fits =
                    |(name, kept): &(String, Tensor), p: &Parameter| *name == p.name && kept.size() == p.tensor.size();
                if self.kept.len() != current.len() || !self.kept.iter().zip(&current).all(|(k, p)| fits(k, p)) {
                    let room = |p: &Parameter| {
                        let personal = p.owner == Owner::PerUser;
                        let memory = Storage::memory();
                        let own = if personal { storage } else { &memory };
                        Ok((p.name.clone(), own.zeros(&p.tensor.size(), p.tensor.device())?))
                    };
                    self.kept = current.iter().map(room).collect::<Result<_>>()?;
                }
                no_grad(|| self.kept.iter_mut().zip(&current).for_each(|((_, kept), p)| kept.copy_(&p.tensor)));
                storage.release();
            }
        }
        Ok(Some(loss))
    }

    /// Puts back what was best; gives its step.
    pub(crate) fn restore(&self, model: &RewardModel) -> Option<usize> {
        let best = self.best?;
        no_grad(|| {
            for (mut parameter, (name, tensor)) in model.parameters().into_iter().zip(&self.kept) {
                // A look at the global model, if that was best, is that of every user.
                assert_eq!(parameter.name, *name, "the same model, at another step");
                let size = parameter.tensor.size();
                parameter.tensor.copy_(&tensor.expand(size, false));
            }
        });
        Some(best.step)
    }

    pub(crate) fn best(&self) -> Option<Best> {
        self.best
    }

    pub(crate) fn state(&self) -> Vec<(String, Tensor)> {
        self.kept.iter().map(|(name, t)| (format!("best.{name}"), t.shallow_clone())).collect()
    }

    /// What an earlier run knew; the best may be of the phase before, when all shared one adapter.
    pub(crate) fn load(&mut self, best: Option<Best>, model: &RewardModel, tensors: &mut Tensors) -> Result<()> {
        self.best = best;
        if best.is_some() {
            for p in model.parameters() {
                let name = format!("best.{}", p.name);
                let kept = tensors.by_name.remove(&name).ok_or_else(|| {
                    invalid(
                        tensors.place.clone(),
                        format!("the tensor `{name}`"),
                        "none",
                        "remove the stage's .partial folder and run again",
                    )
                })?;
                self.kept.push((p.name, kept));
            }
        }
        Ok(())
    }
}
