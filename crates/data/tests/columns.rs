//! Which columns a source has, and who reads them: keys that appear late, folders that name columns, users that nobody names,
//! columns that nobody uses.

use std::io::Write;
use std::path::{Path, PathBuf};

use data::{BadRows, Card, CheckOptions, Selection, Vote};
use serde_json::{Value, json};

use crate::common::{all, card, ingest, texts, write_batch};

/// Rows before the first that has a key or a type of its own: more than any sample looks at.
const EARLY: usize = 1500;

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|r| format!("{r}\n")).collect()
}

fn written(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(&path, bytes).unwrap();
    path
}

/// The rows in every encoding that JSON comes in.
fn encodings(dir: &Path, rows: &[Value]) -> Vec<PathBuf> {
    let text = lines(rows);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    vec![
        written(dir, "v.jsonl", &text),
        written(dir, "v.json", serde_json::to_string_pretty(rows).unwrap()),
        written(dir, "v.jsonl.gz", gz.finish().unwrap()),
        written(dir, "v.ndjson.zst", zstd::encode_all(text.as_bytes(), 1).unwrap()),
    ]
}

fn recognised(sources: &[&Path]) -> problem::Result<Card> {
    let sources: Vec<String> = sources.iter().map(|p| p.display().to_string()).collect();
    data::recognise(&sources).map(|(card, _)| card)
}

fn one(card: Card) -> Card {
    card.with_one_user("everyone").unwrap()
}

/// Votes without their places, sorted.
fn sorted(votes: Vec<Vote>) -> Vec<Vote> {
    let mut votes: Vec<Vote> = votes.into_iter().map(|v| Vote { source_row: String::new(), ..v }).collect();
    votes.sort_by(|a, b| (&a.chosen, &a.user_id).cmp(&(&b.chosen, &b.user_id)));
    votes
}

/// The votes of rows in each encoding, in this order and reversed, all of which must agree.
fn in_any_order(rows: &[Value], card_of: &dyn Fn(&Path) -> Card, selection: &Selection) -> Vec<Vote> {
    let dir = tempfile::tempdir().unwrap();
    let read = |path: PathBuf| sorted(ingest(&card_of(&path), &path, selection).unwrap_or_else(|e| panic!("{e}")).0);
    let mut found: Vec<Vec<Vote>> = encodings(dir.path(), rows).into_iter().map(read).collect();
    let reversed: Vec<Value> = rows.iter().rev().cloned().collect();
    found.extend(encodings(dir.path(), &reversed).into_iter().map(read));
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "the order of rows or the encoding decides");
    found.pop().unwrap()
}

#[test]
fn keys_that_appear_late_are_columns() {
    let rows: Vec<Value> = (0..EARLY + 100)
        .map(|i| {
            let mut row = json!({"instruction": format!("sum {i} up"), "chosen": format!("yes {i}"), "rejected": "no"});
            if i >= EARLY {
                row["input"] = format!("text {i}").into();
                row["system"] = "be brief".into();
                row["history"] = json!([["hi", "hello"]]);
            }
            row
        })
        .collect();
    let votes = in_any_order(&rows, &|path| one(recognised(&[path]).unwrap()), &all());
    let whole = votes.iter().filter(|v| {
        let turns: Vec<(&str, &str)> = v.prompt.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let number = v.chosen.strip_prefix("yes ").unwrap();
        let prompt = format!("sum {number} up\ntext {number}");
        turns == [("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", &prompt)]
    });
    assert_eq!((votes.len(), whole.count()), (EARLY + 100, 100));
}

