//! The canonical preference table: what ingestion writes and every later stage reads.

use std::path::Path;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::{Float32Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use problem::{Result, invalid};
use text::{Ending, Message};

use crate::Split;
use crate::canonical::{RowRef, TableWriter};
use crate::table::read_table;

/// One user's judgement of two answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Vote {
    /// Any text.
    pub user_id: String,
    /// The conversation so far.
    pub prompt: Vec<Message>,
    /// The better answer; of a tie, the first option shown.
    pub chosen: String,
    /// The worse answer; of a tie, the second option shown.
    pub rejected: String,
    /// Could the user not tell?
    pub tie: bool,
    /// Did `chosen` end by itself? False if it was cut at a limit of tokens; unknown in most sources, where it counts as ended.
    pub chosen_finished: Option<bool>,
    /// The same of `rejected`.
    pub rejected_finished: Option<bool>,
    /// Was `chosen` shown first? Unknown in many sources.
    pub chosen_first: Option<bool>,
    /// How much the vote counts: in training compared with the mean of the user's weights, for preference weights as so much of a vote. 0 counts nothing.
    pub weight: f32,
    /// By how much `chosen` is better, where the source says so.
    pub margin: Option<f32>,
    /// When it was given, in microseconds since 1970 UTC.
    pub timestamp: Option<i64>,
    /// Which part it belongs to.
    pub split: Split,
    /// File and row (from 1), for messages.
    pub source_row: String,
}

impl Vote {
    /// How the row of `chosen` ends: only an answer that ended by itself teaches where to end.
    pub fn chosen_ending(&self) -> Ending {
        ending(self.chosen_finished)
    }

    /// How the row of `rejected` ends.
    pub fn rejected_ending(&self) -> Ending {
        ending(self.rejected_finished)
    }

    /// Does the vote count, that is, is its weight above 0? Every stage treats a vote that does not as if it were not there.
    pub fn counts(&self) -> bool {
        self.weight > 0.0
    }
}

/// How the row of an answer ends that is said to have ended by itself or not.
pub(crate) fn ending(finished: Option<bool>) -> Ending {
    if finished == Some(false) { Ending::Cut } else { Ending::Finished }
}

/// The distinct users, sorted: a user's index is the position here.
pub fn user_ids(votes: &[Vote]) -> Vec<String> {
    let ids: std::collections::BTreeSet<&str> = votes.iter().map(|v| v.user_id.as_str()).collect();
    ids.into_iter().map(str::to_owned).collect()
}

/// Writes the table as Parquet.
pub fn write_votes(path: &Path, votes: &[Vote]) -> Result<()> {
    let table = TableWriter::new(path)?;
    let mut writer = table.unit(0);
    for vote in votes {
        let prompt: Vec<(&str, &str)> = vote.prompt.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let (file, row) = vote.source_row.rsplit_once(':').unwrap_or((&vote.source_row, "0"));
        writer.push(&RowRef {
            user_id: &vote.user_id,
            prompt: &prompt,
            chosen: &vote.chosen,
            rejected: &vote.rejected,
            tie: vote.tie,
            finished: [vote.chosen_finished, vote.rejected_finished],
            chosen_first: vote.chosen_first,
            weight: vote.weight,
            margin: vote.margin,
            timestamp: vote.timestamp,
            split: vote.split,
            source: (file, row.parse().unwrap_or(0)),
        })?;
    }
    writer.finish()?;
    table.finish()
}

const COLUMNS: [&str; 13] = [
    "user_id",
    "prompt",
    "chosen",
    "rejected",
    "tie",
    "chosen_finished",
    "rejected_finished",
    "chosen_first",
    "weight",
    "margin",
    "timestamp",
    "split",
    "source_row",
];

