//! Token sequences laid end to end: no padding reaches a linear layer, only attention pads.
//!
//! A sequence may be a [`Tree`]: rows that begin alike share a trunk, computed once, and continue in branches that do
//! not see each other. Attention's mask makes this exact: a token sees the trunk and its own branch, at the positions
//! that it would have alone.

use std::cell::RefCell;
use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

/// Rows with a common beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The trunk's ids, then every branch's.
    pub(crate) ids: Vec<i64>,
    /// Position of each token in its row.
    pub(crate) positions: Vec<i64>,
    /// 0 is the trunk.
    pub(crate) branches: Vec<i64>,
    /// Tokens of the trunk.
    pub(crate) trunk: usize,
    /// Start and length of each row's branch.
    rows: Vec<(usize, usize)>,
}

impl Tree {
    /// A tree of rows: what all of them begin with is its trunk.
    pub(crate) fn new(rows: &[&[i64]]) -> Self {
        let first = rows.first().copied().unwrap_or_default();
        let common = |row: &&[i64]| first.iter().zip(*row).take_while(|(a, b)| a == b).count();
        let trunk = rows.iter().map(common).min().unwrap_or(0);
        let mut tree = Self {
            ids: first[..trunk].to_vec(),
            positions: (0..trunk as i64).collect(),
            branches: vec![0; trunk],
            trunk,
            rows: Vec::with_capacity(rows.len()),
        };
        for (r, row) in rows.iter().enumerate() {
            tree.rows.push((tree.ids.len(), row.len() - trunk));
            tree.ids.extend(&row[trunk..]);
            tree.positions.extend(trunk as i64..row.len() as i64);
            tree.branches.resize(tree.ids.len(), r as i64 + 1);
        }
        tree
    }

    /// Tokens that are computed.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Where token `t` of row `row` is among the tree's.
    pub(crate) fn locate(&self, row: usize, t: usize) -> usize {
        if t < self.trunk { t } else { self.rows[row].0 + t - self.trunk }
    }

    fn branches_matter(&self) -> bool {
        self.rows.iter().filter(|(_, len)| *len > 0).count() > 1
    }
}

/// How the tokens `[N]` of a batch of trees lie.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Tokens of each tree.
    pub(crate) lengths: Vec<usize>,
    /// Position of each token, `[N]`.
    pub(crate) positions: Tensor,
    /// Tokens of each tree, `[B]`, on the CPU.
    pub(crate) spans: Tensor,
    /// Branch and position of each token, `[2, N]`, int32, on the CPU.
    places: Tensor,
    branching: bool,
    /// (token behind each padded place `[B * T]`, padded place of each token `[N]`); none if all lengths are equal.
    pad: Option<(Tensor, Tensor)>,
    longest: i64,
    /// Positions and branches by padded place, `[B, T]`; padding is on branch -1.
    padded: (Tensor, Tensor),
    last_position: i64,
    kind: Kind,
    masks: RefCell<HashMap<Option<i64>, Option<Tensor>>>,
}

impl Layout {
    /// Lays trees end to end. Attention pads to a multiple of `multiple` tokens. `kind` is the model's.
    pub(crate) fn new(trees: &[&Tree], multiple: usize, kind: Kind, device: Device) -> Self {
        let lengths: Vec<usize> = trees.iter().map(|t| t.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0).next_multiple_of(multiple);
        let positions: Vec<i64> = trees.iter().flat_map(|t| t.positions.iter().copied()).collect();
        let branches: Vec<i64> = trees.iter().flat_map(|t| t.branches.iter().copied()).collect();
        let index = |v: &[i64]| Tensor::from_slice(v).to_device(device);
        let pad = lengths.iter().any(|l| *l != longest).then(|| {
            let (mut places, mut back, mut start) = (vec![0; lengths.len() * longest], Vec::new(), 0);
            for (b, length) in lengths.iter().enumerate() {
                for t in 0..*length {
                    places[b * longest + t] = (start + t) as i64;
                    back.push((b * longest + t) as i64);
                }
                start += length;
            }
            (index(&places), index(&back))
        });
        let padded = |f: &dyn Fn(&Tree) -> &Vec<i64>, fill: i64| {
            let values: Vec<i64> = trees
                .iter()
                .flat_map(|t| f(t).iter().copied().chain(std::iter::repeat_n(fill, longest - t.len())))
                .collect();
            index(&values).view([trees.len() as i64, longest as i64])
        };
        let last_position = positions.iter().copied().max().unwrap_or(0);
        let branching = trees.iter().any(|t| t.branches_matter());
        Self {
            spans: Tensor::from_slice(&lengths.iter().map(|l| *l as i64).collect::<Vec<_>>()),
            places: Tensor::from_slice(&branches.iter().chain(&positions).map(|x| *x as i32).collect::<Vec<_>>()),
            branching,
            positions: index(&positions),
            padded: (padded(&|t| &t.positions, 0), padded(&|t| &t.branches, -1)),
            masks: RefCell::new(if branching { HashMap::new() } else { HashMap::from([(None, None)]) }),
            pad,
            longest: longest as i64,
            last_position,
            lengths,
            kind,
        }
    }

