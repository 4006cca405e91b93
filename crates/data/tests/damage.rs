//! Damaged and odd input, systematically: each case ends in a right table, or in a message with file (and row and column where
//! there is one), and nothing is left behind. `common::ingest` asserts the latter and that every error has a hint.

#![expect(clippy::needless_pass_by_value, reason = "a case hands its column over")]

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray,
    ListArray, RecordBatch, StringArray, StringViewArray, StructArray, TimestampMillisecondArray, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Schema};
use data::{Card, SplitRule};

use crate::common::{all, card, ingest, texts, votes_card, write_batch, write_rows};

const NAMES: [&str; 5] = ["rater", "q", "one", "two", "pick"];

fn plain() -> Vec<(&'static str, ArrayRef)> {
    NAMES
        .into_iter()
        .zip([
            texts(&["u", "v", "u"]),
            texts(&["p1", "p2", "p3"]),
            texts(&["a", "b", "c"]),
            texts(&["d", "e", "f"]),
            texts(&["1", "2", "="]),
        ])
        .collect()
}

fn votes() -> Card {
    Card { columns: data::Columns::default(), ..votes_card() }
}

fn with(name: &str, array: &ArrayRef) -> RecordBatch {
    let columns = plain().into_iter().map(|(n, a)| (n, if n == name { array.clone() } else { a }));
    RecordBatch::try_from_iter_with_nullable(columns.map(|(n, a)| (n, a, true))).unwrap()
}

fn in_file(batch: &RecordBatch) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.parquet");
    write_batch(&path, batch);
    (dir, path)
}

fn error(path: &Path) -> String {
    let error = ingest(&votes(), path, &all()).unwrap_err().to_string();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name), "{error}");
    error
}

/// Is read as three votes of the users `u` and `v`.
fn right(name: &str, array: ArrayRef) {
    let (_dir, path) = in_file(&with(name, &array));
    let (votes, _) = ingest(&votes(), &path, &all()).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(votes.iter().map(|v| v.user_id.as_str()).collect::<Vec<_>>(), ["u", "v", "u"]);
    assert_eq!(votes.iter().map(|v| v.chosen.as_str()).collect::<Vec<_>>(), ["a", "e", "c"]);
}

/// Is refused with words that hold all of these.
fn refused(name: &str, array: ArrayRef, words: &[&str]) {
    let (_dir, path) = in_file(&with(name, &array));
    let error = error(&path);
    words.iter().for_each(|w| assert!(error.contains(w), "`{w}` is not in: {error}"));
}

#[test]
fn texts_of_every_arrow_type_are_read() {
    let users = ["u", "v", "u"];
    right("rater", Arc::new(LargeStringArray::from(users.to_vec())));
    right("rater", Arc::new(StringViewArray::from(users.to_vec())));
    right("rater", Arc::new(users.into_iter().collect::<DictionaryArray<Int32Type>>()));
    right("rater", Arc::new(BinaryArray::from_iter_values(users.map(str::as_bytes))));
    let (dictionary, wide) = (Arc::new(users.into_iter().collect::<DictionaryArray<Int32Type>>()), DataType::LargeUtf8);
    right(
        "rater",
        arrow::compute::cast(dictionary.as_ref(), &DataType::Dictionary(Box::new(DataType::Int8), Box::new(wide)))
            .unwrap(),
    );
    right("one", Arc::new(LargeStringArray::from(vec!["a", "b", "c"])));
    right("two", Arc::new(StringViewArray::from(vec!["d", "e", "f"])));
    right("pick", Arc::new(LargeStringArray::from(vec!["1", "2", "="])));
}

#[test]
fn integer_ids_are_their_digits() {
    let (_dir, path) = in_file(&with("rater", &(Arc::new(Int32Array::from(vec![7, -8, 7])) as ArrayRef)));
    let (votes, _) = ingest(&votes(), &path, &all()).unwrap();
    assert_eq!(votes.iter().map(|v| v.user_id.as_str()).collect::<Vec<_>>(), ["7", "-8", "7"]);
}

