//! Reward features of embeddings (RFM, arXiv 2503.17338, on a frozen encoder): what people's tastes differ along is learnt from many of
//! them together; a new person is then a short vector of weights.

use std::collections::HashMap;

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stats::Prior;

use crate::comparisons::{Comparisons, Contexts};
use crate::contextual::ContextualFit;
use crate::taste::{Judgements, Taste};
use crate::tastes::{Tastes, TastesFit};

/// A person's votes: differences of embeddings `[e]`, first answer minus second, and outcomes.
pub type EmbeddedVotes = Vec<(Vec<f64>, f64)>;

/// Learnt features and how tastes over them vary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardFeatures {
    /// `[e, 1 + d]`: everybody's reward, then d features.
    pub map: DMatrix<f64>,
    /// Over the `1 + d` features, given a context.
    pub tastes: Tastes,
    /// Variance of a person's weight on each number of an embedding beside what the features explain: with many votes somebody may
    /// differ from all others in a way of their own.
    pub rest: f64,
}

/// How far tastes vary.
#[derive(Clone, Copy)]
struct Variation {
    /// Along features, times what was found.
    features: f64,
    /// In every direction, times the mean over directions of what was found along features.
    rest: f64,
}

/// How features are learnt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeaturesFit {
    /// Numbers d of features, beside everybody's reward, of which new people choose as well.
    pub features: Vec<usize>,
    /// Weight of both factors' squared norms, in votes.
    pub ridge: f64,
    /// How the distribution of tastes is fitted.
    pub tastes: TastesFit,
}

/// Variations in every direction that are tried, relative to that along features.
const RESTS: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];
/// New people of a fold who judge what is tried, at most.
const JUDGES: usize = 50;
/// Shares of the covariance of tastes that are tried; of equals the first is taken.
const SHARES: [f64; 6] = [1.0, 0.5, 0.2, 0.1, 0.03, 0.01];
const FOLDS: usize = 4;

impl RewardFeatures {
    /// Features of the training people's votes by [`Self::joint`], and how tastes over them vary with the `contexts`, one row a person.
    ///
    /// How many features there are and how far tastes are taken to vary is chosen by what serves new people best, as features fitted to some
    /// votes make their people look more different than they are: each quarter of the people is new to a fit of the others; every other
    /// vote of theirs is asked, the rest judged.
    ///
    /// # Panics
    /// If there are fewer than two people, or sizes do not fit.
    pub fn fit(people: &[EmbeddedVotes], contexts: &[Vec<f64>], everybody: &DVector<f64>, how: &FeaturesFit) -> Self {
        Self::fit_each(people, None, &[contexts], everybody, how).pop().expect("one of each")
    }

