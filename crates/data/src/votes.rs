//! The canonical preference table: what ingestion writes and every later stage reads.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, ListBuilder, StringArray, StringBuilder, StructBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, Float32Type, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use text::Message;

use crate::error::invalid;
use crate::table::{read_table, write_batch};
use crate::{Result, Split};

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
    /// Was `chosen` shown first? Unknown in many sources.
    pub chosen_first: Option<bool>,
    /// How much the vote counts.
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

/// The distinct users, sorted: a user's index is the position here.
pub fn user_ids(votes: &[Vote]) -> Vec<String> {
    let ids: std::collections::BTreeSet<&str> = votes.iter().map(|v| v.user_id.as_str()).collect();
    ids.into_iter().map(str::to_owned).collect()
}

fn message_fields() -> Fields {
    Fields::from(vec![Field::new("role", DataType::Utf8, false), Field::new("content", DataType::Utf8, false)])
}

/// Writes the table as Parquet.
pub fn write_votes(path: &Path, votes: &[Vote]) -> Result<()> {
    let item = Arc::new(Field::new("item", DataType::Struct(message_fields()), false));
    let fields = vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("prompt", DataType::List(item.clone()), false),
        Field::new("chosen", DataType::Utf8, false),
        Field::new("rejected", DataType::Utf8, false),
        Field::new("tie", DataType::Boolean, false),
        Field::new("chosen_first", DataType::Boolean, true),
        Field::new("weight", DataType::Float32, false),
        Field::new("margin", DataType::Float32, true),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("split", DataType::Utf8, false),
        Field::new("source_row", DataType::Utf8, false),
    ];
    let text = |f: &dyn Fn(&Vote) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(votes.iter().map(f))) };
    let mut prompts = ListBuilder::new(StructBuilder::from_fields(message_fields(), votes.len())).with_field(item);
    for vote in votes {
        let turn = prompts.values();
        for message in &vote.prompt {
            for (i, value) in [&message.role, &message.content].into_iter().enumerate() {
                turn.field_builder::<StringBuilder>(i).expect("a text field").append_value(value);
            }
            turn.append(true);
        }
        prompts.append(true);
    }
    let timestamps: arrow::array::PrimitiveArray<TimestampMicrosecondType> =
        votes.iter().map(|v| v.timestamp).collect();
    let columns: Vec<ArrayRef> = vec![
        text(&|v| &v.user_id),
        Arc::new(prompts.finish()),
        text(&|v| &v.chosen),
        text(&|v| &v.rejected),
        Arc::new(BooleanArray::from_iter(votes.iter().map(|v| Some(v.tie)))),
        Arc::new(BooleanArray::from_iter(votes.iter().map(|v| v.chosen_first))),
        Arc::new(Float32Array::from_iter_values(votes.iter().map(|v| v.weight))),
        Arc::new(Float32Array::from_iter(votes.iter().map(|v| v.margin))),
        Arc::new(timestamps.with_timezone("UTC")),
        text(&|v| v.split.name()),
        text(&|v| &v.source_row),
    ];
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .map_err(|e| invalid(path.display(), "a table of votes", e.to_string(), "report this as a bug"))?;
    write_batch(path, &batch)
}

const COLUMNS: [&str; 11] = [
    "user_id",
    "prompt",
    "chosen",
    "rejected",
    "tie",
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
    let first = table.array("chosen_first")?.as_boolean_opt().ok_or_else(|| wrong("chosen_first"))?;
    let weight = table.array("weight")?.as_primitive_opt::<Float32Type>().ok_or_else(|| wrong("weight"))?;
    let margin = table.array("margin")?.as_primitive_opt::<Float32Type>().ok_or_else(|| wrong("margin"))?;
    let timestamp = table.array("timestamp")?;
    let timestamp = timestamp.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| wrong("timestamp"))?;
    let prompts = table.array("prompt")?.as_list_opt::<i32>().ok_or_else(|| wrong("prompt"))?;
    let some = |valid: bool, value: f32| valid.then_some(value);
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
                chosen_first: first.is_valid(i).then(|| first.value(i)),
                weight: weight.value(i),
                margin: some(margin.is_valid(i), margin.value(i)),
                timestamp: timestamp.is_valid(i).then(|| timestamp.value(i)),
                split: Split::parse(&splits[i]).ok_or_else(|| wrong("split"))?,
                source_row: rows[i].clone(),
            })
        })
        .collect()
}

fn read_table_of_votes(path: &Path) -> Result<crate::Table> {
    read_table(path, &COLUMNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let vote = |user: &str, tie, first, margin, timestamp| Vote {
            user_id: user.into(),
            prompt: vec![Message::system("be brief"), Message::user("héllo\n🙂")],
            chosen: "a".into(),
            rejected: String::new(),
            tie,
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
