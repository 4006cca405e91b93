//! Trained policies: a bank with a user's factors each, and its file.

use std::path::Path;

use lm::{Bank, BankConfig, Lm};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

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
        Ok(lm::write_tensors(path, &self.bank.named(), Some((HEADER, header)))?)
    }

    /// Reads what [`Self::write`] wrote, strictly.
    pub fn read(path: &Path, lm: &Lm) -> Result<Self> {
        let mut tensors = lm::read_tensors(path, lm.device, None)?;
        let header = tensors.metadata.get(HEADER).and_then(|text| serde_json::from_str::<Header>(text).ok());
        let Header { bank, users } = header.ok_or_else(|| Error::Invalid {
            place: path.display().to_string(),
            expected: format!("a header `{HEADER}`"),
            found: "none".into(),
            hint: "point at a policies.safetensors that the dpo stage wrote".into(),
        })?;
        let bank = Bank::take(&bank, lm, &mut tensors)?;
        tensors.refuse_rest()?;
        Ok(Self { bank, users })
    }
}
