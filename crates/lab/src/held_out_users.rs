//! New people on real votes: how well each method serves somebody after 0, 5, 10, .. of their votes, on prompts that nobody's training votes are
//! about. People are held out in folds; what is asked of a method is in one table, the same people in every column.

use std::collections::{BTreeMap, BTreeSet};

use estimate::{
    Comparisons, Contexts, ContextualFit, EmbeddedVotes, FeaturesFit, Judgements, RewardFeatures, Taste, Tastes,
    TastesFit, components, dot,
};
use nalgebra::{DMatrix, DVector};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use stats::{Prior, logistic, softplus};

use crate::baselines::{Mixture, Network, Simplex, calibrated};

/// A vote on embedded texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedVote {
    /// Whose.
    pub user: usize,
    /// Its prompt's, or its group of prompts', number.
    pub prompt: usize,
    /// The chosen text's row.
    pub chosen: usize,
    /// The rejected text's.
    pub rejected: usize,
    /// Then neither was chosen. Ties count for what is known of a person's ways, and for nothing else here.
    pub tie: bool,
}

/// What is known of a person's ways from some votes: 1, the lean to longer answers and the share of ties, both above the population's and as
/// if four votes more had been like the population's.
struct Ways {
    longer: f64,
    decided: f64,
    ties: f64,
}

impl Ways {
    fn of<'a>(votes: impl IntoIterator<Item = &'a EmbeddedVote>, lengths: &[usize]) -> Self {
        let mut out = Self { longer: 0.0, decided: 0.0, ties: 0.0 };
        for vote in votes {
            if vote.tie {
                out.ties += 1.0;
            } else {
                out.decided += 1.0;
                out.longer += lean(vote, lengths);
            }
        }
        out
    }

    /// `population`: lean a decided vote, ties a vote.
    fn context(&self, population: (f64, f64)) -> Vec<f64> {
        let all = self.decided + self.ties;
        let longer = (self.longer - population.0 * self.decided) / (self.decided + 4.0);
        vec![1.0, longer, (self.ties - population.1 * all) / (all + 4.0)]
    }
}

/// Half a vote for the longer answer, or against it.
fn lean(vote: &EmbeddedVote, lengths: &[usize]) -> f64 {
    match lengths[vote.chosen].cmp(&lengths[vote.rejected]) {
        std::cmp::Ordering::Greater => 0.5,
        std::cmp::Ordering::Equal => 0.0,
        std::cmp::Ordering::Less => -0.5,
    }
}

/// How it is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutStudy {
    /// Folds over people.
    pub folds: usize,
    /// Times that prompts are drawn anew.
    pub splits: usize,
    /// Share of the prompts that are held out.
    pub held_out: f64,
    /// Decided votes that a person must have to be judged: in all, and on the prompts that are held out.
    pub least: (usize, usize),
    /// Votes of the new person; fewer where there are fewer on the prompts to ask about.
    pub shots: Vec<usize>,
    /// Principal components of the embeddings that are kept.
    pub components: usize,
    /// Numbers of learnt reward features, beside everybody's reward, among which training people choose.
    pub features: Vec<usize>,
}

impl Default for HeldOutStudy {
    fn default() -> Self {
        Self {
            folds: 5,
            splits: 6,
            held_out: 0.3,
            least: (40, 5),
            shots: vec![0, 5, 10, 20, 40],
            components: 64,
            features: vec![1, 2, 4, 8],
        }
    }
}

/// One person in one split, by one method.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldOutRow {
    /// Whose.
    pub user: usize,
    /// The split of prompts.
    pub split: usize,
    /// The method.
    pub method: &'static str,
    /// Votes asked, at most.
    pub shots: usize,
    /// Votes judged.
    pub votes: usize,
    /// Of these, those whose chosen text has the higher reward.
    pub right: f64,
}

/// Ridges of everybody's reward that are tried, in votes.
const RIDGES: [f64; 4] = [3.0, 10.0, 30.0, 100.0];
const BASIS: usize = 4;
/// Rank of contextual rewards: there are three contexts.
const RANK: usize = 2;

struct Learnt {
    everybody: DVector<f64>,
    features: RewardFeatures,
    /// The same, with what people do as contexts.
    contextual: RewardFeatures,
    /// LoCo: `[3, e]`
    theta: DMatrix<f64>,
    /// Lean to longer answers a decided vote, ties a vote.
    population: (f64, f64),
    scale: Tastes,
    linear: Prior,
    rewards: Simplex,
    points: Simplex,
}

