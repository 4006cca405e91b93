//! Typed views of a batch's columns, whatever Arrow type a writer chose for them. Nothing is copied where types allow it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, LargeStringArray, StringArray, StringViewArray, StructArray,
    new_null_array,
};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::array_value_to_string;
use problem::{Problem, Result, invalid};
use smallvec::smallvec;

use crate::draft::{Flaw, Turns};
use crate::literals::{MESSAGE_FIELDS, Messages, Writer, messages};
use crate::readings::{Form, Reader};
use crate::table::arrow_bug;

/// Where a batch is from, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The file, as the user would name it.
    pub(crate) file: Arc<str>,
    /// The file's path below what the user gave.
    pub(crate) short: Arc<str>,
    /// How values are understood is told here.
    pub(crate) reader: Reader,
    /// The file's row, from 0, that is the batch's first.
    pub(crate) first_row: usize,
}

impl Place {
    /// `file, column`
    pub(crate) fn column(&self, column: &str) -> String {
        format!("{}, column `{column}`", self.file)
    }

    /// `file, row, column`; rows are counted from 1.
    pub(crate) fn row(&self, row: usize, column: &str) -> String {
        format!("{}, row {}, column `{column}`", self.file, self.first_row + row + 1)
    }

    /// Tells how values of a column were understood; `row` of the batch is the first of them.
    pub(crate) fn tell(&self, column: &str, form: Form, count: usize, row: usize) {
        self.reader.all.add(column, form, count, (self.reader.file, self.first_row + row + 1));
    }

    pub(crate) fn wrong_type(&self, column: &str, expected: &str, found: &DataType) -> Problem {
        invalid(
            self.column(column),
            format!("{expected} values"),
            found.to_string(),
            "map another column in the data set's card, or cast this one",
        )
    }
}

/// A text column.
#[derive(Clone, Debug)]
pub(crate) enum Texts {
    Utf8(StringArray),
    Large(LargeStringArray),
    View(StringViewArray),
}

impl Texts {
    /// Text of any Arrow type; integers are read as their digits, bytes if they are UTF-8.
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let wrong = || place.wrong_type(column, "text", array.data_type());
        match array.data_type() {
            DataType::Utf8 => Ok(Self::Utf8(array.as_string::<i32>().clone())),
            DataType::LargeUtf8 => Ok(Self::Large(array.as_string::<i64>().clone())),
            DataType::Utf8View => Ok(Self::View(array.as_string_view().clone())),
            DataType::Null => Ok(Self::Utf8(new_null_array(&DataType::Utf8, array.len()).as_string::<i32>().clone())),
            DataType::Dictionary(_, value) => Self::bind(&cast(array, value).map_err(|_| wrong())?, place, column),
            DataType::RunEndEncoded(_, value) => {
                Self::bind(&cast(array, value.data_type()).map_err(|_| wrong())?, place, column)
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                let bytes = cast(array, &DataType::LargeBinary).map_err(|_| wrong())?;
                let bytes = bytes.as_binary::<i64>();
                if let Some(row) = bytes.iter().position(|v| v.is_some_and(|v| std::str::from_utf8(v).is_err())) {
                    return Err(invalid(
                        place.row(row, column),
                        "UTF-8 text",
                        "bytes that are none",
                        "re-encode the column as UTF-8",
                    ));
                }
                let texts =
                    LargeStringArray::from_iter(bytes.iter().map(|v| v.and_then(|v| std::str::from_utf8(v).ok())));
                Ok(Self::Large(texts))
            }
            t if t.is_integer() => {
                Ok(Self::Utf8(cast(array, &DataType::Utf8).map_err(|_| wrong())?.as_string::<i32>().clone()))
            }
            _ => Err(wrong()),
        }
    }

    /// The text at `row`; none if it is null.
    pub(crate) fn get(&self, row: usize) -> Option<&str> {
        match self {
            Self::Utf8(a) => a.is_valid(row).then(|| a.value(row)),
            Self::Large(a) => a.is_valid(row).then(|| a.value(row)),
            Self::View(a) => a.is_valid(row).then(|| a.value(row)),
        }
    }
}

/// A number column.
#[derive(Clone, Debug)]
pub(crate) struct Reals {
    column: String,
    values: Float64Array,
    /// Rows whose text is no number, with the text.
    wrong: HashMap<usize, String>,
}

