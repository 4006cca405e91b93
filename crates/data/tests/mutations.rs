//! The fuzz target's seeds, changed at random: ingestion, the check and the first look end in a table or a message. This is a
//! short run without coverage; `fuzz/README.md` says how to do the long one. `IDIOLECT_MUTATIONS=100000` tries more.

use data::{Card, CheckOptions, Duplicates, Selection, SplitRule};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const ENDINGS: [&str; 8] = ["parquet", "jsonl", "json", "csv", "arrow", "jsonl.gz", "csv.zst", "tsv"];

fn change(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = *[0, 1, 0x7f, 0x80, 0xff, b'"', b'\n', b',', b'{', b']'].choose(rng).unwrap(),
            2 => bytes.truncate(at),
            3 => _ = bytes.remove(at),
            4 => bytes.insert(at, rng.random()),
            _ => {
                let end = (at + rng.random_range(1..40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
}

#[test]
fn changed_seeds_end_in_a_table_or_a_message() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/ingest");
    let mut seeds: Vec<std::path::PathBuf> = fs_err::read_dir(&corpus).unwrap().map(|e| e.unwrap().path()).collect();
    seeds.sort();
    assert!(seeds.len() > 30, "only {} seeds", seeds.len());
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|p| fs_err::read(p).unwrap()).collect();
    let tries = std::env::var("IDIOLECT_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(tries as u64);
    let (mut tables, mut messages) = (0, 0);
    for n in 0..tries + seeds.len() {
        let mut input = seeds[n % seeds.len()].clone();
        let mark = input.windows(5).position(|w| w == b"\n---\n").unwrap();
        if n >= seeds.len() {
            let mut body = input.split_off(mark + 5);
            change(&mut body, &mut rng);
            input.extend(body);
        }
        let card = std::str::from_utf8(&input[1..mark]).unwrap();
        let card = Card::parse(card, &"card").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join(format!("x.{}", ENDINGS[usize::from(input[0]) % ENDINGS.len()]));
        fs_err::write(&source, &input[mark + 5..]).unwrap();
        let sources = [source.display().to_string()];
        let out = folder.path().join("out.parquet");
        let selection =
            Selection { duplicates: Duplicates::Drop, ..Selection::all(SplitRule::Prompt { dev: 0.0, test: 0.0 }) };
        let run = std::panic::AssertUnwindSafe(|| {
            let result = data::ingest_on(&card, &sources, &selection, 7, &out, 1);
            _ = data::check(&card, &sources, &CheckOptions { threads: 1, ..CheckOptions::default() }, folder.path());
            _ = data::first_votes(&card, &sources, 2, None);
            result
        });
        match std::panic::catch_unwind(run) {
            Ok(Ok(report)) => {
                assert_eq!(data::read_votes(&out).unwrap().len(), report.kept);
                tables += 1;
            }
            Ok(Err(error)) => {
                assert!(n >= seeds.len(), "seed {n} itself: {error}");
                assert!(error.hint().is_some());
                assert!(!out.exists());
                assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "{error}");
                messages += 1;
            }
            Err(_) => {
                let kept = std::env::temp_dir().join(format!("idiolect-mutation-{n}"));
                fs_err::write(&kept, &input).unwrap();
                panic!("mutation {n} panics; its input is in {}", kept.display());
            }
        }
    }
    eprintln!("{tables} tables, {messages} messages");
    assert!(tables > 50);
    assert!(messages > 50);
}

#[test]
fn what_the_fuzzer_found_ends_in_a_message() {
    // Files of a kilobyte or two whose readers made room for gigabytes.
    let found =
        [("arrow-block", "a block of"), ("parquet-dictionary", "1174669333 values in a dictionary of 16 bytes")];
    for (name, said) in found {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/found").join(name);
        let input = fs_err::read(path).unwrap();
        let mark = input.windows(5).position(|w| w == b"\n---\n").unwrap();
        let card = Card::parse(std::str::from_utf8(&input[1..mark]).unwrap(), &"card").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join(format!("x.{}", ENDINGS[usize::from(input[0]) % ENDINGS.len()]));
        fs_err::write(&source, &input[mark + 5..]).unwrap();
        let selection = Selection::all(SplitRule::Prompt { dev: 0.0, test: 0.0 });
        let out = folder.path().join("out.parquet");
        let error = data::ingest_on(&card, &[source.display().to_string()], &selection, 7, &out, 1).unwrap_err();
        assert!(error.to_string().contains(said), "{name}: {error}");
    }
}
