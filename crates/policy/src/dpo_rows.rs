//! The rows of DPO's pairs, what counts of their tokens, and the reference's log-probabilities of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use device::Checked;
use lm::{Bank, Lm, Prefix, RowCounts, RowSet, Tensor, TokenRow, answer_token_logp, forward};
use problem::Result;
use run::{Progress, Run};
use tch::no_grad;
use text::{Answer, Tokenizer};

use crate::{DpoConfig, Pair};

/// All distinct rows, and where each pair's two are.
pub(crate) struct Tokenised<'a> {
    pub(crate) rows: Vec<TokenRow>,
    pub(crate) kept: Vec<&'a Pair>,
    pub(crate) pairs: Vec<(usize, usize)>,
    pub(crate) counts: RowCounts,
    ld_alpha: f32,
}

impl<'a> Tokenised<'a> {
    pub(crate) fn new(config: &DpoConfig, tokenizer: &'a Tokenizer, pairs: &'a [Pair]) -> Result<Self> {
        let mut set = RowSet::new(tokenizer, config.max_row_tokens, config.over_long);
        let (mut kept, mut places) = (Vec::new(), Vec::new());
        for (n, pair) in pairs.iter().enumerate() {
            let mut index = |answer: &'a Answer| {
                let place = || format!("dpo, pair {} of user `{}`", n + 1, pair.user);
                set.index(&pair.prompt, &answer.text, answer.ending(), place)
            };
            let (chosen, rejected) = (index(&pair.chosen)?, index(&pair.rejected)?);
            if let Some(both) = chosen.zip(rejected) {
                kept.push(pair);
                places.push(both);
            }
        }
        let ld_alpha = config.ld_alpha.unwrap_or(1.0) as f32;
        Ok(Self { rows: set.rows, kept, pairs: places, counts: set.counts, ld_alpha })
    }

    /// Tokens of the pair's two answers.
    pub(crate) fn answer_tokens(&self, pair: usize) -> [usize; 2] {
        let (chosen, rejected) = self.pairs[pair];
        [chosen, rejected].map(|i| self.rows[i].answer_tokens())
    }

    /// Tokens of both rows.
    pub(crate) fn tokens(&self, pair: usize) -> usize {
        self.rows[self.pairs[pair].0].ids.len() + self.rows[self.pairs[pair].1].ids.len()
    }

    /// What each token of the pair's two answers counts: 1 up to the shorter one's length, `ld_alpha` behind it.
    pub(crate) fn weights(&self, pair: usize) -> [Vec<f32>; 2] {
        weights(self.answer_tokens(pair), self.ld_alpha)
    }
}

/// What each token of two answers of these lengths counts (Liu et al. 2024): 1 up to the shorter one's length, `ld_alpha` behind it.
pub(crate) fn weights(lengths: [usize; 2], ld_alpha: f32) -> [Vec<f32>; 2] {
    let shared = lengths[0].min(lengths[1]);
    lengths.map(|n| (0..n).map(|t| if t < shared { 1.0 } else { ld_alpha }).collect())
}

/// Log-probabilities of each pair's (chosen, rejected) under the base, or under its user's policy in `bank`. The base's lie beside the
/// stage's folder by content: whoever asks for the same rows of the same base again, reads them.
pub(crate) fn reference_logp(
    lm: &Lm,
    prefix: &Prefix,
    rows: &Tokenised,
    bank: Option<&Bank>,
    users: &[String],
    run: &Run,
) -> Result<Vec<[f32; 2]>> {
    let _phase = run::phase("log-probabilities of the reference");
    let mut bar = Progress::new("dpo: reference", rows.pairs.len(), 0);
    let mut out = vec![[0.0; 2]; rows.pairs.len()];
    let owners = if bank.is_some() { users.len() } else { 1 };
    let file = bank.is_none().then(|| cache_file(prefix, run));
    for (owner, user) in users.iter().enumerate().take(owners) {
        let own = |p: &usize| bank.is_none() || rows.kept[*p].user == *user;
        let pairs: Vec<usize> = (0..rows.pairs.len()).filter(own).collect();
        let mut needed: Vec<usize> = pairs.iter().flat_map(|p| [rows.pairs[*p].0, rows.pairs[*p].1]).collect();
        needed.sort_unstable();
        needed.dedup();
        let by_row = match &file {
            Some(file) if file.exists() => read(file, prefix, &needed)?,
            _ => {
                let by_row = compute(lm, prefix, &needed, bank.map(|b| (b, owner)))?;
                if let Some(file) = &file {
                    write(file, &needed, &by_row)?;
                }
                by_row
            }
        };
        for p in &pairs {
            let (chosen, rejected) = rows.pairs[*p];
            let [of_chosen, of_rejected] = rows.weights(*p);
            let sum = |row: usize, weights: &[f32]| by_row[&row].iter().zip(weights).map(|(l, w)| l * w).sum();
            out[*p] = [sum(chosen, &of_chosen), sum(rejected, &of_rejected)];
        }
        bar.advance(pairs.len(), "");
    }
    Ok(out)
}

type ByRow = HashMap<usize, Vec<f32>>;

fn compute(lm: &Lm, prefix: &Prefix, needed: &[usize], adapter: Option<(&Bank, usize)>) -> Result<ByRow> {
    let mut by_row = HashMap::new();
    for groups in prefix.passes(needed) {
        let batch = prefix.batch(lm, &groups);
        let factors = adapter.map(|(bank, owner)| bank.rows(&vec![owner; groups.len()], batch.lengths()));
        let logp = no_grad(|| answer_token_logp(lm, &batch, &forward(lm, &batch, factors.as_ref()), 1.0));
        let mut logp = Vec::<f32>::try_from(logp).checked()?.into_iter();
        for (row, tokens) in groups.into_iter().flatten().zip(batch.answer_lengths()) {
            by_row.insert(row, logp.by_ref().take(tokens).collect());
        }
    }
    Ok(by_row)
}

/// Named by the base, the machine's arithmetic and the rows.
fn cache_file(prefix: &Prefix, run: &Run) -> PathBuf {
    let mut content = format!("{:?} {:?}", run.identity().inputs.get("base"), run.environment());
    for row in prefix.rows() {
        content += &format!(" {} {:?}", row.answer_start, row.ids);
    }
    run.beside("reference-logps").join(format!("{}.safetensors", run::hash_bytes(content.as_bytes())))
}

fn write(file: &Path, needed: &[usize], by_row: &ByRow) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let flat: Vec<f32> = needed.iter().flat_map(|row| by_row[row].iter().copied()).collect();
    lm::write_tensors(file, &[("logp".into(), Tensor::from_slice(&flat))], None)
}

fn read(file: &Path, prefix: &Prefix, needed: &[usize]) -> Result<ByRow> {
    let lengths: Vec<usize> = needed.iter().map(|row| prefix.rows()[*row].answer_tokens()).collect();
    let mut tensors = lm::read_tensors(file, tch::Device::Cpu, None)?;
    let flat = tensors.take("logp", &[lengths.iter().sum::<usize>() as i64])?;
    let mut flat = Vec::<f32>::try_from(flat).checked()?.into_iter();
    Ok(needed.iter().zip(lengths).map(|(row, n)| (*row, flat.by_ref().take(n).collect())).collect())
}
