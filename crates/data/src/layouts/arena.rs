//! Chatbot Arena conversations (Zheng et al. 2023): two whole conversations, a judge, a winner.

use problem::Result;

use crate::draft::{Choice, Emit, Flaw};
use crate::layouts::bound::{Bound, Extras, Own, named};
use crate::times::Times;

pub(super) const PATHS: [&str; 7] = [
    "judge",
    "winner",
    "conversation_a.role",
    "conversation_a.content",
    "conversation_b.role",
    "conversation_b.content",
    "tstamp",
];

pub(super) fn drafts(bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let (judges, winners) = (bound.texts("judge")?, bound.texts("winner")?);
    let (one, two) = (bound.talks("conversation_a")?, bound.talks("conversation_b")?);
    let times = Times::bind(&bound.array("tstamp")?, bound.place, "tstamp")?;
    for row in 0..bound.batch.num_rows() {
        let draft = (|| {
            let user = judges.get(row).ok_or_else(|| Flaw::null("judge")).and_then(|user| named(user, "judge"))?;
            let choice = match winners.get(row).ok_or_else(|| Flaw::null("winner"))? {
                "model_a" => Choice::First,
                "model_b" => Choice::Second,
                "tie" | "tie (bothbad)" => Choice::Tie,
                other => {
                    return Err(Flaw {
                        kind: "unknown label",
                        column: "winner".into(),
                        expected: "`model_a`, `model_b`, `tie` or `tie (bothbad)`".into(),
                        found: format!("`{other}`"),
                        hint: "drop the row, or set `bad_rows = \"drop\"`",
                    });
                }
            };
            let mut one = one.get(row, "user")?;
            let mut two = two.get(row, "user")?;
            // The judge saw both whole conversations. Only where all but the last answers agree is there one prompt for both.
            let (first, second) = (one.pop(), two.pop());
            let (Some(("assistant", first)), Some(("assistant", second)), true) =
                (first, second, !one.is_empty() && one == two)
            else {
                return Err(Flaw {
                    kind: "no shared prompt",
                    column: "conversation_b".into(),
                    expected: "the messages of `conversation_a` but for the last answer".into(),
                    found: "other messages: a vote on several turns".into(),
                    hint: "`bad_rows = \"drop\"` leaves such rows out",
                });
            };
            let own = Own { timestamp: times.get(row)?, ..Own::default() };
            extras.draft(row, user, one, first, second, choice, own)
        })();
        emit(row, draft)?;
    }
    Ok(())
}
