//! Files of a model folder whose values were changed.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use text::{Ending, Message, Tokenizer, Vocabulary};

/// A model folder's tokenizer with this template: single letters.
pub(crate) fn tokenizer(folder: &Path, template: &str) -> problem::Result<Tokenizer> {
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    tokens.extend((33u8..127).map(|b| char::from(b).to_string()));
    tokens.extend(["Ġ", "Ċ"].map(String::from));
    let mut types = vec![1; tokens.len()];
    types[..3].fill(3);
    let vocabulary = Vocabulary {
        tokens,
        merges: vec![],
        types,
        pre: "gpt-2".into(),
        bos_id: Some(1),
        eos_id: 2,
        unk_id: Some(0),
        pad_id: Some(2),
        chat_template: template.into(),
        context_length: 64,
    };
    vocabulary.write(folder)?;
    Tokenizer::from_folder(folder)
}

/// Values that a field may be given.
fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(1),
            json!(5),
            json!(i64::MAX),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(1u64 << 32),
            json!(1e300),
            json!(0.5),
            json!(""),
            json!("x"),
            json!("\u{fdd0}"),
            json!("("),
            json!([]),
            json!({}),
            json!([1, "a", null]),
            json!([["a", "b"], ["h", "e"], ["x"]]),
            json!({"content": 5}),
            json!({"type": "ByteLevel"}),
            json!({"type": "Sequence", "pretokenizers": []}),
            json!({"type": "Split", "pattern": {"Regex": "(((a*)*)*)*b"}, "behavior": "Removed", "invert": false}),
            json!({"max_length": 1, "strategy": "LongestFirst", "stride": 7, "direction": "Right"}),
            json!({"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}),
            json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}),
            json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]], "byte_fallback": false}),
            json!({"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "", "max_input_chars_per_word": 0, "vocab": {}}),
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "xx"}),
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            json!({"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}),
            json!({"type": "RobertaProcessing", "sep": ["x", 9], "cls": ["y", 8], "trim_offsets": true, "add_prefix_space": true}),
            json!({"type": "Strip", "content": "a", "start": 9, "stop": 9}),
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
        ]),
        any::<i64>().prop_map(|n| json!(n)),
        "[ -~]{0,6}".prop_map(|t| json!(t)),
    ]
}

/// Changes the value at a path that `steps` choose: another value, none, or a new key.
fn change(value: &mut Value, steps: &[u16], odd: &Value) {
    let (step, rest) = match steps {
        [step, rest @ ..] => (*step as usize, rest),
        [] => return *value = odd.clone(),
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(step % map.len()).unwrap().clone();
            match rest {
                [remove] if remove % 4 == 0 => _ = map.remove(&key),
                _ => change(&mut map[&key], rest, odd),
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let index = step % items.len();
            change(&mut items[index], rest, odd);
        }
        _ => *value = odd.clone(),
    }
}

const FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_values_in_a_model_folder_end_in_a_tokenizer_or_a_message(
        file in prop::sample::select(FILES.to_vec()),
        changes in prop::collection::vec((prop::collection::vec(any::<u16>(), 0..4), odd()), 1..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        tokenizer(folder.path(), "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
        fs_err::write(folder.path().join("generation_config.json"), "{\"eos_token_id\": [2, 3]}").unwrap();
        let path = folder.path().join(file);
        let mut value: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        for (steps, odd) in &changes {
            change(&mut value, steps, odd);
        }
        fs_err::write(&path, value.to_string()).unwrap();
        let read = problem::unless_it_panics(|| Tokenizer::from_folder(folder.path()));
        let Some(read) = read else { panic!("a panic got out") };
        if let Err(error) = &read {
            prop_assert_eq!(error.kind(), problem::Kind::User, "{}", error);
        }
        if let Ok(tokenizer) = read {
            let conversation = [Message::user("hello there, 12é\u{1F600}\n")];
            let row = tokenizer.row(&conversation, "he said", Ending::Finished);
            _ = tokenizer.prompt(&conversation);
            _ = tokenizer.encode("");
            if let Ok(row) = row {
                prop_assert!(row.answer_start <= row.ids.len());
                _ = tokenizer.decode(&row.ids);
                _ = tokenizer.decode_all(&row.ids);
            }
            _ = (tokenizer.largest_id(), tokenizer.end_id(), tokenizer.stop_ids());
        }
    }
}

#[test]
fn a_tokenizer_that_its_library_panics_on_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    tokenizer(folder.path(), "{{ messages[0].content }}").unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut value: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    value["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": 5});
    fs_err::write(&path, value.to_string()).unwrap();
    let message = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json: expected a tokenizer of the `tokenizers` library"), "{message}");
}

#[test]
fn a_vocabulary_whose_parts_do_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = || Vocabulary {
        tokens: ["a", "b", "c"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        types: vec![1, 1, 3],
        pre: "gpt-2".into(),
        bos_id: None,
        eos_id: 2,
        unk_id: None,
        pad_id: None,
        chat_template: String::new(),
        context_length: 8,
    };
    let refused = |vocabulary: Vocabulary, said: &str| {
        let message = vocabulary.write(folder.path()).unwrap_err().to_string();
        assert!(message.contains(said), "{message}");
    };
    refused(Vocabulary { types: vec![1, 1], ..good() }, "a type for every token, found 2 types of 3 tokens");
    refused(Vocabulary { eos_id: 3, ..good() }, "the id of the eos token to be one of 3, found 3");
    refused(Vocabulary { bos_id: Some(9), ..good() }, "the id of the bos token");
    refused(Vocabulary { merges: vec!["ab".into()], ..good() }, "merges of two tokens, found `ab`");
    refused(Vocabulary { tokens: ["a", "a", "c"].map(String::from).to_vec(), ..good() }, "distinct tokens");
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
}