#[test]
fn columns_of_a_card_may_appear_late_and_change_their_type() {
    let rows: Vec<Value> = (0..EARLY + 50)
        .map(|i| {
            let late = i >= EARLY;
            let user = if late { format!("u{i}").into() } else { json!(i % 7) };
            let weight = if late { json!(0.5) } else { json!(2) };
            let mut row = json!({"who": user, "w": weight, "prompt": format!("p{i}"), "chosen": format!("c{i}"), "rejected": "r"});
            if late {
                row["said"] = "2026-01-31T08:15:00Z".into();
                row["sys"] = "be kind".into();
            }
            row
        })
        .collect();
    let of = card(
        "kind = 'pairs'\nuser_id = 'who'\nprompt = 'prompt'\n[columns]\nweight = 'w'\ntimestamp = 'said'\nsystem = 'sys'",
    );
    let votes = in_any_order(&rows, &|_| of.clone(), &all());
    let late: Vec<&Vote> = votes.iter().filter(|v| v.timestamp.is_some()).collect();
    assert_eq!((votes.len(), late.len()), (EARLY + 50, 50));
    assert!(late.iter().all(|v| v.weight == 0.5 && v.prompt[0].content == "be kind" && v.user_id.starts_with('u')));
    assert!(votes.iter().any(|v| v.user_id == "6" && v.weight == 2.0));
}

#[test]
fn a_user_who_is_named_late_is_missing_before_in_any_order() {
    let rows: Vec<Value> = (0..EARLY + 10)
        .map(|i| {
            let mut row = json!({"prompt": format!("p{i}"), "chosen": format!("c{i}"), "rejected": "r"});
            if i >= EARLY {
                row["user_id"] = format!("u{}", i % 2).into();
            }
            row
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    for path in encodings(dir.path(), &rows) {
        let card = recognised(&[&path]).unwrap();
        let error = ingest(&card, &path, &all()).unwrap_err().to_string();
        assert!(error.contains("row 1, column `user_id`: expected a value, found null"), "{error}");
    }
    let votes =
        in_any_order(&rows, &|path| recognised(&[path]).unwrap(), &Selection { bad_rows: BadRows::Drop, ..all() });
    assert_eq!((votes.len(), data::user_ids(&votes).join(",")), (10, "u0,u1".to_owned()));
}

#[test]
fn a_column_of_two_kinds_is_refused_where_it_is_read_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let row = |i: usize, meta: Value, prompt: Value| json!({"user_id": "u", "prompt": prompt, "chosen": format!("c{i}"), "rejected": "r", "meta": meta});
    let mut rows: Vec<Value> =
        (0..EARLY).map(|i| row(i, json!("text"), json!([{"role": "user", "content": "q"}]))).collect();
    rows.push(row(EARLY, json!({"a": [1]}), json!([{"role": "user", "content": "q", "tools": "x"}])));
    rows.push(row(EARLY + 1, json!([]), json!([{"role": "user", "content": "q", "tools": ["x"]}])));
    let path = written(dir.path(), "v.jsonl", lines(&rows));
    let votes = ingest(&recognised(&[&path]).unwrap(), &path, &all()).unwrap().0;
    assert_eq!(votes.len(), EARLY + 2);
    // The prompt itself: most rows say what it is, wherever they are.
    rows.push(row(EARLY + 2, json!(null), json!("a plain text")));
    for reversed in [false, true] {
        rows.reverse();
        let at = if reversed { EARLY + 3 } else { 1 };
        let path = written(dir.path(), "v.jsonl", lines(&rows));
        let error = ingest(&recognised(&[&path]).unwrap(), &path, &all()).unwrap_err().to_string();
        assert!(error.contains(&format!("v.jsonl, row {at}")) && error.contains("prompt"), "{error}");
    }
}

#[test]
fn shards_of_different_columns_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let pair = |i: usize| json!({"instruction": format!("p{i}"), "chosen": format!("c{i}"), "rejected": "r"});
    let with = |i: usize, key: &str| {
        let mut row = pair(i);
        row[key] = format!("{key} {i}").into();
        row["user_id"] = "u".into();
        row
    };
    let a = written(dir.path(), "d/a.jsonl", lines(&[pair(0), pair(1)]));
    written(dir.path(), "d/b.jsonl", lines(&[with(2, "input"), with(3, "note")]));
    let folder = dir.path().join("d");
    let card = recognised(&[&folder]).unwrap();
    let error = ingest(&card, &folder, &all()).unwrap_err();
    assert!(error.to_string().contains("a.jsonl: expected a column `user_id`"), "{error}");
    assert!(error.hint().unwrap().contains("b.jsonl"), "{error:?}");
    // With users in both, the column that one lacks is said to be missing there, and its rows are as they are in one file.
    fs_err::write(&a, lines(&[with(0, "x"), with(1, "x")])).unwrap();
    let (votes, report) = ingest(&recognised(&[&folder]).unwrap(), &folder, &all()).unwrap();
    assert_eq!(votes.iter().filter(|v| v.prompt[0].content.contains("input 2")).count(), 1);
    assert_eq!(report.unused_columns, ["note", "x"]);
    assert_eq!(report.column_notes.len(), 1);
    assert!(
        report.column_notes[0].contains("`input` is in some files only")
            && report.column_notes[0].contains("(a.jsonl)")
    );
}

