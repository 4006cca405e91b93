//! Several methods on the same votes, seed by seed and vote by vote.

use std::collections::BTreeMap;

use stats::{Cell, Each, Interval, Population, Shrunk, calibration, half_for_equal, shrink, two_way_mean};

use crate::comparison::{Comparison, MethodRow, Verdict};
use crate::evaluate::{Numbers, OWN_FIGURES, deviation, item_of, loss, right, worst_decile};
use crate::prediction::Prediction;

/// A method's predictions of the test votes: one list a seed, each over all folds.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its name in the table.
    pub name: String,
    /// One list a seed.
    pub seeds: Vec<Vec<Prediction>>,
    /// Mean accuracy of other users' factors, where it was measured.
    pub swapped: Option<f64>,
}

/// 80% of a normal lies above its mean minus so many deviations.
const EIGHTY: f64 = 0.841_621;

type Key<'a> = (&'a str, &'a str);

/// Compares methods on the decided votes that all of them predicted with every seed. `global` and `local` name the methods that
/// others are compared with; verdicts are given for `personal`. `None` without a common vote.
pub fn compare(
    methods: &[Method],
    global: Option<&str>,
    local: Option<&str>,
    personal: Option<&str>,
    seed: u64,
) -> Option<Comparison> {
    let common = Common::of(methods, seed)?;
    let index = |name: Option<&str>| methods.iter().position(|m| Some(m.name.as_str()) == name);
    let (global, local, personal) = (index(global), index(local), index(personal));
    let rows = (0..methods.len()).map(|m| common.row(m, global, local)).collect();
    let verdicts = global.zip(personal).and_then(|(g, p)| common.verdicts(g, p));
    Some(Comparison {
        votes: common.votes(),
        users: common.places.iter().map(|(u, _)| *u).max().map_or(0, |u| u + 1),
        baselines: common.baselines(global),
        methods: rows,
        verdicts_of: verdicts.is_some().then(|| personal.map(|p| methods[p].name.clone())).flatten(),
        verdicts: verdicts.unwrap_or_default(),
    })
}

/// The decided votes that every method predicted with every seed.
struct Common<'a> {
    methods: &'a [Method],
    /// Predictions by method, vote, seed.
    of: Vec<Vec<Vec<&'a Prediction>>>,
    /// Each vote's user and item, numbered.
    places: Vec<(usize, usize)>,
    /// Draws the bootstraps.
    seed: u64,
}

impl<'a> Common<'a> {
    /// `None` if there is no such vote.
    fn of(methods: &'a [Method], seed: u64) -> Option<Self> {
        let lists: Vec<BTreeMap<Key, Vec<&Prediction>>> = methods.iter().map(by_vote).collect();
        let everywhere =
            |k: &&Key| lists.iter().zip(methods).all(|(l, m)| l.get(*k).is_some_and(|v| v.len() == m.seeds.len()));
        let keys: Vec<Key> = lists.first()?.keys().filter(everywhere).copied().collect();
        let one: Vec<&Prediction> = keys.iter().map(|k| lists[0][k][0]).collect();
        if one.is_empty() {
            return None;
        }
        let item = item_of(&one);
        let (mut users, mut items) = (Numbers::new(), Numbers::new());
        let places = one.iter().map(|p| (users.of(&p.user), items.of(item(p)))).collect();
        let of = lists.into_iter().map(|mut l| keys.iter().filter_map(|k| l.remove(k)).collect()).collect();
        Some(Self { methods, of, places, seed })
    }

    fn votes(&self) -> usize {
        self.places.len()
    }

