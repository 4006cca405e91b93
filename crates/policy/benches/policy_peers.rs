//! Our side of `just bench-policy`: one measurement a process, one JSON line. `compare.py` runs it beside TRL.
//!
//!     policy_peers dpo   MODEL PAIRS.parquet DTYPE THREADS BATCH STEPS
//!     policy_peers ppo   MODEL PAIRS.parquet DTYPE THREADS BATCH STEPS NEW_TOKENS EPOCHS
//!     policy_peers users MODEL PAIRS.parquet DTYPE THREADS BATCH USERS PAIRS_PER_USER
//!
//! LoRA of rank 8 on `q_proj` and `v_proj` of all blocks, the first rows of the file (`prompt`, `chosen`, `rejected`) in order.
//!
//! `dpo` trains twice, on one batch and on `STEPS` more: the difference is the time of the steps, frozen states and reference included.
//! `ppo` answers, scores and trains in `STEPS + 1` rounds of `BATCH` prompts, one answer each, with an adapted critic and an adapted reward
//! model; the time is that between the first round's scores and the last one's. MODEL must not stop by itself for answers of a fixed
//! length (compare.py makes such a folder). `users` trains `USERS` users together and then each alone, in one warm process.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement may panic, and prints")]

use std::collections::BTreeMap;
use std::num::NonZero;
use std::time::Instant;

use data::read_table;
use device::{Checked, Compute};
use lm::{
    Activations, AdamWConfig, AllBlocks, Bank, BankConfig, Blocks, InitBound, InitUsers, Lm, LoraConfig, Middle,
    Pooling, Prefix, ScalarHead, Schedule, Sharing, Storage, Targets,
};
use policy::{
    CriticConfig, DpoConfig, Guard, KlControl, KlEstimator, KlTerm, Method, Pair, PairLoss, PpoConfig, RewardTerms,
    Start,
};
use rand::SeedableRng;
use run::{Identity, Run};
use serde_json::{Value, json};
use text::{Answer, Message, Tokenizer};

fn count(n: usize) -> NonZero<usize> {
    NonZero::new(n).unwrap()
}

fn lora() -> LoraConfig {
    LoraConfig {
        rank: count(8),
        alpha: 16.0,
        use_rslora: false,
        dropout: 0.0,
        targets: Targets::Names(vec!["q_proj".into(), "v_proj".into()]),
        blocks: Blocks::All(AllBlocks::All),
        init_bound: InitBound::default(),
        init_users: InitUsers::Independent,
    }
}

fn optimizer() -> AdamWConfig {
    AdamWConfig {
        learning_rate: 1e-4,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    }
}

struct Bench {
    lm: Lm,
    tokenizer: Tokenizer,
    rows: Vec<[String; 3]>,
    batch: usize,
    folder: tempfile::TempDir,
}

impl Bench {
    fn run(&self, name: &str) -> Run {
        Run::begin(&self.folder.path().join(name), Identity::new("bench", 1, json!({}), 3), run::Environment::new())
            .unwrap()
    }

    /// Pairs dealt to users in turn.
    fn pairs(&self, count: usize, users: usize) -> Vec<Pair> {
        let answer = |text: &String| Answer { text: text.clone(), finished: true };
        let pair = |i: usize| {
            let [prompt, chosen, rejected] = &self.rows[i];
            let prompt = vec![Message::user(prompt.clone())];
            Pair { user: user(i % users), prompt, chosen: answer(chosen), rejected: answer(rejected), weight: 1.0 }
        };
        (0..count).map(pair).collect()
    }

