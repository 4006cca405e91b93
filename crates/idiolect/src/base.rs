//! The base model with its tokenizer, checked against each other.

use std::path::Path;

use device::Compute;
use lm::Lm;
use problem::{Result, mistake};
use text::Tokenizer;

/// Loads a folder strictly. A tokenizer that can yield an id without an embedding is refused.
pub(crate) fn load(folder: &Path, compute: &Compute) -> Result<(Lm, Tokenizer)> {
    let tokenizer = Tokenizer::from_folder(folder)?;
    let config = lm::ModelConfig::read(folder)?.shape;
    if tokenizer.largest_id() >= config.vocab_size {
        return Err(mistake(
            format!(
                "{}: expected token ids below `vocab_size` {}, found a tokenizer that yields {}",
                folder.display(),
                config.vocab_size,
                tokenizer.largest_id()
            ),
            "tokenizer.json and config.json must belong to the same model",
        ));
    }
    Ok((Lm::load(folder, compute)?, tokenizer))
}
