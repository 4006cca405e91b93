//! Preference pairs for a policy: from samples ranked by a reward model, or from votes.

use std::path::Path;

use data::{Column, Split, Vote, read_table, write_table};
use problem::{Result, invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use text::{Answer, Ending, Message};

/// One user's preference between two responses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The user.
    pub user: String,
    /// The conversation so far.
    pub prompt: Vec<Message>,
    /// The better response.
    pub chosen: Answer,
    /// The worse response.
    pub rejected: Answer,
    /// What it counts among the user's pairs, positive.
    pub weight: f32,
}

/// What pairs of ranked samples count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// All the same.
    #[default]
    Equal,
    /// The reward model's certainty: see [`certainty`].
    Certainty,
}

/// How sure a reward model is that the better of two responses is better: `2 s(d / sqrt(1 + pi e^2 / 8)) - 1`, from 0 to 1, of the difference `d`
/// of their rewards and its standard error `e` (the expectation of a logistic function of a normal number: MacKay 1992).
pub fn certainty(difference: f32, error: f32) -> f32 {
    let moderated = difference / (1.0 + std::f32::consts::PI * error * error / 8.0).sqrt();
    2.0 / (1.0 + (-moderated).exp()) - 1.0
}

/// What became of the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairCounts {
    /// Pairs made.
    pub pairs: usize,
    /// Empty samples, left out.
    pub empty: usize,
    /// Pairs not made because both responses are the same or have the same reward.
    pub equal: usize,
}

/// The `per_prompt` widest pairs of one prompt: best with worst, second best with second worst, ... `errors` are the rewards' standard errors,
/// taken to be independent.
pub fn rank_pairs(
    user: &str,
    prompt: &[Message],
    answers: &[Answer],
    rewards: &[f32],
    errors: &[f32],
    (per_prompt, weighting): (usize, Weighting),
    counts: &mut PairCounts,
) -> Vec<Pair> {
    let mut order: Vec<usize> = (0..answers.len()).filter(|i| !answers[*i].text.trim().is_empty()).collect();
    counts.empty += answers.len() - order.len();
    order.sort_by(|a, b| rewards[*b].total_cmp(&rewards[*a]).then(a.cmp(b)));
    let mut pairs = Vec::new();
    for k in 0..per_prompt.min(order.len() / 2) {
        let (best, worst) = (order[k], order[order.len() - 1 - k]);
        if rewards[best] == rewards[worst] || answers[best].text == answers[worst].text {
            counts.equal += 1;
            continue;
        }
        pairs.push(Pair {
            user: user.into(),
            prompt: prompt.to_vec(),
            chosen: answers[best].clone(),
            rejected: answers[worst].clone(),
            weight: match weighting {
                Weighting::Equal => 1.0,
                Weighting::Certainty => {
                    certainty(rewards[best] - rewards[worst], errors[best].hypot(errors[worst])).max(f32::MIN_POSITIVE)
                }
            },
        });
    }
    counts.pairs += pairs.len();
    pairs
}

/// The decided training votes as pairs.
pub fn vote_pairs(votes: &[Vote]) -> Vec<Pair> {
    let answer = |text: &str, ending: Ending| Answer { text: text.into(), finished: ending == Ending::Finished };
    let decided = votes.iter().filter(|v| v.split == Split::Train && !v.tie);
    decided
        .map(|v| Pair {
            user: v.user_id.clone(),
            prompt: v.prompt.clone(),
            chosen: answer(&v.chosen, v.chosen_ending()),
            rejected: answer(&v.rejected, v.rejected_ending()),
            weight: v.weight.max(f32::MIN_POSITIVE),
        })
        .collect()
}

