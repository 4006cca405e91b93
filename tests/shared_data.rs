//! Real votes. These tests read ../shared; where it is absent they skip, and say so.

use std::num::NonZero;
use std::path::PathBuf;

use data::{Card, Selection, SplitRule, Whole};

use crate::tiny::{program, repository, stderr};

fn votes(name: &str) -> Option<PathBuf> {
    let path = repository().join("../shared/datasets").join(name).join("votes.parquet");
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED a test on real votes: {} is not there", path.display());
    None
}

fn ingest(card: &str, name: &str, selection: &Selection) -> Option<data::Report> {
    let source = votes(name)?.display().to_string();
    let card = Card::read(&repository().join("datasets").join(card).join("card.toml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("votes.parquet");
    let report = data::ingest(&card, &[source], selection, 7, &out).unwrap();
    assert_eq!(report.kept, data::read_votes(&out).unwrap().len());
    assert_eq!(report.kept + report.dropped.values().sum::<usize>(), report.rows);
    assert!(report.leakage.is_empty());
    Some(report)
}

#[test]
fn real_votes_are_ingested_and_counted() {
    let split = SplitRule::Prompt { dev: 0.1, test: 0.2 };
    let selection = Selection { min_votes: 20, ..Selection::all(split) };
    let Some(report) = ingest("ukp-convarg", "ukp_convarg", &selection) else { return };
    assert_eq!(report.rows, 41_268);
    assert!(report.users > 50 && report.users + report.dropped_users.len() == 2_915, "{report:?}");
}

#[test]
fn every_rule_splits_real_votes_without_a_leak() {
    let of = NonZero::new(5).unwrap();
    let rules = [
        SplitRule::Prompt { dev: 0.1, test: 0.2 },
        SplitRule::Group { dev: 0.1, test: 0.2 },
        SplitRule::Folds { over: Whole::Group, of, test: 2, dev: Some(3) },
        SplitRule::Time { dev: 0.1, test: 0.2 },
        SplitRule::Users { test: 0.2, adapt: 10, prompts: 0.2 },
    ];
    for rule in rules {
        if let Some(report) = ingest("ukp-convarg", "ukp_convarg", &Selection::all(rule)) {
            eprintln!("{rule:?}: {:?}", report.splits);
            if let SplitRule::Folds { .. } = rule {
                assert_eq!((report.prompts["test"], report.prompts["dev"]), (4, 4), "two topics of two debates each");
            }
        }
    }
    let folds = SplitRule::Folds { over: Whole::Prompt, of, test: 0, dev: None };
    if let Some(report) = ingest("llmfao", "llmfao", &Selection::all(folds)) {
        assert_eq!((report.rows, report.prompts["test"] + report.prompts["train"]), (3_602, 9));
    }
}

#[test]
fn a_check_prints_its_table_of_real_votes() {
    let Some(path) = votes("ukp_convarg") else { return };
    let output = program().args(["data", "check"]).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(text.contains("| votes | 41268 |") && text.contains("| users | 2915 |"), "{text}");
    let strict = program().args(["data", "check", "--strict"]).arg(&path).output().unwrap();
    assert_eq!(strict.status.code(), Some(2));
    assert!(stderr(&strict).contains("hint: "), "{}", stderr(&strict));
}
