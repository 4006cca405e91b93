//! What all layouts read a batch by: its columns, the columns that any layout may have, and judgements made of them.

use std::borrow::Cow;

use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use problem::{Problem, Result, invalid};

use crate::Card;
use crate::card::{Columns, Users};
use crate::columns::{Flags, Lists, Place, Reals, Talks, Texts, field};
use crate::draft::{Choice, Draft, Flaw, Turns};
use crate::times::Times;

/// One batch of a source, by column names.
pub(crate) struct Bound<'b> {
    pub(crate) batch: &'b RecordBatch,
    pub(crate) place: &'b Place,
}

impl Bound<'_> {
    /// The column or, behind dots, the field of a struct column.
    pub(crate) fn array(&self, path: &str) -> Result<ArrayRef> {
        let (root, rest) = path.split_once('.').map_or((path, None), |(root, rest)| (root, Some(rest)));
        // A column may have a dot in its name.
        let whole = self.batch.column_by_name(path);
        if let Some(array) = whole {
            return Ok(array.clone());
        }
        let array = self.batch.column_by_name(root).ok_or_else(|| missing(&self.place.file, root, &self.names()))?;
        let Some(rest) = rest else { return Ok(array.clone()) };
        let (mut array, mut at) = (array.clone(), root.to_owned());
        for name in rest.split('.') {
            array = field(&array, name, self.place, &at)?;
            at = format!("{at}.{name}");
        }
        Ok(array)
    }

    fn names(&self) -> Vec<String> {
        self.batch.schema().fields().iter().map(|f| f.name().clone()).collect()
    }

    pub(crate) fn texts(&self, path: &str) -> Result<Texts> {
        Texts::bind(&self.array(path)?, self.place, path)
    }

    pub(crate) fn reals(&self, path: &str) -> Result<Reals> {
        Reals::bind(&self.array(path)?, self.place, path)
    }

    pub(crate) fn talks(&self, path: &str) -> Result<Talks> {
        Talks::bind(&self.array(path)?, self.place, path)
    }

    pub(crate) fn lists(&self, path: &str) -> Result<Lists> {
        Lists::bind(&self.array(path)?, self.place, path)
    }
}

/// The users of a batch's rows.
pub(super) struct RowUsers<'c> {
    /// Texts of the column that names users, and its name.
    column: Option<(Texts, &'c str)>,
    one: &'c str,
}

impl<'c> RowUsers<'c> {
    pub(super) fn bind(card: &'c Card, bound: &Bound) -> Result<Self> {
        let column = match card.layout.users() {
            Users::Column(name) => Some((bound.texts(name)?, name)),
            Users::Unsaid | Users::Layout => None,
        };
        Ok(Self { column, one: card.one_user() })
    }

    pub(super) fn get(&self, row: usize) -> Result<&str, Flaw> {
        match &self.column {
            Some((texts, name)) => texts.get(row).ok_or_else(|| Flaw::null(name)).and_then(|user| named(user, name)),
            None => Ok(self.one),
        }
    }
}

/// A user's id, unless it is blank.
pub(super) fn named<'u>(user: &'u str, column: &str) -> Result<&'u str, Flaw> {
    if user.trim().is_empty() {
        return Err(Flaw { kind: "a blank user id", found: format!("`{user}`"), ..Flaw::null(column) });
    }
    Ok(user)
}

pub(crate) fn missing(file: &str, column: &str, found: &[String]) -> Problem {
    invalid(
        file,
        format!("a column `{column}`"),
        format!("the columns {}", found.join(", ")),
        "name the right column in the data set's card",
    )
}

/// The largest weight, and the largest margin, that are taken for meant.
pub(super) const MOST_WEIGHT: f64 = 1e6;
pub(super) const MOST_MARGIN: f64 = 1e9;

/// A weight or a margin, from 0 to `most`, in single precision.
pub(super) fn single(value: f64, column: &str, most: f64) -> Result<f32, Flaw> {
    if (0.0..=most).contains(&value) {
        return Ok(value as f32);
    }
    Err(Flaw {
        kind: "unusable number",
        column: column.into(),
        expected: format!("a finite number from 0 to {most:e}"),
        found: value.to_string(),
        hint: "correct the number, leave the column out of the card, or set `bad_rows = \"drop\"`",
    })
}

/// The columns of [`Columns`], in a batch.
pub(crate) struct Extras {
    names: Columns,
    system: Option<Texts>,
    split: Option<Texts>,
    /// Of the whole file, by its name.
    file_split: Option<&'static str>,
    timestamp: Option<Times>,
    group: Option<Texts>,
    weight: Option<Reals>,
    margin: Option<Reals>,
    finished: Option<[Flags; 2]>,
}