impl HeldOutStudy {
    /// Runs it on texts `[T, e]` with their `lengths`. People who do not have enough votes train, and are not judged. `rng` starts a stream by
    /// its name: who is held out, and what is asked, do not depend on what methods draw.
    ///
    /// # Panics
    /// If there are fewer people than folds, or too few prompts to hold any out.
    pub fn run<R: Rng>(
        &self,
        texts: &DMatrix<f64>,
        lengths: &[usize],
        votes: &[EmbeddedVote],
        rng: impl Fn(&[&str]) -> R,
        mut progress: impl FnMut(usize, usize),
    ) -> Vec<HeldOutRow> {
        let texts = components(texts, self.components);
        let prompts: Vec<usize> = votes.iter().map(|v| v.prompt).collect::<BTreeSet<_>>().into_iter().collect();
        let people: Vec<usize> = votes.iter().map(|v| v.user).collect::<BTreeSet<_>>().into_iter().collect();
        let held = ((prompts.len() as f64 * self.held_out).round() as usize).clamp(1, prompts.len() - 1);
        let mut rows = Vec::new();
        for split in 0..self.splits {
            let mut drawn = prompts.clone();
            let stream = |what: &str, number: usize| rng(&[what, &split.to_string(), &number.to_string()]);
            drawn.shuffle(&mut stream("prompts", 0));
            let test: BTreeSet<usize> = drawn[..held].iter().copied().collect();
            let mut order = people.clone();
            order.shuffle(&mut stream("people", 0));
            for fold in 0..self.folds {
                let new: BTreeSet<usize> = order.iter().copied().skip(fold).step_by(self.folds).collect();
                let train: Vec<&EmbeddedVote> =
                    votes.iter().filter(|v| !new.contains(&v.user) && !test.contains(&v.prompt)).collect();
                let learnt = self.learn(&texts, lengths, &train, &mut stream("learn", fold));
                for user in &new {
                    let own = |held: bool| -> Vec<EmbeddedVote> {
                        let of = |v: &&EmbeddedVote| v.user == *user && test.contains(&v.prompt) == held;
                        votes.iter().filter(of).copied().collect()
                    };
                    let (mut asked, mut judged) = (own(false), own(true));
                    judged.retain(|v| !v.tie);
                    let decided = asked.iter().filter(|v| !v.tie).count();
                    if decided + judged.len() < self.least.0 || judged.len() < self.least.1 {
                        continue;
                    }
                    asked.shuffle(&mut stream("ask", *user));
                    let own = &mut stream("serve", *user);
                    for (method, shots, right) in self.serve(&texts, lengths, &learnt, &asked, &judged, own) {
                        rows.push(HeldOutRow { user: *user, split, method, shots, votes: judged.len(), right });
                    }
                }
                progress(split * self.folds + fold + 1, self.splits * self.folds);
            }
        }
        rows
    }

