//! OpenAI summarize-from-feedback, `comparisons` (Stiennon et al. 2020): two summaries of a post, a worker's choice.

use problem::Result;
use smallvec::smallvec;

use crate::columns::{Texts, field};
use crate::draft::{Choice, Emit, Flaw};
use crate::layouts::bound::{Bound, Extras, Own, named};

pub(super) const PATHS: [&str; 7] =
    ["info.post", "info.title", "info.subreddit", "info.article", "summaries.text", "choice", "worker"];

/// The prompt is that of P-ShareLoRA's protocol: subreddit, title, post and `TL;DR:`. An article (of the CNN/DM part) has no
/// subreddit.
pub(super) fn drafts(bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let (posts, titles) = (bound.texts("info.post")?, bound.texts("info.title")?);
    let (subreddits, articles) = (bound.texts("info.subreddit")?, bound.texts("info.article")?);
    let summaries = bound.lists("summaries")?;
    let texts =
        Texts::bind(&field(&summaries.values, "text", bound.place, "summaries")?, bound.place, "summaries.text")?;
    let (choices, workers) = (bound.reals("choice")?, bound.texts("worker")?);
    for row in 0..bound.batch.num_rows() {
        let prompt = match (posts.get(row), articles.get(row)) {
            (Some(post), _) => format!(
                "SUBREDDIT: r/{}\nTITLE: {}\nPOST: {post}\nTL;DR:",
                subreddits.get(row).unwrap_or_default(),
                titles.get(row).unwrap_or_default()
            ),
            (None, Some(article)) => {
                format!("TITLE: {}\nARTICLE: {article}\nTL;DR:", titles.get(row).unwrap_or_default())
            }
            (None, None) => String::new(),
        };
        let draft = (|| {
            if prompt.is_empty() {
                return Err(Flaw::null("info.post"));
            }
            let user = workers.get(row).ok_or_else(|| Flaw::null("worker")).and_then(|user| named(user, "worker"))?;
            let both = summaries.get(row).ok_or_else(|| Flaw::null("summaries"))?;
            if both.len() != 2 {
                return Err(Flaw {
                    kind: "not two answers",
                    column: "summaries".into(),
                    expected: "two summaries".into(),
                    found: both.len().to_string(),
                    hint: "drop the row, or set `bad_rows = \"drop\"`",
                });
            }
            let text = |i: usize| texts.get(i).ok_or_else(|| Flaw::null("summaries.text"));
            let (first, second) = (text(both.start)?, text(both.start + 1)?);
            let choice = match choices.number(row)? {
                0.0 => Choice::First,
                1.0 => Choice::Second,
                other => {
                    return Err(Flaw {
                        kind: "unknown label",
                        column: "choice".into(),
                        expected: "0 or 1".into(),
                        found: other.to_string(),
                        hint: "drop the row, or set `bad_rows = \"drop\"`",
                    });
                }
            };
            extras.draft(row, user, smallvec![("user", prompt.as_str())], first, second, choice, Own::default())
        })();
        emit(row, draft)?;
    }
    Ok(())
}
