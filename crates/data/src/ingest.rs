//! From a source's rows to votes: every row is kept, or dropped for a reason that is counted.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use text::Message;

use crate::error::invalid;
use crate::split::{by_prompt, normalised};
use crate::table::Table;
use crate::{Card, Layout, Result, Split, SplitRule, Vote, read_table};

/// Which votes are kept, and how they are split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Users with fewer decided training votes are dropped and counted.
    pub min_votes: usize,
    /// Where the split comes from.
    pub split: SplitRule,
    /// Is a dropped user an error?
    pub strict: bool,
}

/// Counts of everything, kept and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Rows of the source.
    pub rows: usize,
    /// Votes kept, ties included.
    pub kept: usize,
    /// Of these, ties.
    pub ties: usize,
    /// Users kept.
    pub users: usize,
    /// Users below the minimum, with their decided training votes.
    pub dropped_users: BTreeMap<String, usize>,
    /// Rows dropped, by reason.
    pub dropped: BTreeMap<String, usize>,
    /// Votes kept, by split.
    pub splits: BTreeMap<String, usize>,
    /// Distinct prompts, by split.
    pub prompts: BTreeMap<String, usize>,
}

/// Reads, checks and splits one Parquet file.
///
/// # Errors
/// A missing column, a null, an unknown label or split, a prompt on two sides, no user left; with `strict`, any dropped
/// user.
pub fn ingest(card: &Card, path: &Path, selection: &Selection, seed: u64) -> Result<(Vec<Vote>, Report)> {
    let mut report = Report::default();
    let mut votes = read_source(card, path, selection, seed, &mut report)?;
    refuse_leaks(path, &votes)?;

    let mut decided: BTreeMap<String, usize> = votes.iter().map(|v| (v.user_id.clone(), 0)).collect();
    for vote in votes.iter().filter(|v| v.split == Split::Train && !v.tie) {
        *decided.entry(vote.user_id.clone()).or_default() += 1;
    }
    report.dropped_users =
        decided.iter().filter(|(_, n)| **n < selection.min_votes).map(|(u, n)| (u.clone(), *n)).collect();
    let all = decided.len();
    report.users = all - report.dropped_users.len();
    if report.users == 0 || (selection.strict && !report.dropped_users.is_empty()) {
        let wanted = if selection.strict { "every user" } else { "at least one user" };
        let first =
            report.dropped_users.iter().next().map_or(String::new(), |(u, n)| format!(", such as `{u}` with {n}"));
        return Err(invalid(
            path.display(),
            format!("{wanted} with at least {} decided training votes", selection.min_votes),
            format!("{} of {all} users below{first}", report.dropped_users.len()),
            "lower `min_votes`, gather more votes, or leave `strict` off",
        ));
    }
    let before = votes.len();
    votes.retain(|v| !report.dropped_users.contains_key(&v.user_id));
    if votes.len() < before {
        report.dropped.insert("user below the minimum of votes".into(), before - votes.len());
    }
    report.kept = votes.len();
    report.ties = votes.iter().filter(|v| v.tie).count();
    let mut prompts: BTreeMap<&str, std::collections::BTreeSet<String>> = BTreeMap::new();
    for vote in &votes {
        *report.splits.entry(vote.split.name().into()).or_default() += 1;
        prompts.entry(vote.split.name()).or_default().insert(normalised(&vote.prompt));
    }
    report.prompts = prompts.into_iter().map(|(split, set)| (split.to_owned(), set.len())).collect();
    Ok((votes, report))
}

/// A row's answers in the order shown, and what was said of them.
struct Judged {
    first: String,
    second: String,
    choice: Choice,
}

#[derive(Clone, Copy, PartialEq)]
enum Choice {
    First,
    Second,
    Tie,
    /// `chosen` and `rejected` without the order in which they were shown.
    Unordered,
}