    fn learn(
        &self,
        texts: &DMatrix<f64>,
        lengths: &[usize],
        with_ties: &[&EmbeddedVote],
        rng: &mut impl Rng,
    ) -> Learnt {
        let e = texts.ncols();
        let train: Vec<&EmbeddedVote> = with_ties.iter().filter(|v| !v.tie).copied().collect();
        let z = |v: &EmbeddedVote| difference(texts, v);
        // The chosen text is the first of every pair: outcomes are all 1, and a reward without an intercept does not mind.
        let plain = |some: &[&EmbeddedVote], ridge: f64| {
            let rows: Vec<Vec<f64>> = some.iter().map(|v| z(v)).collect();
            let x = DMatrix::from_fn(some.len(), e, |n, j| rows[n][j]);
            logistic(&x, &vec![1.0; some.len()], &vec![1.0; some.len()], &Prior::ridge(ridge, DVector::zeros(e))).mode
        };
        // The ridge that serves people best whose votes were not seen.
        let mut people: Vec<usize> = train.iter().map(|v| v.user).collect::<BTreeSet<_>>().into_iter().collect();
        people.shuffle(rng);
        let out: BTreeSet<usize> = people.iter().copied().take(people.len().div_ceil(4)).collect();
        let (held, rest): (Vec<&EmbeddedVote>, Vec<&EmbeddedVote>) = train.iter().partition(|v| out.contains(&v.user));
        let loss = |ridge: f64| {
            let w = plain(&rest, ridge);
            held.iter().map(|v| softplus(-dot(&w, &z(v)))).sum::<f64>()
        };
        let losses = RIDGES.map(loss);
        let best = (0..RIDGES.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).expect("some ridges");
        let everybody = plain(&train, RIDGES[best]);

        people.sort_unstable();
        let number: BTreeMap<usize, usize> = people.iter().enumerate().map(|(i, u)| (*u, i)).collect();
        let by_person = |features: &dyn Fn(&EmbeddedVote) -> Vec<f64>, d: usize| -> Vec<Judgements> {
            let mut all = vec![Judgements::new(d); people.len()];
            train.iter().for_each(|v| all[number[&v.user]].push(&features(v), 1.0, 1.0));
            all
        };
        let contexts = vec![vec![1.0]; people.len()];
        let how = TastesFit { scale: 0.3, ..TastesFit::default() };
        let mut embedded: Vec<EmbeddedVotes> = vec![Vec::new(); people.len()];
        let mut about: Vec<Vec<usize>> = vec![Vec::new(); people.len()];
        for v in &train {
            embedded[number[&v.user]].push((z(v), 1.0));
            about[number[&v.user]].push(v.prompt);
        }
        let fit = FeaturesFit { features: self.features.clone(), ridge: RIDGES[best].sqrt(), tastes: how };
        let all = Ways::of(with_ties.iter().copied(), lengths);
        let population = (all.longer / all.decided, all.ties / (all.decided + all.ties));
        let mut ways: Vec<Ways> = people.iter().map(|_| Ways::of([], lengths)).collect();
        for (user, own) in people.iter().zip(&mut ways) {
            *own = Ways::of(with_ties.iter().filter(|v| v.user == *user).copied(), lengths);
        }
        let contextual: Vec<Vec<f64>> = ways.iter().map(|w| w.context(population)).collect();
        let mut learnt =
            RewardFeatures::fit_each(&embedded, Some(&about), &[&contexts, &contextual], &everybody, &fit).into_iter();
        let [features, contextual] = [(); 2].map(|()| learnt.next().expect("one of each"));
        // Of every vote its person's other votes are the context: a vote does not explain itself.
        let others = |v: &&EmbeddedVote| {
            let Ways { longer, decided, ties: own } = &ways[number[&v.user]];
            Ways { longer: longer - lean(v, lengths), decided: decided - 1.0, ties: *own }.context(population)
        };
        let data = Comparisons {
            contexts: Contexts::Vectors { d: 3, values: train.iter().flat_map(others).collect() },
            d: e,
            differences: train.iter().flat_map(|v| z(v)).collect(),
            outcomes: vec![1.0; train.len()],
        };
        let loco = ContextualFit { ridge: RIDGES[best].sqrt() / train.len() as f64, gradient: 1e-5, passes: 300 };
        let theta = data.fit(RANK, &loco).0.theta();
        let in_scale = by_person(&|v| vec![dot(&everybody, &z(v))], 1);
        let mut simple: Vec<Vec<(Vec<f64>, f64, f64)>> = vec![Vec::new(); people.len()];
        train.iter().for_each(|v| simple[number[&v.user]].push((z(v), squared(texts, v), 1.0)));
        let ridge = RIDGES[best] / train.len() as f64;
        Learnt {
            scale: Tastes::fit(&in_scale, &contexts, &how),
            linear: Prior::ridge(RIDGES[best], everybody.clone()),
            rewards: Simplex::fit(Mixture::Rewards, BASIS, &simple, ridge, rng),
            points: Simplex::fit(Mixture::IdealPoints, BASIS, &simple, ridge, rng),
            features,
            contextual,
            theta,
            population,
            everybody,
        }
    }

