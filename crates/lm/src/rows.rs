//! Token rows, batches of them, and the frozen part of the network, which is run once for every distinct text.

use std::collections::HashMap;
use std::num::NonZero;
use std::ops::Range;
use std::path::Path;

use problem::Result;
use rand::Rng;
use rand::seq::SliceRandom;
use tch::{Tensor, no_grad};

use crate::Lm;
use crate::layout::{Layout, Tree};
use crate::token_row::TokenRow;
use crate::weights::{map_tensors, write_tensors};

/// Tokens of one forward pass without gradients.
const PASS_TOKENS: usize = 4096;

/// Hidden states of distinct rows right below the first adapted block: nothing that training changes reaches them, so
/// they are computed once, and what rows of one prompt share, once for all of them.
#[derive(Debug)]
pub struct Prefix {
    rows: Vec<TokenRow>,
    stored: Vec<Stored>,
    blocks: Range<usize>,
}

/// Where a row's hidden states are.
#[derive(Debug)]
struct Stored {
    hidden: Tensor, // [tokens of its tree, E], shared by the tree's rows
    places: Vec<i64>,
}

/// Rows that are computed together. Those of a group share one adapter, and what they begin with.
#[derive(Debug)]
pub struct Batch {
    /// Hidden states below the first adapted block, `[N, E]`.
    pub(crate) x: Tensor,
    pub(crate) layout: Layout,
    /// (row, places of its tokens among N), in the order of the groups.
    pub(crate) rows: Vec<(TokenRow, Vec<i64>)>,
    /// The blocks that are run for it.
    pub(crate) blocks: Range<usize>,
}

impl Batch {
    /// Tokens of each group: what [`crate::Bank::rows`] asks for.
    pub fn lengths(&self) -> &[usize] {
        &self.layout.lengths
    }

    /// Answer tokens of each row, in the order of the groups.
    pub fn answer_lengths(&self) -> Vec<usize> {
        self.rows.iter().map(|(row, _)| row.answer_tokens()).collect()
    }
}

impl Prefix {
    /// Runs the blocks below the first of `blocks`, those that batches are run through, over every row, in batches of similar
    /// length. A base that keeps them ([`Lm::keeping_prefixes`]) reads what it has for just these rows instead.
    ///
    /// # Errors
    /// A file of kept states that cannot be written, or is damaged.
    pub fn new(lm: &Lm, rows: Vec<TokenRow>, blocks: Range<usize>, mut progress: impl FnMut(usize)) -> Result<Self> {
        lm.refuse_longer(rows.iter().map(|row| row.ids.len()).max().unwrap_or(0), "a row")?;
        let all: Vec<usize> = (0..rows.len()).collect();
        let trees: Vec<(Tree, Vec<usize>)> = by_prompt(&rows, &all)
            .into_iter()
            .map(|members| {
                let ids: Vec<&[i64]> = members.iter().map(|i| rows[*i].ids.as_slice()).collect();
                (Tree::new(&ids), members)
            })
            .collect();
        let kept = lm.kept_prefix(&rows, blocks.start);
        let known = match &kept {
            Some(file) if file.exists() => read_hidden(lm, file, &trees)?,
            _ => None,
        };
        let hidden = match known {
            Some(hidden) => {
                progress(rows.len());
                hidden
            }
            None => {
                let hidden = compute_hidden(lm, &trees, blocks.start, progress);
                if let Some(file) = &kept {
                    write_hidden(file, &hidden)?;
                }
                hidden
            }
        };

        let mut stored: Vec<Option<Stored>> = (0..rows.len()).map(|_| None).collect();
        for ((tree, members), hidden) in trees.iter().zip(&hidden) {
            for (r, i) in members.iter().enumerate() {
                let places = (0..rows[*i].ids.len()).map(|t| tree.locate(r, t) as i64).collect();
                stored[*i] = Some(Stored { hidden: hidden.shallow_clone(), places });
            }
        }
        Ok(Self { stored: stored.into_iter().flatten().collect(), rows, blocks })
    }