#[test]
fn folders_name_columns() {
    let dir = tempfile::tempdir().unwrap();
    let batch = |user: Option<&str>, n: usize| {
        let columns = [("prompt", format!("q{n}")), ("chosen", format!("c{n}")), ("rejected", "r".to_owned())];
        let columns = columns.into_iter().map(|(name, text)| (name, texts(&[text])));
        let user = user.map(|u| ("user_id", texts(&[u])));
        arrow::array::RecordBatch::try_from_iter(columns.chain(user)).unwrap()
    };
    let write = |name: &str, user: Option<&str>, n: usize| {
        let path = written(dir.path(), name, "");
        write_batch(&path, &batch(user, n));
        path
    };
    write("v/user_id=ann%20b/day=1/part-0.parquet", None, 0);
    let own = write("v/user_id=bob/day=2/part-0.parquet", Some("bob"), 1);
    let folder = dir.path().join("v");
    let card = recognised(&[&folder]).unwrap();
    let (votes, report) = ingest(&card, &folder, &all()).unwrap();
    let users: Vec<(&str, &str)> = votes.iter().map(|v| (v.user_id.as_str(), v.chosen.as_str())).collect();
    assert_eq!(users, [("ann b", "c0"), ("bob", "c1")]);
    assert_eq!(report.unused_columns, ["day"]);
    // Named by itself, by a glob, or as a folder inside: the same.
    for source in [own.clone(), own.parent().unwrap().to_owned(), folder.join("user_id=bob").join("*/*.parquet")] {
        let votes = ingest(&recognised(&[&source]).unwrap(), &source, &all()).unwrap().0;
        assert_eq!((votes.len(), votes[0].user_id.as_str()), (1, "bob"), "{}", source.display());
    }
    // JSON and CSV too; a null is a missing user.
    written(dir.path(), "j/user_id=cid/x.csv", "prompt,chosen,rejected\nq,c,r\n");
    written(dir.path(), "j/user_id=dan/x.jsonl", "{\"prompt\":\"q\",\"chosen\":\"c\",\"rejected\":\"r\"}\n");
    let both = dir.path().join("j");
    let votes = ingest(&recognised(&[&both]).unwrap(), &both, &all()).unwrap().0;
    assert_eq!(data::user_ids(&votes), ["cid", "dan"]);
    written(dir.path(), "j/user_id=__HIVE_DEFAULT_PARTITION__/x.csv", "prompt,chosen,rejected\nq,c,r\n");
    let error = ingest(&recognised(&[&both]).unwrap(), &both, &all()).unwrap_err().to_string();
    assert!(error.contains("x.csv, row 1, column `user_id`: expected a value, found null"), "{error}");
    // A folder and a column that contradict each other.
    let wrong = write("v/user_id=eve/part-1.parquet", Some("mallory"), 2);
    let error = ingest(&card, &folder, &all()).unwrap_err().to_string();
    assert!(error.contains("part-1.parquet, row 1, column `user_id`"), "{error}");
    assert!(error.contains("expected what the folder `user_id=eve` says, found `mallory`"), "{error}");
    fs_err::remove_file(wrong).unwrap();
    let error = recognised(&[&write("v/user_id=bob/user_id=eve/x.parquet", None, 3)]).unwrap_err().to_string();
    assert!(error.contains("`user_id=eve` in `user_id=bob`"), "{error}");
}

