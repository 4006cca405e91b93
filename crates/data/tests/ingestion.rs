//! What is kept, dropped and refused.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampSecondArray};
use data::{BadRows, Duplicates, Selection, Split, SplitRule, Whole};

use crate::common::{NAMES, all, by_prompt, card, file, ingest, texts, votes_card, write_batch};

fn keep(min_votes: usize, strict: bool) -> Selection {
    Selection { min_votes, strict, ..Selection::all(SplitRule::Column) }
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
    let (votes, report) = ingest(&votes_card(), &path, &keep(2, false)).unwrap();
    assert_eq!((report.rows, report.votes, report.kept, report.ties, report.users), (6, 6, 3, 1, 1));
    assert_eq!(report.dropped_users, BTreeMap::from([("bob".into(), 1)]));
    assert_eq!(report.dropped.values().sum::<usize>() + report.kept, report.votes);
    assert_eq!(report.dropped["identical answers"], 1);
    assert_eq!(report.dropped["empty answer"], 1);
    assert!(report.leakage.is_empty());
    let second = &votes[1];
    assert_eq!((second.chosen.as_str(), second.rejected.as_str(), second.chosen_first), ("c", "a", Some(false)));
    assert!(votes[2].tie);
    assert!(votes[2].split == Split::Test);
    assert!(votes[2].source_row == "v.parquet:3");
}

#[test]
fn users_below_the_minimum_are_an_error_if_none_remains_or_strict() {
    let (_dir, path) = file(&ROWS);
    let error = ingest(&votes_card(), &path, &keep(3, false)).unwrap_err();
    assert!(error.to_string().contains("2 of 2 users below"), "{error}");
    let error = ingest(&votes_card(), &path, &keep(2, true)).unwrap_err();
    assert!(error.to_string().contains("`bob` with 1"), "{error}");
    ingest(&votes_card(), &path, &keep(1, true)).unwrap();
}

#[test]
fn issue_23_votes_of_weight_0_are_no_votes_and_users_of_no_others_are_named() {
    // ann's votes count, every other one of bob's does, and none of dan's.
    let rows: Vec<[String; 6]> = (0..30)
        .map(|i| {
            let (user, weight) = [("ann", "2"), ("bob", if i % 2 == 0 { "0" } else { "0.5" }), ("dan", "0")][i % 3];
            [user.into(), format!("p{i}"), format!("a{i}"), format!("b{i}"), "1".into(), weight.into()]
        })
        .collect();
    let weighted = |rows: &[[String; 6]]| {
        let column = |c: usize| texts(&rows.iter().map(|r| r[c].clone()).collect::<Vec<_>>());
        let weights = rows.iter().map(|r| r[5].parse().unwrap()).collect::<Vec<f64>>();
        let mut columns: Vec<(&str, ArrayRef)> = NAMES[..5].iter().enumerate().map(|(c, n)| (*n, column(c))).collect();
        columns.push(("w", Arc::new(arrow::array::Float64Array::from(weights))));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.parquet");
        write_batch(&path, &RecordBatch::try_from_iter(columns).unwrap());
        (dir, path)
    };
    let layout = "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
                  label_a = '1'\nlabel_b = '2'\nlabel_tie = '='\n[columns]\nweight = 'w'";
    let counting: Vec<[String; 6]> = rows.iter().filter(|r| r[5] != "0").cloned().collect();
    let folds = SplitRule::Folds { over: Whole::Prompt, of: NonZero::new(3).unwrap(), test: 0, dev: None };
    let capped = Selection { max_votes_per_user: Some(3), ..Selection::all(folds) };
    for selection in [all(), capped, Selection { min_votes: 5, ..all() }] {
        let (_dir, path) = weighted(&rows);
        let (votes, report) = ingest(&card(layout), &path, &selection).unwrap();
        assert_eq!(report.users_without_weight, BTreeMap::from([("dan".into(), 10)]));
        assert_eq!(report.dropped["weight 0"], 15);
        let (_dir, path) = weighted(&counting);
        let (without, report) = ingest(&card(layout), &path, &selection).unwrap();
        assert!(report.users_without_weight.is_empty());
        let told = |votes: &[data::Vote]| -> Vec<_> {
            votes.iter().map(|v| (v.user_id.clone(), v.chosen.clone(), v.split, v.weight.to_bits())).collect()
        };
        assert_eq!(told(&votes), told(&without), "{selection:?}");
    }
    let (_dir, path) = weighted(&rows);
    let (_, report) = ingest(&card(layout), &path, &Selection { min_votes: 6, ..all() }).unwrap();
    assert_eq!(report.dropped_users, BTreeMap::from([("bob".into(), 5)]), "ten votes, five of which count");
    let strict = Selection { strict: true, ..all() };
    let error = ingest(&card(layout), &path, &strict).unwrap_err().to_string();
    assert!(error.contains("`dan` with 10 votes, all of weight 0"), "{error}");
}