#[test]
fn wrong_types_are_named_with_their_column() {
    let bools: ArrayRef = Arc::new(BooleanArray::from(vec![true, false, true]));
    let reals: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]));
    let times: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![1, 2, 3]));
    let lists: ArrayRef =
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)]), None, Some(vec![])]));
    for name in NAMES {
        for (array, found) in [(&bools, "Boolean"), (&reals, "Float64"), (&times, "Timestamp")] {
            // Labels may be written as true and false or as numbers; these are none of the card's.
            let words = if name == "pick" && found != "Timestamp" { ["row", "`=`"] } else { ["text values", found] };
            refused(name, array.clone(), &[&format!("column `{name}`"), words[0], words[1]]);
        }
    }
    refused("one", lists.clone(), &["column `one`", "struct values", "Int32"]);
    refused("q", lists, &["column `q`", "struct values", "Int32"]);
}

#[test]
fn nulls_are_named_with_row_and_column() {
    for name in NAMES {
        let array: ArrayRef = Arc::new(StringArray::from(vec![Some("1"), None, Some("1")]));
        refused(name, array, &["row 2", &format!("column `{name}`"), "found null"]);
        refused(name, new_null_array(&DataType::Null, 3), &["row 1", &format!("column `{name}`"), "found null"]);
    }
}

fn message_lists(structs: Option<NullBuffer>, contents: Vec<Option<&str>>) -> ArrayRef {
    let fields =
        Fields::from(vec![Field::new("role", DataType::Utf8, true), Field::new("content", DataType::Utf8, true)]);
    let roles: ArrayRef = Arc::new(StringArray::from(vec!["user"; contents.len()]));
    let contents: ArrayRef = Arc::new(StringArray::from(contents));
    let values = StructArray::new(fields.clone(), vec![roles, contents], structs);
    let offsets = OffsetBuffer::from_lengths([1, 1, 1]);
    Arc::new(ListArray::new(
        Arc::new(Field::new("item", DataType::Struct(fields), true)),
        offsets,
        Arc::new(values),
        None,
    ))
}

#[test]
fn nested_nulls_are_found() {
    right("q", message_lists(None, vec![Some("p1"), Some("p2"), Some("p3")]));
    refused("q", message_lists(None, vec![Some("p1"), None, Some("p3")]), &["row 2", "column `q`", "null"]);
    let hidden = NullBuffer::from(vec![true, true, false]);
    refused(
        "q",
        message_lists(Some(hidden), vec![Some("p1"), Some("p2"), Some("hidden")]),
        &["row 3", "column `q`", "null"],
    );
}

#[test]
fn a_column_named_twice_is_refused() {
    let mut columns = plain();
    columns.push(("one", texts(&["x", "y", "z"])));
    let schema =
        Schema::new(columns.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), true)).collect::<Vec<_>>());
    let batch = RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, a)| a).collect()).unwrap();
    let (_dir, path) = in_file(&batch);
    assert!(error(&path).contains("one column `one`, found several"));
}

#[test]
fn bytes_that_are_no_utf8_are_named() {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values([b"u".as_slice(), b"v", b"\xff\xfe"]));
    refused("rater", bytes, &["row 3", "column `rater`", "UTF-8"]);
    // In a text column of a file whose writer did not look.
    let raw: ArrayRef = Arc::new(StringArray::from(vec!["abcdefgh", "v", "u"]));
    let (_dir, path) = in_file(&with("one", &raw));
    let mut file = fs_err::read(&path).unwrap();
    let places: Vec<usize> = (0..file.len() - 8).filter(|i| &file[*i..*i + 8] == b"abcdefgh").collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| file[at + 3] = 0xff);
    fs_err::write(&path, &file).unwrap();
    let error = ingest(&votes(), &path, &all()).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("utf"), "{error}");
}

#[test]
fn cut_and_changed_files_end_in_a_message() {
    let rows: Vec<[String; 6]> = (0..3000)
        .map(|i| {
            [
                format!("u{}", i % 9),
                format!("prompt {}", i % 70),
                format!("a{i}"),
                "b".into(),
                "1".into(),
                String::new(),
            ]
        })
        .collect();
    let (_dir, path) = crate::common::file(&rows);
    let whole = fs_err::read(&path).unwrap();
    let mut state = 12345u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for cut in (0..40).map(|_| next(whole.len())).chain([0, 1, 4, 8, 11, 12, whole.len() - 1]).collect::<Vec<_>>() {
        fs_err::write(&path, &whole[..cut]).unwrap();
        let error = error(&path);
        assert!(error.contains("expected"), "cut at {cut}: {error}");
    }
    // A changed byte may go unseen (a letter of a text); it must not end in a panic or in half a table.
    for _ in 0..150 {
        let mut changed = whole.clone();
        let at = next(whole.len());
        changed[at] ^= 1 << next(8);
        fs_err::write(&path, &changed).unwrap();
        _ = ingest(&votes(), &path, &all());
    }
}