#[test]
fn nobodys_votes_become_one_users_unless_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let messages = |last: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": last}]);
    let rows = [
        json!({"prompt": "q", "chosen": "a", "rejected": "b"}),
        json!({"chosen": messages("a"), "rejected": messages("b")}),
        json!({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
        json!({"instruction": "q", "chosen": "a", "rejected": "b"}),
        json!({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}),
        json!({"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]}),
        json!({"prompt": "q", "response_a": "a", "response_b": "b", "label": "a"}),
    ];
    for row in rows {
        let path = written(dir.path(), "v.jsonl", lines(std::slice::from_ref(&row)));
        let card = recognised(&[&path]).unwrap();
        let error = ingest(&card, &path, &all()).unwrap_err();
        assert!(error.to_string().contains("v.jsonl: expected a column that names the user"), "{error}");
        assert!(
            error.hint().unwrap().contains("one_user = \"everyone\"") && error.hint().unwrap().contains("--one-user")
        );
        let check = data::check(&card, &[path.display().to_string()], &CheckOptions::default(), dir.path()).unwrap();
        assert!(check.findings.iter().any(|f| f.kind.starts_with("no column names the user: all votes")), "{row}");
        assert_eq!((check.votes, check.users.keys().next().map(String::as_str)), (1, Some("everyone")));
        let votes = ingest(&card.with_one_user("me").unwrap(), &path, &all()).unwrap().0;
        assert_eq!((votes[0].user_id.as_str(), votes[0].chosen.as_str(), votes[0].rejected.as_str()), ("me", "a", "b"));
        assert_eq!(votes[0].prompt.last().unwrap().content, "q");
        // With a column of users under another of its names, that is taken.
        let mut named = row.clone();
        named["annotator_id"] = json!(7);
        let path = written(dir.path(), "v.jsonl", lines(&[named]));
        let votes = ingest(&recognised(&[&path]).unwrap(), &path, &all()).unwrap().0;
        assert_eq!(votes[0].user_id, "7", "{row}");
        // A column that may be something else is named and not taken.
        let mut unsure = row.clone();
        unsure["user"] = "ann".into();
        let path = written(dir.path(), "v.jsonl", lines(&[unsure]));
        let error = ingest(&recognised(&[&path]).unwrap(), &path, &all()).unwrap_err();
        assert!(error.hint().unwrap().contains("`user_id = \"user\"` under [layout]"), "{error:?}");
    }
    // A card that names fixed columns does not overlook the user either.
    let path = written(
        dir.path(),
        "v.jsonl",
        lines(&[json!({"user_id": "u", "instruction": "q", "chosen": "a", "rejected": "b"})]),
    );
    let error = ingest(&card("kind = 'alpaca'"), &path, &all()).unwrap_err();
    assert!(error.hint().unwrap().contains("`user_id = \"user_id\"`"), "{error:?}");
    let votes = ingest(&card("kind = 'alpaca'\nuser_id = 'user_id'"), &path, &all()).unwrap().0;
    assert_eq!(votes[0].user_id, "u");
}

#[test]
fn one_user_is_said_where_no_column_says_another() {
    let parse = |text: &str| Card::parse(&format!("name='x'\nsource='y'\nlicence='z'\n{text}"), &"card.toml");
    assert!(parse("one_user='all'\n[layout]\nkind='hh'").is_ok());
    for text in [
        "one_user=' '\n[layout]\nkind='hh'",
        "one_user='all'\n[layout]\nkind='hh'\nuser_id='u'",
        "one_user='all'\n[layout]\nkind='helpsteer2'",
        "one_user='all'\n[layout]\nkind='tldr'",
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            error.to_string().contains("card.toml: card `x`, `one_user`: expected") && error.hint().is_some(),
            "{error}"
        );
    }
}

#[test]
fn a_blank_user_is_a_bad_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "v.csv", "user_id,prompt,chosen,rejected\nu,p,a,b\n,p,c,d\n  ,p,e,f\n");
    let card = recognised(&[&path]).unwrap();
    let error = ingest(&card, &path, &all()).unwrap_err().to_string();
    assert!(error.contains("v.csv, row 2, column `user_id`: expected a value, found ``"), "{error}");
    let (votes, report) = ingest(&card, &path, &Selection { bad_rows: BadRows::Drop, ..all() }).unwrap();
    assert_eq!((votes.len(), report.dropped["a blank user id"]), (1, 2));
}

