//! `idiolect score`: a model's own numbers, to be held against another program's.

use std::path::PathBuf;

use clap::Args;
use device::Checked;
use problem::Result;
use serde_json::json;

use crate::compute::ComputeArgs;
use crate::{base, table};

/// Arguments of `idiolect score`.
#[derive(Args)]
pub(crate) struct ScoreArgs {
    /// A Hugging Face folder
    #[arg(long)]
    model: PathBuf,
    /// A PEFT LoRA folder on that model
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The text, tokenised as it is (no chat template)
    #[arg(long)]
    prompt: String,
    /// Write the logits of the whole prompt here, as .npy
    #[arg(long)]
    dump: Option<PathBuf>,
    /// Continue with so many likeliest tokens
    #[arg(long, default_value_t = 32)]
    greedy: usize,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl ScoreArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        score(self)
    }
}

fn score(args: &ScoreArgs) -> Result<()> {
    let ScoreArgs { model, adapter, prompt, dump, greedy, compute } = args;
    let compute = compute.resolve()?;
    let (lm, tokenizer) = base::load(model, &compute)?;
    let bank = adapter.as_ref().map(|folder| export::read_adapter(folder, &lm)).transpose()?;
    let ids = tokenizer.encode(prompt)?;
    if ids.is_empty() {
        return Err(problem::mistake("--prompt: expected at least one token, found none", "write some words"));
    }
    lm.refuse_longer(ids.len(), "--prompt")?;
    lm.refuse_longer(ids.len() + greedy, &format!("--greedy, {greedy} tokens after the {} of the prompt", ids.len()))
        .map_err(|e| e.with_hint("lower --greedy, or shorten --prompt"))?;
    let logits = lm::full_logits(&lm, &ids, bank.as_ref().map(|b| (b, lm::Place(0)))); // [T, V]
    if let Some(path) = dump {
        logits.write_npy(path).checked().map_err(|e| e.within(path.display()))?;
    }
    let (values, indices) = logits.get(-1).topk(8, -1, true, true);
    let (values, indices) = (Vec::<f32>::try_from(values).checked()?, Vec::<i64>::try_from(indices).checked()?);
    let sampling = lm::Sampling::greedy(*greedy, tokenizer.stop_ids().to_vec());
    let places = [lm::Place(0)];
    let answer = lm::generate(
        &lm,
        bank.as_ref().map(|b| (b, &places[..])),
        std::slice::from_ref(&ids),
        &[[0; 32]],
        &sampling,
        lm::Hooks::default(),
    );
    let said = json!({
        "prompt_ids": ids,
        "top": indices.iter().zip(values).collect::<Vec<_>>(),
        "greedy_ids": answer[0].ids,
        "greedy_text": tokenizer.decode(&answer[0].ids)?,
        "dtype": compute.dtype(),
    });
    table::print(&format!("{said:#}"))
}