/// Larger numbers, and their differences, would leave the range of `f32`.
const LARGEST: f64 = 1e30;

impl Reals {
    /// Numbers of any type, and texts that are numbers; an empty text is null.
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let wrong = || place.wrong_type(column, "number", array.data_type());
        let of = |values: Float64Array, wrong| Self { column: column.to_owned(), values, wrong };
        match array.data_type() {
            t if t.is_numeric() || matches!(t, DataType::Null) => {
                let reals = cast(array, &DataType::Float64).map_err(|_| wrong())?;
                Ok(of(reals.as_primitive::<Float64Type>().clone(), HashMap::new()))
            }
            DataType::Dictionary(_, value) => Self::bind(&cast(array, value).map_err(|_| wrong())?, place, column),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                let texts = Texts::bind(array, place, column)?;
                let mut odd = HashMap::new();
                let values = (0..array.len()).map(|row| {
                    let text = texts.get(row).map(str::trim).filter(|text| !text.is_empty())?;
                    let value = text.parse::<f64>();
                    if value.is_err() {
                        odd.insert(row, text.chars().take(40).collect());
                    }
                    value.ok()
                });
                let values: Float64Array = values.collect();
                Ok(of(values, odd))
            }
            _ => Err(wrong()),
        }
    }

    fn unusable(&self, found: String) -> Flaw {
        Flaw {
            kind: "unusable number",
            column: self.column.clone(),
            expected: format!("a finite number of at most {LARGEST:e}"),
            found,
            hint: "correct the number, leave the column out of the card if it can be, or set `bad_rows = \"drop\"`",
        }
    }

    /// The number at `row`; none if it is null, or NaN, which is how pandas writes a missing one.
    pub(crate) fn get(&self, row: usize) -> Result<Option<f64>, Flaw> {
        if let Some(text) = self.wrong.get(&row) {
            return Err(self.unusable(format!("`{text}`")));
        }
        let value = self.values.is_valid(row).then(|| self.values.value(row)).filter(|x| !x.is_nan());
        match value {
            Some(x) if x.abs() > LARGEST => Err(self.unusable(x.to_string())),
            value => Ok(value),
        }
    }

    /// The number at `row`, which must be there.
    pub(crate) fn number(&self, row: usize) -> Result<f64, Flaw> {
        match self.get(row)? {
            Some(x) => Ok(x),
            None if self.values.is_valid(row) => Err(self.unusable("NaN".into())),
            None => Err(Flaw::null(&self.column)),
        }
    }
}

/// A column of true and false.
#[derive(Clone, Debug)]
pub(crate) struct Flags {
    column: String,
    values: BooleanArray,
    /// Rows whose value is neither, with the value.
    wrong: HashMap<usize, String>,
}

impl Flags {
    /// Booleans, the numbers 0 and 1, or the texts that mean one of these, such as `True`.
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let safe = CastOptions { safe: true, ..CastOptions::default() };
        let flags = cast_with_options(array, &DataType::Boolean, &safe);
        let flags = flags.map_err(|_| place.wrong_type(column, "true or false", array.data_type()))?;
        let odd = (0..array.len()).filter(|row| array.is_valid(*row) && flags.is_null(*row));
        let shown =
            |row| array_value_to_string(array, row).unwrap_or_else(|e| e.to_string()).chars().take(40).collect();
        let wrong = odd.map(|row| (row, shown(row))).collect();
        Ok(Self { column: column.to_owned(), values: flags.as_boolean().clone(), wrong })
    }

    /// The value at `row`; none if it is null.
    pub(crate) fn get(&self, row: usize) -> Result<Option<bool>, Flaw> {
        match self.wrong.get(&row) {
            None => Ok(self.values.is_valid(row).then(|| self.values.value(row))),
            Some(text) => Err(Flaw {
                kind: "neither true nor false",
                column: self.column.clone(),
                expected: "true or false".into(),
                found: format!("`{text}`"),
                hint: "correct the value, leave `finished` out of the card, or set `bad_rows = \"drop\"`",
            }),
        }
    }
}

/// A column of lists.
#[derive(Clone, Debug)]
pub(crate) struct Lists {
    /// Range of `values` that each row holds; none if it is null.
    ranges: Vec<Option<(usize, usize)>>,
    pub(crate) values: ArrayRef,
}

