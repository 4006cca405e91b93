//! Where files come from, and how they are packed.

use std::io::Write;
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::ipc::writer::FileWriter;

use crate::common::{NAMES, all, file, ingest, texts, votes_card, write_rows};

pub(crate) fn rows(n: usize) -> Vec<[String; 6]> {
    (0..n)
        .map(|i| {
            [
                format!("u{}", i % 5),
                format!("prompt {}", i % 40),
                format!("a{i}"),
                "b".into(),
                "1".into(),
                "train".into(),
            ]
        })
        .collect()
}

pub(crate) fn jsonl(rows: &[[String; 6]]) -> String {
    let line = |r: &[String; 6]| {
        let object: serde_json::Map<_, _> =
            NAMES.iter().zip(r).map(|(n, v)| ((*n).to_owned(), v.as_str().into())).collect();
        format!("{}\n", serde_json::Value::Object(object))
    };
    rows.iter().map(line).collect()
}

#[test]
fn every_encoding_gives_the_same_votes() {
    let rows = rows(10_000);
    let (dir, parquet) = file(&rows);
    let strip = |path: &Path| {
        let (mut votes, _) = ingest(&votes_card(), path, &all()).unwrap_or_else(|e| panic!("{e}"));
        votes.iter_mut().for_each(|v| v.source_row = v.source_row.split(':').next_back().unwrap().to_owned());
        votes
    };
    let want = strip(&parquet);
    assert_eq!((want.len(), want[9999].source_row.as_str()), (10_000, "10000"));
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        path
    };
    let lines = jsonl(&rows);
    assert_eq!(want, strip(&write("v.jsonl", lines.as_bytes())));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(lines.as_bytes()).unwrap();
    assert_eq!(want, strip(&write("v.jsonl.gz", &gz.finish().unwrap())));
    assert_eq!(want, strip(&write("v.ndjson.zst", &zstd::encode_all(lines.as_bytes(), 1).unwrap())));
    let csv: String =
        std::iter::once(NAMES.join(",")).chain(rows.iter().map(|r| r.join(","))).map(|l| l + "\n").collect();
    assert_eq!(want, strip(&write("v.csv", csv.as_bytes())));
    assert_eq!(want, strip(&write("v.tsv", csv.replace(',', "\t").as_bytes())));
    let column = |c: usize| texts(&rows.iter().map(|r| r[c].as_str()).collect::<Vec<_>>());
    let batch = RecordBatch::try_from_iter(NAMES.iter().enumerate().map(|(c, n)| (*n, column(c)))).unwrap();
    let mut writer = FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch.slice(0, 4000)).unwrap();
    writer.write(&batch.slice(4000, 6000)).unwrap();
    assert_eq!(want, strip(&write("v.arrow", &writer.into_inner().unwrap())));
}

#[test]
fn shards_keep_their_names_and_the_order_is_the_same_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    fs_err::create_dir_all(folder.join("sub")).unwrap();
    let all_rows = rows(3000);
    write_rows(&folder.join("a.parquet"), &all_rows[..1000]);
    write_rows(&folder.join("b.parquet"), &all_rows[1000..1500]);
    fs_err::write(folder.join("sub/c.jsonl"), jsonl(&all_rows[1500..])).unwrap();
    let source = [folder.display().to_string()];
    let bytes = |threads: usize| {
        let out = dir.path().join(format!("{threads}.parquet"));
        data::ingest_on(&votes_card(), &source, &all(), 7, &out, threads).unwrap();
        (fs_err::read(&out).unwrap(), data::read_votes(&out).unwrap())
    };
    let (one, votes) = bytes(1);
    assert!(one == bytes(2).0, "the bytes depend on threads");
    assert!(one == bytes(3).0, "the bytes depend on threads");
    let rows: Vec<&str> = [0, 999, 1000, 1500, 2999].iter().map(|i| votes[*i].source_row.as_str()).collect();
    assert_eq!(rows, ["a.parquet:1", "a.parquet:1000", "b.parquet:1", "sub/c.jsonl:1", "sub/c.jsonl:1500"]);
}

#[test]
fn a_file_with_another_checksum_is_refused() {
    let (_dir, path) = file(&rows(3));
    let mut card = votes_card();
    card.sha256.insert("v.parquet".into(), run::hash_file(&path).unwrap());
    ingest(&card, &path, &all()).unwrap();
    card.sha256.insert("v.parquet".into(), "00".into());
    let error = ingest(&card, &path, &all()).unwrap_err().to_string();
    assert!(error.contains("expected SHA-256 00"), "{error}");
}

#[test]
fn hub_data_sets_come_from_the_cache_when_offline() {
    // The cache as the hub's own tools lay it out.
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/datasets--me--votes");
    let snapshot = repo.join("snapshots/abc");
    fs_err::create_dir_all(&snapshot).unwrap();
    fs_err::create_dir_all(repo.join("refs")).unwrap();
    fs_err::write(repo.join("refs/main"), "abc").unwrap();
    write_rows(&snapshot.join("v.parquet"), &rows(10));
    let code = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["sources::child_reads_from_the_cache", "--exact", "--ignored"])
        .env("HF_HOME", home.path())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert!(code.status.success(), "{}", String::from_utf8_lossy(&code.stdout));
}