impl Extras {
    pub(super) fn bind(names: &Columns, bound: &Bound) -> Result<Self> {
        let text = |name: &Option<String>| name.as_deref().map(|n| bound.texts(n)).transpose();
        let real = |name: &Option<String>| name.as_deref().map(|n| bound.reals(n)).transpose();
        let time = |n: &str| Times::bind(&bound.array(n)?, bound.place, n);
        let flags = |name: &String| Flags::bind(&bound.array(name)?, bound.place, name);
        let both = |[first, second]: &[String; 2]| -> Result<[Flags; 2]> { Ok([flags(first)?, flags(second)?]) };
        let file = bound.place.file.rsplit('/').next().unwrap_or_default();
        let fits =
            |pattern: &str| glob::Pattern::new(pattern).is_ok_and(|p| p.matches(file) || p.matches(&bound.place.short));
        let file_split = names.split_files.iter().find(|(pattern, _)| fits(pattern)).map(|(_, split)| split.name());
        Ok(Self {
            file_split,
            system: text(&names.system)?,
            split: text(&names.split)?,
            timestamp: names.timestamp.as_deref().map(time).transpose()?,
            group: text(&names.group)?,
            weight: real(&names.weight)?,
            margin: real(&names.margin)?,
            finished: names.finished.as_ref().map(both).transpose()?,
            names: names.clone(),
        })
    }

    /// A judgement of `row` with these columns filled in.
    pub(crate) fn draft<'a>(
        &'a self,
        row: usize,
        user: impl Into<Cow<'a, str>>,
        mut turns: Turns<'a>,
        first: &'a str,
        second: &'a str,
        choice: Choice,
        own: Own,
    ) -> Result<Draft<'a>, Flaw> {
        if let Some(system) = self.system.as_ref().and_then(|s| s.get(row)).filter(|s| !s.is_empty()) {
            put_system_first(system, &mut turns, self.names.system.as_deref().unwrap_or_default())?;
        }
        let number = |column: &Option<Reals>, name: &Option<String>, most: f64| {
            let Some(column) = column else { return Ok(None) };
            single(column.number(row)?, name.as_deref().unwrap_or_default(), most).map(Some)
        };
        let group = self.group.as_ref().map(|column| {
            let name = self.names.group.as_deref().unwrap_or_default();
            let group = column.get(row).ok_or_else(|| Flaw::null(name))?;
            let mark = self.names.group_until.as_deref();
            Ok(mark.and_then(|m| group.split_once(m)).map_or(group, |(before, _)| before))
        });
        let margin = number(&self.margin, &self.names.margin, MOST_MARGIN)?.or(own.margin);
        Ok(Draft {
            user: user.into(),
            turns,
            first,
            second,
            choice,
            finished: match &self.finished {
                Some([one, other]) => [one.get(row)?, other.get(row)?],
                None => own.finished,
            },
            weight: number(&self.weight, &self.names.weight, MOST_WEIGHT)?.unwrap_or(1.0) * own.weight,
            margin: if choice == Choice::Tie { None } else { margin },
            timestamp: self.timestamp.as_ref().map(|t| t.get(row)).transpose()?.flatten().or(own.timestamp),
            split: self.split.as_ref().and_then(|s| s.get(row)).or(self.file_split),
            group: group.transpose()?,
        })
    }
}

/// Puts a system instruction in front of a prompt, which may begin with the same one already.
pub(super) fn put_system_first<'a>(system: &'a str, turns: &mut Turns<'a>, column: &str) -> Result<(), Flaw> {
    match turns.first() {
        Some((role, content)) if *role == "system" && *content == system => {}
        Some((role, content)) if *role == "system" => {
            return Err(Flaw {
                kind: "two system instructions",
                column: column.into(),
                expected: "the instruction that the prompt's messages begin with, or none".into(),
                found: format!("`{}` and `{}`", brief(system), brief(content)),
                hint: "keep one of them",
            });
        }
        _ => turns.insert(0, ("system", system)),
    }
    Ok(())
}

/// A text's beginning, for messages.
pub(super) fn brief(text: &str) -> String {
    const SHOWN: usize = 40;
    let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
    format!("{}{}", &text[..end], if end < text.len() { "..." } else { "" }).replace('\n', "\\n")
}

/// What a layout knows of a judgement beside its texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    /// Did the first and the second answer end by themselves?
    pub(crate) finished: [Option<bool>; 2],
    pub(crate) weight: f32,
    pub(crate) margin: Option<f32>,
    pub(crate) timestamp: Option<i64>,
}

impl Default for Own {
    fn default() -> Self {
        Self { finished: [None; 2], weight: 1.0, margin: None, timestamp: None }
    }
}

/// A judgement that belongs to no single row, without the card's columns.
pub(super) fn without_columns<'a>(
    user: &'a str,
    turns: Turns<'a>,
    first: &'a str,
    second: &'a str,
    choice: Choice,
    own: Own,
) -> Draft<'a> {
    let Own { finished, weight, margin, timestamp } = own;
    let margin = if choice == Choice::Tie { None } else { margin };
    let user = Cow::Borrowed(user);
    Draft { user, turns, first, second, choice, finished, weight, margin, timestamp, split: None, group: None }
}

/// Every two of k scored answers: (one, other, choice, margin). Who reads them gives each the weight `1 / (k - 1)`, so
/// that an answer counts once however many it is compared with.
pub(crate) fn every_two(scores: &[f64]) -> impl Iterator<Item = (usize, usize, Choice, f32)> + '_ {
    (0..scores.len()).flat_map(move |i| {
        (i + 1..scores.len()).map(move |j| {
            let gap = scores[i] - scores[j];
            let choice = match gap {
                g if g > 0.0 => Choice::First,
                g if g < 0.0 => Choice::Second,
                _ => Choice::Tie,
            };
            (i, j, choice, gap.abs() as f32)
        })
    })
}
