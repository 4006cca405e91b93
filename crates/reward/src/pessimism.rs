//! Rewards that are believed only as far as the votes bear them out (P-ShareLoRA eqs. 3.4, 3.5).
//!
//! The confidence set of a user is a ball around their fitted factors: `|Delta - Delta^|_F^2 <= zeta`. Inside it the reward is taken to be
//! linear in the user's personal parameters, `r(tau; Delta^ + D) = r(tau) + <grad r(tau), D>`, so that its minimum is
//! `r(tau) - sqrt(zeta) |grad r(tau)|`. The gradient is exact; that the reward is linear is an approximation, good while the ball is
//! small.

use std::collections::HashMap;

use device::Checked;
use estimate::Spread;
use lm::{Lm, Owner, Place, Prefix, Tensor, UserIndex};
use problem::Result;
use tch::Kind;

use crate::RewardModel;

/// Rows whose gradients are computed at one time: each has factors of its own.
const ROWS: usize = 16;

impl RewardModel {
    /// One user's rewards of the rows `rows` of a [`Self::prefix`], each with the norm of its gradient over the user's personal
    /// parameters (factors, and the head where that is personal).
    pub fn score_and_gradient(
        &self,
        lm: &Lm,
        prefix: &Prefix,
        rows: &[usize],
        user: UserIndex,
    ) -> Result<Vec<(f32, f32)>> {
        let mut known: HashMap<usize, (f32, f32)> = HashMap::new();
        let mut distinct = rows.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        for some in distinct.chunks(ROWS) {
            // A copy of the user for every row: the gradient of the sum with respect to a copy is that of its row.
            let copies = self.present(&vec![user; some.len()]);
            let groups: Vec<Vec<usize>> = some.iter().map(|row| vec![*row]).collect();
            let batch = prefix.batch(lm, &groups);
            let owners: Vec<Place> = Place::all(some.len()).collect();
            let factors = copies.bank.rows(&owners, batch.lengths());
            let trace = lm::Trace::new(lm, batch, factors, lm::Activations::Keep);
            let hidden = lm::pooled_hidden(lm, &trace.batch, &trace.hidden, self.pooling);
            let scores = copies.head.score(&hidden, &owners);
            let mut personal = copies.bank.parameters();
            personal.extend(copies.head.parameters());
            personal.retain(|p| p.owner == Owner::PerUser);
            let values = Vec::<f32>::try_from(scores.detach()).checked()?;
            let mut squares = vec![0f64; some.len()];
            if !personal.is_empty() {
                let leaves: Vec<&Tensor> = personal.iter().map(|p| &p.tensor).collect();
                for gradient in lm::gradients(&scores.sum(Kind::Float), &leaves)? {
                    let each = gradient.square().reshape([some.len() as i64, -1]);
                    let each = Vec::<f64>::try_from(each.sum_dim_intlist(1, false, Kind::Double)).checked()?;
                    squares.iter_mut().zip(each).for_each(|(sum, s)| *sum += s);
                }
            }
            known.extend(
                some.iter().zip(values.into_iter().zip(squares)).map(|(row, (v, s))| (*row, (v, s.sqrt() as f32))),
            );
        }
        Ok(rows.iter().map(|row| known[row]).collect())
    }

    /// Lower bounds of one user's rewards: `score - sqrt(zeta) |gradient|`.
    pub fn pessimistic(
        &self,
        lm: &Lm,
        prefix: &Prefix,
        rows: &[usize],
        user: UserIndex,
        zeta: f64,
    ) -> Result<Vec<f32>> {
        let width = zeta.sqrt() as f32;
        let scores = self.score_and_gradient(lm, prefix, rows, user)?;
        Ok(scores.into_iter().map(|(score, norm)| score - width * norm).collect())
    }

    /// What the ball's size depends on, measured on the fitted factors: singular values of each adapted layer's updates of all
    /// users, side by side. `votes` are training votes of a user, on average.
    pub fn spread(&self, votes: f64) -> Result<Spread> {
        let users = self.users.len();
        let rank = self.bank.config().lora.rank.get();
        let scale = self.bank.config().lora.scale();
        // Sum over users of (up down)(up down)^T, layer by layer; its roots are the stack's singular values.
        let mut sums: Vec<Tensor> = Vec::new();
        let (mut shared_size, mut personal_size) = (0, 0);
        for user in UserIndex::all(users) {
            for (layer, factors) in self.bank.of_user(user).into_iter().enumerate() {
                let update = factors.up.matmul(&factors.down) * scale; // [out, in]
                let square = update.matmul(&update.tr()).to_kind(Kind::Double);
                if user == UserIndex(0) {
                    shared_size += update.size()[0] as usize;
                    personal_size += update.size()[1] as usize;
                    sums.push(square);
                } else {
                    sums[layer] += square;
                }
            }
        }
        let (mut diversity, mut tail) = (f64::INFINITY, 0.0);
        for sum in &sums {
            let mut squares = Vec::<f64>::try_from(sum.linalg_eigvalsh("L")).checked()?;
            squares.reverse();
            let weakest = squares.get(rank - 1).copied().unwrap_or(0.0).max(0.0);
            diversity = diversity.min(weakest / users as f64);
            // Rounding leaves a tail of about 1e-14 of the largest.
            let noise = squares[0].abs() * 1e-9;
            tail += squares.iter().skip(rank).filter(|s| **s > noise).sum::<f64>();
        }
        Ok(Spread { users, votes, rank, shared_size, personal_size, diversity, tail })
    }
}
