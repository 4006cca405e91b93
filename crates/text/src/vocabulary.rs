//! From a GGUF file's vocabulary to the files that transformers and `tokenizers` read.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;

use problem::{Result, bug, invalid};
use serde_json::{Map, Value, json};

/// A byte-level BPE vocabulary as a GGUF file stores it (`tokenizer.ggml.*`, model `gpt2`).
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Token texts; the index is the id.
    pub tokens: Vec<String>,
    /// `left right`, by rank.
    pub merges: Vec<String>,
    /// GGUF's token types: 1 normal, 3 control, 4 user-defined.
    pub types: Vec<i64>,
    /// Name of the pre-tokenizer (`tokenizer.ggml.pre`).
    pub pre: String,
    /// Beginning of sequence.
    pub bos_id: Option<usize>,
    /// End of turn.
    pub eos_id: usize,
    /// Unknown.
    pub unk_id: Option<usize>,
    /// Padding.
    pub pad_id: Option<usize>,
    /// Jinja text of the chat template.
    pub chat_template: String,
    /// The model's context length in tokens.
    pub context_length: usize,
}

impl Vocabulary {
    /// Do its parts belong together? `place` is for messages.
    ///
    /// # Errors
    /// Types or ids without a token, tokens that are equal, a merge of other than two tokens.
    pub fn check(&self, place: &impl Display) -> Result<()> {
        let wrong = |expected: &str, found: String| {
            invalid(place, expected, found, "the vocabulary is damaged: import or download the model again")
        };
        let tokens = self.tokens.len();
        if self.types.len() != tokens {
            return Err(wrong("a type for every token", format!("{} types of {tokens} tokens", self.types.len())));
        }
        let distinct = self.tokens.iter().collect::<HashSet<_>>().len();
        if distinct != tokens {
            return Err(wrong("distinct tokens", format!("{tokens} tokens of which {distinct} differ")));
        }
        let ids =
            [("bos", self.bos_id), ("eos", Some(self.eos_id)), ("unknown", self.unk_id), ("padding", self.pad_id)];
        for (name, id) in ids {
            if let Some(id) = id.filter(|id| *id >= tokens) {
                let expected = format!("the id of the {name} token to be one of {tokens}");
                return Err(wrong(&expected, id.to_string()));
            }
        }
        match self.merges.iter().find(|merge| merge.split(' ').count() != 2) {
            Some(merge) => {
                Err(wrong("merges of two tokens", format!("`{}`", merge.chars().take(80).collect::<String>())))
            }
            None => Ok(()),
        }
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// A pre-tokenizer other than `smollm` or `gpt-2` is refused: a wrong split would silently change every id.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.check(&folder.display())?;
        let pre_tokenizer = self.pre_tokenizer()?;
        let vocab: Map<String, Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let added = |id: usize, special: bool| {
            json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        };
        let added_tokens: Vec<Value> = (0..self.tokens.len())
            .filter(|id| matches!(self.types[*id], 3 | 4))
            .map(|id| added(id, self.types[id] == 3))
            .collect();
        let merges: Vec<Value> = self.merges.iter().map(|m| json!(m.split(' ').collect::<Vec<_>>())).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens, "normalizer": null,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": self.unk_id.map(|id| &self.tokens[id]),
                      "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                      "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges},
        });
        let mut special = Map::new();
        for (name, id) in [
            ("bos_token", self.bos_id),
            ("eos_token", Some(self.eos_id)),
            ("unk_token", self.unk_id),
            ("pad_token", self.pad_id),
        ] {
            if let Some(id) = id {
                special.insert(name.into(), json!(self.tokens[id]));
            }
        }
        let mut config = special.clone();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("model_max_length".into(), json!(self.context_length));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        let write = |name: &str, value: &Value| -> Result<()> {
            let text = serde_json::to_string_pretty(value).map_err(|e| {
                bug(folder.join(name).display(), "a tokenizer that can be written as JSON", e.to_string())
            })?;
            Ok(fs_err::write(folder.join(name), text + "\n")?)
        };
        write("tokenizer.json", &tokenizer)?;
        write("tokenizer_config.json", &Value::Object(config))?;
        write("special_tokens_map.json", &Value::Object(special))?;
        fs_err::write(folder.join("chat_template.jinja"), &self.chat_template)?;
        Ok(())
    }

    fn pre_tokenizer(&self) -> Result<Value> {
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        match self.pre.as_str() {
            "gpt-2" => Ok(byte_level),
            // llama.cpp's `smollm`: single digits are split off before the GPT-2 pattern.
            "smollm" => Ok(json!({"type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level]})),
            other => Err(invalid(
                "tokenizer.ggml.pre",
                "`smollm` or `gpt-2`",
                format!("`{other}`"),
                "import the model from its Hugging Face folder instead",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ending, Message, Tokenizer};

    fn tiny(pre: &str) -> Vocabulary {
        // Bytes of printable ASCII as single tokens, two merges, three control tokens.
        let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
        tokens.extend((33u8..127).map(|b| char::from(b).to_string()));
        tokens.extend(["Ġ", "Ċ", "12", "he"].map(String::from));
        let mut types = vec![1; tokens.len()];
        types[..3].fill(3);
        Vocabulary {
            tokens,
            merges: vec!["1 2".into(), "h e".into()],
            types,
            pre: pre.into(),
            bos_id: Some(1),
            eos_id: 2,
            unk_id: Some(0),
            pad_id: Some(2),
            chat_template:
                "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}\
                            {% endfor %}{{ '<|im_start|>assistant\n' }}"
                    .into(),
            context_length: 64,
        }
    }

    fn load(pre: &str) -> (tempfile::TempDir, Tokenizer) {
        let folder = tempfile::tempdir().unwrap();
        tiny(pre).write(folder.path()).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        (folder, tokenizer)
    }

    #[test]
    fn smollm_isolates_digits_and_gpt2_does_not() {
        let (_a, smollm) = load("smollm");
        let (_b, gpt2) = load("gpt-2");
        assert_eq!(smollm.encode("12").unwrap().len(), 2);
        assert_eq!(gpt2.encode("12").unwrap().len(), 1);
    }

    #[test]
    fn an_unknown_pre_tokenizer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(tiny("llama-bpe").write(folder.path()).unwrap_err().to_string().contains("llama-bpe"));
    }

    #[test]
    fn the_answer_starts_right_behind_the_prompt_and_ends_with_eos_if_finished() {
        let (_folder, tokenizer) = load("smollm");
        let messages = [Message::user("hi")];
        let prompt = tokenizer.prompt(&messages).unwrap();
        let row = tokenizer.row(&messages, "he", Ending::Finished).unwrap();
        assert_eq!(row.ids[..row.answer_start], prompt[..]);
        assert_eq!(row.ids[row.answer_start..].len(), 2); // `he`, end of turn
        assert_eq!(row.ids.last(), Some(&2));
        assert!(!row.straddles);
        let cut = tokenizer.row(&messages, "he", Ending::Cut).unwrap();
        assert_eq!(cut.ids[..], row.ids[..row.ids.len() - 1]);
        assert_eq!(tokenizer.decode(&row.ids[row.answer_start..]).unwrap(), "he");
        let error = tokenizer.row(&messages, "", Ending::Cut).unwrap_err().to_string();
        assert!(error.contains("an answer is empty"), "{error}");
    }

    #[test]
    fn a_token_across_the_boundary_belongs_to_the_answer_and_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut vocabulary = tiny("gpt-2");
        vocabulary.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}".into(); // nothing between prompt and answer
        vocabulary.write(folder.path()).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let row = tokenizer.row(&[Message::user("xh")], "ey", Ending::Cut).unwrap(); // x|he|y
        assert_eq!((row.ids.len(), row.answer_start, row.straddles), (3, 1, true));
    }

    #[test]
    fn two_leading_bos_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut vocabulary = tiny("gpt-2");
        vocabulary.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}".into();
        vocabulary.write(folder.path()).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let error = tokenizer.prompt(&[Message::user("x")]).unwrap_err().to_string();
        assert!(error.contains("`<s>` twice") || error.contains("twice"), "{error}");
    }
}
