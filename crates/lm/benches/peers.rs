//! Our side of `just bench-lm`: one measurement a process, one JSON line. `compare.py` runs it beside the Python peers.
//!
//!     peers generate MODEL INPUTS.json DTYPE THREADS BATCH NEW REPEATS [USERS]
//!     peers step MODEL INPUTS.json DTYPE THREADS ROWS TOKENS STEPS keep|recompute
//!
//! `INPUTS.json` holds `prompts` (token ids) and `stream` (a long list of ids that rows are cut from). Generation samples
//! at temperature 0.7 without stop tokens; a step is forward and backward of the mean log-probability of each row's second
//! half, LoRA of rank 8 on `q_proj` and `v_proj` of all blocks.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement may panic, and prints")]

use std::num::NonZero;
use std::time::Instant;

use device::Compute;
use lm::{
    Activations, AllBlocks, Bank, BankConfig, Blocks, Hooks, InitBound, InitUsers, Lm, LoraConfig, Middle, Place,
    Prefix, Sampling, Sharing, Storage, Targets, TokenRow, Trace,
};
use rand::SeedableRng;
use serde_json::json;
use tch::Kind;

#[derive(serde::Deserialize)]
struct Inputs {
    prompts: Vec<Vec<i64>>,
    stream: Vec<i64>,
}

fn bank(lm: &Lm, users: usize) -> Bank {
    let lora = LoraConfig {
        rank: NonZero::new(8).unwrap(),
        alpha: 16.0,
        use_rslora: false,
        dropout: 0.0,
        targets: Targets::Names(vec!["q_proj".into(), "v_proj".into()]),
        blocks: Blocks::All(AllBlocks::All),
        init_bound: InitBound::default(),
        init_users: InitUsers::Independent,
    };
    let config = BankConfig { lora, down: Sharing::Personal, up: Sharing::Personal, middle: Middle::None, users };
    let names: Vec<String> = (0..users).map(|u| u.to_string()).collect();
    Bank::new(&config, lm, &names, &Storage::memory(), |_| rand_chacha::ChaCha8Rng::seed_from_u64(1)).unwrap()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [what, model, inputs, dtype, threads, rest @ ..] = arguments.as_slice() else {
        println!("see the head of benches/peers.rs; `just bench-lm` runs it");
        return;
    };
    if std::env::var_os("IDIOLECT_PLAIN_ALLOCATOR").is_none() {
        device::tune_allocator();
    }
    let device = std::env::var("IDIOLECT_DEVICE").unwrap_or_else(|_| "cpu".into());
    let compute = Compute::new(&device, dtype, Some(threads.parse().unwrap())).unwrap();
    let start = Instant::now();
    let lm = Lm::load(model.as_ref(), &compute).unwrap();
    let load_s = start.elapsed().as_secs_f64();
    let inputs: Inputs = run::read_json(inputs.as_ref()).unwrap();
    let number = |i: usize| rest[i].parse::<usize>().unwrap();
    let mut result = match what.as_str() {
        "generate" => generate(&lm, &inputs, number(0), number(1), number(2), rest.get(3).map(|_| number(3))),
        "step" => {
            let activations = if rest[3] == "recompute" { Activations::Recompute } else { Activations::Keep };
            step(&lm, &inputs, number(0), number(1), number(2), activations)
        }
        other => panic!("`{other}`"),
    };
    result["load_s"] = json!(load_s);
    result["peak_mib"] = json!(run::memory_mib("VmHWM"));
    println!("RESULT {result}");
}

fn generate(
    lm: &Lm,
    inputs: &Inputs,
    batch: usize,
    new: usize,
    repeats: usize,
    users: Option<usize>,
) -> serde_json::Value {
    let prompts: Vec<Vec<i64>> = inputs.prompts.iter().cycle().take(batch).cloned().collect();
    let seeds: Vec<[u8; 32]> = (0..batch).map(|i| [i as u8; 32]).collect();
    let bank = users.map(|users| bank(lm, users));
    let owners: Vec<Place> = (0..batch).map(|i| Place(i % users.unwrap_or(1))).collect();
    let run = |new: usize| {
        let sampling = Sampling::at(0.7, new, vec![]);
        let adapter = bank.as_ref().map(|b| (b, owners.as_slice()));
        let start = Instant::now();
        let samples = lm::generate(lm, adapter, &prompts, &seeds, &sampling, Hooks::default());
        assert!(samples.iter().all(|s| s.ids.len() == new));
        start.elapsed().as_secs_f64()
    };
    run(8);
    let prefill: Vec<f64> = (0..repeats).map(|_| run(1)).collect();
    let total: Vec<f64> = (0..repeats).map(|_| run(new)).collect();
    json!({"tokens": batch * new, "prompt_tokens": prompts.iter().map(Vec::len).sum::<usize>(),
           "prefill_s": prefill, "total_s": total})
}

fn step(
    lm: &Lm,
    inputs: &Inputs,
    rows: usize,
    tokens: usize,
    steps: usize,
    activations: Activations,
) -> serde_json::Value {
    let cut = |i: usize| TokenRow { ids: inputs.stream[i * tokens..][..tokens].to_vec(), answer_start: tokens / 2 };
    let bank = bank(lm, 1);
    let prefix = Prefix::new(lm, (0..rows).map(cut).collect(), 0..lm.depth(), |_| ()).unwrap();
    let groups: Vec<Vec<usize>> = (0..rows).map(|i| vec![i]).collect();
    let parameters: Vec<lm::Tensor> = bank.parameters().into_iter().map(|p| p.tensor).collect();
    // The first step packs weights and is not timed.
    let (mut total, mut loss_value) = (Vec::new(), 0.0);
    for _ in 0..=steps {
        let start = Instant::now();
        let batch = prefix.batch(lm, &groups);
        let factors = bank.rows(&vec![Place(0); rows], batch.lengths());
        let trace = Trace::new(lm, batch, factors, activations);
        let logp = lm::answer_logp(lm, &trace.batch, &trace.hidden);
        let loss = -logp.sum(Kind::Float) / (rows * tokens / 2) as f64;
        let gradients = trace.backward(&loss, &parameters, &[], "bench").unwrap();
        assert_eq!(gradients.len(), parameters.len());
        if lm.device != tch::Device::Cpu {
            tch::Cuda::synchronize(0);
        }
        loss_value = loss.double_value(&[]);
        total.push(start.elapsed().as_secs_f64());
    }
    json!({"rows": rows, "tokens_per_row": tokens, "step_s": total[1..], "loss": loss_value})
}