    /// The same rows for batches that are run through other blocks, such as those of another bank: from here on where its
    /// first adapted block lies behind ours, else from the beginning.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn moved(&self, lm: &Lm, blocks: Range<usize>) -> Result<Self> {
        if blocks.start < self.blocks.start {
            return Self::new(lm, self.rows.clone(), blocks, |_| ());
        }
        let all: Vec<usize> = (0..self.rows.len()).collect();
        let mut stored: Vec<Option<Stored>> = (0..self.rows.len()).map(|_| None).collect();
        for groups in self.passes(&all) {
            let batch = self.batch(lm, &groups);
            let hidden = no_grad(|| {
                let pass = lm.over(&batch.layout, None, None);
                lm.blocks(batch.x.shallow_clone(), self.blocks.start..blocks.start, &pass)
            });
            for (row, (_, places)) in groups.into_iter().flatten().zip(batch.rows) {
                stored[row] = Some(Stored { hidden: hidden.shallow_clone(), places });
            }
        }
        Ok(Self { rows: self.rows.clone(), stored: stored.into_iter().flatten().collect(), blocks })
    }

    /// The rows, in the order in which they are indexed.
    pub fn rows(&self) -> &[TokenRow] {
        &self.rows
    }

    /// Batches of at most 4096 tokens, or one group, that hold each of `rows` once; rows of one prompt are grouped. For
    /// passes of one user's rows without gradients.
    pub fn passes(&self, rows: &[usize]) -> Vec<Vec<Vec<usize>>> {
        let groups = by_prompt(&self.rows, rows);
        let tokens = |group: &Vec<usize>| group.iter().map(|i| self.rows[*i].ids.len()).sum();
        let lengths: Vec<usize> = groups.iter().map(tokens).collect();
        let pick = |batch: Vec<usize>| batch.into_iter().map(|g| groups[g].clone()).collect();
        under_budget(&lengths, PASS_TOKENS).into_iter().map(pick).collect()
    }

    /// A batch of groups of rows. What the rows of a group begin with is computed once; its result is that of each row
    /// alone.
    pub fn batch(&self, lm: &Lm, groups: &[Vec<usize>]) -> Batch {
        let (mut trees, mut pieces, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for group in groups {
            let ids: Vec<&[i64]> = group.iter().map(|i| self.rows[*i].ids.as_slice()).collect();
            let tree = Tree::new(&ids);
            for (r, i) in group.iter().enumerate() {
                let Stored { hidden, places } = &self.stored[*i];
                let from = if r == 0 { 0 } else { tree.trunk }; // the first row brings the trunk
                if from < places.len() {
                    let index = Tensor::from_slice(&places[from..]).to_device(lm.device);
                    pieces.push(hidden.index_select(0, &index));
                }
                let locate = |t| (start + tree.locate(r, t)) as i64;
                rows.push((self.rows[*i].clone(), (0..places.len()).map(locate).collect()));
            }
            start += tree.len();
            trees.push(tree);
        }
        let trees: Vec<&Tree> = trees.iter().collect();
        let layout = Layout::new(&trees, 1, lm.kind, lm.device);
        Batch { x: Tensor::cat(&pieces, 0), layout, rows, blocks: self.blocks.clone() }
    }
}

/// Runs the blocks below `depth` over trees of rows: `[tokens, E]` for each.
fn compute_hidden(lm: &Lm, trees: &[(Tree, Vec<usize>)], depth: usize, mut progress: impl FnMut(usize)) -> Vec<Tensor> {
    let lengths: Vec<usize> = trees.iter().map(|(tree, _)| tree.len()).collect();
    let mut hidden: Vec<Option<Tensor>> = trees.iter().map(|_| None).collect();
    for pass in under_budget(&lengths, PASS_TOKENS) {
        let batch: Vec<&Tree> = pass.iter().map(|i| &trees[*i].0).collect();
        let x = no_grad(|| {
            let layout = Layout::new(&batch, 1, lm.kind, lm.device);
            let ids: Vec<i64> = batch.iter().flat_map(|t| t.ids.iter().copied()).collect();
            let x = lm.embed(&ids, &layout.positions);
            lm.blocks(x, 0..depth, &lm.over(&layout, None, None))
        });
        let mut start = 0;
        for i in pass {
            hidden[i] = Some(x.narrow(0, start, lengths[i] as i64).copy());
            start += lengths[i] as i64;
            progress(trees[i].1.len());
        }
    }
    hidden.into_iter().flatten().collect()
}

/// What a file of kept states says of itself: it is read back by its name alone. The number is raised when what it holds changes.
const KEPT: (&str, &str) = ("idiolect.frozen-states", "1");

