//! What learns: policies and critics with their optimizers; and the reference, which does not.

use lm::{AdamW, Bank, BankConfig, Lm, Middle, ScalarHead, Sharing, Storage, Tensor, UserIndex};
use problem::Result;
use run::Run;
use tch::Kind;

use crate::model::{Policies, starting_bank};
use crate::ppo::config::PpoConfig;
use crate::ppo::passes::Critic;

/// The adapters of all users, and what trains them.
#[derive(Debug)]
pub(crate) struct Models {
    /// The policies.
    pub(crate) bank: Bank,
    pub(crate) adam: AdamW,
    /// The policies as they started; none if that is the base.
    pub(crate) reference: Option<Bank>,
    /// Critics, if the method has some.
    pub(crate) critic: Option<(Critic, AdamW)>,
    /// Users without a policy to start from.
    pub(crate) without: Vec<UserIndex>,
}

impl Models {
    /// Before the first round.
    ///
    /// # Errors
    /// Policies to start from that do not fit.
    pub(crate) fn new(
        config: &PpoConfig,
        lm: &Lm,
        users: &[String],
        start: Option<Policies>,
        run: &Run,
    ) -> Result<Self> {
        let started = start.is_some();
        let (bank, without) = starting_bank("ppo", (&config.lora, config.personal), lm, users, start, run)?;
        let reference = started.then(|| bank.present(&UserIndex::all(users.len()).collect::<Vec<_>>()));
        let count = users.len().try_into().expect("at least one user");
        let adam = AdamW::new(config.optimizer.clone(), bank.parameters(), count, &Storage::memory())?;
        let critic = config.critic().map(|settings| -> Result<(Critic, AdamW)> {
            let critic = new_critic(config, lm, users, run)?;
            let parameters = critic.bank.parameters().into_iter().chain(critic.head.parameters()).collect();
            let adam = AdamW::new(settings.optimizer.clone(), parameters, count, &Storage::memory())?;
            Ok((critic, adam))
        });
        Ok(Self { bank, adam, reference, critic: critic.transpose()?, without })
    }

    /// The optimizers by the names of their parts in a checkpoint.
    pub(crate) fn optimizers(&self) -> Vec<(&'static str, &AdamW)> {
        let critic = self.critic.as_ref().map(|(_, adam)| ("critic", adam));
        std::iter::once(("policy", &self.adam)).chain(critic).collect()
    }

    /// The same, to be read back.
    pub(crate) fn optimizers_mut(&mut self) -> Vec<(&'static str, &mut AdamW)> {
        let critic = self.critic.as_mut().map(|(_, adam)| ("critic", adam));
        std::iter::once(("policy", &mut self.adam)).chain(critic).collect()
    }
}

/// Critics whose adapters change nothing yet and whose heads are zero: they expect nothing.
fn new_critic(config: &PpoConfig, lm: &Lm, users: &[String], run: &Run) -> Result<Critic> {
    let (down, up) = (Sharing::Personal, Sharing::Personal);
    let shape = BankConfig { lora: config.lora.clone(), down, up, middle: Middle::None, users: users.len() };
    let bank = Bank::new(&shape, lm, users, &Storage::memory(), |name| run.rng(&["critic", name]))?;
    let zero = Tensor::zeros([users.len() as i64, lm.shape.hidden_size], (Kind::Float, lm.device));
    Ok(Critic { bank, head: ScalarHead::from_weight(&zero, Sharing::Personal) })
}