/// Run by the test above, with the variables set.
#[test]
#[ignore = "a part of another test"]
fn child_reads_from_the_cache() {
    let (votes, _) = ingest(&votes_card(), Path::new("hf://datasets/me/votes/v.parquet"), &all()).unwrap();
    assert_eq!(votes.len(), 10);
    let error = ingest(&votes_card(), Path::new("hf://datasets/me/votes/w.parquet"), &all()).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE forbids"), "{error}");
    let error = ingest(&votes_card(), Path::new("hf://datasets/me"), &all()).unwrap_err().to_string();
    assert!(error.contains("OWNER/NAME"), "{error}");
}

#[test]
fn columns_that_the_card_does_not_name_are_never_decoded() {
    let rows: Vec<[String; 6]> = rows(500)
        .into_iter()
        .map(|mut r| {
            r[5] = format!("unused {}", r[2]);
            r
        })
        .collect();
    let (_dir, path) = file(&rows);
    let card = data::Card { columns: data::Columns::default(), ..votes_card() };
    let (want, _) = ingest(&card, &path, &all()).unwrap();
    // Every byte of the unused column's pages becomes nonsense.
    let mut bytes = fs_err::read(&path).unwrap();
    let metadata =
        parquet::file::reader::SerializedFileReader::new(fs_err::File::open(&path).unwrap().into_parts().0).unwrap();
    let group = parquet::file::reader::FileReader::metadata(&metadata).row_group(0).clone();
    let (start, length) = group.columns().iter().find(|c| c.column_path().string() == "part").unwrap().byte_range();
    bytes[start as usize..(start + length) as usize].fill(0xff);
    fs_err::write(&path, bytes).unwrap();
    assert_eq!(ingest(&card, &path, &all()).unwrap().0, want);
    assert!(
        ingest(&votes_card(), &path, &data::Selection::all(data::SplitRule::Column)).is_err(),
        "the column is damaged"
    );
}

/// The votes read from a source, and what the report remarks.
fn read(source: &Path) -> (usize, String) {
    let (votes, report) = ingest(&votes_card(), source, &all()).unwrap_or_else(|e| panic!("{e}"));
    (votes.len(), report.remarks.join("\n"))
}

#[test]
fn a_pattern_reads_the_folders_that_match() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(dir.path().join("region=north")).unwrap();
    write_rows(&dir.path().join("a.parquet"), &rows(3));
    write_rows(&dir.path().join("region=north/b.parquet"), &rows(10));
    fs_err::write(dir.path().join("region=north/notes.txt"), "x").unwrap();
    // The folder's own files match `**/*` too, and are read once.
    for pattern in ["*", "**/*"] {
        let (n, remarks) = read(&dir.path().join(pattern));
        assert!(n == 13 && remarks.contains("region=north/notes.txt"), "{pattern}: {n} votes; {remarks}");
    }
}

#[test]
fn files_beside_the_parts_of_a_saved_data_set_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(dir.path().join("train/old")).unwrap();
    fs_err::create_dir_all(dir.path().join("extra")).unwrap();
    for name in ["train/a.parquet", "train/old/b.parquet", "extra/c.parquet", "more.parquet"] {
        write_rows(&dir.path().join(name), &rows(5));
    }
    fs_err::write(dir.path().join("dataset_dict.json"), r#"{"splits": ["train"]}"#).unwrap();
    fs_err::write(dir.path().join("train/state.json"), r#"{"_data_files": [{"filename": "a.parquet"}]}"#).unwrap();
    let (n, remarks) = read(dir.path());
    assert_eq!(n, 5);
    for name in ["train/old/b.parquet", "extra/c.parquet", "more.parquet"] {
        assert!(remarks.contains(name), "{name}: {remarks}");
    }
}

#[test]
fn reports_and_states_of_other_programs_are_no_votes() {
    let dir = tempfile::tempdir().unwrap();
    write_rows(&dir.path().join("x.parquet"), &rows(4));
    fs_err::write(dir.path().join("x.report.json"), "{\n  \"kept\": 4\n}").unwrap();
    fs_err::write(dir.path().join("state.json"), r#"{"epoch": 3}"#).unwrap();
    let (n, remarks) = read(dir.path());
    assert!(n == 4 && remarks.contains("state.json, x.report.json"), "{n} votes; {remarks}");
    fs_err::write(dir.path().join("state.json"), r#"{"_data_files": [{"filename": "x.par"#).unwrap();
    let error = ingest(&votes_card(), dir.path(), &all()).unwrap_err().to_string();
    assert!(error.contains("state.json") && error.contains("`_data_files`"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_around_it_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    write_rows(&dir.path().join("a.parquet"), &rows(6));
    std::os::unix::fs::symlink(".", dir.path().join("l")).unwrap();
    for source in ["", "*", "**/*", "**/*.parquet"] {
        let (n, remarks) = read(&dir.path().join(source));
        assert_eq!(n, 6, "{source}: {remarks}");
        assert!(source.ends_with("parquet") || remarks.contains("no votes: l"), "{source}: {remarks}");
    }
}

#[test]
fn a_file_in_a_folder_of_a_user_is_named_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("user_id=ann");
    fs_err::create_dir(&folder).unwrap();
    write_rows(&folder.join("part.parquet"), &rows(1));
    for source in [folder.join("part.parquet"), folder, dir.path().to_owned()] {
        let files = data::local_files(&[source.display().to_string()]).unwrap();
        assert_eq!(files[0].1, "user_id=ann/part.parquet", "{}", source.display());
    }
}