    /// The same for several kinds of contexts, whose features are the same ones. `about` numbers what each vote is about, such as its prompt:
    /// then new people are asked about every other of these, and judged on the rest, as what votes on one prompt share need not say anything
    /// about another. Who voted about one thing alone judges nothing.
    ///
    /// # Panics
    /// As [`Self::fit`].
    pub fn fit_each(
        people: &[EmbeddedVotes],
        about: Option<&[Vec<usize>]>,
        contexts: &[&[Vec<f64>]],
        everybody: &DVector<f64>,
        how: &FeaturesFit,
    ) -> Vec<Self> {
        let folds: Vec<(Vec<usize>, Vec<usize>)> =
            (0..FOLDS.min(people.len())).map(|fold| (0..people.len()).partition(|h| h % FOLDS == fold)).collect();
        // Of each person's votes, which are asked.
        let asked: Vec<Vec<bool>> = people
            .iter()
            .enumerate()
            .map(|(h, own)| {
                about.map_or_else(|| every_other(0..own.len()), |about| every_other(about[h].iter().copied()))
            })
            .collect();
        // (number of features, maps of the folds)
        let tried: Vec<(usize, Vec<DMatrix<f64>>)> = how
            .features
            .iter()
            .map(|d| {
                let map = |(_, known): &(Vec<usize>, Vec<usize>)| {
                    let votes: Vec<EmbeddedVotes> = known.iter().map(|h| people[*h].clone()).collect();
                    Self::joint(&votes, everybody, *d, how.ridge)
                };
                (*d, folds.iter().map(map).collect())
            })
            .collect();
        let one = |contexts: &&[Vec<f64>]| {
            let mut best = (f64::INFINITY, 0, Variation { features: 1.0, rest: RESTS[0] });
            for (d, maps) in &tried {
                let first: Vec<Self> = folds
                    .iter()
                    .zip(maps)
                    .map(|((_, known), map)| {
                        let pick = |h: &usize| (people[*h].clone(), contexts[*h].clone());
                        let (votes, of_known): (Vec<_>, Vec<_>) = known.iter().map(pick).unzip();
                        Self::over(map.clone(), &votes, &of_known, how)
                    })
                    .collect();
                // Along features first, then in every direction.
                let mut of_d = (f64::INFINITY, best.2);
                let all = SHARES.map(|share| (Some(share), RESTS[0])).into_iter();
                for (share, rest) in all.chain(RESTS[1..].iter().map(|rest| (None, *rest))) {
                    let varied = Variation { features: share.unwrap_or(of_d.1.features), rest };
                    let of_fold = |(first, (new, _)): (&Self, &(Vec<usize>, Vec<usize>))| -> f64 {
                        let some = first.varying(varied);
                        let precision = some.precision();
                        let judges: Vec<usize> =
                            new.iter().copied().filter(|h| asked[*h].contains(&false)).take(JUDGES).collect();
                        let loss = |h: &usize| some.loss_on(&precision, &contexts[*h], &people[*h], &asked[*h]);
                        let losses: Vec<f64> = judges.par_iter().map(loss).collect();
                        losses.iter().sum()
                    };
                    let loss = first.iter().zip(&folds).map(of_fold).sum::<f64>();
                    if loss < of_d.0 {
                        of_d = (loss, varied);
                    }
                }
                if of_d.0 < best.0 {
                    best = (of_d.0, *d, of_d.1);
                }
            }
            let (_, d, varied) = best;
            let map = Self::joint(people, everybody, d, how.ridge);
            Self::over(map, people, contexts, how).varying(varied)
        };
        contexts.iter().map(one).collect()
    }

    /// How tastes over given features vary with the contexts.
    fn over(map: DMatrix<f64>, people: &[EmbeddedVotes], contexts: &[Vec<f64>], how: &FeaturesFit) -> Self {
        let judged: Vec<Judgements> = people.iter().map(|own| judge(map.ncols(), own, |z| phi(&map, z))).collect();
        Self { tastes: Tastes::fit(&judged, contexts, &how.tastes), map, rest: 0.0 }
    }

    /// The same with tastes that vary by a share of what was found, and by something in every direction.
    fn varying(&self, by: Variation) -> Self {
        let tastes = Tastes { map: self.tastes.map.clone(), covariance: &self.tastes.covariance * by.features };
        let along = (&self.map * &self.tastes.covariance).dot(&self.map); // trace of M L M'
        Self { map: self.map.clone(), tastes, rest: by.rest * along / self.map.nrows() as f64 }
    }

    /// Log-loss on somebody's other votes after those that are `asked`.
    fn loss_on(&self, precision: &DMatrix<f64>, context: &[f64], votes: &EmbeddedVotes, asked: &[bool]) -> f64 {
        let of = |wanted: bool| votes.iter().zip(asked).filter(move |(_, asked)| **asked == wanted).map(|(v, _)| v);
        let asked = judge(self.map.nrows(), of(true), <[f64]>::to_vec);
        let mean = &self.map * self.tastes.mean(context);
        let taste = Taste::of(&Prior { mean, precision: precision.clone() }, &asked);
        let loss = |(z, y): &(Vec<f64>, f64)| {
            let p = taste.probability(z).clamp(1e-12, 1.0 - 1e-12);
            -(y * p.ln() + (1.0 - y) * (1.0 - p).ln())
        };
        of(false).map(loss).sum()
    }

