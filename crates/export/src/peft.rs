//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;

use lm::{Bank, Lm, UserFactors, UserIndex};
use problem::Result;
use serde_json::json;

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";
pub(crate) const PREFIX: &str = "base_model.model.";

/// Writes one user's adapter. `base` is what PEFT is to find under `base_model_name_or_path`.
pub fn write_adapter(folder: &Path, lm: &Lm, bank: &Bank, user: UserIndex, base: &str, card: &str) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    let lora = &bank.config().lora;
    let factors = bank.of_user(user);
    let layers: Vec<&lm::Layer> = factors.iter().map(|f| &lm.layers()[f.layer]).collect();
    let (mut blocks, mut targets): (Vec<usize>, Vec<&str>) = layers.iter().map(|l| (l.block, l.name())).unzip();
    blocks.sort_unstable();
    blocks.dedup();
    targets.sort_unstable();
    targets.dedup();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": null,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": targets,
        "layers_to_transform": blocks, "layers_pattern": layers.first().map(|l| list_name(&l.path)),
        "bias": "none", "fan_in_fan_out": layers.iter().any(|l| l.transposed), "inference_mode": true,
        "use_rslora": lora.use_rslora, "use_dora": false,
        "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": true,
    });
    let mut tensors = Vec::new();
    for UserFactors { layer: _, path, down, up } in factors {
        tensors.push((format!("{PREFIX}{path}.lora_A.weight"), down));
        tensors.push((format!("{PREFIX}{path}.lora_B.weight"), up));
    }
    lm::write_tensors(&folder.join(WEIGHTS), &tensors, Some(("format", "pt".into())))?;
    run::write_json(&folder.join(CONFIG), &config)?;
    run::write_atomic(&folder.join("README.md"), card.as_bytes())?;
    Ok(())
}

/// What the list of blocks is called: the part of a path in front of the block's number.
pub(crate) fn list_name(path: &str) -> &str {
    let parts: Vec<&str> = path.split('.').collect();
    parts.windows(2).find(|w| w[1].parse::<usize>().is_ok()).map_or("layers", |w| w[0])
}
