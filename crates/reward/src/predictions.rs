//! What a model says of every vote of a split: all that evaluation and comparison read, and its file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use data::{Column, Split, Vote, read_table, write_table};
use lm::{Lm, RowCounts, Sharing};
use problem::Result;
use text::{OverLong, Tokenizer};

use crate::{RewardModel, Texts};

/// What a model says of one vote.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Whose vote.
    pub user: String,
    /// File and row of the source: the vote's name.
    pub source_row: String,
    /// Hash of the prompt.
    pub prompt: String,
    /// Hash of the prompt and both answers, in whatever order.
    pub pair: String,
    /// Could the user not tell?
    pub tie: bool,
    /// r(chosen) - r(rejected); of a tie, of the first shown and the second.
    pub margin: f64,
    /// P(chosen | decided).
    pub probability: f64,
    /// The same with the user's own lean to the answer shown first, learnt from training votes: for a model that is shared
    /// throughout. NaN elsewhere, and where the order is unknown.
    pub with_lean: f64,
    /// 1 if the chosen answer is longer (characters), 0 if it is shorter, one half if equal.
    pub longer: f64,
    /// The same for the majority of the other users' decided votes on the two answers, of all splits; NaN without any or if even.
    pub majority: f64,
}

/// A model's word on a split.
#[derive(Clone, Debug)]
pub struct Predictions {
    /// One for every vote whose rows are within the limit, ties included.
    pub votes: Vec<Prediction>,
    /// Rows left out or changed.
    pub rows: RowCounts,
    /// Where asked for: for each user and each other user's decided votes, (index of the factors' user, index of the votes' user,
    /// votes, accuracy); indices are the model's.
    pub swap: Vec<(usize, usize, usize, f64)>,
}

/// What is scored, and how.
#[derive(Clone, Copy, Debug)]
pub struct Scored {
    /// Which votes.
    pub split: Split,
    /// Tokens of prompt and answer.
    pub max_row_tokens: usize,
    /// What becomes of a longer row.
    pub over_long: OverLong,
    /// Score every user's votes with every other user's factors as well.
    pub swap: bool,
}

/// 1 if the first is larger, one half if equal.
pub(crate) fn half_for_equal(first: f64, second: f64) -> f64 {
    if first > second { 1.0 } else { f64::from(u8::from(first == second)) / 2.0 }
}

fn hash(texts: &[&str]) -> String {
    let mut all = String::new();
    texts.iter().for_each(|t| all += &format!("{}:{t}", t.len()));
    run::hash_bytes(all.as_bytes())[..16].to_owned()
}

fn keys(vote: &Vote) -> (String, String) {
    let turns: Vec<&str> = vote.prompt.iter().flat_map(|m| [m.role.as_str(), m.content.as_str()]).collect();
    let prompt = hash(&turns);
    let mut answers = [vote.chosen.as_str(), vote.rejected.as_str()];
    answers.sort_unstable();
    let pair = hash(&[&prompt, answers[0], answers[1]]);
    (prompt, pair)
}

/// For every pair of answers, who prefers which: the number of users for the answer that sorts first, and for the other. A user's
/// first decided vote on a pair counts.
fn majorities(votes: &[Vote]) -> HashMap<String, BTreeMap<&str, bool>> {
    let mut all: HashMap<String, BTreeMap<&str, bool>> = HashMap::new();
    for vote in votes.iter().filter(|v| !v.tie) {
        let low_wins = vote.chosen <= vote.rejected;
        all.entry(keys(vote).1).or_default().entry(&vote.user_id).or_insert(low_wins);
    }
    all
}

fn majority(known: Option<&BTreeMap<&str, bool>>, vote: &Vote) -> f64 {
    let others = known.into_iter().flatten().filter(|(user, _)| **user != vote.user_id);
    let balance: i64 = others.map(|(_, low)| if *low { 1 } else { -1 }).sum();
    let for_chosen = if vote.chosen <= vote.rejected { balance } else { -balance };
    match for_chosen {
        0 => f64::NAN,
        n => f64::from(u8::from(n > 0)),
    }
}

/// The lean `b` of a user to the answer shown first: the mode of `sum log sigmoid(y (a + b)) - b^2 / 2` over training votes, where
/// `a` is r(first) - r(second) and `y` is 1 if the first was chosen and -1 otherwise. A normal prior of deviation 1; Newton.
pub(crate) fn lean(votes: &[(f64, bool)]) -> f64 {
    let mut b = 0.0;
    for _ in 0..50 {
        let (mut slope, mut curvature) = (-b, 1.0);
        for (a, first) in votes {
            let p = 1.0 / (1.0 + (-(a + b)).exp());
            slope += f64::from(u8::from(*first)) - p;
            curvature += p * (1.0 - p);
        }
        let step: f64 = slope / curvature;
        b += step;
        if step.abs() < 1e-10 {
            break;
        }
    }
    b
}

