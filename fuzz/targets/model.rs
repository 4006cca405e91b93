//! The files of a model folder with any values: they end in a model, a tokenizer or a message, never in a panic.
//!
//! Input: config.json, tokenizer.json and tokenizer_config.json, parted by lines `---`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fn look_at(input: &[u8]) {
    let Ok(input) = std::str::from_utf8(input) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json"];
    for (name, text) in names.into_iter().zip(input.split("\n---\n")) {
        std::fs::write(folder.path().join(name), text).expect("space");
    }
    _ = lm::ModelConfig::read(folder.path());
    if let Ok(tokenizer) = text::Tokenizer::from_folder(folder.path()) {
        let conversation = [text::Message::user("hello there, 12é\n")];
        if let Ok(row) = tokenizer.row(&conversation, "he said", text::Ending::Finished) {
            assert!(row.answer_start <= row.ids.len());
            _ = tokenizer.decode(&row.ids);
        }
    }
}

fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |input: &[u8]| fuzz_targets::abort_on_panic(|| look_at(input)));
