//! What a reward model says of every vote of a split.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use data::{Split, Vote};
use eval::{Crowd, Prediction, Predictions, lean, names};
use lm::{Lm, Prefix, RowCounts, UserIndex};
use problem::{Result, not_finite};
use stats::half_for_equal;
use text::{OverLong, Tokenizer};

use crate::{RewardModel, Texts};

/// What is scored, and how.
#[derive(Clone, Copy, Debug)]
pub struct Scored {
    /// Which votes.
    pub split: Split,
    /// Tokens of prompt and response.
    pub max_row_tokens: usize,
    /// What becomes of a longer row.
    pub over_long: OverLong,
    /// Score every user's votes with every other user's factors as well.
    pub swap: bool,
}

/// Says of every vote of a split that counts, by users whom the model knows, what the model thinks.
///
/// # Errors
/// A row over the limit where that is an error; a reward that is not a finite number: it would count as a wrong vote.
pub fn predict(
    model: &RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    scored: &Scored,
    progress: impl FnMut(usize, usize),
) -> Result<Predictions> {
    let shared = model.is_shared();
    let known: BTreeMap<&str, UserIndex> =
        model.users.iter().enumerate().map(|(u, name)| (name.as_str(), UserIndex(u))).collect();
    if !votes.iter().any(|v| v.split == scored.split && v.counts() && known.contains_key(v.user_id.as_str())) {
        return Ok(Predictions { votes: vec![], rows: RowCounts::default(), swap: vec![] });
    }
    // A shared model reads training votes as well, for users' leans: it scores a text once for everyone.
    let wanted = |v: &&Vote| {
        known.contains_key(v.user_id.as_str())
            && v.counts()
            && (v.split == scored.split || shared && v.split == Split::Train && !v.tie && v.chosen_first.is_some())
    };
    let texts = Texts::new(tokenizer, votes.iter().filter(wanted).collect(), scored.max_row_tokens, scored.over_long)?;
    let prefix = model.prefix(lm, texts.rows.clone(), |_| ())?;
    let owner: Vec<UserIndex> = texts.votes.iter().map(|v| known[v.user_id.as_str()]).collect();
    let scores = Scores::new(model, lm, &prefix, &needed(&texts, &owner, shared, scored.swap), progress);
    let leans = if shared { leans(&texts, &owner, &scores) } else { BTreeMap::new() };

    let crowd = Crowd::new(votes);
    let mut out = Predictions { votes: vec![], rows: texts.counts, swap: vec![] };
    let mut decided: BTreeMap<UserIndex, Vec<(usize, usize)>> = BTreeMap::new();
    for ((vote, (c, r)), user) in texts.votes.iter().zip(&texts.pairs).zip(&owner) {
        if vote.split != scored.split {
            continue;
        }
        let rewards = (scores.of(*user, *c), scores.of(*user, *r));
        if !(rewards.0.is_finite() && rewards.1.is_finite()) {
            let place = format!("predictions of {}, {}", scored.split.name(), vote.source_row);
            return Err(not_finite(place, format!("a reward of user `{}`", vote.user_id)));
        }
        let lean = shared.then(|| leans.get(user).copied().unwrap_or(0.0));
        out.votes.push(prediction(model, vote, *user, rewards, lean, &crowd));
        if !vote.tie {
            decided.entry(*user).or_default().push((*c, *r));
        }
    }
    if scored.swap {
        out.swap = swapped(&decided, &scores);
    }
    Ok(out)
}

/// One vote's prediction; `lean` is the user's to the response shown first, of a model that is shared throughout.
fn prediction(
    model: &RewardModel,
    vote: &Vote,
    user: UserIndex,
    (first, second): (f32, f32),
    lean: Option<f64>,
    crowd: &Crowd,
) -> Prediction {
    let margin = f64::from(first) - f64::from(second);
    let with_lean = match (lean, vote.chosen_first) {
        (Some(lean), Some(shown)) => {
            let logit = margin + if shown { lean } else { -lean };
            1.0 / (1.0 + (-logit).exp())
        }
        _ => f64::NAN,
    };
    let (prompt, pair) = names(vote);
    Prediction {
        user: vote.user_id.clone(),
        source_row: vote.source_row.clone(),
        majority: crowd.majority(&pair, vote),
        prompt,
        pair,
        tie: vote.tie,
        margin,
        probability: model.probability(first, second, user),
        with_lean,
        longer: half_for_equal(vote.chosen.chars().count() as f64, vote.rejected.chars().count() as f64),
    }
}

