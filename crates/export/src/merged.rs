//! Merged Hugging Face folders: the adapter added into the base's weights in float32, cast once.

use std::path::Path;

use lm::{Bank, Lm, Tensor, UserIndex};
use problem::{Result, bug};
use tch::{Device, Kind};

/// Writes `user`'s merged model, with every file of the base's folder that belongs to it: tokenizer, templates, licence and notices. `lm`
/// must hold the base in float32.
pub fn write_merged(folder: &Path, base: &Path, lm: &Lm, bank: &Bank, user: UserIndex) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    let mut weights = lm::read_folder(base, Device::Cpu, Kind::Float)?.by_name;
    for (name, merged) in bank.merged(lm, user) {
        // A checkpoint may have been saved without the base model's prefix.
        let short = name.split_once('.').map_or("", |(_, rest)| rest);
        let stored = if weights.contains_key(&name) { name.as_str() } else { short };
        let place = weights
            .get_mut(stored)
            .ok_or_else(|| bug(base.display(), format!("the tensor `{name}`"), "none of that name"))?;
        *place = merged.to_device(Device::Cpu);
    }
    let weights: Vec<(String, Tensor)> = weights.into_iter().collect();
    lm::write_tensors(&folder.join("model.safetensors"), &weights, Some(("format", "pt".into())))?;
    lm::copy_companions(base, folder)?;
    Ok(())
}