impl Lists {
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let range = |i: usize, from: i64, to: i64| {
            let offset = |o: i64| usize::try_from(o).expect("Arrow's offsets are not negative");
            array.is_valid(i).then(|| (offset(from), offset(to)))
        };
        let (ranges, values) = match array.data_type() {
            DataType::List(_) => {
                let lists = array.as_list::<i32>();
                let at = |i: usize| i64::from(lists.value_offsets()[i]);
                ((0..array.len()).map(|i| range(i, at(i), at(i + 1))).collect(), lists.values().clone())
            }
            DataType::LargeList(_) => {
                let lists = array.as_list::<i64>();
                let at = |i: usize| lists.value_offsets()[i];
                ((0..array.len()).map(|i| range(i, at(i), at(i + 1))).collect(), lists.values().clone())
            }
            DataType::FixedSizeList(field, size) => {
                let large = cast(array, &DataType::LargeList(field.clone()));
                let _ = size;
                return Self::bind(
                    &large.map_err(|_| place.wrong_type(column, "list", array.data_type()))?,
                    place,
                    column,
                );
            }
            DataType::Null => (vec![None; array.len()], array.slice(0, 0)),
            other => return Err(place.wrong_type(column, "list", other)),
        };
        Ok(Self { ranges, values })
    }

    /// Indices of `values` that belong to `row`; none if it is null.
    pub(crate) fn get(&self, row: usize) -> Option<std::ops::Range<usize>> {
        self.ranges[row].map(|(from, to)| from..to)
    }
}

/// A field of a struct column; `column` is its path in messages. A null struct has null fields.
pub(crate) fn field(array: &ArrayRef, name: &str, place: &Place, column: &str) -> Result<ArrayRef> {
    // Where nothing is there, the type was anyone's guess: an always empty list in JSON.
    if array.null_count() == array.len() {
        return Ok(new_null_array(&DataType::Null, array.len()));
    }
    let whole: &StructArray =
        array.as_struct_opt().ok_or_else(|| place.wrong_type(column, "struct", array.data_type()))?;
    let found = whole.column_by_name(name).ok_or_else(|| {
        let names: Vec<&str> = whole.fields().iter().map(|f| f.name().as_str()).collect();
        invalid(
            place.column(column),
            format!("a field `{name}`"),
            format!("the fields {}", names.join(", ")),
            "is this the published layout that the card names?",
        )
    })?;
    if whole.null_count() == 0 {
        return Ok(found.clone());
    }
    let hidden = arrow::compute::is_null(array).map_err(|e| arrow_bug(place.column(column), &e))?;
    arrow::compute::nullif(found, &hidden).map_err(|e| arrow_bug(place.column(column), &e))
}

/// A prompt, an answer or a whole conversation: plain text, a list of messages, or a list of messages written as text.
#[derive(Clone, Debug)]
pub(crate) struct Talks {
    column: String,
    kind: TalkKind,
}

#[derive(Clone, Debug)]
enum TalkKind {
    Plain(Texts),
    Messages {
        lists: Lists,
        roles: Texts,
        contents: Texts,
    },
    /// One message in each row, not in a list.
    Message {
        roles: Texts,
        contents: Texts,
    },
    /// A row whose text is no list of messages holds the text's beginning.
    Written(Vec<Option<Result<Messages, String>>>),
}

/// Is this what a field of a message is called?
pub(crate) fn is_message_field(name: &str) -> bool {
    MESSAGE_FIELDS.iter().any(|(role, content)| name == *role || name == *content)
}