    /// Features `[e, 1 + d]`: `everybody`'s reward `[e]`, and those that explain the training people's votes best together with a taste of
    /// each of them, by their joint likelihood (one-hot contexts).
    ///
    /// The gauge (`phi -> M phi`, `w -> M^-T w` changes nothing): every feature has unit deviation over the training votes' differences.
    ///
    /// # Panics
    /// If there are no votes, or sizes do not fit.
    pub fn joint(people: &[EmbeddedVotes], everybody: &DVector<f64>, d: usize, ridge: f64) -> DMatrix<f64> {
        let e = everybody.len();
        let all: Vec<&(Vec<f64>, f64)> = people.iter().flatten().collect();
        let index = people.iter().enumerate().flat_map(|(h, own)| vec![h; own.len()]).collect();
        let data = Comparisons {
            contexts: Contexts::People { count: people.len(), index },
            d: e,
            differences: all.iter().flat_map(|v| v.0.clone()).collect(),
            outcomes: all.iter().map(|v| v.1).collect(),
        };
        let fit = ContextualFit { ridge: ridge / all.len() as f64, gradient: 1e-5, passes: 300 };
        let learnt = data.fit(d, &fit).0.v;
        let map = DMatrix::from_fn(e, d + 1, |i, j| if j == 0 { everybody[i] } else { learnt[(i, j - 1)] });
        let mut squares = DVector::<f64>::zeros(d + 1);
        for (z, _) in &all {
            squares += map.tr_mul(&DVector::from_column_slice(z)).map(|f| f * f) / all.len() as f64;
        }
        DMatrix::from_fn(e, d + 1, |i, j| map[(i, j)] / squares[j].sqrt().max(1e-9))
    }

    /// Features `[1 + d]` of an embedding, or of a difference of two.
    pub fn of(&self, embedding: &[f64]) -> Vec<f64> {
        phi(&self.map, embedding)
    }

    /// What is known of somebody with this context before any vote, as weights on embeddings `[e]`: `M G x`, with the covariance
    /// `M L M' + rest I`.
    ///
    /// # Panics
    /// If `rest` is not positive, which [`Self::fit`] does not make.
    pub fn prior(&self, context: &[f64]) -> Prior {
        Prior { mean: &self.map * self.tastes.mean(context), precision: self.precision() }
    }

    /// `(M L M' + rest I)^-1`
    fn precision(&self) -> DMatrix<f64> {
        let e = self.map.nrows();
        let along = &self.map * &self.tastes.covariance * self.map.transpose();
        let precision = (along + DMatrix::identity(e, e) * self.rest).cholesky().expect("a positive rest").inverse();
        (&precision + precision.transpose()) / 2.0
    }

    /// Somebody's weights on embeddings by their context and votes.
    pub fn adapt(&self, context: &[f64], votes: &EmbeddedVotes) -> Taste {
        Taste::of(&self.prior(context), &judge(self.map.nrows(), votes, <[f64]>::to_vec))
    }
}

/// Is each of these about the first, third, fifth .. of the things that they are about, in the order in which these appear?
fn every_other(about: impl Iterator<Item = usize>) -> Vec<bool> {
    let mut known: HashMap<usize, usize> = HashMap::new();
    about
        .map(|thing| {
            let next = known.len();
            known.entry(thing).or_insert(next).is_multiple_of(2)
        })
        .collect()
}

/// Votes in `d` features of their embeddings.
fn judge<'a>(
    d: usize,
    votes: impl IntoIterator<Item = &'a (Vec<f64>, f64)>,
    features: impl Fn(&[f64]) -> Vec<f64>,
) -> Judgements {
    let mut out = Judgements::new(d);
    votes.into_iter().for_each(|(z, y)| out.push(&features(z), *y, 1.0));
    out
}

fn phi(map: &DMatrix<f64>, e: &[f64]) -> Vec<f64> {
    map.tr_mul(&DVector::from_column_slice(e)).iter().copied().collect()
}

