//! What to ask next: the pairs of answers whose comparison tells most about a person's taste.

use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};
use stats::sigmoid;

use crate::taste::Taste;

/// What a pair is chosen for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// Expected information about the taste from the answer, nats (Lindley 1956; "BALD", Houlsby et al. 2011).
    #[default]
    Information,
    /// The expected answer's Fisher information, as it enlarges the determinant of the precision (D-optimal designs).
    Determinant,
}

/// A chosen pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question {
    /// Index among the candidates.
    pub pair: usize,
    /// Expected information from its answer, given the questions before it, nats.
    pub gain: f64,
}

/// The `count` pairs to ask in one go, the most telling first. `candidates` are differences of features `[d]`; `tie` is the margin
/// within which a person calls a tie (Rao-Kupper: P(first) = s(m - tie), P(second) = s(-m - tie)), 0 where ties cannot be called.
/// A chosen pair counts as answered for those behind it: its information narrows the covariance.
///
/// # Panics
/// If a candidate has another number of features than the taste.
pub fn ask(taste: &Taste, candidates: &[Vec<f64>], count: usize, criterion: Criterion, tie: f64) -> Vec<Question> {
    let d = taste.mean.len();
    assert!(candidates.iter().all(|c| c.len() == d), "candidates on the taste's features");
    let mut covariance = taste.covariance.clone();
    let mut left: Vec<usize> = (0..candidates.len()).collect();
    let mut out = Vec::new();
    while out.len() < count && !left.is_empty() {
        let judged = left.iter().enumerate().map(|(place, pair)| {
            let x = DVector::from_column_slice(&candidates[*pair]);
            let variance = x.dot(&(&covariance * &x)).max(0.0);
            let gain = information(taste.mean.dot(&x), variance, tie);
            let value = match criterion {
                Criterion::Information => gain,
                Criterion::Determinant => (1.0 + expected_curvature(taste.mean.dot(&x), variance, tie) * variance).ln(),
            };
            (place, value, gain)
        });
        let (place, _, gain) = judged.max_by(|a, b| a.1.total_cmp(&b.1)).expect("something is left");
        let pair = left.swap_remove(place);
        out.push(Question { pair, gain });
        let x = DVector::from_column_slice(&candidates[pair]);
        let curvature = expected_curvature(taste.mean.dot(&x), x.dot(&(&covariance * &x)).max(0.0), tie);
        narrow(&mut covariance, &x, curvature);
    }
    out
}

/// Sherman and Morrison: the inverse of `covariance^-1 + s x x'`.
fn narrow(covariance: &mut DMatrix<f64>, x: &DVector<f64>, s: f64) {
    let cx = &*covariance * x;
    let scale = s / (1.0 + s * x.dot(&cx));
    *covariance -= &cx * cx.transpose() * scale;
}

/// Probabilities of first, second and tie at a margin.
fn outcomes(margin: f64, tie: f64) -> [f64; 3] {
    let (first, second) = (sigmoid(margin - tie), sigmoid(-margin - tie));
    [first, second, (1.0 - first - second).max(0.0)]
}

fn entropy(p: &[f64; 3]) -> f64 {
    p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
}

/// The mean of `f(margin)` over a normal margin: the trapezoidal rule over five deviations, in steps of at most a quarter of a
/// deviation and one unit of margin, which is exact to 1e-6 for functions as smooth as these.
fn over_normal<const N: usize>(mean: f64, variance: f64, f: impl Fn(f64) -> [f64; N]) -> [f64; N] {
    let (mut sum, mut weight) = ([0.0; N], 0.0);
    let deviation = variance.sqrt();
    let steps = 20.max((5.0 * deviation).ceil().min(1e6) as i32);
    for i in -steps..=steps {
        let z = 5.0 * f64::from(i) / f64::from(steps);
        let density = (-z * z / 2.0).exp();
        weight += density;
        for (s, v) in sum.iter_mut().zip(f(mean + deviation * z)) {
            *s += density * v;
        }
    }
    sum.map(|s| s / weight)
}

/// Mutual information of the answer and a normal margin, nats.
fn information(mean: f64, variance: f64, tie: f64) -> f64 {
    let [a, b, c, inside] = over_normal(mean, variance, |m| {
        let p = outcomes(m, tie);
        [p[0], p[1], p[2], entropy(&p)]
    });
    (entropy(&[a, b, c]) - inside).max(0.0)
}

