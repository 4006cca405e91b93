//! The users table, the token cache, and what a check finds.

use std::collections::BTreeSet;
use std::path::Path;

use data::{CheckOptions, Level, TokenCache, UsersCard};
use text::{Ending, KnownRows, Tokenizer};

use crate::common::{by_prompt, file, votes_card};

fn users_card() -> UsersCard {
    UsersCard {
        user_id: "id".into(),
        numeric: vec!["age".into()],
        categorical: vec!["home.city".into()],
        max_levels: 2,
        embedding: Some("vector".into()),
    }
}

#[test]
fn contexts_are_standardised_one_hot_and_explicit_about_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("survey.jsonl");
    let lines = [
        r#"{"id":"a","age":20,"home":{"city":"X"},"vector":[1.5,2.5]}"#,
        r#"{"id":"b","age":40,"home":{"city":"Y"},"vector":[0.5,-1.0]}"#,
        r#"{"id":"c","age":null,"home":{"city":"X"},"vector":null}"#,
        r#"{"id":"d","age":30,"home":{"city":"Z"},"vector":[0,0]}"#,
        r#"{"id":"nobody","age":99,"home":{"city":"X"},"vector":[9,9]}"#,
    ];
    fs_err::write(&path, lines.join("\n")).unwrap();
    let wanted: BTreeSet<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
    let out = dir.path().join("users.parquet");
    let source = [path.display().to_string()];
    let report = data::write_users(&users_card(), &source, &wanted, &out).unwrap();
    assert_eq!((report.users, report.unknown, report.without_votes), (5, 1, 1));
    let standard = report.standards["age"];
    assert!((standard.mean - 30.0).abs() < 1e-12);
    assert!((standard.deviation - (200.0f64 / 3.0).sqrt()).abs() < 1e-12);
    let users = data::read_users(&out).unwrap();
    let names = [
        "age",
        "age=missing",
        "home.city=X",
        "home.city=Y",
        "home.city=other",
        "home.city=missing",
        "vector[0]",
        "vector[1]",
        "vector=missing",
    ];
    assert_eq!(users.columns, names);
    let s = (200.0f64 / 3.0).sqrt();
    let low = (-10.0 / s) as f32;
    assert_eq!(users.context["a"], [low, 0.0, 1.0, 0.0, 0.0, 0.0, 1.5, 2.5, 0.0]);
    assert_eq!(users.context["b"], [-low, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5, -1.0, 0.0]);
    assert_eq!(users.context["c"], [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(users.context["d"], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(users.context["e"], [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);

    fs_err::write(&path, [lines[0], lines[0]].join("\n")).unwrap();
    let error = data::write_users(&users_card(), &source, &wanted, &out).unwrap_err().to_string();
    assert!(error.contains("row 2"), "{error}");
    assert!(error.contains("a second row of `a`"), "{error}");
    fs_err::write(&path, [lines[0], &lines[1].replace("0.5,-1.0", "0.5")].join("\n")).unwrap();
    let error = data::write_users(&users_card(), &source, &wanted, &out).unwrap_err().to_string();
    assert!(error.contains("2 numbers for every user, found 1 for `b`"), "{error}");
}

/// A word-level tokenizer with a chat template.
pub(crate) fn tokenizer(folder: &Path, template: &str) -> Tokenizer {
    let words = ["<s>", "</s>", "<unk>", "user", "assistant", "one", "two", "three", "four"];
    let vocabulary: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), i.into())).collect();
    let special = |id: u32, content: &str| serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    });
    fs_err::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    let config = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
    fs_err::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_folder(folder).unwrap()
}

/// A folder with that tokenizer.
pub(crate) fn words(folder: &Path) {
    _ = tokenizer(folder, TEMPLATE);
}

pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ m.role }} {{ m.content }} {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}\
                        {% if add_generation_prompt %}assistant {% endif %}";

#[test]
fn cached_rows_equal_fresh_ones_and_each_text_is_made_once() {
    let rows: Vec<[String; 6]> = (0..200)
        .map(|i| {
            let word = |n: usize| ["one", "two", "three", "four"][n % 4].to_owned();
            [
                format!("u{i}"),
                word(i % 3),
                format!("{} {}", word(i), word(i / 4)),
                "two".into(),
                "1".into(),
                "train".into(),
            ]
        })
        .collect();
    let (dir, path) = file(&rows);
    let tokenizer = tokenizer(dir.path(), TEMPLATE);
    let (table, out) = (dir.path().join("votes.parquet"), dir.path().join("tokens.arrow"));
    data::ingest(&votes_card(), &[path.display().to_string()], &by_prompt(0.0, 0.0), 7, &table).unwrap();
    let report = data::tokenise(&table, &tokenizer, &out, 2).unwrap();
    let votes = data::read_votes(&table).unwrap();
    let cache = TokenCache::open(&out).unwrap();
    let distinct: BTreeSet<(&str, &str)> = votes
        .iter()
        .flat_map(|v| [&v.chosen, &v.rejected].map(|a| (v.prompt[0].content.as_str(), a.as_str())))
        .collect();
    assert_eq!((report.texts, report.distinct, cache.len()), (2 * votes.len(), distinct.len(), distinct.len()));
    assert!(distinct.len() < votes.len());
    assert!(cache.is_of(&tokenizer));
    for vote in &votes {
        for answer in [&vote.chosen, &vote.rejected] {
            let fresh = tokenizer.row(&vote.prompt, answer, Ending::Finished).unwrap();
            assert_eq!(cache.row(&vote.prompt, answer, Ending::Finished), Some(fresh));
            assert_eq!(cache.row(&vote.prompt, answer, Ending::Cut), None);
        }
    }
    // Another format: nobody's rows, whatever its columns are.
    let other_format = dir.path().join("other.arrow");
    let schema = |format: &str| {
        let field = arrow::datatypes::Field::new("x", arrow::datatypes::DataType::Int32, false);
        let metadata = [("format", format), ("tokenizer", tokenizer.identity())]
            .map(|(k, v): (&str, &str)| (k.to_owned(), v.to_owned()));
        arrow::datatypes::Schema::new(vec![field]).with_metadata(std::collections::HashMap::from(metadata))
    };
    let write = |format: &str| {
        let file = fs_err::File::create(&other_format).unwrap();
        arrow::ipc::writer::FileWriter::try_new(file, &schema(format)).unwrap().finish().unwrap();
        TokenCache::open(&other_format).unwrap()
    };
    assert!(!write("0").is_of(&tokenizer));
    assert!(write("2").is_of(&tokenizer));
    // Another template: another identity. A cut file: an error.
    let other = tempfile::tempdir().unwrap();
    assert!(!cache.is_of(&self::tokenizer(other.path(), &format!("{TEMPLATE} "))));
    let known = self::tokenizer(other.path(), TEMPLATE).with_known(cache);
    assert_eq!(known.row(&votes[0].prompt, "two", Ending::Finished).unwrap().ids.len(), 5);
    let bytes = fs_err::read(&out).unwrap();
    for cut in [0, 5, 9, bytes.len() / 2, bytes.len() - 1] {
        fs_err::write(&out, &bytes[..cut]).unwrap();
        assert!(TokenCache::open(&out).is_err(), "cut at {cut}");
    }
}

