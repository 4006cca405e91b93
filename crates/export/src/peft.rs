//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::num::NonZero;
use std::path::Path;

use lm::{Bank, LlamaConfig, LoraConfig, Projection, invalid};
use serde_json::{Value, json};

use crate::Result;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// Writes one user's adapter. `base` is what PEFT is to find under `base_model_name_or_path`.
pub fn write_adapter(folder: &Path, bank: &Bank, user: usize, base: &str, card: &str) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    let LoraConfig { rank, alpha, targets, last_blocks: _ } = &bank.config().lora;
    let factors = bank.of_user(user);
    let mut blocks: Vec<usize> = factors.iter().map(|(block, ..)| *block).collect();
    blocks.dedup();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": null,
        "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0,
        "target_modules": targets.iter().map(|t| t.name()).collect::<Vec<_>>(),
        "layers_to_transform": blocks, "layers_pattern": "layers",
        "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "use_rslora": false, "use_dora": false,
        "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": true,
    });
    let mut tensors = Vec::new();
    for (block, projection, down, up) in factors {
        let path = projection.path(block);
        tensors.push((format!("{PREFIX}{path}.lora_A.weight"), down));
        tensors.push((format!("{PREFIX}{path}.lora_B.weight"), up));
    }
    lm::write_tensors(&folder.join(WEIGHTS), &tensors, Some(("format", "pt".into())))?;
    run::write_json(&folder.join(CONFIG), &config)?;
    run::write_atomic(&folder.join("README.md"), card.as_bytes())?;
    Ok(())
}

/// Reads a PEFT LoRA folder as a bank of one user. What this code would not compute is refused: DoRA, biases, trained
/// embeddings, ranks that differ by layer.
pub fn read_adapter(folder: &Path, config: &LlamaConfig, device: tch::Device) -> Result<Bank> {
    let path = folder.join(CONFIG);
    let value: Value = run::read_json(&path)?;
    let refuse = |field: &str, expected: &str| {
        let found = value[field].to_string();
        invalid(format!("{}, `{field}`", path.display()), expected, found, "this kind of adapter is not supported")
    };
    if value["peft_type"] != "LORA" {
        return Err(refuse("peft_type", "`LORA`"));
    }
    for field in ["use_dora", "use_rslora", "fan_in_fan_out", "lora_bias"] {
        if value[field] == true {
            return Err(refuse(field, "false"));
        }
    }
    for field in ["modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices"] {
        let empty = |v: &Value| {
            v.is_null()
                || v.as_array().is_some_and(Vec::is_empty)
                || v.as_object().is_some_and(serde_json::Map::is_empty)
        };
        if !empty(&value[field]) {
            return Err(refuse(field, "nothing"));
        }
    }
    let rank =
        value["r"].as_u64().and_then(|r| NonZero::new(r as usize)).ok_or_else(|| refuse("r", "a positive rank"))?;
    let alpha = value["lora_alpha"].as_f64().ok_or_else(|| refuse("lora_alpha", "a number"))?;

    let mut tensors = lm::read_tensors(&folder.join(WEIGHTS), device, Some(tch::Kind::Float))?;
    let all = [
        Projection::Q,
        Projection::K,
        Projection::V,
        Projection::O,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];
    let mut factors = Vec::new();
    for block in 0..config.num_hidden_layers {
        for projection in all {
            let path = projection.path(block);
            let (a, b) = (format!("{PREFIX}{path}.lora_A.weight"), format!("{PREFIX}{path}.lora_B.weight"));
            let Some(down) = tensors.by_name.remove(&a) else { continue };
            let up = tensors.by_name.remove(&b).ok_or_else(|| {
                invalid(
                    folder.join(WEIGHTS).display(),
                    format!("the tensor `{b}`"),
                    "none of that name",
                    "write the adapter again",
                )
            })?;
            let (input, output) = projection.shape(config);
            let rank = rank.get() as i64;
            if down.size() != [rank, input] || up.size() != [output, rank] {
                return Err(invalid(
                    format!("{}, `{path}`", folder.join(WEIGHTS).display()),
                    format!("[{rank}, {input}] and [{output}, {rank}]"),
                    format!("{:?} and {:?}", down.size(), up.size()),
                    "the adapter belongs to another base",
                ));
            }
            factors.push((block, projection, down, up));
        }
    }
    tensors.refuse_rest()?;
    let Some(first_block) = factors.iter().map(|(block, ..)| *block).min() else {
        return Err(invalid(folder.join(WEIGHTS).display(), "LoRA factors", "none", "write the adapter again"));
    };
    let mut targets: Vec<Projection> = factors.iter().map(|(_, projection, ..)| *projection).collect();
    targets.sort();
    targets.dedup();
    let last_blocks = NonZero::new(config.num_hidden_layers - first_block).expect("a block below the depth");
    Ok(Bank::single(LoraConfig { rank, alpha, targets, last_blocks }, first_block, factors))
}
