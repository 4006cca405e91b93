//! Encodings and folders as other programs write them: read rightly, or called by their names.

use std::path::Path;

use arrow::array::RecordBatch;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use data::{Card, Split, SplitRule};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::common::{all, card, ingest, texts, write_batch};

fn pairs() -> Card {
    card("kind = 'pairs'\nuser_id = 'user_id'\nprompt = 'prompt'")
}

/// Rows `from..to`.
fn rows(from: usize, to: usize) -> RecordBatch {
    let column = |name: &str| texts(&(from..to).map(|i| format!("{name} {i}")).collect::<Vec<_>>());
    let users = texts(&(from..to).map(|i| format!("u{}", i % 3)).collect::<Vec<_>>());
    let columns =
        [("user_id", users), ("prompt", column("why")), ("chosen", column("good")), ("rejected", column("bad"))];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn options(compression: Option<CompressionType>) -> IpcWriteOptions {
    IpcWriteOptions::default().try_with_compression(compression).unwrap()
}

fn stream(path: &Path, batches: &[RecordBatch], compression: Option<CompressionType>) {
    let file = fs_err::File::create(path).unwrap();
    let mut writer = StreamWriter::try_new_with_options(file, &batches[0].schema(), options(compression)).unwrap();
    batches.iter().for_each(|b| writer.write(b).unwrap());
    writer.finish().unwrap();
}

fn chosen(source: &Path) -> Vec<String> {
    let (votes, _) = ingest(&pairs(), source, &all()).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    votes.into_iter().map(|v| v.chosen).collect()
}

fn good(range: impl Iterator<Item = usize>) -> Vec<String> {
    range.map(|i| format!("good {i}")).collect()
}

#[test]
fn arrow_files_and_streams_of_every_compression_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for (n, compression) in
        [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)].into_iter().enumerate()
    {
        let path = dir.path().join(format!("{n}.feather"));
        let file = fs_err::File::create(&path).unwrap();
        let mut writer = FileWriter::try_new_with_options(file, &rows(0, 1).schema(), options(compression)).unwrap();
        writer.write(&rows(0, 20)).unwrap();
        writer.write(&rows(20, 60)).unwrap();
        writer.finish().unwrap();
        assert_eq!(chosen(&path), good(0..60), "{compression:?}");
        let path = dir.path().join(format!("{n}.arrow"));
        stream(&path, &[rows(0, 20), rows(20, 60)], compression);
        assert_eq!(chosen(&path), good(0..60), "{compression:?}");
    }
}

#[test]
fn a_stream_that_was_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.arrow");
    stream(&path, &[rows(0, 3), rows(3, 6)], None);
    let whole = fs_err::read(&path).unwrap();
    for cut in 1..whole.len() {
        fs_err::write(&path, &whole[..cut]).unwrap();
        let error = ingest(&pairs(), &path, &all()).unwrap_err().to_string();
        assert!(error.contains("x.arrow"), "cut at {cut}: {error}");
    }
}

#[test]
fn parquet_of_every_compression_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4_RAW,
        Compression::LZ4,
    ];
    for (n, codec) in codecs.into_iter().enumerate() {
        let path = dir.path().join(format!("{n}.parquet"));
        let properties = WriterProperties::builder().set_compression(codec).build();
        let file = fs_err::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, rows(0, 1).schema(), Some(properties)).unwrap();
        writer.write(&rows(0, 60)).unwrap();
        writer.close().unwrap();
        assert_eq!(chosen(&path), good(0..60), "{codec}");
    }
}