    /// Seconds and tokens of DPO on these pairs.
    fn dpo(&self, name: &str, pairs: &[Pair], users: &[String]) -> (f64, usize, f64) {
        let config = DpoConfig {
            lora: lora(),
            personal: policy::Personal::Both,
            start: Start::Base,
            optimizer: optimizer(),
            beta: 0.1,
            loss: PairLoss::Sigmoid,
            label_smoothing: 0.0,
            nll: 0.0,
            ld_alpha: None,
            users_at_once: None,
            user: BTreeMap::new(),
            batch_pairs: count(self.batch),
            max_epochs: count(1),
            token_budget_per_user: 1 << 40,
            max_row_tokens: 512,
            over_long: text::OverLong::Error,
            micro_batch_tokens: count(1024),
            activations: Activations::Keep,
            save_every_steps: count(1_000_000),
        };
        let start = Instant::now();
        let (_, report) =
            policy::train_dpo(&config, &self.lm, &self.tokenizer, pairs, users, None, &mut self.run(name)).unwrap();
        let loss = report.users.values().map(|u| u.final_loss).sum::<f64>() / users.len() as f64;
        (start.elapsed().as_secs_f64(), report.tokens, loss)
    }

    fn dpo_steps(&self, steps: usize) -> Value {
        let users = [user(0)];
        self.dpo("warm", &self.pairs(self.batch, 1), &users); // packs the weights
        let (before, first, _) = self.dpo("one", &self.pairs(self.batch, 1), &users);
        let (all, tokens, loss) = self.dpo("all", &self.pairs(self.batch * (steps + 1), 1), &users);
        json!({"tokens": tokens - first, "seconds": all - before, "loss": loss})
    }

    fn users(&self, users: usize, pairs_each: usize) -> Value {
        let pairs = self.pairs(users * pairs_each, users);
        let names: Vec<String> = (0..users).map(user).collect();
        self.dpo("warm", &self.pairs(self.batch, 1), &[user(0)]);
        let (together, tokens, _) = self.dpo("together", &pairs, &names);
        let mut alone = 0.0;
        for name in &names {
            let own: Vec<Pair> = pairs.iter().filter(|p| p.user == *name).cloned().collect();
            alone += self.dpo(name, &own, std::slice::from_ref(name)).0;
        }
        json!({"tokens": tokens, "together_s": together, "alone_s": alone, "ratio": alone / together})
    }

