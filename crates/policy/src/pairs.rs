//! Preference pairs for a policy: from samples ranked by a reward model, or from votes.

use std::path::Path;

use data::{Column, Split, Vote, read_table, write_table};
use serde::{Deserialize, Serialize};
use text::{Answer, Message};

use crate::Result;

/// One user's preference between two answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The user.
    pub user: String,
    /// The conversation so far.
    pub prompt: Vec<Message>,
    /// The better answer.
    pub chosen: Answer,
    /// The worse answer.
    pub rejected: Answer,
}

/// What became of the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairCounts {
    /// Pairs made.
    pub pairs: usize,
    /// Empty samples, left out.
    pub empty: usize,
    /// Pairs not made because both answers are the same or have the same reward.
    pub equal: usize,
}

/// The `per_prompt` widest pairs of one prompt: best with worst, second best with second worst, ...
pub fn rank_pairs(
    user: &str,
    prompt: &[Message],
    answers: &[Answer],
    rewards: &[f32],
    per_prompt: usize,
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
        });
    }
    counts.pairs += pairs.len();
    pairs
}

/// The decided training votes as pairs.
pub fn vote_pairs(votes: &[Vote]) -> Vec<Pair> {
    let whole = |text: &str| Answer { text: text.into(), finished: true };
    let decided = votes.iter().filter(|v| v.split == Split::Train && !v.tie);
    decided
        .map(|v| Pair {
            user: v.user_id.clone(),
            prompt: v.prompt.clone(),
            chosen: whole(&v.chosen),
            rejected: whole(&v.rejected),
        })
        .collect()
}

/// Writes pairs as Parquet; the prompt is JSON.
pub fn write_pairs(path: &Path, pairs: &[Pair]) -> Result<()> {
    let text = |f: &dyn Fn(&Pair) -> String| Column::Text(pairs.iter().map(f).collect());
    let flag = |f: &dyn Fn(&Pair) -> bool| Column::Boolean(pairs.iter().map(f).collect());
    Ok(write_table(
        path,
        &[
            ("user_id", text(&|p| p.user.clone())),
            ("prompt", text(&|p| serde_json::to_string(&p.prompt).expect("plain data"))),
            ("chosen", text(&|p| p.chosen.text.clone())),
            ("rejected", text(&|p| p.rejected.text.clone())),
            ("chosen_finished", flag(&|p| p.chosen.finished)),
            ("rejected_finished", flag(&|p| p.rejected.finished)),
        ],
    )?)
}

/// Reads what [`write_pairs`] wrote.
pub fn read_pairs(path: &Path) -> Result<Vec<Pair>> {
    let names = ["user_id", "prompt", "chosen", "rejected", "chosen_finished", "rejected_finished"];
    let table = read_table(path, &names)?;
    let [user, prompt, chosen, rejected] = [names[0], names[1], names[2], names[3]].map(|n| table.full_text(n));
    let (user, prompt, chosen, rejected) = (user?, prompt?, chosen?, rejected?);
    let (chosen_finished, rejected_finished) = (table.full_boolean(names[4])?, table.full_boolean(names[5])?);
    (0..table.rows())
        .map(|i| {
            let prompt = serde_json::from_str(&prompt[i]).map_err(|e| crate::Error::Invalid {
                place: format!("{}, row {}, column `prompt`", path.display(), i + 1),
                expected: "a conversation as JSON".into(),
                found: e.to_string(),
                hint: "run the stage `pairs` again".into(),
            })?;
            Ok(Pair {
                user: user[i].clone(),
                prompt,
                chosen: Answer { text: chosen[i].clone(), finished: chosen_finished[i] },
                rejected: Answer { text: rejected[i].clone(), finished: rejected_finished[i] },
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
        let pairs = rank_pairs("u", &prompt, &answers, &rewards, 5, &mut counts);
        let texts: Vec<(&str, &str)> =
            pairs.iter().map(|p| (p.chosen.text.as_str(), p.rejected.text.as_str())).collect();
        assert_eq!(texts, [("b", "c"), ("d", "a")]); // of five: b d e a c
        assert_eq!(counts, PairCounts { pairs: 2, empty: 1, equal: 0 });
        rank_pairs("u", &prompt, &["x", "y"].map(answer), &[1.0, 1.0], 1, &mut counts);
        assert_eq!(counts, PairCounts { pairs: 2, empty: 1, equal: 1 });
    }

    #[test]
    fn pairs_survive_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.parquet");
        let mut cut = answer("ends in the mid");
        cut.finished = false;
        let pairs =
            [Pair { user: "ü".into(), prompt: vec![Message::user("\"q\"\n")], chosen: answer("x"), rejected: cut }];
        write_pairs(&path, &pairs).unwrap();
        assert_eq!(read_pairs(&path).unwrap(), pairs);
    }
}