#[test]
fn a_saved_data_set_is_the_files_of_its_own_list() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    };
    write("dataset_dict.json", r#"{"splits": ["train", "test"]}"#);
    for (part, from) in [("train", 0), ("test", 100)] {
        write(&format!("{part}/dataset_info.json"), r#"{"features": {}}"#);
        // Out of order by name, and what `map` computed beside them.
        let state = r#"{"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}], "_fingerprint": "x", "_split": null}"#;
        write(&format!("{part}/state.json"), state);
        stream(&dir.path().join(part).join("b.arrow"), &[rows(from, from + 20)], None);
        stream(&dir.path().join(part).join("a.arrow"), &[rows(from + 20, from + 40)], None);
        stream(&dir.path().join(part).join("cache-0123.arrow"), &[rows(900, 999)], None);
    }
    assert_eq!(chosen(&dir.path().join("train")), good(0..40));
    let mut card = pairs();
    let (_, report) = ingest(&card, dir.path(), &all()).unwrap();
    assert_eq!(report.kept, 80);
    let said = report.remarks.join("\n");
    assert!(said.contains("4 of 11 files are read") && said.contains("cache-0123.arrow"), "{said}");
    assert!(said.contains("the parts train, test"), "{said}");
    // The card can say which part is which split.
    card.columns.split_files = [("train/*".into(), Split::Train), ("test/*".into(), Split::Test)].into();
    let (votes, _) = ingest(&card, dir.path(), &data::Selection::all(SplitRule::Column)).unwrap();
    let test: Vec<String> = votes.into_iter().filter(|v| v.split == Split::Test).map(|v| v.chosen).collect();
    assert_eq!(test, good(100..140));
    fs_err::remove_file(dir.path().join("test/a.arrow")).unwrap();
    let error = ingest(&pairs(), dir.path(), &all()).unwrap_err().to_string();
    assert!(error.contains("state.json") && error.contains("no file a.arrow"), "{error}");
}

#[test]
fn what_repositories_and_spark_keep_beside_data_is_no_data() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::create_dir(dir.path().join("data")).unwrap();
    write_batch(&dir.path().join("data/train-00000-of-00001.parquet"), &rows(0, 60));
    for name in [
        "README.md",
        ".gitattributes",
        "dataset_infos.json",
        "data/_SUCCESS",
        "data/_metadata",
        "data/_common_metadata",
        "data/.train-00000-of-00001.parquet.crc",
        "votes.xlsx",
    ] {
        fs_err::write(dir.path().join(name), "{\"default\": {}}").unwrap();
    }
    let (_, report) = ingest(&pairs(), dir.path(), &all()).unwrap();
    assert_eq!((report.kept, report.files), (60, 1));
    let said = report.remarks.join("\n");
    assert!(said.contains("1 of 9 files are read") && said.contains("and 3 more"), "{said}");
    fs_err::write(dir.path().join("more.csv"), "user_id,prompt,chosen,rejected\nu,p,good 60,bad\n").unwrap();
    let (_, report) = ingest(&pairs(), dir.path(), &all()).unwrap();
    assert!(report.remarks.join("\n").contains("1 Parquet, 1 CSV"), "{:?}", report.remarks);
    // A folder without data says what is there.
    let empty = tempfile::tempdir().unwrap();
    fs_err::write(empty.path().join("votes.pkl"), "x").unwrap();
    let error = ingest(&pairs(), empty.path(), &all()).unwrap_err().to_string();
    assert!(error.contains("none beside votes.pkl"), "{error}");
}

#[test]
fn other_kinds_of_files_are_called_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let tar = [&[b'x'; 257][..], b"ustar\0"].concat();
    for (head, called) in [
        (b"PARE0123456789PARE".as_slice(), "Parquet with encryption"),
        (b"PK\x03\x04\x14\0\0\0\x08\0 xl/workbook.xml", "an Excel workbook"),
        (b"PK\x03\x04\x14\0\0\0\x08\0 votes.csv", "a ZIP archive"),
        (b"SQLite format 3\0 and so on", "a SQLite file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a Git LFS pointer"),
        (b"<!doctype html><title>Not found</title>", "an HTML page"),
        (b"\x80\x04\x95\x10\0\0\0", "a pickle"),
        (b"ORC\x08\x03", "an ORC file"),
        (b"Obj\x01\x04\x14avro.codec", "an Avro file"),
        (b"BZh91AY", "data packed with bzip2"),
        (b"FEA1\0\0\0\0", "a Feather file of version 1"),
        (&tar, "a tar archive"),
    ] {
        for name in ["x.parquet", "x.feather", "x.jsonl", "x.csv", "x.jsonl.gz", "x.unknown"] {
            let path = dir.path().join(name);
            fs_err::write(&path, head).unwrap();
            let error = ingest(&pairs(), &path, &all()).unwrap_err();
            let text = format!("{error}\n{}", error.hint().unwrap());
            assert!(text.contains(called) && text.contains(name) && !text.contains("damaged"), "{text}");
        }
    }
    // A file of a kind that is read, under another one's name.
    let path = dir.path().join("x.csv");
    write_batch(&path, &rows(0, 3));
    let error = ingest(&pairs(), &path, &all()).unwrap_err();
    assert!(error.to_string().contains("a Parquet file") && error.hint().unwrap().contains(".parquet"), "{error}");
}
