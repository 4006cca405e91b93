//! Token ids and rows equal those of transformers, for each family that the README names: see `tests/golden/rows.py`.

#![expect(clippy::unwrap_used, reason = "a failure in a test may panic")]

use std::path::{Path, PathBuf};

use serde::Deserialize;
use text::{Ending, Message, Tokenizer};

#[derive(Deserialize)]
struct Family {
    name: String,
    files: serde_json::Map<String, serde_json::Value>,
    texts: Vec<String>,
    ids: Vec<Vec<i64>>,
    rows: Vec<Conversation>,
    /// The token that ends a turn.
    end: Option<i64>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    response: String,
    /// None where the template refuses the conversation, or loses a part of it.
    row: Option<Rows>,
}

#[derive(Deserialize)]
struct Rows {
    prompt: Vec<i64>,
    finished: Row,
    cut: Row,
}

#[derive(Deserialize)]
struct Row {
    ids: Vec<i64>,
    start: usize,
}

fn families() -> Vec<Family> {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let folder = std::env::var_os("IDIOLECT_GOLDEN").map_or_else(here, PathBuf::from);
    serde_json::from_slice(&fs_err::read(folder.join("rows.json")).unwrap()).unwrap()
}

fn tokenizer(family: &Family) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in &family.files {
        fs_err::write(folder.path().join(name), value.to_string()).unwrap();
    }
    Tokenizer::from_folder(folder.path()).unwrap()
}

#[test]
fn token_ids_of_odd_texts_equal_transformers() {
    let families = families();
    assert!(families.len() >= 12);
    for family in families {
        let tokenizer = tokenizer(&family);
        for (text, ids) in family.texts.iter().zip(&family.ids) {
            assert_eq!(tokenizer.encode(text).unwrap(), *ids, "{}: {text:?}", family.name);
        }
    }
}

#[test]
fn rows_are_what_transformers_renders_up_to_the_end_of_the_turn() {
    let mut refused = 0;
    for family in families() {
        let tokenizer = tokenizer(&family);
        if let Some(end) = family.end {
            assert_eq!(tokenizer.end_id(), end, "{}", family.name);
            assert!(tokenizer.stop_ids().contains(&end), "{}", family.name);
        }
        for Conversation { messages, response, row } in &family.rows {
            let at = format!("{}: {messages:?} {response:?}", family.name);
            let Some(golden) = row else {
                refused += 1;
                assert!(tokenizer.row(messages, response, Ending::Finished).is_err(), "{at}");
                continue;
            };
            assert_eq!(tokenizer.prompt(messages).unwrap(), golden.prompt, "{at}");
            for (ending, golden) in [(Ending::Finished, &golden.finished), (Ending::Cut, &golden.cut)] {
                let ours = tokenizer.row(messages, response, ending).unwrap();
                assert_eq!((ours.ids, ours.answer_start), (golden.ids.clone(), golden.start), "{at}, {ending:?}");
            }
        }
    }
    assert!(refused >= 4, "some templates refuse some conversations");
}

#[test]
fn a_token_without_an_embedding_is_refused_where_a_text_has_it() {
    let families = families();
    let family = families.iter().find(|f| f.name == "SmolLM2").unwrap();
    let largest = tokenizer(family).largest_id(); // the last of the special tokens, which come after the vocabulary
    let whole = tokenizer(family).with_embeddings(largest + 1).unwrap();
    assert_eq!(whole.encode("a <|im_end|>").unwrap().last(), Some(&largest));
    let short = tokenizer(family).with_embeddings(largest).unwrap();
    assert_eq!(short.encode("plain").unwrap(), whole.encode("plain").unwrap());
    let error = short.encode("a <|im_end|>").unwrap_err().to_string();
    assert!(error.contains("tokens that the model has embeddings for, found `<|im_end|>`"), "{error}");
    let error = tokenizer(family).with_embeddings(200).unwrap_err().to_string();
    assert!(error.contains("token ids below `vocab_size` 200"), "{error}");
}