fn read_source(card: &Card, path: &Path, selection: &Selection, seed: u64, report: &mut Report) -> Result<Vec<Vote>> {
    let (user_id, prompt, system, split) = match &card.layout {
        Layout::Votes { user_id, prompt, system, split, .. } | Layout::Pairs { user_id, prompt, system, split, .. } => {
            (user_id, prompt, system.as_deref(), split.as_deref())
        }
    };
    let mut columns = vec![user_id.as_str(), prompt];
    columns.extend(system);
    columns.extend(split);
    match &card.layout {
        Layout::Votes { response_a, response_b, label, .. } => columns.extend([response_a.as_str(), response_b, label]),
        Layout::Pairs { chosen, rejected, .. } => columns.extend([chosen.as_str(), rejected]),
    }
    let split = match (selection.split, split) {
        (SplitRule::Column, None) => {
            let hint = "name the split column in the card, or split by prompt: `split = { by = \"prompt\", dev = 0.1, test = 0.2 }`";
            return Err(invalid(format!("card `{}`", card.name), "a column with the split", "none", hint));
        }
        (SplitRule::Column, Some(column)) => Some(column),
        (SplitRule::Prompt { .. }, _) => None,
    };
    let table = read_table(path, &columns)?;
    report.rows = table.rows();
    let users = table.full_text(user_id)?;
    let prompts = table.full_text(prompt)?;
    let systems = system.map(|column| table.text(column)).transpose()?;
    let parts = split.map(|column| table.full_text(column)).transpose()?;
    let judged = judgements(card, &table, path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();

    let mut votes = Vec::with_capacity(users.len());
    for (row, (((user_id, prompt), judged), i)) in users.into_iter().zip(prompts).zip(judged).zip(0..).enumerate() {
        let mut drop = |reason: &str| *report.dropped.entry(reason.into()).or_default() += 1;
        let Judged { first, second, choice } = judged;
        if first.trim().is_empty() || second.trim().is_empty() {
            drop("empty answer");
            continue;
        }
        if first == second {
            drop("identical answers");
            continue;
        }
        let mut messages: Vec<Message> = Vec::new();
        messages.extend(systems.as_ref().and_then(|s| s[row].clone()).filter(|s| !s.is_empty()).map(Message::system));
        messages.push(Message::user(prompt));
        let split = match (&parts, selection.split) {
            (Some(parts), _) => Split::parse(&parts[row]).ok_or_else(|| {
                invalid(
                    format!("{}, row {}, column `{}`", path.display(), row + 1, split.unwrap_or_default()),
                    "`train`, `dev` or `test`",
                    format!("`{}`", parts[row]),
                    "rename the values, or split by prompt",
                )
            })?,
            (None, SplitRule::Prompt { dev, test }) => by_prompt(&messages, seed, dev, test),
            (None, SplitRule::Column) => unreachable!("a split column was required above"),
        };
        let (chosen, rejected) = if choice == Choice::Second { (second, first) } else { (first, second) };
        votes.push(Vote {
            user_id,
            prompt: messages,
            chosen,
            rejected,
            tie: choice == Choice::Tie,
            chosen_first: (choice != Choice::Unordered).then_some(choice != Choice::Second),
            weight: 1.0,
            margin: None,
            timestamp: None,
            split,
            source_row: format!("{name}:{}", i + 1),
        });
    }
    Ok(votes)
}

fn judgements(card: &Card, table: &Table, path: &Path) -> Result<Vec<Judged>> {
    match &card.layout {
        Layout::Pairs { chosen, rejected, .. } => {
            let rows = table.full_text(chosen)?.into_iter().zip(table.full_text(rejected)?);
            Ok(rows.map(|(first, second)| Judged { first, second, choice: Choice::Unordered }).collect())
        }
        Layout::Votes { response_a, response_b, label, label_a, label_b, label_tie, .. } => {
            let rows = table.full_text(response_a)?.into_iter().zip(table.full_text(response_b)?);
            let labels = table.full_text(label)?;
            rows.zip(labels)
                .enumerate()
                .map(|(row, ((first, second), value))| {
                    let choice = match &value {
                        v if v == label_a => Choice::First,
                        v if v == label_b => Choice::Second,
                        v if v == label_tie => Choice::Tie,
                        other => {
                            return Err(invalid(
                                format!("{}, row {}, column `{label}`", path.display(), row + 1),
                                format!("`{label_a}`, `{label_b}` or `{label_tie}`"),
                                format!("`{other}`"),
                                "set label_a, label_b and label_tie in the data set's card",
                            ));
                        }
                    };
                    Ok(Judged { first, second, choice })
                })
                .collect()
        }
    }
}

fn refuse_leaks(path: &Path, votes: &[Vote]) -> Result<()> {
    let mut seen: HashMap<String, &Vote> = HashMap::new();
    for vote in votes {
        let first = seen.entry(normalised(&vote.prompt)).or_insert(vote);
        if first.split != vote.split {
            return Err(invalid(
                format!("{}, rows {} and {}", path.display(), first.source_row, vote.source_row),
                "a prompt in one split only",
                format!("the same prompt in {} and in {}", first.split.name(), vote.split.name()),
                "split by prompt: `split = { by = \"prompt\", dev = 0.1, test = 0.2 }`",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Column, write_table};

    fn card(layout: &str) -> Card {
        toml::from_str(&format!("name = 'x'\nsource = 'y'\nlicence = 'z'\n[layout]\n{layout}")).unwrap()
    }

    fn votes_card() -> Card {
        card(
            "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
              label_a = '1'\nlabel_b = '2'\nlabel_tie = '='\nsplit = 'part'",
        )
    }

    fn file(rows: &[[&str; 6]]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.parquet");
        let names = ["rater", "q", "one", "two", "pick", "part"];
        let columns =
            names.iter().enumerate().map(|(c, n)| (*n, Column::Text(rows.iter().map(|r| r[c].into()).collect())));
        write_table(&path, &columns.collect::<Vec<_>>()).unwrap();
        (dir, path)
    }

    fn keep(min_votes: usize, strict: bool) -> Selection {
        Selection { min_votes, split: SplitRule::Column, strict }
    }

    const ROWS: [[&str; 6]; 6] = [
        ["ann", "p1", "a", "b", "1", "train"],
        ["ann", "p1", "a", "c", "2", "train"],
        ["ann", "p2", "a", "b", "=", "test"],
        ["bob", "p1", "a", "b", "2", "train"],
        ["ann", "p3", "a", "a", "1", "train"],
        ["ann", "p3", "", "a", "1", "train"],
    ];

    #[test]
    fn every_row_is_kept_or_counted() {
        let (_dir, path) = file(&ROWS);
        let (votes, report) = ingest(&votes_card(), &path, &keep(2, false), 7).unwrap();
        assert_eq!((report.rows, report.kept, report.ties, report.users), (6, 3, 1, 1));
        assert_eq!(report.dropped_users, BTreeMap::from([("bob".into(), 1)]));
        assert_eq!(report.dropped.values().sum::<usize>() + report.kept, report.rows);
        assert_eq!(report.dropped["identical answers"], 1);
        assert_eq!(report.dropped["empty answer"], 1);
        let second = &votes[1];
        assert_eq!((second.chosen.as_str(), second.rejected.as_str(), second.chosen_first), ("c", "a", Some(false)));
        assert!(votes[2].tie && votes[2].split == Split::Test && votes[2].source_row == "v.parquet:3");
    }

    #[test]
    fn users_below_the_minimum_are_an_error_if_none_remains_or_strict() {
        let (_dir, path) = file(&ROWS);
        let error = ingest(&votes_card(), &path, &keep(3, false), 7).unwrap_err();
        assert!(error.to_string().contains("2 of 2 users below"), "{error}");
        let error = ingest(&votes_card(), &path, &keep(2, true), 7).unwrap_err();
        assert!(error.to_string().contains("`bob` with 1"), "{error}");
        ingest(&votes_card(), &path, &keep(1, true), 7).unwrap();
    }

    #[test]
    fn wrong_rows_are_named() {
        let with = |f: &dyn Fn(&mut Vec<[&'static str; 6]>)| {
            let mut rows = ROWS.to_vec();
            f(&mut rows);
            let (_dir, path) = file(&rows);
            ingest(&votes_card(), &path, &keep(0, false), 7).unwrap_err().to_string()
        };
        assert!(with(&|r| r[1][4] = "3").contains("row 2, column `pick`: expected `1`, `2` or `=`, found `3`"));
        assert!(with(&|r| r[3][5] = "valid").contains("row 4, column `part`"));
        assert!(with(&|r| r[3][5] = "dev").contains("the same prompt in train and in dev"));
    }

    #[test]
    fn a_missing_column_and_a_null_are_named() {
        let (_dir, path) = file(&ROWS);
        let pairs = card("kind = 'pairs'\nuser_id = 'rater'\nprompt = 'q'\nchosen = 'best'\nrejected = 'two'");
        let by_prompt = Selection { min_votes: 0, split: SplitRule::Prompt { dev: 0.0, test: 0.5 }, strict: false };
        let error = ingest(&pairs, &path, &by_prompt, 7).unwrap_err().to_string();
        assert!(error.contains("a column `best`") && error.contains("rater, q, one"), "{error}");

        use arrow::array::{ArrayRef, RecordBatch, StringArray};
        let column = |v: [Option<&str>; 2]| std::sync::Arc::new(StringArray::from(v.to_vec())) as ArrayRef;
        let batch = RecordBatch::try_from_iter(vec![
            ("rater", column([Some("u"), Some("u")])),
            ("q", column([Some("p"), Some("p")])),
            ("best", column([Some("a"), None])),
            ("two", column([Some("b"), Some("b")])),
        ]);
        crate::table::write_batch(&path, &batch.unwrap()).unwrap();
        let error = ingest(&pairs, &path, &by_prompt, 7).unwrap_err().to_string();
        assert!(error.contains("row 2, column `best`: expected a value, found null"), "{error}");
    }

    #[test]
    fn splits_by_prompt_do_not_depend_on_the_order_of_rows() {
        let rows: Vec<[String; 6]> = (0..60)
            .map(|i| ["u".into(), format!("p{}", i % 20), format!("a{i}"), "b".into(), "1".into(), String::new()])
            .collect();
        let by = Selection { min_votes: 0, split: SplitRule::Prompt { dev: 0.2, test: 0.3 }, strict: false };
        let splits = |order: &mut dyn Iterator<Item = &[String; 6]>| {
            let rows: Vec<[&str; 6]> = order.map(|r| std::array::from_fn(|i| r[i].as_str())).collect();
            let (votes, report) = ingest(&votes_card(), &file(&rows).1, &by, 7).unwrap();
            assert_eq!(report.prompts.values().sum::<usize>(), 20);
            votes.into_iter().map(|v| (v.prompt[0].content.clone(), v.split)).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(splits(&mut rows.iter()), splits(&mut rows.iter().rev()));
    }
}
