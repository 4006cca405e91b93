//! A chat template of any text: a conversation ends in a text or a message, soon, and never in a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use text::{Message, NaiveDate};

fn look_at(input: &[u8]) {
    let Ok(source) = std::str::from_utf8(input) else { return };
    let date = NaiveDate::from_ymd_opt(2026, 3, 5);
    let Ok(template) = text::ChatTemplate::new(source, "<s>", "</s>", date) else { return };
    let conversation =
        [Message::system("Be kind."), Message::user("Hello."), Message::assistant("Hi."), Message::user("é?")];
    match template.render(&conversation) {
        Ok(text) => assert_eq!(template.render(&conversation).expect("as before"), text),
        Err(error) => assert_eq!(error.kind(), problem::Kind::User, "{error}"),
    }
}

fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |input: &[u8]| fuzz_targets::abort_on_panic(|| look_at(input)));
