//! Trained policies: a bank with a user's factors each, and its file.

use std::collections::BTreeMap;
use std::path::Path;

use lm::{Bank, BankConfig, Lm, LoraConfig, Middle, Sharing, Storage};
use problem::{Problem, Result, invalid};
use run::Run;
use serde::{Deserialize, Serialize};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// The learning rate of a shared half: the mean of those of the users in the step.
pub(crate) fn shared_rate(rates: &[(usize, f64)]) -> f64 {
    rates.iter().map(|(_, rate)| rate).sum::<f64>() / rates.len().max(1) as f64
}

/// Every user is in quarantine: nothing to write.
pub(crate) fn nobody_left(stage: &str, quarantined: &BTreeMap<String, String>) -> Problem {
    let first = quarantined.iter().next().map_or(String::new(), |(user, why)| format!("`{user}`: {why}"));
    invalid(
        format!("{stage}, {} users", quarantined.len()),
        "one whose training goes well",
        format!("all in quarantine, such as {first}"),
        "lower `learning_rate`, train in float32 (`--dtype float32`), or give them pairs or a wider limit",
    )
}

/// The bank that training starts with: as the base, or as `start`, which must have the same users and shape.
pub(crate) fn starting_bank(
    stage: &str,
    lora: &LoraConfig,
    personal: Personal,
    lm: &Lm,
    users: &[String],
    start: Option<Policies>,
    run: &Run,
) -> Result<Bank> {
    let (down, up) = personal.halves();
    let shape = BankConfig { lora: lora.clone(), down, up, middle: Middle::None, users: users.len() };
    match start {
        None => Ok(Bank::new(&shape, lm, users, &Storage::memory(), |name| run.rng(&["init", name]))?),
        Some(Policies { bank, users: theirs }) if theirs == users && *bank.config() == shape => Ok(bank),
        Some(Policies { bank, users: theirs }) => Err(invalid(
            format!("{stage}, the policies to start from"),
            format!("users {} and factors like {shape:?}", users.join(", ")),
            format!("users {} and {:?}", theirs.join(", "), bank.config()),
            format!(
                "give the stages `sft` and `{stage}` the same `lora` table and the same users, and leave out `personal`"
            ),
        )),
    }
}
