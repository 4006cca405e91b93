//! The base model with its tokenizer, checked against each other.

use std::path::Path;

use device::Compute;
use lm::Lm;
use problem::{Result, invalid};
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
    lm::recognise(folder)?;
    let tokenizer = tokenizer(folder)?;
    let config = lm::ModelConfig::read(folder)?.shape;
    let tokenizer = tokenizer.with_embeddings(config.vocab_size)?;
    let lm = Lm::load(folder, compute)?;
    let tokenizer = tokenizer.with_context(Some(lm.context()));
    Ok((lm, tokenizer))
}

/// Loads a folder and scores a few tokens once: what an import calls done computes finite numbers.
pub(crate) fn try_out(folder: &Path, compute: &Compute) -> Result<Lm> {
    let (lm, tokenizer) = load(folder, compute)?;
    let mut ids = tokenizer.encode("What should I cook for a friend who is coming to dinner tonight?")?;
    ids.truncate(lm.context());
    if ids.is_empty() {
        let hint = "tokenizer.json must be the one that belongs to the model";
        return Err(invalid(
            folder.display(),
            "a tokenizer that makes tokens of a sentence",
            "one that makes none",
            hint,
        ));
    }
    let logits = lm::full_logits(&lm, &ids, None);
    if logits.isfinite().all().int64_value(&[]) == 0 {
        let hint =
            "the weights do not belong to this config.json, or the model needs more than the type's range: try float32";
        let found = format!("others, computed in {}", compute.dtype());
        return Err(invalid(folder.display(), "a model whose logits are finite numbers", found, hint));
    }
    Ok(lm)
}