    /// (method, shots, votes that are right) of one person.
    fn serve(
        &self,
        texts: &DMatrix<f64>,
        lengths: &[usize],
        learnt: &Learnt,
        asked: &[EmbeddedVote],
        judged: &[EmbeddedVote],
        rng: &mut impl Rng,
    ) -> Vec<(&'static str, usize, f64)> {
        let z = |v: &EmbeddedVote| difference(texts, v);
        let right = |margin: &dyn Fn(&EmbeddedVote) -> f64| -> f64 {
            judged.iter().map(margin).map(|m| if m == 0.0 { 0.5 } else { f64::from(u8::from(m > 0.0)) }).sum()
        };
        let mut out = Vec::new();
        for shots in &self.shots {
            // So many decided votes, and the ties that came before the last of them.
            let end = asked.iter().enumerate().filter(|(_, v)| !v.tie).nth(*shots).map_or(asked.len(), |(i, _)| i);
            let seen = if *shots == 0 { &[] } else { &asked[..end] };
            let own: Vec<EmbeddedVote> = seen.iter().filter(|v| !v.tie).copied().collect();
            let context = Ways::of(seen, lengths).context(learnt.population);
            let judgements = |features: &dyn Fn(&EmbeddedVote) -> Vec<f64>, d: usize| {
                let mut all = Judgements::new(d);
                own.iter().for_each(|v| all.push(&features(v), 1.0, 1.0));
                all
            };
            let embedded = own.iter().map(|v| (z(v), 1.0)).collect();
            let taste = learnt.features.adapt(&[1.0], &embedded);
            let with_ways = learnt.contextual.adapt(&context, &embedded);
            let loco = learnt.theta.tr_mul(&DVector::from_column_slice(&context));
            let linear = Taste::of(&learnt.linear, &judgements(&|v| z(v), texts.ncols()));
            let scale = calibrated(&learnt.scale, &judgements(&|v| vec![dot(&learnt.everybody, &z(v))], 1));
            let simple: Vec<(Vec<f64>, f64, f64)> = own.iter().map(|v| (z(v), squared(texts, v), 1.0)).collect();
            let mut add = |method, value| out.push((method, *shots, value));
            add("longer", right(&|v| lengths[v.chosen] as f64 - lengths[v.rejected] as f64));
            add("one reward for all", right(&|v| dot(&learnt.everybody, &z(v))));
            add("RFM", right(&|v| dot(&taste.mean, &z(v))));
            add("RFM, prior by ways", right(&|v| dot(&with_ways.mean, &z(v))));
            add("LoCo by ways", right(&|v| dot(&loco, &z(v))));
            add("linear on embeddings", right(&|v| dot(&linear.mean, &z(v))));
            add("own scale", right(&|v| scale * dot(&learnt.everybody, &z(v))));
            for (name, mixture) in [("LoRe", &learnt.rewards), ("ideal points", &learnt.points)] {
                let weights = mixture.adapt(&simple, 0.1);
                add(name, right(&|v| mixture.margin(&weights, (&z(v), squared(texts, v)))));
            }
            if *shots > 0 {
                let row = |t: usize| learnt.features.of(texts.row(t).transpose().as_slice());
                let pairs: Vec<(Vec<f64>, Vec<f64>, f64)> =
                    own.iter().map(|v| (row(v.chosen), row(v.rejected), 1.0)).collect();
                let network = Network::fit(16, &pairs, 0.1, rng);
                add("network", right(&|v| network.score(&row(v.chosen)) - network.score(&row(v.rejected))));
            }
        }
        out
    }
}

fn difference(texts: &DMatrix<f64>, v: &EmbeddedVote) -> Vec<f64> {
    (texts.row(v.chosen) - texts.row(v.rejected)).iter().copied().collect()
}

/// Difference of squared lengths.
fn squared(texts: &DMatrix<f64>, v: &EmbeddedVote) -> f64 {
    texts.row(v.chosen).norm_squared() - texts.row(v.rejected).norm_squared()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_distr::StandardNormal;

    #[test]
    fn votes_of_a_new_person_help_where_people_differ() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let texts = DMatrix::from_fn(300, 12, |_, _| rng.sample::<f64, _>(StandardNormal));
        let lengths: Vec<usize> = (0..300).map(|_| rng.random_range(10..100)).collect();
        let mut votes = Vec::new();
        for user in 0..25 {
            let sign = if user % 2 == 0 { 3.0 } else { -3.0 };
            for _ in 0..80 {
                let prompt = rng.random_range(0..10);
                let (a, b) = (rng.random_range(0..30) * 10 + prompt, rng.random_range(0..30) * 10 + prompt);
                let margin = sign * (texts[(a, 0)] - texts[(b, 0)]);
                let first = rng.random::<f64>() < 1.0 / (1.0 + (-margin).exp());
                let (chosen, rejected) = if first { (a, b) } else { (b, a) };
                if a != b {
                    votes.push(EmbeddedVote { user, prompt, chosen, rejected, tie: false });
                }
            }
        }
        let study =
            HeldOutStudy { splits: 2, components: 12, features: vec![2], least: (40, 10), ..HeldOutStudy::default() };
        let stream = |names: &[&str]| {
            let seed = names.concat().bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
            rand::rngs::StdRng::seed_from_u64(seed)
        };
        let rows = study.run(&texts, &lengths, &votes, stream, |_, _| ());
        let accuracy = |method: &str, shots: usize| {
            let of = rows.iter().filter(|r| r.method == method && r.shots == shots);
            let (right, all) = of.fold((0.0, 0), |(r, n), row| (r + row.right, n + row.votes));
            right / all as f64
        };
        assert!((accuracy("RFM", 0) - 0.5).abs() < 0.12, "{}", accuracy("RFM", 0));
        assert!(
            accuracy("RFM", 20) > accuracy("RFM", 0) + 0.2
                && accuracy("RFM", 20) > accuracy("one reward for all", 20) + 0.2
        );
        // The same people in every column, nobody judged twice in a split.
        for shots in &study.shots {
            let mut people: Vec<(usize, usize)> =
                rows.iter().filter(|r| r.method == "RFM" && r.shots == *shots).map(|r| (r.split, r.user)).collect();
            let count = people.len();
            people.dedup();
            assert!(
                count == people.len() && count == rows.iter().filter(|r| r.method == "LoRe" && r.shots == 0).count()
            );
        }
    }
}
