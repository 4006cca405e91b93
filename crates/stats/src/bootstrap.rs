//! Percentile bootstrap over clusters (Efron and Tibshirani 1993, ch. 13): what belongs together, such as all pairs of
//! one prompt, is drawn together.

use rand::Rng;
use serde::{Deserialize, Serialize};

/// A mean with its 95% interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub mean: f64,
    /// 2.5% percentile of the resampled means.
    pub low: f64,
    /// 97.5% percentile.
    pub high: f64,
}

const RESAMPLES: usize = 2000;

/// The mean of all items and its interval; each cluster is (sum, number of items). `None` without items.
pub fn clustered_mean(clusters: &[(f64, usize)], rng: &mut impl Rng) -> Option<Interval> {
    let ratio = |(sum, n): (f64, usize)| (n > 0).then(|| sum / n as f64);
    let add = |a: (f64, usize), b: (f64, usize)| (a.0 + b.0, a.1 + b.1);
    let mean = ratio(clusters.iter().copied().fold((0.0, 0), add))?;
    let mut means: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            ratio((0..clusters.len()).map(|_| clusters[rng.random_range(0..clusters.len())]).fold((0.0, 0), add))
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means[((means.len() - 1) as f64 * q).round() as usize];
    Some(Interval { mean, low: at(0.025), high: at(0.975) })
}

/// Any statistic of clusters and its interval: `of` is given the indices of the clusters that were drawn, of all of them for the estimate.
pub fn clustered(
    clusters: usize,
    resamples: usize,
    rng: &mut impl Rng,
    of: impl Fn(&[usize]) -> f64,
) -> Option<Interval> {
    if clusters == 0 || resamples == 0 {
        return None;
    }
    let all: Vec<usize> = (0..clusters).collect();
    let draw = |rng: &mut _| -> Vec<usize> { (0..clusters).map(|_| Rng::random_range(rng, 0..clusters)).collect() };
    let mut values: Vec<f64> = (0..resamples).map(|_| of(&draw(rng))).collect();
    values.sort_by(f64::total_cmp);
    let at = |q: f64| values[((values.len() - 1) as f64 * q).round() as usize];
    Some(Interval { mean: of(&all), low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn any_statistic_is_resampled_by_cluster() {
        let clusters: Vec<(f64, usize)> = (0..50).map(|i| (f64::from(i % 5), 2)).collect();
        let mean = |drawn: &[usize]| {
            let (sum, n) = drawn.iter().fold((0.0, 0), |(s, n), c| (s + clusters[*c].0, n + clusters[*c].1));
            sum / n as f64
        };
        let ours = clustered(50, 2000, &mut rand::rngs::StdRng::seed_from_u64(1), mean).unwrap();
        let theirs = clustered_mean(&clusters, &mut rand::rngs::StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(ours, theirs);
        assert_eq!(clustered(0, 10, &mut rand::rngs::StdRng::seed_from_u64(1), |_| 0.0), None);
    }

    #[test]
    fn interval_of_independent_items_is_the_normal_one() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let clusters: Vec<(f64, usize)> = (0..400).map(|i| (f64::from(i % 4 != 0), 1)).collect(); // mean .75
        let interval = clustered_mean(&clusters, &mut rng).unwrap();
        let half = 1.96 * (0.75f64 * 0.25 / 400.0).sqrt(); // .0424
        assert!((interval.mean - 0.75).abs() < 1e-12);
        assert!((interval.low - (0.75 - half)).abs() < 0.008 && (interval.high - (0.75 + half)).abs() < 0.008);
    }

    #[test]
    fn items_that_agree_within_a_cluster_do_not_narrow_the_interval() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let single: Vec<(f64, usize)> = (0..40).map(|i| (f64::from(i % 2), 1)).collect();
        let tenfold: Vec<(f64, usize)> = single.iter().map(|(s, n)| (s * 10.0, n * 10)).collect();
        let (a, b) = (clustered_mean(&single, &mut rng).unwrap(), clustered_mean(&tenfold, &mut rng).unwrap());
        assert!(((a.high - a.low) - (b.high - b.low)).abs() < 0.06);
        assert_eq!(clustered_mean(&[], &mut rng), None);
        assert_eq!(clustered_mean(&[(0.0, 0)], &mut rng), None);
    }
}
