//! `idiolect data` on small files.

use crate::tiny::{program, repository, stderr, write_tokenizer};

fn votes(folder: &std::path::Path) -> String {
    let path = folder.join("votes.csv");
    let rows: String = (0..60)
        .map(|i| format!("u{},why {}?,because {i},no {},{}\n", i % 4, i % 12, i % 7, ["a", "b", "tie"][i % 3]))
        .collect();
    fs_err::write(&path, format!("user_id,prompt,response_a,response_b,label\n{rows}")).unwrap();
    path.display().to_string()
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = program().arg("data").args(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output))
}

#[test]
fn rows_are_shown_with_their_boundary_and_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let source = votes(folder.path());
    write_tokenizer(folder.path());
    let model = folder.path().display().to_string();
    let (code, text, error) = run(&["show", &source, "--tokenizer", &model, "--rows", "2", "--user", "u1"]);
    assert_eq!(code, 0, "{error}");
    assert!(text.contains("votes.csv:2 · user u1") && text.contains("votes.csv:6 · user u1"), "{text}");
    assert_eq!((text.matches('⟦').count(), text.matches('⟧').count()), (4, 4), "{text}");
    assert!(text.contains("why 1?") && text.contains("⟦because 1"), "{text}");
    let (code, _, error) = run(&["show", &source, "--tokenizer", &model, "--user", "nobody"]);
    assert!(code == 2 && error.contains("none of user `nobody`"), "{error}");
}

#[test]
fn stats_leave_numbers_and_a_plot() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (votes(folder.path()), folder.path().join("stats").display().to_string());
    let (code, text, error) = run(&["stats", &source, "--out", &out]);
    assert_eq!(code, 0, "{error}");
    assert!(text.contains("| votes | 60 |") && text.contains("| users | 4 |"), "{text}");
    let check: data::Check = run::read_json(format!("{out}/stats.json").as_ref()).unwrap();
    assert_eq!((check.votes, check.users.len(), check.prompts), (60, 4, 12));
    let plot = fs_err::read_to_string(format!("{out}/votes.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("votes per user") && plot.contains("8-15"), "{plot}");
}

#[test]
fn ingestion_writes_the_table_and_a_report_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (votes(folder.path()), folder.path().join("table.parquet").display().to_string());
    let selection = "min_votes = 3\nsplit = { by = \"folds\", over = \"prompt\", of = 3, test = 0 }";
    let (code, text, error) = run(&["ingest", &source, "--out", &out, "--selection", selection]);
    assert_eq!(code, 0, "{error}");
    assert!(
        text.contains("60 rows make 60 votes: 60 kept of 4 users") && text.contains("on two sides: nothing"),
        "{text}"
    );
    let report: data::Report =
        run::read_json(format!("{}.report.json", out.trim_end_matches(".parquet")).as_ref()).unwrap();
    assert_eq!((report.prompts["test"], report.prompts["train"]), (4, 8));
    assert_eq!(data::read_votes(out.as_ref()).unwrap().len(), 60);
    let (code, _, error) = run(&["ingest", &source, "--out", &out]);
    assert!(code == 2 && error.contains("found one that exists"), "{error}");
    let (code, _, error) = run(&["ingest", &source, "--out", &format!("{out}2"), "--selection", "min_vote = 3"]);
    assert!(code == 2 && error.contains("min_vote"), "{error}");
}

#[test]
fn a_check_ends_with_2_where_rows_are_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    fs_err::write(
        &path,
        "{\"worker\":\"w\",\"prompt\":\"p\",\"response_a\":\"a\",\"response_b\":\"b\",\"label\":\"A\"}\n",
    )
    .unwrap();
    let (code, text, error) = run(&["check", &path.display().to_string()]);
    assert!(code == 2 && text.contains("| error | unknown label | 1 | 0 | x.jsonl:1 |"), "{text}{error}");
    let (code, _, error) = run(&["check", &repository().join("README.md").display().to_string()]);
    assert!(code == 2 && error.contains("hint: "), "{error}");
}

#[test]
fn what_is_decided_from_values_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.csv");
    let message = |role: &str, text: &str| format!("\"[{{'role': '{role}', 'content': '{text}'}}]\"");
    let rows: String = (0..40)
        .map(|i| {
            format!(
                "u{};{};{};{};{}\n",
                i % 2,
                message("user", &format!("why {i}?")),
                message("assistant", "good"),
                message("assistant", "bad"),
                1_772_452_800_000_i64 + i
            )
        })
        .collect();
    fs_err::write(&path, format!("user_id;prompt;chosen;rejected;at\n{rows}u0;only two\n")).unwrap();
    let card = folder.path().join("card.toml");
    let text = "name = 'x'\nsource = 'y'\nlicence = 'z'\n[layout]\nkind = 'pairs'\nuser_id = 'user_id'\nprompt = 'prompt'\n[columns]\ntimestamp = 'at'\n";
    fs_err::write(&card, text).unwrap();
    let (source, card, out) =
        (path.display().to_string(), card.display().to_string(), folder.path().join("t.parquet").display().to_string());
    let said = [
        "columns are separated by semicolons",
        "40 numbers of `at` are read as milliseconds since 1970, by their size",
        "40 texts of `chosen` are messages as Python prints them, and are read as messages",
    ];
    let (code, text, error) = run(&["check", &source, "--card", &card]);
    assert_eq!(code, 2, "{error}");
    said.iter().for_each(|what| assert!(text.contains(what), "{text}"));
    assert!(text.contains("| error | a row with another number of fields | 1 | 0 | x.csv:41 |"), "{text}");
    let (code, _, error) = run(&["ingest", &source, "--card", &card, "--out", &out]);
    assert!(code == 2 && error.contains("x.csv, row 41: expected 5 fields, as the header has, found 2"), "{error}");
    let selection = "bad_rows = \"drop\"\nsplit = { by = \"time\", dev = 0.0, test = 0.2 }";
    let (code, text, error) = run(&["ingest", &source, "--card", &card, "--out", &out, "--selection", selection]);
    assert_eq!(code, 0, "{error}");
    assert!(text.contains("dropped: a row with another number of fields 1;"), "{text}");
    said.iter().for_each(|what| assert!(error.contains(what), "{error}"));
    let votes = data::read_votes(out.as_ref()).unwrap();
    let newest = votes.iter().filter(|v| v.split == data::Split::Test).map(|v| v.timestamp.unwrap()).min().unwrap();
    assert_eq!(newest, (1_772_452_800_000 + 32) * 1000);
    assert_eq!((votes[0].prompt[0].content.as_str(), votes[0].chosen.as_str()), ("why 0?", "good"));
}
