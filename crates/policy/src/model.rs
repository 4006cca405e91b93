//! Trained policies: a bank with a user's factors each, and its file.

use std::collections::HashMap;
use std::path::Path;

use lm::{Bank, BankConfig, Lm, LoraConfig, Middle, Prefix, Quarantine, Sharing, Storage, TokenRow, UserIndex};
use problem::{Result, invalid};
use run::{Progress, Run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings::some_of;

/// All users' policies on one base.
#[derive(Debug)]
pub struct Policies {
    /// The factors.
    pub bank: Bank,
    /// User ids; a user's index is the position here.
    pub users: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    bank: BankConfig,
    users: Vec<String>,
}

const HEADER: &str = "idiolect.policies";

impl Policies {
    /// The policies with which the training of `users` ends: those of all who are not in quarantine.
    ///
    /// # Errors
    /// All of them are in quarantine; see [`Quarantine::survivors`].
    pub(crate) fn of_survivors(stage: &str, bank: &Bank, users: &[String], quarantine: &Quarantine) -> Result<Self> {
        let survivors = quarantine.survivors(stage, users)?;
        let names = survivors.iter().map(|user| users[user.0].clone()).collect();
        Ok(Self { bank: bank.present(&survivors), users: names })
    }

    /// Writes `policies.safetensors`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let header = Header { bank: self.bank.config().clone(), users: self.users.clone() };
        let header = serde_json::to_string(&header).expect("plain data");
        lm::write_tensors(path, &self.bank.named(), Some((HEADER, header)))
    }

    /// Reads what [`Self::write`] wrote, strictly.
    pub fn read(path: &Path, lm: &Lm) -> Result<Self> {
        let mut tensors = lm::read_tensors(path, lm.device, None)?;
        let header = tensors.metadata.get(HEADER).and_then(|text| serde_json::from_str::<Header>(text).ok());
        let Header { bank, users } = header.ok_or_else(|| {
            invalid(
                path.display().to_string(),
                format!("a header `{HEADER}`"),
                "none",
                "point at a policies.safetensors that the dpo stage wrote",
            )
        })?;
        let bank = Bank::take(&bank, lm, &mut tensors)?;
        tensors.refuse_rest()?;
        Ok(Self { bank, users })
    }
}

/// Which halves of an adapter are a user's own; the other one is trained by all users together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Personal {
    /// Both: users share the base and nothing else.
    #[default]
    Both,
    /// The down-projection, as in P-ShareLoRA's reward models.
    Down,
    /// The up-projection.
    Up,
}

impl Personal {
    fn halves(self) -> (Sharing, Sharing) {
        match self {
            Self::Both => (Sharing::Personal, Sharing::Personal),
            Self::Down => (Sharing::Personal, Sharing::Shared),
            Self::Up => (Sharing::Shared, Sharing::Personal),
        }
    }
}

/// Where policies start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// As the base.
    Base,
    /// As the per-user policies of the stage `sft`.
    Sft,
}

/// The bank that training starts with: as the base, or as `start`, whose factors must have the same shape. Users who are not among those of `start`
/// begin as the base and are named: whoever was in quarantine there has nothing to go on from.
///
/// # Errors
/// Another shape, or no policy of any of these users.
pub(crate) fn starting_bank(
    stage: &str,
    (lora, personal): (&LoraConfig, Personal),
    lm: &Lm,
    users: &[String],
    start: Option<Policies>,
    run: &Run,
) -> Result<(Bank, Vec<UserIndex>)> {
    let (down, up) = personal.halves();
    let shape = BankConfig { lora: lora.clone(), down, up, middle: Middle::None, users: users.len() };
    let fresh = |shape: &BankConfig, names: &[String]| {
        Bank::new(shape, lm, names, &Storage::memory(), |name| run.rng(&["init", name]))
    };
    let Some(Policies { bank, users: theirs }) = start else {
        return Ok((fresh(&shape, users)?, vec![]));
    };
    let known: HashMap<&String, usize> = theirs.iter().enumerate().map(|(their, user)| (user, their)).collect();
    let missing: Vec<UserIndex> =
        UserIndex::all(users.len()).filter(|user| !known.contains_key(&users[user.0])).collect();
    let same_shape = *bank.config() == BankConfig { users: theirs.len(), ..shape.clone() };
    // Policies of others, such as users in quarantine since, are left out.
    if !same_shape || missing.len() == users.len() {
        return Err(invalid(
            format!("{stage}, the policies to start from"),
            format!("users {} and factors like {shape:?}", some_of(users)),
            format!("users {} and {:?}", some_of(&theirs), bank.config()),
            format!(
                "give the stages `sft` and `{stage}` the same `lora` table and the same users, and leave out `personal`"
            ),
        ));
    }
    if theirs == users {
        return Ok((bank, missing));
    }
    let names: Vec<String> = missing.iter().map(|user| users[user.0].clone()).collect();
    let mut order = vec![0; users.len()];
    for (user, name) in users.iter().enumerate() {
        order[user] = known.get(name).copied().unwrap_or_default();
    }
    missing.iter().enumerate().for_each(|(n, user)| order[user.0] = theirs.len() + n);
    if missing.is_empty() {
        let theirs: Vec<UserIndex> = order.into_iter().map(UserIndex).collect();
        return Ok((bank.present(&theirs), missing));
    }
    let others = fresh(&BankConfig { users: missing.len(), ..shape }, &names)?;
    Ok((bank.joined(&others, &order, &Storage::memory())?, missing))
}

/// Why a user whom [`starting_bank`] names is not trained.
pub(crate) const NO_START: &str = "the stage `sft` gave no policy to start from";

/// Hidden states of `rows` below the first adapted block, which training does not change: computed once.
///
/// # Errors
/// Those of [`Prefix::new`].
pub(crate) fn frozen_blocks(stage: &str, lm: &Lm, bank: &Bank, rows: Vec<TokenRow>) -> Result<Prefix> {
    let _phase = run::phase("frozen blocks");
    let mut bar = Progress::new(&format!("{stage}: frozen blocks"), rows.len(), 0);
    Prefix::new(lm, rows, bank.first_block()..lm.depth(), |n| bar.advance(n, ""))
}