/// Writes pairs as Parquet; the prompt is JSON.
pub fn write_pairs(path: &Path, pairs: &[Pair]) -> Result<()> {
    let text = |f: &dyn Fn(&Pair) -> String| Column::Text(pairs.iter().map(f).collect());
    let flag = |f: &dyn Fn(&Pair) -> bool| Column::Boolean(pairs.iter().map(f).collect());
    write_table(
        path,
        &[
            ("user_id", text(&|p| p.user.clone())),
            ("prompt", text(&|p| serde_json::to_string(&p.prompt).expect("plain data"))),
            ("chosen", text(&|p| p.chosen.text.clone())),
            ("rejected", text(&|p| p.rejected.text.clone())),
            ("chosen_finished", flag(&|p| p.chosen.finished)),
            ("rejected_finished", flag(&|p| p.rejected.finished)),
            ("weight", Column::Real(pairs.iter().map(|p| f64::from(p.weight)).collect())),
        ],
    )
}

/// Reads what [`write_pairs`] wrote.
pub fn read_pairs(path: &Path) -> Result<Vec<Pair>> {
    let names = ["user_id", "prompt", "chosen", "rejected", "chosen_finished", "rejected_finished", "weight"];
    let table = read_table(path, &names)?;
    let [user, prompt, chosen, rejected] = [names[0], names[1], names[2], names[3]].map(|n| table.full_text(n));
    let (user, prompt, chosen, rejected) = (user?, prompt?, chosen?, rejected?);
    let (chosen_finished, rejected_finished) = (table.full_boolean(names[4])?, table.full_boolean(names[5])?);
    let weights = table.full_real(names[6])?;
    (0..table.rows())
        .map(|i| {
            let prompt = serde_json::from_str(&prompt[i]).map_err(|e| {
                invalid(
                    format!("{}, row {}, column `prompt`", path.display(), i + 1),
                    "a conversation as JSON",
                    e.to_string(),
                    "run the stage `pairs` again",
                )
            })?;
            Ok(Pair {
                user: user[i].clone(),
                prompt,
                chosen: Answer { text: chosen[i].clone(), finished: chosen_finished[i] },
                rejected: Answer { text: rejected[i].clone(), finished: rejected_finished[i] },
                weight: weights[i] as f32,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Answer {
        Answer { text: text.into(), finished: true }
    }

    #[test]
    fn pairs_are_the_widest_and_what_is_left_out_is_counted() {
        let answers = ["a", "b", "c", "d", " ", "e"].map(answer);
        let rewards = [0.1, 0.9, -0.5, 0.3, 7.0, 0.3];
        let mut counts = PairCounts::default();
        let prompt = [Message::user("q")];
        let pairs = rank_pairs("u", &prompt, &answers, &rewards, &[0.0; 6], (5, Weighting::Certainty), &mut counts);
        let texts: Vec<(&str, &str)> =
            pairs.iter().map(|p| (p.chosen.text.as_str(), p.rejected.text.as_str())).collect();
        assert_eq!(texts, [("b", "c"), ("d", "a")]); // of five: b d e a c
        assert_eq!(counts, PairCounts { pairs: 2, empty: 1, equal: 0 });
        // Rewards 1.4 apart: 2 s(1.4) - 1; a standard error makes it less.
        assert!((pairs[0].weight - 0.604_368).abs() < 1e-6, "{}", pairs[0].weight);
        assert!((certainty(1.4, 2.0) - (2.0 / (1.0 + (-1.4f32 / 2.570_796f32.sqrt()).exp()) - 1.0)).abs() < 1e-6);
        assert!(certainty(1.4, 2.0) < certainty(1.4, 0.0));
        assert_eq!(certainty(0.0, 1.0), 0.0);
        let equal = (1, Weighting::Equal);
        rank_pairs("u", &prompt, &["x", "y"].map(answer), &[1.0, 1.0], &[0.0; 2], equal, &mut counts);
        assert_eq!(counts, PairCounts { pairs: 2, empty: 1, equal: 1 });
    }

    #[test]
    fn pairs_survive_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.parquet");
        let mut cut = answer("ends in the mid");
        cut.finished = false;
        let pairs = [Pair {
            user: "ü".into(),
            prompt: vec![Message::user("\"q\"\n")],
            chosen: answer("x"),
            rejected: cut,
            weight: 0.25,
        }];
        write_pairs(&path, &pairs).unwrap();
        assert_eq!(read_pairs(&path).unwrap(), pairs);
    }
}
