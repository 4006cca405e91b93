//! Model folders of any content end in a tokenizer or a message, soon, and without a panic.

mod folders;
mod templates;