    /// Any method's prediction of a vote, for what methods do not differ in.
    fn one(&self, vote: usize) -> &'a Prediction {
        self.of[0][vote][0]
    }

    /// `value(vote, seed)` of every vote and seed.
    fn cells(&self, value: &dyn Fn(usize, usize) -> f64, seeds: usize) -> Vec<Cell> {
        let cell = |(v, (user, item)): (usize, &(usize, usize))| {
            let values = (0..seeds).map(|s| value(v, s)).collect();
            Cell { user: *user, item: *item, values }
        };
        self.places.iter().enumerate().map(cell).collect()
    }

    fn interval(&self, cells: &[Cell], each: Each, what: &str) -> Interval {
        two_way_mean(cells, each, &mut run::rng(self.seed, &["compare", what])).expect("at least one vote")
    }

    /// A method's figure minus another's, paired by vote; none against itself. Of two methods with several seeds each, fits are paired in
    /// order; one with a single fit is compared with all.
    fn minus(&self, m: usize, other: Option<usize>, each: Each, what: fn(&Prediction) -> f64) -> Option<Interval> {
        let o = other.filter(|o| *o != m)?;
        let (ours, theirs) = (self.methods[m].seeds.len(), self.methods[o].seeds.len());
        let difference = |v: usize, s: usize| what(self.of[m][v][s % ours]) - what(self.of[o][v][s % theirs]);
        Some(self.interval(&self.cells(&difference, ours.max(theirs)), each, "difference"))
    }

    fn row(&self, m: usize, global: Option<usize>, local: Option<usize>) -> MethodRow {
        let (method, of) = (&self.methods[m], &self.of[m]);
        let seeds = method.seeds.len();
        let own = self.cells(&|v, s| right(of[v][s]), seeds);
        let all: Vec<f64> = of.iter().flatten().map(|p| p.probability).collect();
        let judged = calibration(&all).expect("at least one vote");
        let mut by_user: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
        for cell in &own {
            let sum = by_user.entry(cell.user).or_default();
            *sum = (sum.0 + cell.values.iter().sum::<f64>() / seeds as f64, sum.1 + 1.0);
        }
        let accuracies: Vec<f64> = by_user.values().map(|(sum, n)| sum / n).collect();
        let many: Vec<f64> =
            by_user.values().filter(|(_, n)| *n >= OWN_FIGURES as f64).map(|(sum, n)| sum / n).collect();
        let of_seed = |s: usize| mean_over_users(&self.cells(&|v, _| right(of[v][s]), 1));
        let each_seed: Vec<f64> = (0..seeds).map(of_seed).collect();
        MethodRow {
            name: method.name.clone(),
            seeds,
            votes: self.votes(),
            accuracy: self.interval(&own, Each::User, "accuracy"),
            accuracy_by_vote: self.interval(&own, Each::Vote, "accuracy"),
            between_seeds: if seeds > 1 { deviation(&each_seed) } else { 0.0 },
            log_loss: judged.log_loss,
            log_loss_minus_global: self.minus(m, global, Each::Vote, loss),
            log_loss_minus_local: self.minus(m, local, Each::Vote, loss),
            brier: judged.brier,
            ece: judged.ece,
            worst_decile: worst_decile(if many.is_empty() { accuracies.clone() } else { many }),
            dispersion: deviation(&accuracies),
            minus_global: self.minus(m, global, Each::User, right),
            minus_local: self.minus(m, local, Each::User, right),
            minus_global_by_vote: self.minus(m, global, Each::Vote, right),
            minus_local_by_vote: self.minus(m, local, Each::Vote, right),
            swapped: method.swapped,
        }
    }

    /// Accuracies of what needs no fit.
    fn baselines(&self, global: Option<usize>) -> BTreeMap<String, Interval> {
        let plain = |name: &str, value: &dyn Fn(&Prediction) -> f64| {
            let cells = self.cells(&|v, _| value(self.one(v)), 1);
            (name.to_owned(), self.interval(&cells, Each::User, name))
        };
        let mut all = BTreeMap::from([
            plain("longer", &|p| p.longer),
            plain("others", &|p| if p.majority.is_nan() { 0.5 } else { p.majority }),
        ]);
        if let Some(g) = global
            && self.of[g].iter().all(|seeds| !seeds[0].with_lean.is_nan())
        {
            let value = |v: usize, s: usize| half_for_equal(self.of[g][v][s].with_lean, 0.5);
            let cells = self.cells(&value, self.methods[g].seeds.len());
            all.insert("global_with_lean".into(), self.interval(&cells, Each::User, "lean"));
        }
        all
    }

    /// Whom the method `personal` serves better than `global`, by users' shrunk gains in log-loss.
    fn verdicts(&self, global: usize, personal: usize) -> Option<Vec<Verdict>> {
        let mean_loss = |m: usize, v: usize| {
            let seeds = &self.of[m][v];
            seeds.iter().map(|p| loss(p)).sum::<f64>() / seeds.len() as f64
        };
        let mut gains: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for v in 0..self.votes() {
            gains.entry(&self.one(v).user).or_default().push(mean_loss(global, v) - mean_loss(personal, v));
        }
        let values: Vec<Vec<f64>> = gains.values().cloned().collect();
        let Population { users, .. } = shrink(&values)?;
        let verdict = |(user, shrunk): (&&str, Option<Shrunk>)| {
            let s = shrunk?;
            let personal = s.mean - EIGHTY * s.deviation > 0.0;
            Some(Verdict {
                user: (*user).to_owned(),
                votes: s.votes,
                gain: s.mean,
                deviation: s.deviation,
                own_gain: (s.votes >= OWN_FIGURES).then_some(s.own),
                verdict: if personal { "personal" } else { "use the shared model" }.into(),
            })
        };
        Some(gains.keys().zip(users).filter_map(verdict).collect())
    }
}