    /// `[N, h, D]` to `[B, h, T, D]`.
    pub(crate) fn spread(&self, x: &Tensor) -> Tensor {
        let (_, h, d) = x.size3().expect("three axes");
        let x = match &self.pad {
            Some((places, _)) => x.index_select(0, places),
            None => x.shallow_clone(),
        };
        x.view([self.lengths.len() as i64, self.longest, h, d]).transpose(1, 2)
    }

    /// `[B, h, T, D]` to `[N, h * D]`.
    pub(crate) fn gather(&self, x: &Tensor) -> Tensor {
        let (b, h, t, d) = x.size4().expect("four axes");
        let x = x.transpose(1, 2).reshape([b * t, h * d]);
        match &self.pad {
            Some((_, back)) => x.index_select(0, back),
            None => x,
        }
    }

    /// What narrows a query's sight of its past: branch and position of each token, and a window or 0. None where it sees all of it.
    pub(crate) fn seen(&self, window: Option<i64>) -> Option<(&Tensor, i64)> {
        let window = window.filter(|w| *w <= self.last_position);
        (self.branching || window.is_some()).then(|| (&self.places, window.unwrap_or(0)))
    }

    /// What attention adds to its scores, `[B, 1, T, T]`: 0 or -inf. None where causality says it all.
    pub(crate) fn mask(&self, window: Option<i64>) -> Option<Tensor> {
        let window = window.filter(|w| *w <= self.last_position);
        if let Some(mask) = self.masks.borrow().get(&window) {
            return mask.as_ref().map(Tensor::shallow_clone);
        }
        let (positions, branches) = &self.padded;
        let device = positions.device();
        let order = Tensor::arange(self.longest, (Kind::Int64, device));
        let mut seen = order.unsqueeze(0).le_tensor(&order.unsqueeze(1)).unsqueeze(0); // [1, T, T]: key not behind query
        let (own, others) = (branches.unsqueeze(2), branches.unsqueeze(1));
        seen = seen.logical_and(&others.eq(0).logical_or(&own.eq_tensor(&others))); // [B, T, T]
        if let Some(window) = window {
            seen = seen.logical_and(&(positions.unsqueeze(2) - positions.unsqueeze(1)).lt(window));
        }
        let mask = Tensor::zeros(seen.size(), (self.kind, device)).masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
        let mask = Some(mask.unsqueeze(1));
        self.masks.borrow_mut().insert(window, mask.as_ref().map(Tensor::shallow_clone));
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_holds_every_row_once() {
        let rows: [&[i64]; 3] = [&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 3, 6, 7]];
        let tree = Tree::new(&rows);
        assert_eq!(tree.ids, [1, 2, 3, 4, 5, 3, 6, 7]);
        assert_eq!(tree.positions, [0, 1, 2, 3, 2, 2, 3, 4]);
        assert_eq!(tree.branches, [0, 0, 1, 1, 2, 3, 3, 3]);
        for (r, row) in rows.iter().enumerate() {
            let back: Vec<i64> = (0..row.len()).map(|t| tree.ids[tree.locate(r, t)]).collect();
            assert_eq!(back, *row);
        }
        assert_eq!(Tree::new(&[&[1, 2], &[1, 2, 3]]).len(), 3); // one row is the beginning of the other
        assert_eq!(Tree::new(&[&[1, 2]]).branches, [0, 0]);
    }

    #[test]
    fn a_mask_shows_trunk_and_own_branch_within_the_window() {
        tch::set_num_threads(1);
        let tree = Tree::new(&[&[1, 2, 3], &[1, 4, 5]]); // 1 | 2 3 | 4 5
        let layout = Layout::new(&[&tree], 1, Kind::Float, Device::Cpu);
        let seen = |window| -> Vec<Vec<u8>> {
            let mask = layout.mask(window).unwrap().squeeze();
            (0..5)
                .map(|i| Vec::<f32>::try_from(mask.get(i)).unwrap().iter().map(|v| u8::from(*v == 0.0)).collect())
                .collect()
        };
        let all = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]];
        assert_eq!(seen(None), all);
        let two = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 1, 1]];
        assert_eq!(seen(Some(2)), two);
        assert!(Layout::new(&[&Tree::new(&[&[1, 2]])], 1, Kind::Float, Device::Cpu).mask(Some(9)).is_none());
    }
}
