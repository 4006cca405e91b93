//! What must hold for any rows.

use std::collections::BTreeMap;
use std::num::NonZero;

use data::{Duplicates, Selection, Split, SplitRule, Vote, Whole, read_votes, write_votes};
use proptest::prelude::*;
use text::Message;

use crate::common::{card, write_rows};

type Rows = Vec<[String; 6]>;

/// Rows of a few users on a few prompts; the last column is an ISO moment.
fn rows() -> impl Strategy<Value = Rows> {
    let row =
        (0..6u32, 0..12u32, 0..9u32, 0..9u32, 0..3usize, 0..500u32).prop_map(|(user, prompt, a, b, pick, when)| {
            [
                format!("user {user}"),
                format!("Prompt, number {prompt}{}", if when % 2 == 0 { "!" } else { "" }),
                format!("a{a}"),
                format!("b{b}"),
                ["1", "2", "="][pick].to_owned(),
                format!("2026-01-01T00:{:02}:{:02}Z", when / 60, when % 60),
            ]
        });
    prop::collection::vec(row, 30..120)
}

fn timed() -> data::Card {
    card(
        "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
         label_a = '1'\nlabel_b = '2'\nlabel_tie = '='\n[columns]\ntimestamp = 'part'",
    )
}

fn rules() -> Vec<SplitRule> {
    let of = NonZero::new(3).unwrap();
    vec![
        SplitRule::Prompt { dev: 0.2, test: 0.4 },
        SplitRule::Folds { over: Whole::Prompt, of, test: 1, dev: Some(2) },
        SplitRule::Time { dev: 0.1, test: 0.3 },
        SplitRule::Users { test: 0.5, adapt: 3, prompts: 0.0 },
        SplitRule::Users { test: 0.5, adapt: 3, prompts: 0.4 },
    ]
}

/// Votes without their places, each with how often it is kept.
fn kept(shards: &[Rows], selection: &Selection, threads: usize) -> Option<BTreeMap<String, usize>> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("shards");
    fs_err::create_dir(&folder).unwrap();
    for (i, rows) in shards.iter().enumerate() {
        write_rows(&folder.join(format!("{i}.parquet")), rows);
    }
    let out = dir.path().join("votes.parquet");
    let report = data::ingest_on(&timed(), &[folder.display().to_string()], selection, 3, &out, threads).ok()?;
    assert!(report.leakage.is_empty());
    let mut found = BTreeMap::new();
    for vote in read_votes(&out).unwrap() {
        let vote = Vote { source_row: String::new(), ..vote };
        *found.entry(format!("{vote:?}")).or_default() += 1;
    }
    Some(found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn splits_and_selection_do_not_depend_on_order_or_shards(rows in rows(), cut in 1..29usize, turn in 1..29usize) {
        for split in rules() {
            for (equalise, duplicates) in [(false, Duplicates::Keep), (true, Duplicates::Drop)] {
                let selection = Selection { equalise, duplicates, min_votes: 2, ..Selection::all(split) };
                let whole = kept(std::slice::from_ref(&rows), &selection, 1);
                let mut turned = rows.clone();
                turned.rotate_left(turn);
                turned.reverse();
                let (one, two) = turned.split_at(cut);
                prop_assert!(whole == kept(&[one.to_vec(), two.to_vec()], &selection, 2), "{split:?}, {duplicates:?}");
            }
        }
    }

    #[test]
    fn the_canonical_table_round_trips(
        texts in prop::collection::vec(any::<(String, String, String, String)>(), 1..20),
        numbers in any::<(f32, bool, i64)>(),
    ) {
        let (weight, tie, when) = numbers;
        let votes: Vec<Vote> = texts.into_iter().enumerate().map(|(i, (user_id, said, chosen, rejected))| Vote {
            user_id,
            prompt: vec![Message::system(said.clone()), Message::user(said)],
            chosen,
            rejected,
            tie,
            chosen_finished: None,
            rejected_finished: None,
            chosen_first: [None, Some(true), Some(false)][i % 3],
            weight: if weight.is_nan() { 0.0 } else { weight },
            margin: (i % 2 == 0).then_some(0.5),
            timestamp: (i % 2 == 1).then_some(when),
            split: Split::ALL[i % 4],
            source_row: format!("file {i}.parquet:{i}"),
        }).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("votes.parquet");
        write_votes(&path, &votes).unwrap();
        prop_assert_eq!(read_votes(&path).unwrap(), votes);
    }
}
