//! A fitted reward model: bank, head, voters' habits, users, and its file.

use std::collections::HashMap;
use std::path::Path;

use lm::{
    Bank, BankConfig, Lm, Owners, Parameter, Place, Pooling, Prefix, ScalarHead, Sharing, Storage, Tensor, TokenRow,
    UserIndex,
};
use problem::{Result, invalid};
use serde::{Deserialize, Serialize};

use crate::habits::{Habits, HabitsShape, LAPSE, TIE};
use crate::objective::decided_probability;

/// Personal rewards on a frozen base.
#[derive(Debug)]
pub struct RewardModel {
    /// All users' factors.
    pub bank: Bank,
    /// The scalar head.
    pub head: ScalarHead,
    /// Which hidden states the head reads.
    pub pooling: Pooling,
    /// Behind how many blocks the head reads.
    pub depth: usize,
    /// User ids; a user's index is the position here.
    pub users: Vec<String>,
    pub(crate) habits: Habits,
    /// Rows whose scores were stored with the model.
    pub(crate) probes: Vec<Probe>,
}

/// A row with the scores that its users gave it when the model was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probe {
    ids: Vec<i64>,
    answer_start: usize,
    user: UserIndex,
    score: f32,
}

/// The one metadata entry of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    bank: BankConfig,
    head: Sharing,
    /// Reward features of the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    features: Option<i64>,
    habits: HabitsShape,
    pooling: Pooling,
    depth: usize,
    /// Type of the base when the probes were scored.
    dtype: String,
    probes: Vec<Probe>,
    users: Vec<String>,
}

const HEADER: &str = "idiolect.reward";
const FORMAT: u32 = 2;

/// Rows that a file is probed with when it is read, at most.
const PROBE_ROWS: usize = 16;

impl RewardModel {
    /// Hidden states below the first adapted block, of rows that this model is to score.
    ///
    /// # Errors
    /// A file of kept states that cannot be written, or is damaged.
    pub fn prefix(&self, lm: &Lm, rows: Vec<TokenRow>, progress: impl FnMut(usize)) -> Result<Prefix> {
        Prefix::new(lm, rows, self.bank.first_block()..self.depth, progress)
    }

    /// One user's rewards of the rows `rows` of a [`Self::prefix`].
    pub fn score(&self, lm: &Lm, prefix: &Prefix, rows: &[usize], user: UserIndex) -> Vec<f32> {
        let place = user.in_whole_bank();
        let mut scores = HashMap::new();
        for groups in prefix.passes(rows) {
            let batch = prefix.batch(lm, &groups);
            let factors = self.bank.rows(&vec![place; groups.len()], batch.lengths());
            let values = tch::no_grad(|| {
                let hidden = lm::forward(lm, &batch, Some(&factors));
                let hidden = lm::pooled_hidden(lm, &batch, &hidden, self.pooling);
                self.head.score(&hidden, &vec![place; hidden.size()[0] as usize])
            });
            let values = Vec::<f32>::try_from(values).expect("one reward a row");
            scores.extend(groups.into_iter().flatten().zip(values));
        }
        rows.iter().map(|row| scores[row]).collect()
    }

    /// The margin within which people call a tie (Rao and Kupper 1967), the mean over its owners; 0 where the model does not say.
    pub fn tie_width(&self) -> f64 {
        match (&self.habits.tie, self.habits.shape.ties) {
            (Some(raw), crate::Ties::RaoKupper) => raw.detach().softplus().mean(tch::Kind::Double).double_value(&[]),
            _ => 0.0,
        }
    }

    /// A user's weights on what the head reads, `[E]` or `[d]`.
    pub fn taste(&self, user: UserIndex) -> Vec<f32> {
        let row = if self.head.sharing() == Sharing::Personal { user.0 as i64 } else { 0 };
        Vec::try_from(self.head.weight.detach().get(row)).expect("a vector of float32")
    }

    /// Reward features `[d]` of the rows `rows` of a [`Self::prefix`]; none if the head has none.
    pub fn features(&self, lm: &Lm, prefix: &Prefix, rows: &[usize]) -> Option<Vec<Vec<f32>>> {
        self.head.features.as_ref()?;
        let mut found: HashMap<usize, Vec<f32>> = HashMap::new();
        for groups in prefix.passes(rows) {
            let batch = prefix.batch(lm, &groups);
            let factors = self.bank.rows(&vec![Place(0); groups.len()], batch.lengths()); // shared by all
            let hidden =
                tch::no_grad(|| lm::pooled_hidden(lm, &batch, &lm::forward(lm, &batch, Some(&factors)), self.pooling));
            let read = self.head.read(&hidden)?;
            for (number, row) in groups.into_iter().flatten().enumerate() {
                found.insert(row, Vec::try_from(read.get(number as i64)).expect("a vector of float32"));
            }
        }
        Some(rows.iter().map(|row| found[row].clone()).collect())
    }

