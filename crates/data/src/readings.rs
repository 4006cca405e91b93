//! How the values of a source's columns were understood while they were read: in which unit a column of numbers tells the time, and
//! whether texts are messages written as text. A value says it by itself; a column whose values disagree is refused at the end.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock};

/// What a value was taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// A time written as text.
    Written,
    /// A time as a number since 1970, by its size.
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
    /// Text that is text.
    Plain,
    /// A list of messages written as JSON, and as Python prints it, read as messages.
    Json,
    Python,
    /// The same in a column of texts, left as it is.
    Unread,
}

impl Form {
    fn is_time(self) -> bool {
        self <= Self::Nanoseconds
    }

    fn called(self) -> &'static str {
        match self {
            Self::Written => "dates written as text",
            Self::Seconds => "seconds since 1970",
            Self::Milliseconds => "milliseconds since 1970",
            Self::Microseconds => "microseconds since 1970",
            Self::Nanoseconds => "nanoseconds since 1970",
            Self::Plain => "plain texts",
            Self::Json => "messages written as JSON",
            Self::Python => "messages as Python prints them",
            Self::Unread => "messages written as text",
        }
    }
}

/// A row: index of the file, and the row from 1.
pub(crate) type Where = (usize, usize);

/// How many values had a form, and where the first is.
type Count = (usize, Where);

/// Shared by all that read a source.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    /// By column and form.
    seen: Mutex<BTreeMap<(String, Form), Count>>,
    /// Columns of texts whose first rows are messages written as text.
    messages: OnceLock<HashSet<String>>,
}

/// A column whose values were understood in several ways.
#[derive(Debug)]
pub(crate) struct Contradiction {
    pub(crate) column: String,
    pub(crate) kind: &'static str,
    /// In words: how many of which form.
    pub(crate) found: String,
    /// Values of the rarer forms, and the first of each form.
    pub(crate) count: usize,
    pub(crate) first: Vec<Where>,
}

impl Readings {
    /// Counts values of a column.
    pub(crate) fn add(&self, column: &str, form: Form, count: usize, first: Where) {
        let mut seen = self.seen.lock().expect("no panic with the lock");
        let all = seen.entry((column.to_owned(), form)).or_insert((0, first));
        all.0 += count;
        all.1 = all.1.min(first);
    }

    /// A second pass counts anew.
    pub(crate) fn forget(&self) {
        self.seen.lock().expect("no panic with the lock").clear();
    }

    /// Decides, once, which columns hold messages written as text.
    pub(crate) fn decide(&self, messages: HashSet<String>) {
        _ = self.messages.set(messages);
    }

    /// Does this column hold messages written as text?
    pub(crate) fn are_messages(&self, column: &str) -> bool {
        self.messages.get().is_some_and(|m| m.contains(column))
    }

    fn columns(&self) -> BTreeMap<String, Vec<(Form, Count)>> {
        let mut columns: BTreeMap<String, Vec<(Form, Count)>> = BTreeMap::new();
        for ((column, form), count) in &*self.seen.lock().expect("no panic with the lock") {
            columns.entry(column.clone()).or_default().push((*form, *count));
        }
        columns
    }

    /// What a reader should know: what was decided from the values themselves.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for (column, forms) in self.columns() {
            for (form, (count, _)) in forms {
                match form {
                    Form::Written | Form::Plain => {}
                    Form::Unread => remarks.push(format!(
                        "{count} texts of `{column}` look like {}, and are kept as they are",
                        form.called()
                    )),
                    Form::Json | Form::Python => {
                        remarks.push(format!(
                            "{count} texts of `{column}` are {}, and are read as messages",
                            form.called()
                        ));
                    }
                    _ => remarks
                        .push(format!("{count} numbers of `{column}` are read as {}, by their size", form.called())),
                }
            }
        }
        remarks
    }

    /// Columns that were understood in several ways. Single texts that look like messages in a column of plain texts are none.
    pub(crate) fn contradictions(&self) -> Vec<Contradiction> {
        let mut found = Vec::new();
        for (column, forms) in self.columns() {
            let of = |form: Form| forms.iter().find(|(f, _)| *f == form).map_or(0, |(_, (n, _))| *n);
            let times: Vec<&(Form, Count)> = forms.iter().filter(|(form, _)| form.is_time()).collect();
            let unread = of(Form::Unread) > 0 && of(Form::Unread) * 10 >= of(Form::Unread) + of(Form::Plain);
            let (kind, several): (_, Vec<&(Form, Count)>) = if times.len() > 1 {
                ("times in several units", times)
            } else if unread {
                (
                    "messages written as text among plain texts",
                    forms.iter().filter(|(f, _)| matches!(f, Form::Plain | Form::Unread)).collect(),
                )
            } else {
                continue;
            };
            let most = several.iter().map(|(_, (n, _))| *n).max().unwrap_or(0);
            let all: usize = several.iter().map(|(_, (n, _))| *n).sum();
            let words: Vec<String> = several.iter().map(|(form, (n, _))| format!("{n} {}", form.called())).collect();
            let first = several.iter().map(|(_, (_, first))| *first).collect();
            found.push(Contradiction { column, kind, found: words.join(" and "), count: all - most, first });
        }
        found
    }
}

/// The readings of one file, shared with those of the source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reader {
    pub(crate) all: Arc<Readings>,
    /// Index of the file.
    pub(crate) file: usize,
}
