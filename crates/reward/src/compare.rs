//! Several methods on the same votes: one table, with paired differences and a verdict for every user.

use std::collections::BTreeMap;

use estimate::{Cell, Each, Interval, Population, calibration, shrink, two_way_mean};
use problem::Result;
use serde::{Deserialize, Serialize};

use crate::evaluate::{Numbers, OWN_FIGURES, deviation, item_of, loss, right, worst_decile};
use crate::predictions::Prediction;

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

/// A row of the table. Intervals are of 95%, over users, prompts (pairs of answers where there are fewer than 20 prompts) and
/// seeds; accuracies are means over users, and over seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodRow {
    /// The method.
    pub name: String,
    /// Fits that were averaged.
    pub seeds: usize,
    /// Decided votes that every method predicted.
    pub votes: usize,
    /// Mean accuracy over users.
    pub accuracy: Interval,
    /// Mean accuracy over votes.
    pub accuracy_by_vote: Interval,
    /// Deviation of the mean accuracy between seeds.
    pub between_seeds: f64,
    /// Mean of -ln P(chosen), over votes and seeds.
    pub log_loss: f64,
    /// It minus that of the model that is one for all, over votes: below zero where the method is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_loss_minus_global: Option<Interval>,
    /// It minus that of separate models, over votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_loss_minus_local: Option<Interval>,
    /// Brier score, over votes and seeds.
    pub brier: f64,
    /// Expected calibration error, over votes and seeds.
    pub ece: f64,
    /// Mean accuracy of the tenth of users who are served worst.
    pub worst_decile: f64,
    /// Deviation of accuracies between users.
    pub dispersion: f64,
    /// Accuracy minus that of the model that is one for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minus_global: Option<Interval>,
    /// Accuracy minus that of separate models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minus_local: Option<Interval>,
    /// The first of the two, over votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minus_global_by_vote: Option<Interval>,
    /// The second, over votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minus_local_by_vote: Option<Interval>,
    /// Other users' factors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped: Option<f64>,
}

/// Whom a personal model serves better than the one for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The user.
    pub user: String,
    /// Test votes.
    pub votes: usize,
    /// Log-loss of the shared model minus that of the personal one: the posterior mean given all users' differences ...
    pub gain: f64,
    /// ... and its standard deviation.
    pub deviation: f64,
    /// The user's own difference, from 20 votes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_gain: Option<f64>,
    /// `personal`, where the gain is above zero with a probability of 0.8; else `use the shared model`.
    pub verdict: String,
}

/// Everything that is said of several methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Decided votes that every method predicted.
    pub votes: usize,
    /// Users who cast them.
    pub users: usize,
    /// Accuracies, over users, of what needs no fit: `longer` answer, `others` (the others' majority on the pair; votes without one
    /// count one half), `global_with_lean` (the model for all, with each user's lean to the answer shown first).
    pub baselines: BTreeMap<String, Interval>,
    /// One a method.
    pub methods: Vec<MethodRow>,
    /// Of the method `verdicts_of`, against the model that is one for all.
    pub verdicts: Vec<Verdict>,
    /// The method that verdicts speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts_of: Option<String>,
}

/// 80% of a normal lies above its mean minus so many deviations.
const EIGHTY: f64 = 0.841_621;

type Key<'a> = (&'a str, &'a str);

fn key(p: &Prediction) -> Key<'_> {
    (&p.user, &p.source_row)
}

