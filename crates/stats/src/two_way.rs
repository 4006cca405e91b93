//! Means over votes that share users and prompts, with intervals that know it.
//!
//! Votes of one user go together, and so do votes on one prompt. The pigeonhole bootstrap (Owen 2007, "The pigeonhole
//! bootstrap") draws both: a vote counts as often as its user times as its prompt was drawn. Fits of several seeds are
//! drawn as a third factor, so that an interval holds the luck of training as well.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::Interval;

/// One vote's values.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Index of the user.
    pub user: usize,
    /// Index of the prompt; where prompts are few, of the pair of answers.
    pub item: usize,
    /// One value a seed: the same number for every cell.
    pub values: Vec<f64>,
}

/// Whom a mean counts once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Each {
    /// Every vote.
    Vote,
    /// Every user, by the mean of their votes.
    User,
}

const RESAMPLES: usize = 1000;

/// The mean and its 95% percentile interval; users, items and seeds are drawn with replacement. `None` without cells.
///
/// # Panics
/// If cells hold different numbers of values, or none.
pub fn two_way_mean(cells: &[Cell], each: Each, rng: &mut impl Rng) -> Option<Interval> {
    let seeds = cells.first()?.values.len();
    assert!(seeds > 0 && cells.iter().all(|c| c.values.len() == seeds), "one value a seed in every cell");
    let users = cells.iter().map(|c| c.user).max()? + 1;
    let items = cells.iter().map(|c| c.item).max()? + 1;
    let mean = weighted(cells, each, &vec![1; users], &vec![1; items], &vec![1; seeds])?;
    // A user or item without cells is not there to be drawn.
    let present = |n: usize, of: fn(&Cell) -> usize| {
        let mut there = vec![false; n];
        cells.iter().for_each(|c| there[of(c)] = true);
        (0..n).filter(|i| there[*i]).collect::<Vec<usize>>()
    };
    let (user_pool, item_pool) = (present(users, |c| c.user), present(items, |c| c.item));
    let mut draw = |pool: &[usize], n: usize| {
        let mut counts = vec![0u32; n];
        pool.iter().for_each(|_| counts[pool[rng.random_range(0..pool.len())]] += 1);
        counts
    };
    let all_seeds: Vec<usize> = (0..seeds).collect();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let (u, i, s) = (draw(&user_pool, users), draw(&item_pool, items), draw(&all_seeds, seeds));
            weighted(cells, each, &u, &i, &s)
        })
        .collect();
    if means.is_empty() {
        return None;
    }
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means[((means.len() - 1) as f64 * q).round() as usize];
    Some(Interval { mean, low: at(0.025), high: at(0.975) })
}

fn weighted(cells: &[Cell], each: Each, users: &[u32], items: &[u32], seeds: &[u32]) -> Option<f64> {
    let value = |c: &Cell| c.values.iter().zip(seeds).map(|(v, n)| v * f64::from(*n)).sum::<f64>();
    let drawn: f64 = seeds.iter().map(|n| f64::from(*n)).sum();
    let (mut sums, mut counts) = (vec![0.0; users.len()], vec![0.0; users.len()]);
    for cell in cells.iter().filter(|c| users[c.user] > 0 && items[c.item] > 0) {
        let n = f64::from(items[cell.item]);
        sums[cell.user] += n * value(cell) / drawn;
        counts[cell.user] += n;
    }
    let (mut sum, mut count) = (0.0, 0.0);
    for ((s, c), n) in sums.iter().zip(&counts).zip(users).filter(|((_, c), _)| **c > 0.0) {
        let n = f64::from(*n);
        match each {
            Each::Vote => (sum, count) = (sum + n * s, count + n * c),
            Each::User => (sum, count) = (sum + n * s / c, count + n),
        }
    }
    (count > 0.0).then(|| sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn rng() -> rand::rngs::StdRng {
        rand::rngs::StdRng::seed_from_u64(3)
    }

    fn grid(users: usize, items: usize, value: impl Fn(usize, usize) -> f64) -> Vec<Cell> {
        let cell = |user, item| Cell { user, item, values: vec![value(user, item)] };
        (0..users).flat_map(|u| (0..items).map(move |i| (u, i))).map(|(u, i)| cell(u, i)).collect()
    }

    fn half(interval: Interval) -> f64 {
        (interval.high - interval.low) / 2.0
    }

    #[test]
    fn users_count_once_or_by_their_votes() {
        let cell = |user, value| Cell { user, item: 0, values: vec![value] };
        let cells = [cell(0, 1.0), cell(0, 1.0), cell(0, 1.0), cell(2, 0.0)];
        assert_eq!(two_way_mean(&cells, Each::Vote, &mut rng()).unwrap().mean, 0.75);
        assert_eq!(two_way_mean(&cells, Each::User, &mut rng()).unwrap().mean, 0.5);
        assert_eq!(two_way_mean(&[], Each::Vote, &mut rng()), None);
    }

    #[test]
    fn the_interval_is_that_of_the_factor_which_varies() {
        // Values that only users decide: 25 draws of 0 or 1, 1.96 * .5 / 5 = .196, however many items each has.
        let by_user = grid(25, 40, |u, _| (u % 2) as f64);
        let got = half(two_way_mean(&by_user, Each::Vote, &mut rng()).unwrap());
        assert!((got - 0.196).abs() < 0.03, "{got}");
        // Values that only items decide: 40 of them.
        let by_item = grid(25, 40, |_, i| (i % 2) as f64);
        let got = half(two_way_mean(&by_item, Each::User, &mut rng()).unwrap());
        assert!((got - 1.96 * 0.5 / 40f64.sqrt()).abs() < 0.02, "{got}");
    }

    #[test]
    fn seeds_that_differ_widen_it() {
        let cells = |spread: f64| -> Vec<Cell> {
            let values = [-spread, 0.0, spread];
            grid(30, 30, |_, _| 0.5)
                .into_iter()
                .map(|c| Cell { values: values.map(|v| v + 0.5).to_vec(), ..c })
                .collect()
        };
        assert!(half(two_way_mean(&cells(0.0), Each::Vote, &mut rng()).unwrap()) < 1e-12);
        // The mean of three draws from (-.1, 0, .1) has the extremes at about 2.5%: 1 in 27 draws is all of one.
        let got = half(two_way_mean(&cells(0.1), Each::Vote, &mut rng()).unwrap());
        assert!((got - 0.1).abs() < 0.04, "{got}");
    }
}
