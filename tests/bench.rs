//! The tiny model with votes of two people, for learners that are called through the libraries.

use std::num::NonZero;

use data::{Split, Vote};
use device::Compute;
use lm::{AdamWConfig, Blocks, InitBound, InitUsers, Lm, LoraConfig, Schedule, Targets};
use policy::Policies;
use run::{Identity, Run};
use text::{Answer, Ending, Message, Tokenizer};

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

/// Ann likes answers of `x`, Bob of `z`; train and test have other prompts and lengths. On both sides responses end by themselves or are cut.
pub(crate) fn votes() -> Vec<Vote> {
    let mut votes = Vec::new();
    for i in 0..40usize {
        let (x, z) = ("x".repeat(2 + i % 5), "z".repeat(2 + (i / 5) % 5));
        let [of_x, of_z] = finished(i).map(Some);
        let users = [("ann", &x, &z, of_x, of_z), ("bob", &z, &x, of_z, of_x)];
        for (user, chosen, rejected, chosen_finished, rejected_finished) in users {
            votes.push(Vote {
                user_id: user.into(),
                prompt: vec![Message::user(format!("what is {i}?"))],
                chosen: chosen.clone(),
                rejected: rejected.clone(),
                tie: false,
                chosen_finished,
                rejected_finished,
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

/// Does each response of a user's `n`-th pair end by itself, (chosen, rejected)? All four combinations come equally often, so that a learner
/// which looks at the ending alone is right half the time.
pub(crate) fn finished(n: usize) -> [bool; 2] {
    [n.is_multiple_of(2), (n / 2).is_multiple_of(2)]
}

/// The share of (chosen, rejected) in which a rule is right that takes the larger number; one half where both are equal.
pub(crate) fn share_of_rule(numbers: impl IntoIterator<Item = [usize; 2]>) -> f64 {
    let right = |[chosen, rejected]: [usize; 2]| match chosen.cmp(&rejected) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    };
    let each: Vec<f64> = numbers.into_iter().map(right).collect();
    each.iter().sum::<f64>() / each.len() as f64
}

/// How much more likely a user's policy holds a response than the base does, nats.
pub(crate) fn gain(bench: &Bench, policies: &Policies, user: usize, prompt: &[Message], response: &Answer) -> f64 {
    let ending = if response.finished { Ending::Finished } else { Ending::Cut };
    let row = bench.tokenizer.row(prompt, &response.text, ending).unwrap();
    let adapter = (&policies.bank, lm::UserIndex(user).in_whole_bank());
    let logp = |adapter| lm::full_logits(&bench.lm, &row.ids, adapter).log_softmax(-1, tch::Kind::Double);
    let change = logp(Some(adapter)) - logp(None);
    (row.answer_start..row.ids.len()).map(|t| change.double_value(&[t as i64 - 1, row.ids[t]])).sum()
}

/// The share of a user's votes on prompts that nothing was trained on in which the policy came to prefer the chosen response, where the two
/// sides end as `finished` says.
pub(crate) fn preferred(bench: &Bench, policies: &Policies, user: usize, finished: [bool; 2]) -> f64 {
    let name = &policies.users[user];
    let own: Vec<Vote> = votes().into_iter().filter(|v| v.user_id == *name && v.split == Split::Test).collect();
    let of = |vote: &Vote, text: &str, finished| {
        gain(bench, policies, user, &vote.prompt, &Answer { text: text.into(), finished })
    };
    let right = own.iter().filter(|v| of(v, &v.chosen, finished[0]) > of(v, &v.rejected, finished[1]));
    right.count() as f64 / own.len() as f64
}