#[test]
fn empty_files_and_zero_rows_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["e.parquet", "e.jsonl", "e.csv", "e.arrow", "e.jsonl.gz", "e.csv.zst"] {
        let path = dir.path().join(name);
        fs_err::write(&path, b"").unwrap();
        assert!(error(&path).contains("an empty file"), "{name}");
    }
    let (_dir, path) = in_file(&with("rater", &texts(&["u", "v", "u"])).slice(0, 0));
    let error = ingest(&votes(), &path, &all()).unwrap_err().to_string();
    assert!(error.contains("at least one vote"), "{error}");
    assert!(error.contains("0 rows"), "{error}");
}

#[test]
fn wrong_magic_and_folders_without_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    fs_err::write(&path, b"this is no parquet file at all, whatever its name").unwrap();
    error(&path);
    let path = dir.path().join("x.arrow");
    fs_err::write(&path, b"nor is this an arrow file").unwrap();
    error(&path);
    let path = dir.path().join("x.jsonl.gz");
    fs_err::write(&path, b"nor is this packed").unwrap();
    error(&path);
    let empty = dir.path().join("empty");
    fs_err::create_dir(&empty).unwrap();
    error(&empty);
}

#[test]
fn strange_users_and_huge_texts_go_through() {
    let users = ["../../x", "a\0b", "🙂 é"];
    let (_dir, path) = in_file(&with("rater", &texts(&users)));
    let (read, _) = ingest(&votes(), &path, &all()).unwrap();
    assert_eq!(read.iter().map(|v| v.user_id.as_str()).collect::<Vec<_>>(), users);
    let users = [".", " a ", "con\n\"quote\"/..\\"];
    let (_dir, path) = in_file(&with("rater", &texts(&users)));
    let (read, _) = ingest(&votes(), &path, &all()).unwrap();
    assert_eq!(read.iter().map(|v| v.user_id.as_str()).collect::<Vec<_>>(), users);
    let long = "x".repeat(10 << 20);
    let (_dir, path) = in_file(&with("two", &texts(&[long.as_str(), "e", "f"])));
    let (read, _) = ingest(&votes(), &path, &all()).unwrap();
    assert_eq!(read[0].rejected.len(), 10 << 20);
}

#[test]
fn moments_in_any_zone_are_utc() {
    let timed = card(
        "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
         label_a = '1'\nlabel_b = '2'\nlabel_tie = '='\n[columns]\ntimestamp = 'when'",
    );
    let with_times = |array: ArrayRef| {
        let mut columns: Vec<(&str, ArrayRef)> = plain();
        columns.push(("when", array));
        let (_dir, path) = in_file(&RecordBatch::try_from_iter(columns).unwrap());
        ingest(&timed, &path, &all()).map(|(votes, _)| votes.iter().map(|v| v.timestamp).collect::<Vec<_>>())
    };
    let want = vec![Some(1_700_000_000_000_000); 3];
    let ms = TimestampMillisecondArray::from(vec![1_700_000_000_000i64; 3]);
    assert_eq!(with_times(Arc::new(ms.clone().with_timezone("+09:30"))).unwrap(), want);
    assert_eq!(with_times(Arc::new(ms.with_timezone("America/New_York"))).unwrap(), want);
    assert_eq!(
        with_times(texts(&["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00", "2023-11-14 22:13:20"])).unwrap(),
        want
    );
    assert_eq!(with_times(Arc::new(Int64Array::from(vec![1_700_000_000; 3]))).unwrap(), want);
    let error = with_times(texts(&["2023-11-14T22:13:20Z", "yesterday", ""])).unwrap_err().to_string();
    assert!(error.contains("row 2, column `when`"), "{error}");
    assert!(error.contains("`yesterday`"), "{error}");
}