fn mean_over_users(cells: &[Cell]) -> f64 {
    let mut by_user: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for cell in cells {
        let sum = by_user.entry(cell.user).or_default();
        *sum = (sum.0 + cell.values[0], sum.1 + 1.0);
    }
    by_user.values().map(|(sum, n)| sum / n).sum::<f64>() / by_user.len() as f64
}

/// A method's predictions of each decided vote, in the order of its seeds.
fn by_vote(method: &Method) -> BTreeMap<Key<'_>, Vec<&Prediction>> {
    let mut all: BTreeMap<Key, Vec<&Prediction>> = BTreeMap::new();
    for list in &method.seeds {
        list.iter().filter(|p| !p.tie).for_each(|p| all.entry((&p.user, &p.source_row)).or_default().push(p));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(user: usize, vote: usize, margin: f64) -> Prediction {
        Prediction {
            user: format!("u{user:02}"),
            source_row: format!("f:{user}-{vote}"),
            prompt: format!("p{}", vote % 40),
            pair: format!("q{vote}"),
            tie: vote == 0,
            margin,
            probability: 1.0 / (1.0 + (-margin).exp()),
            with_lean: f64::NAN,
            longer: f64::from(u8::from(!vote.is_multiple_of(4))),
            majority: f64::NAN,
        }
    }

    /// 20 users, 41 votes of which the first is a tie. `global` is right in 3 of 4; `own` in all of the first ten users' votes.
    fn methods() -> Vec<Method> {
        let list = |own: bool| -> Vec<Prediction> {
            let margin = |u: usize, v: usize| {
                if own && u < 10 {
                    2.0
                } else if (u + v).is_multiple_of(4) {
                    -1.0
                } else {
                    1.0
                }
            };
            (0..20).flat_map(|u| (0..41).map(move |v| prediction(u, v, margin(u, v)))).collect()
        };
        let method = |name: &str, own| Method { name: name.into(), seeds: vec![list(own), list(own)], swapped: None };
        vec![method("global", false), method("own", true)]
    }

    #[test]
    fn differences_are_paired_and_verdicts_follow_them() {
        let got = compare(&methods(), Some("global"), None, Some("own"), 7).unwrap();
        assert_eq!((got.votes, got.users), (800, 20));
        let [global, own] = [&got.methods[0], &got.methods[1]];
        assert!((global.accuracy.mean - 0.75).abs() < 1e-12 && global.minus_global.is_none());
        assert!((own.accuracy.mean - 0.875).abs() < 1e-12 && own.between_seeds == 0.0);
        let minus = own.minus_global.unwrap();
        assert!((minus.mean - 0.125).abs() < 1e-12 && minus.low > 0.05 && minus.high < 0.2, "{minus:?}");
        // ln(1 + e^-2) for ten of the twenty, in place of ln(1 + e^-1), which is 1 more where the margin is -1.
        let [sure, unsure] = [2.0f64, 1.0].map(|margin| (-margin).exp().ln_1p());
        let loss = own.log_loss_minus_global.unwrap();
        assert!((loss.mean - (sure - unsure - 0.25) / 2.0).abs() < 1e-12 && loss.high < 0.0, "{loss:?}");
        assert!((own.worst_decile - 0.75).abs() < 1e-12);
        let personal: Vec<&str> =
            got.verdicts.iter().filter(|v| v.verdict == "personal").map(|v| v.user.as_str()).collect();
        assert_eq!(personal, (0..10).map(|u| format!("u{u:02}")).collect::<Vec<_>>());
        assert!((got.baselines["longer"].mean - 0.75).abs() < 1e-12 && got.baselines["others"].mean == 0.5);
        assert!(got.markdown().contains("10 of 20 users are told `personal`"), "{}", got.markdown());
    }

    #[test]
    fn only_votes_that_all_predicted_count() {
        let mut methods = methods();
        methods[1].seeds[1].retain(|p| p.user != "u03");
        let got = compare(&methods, Some("global"), None, Some("own"), 7).unwrap();
        assert_eq!((got.votes, got.users), (760, 19));
        methods[1].seeds[0].clear();
        assert!(compare(&methods, Some("global"), None, None, 7).is_none());
    }
}