    /// Is nothing personal but users' habits?
    pub fn is_shared(&self) -> bool {
        let bank = self.bank.config();
        let middle =
            matches!(bank.middle, lm::Middle::Kernel(Sharing::Personal) | lm::Middle::Scale(Sharing::Personal));
        bank.down == Sharing::Shared && bank.up == Sharing::Shared && !middle && self.head.sharing() == Sharing::Shared
    }

    /// P(the first is better | the user decides), of a user's two rewards.
    pub fn probability(&self, first: f32, second: f32, user: UserIndex) -> f64 {
        decided_probability(f64::from(first) - f64::from(second), self.habits.shape.ties, self.habits.tie_of(user))
    }

    /// A model of some users alone: what is their own as leaves of their own, and the very tensors that all share.
    pub(crate) fn present(&self, users: &[UserIndex]) -> Self {
        Self {
            bank: self.bank.present(users),
            head: self.head.present(users),
            habits: self.habits.present(users),
            pooling: self.pooling,
            depth: self.depth,
            users: users.iter().map(|u| self.users[u.0].clone()).collect(),
            probes: vec![],
        }
    }

    /// The same function for every user, from a model that is shared throughout.
    pub(crate) fn personalised(&self, owners: Owners, head: Sharing, storage: &Storage) -> Result<Self> {
        let users = self.users.len();
        let personal = head == Sharing::Personal;
        Ok(Self {
            bank: self.bank.personalised(owners, users, storage)?,
            head: if personal { self.head.personalised(users, storage)? } else { self.head.copy() },
            habits: self.habits.personalised(head, users),
            pooling: self.pooling,
            depth: self.depth,
            users: self.users.clone(),
            probes: vec![],
        })
    }

    /// A model of other users who all start from the mean of those here; what is shared is copied.
    pub(crate) fn of_mean(&self, names: &[String], storage: &Storage) -> Result<Self> {
        Ok(Self {
            bank: self.bank.of_mean(names.len(), storage)?,
            head: self.head.of_mean(names.len(), storage)?,
            habits: self.habits.of_mean(names.len()),
            pooling: self.pooling,
            depth: self.depth,
            users: names.to_vec(),
            probes: vec![],
        })
    }

    /// The users of both, in the order in which `order` counts them: ours first, then the other's.
    pub(crate) fn joined(&self, other: &Self, order: &[usize], users: Vec<String>, storage: &Storage) -> Result<Self> {
        Ok(Self {
            bank: self.bank.joined(&other.bank, order, storage)?,
            head: self.head.joined(&other.head, order, storage)?,
            habits: self.habits.joined(&other.habits, order),
            pooling: self.pooling,
            depth: self.depth,
            users,
            // Ours score as they did, under another number; what somebody scored who is not there any more says nothing.
            probes: self
                .probes
                .iter()
                .filter_map(|p| {
                    Some(Probe { user: UserIndex(order.iter().position(|u| *u == p.user.0)?), ..p.clone() })
                })
                .collect(),
        })
    }

    /// The model of `users` alone, where others are in quarantine.
    pub(crate) fn only(self, users: &[UserIndex], storage: &Storage) -> Result<Self> {
        if users.len() == self.users.len() {
            return Ok(self);
        }
        let names = users.iter().map(|u| self.users[u.0].clone()).collect();
        let order: Vec<usize> = users.iter().map(|u| u.0).collect();
        self.joined(&self, &order, names, storage)
    }

