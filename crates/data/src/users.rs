//! What is known of users before any vote: named numbers from a table of users.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float32Array, ListArray, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Float32Type, Schema};
use arrow::record_batch::RecordBatch;
use problem::{Result, invalid};
use serde::{Deserialize, Serialize};

use crate::columns::{Lists, Reals, Texts};
use crate::layouts::Bound;
use crate::sources::resolve;
use crate::table::arrow_bug;
use crate::table::{read_table, write_batch};
use crate::units::{Piece, open};
use crate::users_card::UsersCard;

/// How a number column was standardised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standard {
    /// Mean over the users that have the number.
    pub mean: f64,
    /// Standard deviation over them (divided by n); 1 for a constant.
    pub deviation: f64,
}

/// What the table was made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UsersReport {
    /// Users in the table.
    pub users: usize,
    /// Users with votes that the source says nothing of: everything of theirs is missing.
    pub unknown: usize,
    /// Users of the source without votes: left out.
    pub without_votes: usize,
    /// Names of the context's numbers.
    pub columns: Vec<String>,
    /// Mean and deviation of number columns.
    pub standards: BTreeMap<String, Standard>,
}

/// The users' contexts, by user id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Users {
    /// Names of the numbers.
    pub columns: Vec<String>,
    /// A number for each name.
    pub context: BTreeMap<String, Vec<f32>>,
}

/// One user's values as the source has them.
#[derive(Default)]
struct Known {
    numbers: Vec<Option<f64>>,
    texts: Vec<Option<String>>,
    embedding: Vec<f32>,
}

/// Makes the users table for `wanted` users and writes it as Parquet.
///
/// # Errors
/// A user in two rows; embeddings of unequal length; a missing column.
pub fn write_users(card: &UsersCard, sources: &[String], wanted: &BTreeSet<String>, out: &Path) -> Result<UsersReport> {
    let mut known: HashMap<String, Known> = HashMap::new();
    let mut report = UsersReport::default();
    let paths: Vec<String> = [&card.user_id]
        .into_iter()
        .chain(&card.numeric)
        .chain(&card.categorical)
        .chain(&card.embedding)
        .cloned()
        .collect();
    for file in resolve(sources)?.files {
        let opened = open(file)?;
        opened.check(&paths)?;
        for unit in opened.units(0, true) {
            for batch in opened.batches(unit, &paths)? {
                let (place, batch) = match batch? {
                    Piece::Rows(place, batch) => (place, batch),
                    Piece::Bad(place, flaw) => return Err(flaw.at(&place.file, place.first_row + 1)),
                };
                let batch = opened.with_partitions(batch, &place, &paths)?;
                let bound = Bound { batch: &batch, place: &place };
                let ids = bound.texts(&card.user_id)?;
                let numbers = card.numeric.iter().map(|c| bound.reals(c)).collect::<Result<Vec<Reals>>>()?;
                let texts = card.categorical.iter().map(|c| bound.texts(c)).collect::<Result<Vec<Texts>>>()?;
                let vectors: Option<(Lists, Reals)> = match &card.embedding {
                    Some(column) => {
                        let lists = bound.lists(column)?;
                        let values = Reals::bind(&lists.values, &place, column)?;
                        Some((lists, values))
                    }
                    None => None,
                };
                for row in 0..batch.num_rows() {
                    let id = ids.get(row).ok_or_else(|| {
                        invalid(place.row(row, &card.user_id), "a user's id", "null", "fill it in or drop the row")
                    })?;
                    if !wanted.contains(id) {
                        report.without_votes += 1;
                        continue;
                    }
                    let wrong = |flaw: crate::draft::Flaw| {
                        invalid(
                            place.row(row, &flaw.column),
                            flaw.expected,
                            flaw.found,
                            "correct the number, or leave it empty",
                        )
                    };
                    let embedding = match &vectors {
                        Some((lists, values)) => lists
                            .get(row)
                            .into_iter()
                            .flatten()
                            .map(|i| values.number(i).map(|x| x as f32).map_err(wrong))
                            .collect::<Result<Vec<f32>>>()?,
                        None => vec![],
                    };
                    let numbers = numbers.iter().map(|c| c.get(row).map_err(wrong)).collect::<Result<_>>()?;
                    let own = Known {
                        numbers,
                        texts: texts.iter().map(|c| c.get(row).map(str::to_owned)).collect(),
                        embedding,
                    };
                    if known.insert(id.to_owned(), own).is_some() {
                        let found = format!("a second row of `{id}`");
                        return Err(invalid(
                            place.row(row, &card.user_id),
                            "one row a user",
                            found,
                            "keep one of them",
                        ));
                    }
                }
            }
        }
    }
    report.unknown = wanted.iter().filter(|u| !known.contains_key(*u)).count();
    let users = contexts(card, &known, wanted, &mut report)?;
    report.users = users.context.len();
    write(&users, &report, out)?;
    Ok(report)
}

