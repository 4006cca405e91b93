//! The tiny model with votes of two people, for learners that are called through the libraries.

use std::num::NonZero;

use data::{Split, Vote};
use device::Compute;
use lm::{AdamWConfig, Blocks, InitBound, InitUsers, Lm, LoraConfig, Schedule, Targets};
use run::{Identity, Run};
use text::{Message, Tokenizer};

use crate::tiny::write_model;

pub(crate) fn count(n: usize) -> NonZero<usize> {
    NonZero::new(n).unwrap()
}

pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) lm: Lm,
    pub(crate) tokenizer: Tokenizer,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_model(&folder.path().join("model"));
        let compute = Compute::new("cpu", "float32", Some(1)).unwrap();
        let lm = Lm::load(&folder.path().join("model"), &compute).unwrap();
        let tokenizer = Tokenizer::from_folder(&folder.path().join("model")).unwrap();
        Self { folder, lm, tokenizer }
    }

    pub(crate) fn run(&self, stage: &str, name: &str) -> Run {
        Run::begin(
            &self.folder.path().join(name),
            Identity::new(stage, 1, serde_json::json!({}), 3),
            run::Environment::new(),
        )
        .unwrap()
    }
}

pub(crate) fn optimizer(learning_rate: f64) -> AdamWConfig {
    AdamWConfig {
        learning_rate,
        schedule: Schedule::Linear,
        warmup_ratio: 0.1,
        weight_decay: 0.0,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    }
}

pub(crate) fn lora() -> LoraConfig {
    LoraConfig {
        rank: count(2),
        alpha: 4.0,
        use_rslora: false,
        dropout: 0.1,
        targets: Targets::Names(["q_proj", "v_proj", "down_proj"].map(String::from).to_vec()),
        blocks: Blocks::Last { last: count(2) },
        init_bound: InitBound::default(),
        init_users: InitUsers::Independent,
    }
}

/// Ann likes answers of `x`, Bob of `z`; train and test have other prompts and lengths.
pub(crate) fn votes() -> Vec<Vote> {
    let mut votes = Vec::new();
    for i in 0..40usize {
        let (x, z) = ("x".repeat(2 + i % 5), "z".repeat(2 + (i / 5) % 5));
        for (user, chosen, rejected) in [("ann", &x, &z), ("bob", &z, &x)] {
            votes.push(Vote {
                user_id: user.into(),
                prompt: vec![Message::user(format!("what is {i}?"))],
                chosen: chosen.clone(),
                rejected: rejected.clone(),
                tie: false,
                chosen_finished: None,
                rejected_finished: None,
                chosen_first: None,
                weight: 1.0,
                margin: None,
                timestamp: None,
                split: if i < 28 { Split::Train } else { Split::Test },
                source_row: format!("x:{i}"),
            });
        }
    }
    votes
}