    fn ppo(&self, steps: usize, new_tokens: usize, epochs: usize) -> Value {
        let critic = CriticConfig {
            optimizer: optimizer(),
            gamma: 1.0,
            lambda: 0.95,
            value_clip: 0.2,
            whiten_rewards: false,
            warmup_steps: 0,
        };
        let config = PpoConfig {
            method: Method::Ppo(critic),
            whose: policy::Whose::Users,
            start: Start::Base,
            lora: lora(),
            personal: policy::Personal::Both,
            optimizer: optimizer(),
            steps: count(steps + 1),
            prompts_per_step: count(self.batch),
            samples_per_prompt: count(1),
            max_new_tokens: count(new_tokens),
            temperature: 0.7,
            fixed_shapes: false,
            rollout_rows: count(self.batch),
            epochs: count(epochs),
            minibatches: count(1),
            clip: 0.2,
            whiten_advantages: true,
            kl_stop: None,
            max_kl: None,
            kl: KlTerm { estimator: KlEstimator::K1, control: KlControl::Fixed { beta: 0.05 } },
            reward: RewardTerms {
                calibration_samples_per_prompt: count(1),
                clip: 10.0,
                missing_end_penalty: 0.0,
                caution: 0.0,
            },
            guard: Guard::Off,
            max_row_tokens: 512,
            over_long: text::OverLong::Error,
            micro_batch_tokens: count(1024),
            activations: Activations::Keep,
            save_every_steps: count(1_000_000),
            users_at_once: None,
            user: BTreeMap::new(),
        };
        // A reward model of the usual make: an adapter on every block and a head.
        let lm = &self.lm;
        let shape =
            BankConfig { lora: lora(), down: Sharing::Personal, up: Sharing::Personal, middle: Middle::None, users: 1 };
        let rng = |_: &str| rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let bank = Bank::new(&shape, lm, &[user(0)], &Storage::memory(), rng).unwrap();
        let head = ScalarHead::new(lm.shape.hidden_size, 1.0, &mut rng(""), lm.device);
        let mut marks: Vec<(Instant, usize)> = Vec::new(); // when scores were asked for, and tokens since the last time
        let mut rewards = |prefix: &Prefix, asked: &[(usize, lm::UserIndex)]| {
            marks.push((Instant::now(), prefix.rows().iter().map(|r| r.ids.len() - 1).sum()));
            let prefix = prefix.moved(lm, bank.first_block()..lm.depth())?;
            let rows: Vec<usize> = asked.iter().map(|(row, _)| *row).collect();
            let mut out = vec![(0.0, 0.0); rows.len()];
            for groups in prefix.passes(&rows) {
                let batch = prefix.batch(lm, &groups);
                let factors = bank.rows(&vec![lm::Place(0); groups.len()], batch.lengths());
                let hidden = lm::forward(lm, &batch, Some(&factors));
                let pooled = lm::pooled_hidden(lm, &batch, &hidden, Pooling::Last);
                let order: Vec<usize> = groups.into_iter().flatten().collect();
                let scores =
                    Vec::<f32>::try_from(head.score(&pooled, &vec![lm::Place(0); order.len()]).detach()).checked()?;
                order.iter().zip(scores).for_each(|(row, score)| out[*row] = (score, 0.0));
            }
            Ok(out)
        };
        let prompts: Vec<Vec<Message>> =
            self.rows.iter().take(self.batch * (steps + 1)).map(|r| vec![Message::user(r[0].clone())]).collect();
        let (_, report) = policy::train_ppo(
            &config,
            lm,
            &self.tokenizer,
            &prompts,
            &[user(0)],
            None,
            &mut rewards,
            &mut self.run("ppo"),
        )
        .unwrap();
        // Calls before the rounds' are the scale's.
        let rounds = &marks[marks.len() - steps - 1..];
        let seconds = (rounds[steps].0 - rounds[0].0).as_secs_f64();
        let tokens: usize = rounds[..steps].iter().map(|m| m.1).sum();
        let own = &report.users[&user(0)];
        assert_eq!(own.tokens, (steps + 1) * self.batch * new_tokens, "answers of a fixed length");
        json!({"tokens": tokens, "seconds": seconds, "loss": own.final_kl})
    }
}

fn user(n: usize) -> String {
    format!("user {n:03}")
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [job, model, pairs, dtype, rest @ ..] = arguments.as_slice() else {
        println!("see the head of benches/policy_peers.rs; `just bench-policy` runs it");
        return;
    };
    if std::env::var_os("IDIOLECT_PLAIN_ALLOCATOR").is_none() {
        device::tune_allocator();
    }
    let numbers: Vec<usize> = rest.iter().map(|text| text.parse().unwrap()).collect();
    let compute = Compute::new("cpu", dtype, Some(numbers[0])).unwrap();
    let table = read_table(pairs.as_ref(), &["prompt", "chosen", "rejected"]).unwrap();
    let columns = ["prompt", "chosen", "rejected"].map(|name| table.full_text(name).unwrap());
    let rows = (0..table.rows()).map(|i| [&columns[0], &columns[1], &columns[2]].map(|c| c[i].clone())).collect();
    let bench = Bench {
        lm: Lm::load(model.as_ref(), &compute).unwrap(),
        tokenizer: Tokenizer::from_folder(model.as_ref()).unwrap(),
        rows,
        batch: numbers[1],
        folder: tempfile::tempdir().unwrap(),
    };
    let mut result = match job.as_str() {
        "dpo" => bench.dpo_steps(numbers[2]),
        "ppo" => bench.ppo(numbers[2], numbers[3], numbers[4]),
        "users" => bench.users(numbers[2], numbers[3]),
        other => panic!("no job `{other}`"),
    };
    result["peak_mib"] = json!(run::memory_mib("VmHWM"));
    println!("RESULT {result}");
}
