//! What a layout makes of a source's row, before splitting and selection.

use std::borrow::Cow;

use problem::{Problem, Result, invalid};
use smallvec::SmallVec;

/// (role, content) of each message; most prompts have one or two.
pub(crate) type Turns<'a> = SmallVec<[(&'a str, &'a str); 2]>;

/// A judgement as the source tells it; texts are the source's own.
#[derive(Clone, Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) user: Cow<'a, str>,
    /// (role, content), the system's instruction first.
    pub(crate) turns: Turns<'a>,
    pub(crate) first: &'a str,
    pub(crate) second: &'a str,
    pub(crate) choice: Choice,
    /// Did the first and the second answer end by themselves, where the source says so?
    pub(crate) finished: [Option<bool>; 2],
    pub(crate) weight: f32,
    pub(crate) margin: Option<f32>,
    pub(crate) timestamp: Option<i64>,
    /// The value of the split column.
    pub(crate) split: Option<&'a str>,
    /// The value of the group column.
    pub(crate) group: Option<&'a str>,
}

/// Which of two answers is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Choice {
    First,
    Second,
    Tie,
    /// `first` is the better one, and the order in which they were shown is not known.
    Unordered,
}

impl Draft<'_> {
    /// The better answer (of a tie the first) and the other.
    pub(crate) fn ranked(&self) -> (&str, &str) {
        if self.choice == Choice::Second { (self.second, self.first) } else { (self.first, self.second) }
    }

    /// Did these two end by themselves?
    pub(crate) fn ranked_finished(&self) -> [Option<bool>; 2] {
        let [first, second] = self.finished;
        if self.choice == Choice::Second { [second, first] } else { [first, second] }
    }

    /// Was the better answer (of a tie, the first) shown first?
    pub(crate) fn chosen_first(&self) -> Option<bool> {
        (self.choice != Choice::Unordered).then_some(self.choice != Choice::Second)
    }

    /// Why ingestion leaves this judgement out, if it does.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        if self.first.trim_start().is_empty() || self.second.trim_start().is_empty() {
            Some("empty answer")
        } else if self.first == self.second {
            Some("identical answers")
        } else if self.weight == 0.0 {
            Some("weight 0")
        } else {
            None
        }
    }
}

/// Is there nothing to see in a text that is not empty?
pub(crate) fn invisible(text: &str) -> bool {
    !text.trim().is_empty()
        && text.chars().all(|c| c.is_whitespace() || ('\u{200b}'..='\u{200f}').contains(&c) || c == '\u{feff}')
}

/// A row that is not as the card says.
#[derive(Clone, Debug)]
pub(crate) struct Flaw {
    /// In a few words, the same for all rows of the kind.
    pub(crate) kind: &'static str,
    pub(crate) column: String,
    pub(crate) expected: String,
    pub(crate) found: String,
    pub(crate) hint: &'static str,
}

impl Flaw {
    /// The flaw as an error; rows count from 1. A flaw of the whole row names no column.
    pub(crate) fn at(self, file: &str, row: usize) -> Problem {
        let column = if self.column.is_empty() { String::new() } else { format!(", column `{}`", self.column) };
        invalid(format!("{file}, row {row}{column}"), self.expected, self.found, self.hint)
    }

    pub(crate) fn null(column: &str) -> Self {
        Self {
            kind: "null",
            column: column.into(),
            expected: "a value".into(),
            found: "null".into(),
            hint: "fill it in, drop the row before ingestion, or set `bad_rows = \"drop\"`",
        }
    }
}

/// A row's judgement, or what is wrong with it; `row` counts in the batch.
pub(crate) type Emit<'e> = dyn FnMut(usize, Result<Draft<'_>, Flaw>) -> problem::Result<()> + 'e;
