//! The table that ingestion and `idiolect ask` write, as a source again.

use arrow::array::{Array, AsArray, BooleanArray};
use problem::{Result, invalid};

use crate::draft::{Choice, Emit, Flaw};
use crate::layouts::bound::{Bound, Extras, MOST_MARGIN, MOST_WEIGHT, Own, named, single};
use crate::times::Times;

pub(super) const PATHS: [&str; 9] =
    ["user_id", "prompt", "chosen", "rejected", "tie", "chosen_first", "weight", "margin", "timestamp"];

/// Columns that tables of earlier versions do not have.
const NEWER: [&str; 2] = ["chosen_finished", "rejected_finished"];

/// The columns to read; `known` are those of the source.
pub(super) fn paths(known: &[String]) -> Vec<String> {
    let newer = NEWER.iter().filter(|name| known.iter().any(|k| k == *name));
    PATHS.iter().chain(newer).map(|name| (*name).to_owned()).collect()
}

pub(super) fn drafts(bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let (users, prompts) = (bound.texts("user_id")?, bound.talks("prompt")?);
    let (chosen, rejected) = (bound.texts("chosen")?, bound.texts("rejected")?);
    let (ties, firsts) = (booleans(bound, "tie")?, booleans(bound, "chosen_first")?);
    let newer = |name: &str| bound.batch.column_by_name(name).map(|_| booleans(bound, name)).transpose();
    let finished = [newer(NEWER[0])?, newer(NEWER[1])?];
    let (weights, margins) = (bound.reals("weight")?, bound.reals("margin")?);
    let times = Times::bind(&bound.array("timestamp")?, bound.place, "timestamp")?;
    for row in 0..bound.batch.num_rows() {
        let draft = (|| {
            let user = users.get(row).ok_or_else(|| Flaw::null("user_id")).and_then(|user| named(user, "user_id"))?;
            let turns = prompts.get(row, "user")?;
            let better = chosen.get(row).ok_or_else(|| Flaw::null("chosen"))?;
            let worse = rejected.get(row).ok_or_else(|| Flaw::null("rejected"))?;
            if ties.is_null(row) {
                return Err(Flaw::null("tie"));
            }
            let (first, second, choice) = match (ties.value(row), firsts.is_valid(row).then(|| firsts.value(row))) {
                (true, _) => (better, worse, Choice::Tie),
                (false, Some(true)) => (better, worse, Choice::First),
                (false, Some(false)) => (worse, better, Choice::Second),
                (false, None) => (better, worse, Choice::Unordered),
            };
            let told = finished
                .each_ref()
                .map(|flags| flags.as_ref().and_then(|flags| flags.is_valid(row).then(|| flags.value(row))));
            let own = Own {
                finished: if choice == Choice::Second { [told[1], told[0]] } else { told },
                weight: single(weights.number(row)?, "weight", MOST_WEIGHT)?,
                margin: margins.get(row)?.map(|m| single(m, "margin", MOST_MARGIN)).transpose()?,
                timestamp: times.get(row)?,
            };
            extras.draft(row, user, turns, first, second, choice, own)
        })();
        emit(row, draft)?;
    }
    Ok(())
}

fn booleans(bound: &Bound, name: &str) -> Result<BooleanArray> {
    let array = bound.array(name)?;
    // A column of nothing but nulls has the type that its writer guessed.
    let all_null = array.logical_null_count() == array.len();
    let found = if all_null { Some(BooleanArray::new_null(array.len())) } else { array.as_boolean_opt().cloned() };
    found.ok_or_else(|| {
        invalid(
            &bound.place.file,
            format!("true and false in the column `{name}`"),
            array.data_type().to_string(),
            "layout `canonical` is for tables that ingestion or `idiolect ask` wrote; write a card for another",
        )
    })
}