#[test]
fn weights_must_be_numbers_that_count() {
    let weighted = card(
        "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
         label_a = '1'\nlabel_b = '2'\nlabel_tie = '='\n[columns]\nweight = 'w'",
    );
    let with_weights = |values: Vec<Option<f64>>| {
        let mut columns: Vec<(&str, ArrayRef)> = plain();
        columns.push(("w", Arc::new(Float64Array::from(values))));
        let (_dir, path) = in_file(&RecordBatch::try_from_iter(columns).unwrap());
        ingest(&weighted, &path, &all()).map(|(votes, _)| votes.iter().map(|v| v.weight).collect::<Vec<_>>())
    };
    assert_eq!(
        with_weights(vec![Some(0.5), Some(2.0), Some(1e-60)]).unwrap(),
        [0.5, 2.0],
        "less than float32 holds is 0"
    );
    for wrong in [Some(f64::NAN), Some(f64::INFINITY), Some(-1.0), None] {
        let error = with_weights(vec![Some(1.0), wrong, Some(1.0)]).unwrap_err().to_string();
        assert!(error.contains("row 2, column `w`"), "{error}");
    }
}

#[test]
fn json_and_csv_name_their_wrong_rows() {
    let dir = tempfile::tempdir().unwrap();
    let line = |user: &str| format!("{{\"rater\":{user},\"q\":\"p\",\"one\":\"a\",\"two\":\"b\",\"pick\":\"1\"}}\n");
    let path = dir.path().join("x.jsonl");
    let try_with = |text: String| {
        fs_err::write(&path, text).unwrap();
        ingest(&votes(), &path, &all())
    };
    let good = line("\"u\"");
    assert_eq!(try_with(format!("\u{feff}{good}\n\n{good}")).unwrap().1.kept, 2);
    for (text, words) in [
        (format!("{good}{{\"rater\": \n{good}"), ["x.jsonl, row 2", "JSON"]),
        (format!("{good}[1, 2]\n"), ["x.jsonl, row 2", "one JSON object a line"]),
        (format!("{good}{}", &good[..20]), ["x.jsonl, row 2", "ends too early"]),
        (format!("{}{}", good.repeat(5000), line("[3]")), ["x.jsonl, row 5001", "expected"]),
        (format!("[{}", good.trim()), ["x.jsonl, row 2", "the end of the file inside the array"]),
        (format!("{good}{}", line("null")), ["row 2, column `rater`", "null"]),
        (format!("{good}{{\"q\":\"p\"}}\n"), ["row 2, column `rater`", "null"]),
        ("just words\n".to_owned(), ["x.jsonl, row 1", "JSON"]),
    ] {
        let error = try_with(text.clone()).unwrap_err().to_string();
        words.iter().for_each(|w| assert!(error.contains(w), "`{w}` is not in: {error}"));
    }
    let path = dir.path().join("x.csv");
    fs_err::write(&path, "rater,q,one,two,pick\n007,\"p, \"\"quoted\"\"\nline\",a,b,1\nv,p,,b,1\n").unwrap();
    let (read, report) = ingest(&votes(), &path, &all()).unwrap();
    assert_eq!((read[0].user_id.as_str(), read[0].prompt[0].content.as_str()), ("007", "p, \"quoted\"\nline"));
    assert_eq!(report.dropped["empty answer"], 1);
    fs_err::write(&path, "rater,q,one,two,pick\nu,p,a\n").unwrap();
    assert!(error(&path).contains("2 fields") || error(&path).contains("expected"));
    fs_err::write(&path, b"rater,q,one,two,pick\nu,p,\xff\xfe,b,1\n").unwrap();
    assert!(error(&path).to_lowercase().contains("utf"));
    fs_err::write(&path, "rater,q,one\nu,p,a\n").unwrap();
    assert!(error(&path).contains("a column `two`"));
}