/// Compares methods on the decided votes that all of them predicted with every seed. `global` and `local` name the methods that
/// others are held against; verdicts are given for `personal`. `None` without a common vote.
pub fn compare(
    methods: &[Method],
    global: Option<&str>,
    local: Option<&str>,
    personal: Option<&str>,
    seed: u64,
) -> Option<Comparison> {
    let lists: Vec<BTreeMap<Key, Vec<&Prediction>>> = methods.iter().map(by_vote).collect();
    let common: Vec<Key> = lists
        .first()?
        .keys()
        .filter(|k| lists.iter().zip(methods).all(|(l, m)| l.get(*k).is_some_and(|v| v.len() == m.seeds.len())))
        .copied()
        .collect();
    let one: Vec<&Prediction> = common.iter().map(|k| lists[0][k][0]).collect();
    if one.is_empty() {
        return None;
    }
    let item = item_of(&one);
    let (mut users, mut items) = (Numbers::new(), Numbers::new());
    let places: Vec<(usize, usize)> = one.iter().map(|p| (users.of(&p.user), items.of(item(p)))).collect();
    let cells = |value: &dyn Fn(usize, usize) -> f64, seeds: usize| -> Vec<Cell> {
        let cell = |(v, (user, item)): (usize, &(usize, usize))| {
            let values = (0..seeds).map(|s| value(v, s)).collect();
            Cell { user: *user, item: *item, values }
        };
        places.iter().enumerate().map(cell).collect()
    };
    let interval = |cells: &[Cell], each, what: &str| {
        two_way_mean(cells, each, &mut run::rng(seed, &["compare", what])).expect("at least one vote")
    };
    let of = |method: usize, vote: usize, s: usize| lists[method][&common[vote]][s];
    let index = |name: Option<&str>| methods.iter().position(|m| Some(m.name.as_str()) == name);
    let (global, local, personal) = (index(global), index(local), index(personal));

    let rows = methods.iter().enumerate().map(|(m, method)| {
        let seeds = method.seeds.len();
        let own = cells(&|v, s| right(of(m, v, s)), seeds);
        let all: Vec<f64> = (0..common.len())
            .flat_map(|v| (0..seeds).map(move |s| (v, s)))
            .map(|(v, s)| of(m, v, s).probability)
            .collect();
        let judged = calibration(&all).expect("at least one vote");
        let mut by_user: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
        for cell in &own {
            let sum = by_user.entry(cell.user).or_default();
            *sum = (sum.0 + cell.values.iter().sum::<f64>() / seeds as f64, sum.1 + 1.0);
        }
        let accuracies: Vec<f64> = by_user.values().map(|(sum, n)| sum / n).collect();
        let many: Vec<f64> =
            by_user.values().filter(|(_, n)| *n >= OWN_FIGURES as f64).map(|(sum, n)| sum / n).collect();
        // Of two methods with several seeds each, fits are paired in order; one with a single fit stands against all.
        let minus = |other: Option<usize>, each, what: fn(&Prediction) -> f64| {
            other.filter(|o| *o != m).map(|o| {
                let theirs = methods[o].seeds.len();
                let difference =
                    cells(&|v, s| what(of(m, v, s % seeds)) - what(of(o, v, s % theirs)), seeds.max(theirs));
                interval(&difference, each, "difference")
            })
        };
        let each_seed: Vec<f64> = (0..seeds)
            .map(|s| {
                let one = cells(&|v, _| right(of(m, v, s)), 1);
                mean_over_users(&one)
            })
            .collect();
        MethodRow {
            name: method.name.clone(),
            seeds,
            votes: common.len(),
            accuracy: interval(&own, Each::User, "accuracy"),
            accuracy_by_vote: interval(&own, Each::Vote, "accuracy"),
            between_seeds: if seeds > 1 { deviation(&each_seed) } else { 0.0 },
            log_loss: judged.log_loss,
            log_loss_minus_global: minus(global, Each::Vote, loss),
            log_loss_minus_local: minus(local, Each::Vote, loss),
            brier: judged.brier,
            ece: judged.ece,
            worst_decile: worst_decile(if many.is_empty() { accuracies.clone() } else { many }),
            dispersion: deviation(&accuracies),
            minus_global: minus(global, Each::User, right),
            minus_local: minus(local, Each::User, right),
            minus_global_by_vote: minus(global, Each::Vote, right),
            minus_local_by_vote: minus(local, Each::Vote, right),
            swapped: method.swapped,
        }
    });
    let rows: Vec<MethodRow> = rows.collect();

    let mut baselines = BTreeMap::new();
    let mut baseline = |name: &str, value: &dyn Fn(&Prediction) -> f64| {
        let cells = cells(&|v, _| value(one[v]), 1);
        baselines.insert(name.to_owned(), interval(&cells, Each::User, name));
    };
    baseline("longer", &|p| p.longer);
    baseline("others", &|p| if p.majority.is_nan() { 0.5 } else { p.majority });
    if let Some(g) = global
        && (0..common.len()).all(|v| !of(g, v, 0).with_lean.is_nan())
    {
        let cells =
            cells(&|v, s| crate::predictions::half_for_equal(of(g, v, s).with_lean, 0.5), methods[g].seeds.len());
        baselines.insert("global_with_lean".into(), interval(&cells, Each::User, "lean"));
    }

    let verdicts = global.zip(personal).and_then(|(g, p)| {
        let mean_loss = |m: usize, v: usize| {
            let seeds = methods[m].seeds.len();
            (0..seeds).map(|s| loss(of(m, v, s))).sum::<f64>() / seeds as f64
        };
        let mut gains: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (v, p_vote) in one.iter().enumerate() {
            gains.entry(&p_vote.user).or_default().push(mean_loss(g, v) - mean_loss(p, v));
        }
        let values: Vec<Vec<f64>> = gains.values().cloned().collect();
        let Population { users, .. } = shrink(&values)?;
        let verdict = |(user, shrunk): (&&str, Option<estimate::Shrunk>)| {
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
        Some(gains.keys().zip(users).filter_map(verdict).collect::<Vec<Verdict>>())
    });
    Some(Comparison {
        votes: common.len(),
        users: places.iter().map(|(u, _)| *u).max().map_or(0, |u| u + 1),
        baselines,
        methods: rows,
        verdicts_of: verdicts.is_some().then(|| personal.map(|p| methods[p].name.clone())).flatten(),
        verdicts: verdicts.unwrap_or_default(),
    })
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
        list.iter().filter(|p| !p.tie).for_each(|p| all.entry(key(p)).or_default().push(p));
    }
    all
}

