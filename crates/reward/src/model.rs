//! A fitted reward model: bank, head, users, and its file.

use std::collections::HashMap;
use std::path::Path;

use lm::{Bank, BankConfig, Lm, Pooling, Prefix, ScalarHead, Sharing};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Personal rewards on a frozen base.
#[derive(Debug)]
pub struct RewardModel {
    /// All users' factors.
    pub bank: Bank,
    /// The scalar head.
    pub head: ScalarHead,
    /// Which hidden states the head reads.
    pub pooling: Pooling,
    /// User ids; a user's index is the position here.
    pub users: Vec<String>,
}

/// The one metadata entry of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    bank: BankConfig,
    head: Sharing,
    pooling: Pooling,
    users: Vec<String>,
}

const HEADER: &str = "idiolect.reward";

impl RewardModel {
    /// One user's rewards of the rows `rows` of a prefix that was computed below this model's first adapted block.
    pub fn score(&self, lm: &Lm, prefix: &Prefix, rows: &[usize], user: usize) -> Vec<f32> {
        let mut scores = HashMap::new();
        for groups in prefix.passes(rows) {
            let batch = prefix.batch(lm, &groups);
            let factors = self.bank.rows(&vec![user; groups.len()], batch.lengths());
            let values = tch::no_grad(|| {
                let hidden = lm::forward(lm, &batch, Some(&factors));
                let hidden = lm::pooled_hidden(lm, &batch, &hidden, self.pooling);
                self.head.score(&hidden, &vec![user; hidden.size()[0] as usize])
            });
            let values = Vec::<f32>::try_from(values).expect("one reward a row");
            scores.extend(groups.into_iter().flatten().zip(values));
        }
        rows.iter().map(|row| scores[row]).collect()
    }

    /// Writes `reward.safetensors`: factors by layer path, `score.weight`, shape and users in the header.
    pub fn write(&self, path: &Path) -> Result<()> {
        let header = Header {
            bank: self.bank.config().clone(),
            head: self.head.sharing(),
            pooling: self.pooling,
            users: self.users.clone(),
        };
        let mut tensors = self.bank.named();
        tensors.push((ScalarHead::NAME.into(), self.head.weight.shallow_clone()));
        let header = serde_json::to_string(&header).expect("plain data");
        lm::write_tensors(path, &tensors, Some((HEADER, header)))
    }

    /// Reads what [`Self::write`] wrote, strictly, for the base `lm`.
    pub fn read(path: &Path, lm: &Lm) -> Result<Self> {
        let mut tensors = lm::read_tensors(path, lm.device, None)?;
        let header = tensors.metadata.get(HEADER).map(|text| serde_json::from_str::<Header>(text));
        let Some(Ok(header)) = header else {
            return Err(Error::Invalid {
                place: path.display().to_string(),
                expected: format!("a header `{HEADER}`"),
                found: header.and_then(std::result::Result::err).map_or("none".into(), |e| e.to_string()),
                hint: "point at a reward.safetensors that the reward stage wrote".into(),
            });
        };
        let bank = Bank::take(&header.bank, lm, &mut tensors)?;
        let owners = if header.head == Sharing::Personal { header.users.len() as i64 } else { 1 };
        let weight = tensors.take(ScalarHead::NAME, &[owners, lm.shape.hidden_size])?;
        tensors.refuse_rest()?;
        Ok(Self {
            bank,
            head: ScalarHead::from_weight(&weight, header.head),
            pooling: header.pooling,
            users: header.users,
        })
    }
}