/// Says of every vote of a split, by users whom the model knows, what the model thinks.
pub fn predict(
    model: &RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    scored: &Scored,
    mut progress: impl FnMut(usize, usize),
) -> Result<Predictions> {
    let shared = model.is_shared();
    let known: BTreeMap<&str, usize> = model.users.iter().enumerate().map(|(u, name)| (name.as_str(), u)).collect();
    if !votes.iter().any(|v| v.split == scored.split && known.contains_key(v.user_id.as_str())) {
        return Ok(Predictions { votes: vec![], rows: RowCounts::default(), swap: vec![] });
    }
    // A shared model reads training votes as well, for users' leans: it scores a text once for everyone.
    let wanted = |v: &&Vote| {
        known.contains_key(v.user_id.as_str())
            && (v.split == scored.split || shared && v.split == Split::Train && !v.tie && v.chosen_first.is_some())
    };
    let texts = Texts::new(tokenizer, votes.iter().filter(wanted).collect(), scored.max_row_tokens, scored.over_long)?;
    let prefix = model.prefix(lm, texts.rows.clone(), |_| ())?;
    let owner: Vec<usize> = texts.votes.iter().map(|v| known[v.user_id.as_str()]).collect();

    // Scores of (user, row).
    let mut needed: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for ((c, r), user) in texts.pairs.iter().zip(&owner) {
        needed.entry(if shared { 0 } else { *user }).or_default().extend([*c, *r]);
    }
    if scored.swap && !shared {
        let own = texts.votes.iter().zip(&texts.pairs).filter(|(v, _)| !v.tie);
        let all: BTreeSet<usize> = own.flat_map(|(_, (c, r))| [*c, *r]).collect();
        needed.values_mut().for_each(|rows| rows.extend(&all));
    }
    // Reward features are the same for everybody: a text is read once.
    let all: Vec<usize> = (0..prefix.rows().len()).collect();
    let features = model.features(lm, &prefix, &all);
    let total = needed.len();
    let mut scores: HashMap<(usize, usize), f32> = HashMap::new();
    for (done, (user, rows)) in needed.iter().enumerate() {
        let rows: Vec<usize> = rows.iter().copied().collect();
        let values: Vec<f32> = match &features {
            None => model.score(lm, &prefix, &rows, *user),
            Some(features) => {
                let taste = model.taste(*user);
                let dot = |phi: &Vec<f32>| phi.iter().zip(&taste).map(|(a, b)| a * b).sum();
                rows.iter().map(|row| dot(&features[*row])).collect()
            }
        };
        scores.extend(rows.into_iter().zip(values).map(|(row, value)| ((*user, row), value)));
        progress(done + 1, total);
    }
    let score = |user: usize, row: usize| scores[&(if shared { 0 } else { user }, row)];

    let mut leans: BTreeMap<usize, Vec<(f64, bool)>> = BTreeMap::new();
    if shared {
        for ((vote, (c, r)), user) in texts.votes.iter().zip(&texts.pairs).zip(&owner) {
            if let (Split::Train, false, Some(first)) = (vote.split, vote.tie, vote.chosen_first) {
                let margin = f64::from(score(*user, *c)) - f64::from(score(*user, *r));
                leans.entry(*user).or_default().push((if first { margin } else { -margin }, first));
            }
        }
    }
    let leans: BTreeMap<usize, f64> = leans.into_iter().map(|(user, votes)| (user, lean(&votes))).collect();

    let crowd = majorities(votes);
    let mut out = Predictions { votes: vec![], rows: texts.counts, swap: vec![] };
    let mut decided: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for ((vote, (c, r)), user) in texts.votes.iter().zip(&texts.pairs).zip(&owner) {
        if vote.split != scored.split {
            continue;
        }
        let (first, second) = (score(*user, *c), score(*user, *r));
        let margin = f64::from(first) - f64::from(second);
        let with_lean = match (shared, vote.chosen_first) {
            (true, Some(shown)) => {
                let lean = leans.get(user).copied().unwrap_or(0.0);
                let logit = margin + if shown { lean } else { -lean };
                1.0 / (1.0 + (-logit).exp())
            }
            _ => f64::NAN,
        };
        let (prompt, pair) = keys(vote);
        let longer = half_for_equal(vote.chosen.chars().count() as f64, vote.rejected.chars().count() as f64);
        out.votes.push(Prediction {
            user: vote.user_id.clone(),
            source_row: vote.source_row.clone(),
            majority: majority(crowd.get(&pair), vote),
            prompt,
            pair,
            tie: vote.tie,
            margin,
            probability: model.probability(first, second, *user),
            with_lean,
            longer,
        });
        if !vote.tie {
            decided.entry(*user).or_default().push((*c, *r));
        }
    }
    if scored.swap {
        for of in decided.keys() {
            for (on, pairs) in &decided {
                let right: f64 = pairs
                    .iter()
                    .map(|(c, r)| half_for_equal(f64::from(score(*of, *c)), f64::from(score(*of, *r))))
                    .sum();
                out.swap.push((*of, *on, pairs.len(), right / pairs.len() as f64));
            }
        }
    }
    Ok(out)
}

