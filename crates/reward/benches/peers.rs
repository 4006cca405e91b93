//! Our side of `just bench-reward`: one measurement a process, one JSON line. `compare.py` runs it beside TRL's RewardTrainer.
//!
//!     peers MODEL PAIRS.parquet DTYPE THREADS BATCH STEPS USERS
//!
//! Fits a reward model (LoRA of rank 8 on `q_proj` and `v_proj` of all blocks) twice, for one step and for `STEPS` more, on the first
//! rows of the file (`prompt`, `chosen`, `rejected`), dealt to `USERS` users in turn: the difference is the time of the steps. One user
//! is the ordinary reward model, several are P-ShareLoRA's.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement may panic, and prints")]

use std::num::NonZero;
use std::time::Instant;

use data::{Split, Vote, read_table};
use device::Compute;
use lm::{
    Activations, AdamWConfig, AllBlocks, Blocks, InitBound, InitUsers, Lm, LoraConfig, Pooling, Schedule, Targets,
};
use reward::{Factors, Kept, Objective, Personal, Phase, RewardConfig, Structure, Variant};
use run::{Identity, Run};
use serde_json::json;
use text::{Message, Tokenizer};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [model, pairs, dtype, threads, batch, steps, users] = arguments.as_slice() else {
        println!("see the head of benches/peers.rs; `just bench-reward` runs it");
        return;
    };
    if std::env::var_os("IDIOLECT_PLAIN_ALLOCATOR").is_none() {
        device::tune_allocator();
    }
    let started = Instant::now();
    let number = |text: &String| text.parse::<usize>().unwrap();
    let (batch, steps, users) = (number(batch), number(steps), number(users));
    let compute = Compute::new("cpu", dtype, Some(number(threads))).unwrap();
    let lm = Lm::load(model.as_ref(), &compute).unwrap();
    let tokenizer = Tokenizer::from_folder(model.as_ref()).unwrap();
    let table = read_table(pairs.as_ref(), &["prompt", "chosen", "rejected"]).unwrap();
    let [prompt, chosen, rejected] = ["prompt", "chosen", "rejected"].map(|name| table.full_text(name).unwrap());
    let names: Vec<String> = (0..users).map(|u| format!("user {u:03}")).collect();
    let votes = |steps: usize| -> Vec<Vote> {
        let vote = |i: usize| Vote {
            user_id: names[i % users].clone(),
            prompt: vec![Message::user(prompt[i].clone())],
            chosen: chosen[i].clone(),
            rejected: rejected[i].clone(),
            tie: false,
            chosen_finished: None,
            rejected_finished: None,
            chosen_first: None,
            weight: 1.0,
            margin: None,
            timestamp: None,
            split: Split::Train,
            source_row: i.to_string(),
        };
        (0..batch * steps).map(vote).collect()
    };
    let config = RewardConfig {
        variant: if users == 1 { Variant::LoraGlobal } else { Variant::PShareLora },
        structure: Structure::Lora,
        personal: Personal::Down,
        pooling: Pooling::Last,
        depth: None,
        features: None,
        head_scale: 1.0,
        lora: LoraConfig {
            rank: NonZero::new(8).unwrap(),
            alpha: 16.0,
            use_rslora: false,
            dropout: 0.0,
            targets: Targets::Names(vec!["q_proj".into(), "v_proj".into()]),
            blocks: Blocks::All(AllBlocks::All),
            init_bound: InitBound::default(),
            init_users: InitUsers::Independent,
        },
        optimizer: AdamWConfig {
            learning_rate: 1e-4,
            schedule: Schedule::Constant,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            max_grad_norm: 1.0,
        },
        personal_rate: 1.0,
        objective: Objective::default(),
        batch_votes: NonZero::new(batch).unwrap(),
        phases: vec![Phase { factors: Factors::Personal, epochs: 1.0, train: None }],
        token_budget: usize::MAX,
        early_stopping: None,
        max_row_tokens: 512,
        over_long: text::OverLong::Error,
        micro_batch_tokens: NonZero::new(512).unwrap(),
        activations: Activations::Keep,
        save_every_steps: NonZero::new(1_000_000).unwrap(),
        newcomer_epochs: 1.0,
        personal_factors: Kept::Memory,
        frozen_states: Kept::Memory,
        swap: false,
    };
    let folder = tempfile::tempdir().unwrap();
    let fit = |name: &str, steps: usize| {
        let start = Instant::now();
        let mut run =
            Run::begin(&folder.path().join(name), Identity::new("bench", 1, json!({}), 3), run::Environment::new())
                .unwrap();
        let (_, report) = reward::fit(&config, &lm, &tokenizer, &votes(steps), &names, &mut run).unwrap();
        assert_eq!(report.steps, steps);
        (start.elapsed().as_secs_f64(), report)
    };
    let (_, _) = fit("warm", 1); // packs the weights
    let (before, first) = fit("one", 1);
    let (all, report) = fit("all", steps + 1);
    println!(
        "RESULT {}",
        json!({"tokens": report.tokens - first.tokens, "seconds": all - before, "loss": report.final_loss,
               "process_s": started.elapsed().as_secs_f64(), "peak_mib": run::memory_mib("VmHWM")})
    );
}