#[test]
fn columns_that_nothing_reads_are_listed_and_usable_ones_are_pointed_at() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"user_id": "u", "prompt": "p", "chosen": "a", "rejected": "b", "annotator": "x", "created_at": 1_700_000_000, "weight": 2,
                     "split": "train", "system": "s", "tools": "t", "model": "m"});
    let path = written(dir.path(), "v.jsonl", lines(&[row]));
    let source = [path.display().to_string()];
    let card = recognised(&[&path]).unwrap();
    let check = data::check(&card, &source, &CheckOptions::default(), dir.path()).unwrap();
    let unused = ["annotator", "created_at", "model", "split", "system", "tools", "weight"];
    assert_eq!(check.unused_columns, unused);
    let notes = check.column_notes.join("\n");
    for (column, key) in [("created_at", "timestamp"), ("weight", "weight"), ("split", "split"), ("system", "system")] {
        assert!(notes.contains(&format!("`{key} = \"{column}\"` under [columns]")), "{notes}");
    }
    assert!(
        notes.contains("users are read from `user_id`") && notes.contains("`tools`") && !notes.contains("`model`"),
        "{notes}"
    );
    assert_eq!(ingest(&card, &path, &all()).unwrap().1.unused_columns, unused);
    let (_, shown) = data::first_votes(&card, &source, 1, None).unwrap();
    assert_eq!(shown.unused, unused);
    // A card that reads them leaves the rest.
    let read = "kind = 'pairs'\nuser_id = 'user_id'\nprompt = 'prompt'\n[columns]\nsystem = 'system'\nweight = 'weight'\n\
                timestamp = 'created_at'\nsplit = 'split'";
    let report = ingest(&crate::common::card(read), &path, &all()).unwrap().1;
    assert_eq!(report.unused_columns, ["annotator", "model", "tools"]);
}

