//! Model folders of any content end in a tokenizer or a message, soon, and without a panic.

#![expect(clippy::unwrap_used, reason = "a failure in a test may panic")]

mod folders;
mod templates;