/// Reads a table that [`write_votes`] wrote.
pub fn read_votes(path: &Path) -> Result<Vec<Vote>> {
    let table = read_table_of_votes(path)?;
    let (users, chosen, rejected) =
        (table.full_text("user_id")?, table.full_text("chosen")?, table.full_text("rejected")?);
    let (ties, splits, rows) = (table.full_boolean("tie")?, table.full_text("split")?, table.full_text("source_row")?);
    let wrong = |what: &str| {
        invalid(path.display(), format!("`{what}` as ingestion writes it"), "another type", "run ingestion again")
    };
    let arrays = ["chosen_first", "chosen_finished", "rejected_finished"].map(|name| (name, table.array(name)));
    let [first, chosen_finished, rejected_finished] =
        arrays.map(|(name, array)| array.and_then(|a| a.as_boolean_opt().cloned().ok_or_else(|| wrong(name))));
    let (first, chosen_finished, rejected_finished) = (first?, chosen_finished?, rejected_finished?);
    let weight = table.array("weight")?.as_primitive_opt::<Float32Type>().ok_or_else(|| wrong("weight"))?;
    let margin = table.array("margin")?.as_primitive_opt::<Float32Type>().ok_or_else(|| wrong("margin"))?;
    let timestamp = table.array("timestamp")?;
    let timestamp = timestamp.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| wrong("timestamp"))?;
    let prompts = table.array("prompt")?.as_list_opt::<i32>().ok_or_else(|| wrong("prompt"))?;
    let some = |valid: bool, value: f32| valid.then_some(value);
    let flag = |array: &BooleanArray, i: usize| array.is_valid(i).then(|| array.value(i));
    (0..table.rows())
        .map(|i| {
            let turns = prompts.value(i);
            let turns = turns.as_struct_opt().ok_or_else(|| wrong("prompt"))?;
            let field = |name: &str| {
                turns.column_by_name(name).and_then(|c| c.as_string_opt::<i32>()).ok_or_else(|| wrong("prompt"))
            };
            let (roles, contents) = (field("role")?, field("content")?);
            let message = |t: usize| Message { role: roles.value(t).into(), content: contents.value(t).into() };
            Ok(Vote {
                user_id: users[i].clone(),
                prompt: (0..turns.len()).map(message).collect(),
                chosen: chosen[i].clone(),
                rejected: rejected[i].clone(),
                tie: ties[i],
                chosen_finished: flag(&chosen_finished, i),
                rejected_finished: flag(&rejected_finished, i),
                chosen_first: flag(&first, i),
                weight: weight.value(i),
                margin: some(margin.is_valid(i), margin.value(i)),
                timestamp: timestamp.is_valid(i).then(|| timestamp.value(i)),
                split: Split::parse(&splits[i]).ok_or_else(|| wrong("split"))?,
                source_row: rows[i].clone(),
            })
        })
        .collect()
}

/// Prompt, both answers with their endings, source.
pub(crate) type Texts<'b> = (Vec<Message>, [(&'b str, Ending); 2], &'b str);

/// Prompt, both answers with their endings, and the source of each row of a canonical table's batch.
pub(crate) fn texts(batch: &RecordBatch) -> Option<Vec<Texts<'_>>> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let (chosen, rejected, sources) = (text("chosen")?, text("rejected")?, text("source_row")?);
    let flags = |name: &str| batch.column_by_name(name)?.as_boolean_opt();
    let (chosen_finished, rejected_finished) = (flags("chosen_finished")?, flags("rejected_finished")?);
    let ending = |array: &BooleanArray, i: usize| ending(array.is_valid(i).then(|| array.value(i)));
    let prompts = batch.column_by_name("prompt")?.as_list_opt::<i32>()?;
    let turns = prompts.values().as_struct_opt()?;
    let roles = turns.column_by_name("role")?.as_string_opt::<i32>()?;
    let contents = turns.column_by_name("content")?.as_string_opt::<i32>()?;
    let message = |i: usize| Message { role: roles.value(i).into(), content: contents.value(i).into() };
    let offsets = prompts.value_offsets();
    let row = |i: usize| {
        let prompt = (offsets[i] as usize..offsets[i + 1] as usize).map(message).collect();
        let both = [(chosen.value(i), ending(chosen_finished, i)), (rejected.value(i), ending(rejected_finished, i))];
        (prompt, both, sources.value(i))
    };
    Some((0..batch.num_rows()).map(row).collect())
}

fn read_table_of_votes(path: &Path) -> Result<crate::Table> {
    read_table(path, &COLUMNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let vote = |user: &str, tie, first, margin: Option<f32>, timestamp| Vote {
            user_id: user.into(),
            prompt: vec![Message::system("be brief"), Message::user("héllo\n🙂")],
            chosen: "a".into(),
            rejected: String::new(),
            tie,
            chosen_finished: first,
            rejected_finished: margin.map(|_| false),
            chosen_first: first,
            weight: 0.5,
            margin,
            timestamp,
            split: Split::Dev,
            source_row: "f.parquet:3".into(),
        };
        let votes = vec![
            vote("../../x", false, Some(true), None, None),
            vote("b\0", true, None, Some(1.5), Some(1_700_000_000_000_000)),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("votes.parquet");
        write_votes(&path, &votes).unwrap();
        assert_eq!(read_votes(&path).unwrap(), votes);
        write_votes(&path, &[]).unwrap();
        assert_eq!(read_votes(&path).unwrap(), []);
        assert_eq!(user_ids(&votes), ["../../x", "b\0"]);
    }
}