    /// Everything that can be trained: the bank's factors, the head, the habits.
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let mut all = self.bank.parameters();
        all.extend(self.head.parameters());
        all.extend(self.habits.parameters());
        all
    }

    /// Stores the scores of some rows with the model, for whoever reads it. Users take turns.
    pub fn with_probes(mut self, lm: &Lm, prefix: &Prefix) -> Self {
        let step = prefix.rows().len().div_ceil(PROBE_ROWS).max(1);
        let rows: Vec<usize> = (0..prefix.rows().len()).step_by(step).collect();
        let mut probes = Vec::new();
        for (n, row) in rows.into_iter().enumerate() {
            let user = UserIndex(n % self.users.len());
            let score = self.score(lm, prefix, &[row], user)[0];
            let TokenRow { ids, answer_start } = prefix.rows()[row].clone();
            probes.push(Probe { ids, answer_start, user, score });
        }
        self.probes = probes;
        self
    }

    /// Writes `reward.safetensors`: factors by layer path, `score.weight`, `ties`, `lapse`; shape, users and probes in the
    /// header. The same model gives the same bytes.
    pub fn write(&self, path: &Path, lm: &Lm) -> Result<()> {
        let header = Header {
            format: FORMAT,
            bank: self.bank.config().clone(),
            head: self.head.sharing(),
            features: self.head.features.as_ref().map(|f| f.size()[0]),
            habits: self.habits.shape,
            pooling: self.pooling,
            depth: self.depth,
            dtype: format!("{:?}", lm.kind),
            probes: self.probes.clone(),
            users: self.users.clone(),
        };
        let tensors: Vec<(String, Tensor)> = self.parameters().into_iter().map(|p| (p.name, p.tensor)).collect();
        let header = serde_json::to_string(&header).expect("plain data");
        lm::write_tensors(path, &tensors, Some((HEADER, header)))
    }

    /// Reads what [`Self::write`] wrote, strictly, for the base `lm`, and scores the stored probes again.
    ///
    /// # Errors
    /// Another format; missing, misshapen or left-over tensors; a base on which the probes' scores come out otherwise.
    pub fn read(path: &Path, lm: &Lm) -> Result<Self> {
        // On the CPU a model of many users is read as far as its users are asked for.
        let mut tensors = match lm.device {
            tch::Device::Cpu => lm::map_tensors(path)?,
            device => lm::read_tensors(path, device, None)?,
        };
        let header = tensors.metadata.get(HEADER).map(|text| serde_json::from_str::<Header>(text));
        let wrong =
            |expected: String, found: String, hint: &str| invalid(path.display().to_string(), expected, found, hint);
        let again = "point at a reward.safetensors that this version's reward stage wrote";
        let Some(Ok(header)) = header else {
            let found = header.and_then(std::result::Result::err).map_or("none".into(), |e| e.to_string());
            return Err(wrong(format!("a header `{HEADER}`"), found, again));
        };
        if header.format != FORMAT {
            return Err(wrong(format!("format {FORMAT}"), header.format.to_string(), again));
        }
        if header.depth > lm.depth() {
            let hint = "the model belongs to another base";
            return Err(wrong(format!("a base of {} blocks", header.depth), lm.depth().to_string(), hint));
        }
        let bank = Bank::take(&header.bank, lm, &mut tensors)?;
        let count = |sharing| if sharing == Sharing::Personal { header.users.len() as i64 } else { 1 };
        let (owners, width) = (count(header.head), lm.shape.hidden_size);
        let head = match header.features {
            None => ScalarHead::from_weight(&tensors.take(ScalarHead::NAME, &[owners, width])?, header.head),
            Some(d) => ScalarHead::from_weight(&tensors.take(ScalarHead::TASTES, &[owners, d])?, header.head)
                .over(&tensors.take(ScalarHead::FEATURES, &[d, width])?.to_device(lm.device)),
        };
        let mut habit = |name: &str, there: bool, owners: i64| -> Result<Option<Tensor>> {
            let leaf = |t: Tensor| t.to_device(lm.device).set_requires_grad(true);
            there.then(|| tensors.take(name, &[owners]).map(leaf)).transpose()
        };
        let HabitsShape { ties, sharing, lapse } = header.habits;
        let tie = habit(TIE, ties != crate::Ties::LeaveOut, count(sharing))?;
        let lapse = habit(LAPSE, matches!(lapse, crate::Lapse::PerUser { .. }), header.users.len() as i64)?;
        tensors.refuse_rest()?;
        let model = Self {
            bank,
            head,
            habits: Habits { shape: header.habits, tie, lapse },
            pooling: header.pooling,
            depth: header.depth,
            users: header.users,
            probes: header.probes,
        };
        if let Some((distance, tolerance)) = model.probe(lm, &header.dtype)? {
            return Err(wrong(
                format!("the {} stored scores again, within {tolerance:.1e}", model.probes.len()),
                format!("a difference of {distance:.1e}"),
                "is this the base that the model was fitted on?",
            ));
        }
        Ok(model)
    }

    /// The largest difference from a stored score, and what is allowed, if it is more than that.
    fn probe(&self, lm: &Lm, dtype: &str) -> Result<Option<(f64, f64)>> {
        if self.probes.is_empty() {
            return Ok(None);
        }
        let row = |p: &Probe| TokenRow { ids: p.ids.clone(), answer_start: p.answer_start };
        let prefix = self.prefix(lm, self.probes.iter().map(row).collect(), |_| ())?;
        let scores: Vec<f32> =
            self.probes.iter().enumerate().map(|(i, p)| self.score(lm, &prefix, &[i], p.user)[0]).collect();
        let stored = self.probes.iter().map(|p| p.score);
        let spread = stored.clone().fold(0f32, |a, s| a.max(s.abs())).max(1e-3);
        let distance = scores.iter().zip(stored).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        // Another machine or thread count rounds otherwise; another type of the base much more so.
        let share = if dtype == "Float" && lm.kind == tch::Kind::Float { 1e-3 } else { 5e-2 };
        let tolerance = f64::from(spread) * share;
        Ok((f64::from(distance) > tolerance || distance.is_nan()).then_some((f64::from(distance), tolerance)))
    }
}