/// The numbers of every wanted user.
fn contexts(
    card: &UsersCard,
    known: &HashMap<String, Known>,
    wanted: &BTreeSet<String>,
    report: &mut UsersReport,
) -> Result<Users> {
    let of = |user: &String| known.get(user);
    let mut columns: Vec<String> = Vec::new();
    let mut context: BTreeMap<String, Vec<f32>> = wanted.iter().map(|u| (u.clone(), vec![])).collect();
    let mut push = |name: String, value: &dyn Fn(&String) -> f32| {
        columns.push(name);
        context.iter_mut().for_each(|(user, row)| row.push(value(user)));
    };
    for (c, name) in card.numeric.iter().enumerate() {
        let present: Vec<f64> = wanted.iter().filter_map(|u| of(u)?.numbers[c]).collect();
        let n = present.len().max(1) as f64;
        let mean = present.iter().sum::<f64>() / n;
        let deviation = (present.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        let deviation = if deviation > 0.0 { deviation } else { 1.0 };
        report.standards.insert(name.clone(), Standard { mean, deviation });
        let value = |u: &String| of(u).and_then(|k| k.numbers[c]);
        push(name.clone(), &|u| value(u).map_or(0.0, |x| ((x - mean) / deviation) as f32));
        push(format!("{name}=missing"), &|u| f32::from(u8::from(value(u).is_none())));
    }
    for (c, name) in card.categorical.iter().enumerate() {
        let value = |u: &String| of(u).and_then(|k| k.texts[c].as_deref());
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        wanted.iter().filter_map(value).for_each(|text| *counts.entry(text).or_default() += 1);
        let mut levels: Vec<(&str, usize)> = counts.into_iter().collect();
        levels.sort_by_key(|(text, n)| (std::cmp::Reverse(*n), *text));
        let mut own: Vec<&str> = levels.into_iter().take(card.max_levels).map(|(text, _)| text).collect();
        own.sort_unstable();
        for level in &own {
            push(format!("{name}={level}"), &|u| f32::from(u8::from(value(u) == Some(*level))));
        }
        push(format!("{name}=other"), &|u| f32::from(u8::from(value(u).is_some_and(|v| !own.contains(&v)))));
        push(format!("{name}=missing"), &|u| f32::from(u8::from(value(u).is_none())));
    }
    if let Some(name) = &card.embedding {
        let size = wanted.iter().filter_map(of).map(|k| k.embedding.len()).max().unwrap_or(0);
        for user in wanted {
            let own = of(user).map_or(0, |k| k.embedding.len());
            if own != 0 && own != size {
                let found = format!("{own} for `{user}`");
                return Err(invalid(name, format!("{size} numbers for every user"), found, "use one embedding model"));
            }
        }
        for i in 0..size {
            push(format!("{name}[{i}]"), &|u| of(u).and_then(|k| k.embedding.get(i)).copied().unwrap_or(0.0));
        }
        push(format!("{name}=missing"), &|u| f32::from(u8::from(of(u).is_none_or(|k| k.embedding.is_empty()))));
    }
    report.columns.clone_from(&columns);
    Ok(Users { columns, context })
}

fn write(users: &Users, report: &UsersReport, out: &Path) -> Result<()> {
    let ids = StringArray::from_iter_values(users.context.keys());
    let values: Vec<f32> = users.context.values().flatten().copied().collect();
    let offsets = OffsetBuffer::from_lengths(users.context.values().map(Vec::len));
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let lists = ListArray::new(item.clone(), offsets, Arc::new(Float32Array::from(values)), None);
    let metadata = HashMap::from([
        ("columns".to_owned(), serde_json::json!(users.columns).to_string()),
        ("standards".to_owned(), serde_json::json!(report.standards).to_string()),
    ]);
    let schema = Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("context", DataType::List(item), false),
    ])
    .with_metadata(metadata);
    let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(lists)];
    let batch = RecordBatch::try_new(Arc::new(schema), columns).map_err(|e| arrow_bug(out.display(), &e))?;
    write_batch(out, &batch)
}

/// Reads a table that [`write_users`] wrote.
pub fn read_users(path: &Path) -> Result<Users> {
    let wrong = |found: &str| invalid(path.display(), "a users table", found.to_owned(), "run the stage `data` again");
    let table = read_table(path, &["user_id", "context"])?;
    let ids = table.full_text("user_id")?;
    let lists = table.array("context")?.as_list_opt::<i32>().ok_or_else(|| wrong("another type of `context`"))?;
    let columns = table.metadata("columns").and_then(|t| serde_json::from_str(&t).ok());
    let columns: Vec<String> = columns.ok_or_else(|| wrong("no names of columns in its metadata"))?;
    let mut context = BTreeMap::new();
    for (row, id) in ids.into_iter().enumerate() {
        let values = lists.value(row);
        let values = values.as_primitive_opt::<Float32Type>().ok_or_else(|| wrong("another type of `context`"))?;
        if values.len() != columns.len() {
            return Err(wrong("another number of columns"));
        }
        context.insert(id, values.values().to_vec());
    }
    Ok(Users { columns, context })
}
