//! Real votes. These tests read ../shared; where it is absent they skip, and say so.

use crate::tiny::repository;

#[test]
fn real_votes_are_ingested_and_counted() {
    let path = repository().join("../shared/datasets/ukp_convarg/votes.parquet");
    if !path.exists() {
        eprintln!("SKIPPED real_votes_are_ingested_and_counted: {} is not there", path.display());
        return;
    }
    let card = data::Card::read(&repository().join("datasets/ukp-convarg/card.toml")).unwrap();
    let split = data::SplitRule::Prompt { dev: 0.1, test: 0.2 };
    let selection = data::Selection { min_votes: 20, split, strict: false };
    let (votes, report) = data::ingest(&card, &path, &selection, 7).unwrap();
    assert_eq!(report.rows, 41_268);
    assert_eq!(report.kept, votes.len());
    assert_eq!(report.kept + report.dropped.values().sum::<usize>(), report.rows);
    assert!(report.users > 50 && report.users + report.dropped_users.len() == 2_915, "{report:?}");
}