#[test]
fn a_layout_on_another_files_columns_is_told() {
    let (_dir, path) = in_file(&with("rater", &texts(&["u", "v", "u"])));
    for kind in [
        "tldr",
        "prism",
        "helpsteer2",
        "ultrafeedback",
        "arena",
        "personalllm",
        "multipref",
        "hh",
        "alpaca",
        "sharegpt",
        "canonical",
    ] {
        let error = ingest(&card(&format!("kind = '{kind}'")), &path, &all()).unwrap_err().to_string();
        assert!(error.contains("v.parquet"), "{kind}: {error}");
        assert!(error.contains("column"), "{kind}: {error}");
    }
    let error =
        Card::parse("name = 'x'\nsource = 'y'\nlicence = 'z'\n[layout]\nkind = 'votez'", &"card.toml").unwrap_err();
    assert!(error.to_string().contains("card.toml"), "{error}");
    assert!(error.to_string().contains("votez"), "{error}");
    let error = ingest(&votes(), &path, &data::Selection::all(SplitRule::Column)).unwrap_err().to_string();
    assert!(error.contains("a column with the split"), "{error}");
}

#[test]
fn an_arrow_file_that_asks_for_more_memory_than_it_has_bytes_is_refused() {
    // Found by the fuzz target: the reader allocates what the file's end says, here 3 GiB.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.arrow");
    let batch = with("q", &texts(&["p1", "p2", "p3"]));
    let mut writer =
        arrow::ipc::writer::FileWriter::try_new(fs_err::File::create(&path).unwrap(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let whole = fs_err::read(&path).unwrap();
    let trailer = whole.len() - 10;
    let length = i32::from_le_bytes(whole[trailer..trailer + 4].try_into().unwrap()) as usize;
    let footer = trailer - length;
    let block = arrow::ipc::root_as_footer(&whole[footer..trailer]).unwrap();
    let body = block.recordBatches().unwrap().get(0).bodyLength().to_le_bytes();
    assert!(ingest(&votes(), &path, &all()).is_ok());
    let places: Vec<usize> = (footer..trailer - 8).filter(|at| whole[*at..at + 8] == body).collect();
    assert_eq!(places.len(), 1, "the body's length stands once in the file's end");
    for length in [3i64 << 30, -1, i64::MAX] {
        let mut changed = whole.clone();
        changed[places[0]..places[0] + 8].copy_from_slice(&length.to_le_bytes());
        fs_err::write(&path, &changed).unwrap();
        let error = error(&path);
        assert!(error.contains(&format!("a block of {length} bytes")), "{error}");
    }
}

/// Runs this binary's test `name` where no file grows beyond 4 KiB: what a full disk looks like to a writer.
#[cfg(target_os = "linux")]
fn with_a_full_disk(name: &str, folder: &Path) {
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored"])
        .env("FULL_DISK_FOLDER", folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_the_machines_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<[String; 6]> = crate::sources::rows(5000);
    write_rows(&dir.path().join("v.parquet"), &rows);
    let table = dir.path().join("table.parquet");
    data::ingest(&votes_card(), &[dir.path().join("v.parquet").display().to_string()], &all(), 7, &table).unwrap();
    fs_err::create_dir(dir.path().join("out")).unwrap();
    crate::tables::words(dir.path());
    with_a_full_disk("damage::child_writes_to_a_full_disk", dir.path());
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "a part of another test"]
fn child_writes_to_a_full_disk() {
    let folder = std::path::PathBuf::from(std::env::var_os("FULL_DISK_FOLDER").unwrap());
    let out = folder.join("out");
    let source = [folder.join("v.parquet").display().to_string()];
    let votes = data::read_votes(&folder.join("table.parquet")).unwrap();
    let tokenizer = text::Tokenizer::from_folder(&folder).unwrap();
    let column = data::Column::Text((0..5000).map(|i: u32| format!("{}", i.wrapping_mul(0x9e37_79b9))).collect());
    let failures = [
        data::ingest(&votes_card(), &source, &all(), 7, &out.join("x")).map(|_| ()),
        data::write_votes(&out.join("x"), &votes),
        data::write_table(&out.join("x"), &[("a", column)]),
        data::tokenise(&folder.join("table.parquet"), &tokenizer, &out.join("x"), 2).map(|_| ()),
        run::write_atomic(&out.join("x"), &[7; 10_000]),
        run::write_json(&out.join("x"), &vec![7; 10_000]),
    ];
    for (number, result) in failures.into_iter().enumerate() {
        let error = result.expect_err("it fits");
        assert_eq!(error.kind(), problem::Kind::Machine, "{number}: {error}");
        assert!(error.to_string().contains("out/x: "), "{number}: {error}");
        assert_eq!(fs_err::read_dir(&out).unwrap().count(), 0, "{number}: something is left");
    }
}
