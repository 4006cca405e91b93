//! `just bench-users`: what a fit holds in memory as users become more, their factors in memory and on disk.
//!
//!     many_users MODEL OUT.json               the table: a process for each number of users and each storage
//!     many_users MODEL USERS memory|disk      one measurement, one JSON line
//!
//! Every user casts one vote on two of 64 short answers; LoRA of rank 8 on `q_proj` and `v_proj` of the last two blocks, personal
//! down-projections, one epoch, batches of 32 votes of as many users, a checkpoint every 100 steps.
//!
//! OUT.json: `[{"users", "storage", "factors_mib": factors and both moments of all users, "anonymous_mib": the most memory at a time
//! that no file stands behind, "resident_mib": the most with what is mapped, "seconds", "steps", "loss"}]`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement may panic, and prints")]

use std::num::NonZero;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use data::{Split, Vote};
use device::Compute;
use lm::{Activations, AdamWConfig, Blocks, InitBound, InitUsers, Lm, LoraConfig, Pooling, Schedule, Targets};
use reward::{Factors, Kept, Objective, Personal, Phase, RewardConfig, Structure, Variant};
use run::{Identity, Run};
use serde_json::{Value, json};
use text::{Message, Tokenizer};

fn config(kept: Kept) -> RewardConfig {
    RewardConfig {
        variant: Variant::PShareLora,
        structure: Structure::Lora,
        personal: Personal::Down,
        pooling: Pooling::Mean,
        depth: None,
        features: None,
        head_scale: 1.0,
        lora: LoraConfig {
            rank: NonZero::new(8).unwrap(),
            alpha: 16.0,
            use_rslora: false,
            dropout: 0.0,
            targets: Targets::Names(vec!["q_proj".into(), "v_proj".into()]),
            blocks: Blocks::Last { last: NonZero::new(2).unwrap() },
            init_bound: InitBound::default(),
            init_users: InitUsers::Independent,
        },
        optimizer: AdamWConfig {
            learning_rate: 1e-3,
            schedule: Schedule::Constant,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            max_grad_norm: 1.0,
        },
        personal_rate: 1.0,
        objective: Objective::default(),
        batch_votes: NonZero::new(32).unwrap(),
        phases: vec![Phase { factors: Factors::Personal, epochs: 1.0, train: None }],
        token_budget: usize::MAX,
        early_stopping: None,
        max_row_tokens: 512,
        over_long: text::OverLong::Error,
        micro_batch_tokens: NonZero::new(4096).unwrap(),
        activations: Activations::Keep,
        save_every_steps: NonZero::new(100).unwrap(),
        newcomer_epochs: 1.0,
        personal_factors: kept,
        frozen_states: Kept::Memory,
        swap: false,
    }
}

/// A user's vote on two of 64 answers; which one is chosen depends on both.
fn vote(user: usize, name: &str) -> Vote {
    let words = ["red", "green", "blue", "small", "large", "old", "new", "warm"];
    let answer = |n: usize| format!("I would take the {} one, and then the {} one.", words[n / 8], words[n % 8]);
    let (a, b) = ((user * 7) % 64, (user * 13 + 1) % 64);
    let (chosen, rejected) = if (user + a).is_multiple_of(2) { (a, b) } else { (b, a) };
    Vote {
        user_id: name.to_owned(),
        prompt: vec![Message::user("Which would you take?")],
        chosen: answer(chosen),
        rejected: answer(if rejected == chosen { (rejected + 1) % 64 } else { rejected }),
        tie: false,
        chosen_finished: None,
        rejected_finished: None,
        chosen_first: None,
        weight: 1.0,
        margin: None,
        timestamp: None,
        split: Split::Train,
        source_row: user.to_string(),
    }
}

fn measure(model: &str, users: usize, storage: &str) {
    device::tune_allocator();
    let lm = Lm::load(model.as_ref(), &Compute::new("cpu", "auto", None).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_folder(model.as_ref()).unwrap();
    let names: Vec<String> = (0..users).map(|u| format!("user {u:06}")).collect();
    let votes: Vec<Vote> = (0..users).map(|u| vote(u, &names[u])).collect();
    let config = config(if storage == "disk" { Kept::Disk } else { Kept::Memory });
    let folder = tempfile::tempdir_in("target").unwrap();
    let mut run =
        Run::begin(&folder.path().join("fit"), Identity::new("bench", 1, json!({}), 3), run::Environment::new())
            .unwrap();

    let over = AtomicBool::new(false);
    let (fitted, anonymous, seconds) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0f64;
            while !over.load(Ordering::Relaxed) {
                most = most.max(run::memory_mib("RssAnon").unwrap());
                std::thread::sleep(Duration::from_millis(10));
            }
            most
        });
        let started = Instant::now();
        let (model, report) = reward::fit(&config, &lm, &tokenizer, &votes, &names, &mut run).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        model.write(&folder.path().join("reward.safetensors"), &lm).unwrap();
        over.store(true, Ordering::Relaxed);
        (report, watcher.join().unwrap(), seconds)
    });
    // Two layers of two blocks, rank 8, float32, and two moments.
    let factors_mib = (users * 4 * 8 * lm.shape.hidden_size as usize * 4 * 3) as f64 / 1024.0 / 1024.0;
    println!(
        "RESULT {}",
        json!({"users": users, "storage": storage, "factors_mib": factors_mib, "anonymous_mib": anonymous,
               "resident_mib": run::memory_mib("VmHWM"), "seconds": seconds, "steps": fitted.steps, "loss": fitted.final_loss})
    );
}

fn table(model: &str, out: &str) {
    let mut rows: Vec<Value> = Vec::new();
    println!(
        "| users | their factors and moments, MiB | kept in | anonymous memory at most, MiB | resident at most, MiB | s | steps |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for users in ["100", "1000", "10000"] {
        for storage in ["memory", "disk"] {
            let this = std::env::current_exe().unwrap();
            let done = Command::new(this).args([model, users, storage]).output().unwrap();
            let text = String::from_utf8_lossy(&done.stdout);
            let line = text.lines().find_map(|l| l.strip_prefix("RESULT "));
            let row: Value = serde_json::from_str(
                line.unwrap_or_else(|| panic!("{users} users, {storage}: {}", String::from_utf8_lossy(&done.stderr))),
            )
            .unwrap();
            let number = |key: &str| row[key].as_f64().unwrap();
            println!(
                "| {users} | {:.0} | {storage} | {:.0} | {:.0} | {:.0} | {} |",
                number("factors_mib"),
                number("anonymous_mib"),
                number("resident_mib"),
                number("seconds"),
                row["steps"]
            );
            rows.push(row);
        }
    }
    run::write_json(out.as_ref(), &rows).unwrap();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [model, out] => table(model, out),
        [model, users, storage] => measure(model, users.parse().unwrap(), storage),
        _ => println!("see the head of benches/many_users.rs; `just bench-users` runs it"),
    }
}
