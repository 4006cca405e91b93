//! Every layout on a file with the published schema, nested columns included.

use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema_from_iterator;
use data::{Card, Selection, Vote};
use serde_json::{Value, json};

use crate::common::{all, card, ingest, write_batch};

/// The card in `datasets/`.
fn shipped(name: &str) -> Card {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Card::read(&root.join("datasets").join(name).join("card.toml")).unwrap()
}

/// Rows as a Parquet file with the nested types that the JSON has, and as JSON lines: both must give the same votes.
fn votes_of(card: &Card, rows: &[Value], selection: &Selection) -> Vec<Vote> {
    let dir = tempfile::tempdir().unwrap();
    let schema = infer_json_schema_from_iterator(rows.iter().map(|r| Ok(r.clone()))).unwrap();
    let schema = Arc::new(Schema::new(schema.fields().clone()));
    let mut decoder = ReaderBuilder::new(schema).build_decoder().unwrap();
    decoder.serialize(rows).unwrap();
    let parquet = dir.path().join("rows.parquet");
    write_batch(&parquet, &decoder.flush().unwrap().unwrap());
    let lines = dir.path().join("rows.jsonl");
    fs_err::write(&lines, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    let array = dir.path().join("rows.json");
    fs_err::write(&array, serde_json::to_string_pretty(rows).unwrap()).unwrap();
    let read = |path: &std::path::Path| -> Vec<Vote> {
        let (mut votes, report) = ingest(card, path, selection).unwrap();
        assert_eq!(report.dropped.values().sum::<usize>() + report.kept, report.votes);
        votes.iter_mut().for_each(|v| v.source_row = v.source_row.split(':').next_back().unwrap().to_owned());
        votes
    };
    let votes = read(&parquet);
    assert_eq!(votes, read(&lines));
    assert_eq!(votes, read(&array));
    votes
}

/// user, last message of the prompt, chosen, rejected
fn brief(votes: &[Vote]) -> Vec<(&str, &str, &str, &str)> {
    votes
        .iter()
        .map(|v| {
            (v.user_id.as_str(), v.prompt.last().unwrap().content.as_str(), v.chosen.as_str(), v.rejected.as_str())
        })
        .collect()
}

#[test]
fn tldr() {
    let row = |worker: &str, choice: i64| {
        json!({
            "info": {"id": "t3_x", "post": "my post", "title": "a title", "subreddit": "dogs", "site": null, "article": null},
            "split": "train",
            "summaries": [{"text": "one", "policy": "sup1", "note": null}, {"text": "two", "policy": "ref", "note": "n"}],
            "choice": choice, "worker": worker, "batch": "b7", "extra": {"confidence": 7}
        })
    };
    let news = json!({
        "info": {"id": "c", "post": null, "title": "news", "subreddit": null, "site": "cnn", "article": "text"},
        "split": "train", "summaries": [{"text": "x", "policy": "p", "note": null}, {"text": "y", "policy": "p", "note": null}],
        "choice": 0, "worker": "w1", "batch": "b", "extra": {"confidence": null}
    });
    let votes = votes_of(&shipped("tldr"), &[row("w1", 0), row("w2", 1), news], &all());
    let prompt = "SUBREDDIT: r/dogs\nTITLE: a title\nPOST: my post\nTL;DR:";
    assert_eq!(
        brief(&votes),
        [
            ("w1", prompt, "one", "two"),
            ("w2", prompt, "two", "one"),
            ("w1", "TITLE: news\nARTICLE: text\nTL;DR:", "x", "y")
        ]
    );
    assert_eq!(votes[1].chosen_first, Some(false));
}

#[test]
fn prism() {
    let said = |turn: i64, role: &str, content: &str, score: Value, chosen: Value, within: Value| {
        json!({"turn": turn, "role": role, "content": content, "model_name": "m", "model_provider": "p", "score": score,
               "if_chosen": chosen, "within_turn_id": within})
    };
    let row = json!({
        "conversation_id": "c1", "user_id": "user3", "conversation_type": "unguided", "opening_prompt": "hi",
        "conversation_turns": 2, "generated_datetime": "2023-11-22 15:48:18",
        "conversation_history": [
            said(0, "user", "hi", Value::Null, Value::Null, Value::Null),
            said(0, "model", "hello", json!(90), json!(true), json!(0)),
            said(0, "model", "go away", json!(5), json!(false), json!(1)),
            said(0, "model", "hello?", json!(90), json!(false), json!(2)),
            said(1, "user", "and?", Value::Null, Value::Null, Value::Null),
            said(1, "model", "more", json!(40), json!(false), json!(0)),
            said(1, "model", "better", json!(60), json!(true), json!(1)),
        ],
        "performance_attributes": {"values": 50}
    });
    let votes = votes_of(&shipped("prism"), &[row], &all());
    assert_eq!(
        brief(&votes),
        [
            ("user3", "hi", "hello", "go away"),
            ("user3", "hi", "hello", "hello?"),
            ("user3", "hi", "hello?", "go away"),
            ("user3", "and?", "better", "more")
        ]
    );
    assert_eq!(votes.iter().map(|v| v.tie).collect::<Vec<_>>(), [false, true, false, false]);
    assert_eq!(votes.iter().map(|v| v.weight).collect::<Vec<_>>(), [0.5, 0.5, 0.5, 1.0]);
    assert_eq!((votes[0].margin, votes[1].margin), (Some(85.0), None));
    // What the user went on with is part of the next turn's prompt.
    let turns: Vec<&str> = votes[3].prompt.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(turns, ["hi", "hello", "and?"]);
}

#[test]
fn helpsteer2() {
    let row = |prompt: &str, response: &str, scores: [i64; 5]| {
        let [helpfulness, correctness, coherence, complexity, verbosity] = scores;
        json!({"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": correctness,
               "coherence": coherence, "complexity": complexity, "verbosity": verbosity})
    };
    let rows = [
        row("p", "one", [4, 3, 2, 2, 1]),
        row("p", "two", [3, 4, 2, 2, 1]),
        row("q", "x", [0; 5]),
        row("q", "y", [4; 5]),
    ];
    let votes = votes_of(&shipped("helpsteer2"), &rows, &all());
    assert_eq!(votes.len(), 10);
    let of = |user: &str, prompt: &str| {
        let vote = votes.iter().find(|v| v.user_id == user && v.prompt[0].content == prompt).unwrap();
        vote.chosen.clone()
    };
    assert_eq!([of("helpfulness", "p"), of("correctness", "p")], ["one", "two"]);
    assert!(["helpfulness", "correctness", "coherence", "complexity", "verbosity"].iter().all(|u| of(u, "q") == "y"));
    assert!(votes.iter().all(|v| !v.tie), "noise decides");
    // A prompt alone is an error that names the row.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    fs_err::write(&path, rows[..3].iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    let error = ingest(&shipped("helpsteer2"), &path, &all()).unwrap_err().to_string();
    assert!(error.contains("x.jsonl, row 3"), "{error}");
    assert!(error.contains("the end of the file"), "{error}");
}

#[test]
fn ultrafeedback() {
    let completion = |response: &str, ratings: [&str; 4]| {
        let [a, b, c, d] = ratings.map(|r| json!({"Rating": r, "Rationale": "because"}));
        json!({"model": "m", "principle": "helpfulness", "custom_system_prompt": "", "response": response, "critique": "c",
               "overall_score": 7.5, "fine-grained_score": 4.0,
               "annotations": {"helpfulness": a, "honesty": b, "instruction_following": c, "truthfulness": d}})
    };
    let row = json!({
        "source": "evol", "instruction": "do it", "models": ["m", "m", "m"],
        "completions": [completion("one", ["5", "1", "3", "N/A"]), completion("two", ["4", "2", "3", "4"]), completion("three", ["1", "3", "N/A", "5"])],
        "correct_answers": ["None"], "incorrect_answers": ["None"]
    });
    let votes = votes_of(&shipped("ultrafeedback"), &[row], &all());
    let of = |user: &str| {
        votes
            .iter()
            .filter(|v| v.user_id == user)
            .map(|v| (v.chosen.as_str(), v.rejected.as_str(), v.weight))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("helpfulness"), [("one", "two", 0.5), ("one", "three", 0.5), ("two", "three", 0.5)]);
    assert_eq!(of("honesty"), [("two", "one", 0.5), ("three", "one", 0.5), ("three", "two", 0.5)]);
    assert_eq!(of("instruction_following"), [("one", "two", 1.0)]); // a tie; N/A is no rating
    assert_eq!(of("truthfulness"), [("three", "two", 1.0)]);
    assert_eq!(votes.iter().filter(|v| v.tie).count(), 1);
}

#[test]
fn ultrafeedback_binarized_and_other_messages() {
    let message = |role: &str, content: &str| json!({"content": content, "role": role});
    let row = json!({
        "prompt": "why?", "prompt_id": "x",
        "chosen": [message("user", "why?"), message("assistant", "so")], "rejected": [message("user", "why?"), message("assistant", "no")],
        "messages": [message("user", "why?")], "score_chosen": 8.0, "score_rejected": 6.5
    });
    assert_eq!(
        brief(&votes_of(&shipped("ultrafeedback-binarized"), std::slice::from_ref(&row), &all())),
        [("everyone", "why?", "so", "no")]
    );
    // The same without a prompt column: the shared beginning is the prompt.
    let implicit = card("kind = 'pairs'").with_one_user("everyone").unwrap();
    assert_eq!(brief(&votes_of(&implicit, &[row], &all())), [("everyone", "why?", "so", "no")]);
    // Prompt and answers as lists of messages, a user's id under another name.
    let explicit = json!({"worker": 7, "prompt": [message("system", "be brief"), message("user", "why?")],
                          "chosen": [message("assistant", "so")], "rejected": [message("assistant", "no")]});
    let named = card("kind = 'pairs'\nuser_id = 'worker'\nprompt = 'prompt'");
    let votes = votes_of(&named, &[explicit], &all());
    assert_eq!((brief(&votes), votes[0].prompt[0].role.as_str()), (vec![("7", "why?", "so", "no")], "system"));
    // Plain texts.
    let plain = json!({"worker": "w", "prompt": "why?", "chosen": "so", "rejected": "no"});
    assert_eq!(brief(&votes_of(&named, &[plain], &all())), [("w", "why?", "so", "no")]);
}

#[test]
fn hh_rlhf() {
    let row = json!({"chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant: so",
                     "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant: no"});
    let votes = votes_of(&shipped("hh-rlhf"), &[row], &all());
    assert_eq!((brief(&votes), votes[0].prompt.len()), (vec![("everyone", "how?", "so", "no")], 3));
}

#[test]
fn arena() {
    let talk = |answer: &str| json!([{"content": "q", "role": "user"}, {"content": answer, "role": "assistant"}]);
    let row = |winner: &str| {
        json!({"question_id": "x", "model_a": "m", "model_b": "n", "winner": winner, "judge": "arena_user_9", "turn": 1,
               "conversation_a": talk("one"), "conversation_b": talk("two"), "anony": true, "language": "English",
               "tstamp": 1_682_351_591.25})
    };
    let votes = votes_of(&shipped("arena"), &[row("model_a"), row("model_b"), row("tie (bothbad)")], &all());
    assert_eq!(
        brief(&votes),
        [("arena_user_9", "q", "one", "two"), ("arena_user_9", "q", "two", "one"), ("arena_user_9", "q", "one", "two")]
    );
    assert!(votes[2].tie);
    assert_eq!(votes[0].timestamp, Some(1_682_351_591_250_000));
}

#[test]
fn personalllm() {
    let row = json!({"prompt": "p", "subset": "s", "prompt_id": 3, "response_1": "a", "response_2": "b", "response_3": "c",
                     "response_1_gemma_2b": 0.5, "response_2_gemma_2b": -1.0, "response_3_gemma_2b": 2.0,
                     "response_1_oasst_pythia_7b": 3.0, "response_2_oasst_pythia_7b": 2.0, "response_3_oasst_pythia_7b": 1.0});
    let votes = votes_of(&shipped("personalllm"), &[row], &all());
    assert_eq!(
        brief(&votes),
        [
            ("gemma_2b", "p", "a", "b"),
            ("gemma_2b", "p", "c", "a"),
            ("gemma_2b", "p", "c", "b"),
            ("oasst_pythia_7b", "p", "a", "b"),
            ("oasst_pythia_7b", "p", "a", "c"),
            ("oasst_pythia_7b", "p", "b", "c")
        ]
    );
}

#[test]
fn multipref() {
    let judged = |who: &str, pref: &str| json!({"evaluator": who, "overall_pref": pref, "overall_confidence": "fairly", "time_spent": 3});
    let row = json!({"comparison_id": "c", "prompt_id": "p", "text": "q", "model_a": "m", "model_b": "n",
                     "completion_a": "one", "completion_b": "two",
                     "normal_worker_annotations": [judged("n1", "A-is-clearly-better"), judged("n2", "Tie")],
                     "expert_worker_annotations": [judged("e1", "B-is-slightly-better")]});
    let votes = votes_of(&shipped("multipref"), &[row], &all());
    assert_eq!(brief(&votes), [("n1", "q", "one", "two"), ("n2", "q", "one", "two"), ("e1", "q", "two", "one")]);
    assert_eq!(votes.iter().map(|v| v.margin).collect::<Vec<_>>(), [Some(2.0), None, Some(1.0)]);
}

#[test]
fn ratings() {
    let row = |user: i64, joke: &str, rating: f64| json!({"user_id": user, "joke": joke, "rating": rating});
    let rows = [row(1, "a", 9.0), row(1, "b", -3.0), row(1, "c", 8.0), row(2, "a", 0.0), row(2, "c", 5.0)];
    let votes = votes_of(&shipped("jester"), &rows, &all());
    let mut found = brief(&votes);
    found.sort_unstable();
    let joke = "Tell me a joke.";
    assert_eq!(found, [("1", joke, "a", "b"), ("1", joke, "c", "b"), ("2", joke, "c", "a")]);
    // An item counts once however many it is compared with: b has two pairs, a and c one each.
    let first: Vec<f32> = votes.iter().filter(|v| v.user_id == "1").map(|v| v.weight).collect();
    assert_eq!(first, [0.75, 0.75]);
    let apart = [row(1, "a", 9.0), row(2, "b", -3.0), row(1, "c", 8.0)];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    fs_err::write(&path, apart.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    let error = ingest(&shipped("jester"), &path, &all()).unwrap_err().to_string();
    assert!(error.contains("more rows of `1` behind another user's"), "{error}");
}

#[test]
fn rankings_give_every_two_with_weights() {
    let ranked = card(
        "kind = 'rankings'\nuser_id = 'who'\nprompt = 'q'\nresponses = 'answers'\nscores = 'rank'\nhigher_is_better = false",
    );
    let row = json!({"who": "u", "q": "p", "answers": ["a", "b", "c"], "rank": [2, 1, 2]});
    let votes = votes_of(&ranked, &[row], &all());
    assert_eq!(brief(&votes), [("u", "p", "b", "a"), ("u", "p", "a", "c"), ("u", "p", "b", "c")]);
    assert_eq!(votes.iter().map(|v| (v.tie, v.weight)).collect::<Vec<_>>(), [(false, 0.5), (true, 0.5), (false, 0.5)]);
}

#[test]
fn llama_factory() {
    let alpaca = card("kind = 'alpaca'").with_one_user("everyone").unwrap();
    let rows = [
        json!({"instruction": "add", "input": "1 2", "chosen": "3", "rejected": "4"}),
        json!({"instruction": "sing", "input": "", "chosen": "la", "rejected": "no"}),
    ];
    assert_eq!(
        brief(&votes_of(&alpaca, &rows, &all())),
        [("everyone", "add\n1 2", "3", "4"), ("everyone", "sing", "la", "no")]
    );
    let sharegpt = card("kind = 'sharegpt'").with_one_user("everyone").unwrap();
    let row = json!({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes?"}, {"from": "human", "value": "sing"}],
                     "chosen": {"from": "gpt", "value": "la"}, "rejected": {"from": "gpt", "value": "no"}});
    let votes = votes_of(&sharegpt, &[row], &all());
    assert_eq!(brief(&votes), [("everyone", "sing", "la", "no")]);
    assert_eq!(votes[0].prompt.iter().map(|m| m.role.as_str()).collect::<Vec<_>>(), ["user", "assistant", "user"]);
}

#[test]
fn common_shapes_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    let kind = |row: Value| {
        fs_err::write(&path, format!("{row}\n")).unwrap();
        data::recognise(&[path.display().to_string()]).map(|(_, why)| why)
    };
    let why = kind(json!({"worker": "w", "prompt": "p", "response_a": "a", "response_b": "b", "label": "a"})).unwrap();
    assert!(why.contains("kind = \"votes\""), "{why}");
    assert!(why.contains("user_id = \"worker\""), "{why}");
    assert!(kind(json!({"chosen": "a", "rejected": "b", "prompt": "p"})).unwrap().contains("kind = \"pairs\""));
    assert!(kind(json!({"text": "a"})).unwrap_err().to_string().contains("columns of a common shape, found text"));
}