#[test]
fn rows_of_llama_factory_are_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let roles = |v: &Vote| v.prompt.iter().map(|m| (m.role.clone(), m.content.clone())).collect::<Vec<_>>();
    let text = |all: &[(&str, &str)]| all.iter().map(|(r, c)| ((*r).to_owned(), (*c).to_owned())).collect::<Vec<_>>();
    let alpaca = |extra: Value| {
        let mut row = json!({"user_id": "u", "instruction": "now", "chosen": "a", "rejected": "b"});
        row.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let path = written(dir.path(), "v.jsonl", lines(&[row]));
        ingest(&recognised(&[&path]).unwrap(), &path, &all())
            .map(|(votes, _)| roles(&votes[0]))
            .map_err(|e| e.to_string())
    };
    let whole = json!({"input": "in", "system": "sys", "history": [["one", "1"], ["two", "2"]]});
    let want = [
        ("system", "sys"),
        ("user", "one"),
        ("assistant", "1"),
        ("user", "two"),
        ("assistant", "2"),
        ("user", "now\nin"),
    ];
    assert_eq!(alpaca(whole).unwrap(), text(&want));
    assert_eq!(alpaca(json!({"input": "", "system": "", "history": []})).unwrap(), text(&[("user", "now")]));
    assert_eq!(
        alpaca(json!({"instruction": "", "input": "in", "history": [[]]}))
            .unwrap_err()
            .matches("found 0 texts")
            .count(),
        1
    );
    assert_eq!(alpaca(json!({"instruction": "", "input": "in", "history": null})).unwrap(), text(&[("user", "in")]));
    assert!(alpaca(json!({"history": [["one"]]})).unwrap_err().contains("expected rounds of two texts"));
    let sharegpt = |conversations: Value, system: &str, chosen: Value| {
        let rejected = json!({"from": "gpt", "value": "b"});
        let row = json!({"user_id": "u", "conversations": conversations, "system": system, "chosen": chosen, "rejected": rejected});
        let path = written(dir.path(), "v.jsonl", lines(&[row]));
        ingest(&recognised(&[&path]).unwrap(), &path, &all())
            .map(|(votes, _)| roles(&votes[0]))
            .map_err(|e| e.to_string())
    };
    let human = json!({"from": "human", "value": "q"});
    let good = json!({"from": "gpt", "value": "a"});
    let want = text(&[("system", "sys"), ("user", "q")]);
    assert_eq!(sharegpt(json!([human]), "sys", good.clone()).unwrap(), want);
    let own = json!({"from": "system", "value": "sys"});
    assert_eq!(sharegpt(json!([own, human]), "", good.clone()).unwrap(), want);
    assert_eq!(sharegpt(json!([own, human]), "sys", good.clone()).unwrap(), want);
    assert!(sharegpt(json!([own, human]), "another", good.clone()).unwrap_err().contains("`another` and `sys`"));
    assert_eq!(sharegpt(json!([human]), "sys", json!([good])).unwrap(), want);
    assert!(sharegpt(json!([human]), "", human.clone()).unwrap_err().contains("found one from `user`"));
}

#[test]
fn prompts_that_are_in_no_column_are_what_both_texts_begin_with() {
    let dir = tempfile::tempdir().unwrap();
    let read = |rows: &[Value]| {
        let path = written(dir.path(), "v.jsonl", lines(rows));
        ingest(&recognised(&[&path]).unwrap(), &path, &all())
    };
    let row = |chosen: &str, rejected: &str| json!({"user_id": "u", "chosen": chosen, "rejected": rejected});
    let (votes, report) = read(&[
        row("The sky is blue.", "The sky is black."),
        row("\n\nHuman: hi\n\nAssistant: so", "\n\nHuman: hi\n\nAssistant: no"),
        row("Human: hi\n\nAssistant: so", "Human: hi\n\nAssistant: no"),
        row("it was all", "it was all right"),
    ])
    .unwrap();
    let brief: Vec<(&str, &str, &str)> =
        votes.iter().map(|v| (v.prompt[0].content.as_str(), v.chosen.as_str(), v.rejected.as_str())).collect();
    assert_eq!(brief, [("The sky is", " blue.", " black."), ("hi", "so", "no"), ("hi", "so", "no")]);
    assert_eq!(report.dropped["empty answer"], 1);
    for (chosen, rejected) in [("blue", "green"), ("the same", "the same"), ("\n\nHuman: a\n\nAssistant: b", "other")] {
        let error = read(&[row(chosen, rejected)]).unwrap_err().to_string();
        assert!(
            error.contains("row 1, column `chosen`: expected two texts that begin with the same prompt"),
            "{error}"
        );
    }
    let mixed = json!({"user_id": "u", "chosen": [{"role": "user", "content": "q"}, {"role": "user", "content": "w"}],
                       "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]});
    assert!(read(&[mixed]).unwrap_err().to_string().contains("a last message of the user"));
}

#[test]
fn attributes_do_not_stand_for_users_where_a_column_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"user_id": "u", "prompt": "p", "response": "r", "helpfulness": 1, "correctness": 1, "coherence": 1,
                     "complexity": 1, "verbosity": 1});
    let path = written(dir.path(), "v.jsonl", lines(&[row]));
    let error = recognised(&[&path]).unwrap_err();
    assert!(error.to_string().contains("the column `user_id` besides"), "{error}");
    assert!(error.hint().unwrap().contains("kind = \"helpsteer2\""), "{error:?}");
}
