//! The base model with its tokenizer, checked against each other.

use std::path::Path;

use device::Compute;
use lm::Lm;
use problem::{Result, invalid, mistake};
use text::Tokenizer;

/// The file that keeps the date which a folder's chat template reads: the same whenever the folder is used.
pub(crate) const TEMPLATE_DATE: &str = "chat_template_date.txt";

/// A folder's tokenizer. A chat template that reads the date is given the one that the folder keeps, if it keeps one.
pub(crate) fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_folder(folder)?;
    let file = folder.join(TEMPLATE_DATE);
    if !tokenizer.reads_the_date() || !file.exists() {
        return Ok(tokenizer);
    }
    let text = fs_err::read_to_string(&file)?;
    let date = text.trim().parse().map_err(|_| {
        let hint = "remove the file for today's date";
        invalid(file.display(), "a date such as 2026-11-28", format!("`{}`", text.trim()), hint)
    })?;
    tokenizer.with_date(date)
}

/// Keeps the date that a folder's chat template reads, unless it is kept already or the template reads none.
pub(crate) fn keep_date(folder: &Path) -> Result<()> {
    let (tokenizer, file) = (Tokenizer::from_folder(folder)?, folder.join(TEMPLATE_DATE));
    match tokenizer.date() {
        Some(date) if !file.exists() => {
            tracing::info!("the chat template reads the date: {date} is kept for all stages");
            run::write_atomic(&file, format!("{date}\n").as_bytes())
        }
        _ => Ok(()),
    }
}

/// Loads a folder strictly. A tokenizer that can yield an id without an embedding is refused.
pub(crate) fn load(folder: &Path, compute: &Compute) -> Result<(Lm, Tokenizer)> {
    let tokenizer = tokenizer(folder)?;
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