impl Comparison {
    /// Paired differences to the model that is one for all, as a plot; nothing without one.
    pub fn plot(&self, path: &std::path::Path) -> Result<()> {
        let held: Vec<&MethodRow> = self.methods.iter().filter(|m| m.minus_global.is_some()).collect();
        if held.is_empty() {
            return Ok(());
        }
        let panel = |what: &str, of: fn(&MethodRow) -> Option<Interval>| {
            (what.to_owned(), held.iter().map(|m| of(m).map(|i| [i.mean, i.low, i.high])).collect())
        };
        let panels = [
            panel("accuracy over users, minus global", |m| m.minus_global),
            panel("accuracy over votes, minus global", |m| m.minus_global_by_vote),
            panel("log-loss over votes, minus global: less is better", |m| m.log_loss_minus_global),
        ];
        let names: Vec<String> = held.iter().map(|m| m.name.clone()).collect();
        let title = format!("{} decided test votes of {} users, 95%", self.votes, self.users);
        run::interval_plot(path, &title, &names, &panels)
    }

    /// The tables, for a reader.
    pub fn markdown(&self) -> String {
        let number = |x: f64| format!("{x:.3}");
        let interval = |i: &Interval| format!("{:.3} [{:.3}, {:.3}]", i.mean, i.low, i.high);
        let signed = |i: &Option<Interval>| {
            i.as_ref().map_or(String::new(), |i| format!("{:+.3} [{:+.3}, {:+.3}]", i.mean, i.low, i.high))
        };
        let mut text = format!("{} decided test votes of {} users\n\n", self.votes, self.users);
        text += "| method | fits | accuracy, over users | minus global | minus local | over votes | minus global | minus local |\n";
        text += "| --- | --- | --- | --- | --- | --- | --- | --- |\n";
        for m in &self.methods {
            let cells = [
                m.name.clone(),
                m.seeds.to_string(),
                interval(&m.accuracy),
                signed(&m.minus_global),
                signed(&m.minus_local),
                interval(&m.accuracy_by_vote),
                signed(&m.minus_global_by_vote),
                signed(&m.minus_local_by_vote),
            ];
            text += &format!("| {} |\n", cells.join(" | "));
        }
        text += "\n| method | log-loss, over votes | minus global | minus local | Brier | ECE | worst decile of users | deviation over users | over seeds | others' factors |\n";
        text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
        for m in &self.methods {
            let cells = [
                m.name.clone(),
                number(m.log_loss),
                signed(&m.log_loss_minus_global),
                signed(&m.log_loss_minus_local),
                number(m.brier),
                number(m.ece),
                number(m.worst_decile),
                number(m.dispersion),
                number(m.between_seeds),
                m.swapped.map_or(String::new(), number),
            ];
            text += &format!("| {} |\n", cells.join(" | "));
        }
        text += "\n| baseline | accuracy |\n| --- | --- |\n";
        for (name, value) in &self.baselines {
            text += &format!("| {} | {} |\n", name.replace('_', " "), interval(value));
        }
        if let Some(of) = &self.verdicts_of {
            let personal = self.verdicts.iter().filter(|v| v.verdict == "personal").count();
            text += &format!(
                "\n{of} against the shared model: {personal} of {} users are told `personal`, the others `use the shared model`\n",
                self.verdicts.len()
            );
            text += "\n| user | test votes | gain in log-loss | own, from 20 votes on | verdict |\n| --- | --- | --- | --- | --- |\n";
            for v in self.verdicts.iter().filter(|v| v.votes >= OWN_FIGURES) {
                let own = v.own_gain.map_or(String::new(), |g| format!("{g:+.3}"));
                text += &format!(
                    "| {} | {} | {:+.3} ± {:.3} | {own} | {} |\n",
                    v.user, v.votes, v.gain, v.deviation, v.verdict
                );
            }
        }
        text
    }
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