#[test]
fn rows_of_a_dated_template_belong_to_their_date() {
    let rows = [["u", "one", "two", "three", "1", "train"]];
    let (dir, path) = file(&rows);
    let template = format!("{{{{ strftime_now('%A') }}}} {TEMPLATE}");
    let on = |day| {
        let date = text::NaiveDate::from_ymd_opt(2026, 3, day).unwrap();
        tokenizer(dir.path(), &template).with_date(date).unwrap()
    };
    let (table, out) = (dir.path().join("votes.parquet"), dir.path().join("tokens.arrow"));
    data::ingest(&votes_card(), &[path.display().to_string()], &by_prompt(0.0, 0.0), 7, &table).unwrap();
    data::tokenise(&table, &on(5), &out, 1).unwrap();
    let cache = TokenCache::open(&out).unwrap();
    assert!(cache.is_of(&on(5)));
    assert!(!cache.is_of(&on(6)));
}

#[test]
fn a_check_counts_what_is_wrong_for_each_user_with_the_first_rows() {
    let rows = [
        ["ann", "p1", "a", "b", "1", ""],
        ["ann", "p1", "a", "b", "1", ""],            // duplicate
        ["ann", "p1", "b", "a", "1", ""],            // contradiction: b now
        ["bob", "p1", "a", "b", "2", ""],            // agrees with neither of ann's first
        ["bob", "p2", "same", "same", "1", ""],      // identical
        ["bob", "p2", "", "x", "2", ""],             // empty
        ["bob", "p3", "donâ€™t", "longer", "2", ""], // damage
        ["bob", "p4", "x", "y", "?", ""],            // label
        ["cleo", "p1", "a", "b", "1", ""],
        ["cleo", "p2", "a", "\u{200b}", "1", ""],                 // invisible
        ["cleo", "p5", "one two three four one", "two", "=", ""], // over-long
    ];
    let (dir, path) = file(&rows);
    let tokenizer = tokenizer(dir.path(), TEMPLATE);
    let card = data::Card { columns: data::Columns::default(), ..votes_card() };
    let options = CheckOptions { min_votes: 3, tokens: Some((&tokenizer, 7)), threads: 2 };
    let spill = tempfile::tempdir().unwrap();
    let check = data::check(&card, &[path.display().to_string()], &options, spill.path()).unwrap();
    let found = |kind: &str| {
        let finding = check.findings.iter().find(|f| f.kind == kind).unwrap_or_else(|| panic!("{kind}: {check:#?}"));
        (finding.level, finding.count, finding.users, finding.first[0].as_str())
    };
    assert_eq!(found("unknown label"), (Level::Error, 1, 0, "v.parquet:8"));
    assert_eq!(found("duplicate vote"), (Level::Warning, 1, 1, "v.parquet:2"));
    assert_eq!(found("vote that contradicts the user's own"), (Level::Warning, 1, 1, "v.parquet:3"));
    assert_eq!(found("identical answers"), (Level::Warning, 1, 1, "v.parquet:5"));
    assert_eq!(found("empty answer"), (Level::Warning, 1, 1, "v.parquet:6"));
    assert_eq!(found("encoding damage"), (Level::Warning, 1, 1, "v.parquet:7"));
    assert_eq!(found("invisible answer"), (Level::Warning, 1, 1, "v.parquet:10"));
    assert_eq!(found("over-long row"), (Level::Warning, 1, 1, "v.parquet:11"));
    assert_eq!(found("user with fewer than 3 decided votes"), (Level::Warning, 1, 1, "`cleo`"));
    assert_eq!((check.rows, check.votes, check.users.len(), check.prompts), (11, 11, 3, 4));
    let ann = &check.users["ann"];
    assert_eq!((ann.votes, ann.ties, ann.ordered, ann.for_first), (3, 0, 3, 3));
    assert_eq!(ann.findings["duplicate vote"], 1);
    // p1's pair: ann a, bob b, cleo a: one of three pairs of votes agrees.
    assert_eq!((check.agreement.pairs, check.agreement.votes), (1, 3));
    assert!((check.agreement.observed.unwrap() - 1.0 / 3.0).abs() < 1e-12);
    assert!(check.has(Level::Error));
}
