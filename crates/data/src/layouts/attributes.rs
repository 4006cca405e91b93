//! Data sets whose attributes stand in for users: HelpSteer2 (Wang et al. 2024), UltraFeedback (Cui et al. 2023).

use problem::Result;
use smallvec::smallvec;

use crate::columns::{Texts, field};
use crate::draft::{Choice, Draft, Emit, Flaw};
use crate::layouts::bound::{Bound, Extras, Own, every_two};

pub(super) const HELPSTEER2: [&str; 7] =
    ["prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"];
const ASPECTS: [&str; 4] = ["helpfulness", "honesty", "instruction_following", "truthfulness"];

/// The first row of a pair that shares a prompt, its scores included.
#[derive(Debug)]
pub(crate) struct Half {
    prompt: String,
    response: String,
    scores: Vec<f64>,
}

/// Two consecutive rows share a prompt. An attribute prefers the first if its score, plus noise from -1/2 to 1/2, is above the
/// second's: the scores are integers, so the noise decides equal ones alone (P-ShareLoRA's protocol; the noise comes from the
/// seed and the texts here).
pub(super) fn helpsteer2(
    bound: &Bound,
    extras: &Extras,
    seed: u64,
    memory: &mut Option<Half>,
    emit: &mut Emit,
) -> Result<()> {
    let (prompts, responses) = (bound.texts("prompt")?, bound.texts("response")?);
    let scores = HELPSTEER2[2..].iter().map(|n| bound.reals(n)).collect::<Result<Vec<_>>>()?;
    for row in 0..bound.batch.num_rows() {
        let read = (|| {
            let prompt = prompts.get(row).ok_or_else(|| Flaw::null("prompt"))?;
            let response = responses.get(row).ok_or_else(|| Flaw::null("response"))?;
            let own: Result<Vec<f64>, Flaw> = scores.iter().map(|s| s.number(row)).collect();
            Ok(Half { prompt: prompt.into(), response: response.into(), scores: own? })
        })();
        let second = match read {
            Ok(half) => half,
            Err(flaw) => {
                emit(row, Err(flaw))?;
                *memory = None;
                continue;
            }
        };
        let Some(first) = memory.take() else {
            *memory = Some(second);
            continue;
        };
        if first.prompt != second.prompt {
            emit(row, Err(alone("another prompt")))?;
            *memory = Some(second);
            continue;
        }
        for (user, (a, b)) in HELPSTEER2[2..].iter().zip(first.scores.iter().zip(&second.scores)) {
            let texts = [&first.prompt, &first.response, &second.response, *user];
            let noise = unit(seed, &texts) - 0.5;
            let choice = if a + noise > *b { Choice::First } else { Choice::Second };
            let margin = Some((a - b).abs() as f32);
            let own = Own { margin, ..Own::default() };
            let turns = smallvec![("user", first.prompt.as_str())];
            emit(row, extras.draft(row, *user, turns, &first.response, &second.response, choice, own))?;
        }
    }
    Ok(())
}

fn alone(found: &str) -> Flaw {
    Flaw {
        kind: "a row without its pair",
        column: "prompt".into(),
        expected: "the prompt of the row before".into(),
        found: found.into(),
        hint: "HelpSteer2's rows come in pairs: keep their order",
    }
}

pub(super) fn unpaired(half: Option<&Half>, emit: &mut Emit) -> Result<()> {
    if half.is_some() { emit(0, Err(alone("the end of the file"))) } else { Ok(()) }
}

/// A number from 0 to below 1 that the seed and texts decide.
fn unit(seed: u64, texts: &[&str]) -> f64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::with_seed(seed);
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    (hash.digest() >> 11) as f64 / (1u64 << 53) as f64
}

pub(super) fn ultrafeedback_paths() -> Vec<String> {
    let aspects = ASPECTS.map(|a| format!("completions.annotations.{a}.Rating"));
    ["instruction".into(), "completions.response".into()].into_iter().chain(aspects).collect()
}

/// Every two of a prompt's answers, by each of four aspects' ratings; `N/A` is no rating.
pub(super) fn ultrafeedback(bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let place = bound.place;
    let prompts = bound.texts("instruction")?;
    let lists = bound.lists("completions")?;
    let responses =
        Texts::bind(&field(&lists.values, "response", place, "completions")?, place, "completions.response")?;
    let annotations = field(&lists.values, "annotations", place, "completions")?;
    let ratings = ASPECTS.map(|aspect| {
        let path = format!("completions.annotations.{aspect}");
        let whole = field(&annotations, aspect, place, "completions.annotations")?;
        Texts::bind(&field(&whole, "Rating", place, &path)?, place, &path)
    });
    for (aspect, ratings) in ASPECTS.iter().zip(ratings) {
        let ratings = ratings?;
        for row in 0..bound.batch.num_rows() {
            let (Some(prompt), Some(answers)) = (prompts.get(row), lists.get(row)) else {
                emit(row, Err(Flaw::null("instruction")))?;
                continue;
            };
            let mut rated = Vec::new();
            let mut wrong = None;
            for i in answers {
                match (ratings.get(i), responses.get(i)) {
                    (None | Some("N/A"), _) | (_, None) => {}
                    (Some(text), Some(response)) => match text.trim().parse::<f64>() {
                        Ok(score) if score.abs() < 1e9 => rated.push((response, score)),
                        _ => wrong = Some(text),
                    },
                }
            }
            if let Some(text) = wrong {
                let flaw = Flaw {
                    kind: "unknown label",
                    column: format!("completions.annotations.{aspect}.Rating"),
                    expected: "a number or `N/A`".into(),
                    found: format!("`{text}`"),
                    hint: "drop the row, or set `bad_rows = \"drop\"`",
                };
                emit(row, Err(flaw))?;
                continue;
            }
            let scores: Vec<f64> = rated.iter().map(|(_, s)| *s).collect();
            for (one, other, choice, gap) in every_two(&scores) {
                let own = Own {
                    weight: 1.0 / (rated.len() - 1) as f32,
                    margin: Some(gap),
                    timestamp: None,
                    ..Own::default()
                };
                let turns = smallvec![("user", prompt)];
                let draft: Result<Draft, Flaw> =
                    extras.draft(row, *aspect, turns, rated[one].0, rated[other].0, choice, own);
                emit(row, draft)?;
            }
        }
    }
    Ok(())
}