impl Talks {
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let is_list =
            matches!(array.data_type(), DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _));
        let kind = if is_list || matches!(array.data_type(), DataType::Struct(_)) {
            let lists = is_list.then(|| Lists::bind(array, place, column)).transpose()?;
            let messages = lists.as_ref().map_or(array, |lists| &lists.values);
            let known = |name: &str| messages.as_struct_opt().is_some_and(|s| s.column_by_name(name).is_some());
            let (role, content) = MESSAGE_FIELDS.into_iter().find(|(role, _)| known(role)).unwrap_or(MESSAGE_FIELDS[0]);
            let part = |name: &str| -> Result<Texts> {
                let path = format!("{column}.{name}");
                Texts::bind(&field(messages, name, place, column)?, place, &path)
            };
            let (roles, contents) = (part(role)?, part(content)?);
            match lists {
                Some(lists) => TalkKind::Messages { lists, roles, contents },
                None => TalkKind::Message { roles, contents },
            }
        } else {
            let texts = Texts::bind(array, place, column)?;
            if place.reader.all.are_messages(column) {
                TalkKind::Written(written(&texts, array.len(), place, column))
            } else {
                look_for_messages(&texts, array.len(), place, column);
                TalkKind::Plain(texts)
            }
        };
        Ok(Self { column: column.to_owned(), kind })
    }

    /// The messages at `row`, a plain text as one message of `role`. Null if the row or a part of it is.
    pub(crate) fn get<'a>(&'a self, row: usize, role: &'a str) -> Result<Turns<'a>, Flaw> {
        let null = || Flaw::null(&self.column);
        match &self.kind {
            TalkKind::Plain(texts) => texts.get(row).map(|text| smallvec![(role, text)]).ok_or_else(null),
            TalkKind::Messages { lists, roles, contents } => {
                let rows = lists.get(row).ok_or_else(null)?;
                let turns: Option<Turns> = rows.map(|i| Some((plain_role(roles.get(i)?), contents.get(i)?))).collect();
                turns.ok_or_else(null)
            }
            TalkKind::Message { roles, contents } => {
                let (role, content) = roles.get(row).zip(contents.get(row)).ok_or_else(null)?;
                Ok(smallvec![(plain_role(role), content)])
            }
            TalkKind::Written(rows) => match rows[row].as_ref().ok_or_else(null)? {
                Ok(messages) => Ok(messages.iter().map(|(role, content)| (plain_role(role), content.as_str())).collect()),
                Err(text) => Err(Flaw {
                    kind: "plain text among messages written as text",
                    column: self.column.clone(),
                    expected: "a list of messages with a role and a content, written as JSON or as Python prints it, as in the file's first rows"
                        .into(),
                    found: format!("`{text}`"),
                    hint: "write the column's texts in one way, best as lists in Parquet, or set `bad_rows = \"drop\"`",
                }),
            },
        }
    }
}

/// Texts of a column of messages written as text.
fn written(texts: &Texts, rows: usize, place: &Place, column: &str) -> Vec<Option<Result<Messages, String>>> {
    let mut seen: [Option<(usize, usize)>; 2] = [None; 2];
    let read = |row: usize| {
        let text = texts.get(row)?;
        Some(match messages(text) {
            Some((writer, messages)) => {
                seen[usize::from(writer == Writer::Python)].get_or_insert((0, row)).0 += 1;
                Ok(messages)
            }
            None => Err(text.chars().take(60).collect()),
        })
    };
    let all = (0..rows).map(read).collect();
    for (form, counted) in [Form::Json, Form::Python].into_iter().zip(seen) {
        if let Some((count, row)) = counted {
            place.tell(column, form, count, row);
        }
    }
    all
}

/// Counts messages written as text in a column of plain texts.
fn look_for_messages(texts: &Texts, rows: usize, place: &Place, column: &str) {
    let mut seen: [Option<(usize, usize)>; 2] = [None; 2];
    for row in 0..rows {
        if let Some(text) = texts.get(row) {
            let found = seen[usize::from(messages(text).is_some())].get_or_insert((0, row));
            found.0 += 1;
        }
    }
    for (form, counted) in [Form::Plain, Form::Unread].into_iter().zip(seen) {
        if let Some((count, row)) = counted {
            place.tell(column, form, count, row);
        }
    }
}

/// Are most of a column's first texts messages written as text? None for a column of another type, or without texts.
pub(crate) fn mostly_messages(array: &ArrayRef, place: &Place) -> Option<bool> {
    const LOOKED_AT: usize = 100;
    if array.data_type().is_nested() || array.data_type().is_numeric() || array.data_type().is_temporal() {
        return None;
    }
    let texts = Texts::bind(array, place, "").ok()?;
    let first = (0..array.len()).filter_map(|row| texts.get(row)).take(LOOKED_AT);
    let (all, found) =
        first.fold((0, 0), |(all, found), text| (all + 1, found + usize::from(messages(text).is_some())));
    (all > 0).then_some(found * 2 > all)
}

/// ShareGPT's names of roles are read as those of chat templates.
fn plain_role(role: &str) -> &str {
    match role {
        "human" | "Human" | "prompter" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "model" | "Assistant" => "assistant",
        other => other,
    }
}
