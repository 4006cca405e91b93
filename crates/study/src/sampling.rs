//! Sampling many answers to many prompts, resumable batch by batch.

use std::num::NonZero;

use lm::{Bank, Hooks, Lm, Place, Sampling, generate};
use problem::Result;
use run::{Progress, Run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use text::{Answer, Message, Tokenizer};

use crate::limits::{countable, positive};

/// How answers are sampled, as written in a stage's TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplingConfig {
    /// Answers to each prompt.
    pub samples_per_prompt: NonZero<usize>,
    /// Answers are cut behind so many tokens.
    pub max_new_tokens: NonZero<usize>,
    /// 1 samples the model as it is.
    pub temperature: f64,
    /// Answers that are decoded together.
    pub batch_rows: NonZero<usize>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            samples_per_prompt: lm::count(8),
            max_new_tokens: lm::count(128),
            temperature: 1.0,
            batch_rows: lm::count(64),
        }
    }
}

impl SamplingConfig {
    /// Refuses settings that mean nothing; `stage` is whose they are.
    ///
    /// # Errors
    /// A temperature that is not above 0: all samples of a prompt would be the same. More tokens than can be counted.
    pub fn check(&self, stage: &str) -> Result<()> {
        let Self { samples_per_prompt, max_new_tokens, temperature, batch_rows: _ } = *self;
        positive(stage, "sampling.temperature", temperature)?;
        countable(stage, "sampling.samples_per_prompt", &[samples_per_prompt.get(), max_new_tokens.get()])
    }

    /// The most tokens that `prompts` prompts can sample.
    pub fn budget(&self, prompts: usize) -> usize {
        prompts.saturating_mul(self.samples_per_prompt.get()).saturating_mul(self.max_new_tokens.get())
    }
}

/// Refuses prompts that, with the response, are longer than the base has positions for.
///
/// # Errors
/// The longest of them, by its beginning.
pub fn refuse_long(lm: &Lm, tokenizer: &Tokenizer, prompts: &[Vec<Message>], config: &SamplingConfig) -> Result<()> {
    for prompt in prompts {
        let tokens = tokenizer.prompt(prompt)?.len();
        let most = config.max_new_tokens.get();
        if tokens.saturating_add(most) > lm.context() {
            let said: String = prompt.last().map_or("", |m| &m.content).chars().take(80).collect();
            let place = format!("the prompt `{said}`, {tokens} tokens, with a response of `max_new_tokens` = {most}");
            lm.refuse_longer(tokens.saturating_add(most), &place)?;
        }
    }
    Ok(())
}

/// `copies` answers to each prompt by the base, or by the policy at a place of the bank in `adapter`.
///
/// A sample's stream is decided by (seed, stage, label, prompt, copy) and by nothing else.
pub fn sample(
    lm: &Lm,
    tokenizer: &Tokenizer,
    adapter: Option<(&Bank, Place)>,
    prompts: &[Vec<Message>],
    copies: usize,
    config: &SamplingConfig,
    label: &str,
    run: &mut Run,
) -> Result<Vec<Vec<Answer>>> {
    config.check(run.stage())?;
    refuse_long(lm, tokenizer, prompts, config)?;
    let sampling = Sampling::at(config.temperature, config.max_new_tokens.get(), tokenizer.stop_ids().to_vec());
    let together = (config.batch_rows.get() / copies).max(1); // prompts
    let _phase = run::phase(label);
    let mut bar = Progress::new(&format!("{}: {label}", run.stage()), prompts.len() * copies, 0);
    let mut out = Vec::with_capacity(prompts.len());
    for (n, batch) in prompts.chunks(together).enumerate() {
        // By prompts, not by batches: another number of rows in a batch finds only what it would have sampled itself.
        let (first, count) = (n * together, batch.len());
        let name = format!("samples-{}-{first}-{count}", run::hash_bytes(label.as_bytes()).split_at(12).0);
        let answers: Vec<Vec<Answer>> = match run.finished_part(&name)? {
            Some(saved) => saved,
            None => {
                let ids = batch.iter().map(|p| tokenizer.prompt(p)).collect::<std::result::Result<Vec<_>, _>>()?;
                let stage = run.stage().to_owned();
                let seed = |p: &[Message], copy: usize| {
                    let prompt = serde_json::to_string(p).expect("plain data");
                    run::derive(run.seed(), &[&stage, "sample", label, &prompt, &copy.to_string()])
                };
                let seeds: Vec<[u8; 32]> = batch.iter().flat_map(|p| (0..copies).map(move |c| seed(p, c))).collect();
                let places = adapter.map(|(_, place)| vec![place; ids.len()]);
                let bank = adapter.map(|(bank, _)| bank).zip(places.as_deref());
                let samples = generate(lm, bank, &ids, &seeds, &sampling, Hooks::default());
                let answers = samples
                    .iter()
                    .map(|s| Ok(Answer { text: tokenizer.decode(&s.ids)?, finished: s.finished() }))
                    .collect::<Result<Vec<_>>>()?;
                run.save_part(&name, answers.chunks(copies).map(<[Answer]>::to_vec).collect())?
            }
        };
        out.extend(answers);
        bar.advance(batch.len() * copies, "");
    }
    Ok(out)
}
