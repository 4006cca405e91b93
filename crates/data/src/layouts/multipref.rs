//! MultiPref (Miranda et al. 2024): several annotators judge the same comparison.

use problem::Result;
use smallvec::smallvec;

use crate::columns::{Texts, field};
use crate::draft::{Choice, Emit, Flaw};
use crate::layouts::bound::{Bound, Extras, Own, named};

const LISTS: [&str; 2] = ["normal_worker_annotations", "expert_worker_annotations"];

pub(super) fn paths() -> Vec<String> {
    let lists = LISTS.iter().flat_map(|l| [format!("{l}.evaluator"), format!("{l}.overall_pref")]);
    ["text", "completion_a", "completion_b"].map(str::to_owned).into_iter().chain(lists).collect()
}

pub(super) fn drafts(bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let (prompts, one, two) = (bound.texts("text")?, bound.texts("completion_a")?, bound.texts("completion_b")?);
    for list in LISTS {
        let annotations = bound.lists(list)?;
        let part = |name: &str| {
            Texts::bind(&field(&annotations.values, name, bound.place, list)?, bound.place, &format!("{list}.{name}"))
        };
        let (users, labels) = (part("evaluator")?, part("overall_pref")?);
        for row in 0..bound.batch.num_rows() {
            for i in annotations.get(row).unwrap_or(0..0) {
                let draft = (|| {
                    let path = format!("{list}.evaluator");
                    let user = users.get(i).ok_or_else(|| Flaw::null(&path)).and_then(|user| named(user, &path))?;
                    let prompt = prompts.get(row).ok_or_else(|| Flaw::null("text"))?;
                    let first = one.get(row).ok_or_else(|| Flaw::null("completion_a"))?;
                    let second = two.get(row).ok_or_else(|| Flaw::null("completion_b"))?;
                    let column = format!("{list}.overall_pref");
                    let (choice, margin) = match labels.get(i).ok_or_else(|| Flaw::null(&column))? {
                        "A-is-clearly-better" => (Choice::First, Some(2.0)),
                        "A-is-slightly-better" => (Choice::First, Some(1.0)),
                        "B-is-clearly-better" => (Choice::Second, Some(2.0)),
                        "B-is-slightly-better" => (Choice::Second, Some(1.0)),
                        "Tie" => (Choice::Tie, None),
                        other => {
                            return Err(Flaw {
                                kind: "unknown label",
                                column,
                                expected: "`A-is-clearly-better`, `A-is-slightly-better`, `Tie` or the same of B"
                                    .into(),
                                found: format!("`{other}`"),
                                hint: "drop the row, or set `bad_rows = \"drop\"`",
                            });
                        }
                    };
                    let own = Own { margin, ..Own::default() };
                    extras.draft(row, user, smallvec![("user", prompt)], first, second, choice, own)
                })();
                emit(row, draft)?;
            }
        }
    }
    Ok(())
}
