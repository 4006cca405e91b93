//! Columns that nobody reads, and what else the columns of a source give reason to say: nothing is dropped in silence.

use std::collections::BTreeSet;

use crate::Card;
use crate::card::Users;
use crate::layouts;
use crate::roles::{Role, advice, role};
use crate::units::Opened;

/// What there is to say of a source's columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNotes {
    /// Columns that are in at least one file and that nothing reads, sorted.
    pub unused: Vec<String>,
    /// Sentences on what may be missed: (what, names of files).
    pub(crate) missed: Vec<(String, Vec<String>)>,
}

impl ColumnNotes {
    /// Sentences on what may be missed, each with the files where it is.
    pub fn missed_sentences(&self) -> Vec<String> {
        let sentence = |(what, files): &(String, Vec<String>)| match files.as_slice() {
            [] => what.clone(),
            [one] => format!("{what} ({one})"),
            [one, more @ ..] => format!("{what} ({one} and {} more)", more.len()),
        };
        self.missed.iter().map(sentence).collect()
    }
}

/// Looks at the columns of all files; `paths` are those that are read of each.
pub(crate) fn notes(card: &Card, files: &[Opened], paths: &[Vec<String>]) -> ColumnNotes {
    // The table that ingestion writes says there where its rows are from, for messages.
    let own = |column: &str| card.layout == crate::Layout::Canonical && column == "source_row";
    let unread = |i: usize| files[i].unread(&paths[i]).filter(|c| !own(c));
    let unused: BTreeSet<&String> = (0..files.len()).flat_map(unread).collect();
    let short = |i: usize| files[i].file.short.to_string();
    let mut missed = Vec::new();
    if card.lacks_users() {
        missed.push((no_user(card, unused.iter().copied()), Vec::new()));
    }
    for column in &unused {
        if card.lacks_users() && role(column) == Some(Role::User) {
            continue; // named already
        }
        if let Some(advice) = advice(card, column) {
            let places = (0..files.len()).filter(|i| unread(*i).any(|c| c == *column)).map(short).collect();
            missed.push((format!("column `{column}` is not used; it {advice}"), places));
        }
    }
    for column in layouts::optional(&card.layout) {
        let lack = |i: &usize| !files[*i].columns.iter().any(|c| c == column);
        let without: Vec<String> = (0..files.len()).filter(lack).map(short).collect();
        if !without.is_empty() && without.len() < files.len() {
            missed.push((
                format!("column `{column}` is in some files only, and null in the rows of the others"),
                without,
            ));
        }
    }
    ColumnNotes { unused: unused.into_iter().cloned().collect(), missed }
}

/// Whose votes are counted where nobody says it, and which unused columns look as if they could.
pub(crate) fn no_user<'n>(card: &Card, unused: impl Iterator<Item = &'n String>) -> String {
    debug_assert_eq!(card.layout.users(), Users::Unsaid, "asked where a user is missing only");
    let like: Vec<String> = unused.filter(|c| role(c) == Some(Role::User)).map(|c| format!("`{c}`")).collect();
    let like = if like.is_empty() { String::new() } else { format!(" ({} may be one)", like.join(", ")) };
    format!("no column names the user{like}: all votes are counted as those of one user, `{}`", card.one_user())
}
