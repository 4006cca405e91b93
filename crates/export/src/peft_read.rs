//! A PEFT LoRA folder, whoever wrote it, as a bank of one user.

use std::num::NonZero;
use std::path::Path;

use lm::{Bank, Blocks, InitBound, InitUsers, Layer, Lm, LoraConfig, Targets, Tensor};
use problem::{Result, invalid};
use tch::Kind;

use crate::peft::{PREFIX, WEIGHTS};
use crate::peft_config::PeftConfig;

/// Reads a PEFT LoRA folder as a bank of one user: the layers that its configuration chooses, each with its own rank and alpha. What this
/// code would not compute (DoRA, biases, trained embeddings, beginnings that change the base, ...) is refused by the key's name, and so are
/// factors of layers that the configuration does not choose.
///
/// # Errors
/// The user's: such a key, missing, misshapen, left-over or infinite factors.
pub fn read_adapter(folder: &Path, lm: &Lm) -> Result<Bank> {
    lm::refuse_pointers(folder)?;
    let config = PeftConfig::read(folder)?;
    let chosen = config.layers(lm)?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() {
        let hint = "load the adapter with Python's peft and save it again: save_pretrained writes safetensors";
        return Err(invalid(folder.display(), WEIGHTS, "none of that name", hint));
    }
    let mut tensors = lm::read_tensors(&weights, lm.device, Some(Kind::Float))?;
    for (name, tensor) in &tensors.by_name {
        if tensor.isfinite().all().int64_value(&[]) == 0 {
            let place = format!("{}, tensor `{name}`", weights.display());
            return Err(invalid(
                place,
                "finite numbers",
                "others",
                "the adapter's training diverged: take another one",
            ));
        }
    }
    let mut of_layer = Vec::with_capacity(chosen.len());
    for layer in &chosen {
        of_layer.push(config.of_layer(layer)?);
    }
    let rank = of_layer.iter().map(|(rank, _)| *rank).max().unwrap_or(1);
    // With one rank and alpha for all layers the factors stay as they are. Otherwise the narrower ones get zeros, and each layer's scale is
    // a part of its `up`.
    let patterns = config.has_patterns();
    let alpha = if patterns { rank as f64 } else { of_layer[0].1 };
    let mut targets: Vec<String> = chosen.iter().map(|l| l.name().to_owned()).collect();
    targets.sort();
    targets.dedup();
    let lora = LoraConfig {
        rank: NonZero::new(rank).expect("ranks are positive"),
        alpha,
        use_rslora: config.use_rslora && !patterns,
        dropout: 0.0,
        targets: Targets::Names(targets),
        blocks: Blocks::Range { from: chosen.iter().map(|l| l.block).min().unwrap_or(0), to: lm.depth() },
        init_bound: InitBound::default(),
        init_users: InitUsers::default(),
    };
    let layer_of = |path: &str| lm.layers().iter().find(|l| l.path == path);
    let bank = Bank::single(lora, lm, |path| {
        let Some(n) = chosen.iter().position(|l| l.path == path) else {
            // A layer between others that the adapter is not on.
            return layer_of(path).map(|layer| zeros(layer, rank, lm));
        };
        let down = tensors.by_name.remove(&format!("{PREFIX}{path}.lora_A.weight"))?;
        let up = tensors.by_name.remove(&format!("{PREFIX}{path}.lora_B.weight"))?;
        let (own, alpha) = of_layer[n];
        let as_wide = down.size().first() == Some(&(own as i64)) && up.size().last() == Some(&(own as i64));
        if !patterns || !as_wide {
            return Some((down, up));
        }
        let up = up * config.scale(own, alpha);
        let more = (rank - own) as i64;
        Some((down.constant_pad_nd([0, 0, 0, more]), up.constant_pad_nd([0, more])))
    });
    let bank =
        bank.map_err(|e| invalid(weights.display(), "an adapter of this base", e.to_string(), "write it again"))?;
    if !tensors.by_name.is_empty() {
        let names: Vec<&str> = tensors.by_name.keys().map(String::as_str).collect();
        let expected =
            "only factors of layers that `target_modules`, `exclude_modules` and `layers_to_transform` choose";
        let hint = "adapter_config.json and the weights must belong together";
        return Err(invalid(weights.display(), expected, format!("also {}", names.join(", ")), hint));
    }
    Ok(bank)
}

/// Factors that change nothing.
fn zeros(layer: &Layer, rank: usize, lm: &Lm) -> (Tensor, Tensor) {
    let (input, output) = layer.shape();
    let of = |size: [i64; 2]| Tensor::zeros(size, (Kind::Float, lm.device));
    (of([rank as i64, input]), of([output, rank as i64]))
}
