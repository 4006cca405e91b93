//! Typed views of a batch's columns, whatever Arrow type a writer chose for them. Nothing is copied where types allow it.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, LargeStringArray, StringArray, StringViewArray, StructArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Float64Type, TimeUnit, TimestampMicrosecondType};
use problem::{Problem, Result, invalid};
use smallvec::smallvec;

use crate::draft::Turns;
use crate::table::arrow_bug;

/// Where a batch is from, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The file, as the user would name it.
    pub(crate) file: Arc<str>,
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

    fn wrong_type(&self, column: &str, expected: &str, found: &DataType) -> Problem {
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
pub(crate) struct Reals(Float64Array);

impl Reals {
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let wrong = || place.wrong_type(column, "number", array.data_type());
        let fits = array.data_type().is_numeric() || matches!(array.data_type(), DataType::Null);
        if !fits {
            return Err(wrong());
        }
        Ok(Self(cast(array, &DataType::Float64).map_err(|_| wrong())?.as_primitive::<Float64Type>().clone()))
    }

    /// The number at `row`; none if it is null.
    pub(crate) fn get(&self, row: usize) -> Option<f64> {
        self.0.is_valid(row).then(|| self.0.value(row))
    }
}

/// A column of moments.
#[derive(Clone, Debug)]
pub(crate) enum Times {
    Moments(TimestampMicrosecondArray),
    /// Seconds since 1970.
    Seconds(Reals),
}

impl Times {
    /// Timestamps of any unit and zone (without a zone they are UTC), dates, ISO 8601 texts, or numbers of seconds since 1970.
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let wrong = || place.wrong_type(column, "timestamp", array.data_type());
        let target = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
        match array.data_type() {
            DataType::Timestamp(_, _) | DataType::Date32 | DataType::Date64 => Ok(Self::Moments(
                cast(array, &target).map_err(|_| wrong())?.as_primitive::<TimestampMicrosecondType>().clone(),
            )),
            t if t.is_numeric() || matches!(t, DataType::Null) => Ok(Self::Seconds(Reals::bind(array, place, column)?)),
            _ => {
                let texts = Texts::bind(array, place, column)?;
                let plain: ArrayRef = Arc::new(StringArray::from_iter((0..array.len()).map(|i| texts.get(i))));
                let lenient = CastOptions { safe: true, ..CastOptions::default() };
                let moments = cast_with_options(&plain, &target, &lenient).map_err(|_| wrong())?;
                if let Some(row) = (0..array.len()).find(|i| plain.is_valid(*i) && moments.is_null(*i)) {
                    return Err(invalid(
                        place.row(row, column),
                        "a moment such as 2026-01-31T08:15:00Z",
                        format!("`{}`", texts.get(row).unwrap_or_default()),
                        "write ISO 8601, or leave `timestamp` out of the card",
                    ));
                }
                Ok(Self::Moments(moments.as_primitive::<TimestampMicrosecondType>().clone()))
            }
        }
    }

    /// Microseconds since 1970 at `row`; none if it is null or no number.
    pub(crate) fn get(&self, row: usize) -> Option<i64> {
        match self {
            Self::Moments(a) => a.is_valid(row).then(|| a.value(row)),
            Self::Seconds(a) => a.get(row).filter(|s| s.is_finite()).map(|s| (s * 1e6).round() as i64),
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
        let range = |i: usize, from: i64, to: i64| array.is_valid(i).then_some((from as usize, to as usize));
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

/// A prompt, an answer or a whole conversation: plain text, or a list of messages.
#[derive(Clone, Debug)]
pub(crate) enum Talks {
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
}

/// What the two fields of a message are called, in the order in which they are tried.
const MESSAGE_FIELDS: [(&str, &str); 2] = [("role", "content"), ("from", "value")];

/// Is this what a field of a message is called?
pub(crate) fn is_message_field(name: &str) -> bool {
    MESSAGE_FIELDS.iter().any(|(role, content)| name == *role || name == *content)
}

impl Talks {
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let is_list =
            matches!(array.data_type(), DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _));
        if !is_list && !matches!(array.data_type(), DataType::Struct(_)) {
            return Ok(Self::Plain(Texts::bind(array, place, column)?));
        }
        let lists = is_list.then(|| Lists::bind(array, place, column)).transpose()?;
        let messages = lists.as_ref().map_or(array, |lists| &lists.values);
        let known = |name: &str| messages.as_struct_opt().is_some_and(|s| s.column_by_name(name).is_some());
        let (role, content) = MESSAGE_FIELDS.into_iter().find(|(role, _)| known(role)).unwrap_or(MESSAGE_FIELDS[0]);
        let part = |name: &str| -> Result<Texts> {
            let path = format!("{column}.{name}");
            Texts::bind(&field(messages, name, place, column)?, place, &path)
        };
        let (roles, contents) = (part(role)?, part(content)?);
        Ok(match lists {
            Some(lists) => Self::Messages { lists, roles, contents },
            None => Self::Message { roles, contents },
        })
    }

    /// The messages at `row`, a plain text as one message of `role`. None if the row or a part of it is null.
    pub(crate) fn get<'a>(&'a self, row: usize, role: &'a str) -> Option<Turns<'a>> {
        match self {
            Self::Plain(texts) => texts.get(row).map(|text| smallvec![(role, text)]),
            Self::Messages { lists, roles, contents } => {
                lists.get(row)?.map(|i| Some((plain_role(roles.get(i)?), contents.get(i)?))).collect()
            }
            Self::Message { roles, contents } => Some(smallvec![(plain_role(roles.get(row)?), contents.get(row)?)]),
        }
    }
}

/// ShareGPT's names of roles are read as those of chat templates.
fn plain_role(role: &str) -> &str {
    match role {
        "human" | "Human" | "prompter" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "model" | "Assistant" => "assistant",
        other => other,
    }
}
