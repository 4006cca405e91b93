//! `idiolect data` on small files.

use serde_json::{Value, json};

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

/// Name of a layout, a row of it, and what `show` prints of the row's first vote: the user, the prompt's end and the chosen response.
type Shown = (&'static str, Value, [&'static str; 3]);

/// Rows of the layouts in docs/data.md whose columns a card may name.
fn layouts() -> Vec<Shown> {
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let talk = |last: &str| json!([said("user", "why so?"), said("assistant", last)]);
    vec![
        (
            "votes",
            json!({"user_id": "ann", "prompt": "why so?", "response_a": "yes it is", "response_b": "no", "label": "a"}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "pairs",
            json!({"user_id": "ann", "prompt": "why so?", "chosen": "yes it is", "rejected": "no"}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "pairs",
            json!({"worker": "ann", "question": "why so?", "chosen": "yes it is", "rejected": "no"}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "pairs",
            json!({"rater": "ann", "prompt": [said("system", "be brief"), said("user", "why so?")],
            "chosen": [said("assistant", "yes it is")], "rejected": [said("assistant", "no")]}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "pairs",
            json!({"user_id": "ann", "chosen": talk("yes it is"), "rejected": talk("no")}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "pairs",
            json!({"user_id": "ann", "chosen": "why so? yes it is", "rejected": "why so? no"}),
            ["ann", "why so?<|im_end|>", " yes it is"],
        ),
        (
            "pairs",
            json!({"chosen": "\n\nHuman: why so?\n\nAssistant: yes it is", "rejected": "\n\nHuman: why so?\n\nAssistant: no"}),
            ["everyone", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "rankings",
            json!({"user_id": "ann", "prompt": "why so?", "responses": ["yes it is", "no"], "scores": [2.0, 1.0]}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "rankings",
            json!({"user_id": "ann", "prompt": "why so?", "completions": ["yes it is", "no"], "ranks": [1, 2]}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
    ]
}

/// The same for the shapes that data sets were published with.
fn published_layouts() -> Vec<Shown> {
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let talk = |last: &str| json!([said("user", "why so?"), said("assistant", last)]);
    let turn = |role: &str, content: &str, score: Value, chosen: Value| json!({"turn": 0, "role": role, "content": content, "score": score, "if_chosen": chosen});
    let aspects = |rating: &str| {
        let rated = json!({"Rating": rating});
        json!({"helpfulness": rated, "honesty": rated, "instruction_following": rated, "truthfulness": rated})
    };
    let judged = |pref: &str| json!([{"evaluator": "ann", "overall_pref": pref}]);
    let from = |from: &str, value: &str| json!({"from": from, "value": value});
    let summaries = json!([{"text": "yes it is"}, {"text": "no"}]);
    vec![
        (
            "tldr",
            json!({"info": {"post": "why so?", "title": "a", "subreddit": "b", "article": null}, "summaries": summaries, "choice": 0, "worker": "ann"}),
            ["ann", "why so?", "yes it is"],
        ),
        (
            "prism",
            json!({"user_id": "ann", "conversation_history": [turn("user", "why so?", Value::Null, Value::Null),
            turn("model", "yes it is", json!(9), json!(true)), turn("model", "no", json!(3), json!(false))]}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "ultrafeedback",
            json!({"instruction": "why so?", "completions": [{"response": "yes it is", "annotations": aspects("5")},
            {"response": "no", "annotations": aspects("1")}]}),
            ["helpfulness", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "arena",
            json!({"judge": "ann", "winner": "model_a", "conversation_a": talk("yes it is"), "conversation_b": talk("no"), "tstamp": 1.7e9}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "personalllm",
            json!({"prompt": "why so?", "response_1": "yes it is", "response_2": "no", "response_1_gemma": 2.0, "response_2_gemma": 1.0}),
            ["gemma", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "multipref",
            json!({"text": "why so?", "completion_a": "yes it is", "completion_b": "no",
            "normal_worker_annotations": judged("A-is-clearly-better"), "expert_worker_annotations": []}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "alpaca",
            json!({"user_id": "ann", "instruction": "say", "input": "why so?", "system": "be brief", "history": [["hi", "yes"]],
            "chosen": "yes it is", "rejected": "no"}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
        (
            "sharegpt",
            json!({"user_id": "ann", "system": "be brief", "conversations": [from("human", "why so?")],
            "chosen": from("gpt", "yes it is"), "rejected": from("gpt", "no")}),
            ["ann", "why so?<|im_end|>", "yes it is"],
        ),
    ]
}

#[test]
fn every_layout_of_the_docs_is_recognised_or_told_what_its_card_needs() {
    let folder = tempfile::tempdir().unwrap();
    write_tokenizer(folder.path());
    let model = folder.path().display().to_string();
    let show = |path: &str, [user, prompt, chosen]: [&str; 3]| {
        let (code, text, error) = run(&["show", path, "--tokenizer", &model, "--rows", "1"]);
        assert_eq!(code, 0, "{path}: {error}");
        assert!(text.contains(&format!("user {user} ")) && text.contains(prompt), "{path}: {text}");
        assert!(text.contains(&format!("⟦{chosen}<|im_end|>⟧")), "{path}: {text}");
        error
    };
    for (number, (kind, row, want)) in layouts().into_iter().chain(published_layouts()).enumerate() {
        let path = folder.path().join(format!("{number}-{kind}.jsonl"));
        fs_err::write(&path, format!("{row}\n")).unwrap();
        let path = path.display().to_string();
        let (code, text, error) = run(&["check", &path, "--min-votes", "0"]);
        assert!(code == 0 && error.contains(&format!("kind = \"{kind}\"")), "{path}: {text}{error}");
        let unnamed = "no column names the user: all votes are counted as those of one user, `everyone`";
        let told = show(&path, want);
        assert_eq!(
            (text.contains(unnamed), told.contains(unnamed)),
            (want[0] == "everyone", want[0] == "everyone"),
            "{text}{told}"
        );
    }
    // HelpSteer2's rows come in pairs.
    let scored = |response: &str, score: i64| {
        json!({"prompt": "why so?", "response": response, "helpfulness": score, "correctness": score, "coherence": score,
               "complexity": score, "verbosity": score})
    };
    let path = folder.path().join("helpsteer2.jsonl");
    fs_err::write(&path, format!("{}\n{}\n", scored("yes it is", 4), scored("no", 0))).unwrap();
    show(&path.display().to_string(), ["helpfulness", "why so?<|im_end|>", "yes it is"]);
    // The canonical table.
    let (source, table) = (votes(folder.path()), folder.path().join("table.parquet").display().to_string());
    assert_eq!(run(&["ingest", &source, "--out", &table]).0, 0);
    let (code, text, error) = run(&["check", &table]);
    assert!(code == 0 && error.contains("kind = \"canonical\"") && !text.contains("not used"), "{text}{error}");
    show(&table, ["u0", "why 0?<|im_end|>", "because 0"]);
    // What the texts are responses to, and which gap counts, stands in no column.
    let path = folder.path().join("ratings.csv").display().to_string();
    fs_err::write(&path, "user_id,joke,rating\n1,a,3\n1,b,5\n").unwrap();
    for command in [vec!["check", &path], vec!["show", &path, "--tokenizer", &model]] {
        let (code, _, error) = run(&command);
        assert!(code == 2 && error.contains("found user_id, joke, rating") && error.contains("--card FILE"), "{error}");
        assert!(
            error.contains("kind = \"ratings\", user_id = \"user_id\"") && error.contains("rating = \"rating\""),
            "{error}"
        );
    }
}

#[test]
fn one_user_is_said_or_ingestion_refuses_and_unused_columns_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl").display().to_string();
    let row = |i: usize| json!({"prompt": format!("q{i}"), "chosen": "a", "rejected": "b", "uid": "x", "note": 1});
    fs_err::write(&path, (0..40).map(|i| format!("{}\n", row(i))).collect::<String>()).unwrap();
    let out = folder.path().join("t.parquet").display().to_string();
    let (code, _, error) = run(&["ingest", &path, "--out", &out]);
    assert!(code == 2 && error.contains("pairs.jsonl: expected a column that names the user"), "{error}");
    assert!(error.contains("user_id = \"uid\"") && error.contains("--one-user everyone"), "{error}");
    assert!(!std::path::Path::new(&out).exists());
    let (code, text, error) = run(&["check", &path]);
    assert!(code == 0 && text.contains("no column names the user (`uid` may be one)"), "{text}{error}");
    assert!(text.contains("Columns that are not used: note, uid"), "{text}");
    let (code, _, error) = run(&["stats", &path, "--out", &folder.path().join("s").display().to_string()]);
    assert!(
        code == 0 && error.contains("no column names the user") && error.contains("not used: note, uid"),
        "{error}"
    );
    let (code, text, error) = run(&["ingest", &path, "--out", &out, "--one-user", "me"]);
    assert!(code == 0 && text.contains("columns that are not used: note, uid"), "{text}{error}");
    let report: Value = run::read_json(folder.path().join("t.report.json").as_ref()).unwrap();
    assert_eq!(report["unused_columns"], json!(["note", "uid"]));
    assert_eq!(data::user_ids(&data::read_votes(out.as_ref()).unwrap()), ["me"]);
    let (code, _, error) = run(&["ingest", &votes(folder.path()), "--out", &format!("{out}2"), "--one-user", "me"]);
    assert!(code == 2 && error.contains("users in the column `user_id`"), "{error}");
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
