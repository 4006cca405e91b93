//! The reference's log-probabilities of DPO's pairs: what margins are measured against.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use device::Checked;
use lm::{Bank, Lm, Place, Prefix, Tensor, UserIndex, answer_token_logp, forward};
use problem::Result;
use run::{Progress, Run};
use tch::no_grad;

use crate::dpo::config::DpoConfig;
use crate::dpo::rows::Planned;
use crate::maths::pair_losses::PairLoss;

/// Log-probabilities of each planned pair's (chosen, rejected), nats, under what the policies start as: the base, or the policies in `bank`. Computed
/// once; a resumed run reads them back. SimPO has no reference.
///
/// # Errors
/// A disk without room, or a damaged file.
pub(crate) fn reference(
    config: &DpoConfig,
    lm: &Lm,
    prefix: &Prefix,
    planned: &Planned,
    bank: Option<&Bank>,
    run: &mut Run,
) -> Result<Vec<[f32; 2]>> {
    if let Some(saved) = run.finished_part("reference-logp")? {
        return Ok(saved);
    }
    if matches!(config.loss, PairLoss::Simpo { .. }) || planned.pairs.is_empty() {
        return Ok(vec![[0.0; 2]; planned.pairs.len()]);
    }
    let found = {
        let _phase = run::phase("log-probabilities of the reference");
        match bank {
            None => of_base(lm, prefix, planned, run)?,
            Some(bank) => of_policies(lm, prefix, planned, bank)?,
        }
    };
    run.save_part("reference-logp", found)
}

/// The base's lie beside the stage's folder by content: whoever asks for the same rows of the same base again, reads them. A row that several
/// users have is computed once.
fn of_base(lm: &Lm, prefix: &Prefix, planned: &Planned, run: &Run) -> Result<Vec<[f32; 2]>> {
    let mut bar = Progress::new("dpo: reference", planned.pairs.len(), 0);
    let all: Vec<usize> = (0..planned.rows.len()).collect();
    let file = cache_file(prefix, run);
    let by_row = if file.exists() {
        read(&file, prefix, &all)?
    } else {
        let by_row = compute(lm, prefix, &all, None)?;
        write(&file, &all, &by_row)?;
        by_row
    };
    bar.advance(planned.pairs.len(), "");
    Ok((0..planned.pairs.len()).map(|pair| sums(planned, pair, &by_row)).collect())
}

fn of_policies(lm: &Lm, prefix: &Prefix, planned: &Planned, bank: &Bank) -> Result<Vec<[f32; 2]>> {
    let mut bar = Progress::new("dpo: reference", planned.pairs.len(), 0);
    let mut out = vec![[0.0; 2]; planned.pairs.len()];
    for (user, plan) in UserIndex::all(planned.plans.len()).zip(&planned.plans) {
        let mut pairs: Vec<usize> = plan.batches.concat();
        pairs.sort_unstable();
        pairs.dedup(); // once for all epochs
        let rows = |pair: &usize| [planned.pairs[*pair].rows.0, planned.pairs[*pair].rows.1];
        let mut needed: Vec<usize> = pairs.iter().flat_map(rows).collect();
        needed.sort_unstable();
        needed.dedup();
        let by_row = compute(lm, prefix, &needed, Some((bank, user.in_whole_bank())))?;
        pairs.iter().for_each(|pair| out[*pair] = sums(planned, *pair, &by_row));
        bar.advance(pairs.len(), "");
    }
    Ok(out)
}

fn sums(planned: &Planned, pair: usize, by_row: &ByRow) -> [f32; 2] {
    let (chosen, rejected) = planned.pairs[pair].rows;
    let [of_chosen, of_rejected] = planned.weights(pair);
    let sum = |row: usize, weights: &[f32]| by_row[&row].iter().zip(weights).map(|(l, w)| l * w).sum();
    [sum(chosen, &of_chosen), sum(rejected, &of_rejected)]
}

/// Log-probabilities of each response token, by row.
type ByRow = HashMap<usize, Vec<f32>>;

fn compute(lm: &Lm, prefix: &Prefix, needed: &[usize], adapter: Option<(&Bank, Place)>) -> Result<ByRow> {
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

/// Raised whenever the code changes what the log-probabilities in a file mean.
const FORMAT: u32 = 1;

/// Named by its format, the base, the machine's arithmetic and the rows.
fn cache_file(prefix: &Prefix, run: &Run) -> PathBuf {
    let mut content = format!("{FORMAT} {:?} {:?}", run.identity().inputs.get("base"), run.environment());
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
