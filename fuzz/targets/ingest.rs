//! A card and a file of any bytes: ingestion and the check end in a table or a message, never in a panic, and leave nothing
//! half-written.
//!
//! Input: one byte for the file's ending, the card's text up to a line `---`, the file's bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

const ENDINGS: [&str; 8] = ["parquet", "jsonl", "json", "csv", "arrow", "jsonl.gz", "csv.zst", "tsv"];

fn look_at(input: &[u8]) {
    let Some((ending, rest)) = input.split_first() else { return };
    let mark = b"\n---\n";
    let Some(at) = rest.windows(mark.len()).position(|w| w == mark) else { return };
    let Ok(card) = std::str::from_utf8(&rest[..at]) else { return };
    let Ok(card) = data::Card::parse(card, &"card") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join(format!("x.{}", ENDINGS[usize::from(*ending) % ENDINGS.len()]));
    std::fs::write(&source, &rest[at + mark.len()..]).expect("space");
    let sources = [source.display().to_string()];
    let out = folder.path().join("out.parquet");
    let rule = match card.columns.timestamp {
        Some(_) => data::SplitRule::Time { dev: 0.1, test: 0.2 },
        None => data::SplitRule::Prompt { dev: 0.0, test: 0.0 },
    };
    let selection = data::Selection { duplicates: data::Duplicates::Drop, ..data::Selection::all(rule) };
    match data::ingest_on(&card, &sources, &selection, 7, &out, 1) {
        Ok(report) => assert_eq!(data::read_votes(&out).expect("our own table").len(), report.kept),
        Err(error) => {
            assert!(!out.exists());
            assert_eq!(error.kind(), problem::Kind::User, "{error}");
            assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1, "something is left");
        }
    }
    _ = data::check(&card, &sources, &data::CheckOptions { threads: 1, ..Default::default() }, folder.path());
    _ = data::first_votes(&card, &sources, 2, None);
}

fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |input: &[u8]| fuzz_targets::abort_on_panic(|| look_at(input)));