/// Kept states; none if they are of another format.
fn read_hidden(lm: &Lm, file: &Path, trees: &[(Tree, Vec<usize>)]) -> Result<Option<Vec<Tensor>>> {
    let mut tensors = map_tensors(file)?;
    let format = tensors.metadata.get(KEPT.0).map_or("none", String::as_str);
    if format != KEPT.1 {
        tracing::info!("{}: states of format {format}, this program's is {}: computed again", file.display(), KEPT.1);
        return Ok(None);
    }
    let hidden = trees.iter().enumerate().map(|(i, (tree, _))| {
        let shape = [tree.len() as i64, lm.shape.hidden_size];
        Ok(tensors.take(&i.to_string(), &shape)?.to_device(lm.device))
    });
    let hidden = hidden.collect::<Result<_>>()?;
    tensors.refuse_rest()?;
    Ok(Some(hidden))
}

fn write_hidden(file: &Path, hidden: &[Tensor]) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let named: Vec<(String, Tensor)> =
        hidden.iter().enumerate().map(|(i, h)| (i.to_string(), h.shallow_clone())).collect();
    write_tensors(file, &named, Some((KEPT.0, KEPT.1.to_owned())))
}

/// Groups rows of one prompt, in the order in which prompts first appear; a group is at most a quarter of a pass.
fn by_prompt(rows: &[TokenRow], some: &[usize]) -> Vec<Vec<usize>> {
    let mut index: HashMap<&[i64], usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for i in some {
        let row = &rows[*i];
        let g = *index.entry(&row.ids[..row.answer_start]).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[g].push(*i);
    }
    let split = |group: Vec<usize>| -> Vec<Vec<usize>> {
        let longest = group.iter().map(|i| rows[*i].ids.len()).max().unwrap_or(1);
        group.chunks((PASS_TOKENS / 4 / longest).max(1)).map(<[usize]>::to_vec).collect()
    };
    groups.into_iter().flat_map(split).collect()
}

/// Splits groups of rows into batches of at most `budget` tokens (a larger group is a batch of its own), short ones
/// first. Gives indices of `groups`; every batch is as full as the order allows.
pub fn under_budget(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| (lengths[*i], *i));
    let mut out: Vec<Vec<usize>> = Vec::new();
    let mut spent = 0;
    for i in order {
        match out.last_mut() {
            Some(batch) if spent + lengths[i] <= budget => {
                spent += lengths[i];
                batch.push(i);
            }
            _ => {
                spent = lengths[i];
                out.push(vec![i]);
            }
        }
    }
    out
}

/// The batches that training walks through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Indices of the items in each batch.
    pub batches: Vec<Vec<usize>>,
    /// Tokens of all of them.
    pub tokens: usize,
}

/// Batches of `batch` items (an epoch's last may hold fewer), shuffled anew in each epoch by the stream that `rng` starts
/// for it, up to the last whole batch within `token_budget`.
pub fn plan<R: Rng>(
    items: &[usize],
    batch: NonZero<usize>,
    max_epochs: NonZero<usize>,
    token_budget: usize,
    tokens_of: impl Fn(usize) -> usize,
    rng: impl Fn(usize) -> R,
) -> Plan {
    let mut plan = Plan::default();
    for epoch in 0..max_epochs.get() {
        let mut order = items.to_vec();
        order.shuffle(&mut rng(epoch));
        for batch in order.chunks(batch.get()) {
            let tokens: usize = batch.iter().map(|i| tokens_of(*i)).sum();
            if plan.tokens + tokens > token_budget {
                return plan;
            }
            plan.tokens += tokens;
            plan.batches.push(batch.to_vec());
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn batches_hold_every_group_once_within_the_budget() {
        let lengths = [50, 10, 70, 200, 30, 10];
        let batches = under_budget(&lengths, 100);
        assert_eq!(batches, vec![vec![1, 5, 4, 0], vec![2], vec![3]]);
        assert!(under_budget(&[], 10).is_empty());
    }

    #[test]
    fn a_plan_walks_whole_epochs_and_ends_within_its_budget() {
        let rng = |epoch| rand_chacha::ChaCha8Rng::seed_from_u64(epoch as u64);
        let (two, three) = (NonZero::new(2).unwrap(), NonZero::new(3).unwrap());
        let whole = plan(&[3, 5, 7], two, three, 1000, |i| i, rng);
        assert_eq!(whole.batches.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 2, 1, 2, 1]);
        for epoch in whole.batches.chunks(2) {
            let mut items = epoch.concat();
            items.sort_unstable();
            assert_eq!(items, [3, 5, 7]);
        }
        assert_eq!(whole.tokens, 45);
        let cut = plan(&[3, 5, 7], two, three, 44, |i| i, rng);
        assert_eq!(cut.batches, whole.batches[..5]);
        assert_eq!(cut.tokens, whole.batches[..5].concat().iter().sum::<usize>());
    }
}