/// Which rows are scored for which user: for user 0 alone where everything is shared.
fn needed(texts: &Texts, owner: &[UserIndex], shared: bool, swap: bool) -> BTreeMap<UserIndex, BTreeSet<usize>> {
    let mut needed: BTreeMap<UserIndex, BTreeSet<usize>> = BTreeMap::new();
    for ((c, r), user) in texts.pairs.iter().zip(owner) {
        needed.entry(if shared { UserIndex(0) } else { *user }).or_default().extend([*c, *r]);
    }
    if swap && !shared {
        let own = texts.votes.iter().zip(&texts.pairs).filter(|(v, _)| !v.tie);
        let all: BTreeSet<usize> = own.flat_map(|(_, (c, r))| [*c, *r]).collect();
        needed.values_mut().for_each(|rows| rows.extend(&all));
    }
    needed
}

/// Rewards by user and row.
struct Scores {
    shared: bool,
    of: HashMap<(UserIndex, usize), f32>,
}

impl Scores {
    fn new(
        model: &RewardModel,
        lm: &Lm,
        prefix: &Prefix,
        needed: &BTreeMap<UserIndex, BTreeSet<usize>>,
        mut progress: impl FnMut(usize, usize),
    ) -> Self {
        // Reward features are the same for everybody: a text is read once.
        let all: Vec<usize> = (0..prefix.rows().len()).collect();
        let features = model.features(lm, prefix, &all);
        let mut of = HashMap::new();
        for (done, (user, rows)) in needed.iter().enumerate() {
            let rows: Vec<usize> = rows.iter().copied().collect();
            let values: Vec<f32> = match &features {
                None => model.score(lm, prefix, &rows, *user),
                Some(features) => {
                    let taste = model.taste(*user);
                    let dot = |phi: &Vec<f32>| phi.iter().zip(&taste).map(|(a, b)| a * b).sum();
                    rows.iter().map(|row| dot(&features[*row])).collect()
                }
            };
            of.extend(rows.into_iter().zip(values).map(|(row, value)| ((*user, row), value)));
            progress(done + 1, needed.len());
        }
        Self { shared: model.is_shared(), of }
    }

    fn of(&self, user: UserIndex, row: usize) -> f32 {
        self.of[&(if self.shared { UserIndex(0) } else { user }, row)]
    }
}

/// Each user's lean to the response shown first, from decided training votes.
fn leans(texts: &Texts, owner: &[UserIndex], scores: &Scores) -> BTreeMap<UserIndex, f64> {
    let mut votes: BTreeMap<UserIndex, Vec<(f64, bool)>> = BTreeMap::new();
    let mut weights: BTreeMap<UserIndex, Vec<f32>> = BTreeMap::new();
    for ((vote, (c, r)), user) in texts.votes.iter().zip(&texts.pairs).zip(owner) {
        if let (Split::Train, false, Some(first)) = (vote.split, vote.tie, vote.chosen_first) {
            let margin = f64::from(scores.of(*user, *c)) - f64::from(scores.of(*user, *r));
            votes.entry(*user).or_default().push((if first { margin } else { -margin }, first));
            weights.entry(*user).or_default().push(vote.weight);
        }
    }
    let of = |(user, votes): (UserIndex, Vec<(f64, bool)>)| {
        let relative = stats::relative_weights(&vec![user; votes.len()], &weights[&user]);
        (user, lean(&votes, &relative))
    };
    votes.into_iter().map(of).collect()
}

/// Accuracy of every user's factors on every user's decided votes.
fn swapped(decided: &BTreeMap<UserIndex, Vec<(usize, usize)>>, scores: &Scores) -> Vec<(usize, usize, usize, f64)> {
    let mut out = Vec::new();
    for of in decided.keys() {
        for (on, pairs) in decided {
            let right: f64 = pairs
                .iter()
                .map(|(c, r)| half_for_equal(f64::from(scores.of(*of, *c)), f64::from(scores.of(*of, *r))))
                .sum();
            out.push((of.0, on.0, pairs.len(), right / pairs.len() as f64));
        }
    }
    out
}