impl RewardModel {
    /// Is nothing personal but users' habits?
    pub fn is_shared(&self) -> bool {
        let bank = self.bank.config();
        let middle =
            matches!(bank.middle, lm::Middle::Kernel(Sharing::Personal) | lm::Middle::Scale(Sharing::Personal));
        bank.down == Sharing::Shared && bank.up == Sharing::Shared && !middle && self.head.sharing() == Sharing::Shared
    }
}

/// Writes predictions as Parquet; columns are named as the fields of [`Prediction`].
pub fn write_predictions(path: &Path, predictions: &[Prediction]) -> problem::Result<()> {
    let text = |f: fn(&Prediction) -> &String| Column::Text(predictions.iter().map(|p| f(p).clone()).collect());
    let real = |f: fn(&Prediction) -> f64| Column::Real(predictions.iter().map(f).collect());
    let columns = [
        ("user", text(|p| &p.user)),
        ("source_row", text(|p| &p.source_row)),
        ("prompt", text(|p| &p.prompt)),
        ("pair", text(|p| &p.pair)),
        ("tie", Column::Boolean(predictions.iter().map(|p| p.tie).collect())),
        ("margin", real(|p| p.margin)),
        ("probability", real(|p| p.probability)),
        ("with_lean", real(|p| p.with_lean)),
        ("longer", real(|p| p.longer)),
        ("majority", real(|p| p.majority)),
    ];
    write_table(path, &columns)
}

/// Reads what [`write_predictions`] wrote.
pub fn read_predictions(path: &Path) -> problem::Result<Vec<Prediction>> {
    let reals = ["margin", "probability", "with_lean", "longer", "majority"];
    let texts = ["user", "source_row", "prompt", "pair"];
    let names: Vec<&str> = texts.iter().chain(&reals).chain(&["tie"]).copied().collect();
    let table = read_table(path, &names)?;
    let [user, source_row, prompt, pair] = texts.map(|name| table.full_text(name));
    let (user, source_row, prompt, pair) = (user?, source_row?, prompt?, pair?);
    let [margin, probability, with_lean, longer, majority] = reals.map(|name| table.full_real(name));
    let (margin, probability, with_lean, longer, majority) = (margin?, probability?, with_lean?, longer?, majority?);
    let tie = table.full_boolean("tie")?;
    let row = |i: usize| Prediction {
        user: user[i].clone(),
        source_row: source_row[i].clone(),
        prompt: prompt[i].clone(),
        pair: pair[i].clone(),
        tie: tie[i],
        margin: margin[i],
        probability: probability[i],
        with_lean: with_lean[i],
        longer: longer[i],
        majority: majority[i],
    };
    Ok((0..table.rows()).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(user: &str, chosen: &str, rejected: &str, tie: bool) -> Vote {
        Vote {
            user_id: user.into(),
            prompt: vec![text::Message::user("q")],
            chosen: chosen.into(),
            rejected: rejected.into(),
            tie,
            chosen_first: None,
            weight: 1.0,
            margin: None,
            timestamp: None,
            split: Split::Test,
            source_row: "x:1".into(),
        }
    }

    #[test]
    fn the_majority_is_that_of_the_others() {
        let votes = [
            vote("a", "x", "y", false),
            vote("b", "y", "x", false),
            vote("c", "x", "y", false),
            vote("d", "y", "x", true),
        ];
        let crowd = majorities(&votes);
        let of = |v: &Vote| majority(crowd.get(&keys(v).1), v);
        assert!(of(&votes[0]).is_nan(), "one for, one against");
        assert_eq!(of(&votes[1]), 0.0);
        assert_eq!(of(&vote("e", "x", "y", false)), 1.0);
        assert!(of(&vote("e", "x", "z", false)).is_nan());
        assert_eq!(keys(&votes[0]), keys(&votes[1]));
    }

    #[test]
    fn a_lean_is_the_posterior_mode() {
        // Four votes without a difference, three for the first: the root of 3 - 4 sigmoid(b) = b.
        let got = lean(&[(0.0, true), (0.0, true), (0.0, true), (0.0, false)]);
        assert!((3.0 - 4.0 / (1.0 + (-got).exp()) - got).abs() < 1e-9 && got > 0.4, "{got}");
        assert_eq!(lean(&[]), 0.0);
        assert!(lean(&[(0.0, true), (0.0, false)]).abs() < 1e-12);
    }

    #[test]
    fn predictions_survive_their_file() {
        let one = Prediction {
            user: "ü".into(),
            source_row: "f:3".into(),
            prompt: "p".into(),
            pair: "q".into(),
            tie: true,
            margin: -0.25,
            probability: 0.4,
            with_lean: 0.6,
            longer: 0.5,
            majority: 1.0,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.parquet");
        write_predictions(&path, std::slice::from_ref(&one)).unwrap();
        assert_eq!(read_predictions(&path).unwrap(), [one]);
    }
}
