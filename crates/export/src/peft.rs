//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::num::NonZero;
use std::path::Path;

use lm::{Bank, Blocks, InitBound, InitUsers, Lm, LoraConfig, Targets, UserFactors, UserIndex};
use problem::{Result, invalid};
use serde_json::{Value, json};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

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
fn list_name(path: &str) -> &str {
    let parts: Vec<&str> = path.split('.').collect();
    parts.windows(2).find(|w| w[1].parse::<usize>().is_ok()).map_or("layers", |w| w[0])
}

/// Reads a PEFT LoRA folder as a bank of one user. What this code would not compute is refused: DoRA, biases, trained
/// embeddings, ranks that differ by layer.
pub fn read_adapter(folder: &Path, lm: &Lm) -> Result<Bank> {
    let path = folder.join(CONFIG);
    let value: Value = run::read_json(&path)?;
    let refuse = |field: &str, expected: &str| {
        let found = value[field].to_string();
        invalid(format!("{}, `{field}`", path.display()), expected, found, "this kind of adapter is not supported")
    };
    if value["peft_type"] != "LORA" {
        return Err(refuse("peft_type", "`LORA`"));
    }
    for field in ["use_dora", "lora_bias"] {
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

    let weights = folder.join(WEIGHTS);
    let mut tensors = lm::read_tensors(&weights, lm.device, Some(tch::Kind::Float))?;
    let name = |path: &str, role: &str| format!("{PREFIX}{path}.lora_{role}.weight");
    let adapted: Vec<&lm::Layer> =
        lm.layers().iter().filter(|l| tensors.by_name.contains_key(&name(&l.path, "A"))).collect();
    let Some(from) = adapted.iter().map(|l| l.block).min() else {
        return Err(invalid(
            weights.display(),
            "LoRA factors of this base's layers",
            "none",
            "write the adapter again",
        ));
    };
    let mut targets: Vec<String> = adapted.iter().map(|l| l.name().to_owned()).collect();
    targets.sort();
    targets.dedup();
    let lora = LoraConfig {
        rank,
        alpha,
        use_rslora: value["use_rslora"] == true,
        dropout: 0.0,
        targets: Targets::Names(targets),
        blocks: Blocks::Range { from, to: lm.depth() },
        init_bound: InitBound::default(),
        init_users: InitUsers::default(),
    };
    let bank = Bank::single(lora, lm, |path| {
        let down = tensors.by_name.remove(&name(path, "A"))?;
        Some((down, tensors.by_name.remove(&name(path, "B"))?))
    });
    let bank =
        bank.map_err(|e| invalid(weights.display(), "an adapter of this base", e.to_string(), "write it again"))?;
    tensors.refuse_rest()?;
    Ok(bank)
}