/// Fisher information of the answer about the margin, its mean over the margin.
fn expected_curvature(mean: f64, variance: f64, tie: f64) -> f64 {
    over_normal(mean, variance, |m| {
        let [first, second, equal] = outcomes(m, tie);
        let (d1, d2) = (first * (1.0 - first), -second * (1.0 - second)); // derivatives of the probabilities
        let ratio = |d: f64, p: f64| if p > 0.0 { d * d / p } else { 0.0 };
        [ratio(d1, first) + ratio(d2, second) + ratio(-d1 - d2, equal)]
    })[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::taste::Judgements;
    use rand::{Rng, SeedableRng};
    use rand_distr::StandardNormal;
    use stats::Prior;

    #[test]
    fn information_is_nothing_where_the_answer_is_known_and_at_most_a_bit() {
        assert!(information(0.0, 0.0, 0.0) < 1e-12 && information(50.0, 1.0, 0.0) < 1e-9);
        let wide = information(0.0, 1e4, 0.0);
        assert!(wide > 0.65 && wide < std::f64::consts::LN_2, "{wide}");
        assert!(information(0.0, 4.0, 0.0) > information(0.0, 1.0, 0.0));
        assert!(information(0.0, 1.0, 0.0) > information(3.0, 1.0, 0.0));
        // s(1 - s) at 0, without ties; for small variance the information is half of curvature times variance.
        assert!((expected_curvature(0.0, 0.0, 0.0) - 0.25).abs() < 1e-12);
        let small = 1e-3;
        assert!(
            (information(0.3, small, 0.5) / (0.5 * small * expected_curvature(0.3, small, 0.5)) - 1.0).abs() < 1e-2
        );
    }

    #[test]
    fn a_batch_does_not_ask_the_same_thing_twice() {
        let taste = Taste::of(&Prior::ridge(1.0, DVector::zeros(2)), &Judgements::new(2));
        let candidates = vec![vec![3.0, 0.0], vec![2.9, 0.0], vec![0.0, 2.5], vec![0.0, 0.0]];
        for criterion in [Criterion::Information, Criterion::Determinant] {
            let asked = ask(&taste, &candidates, 4, criterion, 0.0);
            let order: Vec<usize> = asked.iter().map(|q| q.pair).collect();
            assert_eq!(order, [0, 2, 1, 3]);
            assert!(asked[3].gain < 1e-9);
        }
        assert!(ask(&taste, &[], 3, Criterion::Information, 0.0).is_empty());
    }

    /// Votes until a person is served as well as 30 random ones do it.
    #[test]
    fn fewer_questions_than_at_random() {
        let d = 12;
        let mut rng = rand::rngs::StdRng::seed_from_u64(5);
        let (mut chosen, mut random) = (0.0, 0.0);
        for _ in 0..40 {
            let truth = DVector::from_fn(d, |_, _| 1.5 * rng.sample::<f64, _>(StandardNormal));
            let mut pool = |n: usize| -> Vec<Vec<f64>> {
                (0..n)
                    .map(|_| (0..d).map(|j| rng.sample::<f64, _>(StandardNormal) / (1.0 + j as f64 / 3.0)).collect())
                    .collect()
            };
            let (candidates, held_out) = (pool(300), pool(400));
            let say = |x: &[f64], u: f64| f64::from(u8::from(u < sigmoid(truth.dot(&DVector::from_column_slice(x)))));
            let prior = Prior::ridge(1.0 / 2.25, DVector::zeros(d));
            let right = |taste: &Taste| {
                let same =
                    |x: &&Vec<f64>| (taste.score(x).0 > 0.0) == (truth.dot(&DVector::from_column_slice(x)) > 0.0);
                held_out.iter().filter(same).count() as f64 / held_out.len() as f64
            };
            let luck: Vec<f64> = (0..300).map(|_| rng.random()).collect();
            let (mut by_random, mut by_choice) = (Judgements::new(d), Judgements::new(d));
            for (x, u) in candidates.iter().zip(&luck).take(30) {
                by_random.push(x, say(x, *u), 1.0);
            }
            let mut left: Vec<usize> = (0..300).collect();
            for _ in 0..20 {
                let some: Vec<Vec<f64>> = left.iter().map(|i| candidates[*i].clone()).collect();
                let question = ask(&Taste::of(&prior, &by_choice), &some, 1, Criterion::Information, 0.0)[0];
                let pair = left.swap_remove(question.pair);
                by_choice.push(&candidates[pair], say(&candidates[pair], luck[pair]), 1.0);
            }
            random += right(&Taste::of(&prior, &by_random)) / 40.0;
            chosen += right(&Taste::of(&prior, &by_choice)) / 40.0;
        }
        assert!(chosen > random, "20 chosen questions: {chosen}, 30 random ones: {random}");
    }
}
