//! A random Llama of a few thousand numbers, for the example and for the crate's own tests.

use std::path::Path;

use device::Compute;
use lm::{Lm, Tensor};
use problem::Result;
use rand::{Rng, SeedableRng};

/// Tokens of its vocabulary.
pub(crate) const VOCABULARY: i64 = 32;

/// Writes its `config.json` and weights into `folder`, and loads them: one thread, float32.
pub(crate) fn model(folder: &Path) -> Result<Lm> {
    let (hidden, inner, blocks) = (16, 24, 2);
    let config = serde_json::json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": blocks,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0});
    run::write_json(&folder.join("config.json"), &config)?;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    let mut push = |name: String, shape: &[i64], scale: f32, shift: f64| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_: i64| rng.random_range(-scale..scale)).collect();
        tensors.push((name, Tensor::from_slice(&values).view(shape) + shift));
    };
    push("model.embed_tokens.weight".into(), &[VOCABULARY, hidden], 0.3, 0.0);
    push("model.norm.weight".into(), &[hidden], 0.1, 1.0);
    for block in 0..blocks {
        let name = |layer: &str| format!("model.layers.{block}.{layer}.weight");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            push(name(norm), &[hidden], 0.1, 1.0);
        }
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            push(name(&format!("self_attn.{projection}")), &[hidden, hidden], 0.3, 0.0);
        }
        push(name("mlp.gate_proj"), &[inner, hidden], 0.3, 0.0);
        push(name("mlp.up_proj"), &[inner, hidden], 0.3, 0.0);
        push(name("mlp.down_proj"), &[hidden, inner], 0.3, 0.0);
    }
    lm::write_tensors(&folder.join("model.safetensors"), &tensors, None)?;
    Lm::load(folder, &Compute::new("cpu", "float32", Some(1))?)
}