/// `<w, x>`
pub fn dot(w: &DVector<f64>, x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| w * x).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_distr::StandardNormal;

    #[test]
    fn the_gauge_holds_and_nobody_new_changes_it() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(3);
        let people: Vec<EmbeddedVotes> = (0..30)
            .map(|h| {
                let sign = if h % 2 == 0 { 3.0 } else { -3.0 };
                let vote = |rng: &mut rand::rngs::StdRng| {
                    let z: Vec<f64> = (0..8).map(|_| rng.sample(StandardNormal)).collect();
                    let p = 1.0 / (1.0 + (-(sign * z[0] + z[1])).exp());
                    (z, f64::from(u8::from(rng.random::<f64>() < p)))
                };
                (0..40).map(|_| vote(&mut rng)).collect()
            })
            .collect();
        let mut everybody = DVector::zeros(8);
        everybody[1] = 1.0;
        let how = FeaturesFit { features: vec![1, 3], ridge: 1.0, tastes: TastesFit::default() };
        let found = RewardFeatures::fit(&people, &vec![vec![1.0]; 30], &everybody, &how);
        let mut squares = [0.0; 2];
        for (z, _) in people.iter().flatten() {
            squares.iter_mut().zip(found.of(z)).for_each(|(s, f)| *s += f * f / 1200.0);
        }
        assert!(squares.iter().all(|s| (s - 1.0).abs() < 1e-9), "{squares:?}");
        // What people differ along is found, and 40 votes say on which side somebody stands.
        let along = found.map.column(1).normalize();
        assert!(along[0].abs() > 0.95, "{along}");
        let (a, b) = (found.adapt(&[1.0], &people[0]), found.adapt(&[1.0], &people[1]));
        assert!(a.mean[0] > 0.5 && b.mean[0] < -0.5 && a.mean[1] > 0.0 && b.mean[1] > 0.0, "{} {}", a.mean, b.mean);
        // Without votes it is the population's mean, which has no side.
        let nobody = found.adapt(&[1.0], &vec![]);
        assert!(nobody.mean[0].abs() < 0.3 * a.mean[0] && nobody.mean[1] > 0.0);
    }

    #[test]
    fn what_people_share_on_one_prompt_alone_does_not_make_tastes_vary() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(5);
        // Everybody takes one of two sides on each of four prompts, and sides on one say nothing of those on another.
        let (mut people, mut about): (Vec<EmbeddedVotes>, Vec<Vec<usize>>) = (vec![], vec![]);
        for _ in 0..60 {
            let sides: [f64; 4] = std::array::from_fn(|_| if rng.random::<bool>() { 3.0 } else { -3.0 });
            let prompts: Vec<usize> = (0..40).map(|v| v / 10).collect();
            let vote = |prompt: &usize| {
                let z: Vec<f64> = (0..6).map(|_| rng.sample(StandardNormal)).collect();
                let p = 1.0 / (1.0 + (-(sides[*prompt] * z[0] + z[1])).exp());
                (z, f64::from(u8::from(rng.random::<f64>() < p)))
            };
            people.push(prompts.iter().map(vote).collect());
            about.push(prompts);
        }
        let mut everybody = DVector::zeros(6);
        everybody[1] = 1.0;
        let how = FeaturesFit { features: vec![1], ridge: 1.0, tastes: TastesFit::default() };
        let contexts = vec![vec![1.0]; 60];
        let spread = |about: Option<&[Vec<usize>]>| {
            let found = RewardFeatures::fit_each(&people, about, &[&contexts], &everybody, &how).remove(0);
            (&found.map * &found.tastes.covariance).dot(&found.map)
        };
        let (by_vote, by_prompt) = (spread(None), spread(Some(&about)));
        assert!(by_prompt < 0.2 * by_vote, "{by_prompt} {by_vote}");
        // Votes about a thing each are every other vote.
        assert_eq!(every_other([4, 7, 4, 9, 7].into_iter()), [true, false, true, true, false]);
        let one_each: Vec<Vec<usize>> = people.iter().map(|own| (0..own.len()).collect()).collect();
        assert_eq!(spread(Some(&one_each)), by_vote);
    }
}
