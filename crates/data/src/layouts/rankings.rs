//! A prompt with several answers and a number for each; PersonalLLM (Zollo et al. 2024), whose users are reward models.

use problem::Result;
use smallvec::smallvec;

use crate::columns::{Reals, Texts};
use crate::draft::{Emit, Flaw};
use crate::layouts::bound::{Bound, Extras, Own, RowUsers, every_two, missing};
use crate::{Card, Layout};

pub(super) fn drafts(card: &Card, bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let Layout::Rankings { user_id: _, prompt, responses, scores, higher_is_better } = &card.layout else {
        unreachable!("the dispatch looked")
    };
    let users = RowUsers::bind(card, bound)?;
    let prompts = bound.talks(prompt)?;
    let (answers, numbers) = (bound.lists(responses)?, bound.lists(scores)?);
    let texts = Texts::bind(&answers.values, bound.place, responses)?;
    let reals = Reals::bind(&numbers.values, bound.place, scores)?;
    for row in 0..bound.batch.num_rows() {
        let read = (|| {
            let user = users.get(row)?;
            let turns = prompts.get(row, "user")?;
            let answers = answers.get(row).ok_or_else(|| Flaw::null(responses))?;
            let numbers = numbers.get(row).ok_or_else(|| Flaw::null(scores))?;
            if answers.len() != numbers.len() || answers.len() < 2 {
                return Err(Flaw {
                    kind: "lists that do not match",
                    column: scores.clone(),
                    expected: format!("a number for each of at least two `{responses}`"),
                    found: format!("{} numbers, {} answers", numbers.len(), answers.len()),
                    hint: "drop the row, or set `bad_rows = \"drop\"`",
                });
            }
            let texts: Option<Vec<&str>> = answers.map(|i| texts.get(i)).collect();
            let numbers = numbers.map(|i| reals.number(i)).collect::<Result<Vec<f64>, Flaw>>();
            let texts = texts.ok_or_else(|| Flaw::null(responses))?;
            let mut numbers = numbers?;
            if !higher_is_better {
                numbers.iter_mut().for_each(|x| *x = -*x);
            }
            Ok((user, turns, texts, numbers))
        })();
        let (user, turns, texts, numbers) = match read {
            Ok(read) => read,
            Err(flaw) => {
                emit(row, Err(flaw))?;
                continue;
            }
        };
        for (one, other, choice, gap) in every_two(&numbers) {
            let own =
                Own { weight: 1.0 / (texts.len() - 1) as f32, margin: Some(gap), timestamp: None, ..Own::default() };
            emit(row, extras.draft(row, user, turns.clone(), texts[one], texts[other], choice, own))?;
        }
    }
    Ok(())
}

/// `response_3`: 3
fn answer_column(name: &str) -> Option<usize> {
    name.strip_prefix("response_")?.parse().ok()
}

/// `response_3_gemma_2b`: (3, `gemma_2b`)
fn score_column(name: &str) -> Option<(usize, &str)> {
    let (number, user) = name.strip_prefix("response_")?.split_once('_')?;
    Some((number.parse().ok()?, user)).filter(|(_, user)| *user != "model")
}

pub(super) fn personalllm_paths(known: &[String]) -> Vec<String> {
    let own = known.iter().filter(|n| answer_column(n).is_some() || score_column(n).is_some());
    ["prompt".to_owned()].into_iter().chain(own.cloned()).collect()
}

/// `prompt`, `response_1` to `response_8`, and `response_<i>_<reward model>`.
pub(super) fn personalllm(bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let names: Vec<String> = bound.batch.schema().fields().iter().map(|f| f.name().clone()).collect();
    let prompts = bound.texts("prompt")?;
    let mut numbers: Vec<usize> = names.iter().filter_map(|n| answer_column(n)).collect();
    numbers.sort_unstable();
    let mut users: Vec<&str> = names.iter().filter_map(|n| score_column(n)).map(|(_, user)| user).collect();
    users.sort_unstable();
    users.dedup();
    if numbers.len() < 2 || users.is_empty() {
        let wanted = "columns `response_<i>` and `response_<i>_<reward model>`";
        return Err(missing(&bound.place.file, wanted, &names));
    }
    let answers = numbers.iter().map(|i| bound.texts(&format!("response_{i}"))).collect::<Result<Vec<_>>>()?;
    for user in users {
        let column = |i: &usize| format!("response_{i}_{user}");
        let scores = numbers.iter().map(|i| bound.reals(&column(i))).collect::<Result<Vec<_>>>()?;
        for row in 0..bound.batch.num_rows() {
            let read = (|| {
                let prompt = prompts.get(row).ok_or_else(|| Flaw::null("prompt"))?;
                let texts: Option<Vec<&str>> = answers.iter().map(|a| a.get(row)).collect();
                let values = scores.iter().map(|s| s.number(row)).collect::<Result<Vec<f64>, Flaw>>()?;
                Ok((prompt, texts.ok_or_else(|| Flaw::null("response_1"))?, values))
            })();
            let (prompt, texts, values) = match read {
                Ok(read) => read,
                Err(flaw) => {
                    emit(row, Err(flaw))?;
                    continue;
                }
            };
            for (one, other, choice, gap) in every_two(&values) {
                let own = Own {
                    weight: 1.0 / (texts.len() - 1) as f32,
                    margin: Some(gap),
                    timestamp: None,
                    ..Own::default()
                };
                let user = user.to_owned();
                emit(row, extras.draft(row, user, smallvec![("user", prompt)], texts[one], texts[other], choice, own))?;
            }
        }
    }
    Ok(())
}