#[test]
fn wrong_rows_are_named_or_dropped_and_counted() {
    let with = |f: &dyn Fn(&mut Vec<[&'static str; 6]>), bad_rows| {
        let mut rows = ROWS.to_vec();
        f(&mut rows);
        let (_dir, path) = file(&rows);
        ingest(&votes_card(), &path, &Selection { bad_rows, ..keep(0, false) })
    };
    let error = |f: &dyn Fn(&mut Vec<[&'static str; 6]>)| with(f, BadRows::Error).unwrap_err().to_string();
    assert!(error(&|r| r[1][4] = "3").contains("row 2, column `pick`: expected `1`, `2` or `=`, found `3`"));
    assert!(error(&|r| r[3][5] = "valid").contains("row 4, column `part`"));
    let leak = error(&|r| r[3][5] = "dev");
    assert!(leak.contains("rows v.parquet:1 and v.parquet:4"), "{leak}");
    assert!(leak.contains("the same prompt in train and in dev"), "{leak}");
    let (_, report) = with(&|r| r[1][4] = "3", BadRows::Drop).unwrap();
    assert_eq!((report.dropped["unknown label"], report.kept), (1, 3));
    let (_, report) = with(&|r| r[3][5] = "valid", BadRows::Drop).unwrap();
    assert_eq!((report.dropped["unknown split"], report.kept), (1, 3));
    // The same where a first pass has looked at the rows.
    let mut rows = ROWS.to_vec();
    rows[3][5] = "valid";
    let (_dir, path) = file(&rows);
    let two_passes = |bad_rows| {
        let selection = Selection { bad_rows, max_votes_per_user: Some(100), ..keep(1, false) };
        ingest(&votes_card(), &path, &selection)
    };
    assert!(two_passes(BadRows::Error).unwrap_err().to_string().contains("row 4, column `part`"));
    let (_, report) = two_passes(BadRows::Drop).unwrap();
    assert_eq!(report.dropped.values().sum::<usize>() + report.kept, report.votes);
    assert_eq!(report.kept, 3, "{report:?}");
}

#[test]
fn a_missing_column_and_a_null_are_named() {
    let (_dir, path) = file(&ROWS);
    let pairs = card("kind = 'pairs'\nuser_id = 'rater'\nprompt = 'q'\nchosen = 'best'\nrejected = 'two'");
    let error = ingest(&pairs, &path, &all()).unwrap_err().to_string();
    assert!(error.contains("a column `best`"), "{error}");
    assert!(error.contains("rater, q, one"), "{error}");

    let column = |v: [Option<&str>; 2]| Arc::new(arrow::array::StringArray::from(v.to_vec())) as ArrayRef;
    let batch = RecordBatch::try_from_iter(vec![
        ("rater", column([Some("u"), Some("u")])),
        ("q", column([Some("p"), Some("p")])),
        ("best", column([Some("a"), None])),
        ("two", column([Some("b"), Some("b")])),
    ]);
    write_batch(&path, &batch.unwrap());
    let error = ingest(&pairs, &path, &all()).unwrap_err().to_string();
    assert!(error.contains("row 2, column `best`: expected a value, found null"), "{error}");
    let (_, report) = ingest(&pairs, &path, &Selection { bad_rows: BadRows::Drop, ..all() }).unwrap();
    assert_eq!((report.dropped["null"], report.kept), (1, 1));
}

/// Rows of `users` users with `votes` votes each on prompts of their own numbers modulo `prompts`.
fn many(users: usize, votes: usize, prompts: usize) -> Vec<[String; 6]> {
    let row = |u: usize, v: usize| {
        let prompt = (u * 7 + v * 3) % prompts;
        [
            format!("u{u:02}"),
            format!("prompt {prompt}"),
            format!("a{u} {v}"),
            format!("b{v}"),
            "1".into(),
            String::new(),
        ]
    };
    (0..users).flat_map(|u| (0..votes).map(move |v| (u, v))).map(|(u, v)| row(u, v)).collect()
}

#[test]
fn the_top_users_are_equalised_in_every_split() {
    let mut rows = many(6, 40, 30);
    rows.retain(|r| {
        let user: usize = r[0][1..].parse().unwrap();
        let vote: usize = r[2].split(' ').next_back().unwrap().parse().unwrap();
        vote < 15 + 5 * user
    });
    let (_dir, path) = file(&rows);
    let selection = Selection { top_users: Some(3), equalise: true, ..by_prompt(0.0, 0.3) };
    let (votes, report) = ingest(&votes_card(), &path, &selection).unwrap();
    let users: BTreeSet<&str> = votes.iter().map(|v| v.user_id.as_str()).collect();
    assert_eq!(users, BTreeSet::from(["u03", "u04", "u05"]));
    assert_eq!((report.users, report.users_beyond_the_top), (3, 3));
    for split in [Split::Train, Split::Test] {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        votes.iter().filter(|v| v.split == split).for_each(|v| *counts.entry(&v.user_id).or_default() += 1);
        let counts: BTreeSet<usize> = counts.into_values().collect();
        assert_eq!(counts.len(), 1, "{split:?}: {counts:?}");
    }
    assert_eq!(report.dropped.values().sum::<usize>() + report.kept, report.votes);
    assert!(report.dropped["beyond the user's share"] > 0);
}

#[test]
fn folds_hold_every_prompt_once() {
    let (_dir, path) = file(&many(4, 30, 23));
    let mut tested: Vec<String> = Vec::new();
    for test in 0..5 {
        let split =
            SplitRule::Folds { over: Whole::Prompt, of: NonZero::new(5).unwrap(), test, dev: Some((test + 1) % 5) };
        let (votes, report) = ingest(&votes_card(), &path, &Selection::all(split)).unwrap();
        let own: BTreeSet<String> =
            votes.iter().filter(|v| v.split == Split::Test).map(|v| v.prompt[0].content.clone()).collect();
        assert!((4..=5).contains(&own.len()), "{report:?}");
        assert!((4..=5).contains(&report.prompts["dev"]), "{report:?}");
        tested.extend(own);
    }
    assert_eq!((tested.len(), tested.iter().collect::<BTreeSet<_>>().len()), (23, 23));
}

#[test]
fn groups_stay_whole_and_a_prompt_in_two_groups_is_a_leak() {
    let mut rows = many(3, 40, 12);
    for row in &mut rows {
        let prompt: usize = row[1].split(' ').next_back().unwrap().parse().unwrap();
        row[5] = format!("topic{}-side{}", prompt % 4, prompt % 2);
    }
    let grouped = card(
        "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
         label_a = '1'\nlabel_b = '2'\nlabel_tie = '='\n[columns]\ngroup = 'part'\ngroup_until = '-'",
    );
    let split = SplitRule::Folds { over: Whole::Group, of: NonZero::new(4).unwrap(), test: 1, dev: None };
    let (_dir, path) = file(&rows);
    let (votes, report) = ingest(&grouped, &path, &Selection::all(split)).unwrap();
    let tested: BTreeSet<usize> = votes
        .iter()
        .filter(|v| v.split == Split::Test)
        .map(|v| v.prompt[0].content.split(' ').next_back().unwrap().parse::<usize>().unwrap() % 4)
        .collect();
    assert_eq!((tested.len(), report.prompts["test"]), (1, 3));
    // The same prompt under every topic: it cannot be on one side.
    rows.iter_mut().for_each(|r| r[1] = "one prompt".into());
    let (_dir, path) = file(&rows);
    let error = ingest(&grouped, &path, &Selection::all(split)).unwrap_err().to_string();
    assert!(error.contains("a prompt in one split only"), "{error}");
    let error = ingest(&votes_card(), &path, &Selection::all(split)).unwrap_err().to_string();
    assert!(error.contains("a column with the group"), "{error}");
}

#[test]
fn a_card_says_what_a_sources_splits_are_called() {
    let row = |i: usize, part: &str| {
        [format!("u{}", i % 2), format!("q{i}"), "a".into(), "b".into(), "1".into(), part.into()]
    };
    let rows: Vec<[String; 6]> = (0..9).map(|i| row(i, ["train", "valid1", "valid2"][i % 3])).collect();
    let splits = |votes: &[data::Vote]| Split::ALL.map(|s| votes.iter().filter(|v| v.split == s).count());
    let mut named = votes_card();
    named.columns.split_names = [("valid1".to_owned(), Split::Dev), ("valid2".to_owned(), Split::Test)].into();
    let (votes, _) = ingest(&named, &file(&rows).1, &Selection::all(SplitRule::Column)).unwrap();
    assert_eq!(splits(&votes), [3, 3, 0, 3]);
    let error = ingest(&votes_card(), &file(&rows).1, &Selection::all(SplitRule::Column)).unwrap_err();
    assert!(error.to_string().contains("found `valid1`"), "{error}");
    assert!(error.hint().unwrap().contains("split_names"), "{error}");
    // By the names of files.
    let folder = tempfile::tempdir().unwrap();
    crate::common::write_rows(&folder.path().join("train-0.parquet"), &rows[..5]);
    crate::common::write_rows(&folder.path().join("validation.parquet"), &rows[5..]);
    let mut by_file = votes_card();
    by_file.columns.split = None;
    by_file.columns.split_files = [("train*".to_owned(), Split::Train), ("val*".to_owned(), Split::Test)].into();
    let (votes, _) = ingest(&by_file, folder.path(), &Selection::all(SplitRule::Column)).unwrap();
    assert_eq!(splits(&votes), [5, 0, 0, 4]);
    crate::common::write_rows(&folder.path().join("other.parquet"), &rows[..1]);
    let error = ingest(&by_file, folder.path(), &Selection::all(SplitRule::Column)).unwrap_err().to_string();
    assert!(error.contains("other.parquet, row 1"), "{error}");
    assert!(error.contains("(the file's name)"), "{error}");
}

#[test]
fn the_newest_votes_of_each_user_are_test() {
    let rows = many(3, 20, 60);
    let columns: Vec<ArrayRef> =
        (0..5).map(|c| texts(&rows.iter().map(|r| r[c].as_str()).collect::<Vec<_>>())).collect();
    let seconds = TimestampSecondArray::from_iter_values((0..60).map(|i| 1000 + (i * 37) % 60)).with_timezone("+02:00");
    let mut named: Vec<(&str, ArrayRef)> = NAMES[..5].iter().copied().zip(columns).collect();
    named.push(("when", Arc::new(seconds)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.parquet");
    write_batch(&path, &RecordBatch::try_from_iter(named).unwrap());
    let timed = card(
        "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
         label_a = '1'\nlabel_b = '2'\nlabel_tie = '='\n[columns]\ntimestamp = 'when'",
    );
    let (votes, _) = ingest(&timed, &path, &Selection::all(SplitRule::Time { dev: 0.1, test: 0.2 })).unwrap();
    for user in ["u00", "u01", "u02"] {
        let times =
            |split| votes.iter().filter(move |v| v.user_id == user && v.split == split).map(|v| v.timestamp.unwrap());
        assert_eq!([times(Split::Train).count(), times(Split::Dev).count(), times(Split::Test).count()], [14, 2, 4]);
        assert!(times(Split::Train).max() < times(Split::Dev).min());
        assert!(times(Split::Dev).max() < times(Split::Test).min());
    }
    assert!(votes.iter().all(|v| (1_000_000_000..1_060_000_000).contains(&v.timestamp.unwrap())), "microseconds, UTC");
    let late = Selection { bad_rows: BadRows::Drop, ..Selection::all(SplitRule::Time { dev: 0.1, test: 0.2 }) };
    let error = ingest(&votes_card(), &file(&rows).1, &late).unwrap_err().to_string();
    assert!(error.contains("at least one vote"), "{error}");
    assert!(error.contains("not as the card says"), "{error}");
    let error = ingest(&votes_card(), &file(&rows).1, &Selection::all(SplitRule::Time { dev: 0.1, test: 0.2 }));
    assert!(error.unwrap_err().to_string().contains("column `timestamp`: expected a value, found null"));
}

#[test]
fn held_out_users_keep_few_votes_to_fit_and_prompts_of_their_own() {
    let (_dir, path) = file(&many(40, 25, 50));
    for prompts in [0.0, 0.4] {
        let rule = SplitRule::Users { test: 0.3, adapt: 6, prompts };
        let (votes, report) = ingest(&votes_card(), &path, &Selection::all(rule)).unwrap();
        let of = |split: Split| votes.iter().filter(move |v| v.split == split);
        let users = |split| of(split).map(|v| v.user_id.as_str()).collect::<BTreeSet<_>>();
        let prompts_of = |split| of(split).map(|v| v.prompt[0].content.as_str()).collect::<BTreeSet<_>>();
        assert!(users(Split::Train).is_disjoint(&users(Split::Test)));
        assert!(users(Split::Test).len() > 5);
        for user in users(Split::Adapt) {
            assert_eq!(of(Split::Adapt).filter(|v| v.user_id == user).count(), 6, "{user}");
        }
        assert_eq!(prompts_of(Split::Train).is_disjoint(&prompts_of(Split::Test)), prompts > 0.0);
        assert_eq!(report.dropped.values().sum::<usize>() + report.kept, report.votes);
    }
}

#[test]
fn repeated_votes_are_dropped_if_asked() {
    let mut rows = many(2, 10, 5);
    rows.extend(rows[3..6].to_vec());
    let (_dir, path) = file(&rows);
    assert_eq!(ingest(&votes_card(), &path, &all()).unwrap().1.kept, 23);
    let (_, report) = ingest(&votes_card(), &path, &Selection { duplicates: Duplicates::Drop, ..all() }).unwrap();
    assert_eq!((report.kept, report.dropped["duplicate vote"]), (20, 3));
}

#[test]
fn a_split_that_was_asked_for_and_is_empty_is_an_error() {
    let (_dir, path) = file(&many(2, 10, 1));
    let error = ingest(&votes_card(), &path, &by_prompt(0.0, 0.01)).unwrap_err().to_string();
    assert!(error.contains("votes in `test`"), "{error}");
    let error = ingest(&votes_card(), &path, &by_prompt(0.7, 0.7)).unwrap_err().to_string();
    assert!(error.contains("a split that can be"), "{error}");
}
