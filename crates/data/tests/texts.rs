//! CSV and JSON as other programs write them, row by row: right, dropped and counted, or refused with row and column.

use std::path::Path;

use data::{BadRows, Card, Selection, Vote};
use proptest::prelude::*;

use crate::common::{all, card, ingest};

fn pairs() -> Card {
    card("kind = 'pairs'\nuser_id = 'user_id'\nprompt = 'prompt'")
}

fn dropping() -> Selection {
    Selection { bad_rows: BadRows::Drop, ..all() }
}

fn read(name: &str, content: &[u8]) -> problem::Result<(Vec<Vote>, data::Report)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs_err::write(&path, content).unwrap();
    ingest(&pairs(), &path, &all())
}

fn refusal(name: &str, content: &[u8]) -> String {
    let error = read(name, content).unwrap_err();
    format!("{error}\n{}", error.hint().unwrap())
}

const HEADER: &str = "user_id,prompt,chosen,rejected\n";

#[test]
fn nothing_after_the_first_array_is_lost() {
    let row = |i: usize| format!(r#"{{"user_id": "u", "prompt": "p{i}", "chosen": "good", "rejected": "bad"}}"#);
    let lines: Vec<String> = (0..20).map(|i| format!("[{}]", row(i))).collect();
    for text in [
        lines.join("\n"),
        format!("{}\n\n", lines.concat()),
        format!("[]{}\n[]", lines.join(" \r\n")),
        format!("[{}]", (0..20).map(row).collect::<Vec<_>>().join(",")),
    ] {
        let (votes, report) = read("x.json", text.as_bytes()).unwrap();
        assert_eq!((votes.len(), report.rows), (20, 20), "{text}");
        assert_eq!(votes[19].prompt[0].content, "p19");
    }
    for rest in ["and so on".to_owned(), row(2), "]".into(), ",".into()] {
        let error = refusal("x.json", format!("[{},{}] {rest}", row(0), row(1)).as_bytes());
        assert!(error.contains("row 3") && error.contains("more text after the end of the array"), "{error}");
    }
    assert!(refusal("x.json", format!("[{}][{}", row(0), row(1)).as_bytes()).contains("inside the array"));
}

#[test]
fn a_key_written_with_escapes_is_the_column_that_it_names() {
    let layout = "kind = 'pairs'\nuser_id = 'user_id'\nprompt = 'prompt'\nchosen = 'r\u{e9}ponse'";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    let rows = |first: &str| {
        let row = |i: usize, value: &str| {
            format!(r#"{{"user_id": "u", "prompt": "p{i}", "r\u00e9ponse": {value}, "rejected": "bad"}}"#)
        };
        let rest: Vec<String> = (1..9).map(|i| row(i, r#""good""#)).collect();
        format!("{}\n{}", row(0, first), rest.join("\n"))
    };
    fs_err::write(&path, rows(r#""fine""#)).unwrap();
    assert_eq!(ingest(&card(layout), &path, &all()).unwrap().0[0].chosen, "fine");
    for (value, kind) in
        [(r#""good \ud83d""#, "half of a character"), ("\"one\", \"r\u{e9}ponse\": \"other\"", "a key twice")]
    {
        fs_err::write(&path, rows(value)).unwrap();
        let error = ingest(&card(layout), &path, &all()).unwrap_err().to_string();
        assert!(error.contains("row 1, column `r\u{e9}ponse`"), "{error}");
        let (votes, report) = ingest(&card(layout), &path, &dropping()).unwrap();
        assert_eq!((votes.len(), report.dropped[kind]), (8, 1));
    }
}

#[test]
fn rows_of_json_that_cannot_be_read_are_dropped_and_counted() {
    let good = |i: usize| {
        format!(r#"{{"user_id": "u", "prompt": "p{i}", "chosen": "good", "rejected": "bad", "extra": {i}}}"#)
    };
    let bad: [(&[u8], &str, &str); 7] = [
        (
            br#"{"user_id": "u", "prompt": "p", "chosen": "nice \ud83d", "rejected": "bad"}"#,
            "half of a character",
            "column `chosen`",
        ),
        (br#"{"user_id": "u", "prompt": "p", "chosen": "go"#, "no JSON object", "ends too early in `chosen`"),
        (
            b"{\"user_id\": \"u\", \"prompt\": \"caf\xe9\", \"chosen\": \"a\", \"rejected\": \"b\"}",
            "bytes that are no UTF-8",
            "column `prompt`",
        ),
        (br#"["u", "p", "good", "bad"]"#, "no JSON object", "a list"),
        (
            br#"{"user_id": "u", "user_id": "v", "prompt": "p", "chosen": "a", "rejected": "b"}"#,
            "a key twice",
            "two of `user_id`",
        ),
        (
            br#"{"user_id": "u", "prompt": "p", "chosen": {"text": "a"}, "rejected": "b"}"#,
            "a value of another type",
            "column `chosen`",
        ),
        (br#"{"user_id": NaN, "prompt": "p", "chosen": "a", "rejected": "b"}"#, "null", "column `user_id`"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    for (line, kind, found) in bad {
        for at in [3, 1500, 4998] {
            let mut lines: Vec<Vec<u8>> = (0..5000).map(|i| good(i).into_bytes()).collect();
            lines[at] = line.to_vec();
            fs_err::write(&path, lines.join(&b'\n')).unwrap();
            let error = ingest(&pairs(), &path, &all()).unwrap_err().to_string();
            assert!(error.contains(&format!("x.jsonl, row {}", at + 1)) && error.contains(found), "{kind}: {error}");
            let (votes, report) = ingest(&pairs(), &path, &dropping()).unwrap();
            assert_eq!((votes.len(), report.rows, report.dropped[kind]), (4999, 5000, 1), "{kind}");
            assert_eq!(votes[at].source_row, format!("x.jsonl:{}", at + 2), "{kind}");
        }
    }
    // The same in columns that nobody needs is no matter.
    let odd = br#"{"user_id": "u", "prompt": "p", "chosen": "a", "rejected": "b", "extra": NaN, "more": ["\ud83d", -Infinity], "more": 1}"#;
    let many = [odd.as_slice(), b"\n"].concat().repeat(3);
    assert_eq!(read("x.jsonl", &many).unwrap().1.kept, 3);
    // Nothing but bad rows, and objects over several lines.
    assert!(refusal("x.jsonl", b"{\n  \"user_id\": \"u\"\n}\n").contains("each object on a line of its own"));
    assert!(refusal("x.jsonl", b"user_id,prompt\n1,2\n").contains("row 1"));
    // An array: what is between objects ends it.
    let array = format!("[{},\n{}, 7]", good(1), good(2));
    assert!(refusal("x.json", array.as_bytes()).contains("row 3"), "{}", refusal("x.json", array.as_bytes()));
}

#[test]
fn a_number_in_json_is_never_cut() {
    // The first thousand ratings are whole; a later one is not. User ids beyond the whole numbers of a double stay apart.
    let rating = |i: usize| if i == 1500 { "2.5".to_owned() } else { (i % 2 * 5).to_string() };
    let rows: String = (0..1502)
        .map(|i| {
            format!(
                "{{\"u\": {}, \"i\": \"joke {i}\", \"r\": {}}}\n",
                if i < 1500 { 9_007_199_254_740_993_u64 } else { 9_007_199_254_740_994 },
                rating(i)
            )
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    fs_err::write(&path, rows).unwrap();
    let card = card(
        "kind = 'ratings'\nuser_id = 'u'\nitem = 'i'\nrating = 'r'\nprompt = 'rate'\nmin_gap = 2.0\npairs_per_user = 5",
    );
    let (votes, _) = ingest(&card, &path, &all()).unwrap();
    let last = votes.last().unwrap();
    assert_eq!((last.user_id.as_str(), last.margin), ("9007199254740994", Some(2.5)));
    assert_eq!(votes[0].user_id, "9007199254740993");
}

#[test]
fn dialects_of_csv_are_told_from_the_file() {
    let plain = "u,\"why, 1?\",\"she said \"\"yes\"\"\nand left\",no\nv,p,a \"b\" c,C:\\new\\\n";
    let expected = |votes: &[Vote]| {
        assert_eq!(votes[0].prompt[0].content, "why, 1?");
        assert_eq!((votes[0].chosen.as_str(), votes[0].rejected.as_str()), ("she said \"yes\"\nand left", "no"));
        assert_eq!((votes[1].chosen.as_str(), votes[1].rejected.as_str()), ("a \"b\" c", "C:\\new\\"));
    };
    let text = format!("{HEADER}{plain}");
    let utf16 = |big: bool| -> Vec<u8> {
        let units = std::iter::once(0xfeff).chain(text.encode_utf16());
        units.flat_map(|u: u16| if big { u.to_be_bytes() } else { u.to_le_bytes() }).collect()
    };
    let comma = |mark: &str| text.replace("why, 1?", "why\u{1} 1?").replace(',', mark).replace('\u{1}', ",");
    for (name, content, said) in [
        ("plain.csv", text.clone().into_bytes(), ""),
        ("bom.csv", [b"\xef\xbb\xbf", text.as_bytes()].concat(), ""),
        ("utf16.csv", utf16(false), ""),
        ("utf16be.csv", utf16(true), ""),
        ("semicolon.csv", comma(";").into_bytes(), "semicolons"),
        ("tab.csv", comma("\t").into_bytes(), "tabs"),
        ("tab.tsv", comma("\t").into_bytes(), ""),
        ("comma.tsv", text.clone().into_bytes(), "commas"),
        ("sep.csv", format!("sep=;\r\n{}", comma(";")).into_bytes(), "semicolons"),
        ("crlf.csv", text.replace("rejected\n", "rejected\r\n").replace(",no\n", ",no\r\n").into_bytes(), ""),
        (
            "cr.csv",
            text.replace("rejected\n", "rejected\r")
                .replace(",no\n", ",no\r")
                .replace("new\\\n", "new\\\r")
                .into_bytes(),
            "",
        ),
        (
            "unnamed.csv",
            text.replace("user_id", ",user_id").replace("\nu,", "\n0,u,").replace("\nv,", "\n1,v,").into_bytes(),
            "",
        ),
    ] {
        let (votes, report) = read(name, &content).unwrap_or_else(|e| panic!("{name}: {e}"));
        expected(&votes);
        assert_eq!(report.remarks.len(), usize::from(!said.is_empty()), "{name}: {:?}", report.remarks);
        assert!(report.remarks.concat().contains(said), "{name}: {:?}", report.remarks);
    }
}

#[test]
fn quotes_written_with_a_backslash_are_read_or_refused() {
    let text = format!(
        "{HEADER}u,\"p, 1\",\"he said \\\"hi\\\" and \\\\left\",no\nv,p2,\"a \\\"b\\\", c\",\"C:\\\\dir\\\\\"\n"
    );
    let (votes, report) = read("x.csv", text.as_bytes()).unwrap();
    assert_eq!(votes[0].chosen, "he said \"hi\" and \\left");
    assert_eq!((votes[1].chosen.as_str(), votes[1].rejected.as_str()), ("a \"b\", c", "C:\\dir\\"));
    assert!(report.remarks.concat().contains("written as \\\""), "{:?}", report.remarks);
    // A text that ends in a backslash, where quotes are doubled.
    let text = format!("{HEADER}u,\"p, \"\"1\"\"\",\"C:\\\",no\n");
    let (votes, report) = read("x.csv", text.as_bytes()).unwrap();
    assert_eq!((votes[0].prompt[0].content.as_str(), votes[0].chosen.as_str()), ("p, \"1\"", "C:\\"));
    assert!(report.remarks.is_empty());
    for (row, found) in [
        ("u,p,\"a \"\"b\"\" \\\"c\\\" d\",no", "after a closing quote"), // both ways in one text
        ("u,p,\"a \\\"b\\\" line\\nbreak\",no", "after a closing quote"), // MySQL's \n, or a backslash and an n
        ("u,p,\"a \\\"b\\\" c\",C:\\\\dir", "mean differently"),         // one backslash or two
        ("u,p,\"a\" b,no", "after a closing quote"),
        ("u,p,\"never closed,no", "never closed"),
    ] {
        let error = refusal("x.csv", format!("{HEADER}{row}\n").as_bytes());
        assert!(error.contains(found) && error.contains("x.csv"), "{row}: {error}");
    }
}

#[test]
fn wrong_rows_of_csv_are_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.csv");
    for (row, kind, place) in [
        (b"u,p,only three".as_slice(), "a row with another number of fields", "row 1501"),
        (b"u,p,a,b,five", "a row with another number of fields", "row 1501"),
        (b"u,caf\xe9,a,b", "bytes that are no UTF-8", "row 1501, column `prompt`"),
    ] {
        let mut rows: Vec<Vec<u8>> = (0..3000).map(|i| format!("u,p{i},good,bad").into_bytes()).collect();
        rows[1500] = row.to_vec();
        fs_err::write(&path, [HEADER.as_bytes(), &rows.join(&b'\n')].concat()).unwrap();
        let error = ingest(&pairs(), &path, &all()).unwrap_err();
        assert!(error.to_string().contains(place), "{error}");
        assert!(kind != "bytes that are no UTF-8" || error.hint().unwrap().contains("WINDOWS-1252"));
        let (votes, report) = ingest(&pairs(), &path, &dropping()).unwrap();
        assert_eq!((votes.len(), report.rows, report.dropped[kind]), (2999, 3000, 1));
        assert_eq!(votes[1500].source_row, "x.csv:1502");
    }
    let error = refusal("x.csv", &HEADER.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    assert!(error.contains("zero bytes") && error.contains("UTF-16"), "{error}");
    assert!(refusal("x.csv", b"user_id,prompt,chosen,chosen,rejected\nu,p,a,b,c\n").contains("one column `chosen`"));
    let error = refusal("x.csv", b"user_id,pr\xe9mpt,chosen,rejected\nu,p,a,b\n");
    assert!(error.contains("header") && error.contains("WINDOWS-1252"), "{error}");
}

#[test]
fn quotes_that_would_be_read_as_parts_of_texts_are_told_or_refused() {
    let table = |odd: &str, odds: usize, plain: usize| {
        let plain = (0..plain).map(|i| format!("u,why {i}?,\" \"\"good\"\"\",bad\n")).collect::<String>();
        format!("{HEADER}{}{plain}", format!("{odd}\n").repeat(odds))
    };
    for (odd, called) in [
        ("u, \"what is 0?\", \"it is \"\"0\"\" ok\", \"no 0\"", "double quotes after a space"),
        ("'u','what is 0?','it is 0','no 0'", "single quotes"),
    ] {
        let error = refusal("x.csv", table(odd, 6, 4).as_bytes());
        assert!(error.contains(called) && error.contains("6 rows") && error.contains("without a space"), "{error}");
        let (votes, report) = read("x.csv", table(odd, 4, 6).as_bytes()).unwrap();
        assert_eq!((votes.len(), votes[9].chosen.as_str()), (10, " \"good\""));
        assert!(report.remarks.concat().contains(&format!("texts are in {called}")), "{:?}", report.remarks);
    }
    // Quotes inside a text that is quoted as it should be, or within a text, are the writer's.
    let (_, report) = read("x.csv", table("u,it's 'so',\"'good'\",say \"yes\"", 6, 6).as_bytes()).unwrap();
    assert!(!report.remarks.concat().contains("parts of the texts"), "{:?}", report.remarks);
}

/// A field as Python's `csv.writer` writes it: quotes where they are needed.
fn field(text: &str, backslash: bool, always: bool) -> String {
    let needed =
        always || text.is_empty() || text.contains([',', '"', '\n', '\r']) || (backslash && text.contains('\\'));
    match (needed, backslash) {
        (false, _) => text.to_owned(),
        (true, false) => format!("\"{}\"", text.replace('"', "\"\"")),
        (true, true) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// What was written is read, or the file is refused: no text is changed without a word.
    #[test]
    fn csv_texts_are_the_writers_or_refused(
        rows in prop::collection::vec(prop::array::uniform2("[ab,\";\\\\\n\r\t\u{e9}\\|]{1,6}"), 1..6),
        backslash: bool,
        always: bool,
        crlf: bool,
    ) {
        let end = if crlf { "\r\n" } else { "\n" };
        let lines: Vec<String> = rows
            .iter()
            .enumerate()
            .map(|(i, [a, b])| [&format!("u{i}"), "p", &format!("x{a}"), &format!("y{b}")].map(|t| field(t, backslash, always)).join(","))
            .collect();
        let text = format!("{}{end}{}{end}", HEADER.trim(), lines.join(end));
        // Without an escaped quote nothing says that two backslashes are meant as one: they are read as they stand.
        prop_assume!(!backslash || text.contains("\\\"") || !text.contains("\\\\"));
        match read("x.csv", text.as_bytes()) {
            Ok((votes, _)) => {
                let read: Vec<(String, String)> = votes.into_iter().map(|v| (v.chosen, v.rejected)).collect();
                let written: Vec<(String, String)> = rows.iter().map(|[a, b]| (format!("x{a}"), format!("y{b}"))).collect();
                prop_assert_eq!(read, written, "{:?}", text);
            }
            Err(error) => prop_assert!(backslash || text.contains("\\\""), "{error}: {text:?}"),
        }
    }
}

#[test]
fn messages_written_as_text_are_messages() {
    let json = |role: &str, text: &str| serde_json::json!([{"role": role, "content": text}]).to_string();
    let python = |role: &str, text: &str| format!("[{{'role': '{role}', 'content': \"{text}\", 'n': None}}]");
    let numpy = |role: &str, text: &str| {
        format!("[{{'content': 'a', 'role': 'user'}}\n {{'content': '{text}', 'role': '{role}'}}]")
    };
    let table = |say: &dyn Fn(&str, &str) -> String, rows: usize, last: &str| {
        let row = |prompt: String, chosen: &str, rejected: &str| {
            [prompt.as_str(), chosen, rejected].map(|t| field(t, false, true)).join(",")
        };
        let mut text = HEADER.to_owned();
        for i in 0..rows {
            text += &format!(
                "u,{}\n",
                row(say("user", &format!("q{i}")), &say("assistant", "it's"), &say("assistant", "no"))
            );
        }
        text + last
    };
    for (say, messages, said) in
        [(&json as &dyn Fn(&str, &str) -> String, 1, "written as JSON"), (&python, 1, "as Python prints them")]
    {
        let (votes, report) = read("x.csv", table(say, 40, "").as_bytes()).unwrap();
        assert_eq!(
            (votes[7].prompt.len(), votes[7].prompt[0].content.as_str(), votes[7].chosen.as_str()),
            (messages, "q7", "it's")
        );
        let all = report.remarks.join("\n");
        assert!(all.contains(&format!("40 texts of `prompt` are messages {said}")), "{all}");
    }
    // NumPy's lists without commas: a prompt of two messages.
    let text = table(&numpy, 40, "").replace("it's", "its");
    let card = card("kind = 'pairs'\nuser_id = 'user_id'");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.csv");
    fs_err::write(&path, text.replace(",prompt", ",other")).unwrap();
    let (votes, _) = ingest(&card, &path, &all()).unwrap();
    assert_eq!((votes[0].prompt[0].content.as_str(), votes[0].chosen.as_str()), ("a", "its"));

    // A plain text among them is a bad row; one such prompt among plain texts stays what it is, many are refused.
    fs_err::write(&path, table(&json, 40, "u,plain words,a,b\n")).unwrap();
    let error = ingest(&pairs(), &path, &all()).unwrap_err().to_string();
    assert!(error.contains("row 41, column `prompt`") && error.contains("`plain words`"), "{error}");
    let (_, report) = ingest(&pairs(), &path, &dropping()).unwrap();
    assert_eq!(report.dropped["plain text among messages written as text"], 1);
    let odd = format!("u,{},good,bad\n", field(&json("user", "one"), false, true));
    let plain = |n: usize| (0..n).map(|i| format!("u,why {i}?,good,bad\n")).collect::<String>();
    let (votes, report) = read("x.csv", format!("{HEADER}{}{odd}", plain(40)).as_bytes()).unwrap();
    assert_eq!(votes[40].prompt[0].content, json("user", "one"));
    assert!(report.remarks.concat().contains("1 texts of `prompt` look like messages"), "{:?}", report.remarks);
    let error = refusal("x.csv", format!("{HEADER}{}{}", plain(40), odd.repeat(20)).as_bytes());
    assert!(error.contains("column `prompt`, rows x.csv:1 and x.csv:41"), "{error}");
}

fn found(path: &Path, card: &Card) -> Vec<(String, usize, String)> {
    let folder = path.parent().unwrap();
    let check = data::check(card, &[path.display().to_string()], &data::CheckOptions::default(), folder).unwrap();
    check.findings.into_iter().map(|f| (f.kind, f.count, f.first.join(" "))).collect()
}

#[test]
fn a_check_finds_text_that_is_written_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.csv");
    let printed = "\"array([{'content': 'a', 'role': 'assistant'}], dtype=object)\"";
    fs_err::write(
        &path,
        format!("{HEADER}u,p1,is &lt;b&gt; &amp;quot;so&amp;quot;,R&D\nu,p2,{printed},b\nu,p3,a,\nu,p4\n"),
    )
    .unwrap();
    let found = found(&path, &pairs());
    let has = |kind: &str, rows: &str| found.iter().any(|(k, n, first)| k == kind && *n == 1 && first == rows);
    assert!(has("HTML-escaped text", "x.csv:1"), "{found:?}");
    assert!(has("messages written as text", "x.csv:2"), "{found:?}");
    assert!(has("a row with another number of fields", "x.csv:4"), "{found:?}");
}

fn with_column(name: &str, values: &[&str], kind: &str) -> (tempfile::TempDir, std::path::PathBuf, Card) {
    let rows: String = values.iter().enumerate().map(|(i, v)| format!("u,p{i},good {i},bad,{v}\n")).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.csv");
    fs_err::write(&path, format!("{},{name}\n{rows}", HEADER.trim())).unwrap();
    let card = card(&format!("kind = 'pairs'\nuser_id = 'user_id'\nprompt = 'prompt'\n[columns]\n{kind} = '{name}'"));
    (dir, path, card)
}

#[test]
fn times_are_told_by_size_for_the_whole_column() {
    let second = 1_772_452_800_i64; // 2026-03-02T12:00:00Z
    for (values, said) in [
        (["1772452800", "1772452801"], "seconds since 1970"),
        (["1772452800.0", "1772452801.0"], "seconds since 1970"),
        (["1772452800000", "1772452801000"], "milliseconds since 1970"),
        (["1772452800000000", "1772452801000000"], "microseconds since 1970"),
        (["1772452800000000000", "1.772452801e18"], "nanoseconds since 1970"),
        (["2026-03-02T12:00:00Z", "2026-03-02 14:00:01+02:00"], ""),
    ] {
        let (_dir, path, card) = with_column("at", &[values[0], values[1], ""], "timestamp");
        let (votes, report) = ingest(&card, &path, &all()).unwrap_or_else(|e| panic!("{values:?}: {e}"));
        let times: Vec<Option<i64>> = votes.iter().map(|v| v.timestamp).collect();
        assert_eq!(times, [Some(second * 1_000_000), Some((second + 1) * 1_000_000), None], "{values:?}");
        assert!(report.remarks.concat().contains(said), "{values:?}: {:?}", report.remarks);
    }
    // Two units in one column.
    for other in ["1772452800000", "2026-03-02"] {
        let (_dir, path, card) = with_column("at", &["1772452800", other], "timestamp");
        let error = ingest(&card, &path, &all()).unwrap_err().to_string();
        assert!(error.contains("column `at`, rows x.csv:") && error.contains("times in several units"), "{error}");
        let found = found(&path, &card);
        assert!(found.iter().any(|(kind, _, _)| kind == "times in several units: column `at`"), "{found:?}");
    }
    // What is no moment is a bad row.
    for wrong in ["0", "-1772452800", "2026", "20260302", "99999999999", "inf", "yesterday", "2026-02-30", "02/03/2026"]
    {
        let (_dir, path, card) = with_column("at", &["1772452800", wrong], "timestamp");
        let error = ingest(&card, &path, &all()).unwrap_err().to_string();
        assert!(error.contains("row 2, column `at`") && error.contains(wrong), "{wrong}: {error}");
        let (votes, report) = ingest(&card, &path, &dropping()).unwrap();
        assert_eq!((votes.len(), report.dropped["unusable time"]), (1, 1), "{wrong}");
    }
}

#[test]
fn numbers_written_as_text_are_checked_for_sense() {
    let (_dir, path, card) = with_column("w", &["0.5", " 2 ", "1e3"], "weight");
    let (votes, _) = ingest(&card, &path, &all()).unwrap();
    assert_eq!(votes.iter().map(|v| v.weight).collect::<Vec<_>>(), [0.5, 2.0, 1000.0]);
    for kind in ["weight", "margin"] {
        for wrong in ["1e300", "1e39", "-1", "inf", "NaN", "1e12", "1,5", "much", ""] {
            let (_dir, path, card) = with_column("w", &["1", &field(wrong, false, true)], kind);
            let error = ingest(&card, &path, &all()).unwrap_err().to_string();
            assert!(error.contains("row 2, column `w`"), "{wrong}: {error}");
        }
    }
}

#[test]
fn a_value_that_is_neither_true_nor_false_is_a_bad_row() {
    let row = |i: usize, ended: &str| format!("u,p{i},good,bad,{ended},true\n");
    let text: String = (0..20).map(|i| row(i, if i == 7 { "maybe" } else { "True" })).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.csv");
    fs_err::write(&path, format!("{},one,other\n{text}", HEADER.trim())).unwrap();
    let card = card("kind = 'pairs'\nuser_id = 'user_id'\nprompt = 'prompt'\n[columns]\nfinished = ['one', 'other']");
    let error = ingest(&card, &path, &all()).unwrap_err().to_string();
    assert!(error.contains("row 8, column `one`") && error.contains("`maybe`"), "{error}");
    let (votes, report) = ingest(&card, &path, &dropping()).unwrap();
    assert_eq!((votes.len(), report.dropped["neither true nor false"]), (19, 1));
}

#[test]
fn labels_may_be_true_and_false_or_real_numbers() {
    let layout = |a: &str, b: &str| {
        card(&format!(
            "kind = 'votes'\nuser_id = 'u'\nprompt = 'q'\nresponse_a = 'a'\nresponse_b = 'b'\nlabel = 'l'\n\
             label_a = '{a}'\nlabel_b = '{b}'\nlabel_tie = 'tie'"
        ))
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    for (labels, a, b) in [(["true", "false"], "true", "false"), (["1.5", "2.0"], "1.5", "2")] {
        let row = |(i, l): (usize, &&str)| format!(r#"{{"u":"u","q":"q{i}","a":"left","b":"right","l":{l}}}"#) + "\n";
        fs_err::write(&path, labels.iter().enumerate().map(row).collect::<String>()).unwrap();
        let (votes, _) = ingest(&layout(a, b), &path, &all()).unwrap();
        assert_eq!(votes.iter().map(|v| v.chosen.as_str()).collect::<Vec<_>>(), ["left", "right"]);
    }
}
