//! Batched sampling with a KV cache.
//!
//! A prompt's samples share its prefill. Every row has a random stream of its own, and rows that are finished leave the
//! batch.

use std::cell::RefCell;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor, no_grad};

use crate::adapters::RowFactors;
use crate::cache::Cache;
use crate::layout::{Layout, Tree};
use crate::sampling::{Seen, choose};
use crate::{Bank, Lm, Place, Sampling};

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its tokens, without the stop token.
    pub ids: Vec<i64>,
    /// What ended it.
    pub stop: Stop,
}

impl Sample {
    /// Did it stop by itself?
    pub fn finished(&self) -> bool {
        self.stop != Stop::Length
    }
}

/// What ends an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The limit of new tokens.
    Length,
    /// One of the stop ids.
    Token(i64),
    /// The stop string of this index; the answer's tokens hold it.
    Text(usize),
}

/// Texts that end an answer, and how to read tokens.
pub struct StopStrings<'a> {
    /// Any of them ends an answer.
    pub texts: &'a [String],
    /// Tokens to text.
    pub decode: &'a dyn Fn(&[i64]) -> String,
}

/// What generation does beside sampling.
#[derive(Default)]
pub struct Hooks<'a> {
    /// Texts that end an answer.
    pub stop_strings: Option<StopStrings<'a>>,
    /// Is told (row, token) as tokens come.
    pub on_token: Option<&'a mut dyn FnMut(usize, i64)>,
    /// Is told (row, logit of the drawn token) of every token, the stop token included.
    pub on_score: Option<&'a mut dyn FnMut(usize, f32)>,
    /// Is told (row, log-probability of the drawn token at the sampling temperature) of every token, the stop token included.
    /// Filters and penalties are not seen in it.
    pub on_logp: Option<&'a mut dyn FnMut(usize, f32)>,
}

impl std::fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").field("stop_strings", &self.stop_strings.is_some()).finish_non_exhaustive()
    }
}

/// Finished rows are dropped from the batch as soon as this share of it is done.
const COMPACT_AT: f64 = 0.125;

/// In the mode of fixed shapes: rows are a multiple of this, since small float32 products change bits with their rows ...
const FIXED_ROWS: usize = 16;

/// ... and prompts and cache a multiple of this. Otherwise the cache is read in steps of 16 slots.
const FIXED_SLOTS: usize = 64;

/// Samples `seeds.len() / prompts.len()` answers for every prompt, in the order of `seeds`: sample `c` of prompt `p` is
/// row `p * copies + c` and draws from the stream that `seeds[row]` starts.
///
/// `adapter` is a bank and each prompt's user among those of the bank. Prompts have at least one token.
pub fn generate(
    lm: &Lm,
    adapter: Option<(&Bank, &[Place])>,
    prompts: &[Vec<i64>],
    seeds: &[[u8; 32]],
    sampling: &Sampling,
    hooks: Hooks,
) -> Vec<Sample> {
    if prompts.is_empty() {
        return vec![];
    }
    let copies = seeds.len() / prompts.len();
    assert_eq!(prompts.len() * copies, seeds.len(), "a seed for every sample of every prompt");
    let job = Job { lm, adapter, prompts, copies, sampling };
    no_grad(|| job.run(seeds, hooks))
}

/// What is to be sampled.
struct Job<'a> {
    lm: &'a Lm,
    adapter: Option<(&'a Bank, &'a [Place])>,
    prompts: &'a [Vec<i64>],
    copies: usize,
    sampling: &'a Sampling,
}

/// The batch: a row is one sample that goes on.
struct Rows {
    /// The sample behind each row.
    samples: Vec<usize>,
    factors: Option<RowFactors>,
    seen: Option<Seen>,
}

/// What has become of every sample.
struct Progress {
    rngs: Vec<ChaCha8Rng>,
    samples: Vec<Sample>,
    done: Vec<bool>,
}

impl Job<'_> {
    fn run(&self, seeds: &[[u8; 32]], mut hooks: Hooks) -> Vec<Sample> {
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let slots = if self.sampling.fixed_shapes { FIXED_SLOTS } else { 16 };
        let cache = self.lm.cache(self.prompts.len(), longest + self.sampling.max_new_tokens, slots);
        let first = self.prefill(&cache, longest); // [prompts, V]
        let (mut rows, mut logits) = self.spread(seeds.len(), &cache, &first); // [B, V]
        let mut progress = Progress {
            rngs: seeds.iter().map(|s| ChaCha8Rng::from_seed(*s)).collect(),
            samples: seeds.iter().map(|_| Sample { ids: Vec::new(), stop: Stop::Length }).collect(),
            done: vec![false; seeds.len()],
        };
        for step in 0..self.sampling.max_new_tokens {
            let tokens = self.draw(&logits, &rows, &mut progress);
            self.record(&logits, &rows, &tokens, &mut progress, &mut hooks);
            let left: Vec<usize> = (0..rows.samples.len()).filter(|row| !progress.done[rows.samples[*row]]).collect();
            if left.is_empty() || step + 1 == self.sampling.max_new_tokens {
                break;
            }
            let tokens = self.compact(left, tokens, &mut rows, &cache);
            logits = self.next(step, &tokens, &mut rows, &cache);
        }
        progress.samples
    }

    /// With fixed shapes the last row is repeated until their number is a multiple.
    fn fill(&self, mut rows: Vec<usize>) -> Vec<usize> {
        if self.sampling.fixed_shapes {
            rows.resize(rows.len().next_multiple_of(FIXED_ROWS), rows[rows.len() - 1]);
        }
        rows
    }

    fn tensor(&self, values: &[i64]) -> Tensor {
        Tensor::from_slice(values).to_device(self.lm.device)
    }

    fn prompt_of(&self, sample: usize) -> usize {
        sample / self.copies
    }

    /// Runs each prompt once: logits of its last token, `[prompts, V]`.
    fn prefill(&self, cache: &RefCell<Cache>, longest: usize) -> Tensor {
        let (lm, fixed) = (self.lm, self.sampling.fixed_shapes);
        let together = if fixed { 1 } else { self.prompts.len() };
        let mut first = Vec::new();
        for (n, some) in self.prompts.chunks(together).enumerate() {
            let trees: Vec<Tree> = some.iter().map(|p| Tree::new(&[p])).collect();
            let multiple = if fixed { FIXED_SLOTS } else { 1 };
            let layout = Layout::new(&trees.iter().collect::<Vec<_>>(), multiple, lm.kind, lm.device);
            let rows: Vec<i64> =
                some.iter().enumerate().flat_map(|(i, p)| vec![(n * together + i) as i64; p.len()]).collect();
            let positions: Vec<i64> = some.iter().flat_map(|p| 0..p.len() as i64).collect();
            cache.borrow_mut().expect(&rows, &positions, &[longest as i64 - 1]);
            let of_some = |users: &[Place]| users[n * together..][..some.len()].to_vec();
            let factors = self.adapter.map(|(bank, users)| bank.rows(&of_some(users), &layout.lengths));
            let pass = lm.over(&layout, factors.as_ref(), Some(cache));
            let ids: Vec<i64> = some.iter().flatten().copied().collect();
            let x = lm.blocks(lm.embed(&ids, &layout.positions), 0..lm.depth(), &pass);
            let last: Vec<i64> = some
                .iter()
                .scan(-1, |at, p| {
                    *at += p.len() as i64;
                    Some(*at)
                })
                .collect();
            first.push(lm.logits(&lm.final_norm(&x.index_select(0, &self.tensor(&last)))));
        }
        Tensor::cat(&first, 0)
    }

    /// From prompts to samples: the batch, the cache's rows and the logits `[B, V]` of each sample's prompt.
    fn spread(&self, samples: usize, cache: &RefCell<Cache>, first: &Tensor) -> (Rows, Tensor) {
        let samples = self.fill((0..samples).collect());
        let from: Vec<i64> = samples.iter().map(|s| self.prompt_of(*s) as i64).collect();
        cache.borrow_mut().select_rows(&from);
        let seen = self.sampling.repetition_penalty.map(|_| {
            let rows: Vec<&[i64]> = samples.iter().map(|s| self.prompts[self.prompt_of(*s)].as_slice()).collect();
            Seen::new(&rows, self.lm.shape.vocab_size, self.lm.device)
        });
        let logits = first.index_select(0, &self.tensor(&from));
        (Rows { factors: self.factors(&samples), samples, seen }, logits)
    }

    /// The factors of each row's user.
    fn factors(&self, samples: &[usize]) -> Option<RowFactors> {
        self.adapter.map(|(bank, users)| {
            let users: Vec<Place> = samples.iter().map(|s| users[self.prompt_of(*s)]).collect();
            if self.sampling.fixed_shapes { bank.rows_apart(&users) } else { bank.rows(&users, &vec![1; users.len()]) }
        })
    }

    /// A token for each row, from its sample's stream.
    fn draw(&self, logits: &Tensor, rows: &Rows, progress: &mut Progress) -> Vec<i64> {
        let mut draws = vec![None; progress.samples.len()];
        let rngs = &mut progress.rngs;
        let draw = || rows.samples.iter().map(|s| *draws[*s].get_or_insert_with(|| rngs[*s].random::<f32>())).collect();
        choose(logits, self.sampling, rows.seen.as_ref(), draw)
    }

    /// Takes the drawn tokens, tells the hooks, and ends what they end.
    fn record(&self, logits: &Tensor, rows: &Rows, tokens: &[i64], progress: &mut Progress, hooks: &mut Hooks) {
        let drawn = |of: &Tensor| of.gather(1, &self.tensor(tokens).unsqueeze(1), false).squeeze_dim(1);
        let numbers = |of: Tensor| -> Vec<f32> { Vec::try_from(of).expect("a number a row") };
        let scores = hooks.on_score.is_some().then(|| numbers(drawn(logits).to_kind(Kind::Float)));
        let logps = hooks.on_logp.is_some().then(|| {
            let scaled = logits.to_kind(Kind::Float) / self.sampling.temperature.unwrap_or(1.0);
            numbers(drawn(&scaled) - scaled.logsumexp([1i64].as_slice(), false))
        });
        let mut told = vec![false; progress.samples.len()];
        for (row, (s, token)) in rows.samples.iter().zip(tokens).enumerate() {
            if progress.done[*s] || std::mem::replace(&mut told[*s], true) {
                continue;
            }
            if let (Some(on_score), Some(scores)) = (&mut hooks.on_score, &scores) {
                on_score(*s, scores[row]);
            }
            if let (Some(on_logp), Some(logps)) = (&mut hooks.on_logp, &logps) {
                on_logp(*s, logps[row]);
            }
            let sample = &mut progress.samples[*s];
            if self.sampling.stop_ids.contains(token) {
                sample.stop = Stop::Token(*token);
                progress.done[*s] = true;
                continue;
            }
            sample.ids.push(*token);
            if let Some(on_token) = &mut hooks.on_token {
                on_token(*s, *token);
            }
            if let Some(StopStrings { texts, decode }) = &hooks.stop_strings {
                let text = decode(&sample.ids);
                if let Some(found) = texts.iter().position(|t| text.contains(t.as_str())) {
                    sample.stop = Stop::Text(found);
                    progress.done[*s] = true;
                }
            }
        }
    }

    /// Drops the rows of ended samples, if they are enough to be worth it. Gives the tokens of the rows that stay.
    fn compact(&self, mut left: Vec<usize>, tokens: Vec<i64>, rows: &mut Rows, cache: &RefCell<Cache>) -> Vec<i64> {
        if self.sampling.fixed_shapes {
            left.dedup_by_key(|row| rows.samples[*row]); // the repeated row
        }
        let left = self.fill(left);
        let gone = rows.samples.len().saturating_sub(left.len());
        if gone == 0 || (gone as f64) < COMPACT_AT * rows.samples.len() as f64 {
            return tokens;
        }
        let places: Vec<i64> = left.iter().map(|row| *row as i64).collect();
        cache.borrow_mut().select_rows(&places);
        if let Some(seen) = &mut rows.seen {
            seen.select_rows(&places);
        }
        rows.samples = left.iter().map(|row| rows.samples[*row]).collect();
        rows.factors = self.factors(&rows.samples);
        left.iter().map(|row| tokens[*row]).collect()
    }

    /// The logits `[B, V]` after the `step`-th tokens.
    fn next(&self, step: usize, tokens: &[i64], rows: &mut Rows, cache: &RefCell<Cache>) -> Tensor {
        if let Some(seen) = &mut rows.seen {
            seen.add(tokens);
        }
        let place = |s: &usize| (self.prompts[self.prompt_of(*s)].len() + step) as i64;
        let positions: Vec<i64> = rows.samples.iter().map(place).collect();
        let all: Vec<i64> = (0..rows.samples.len() as i64).collect();
        cache.borrow_mut().expect(&all, &positions, &positions);
        let at = self.tensor(&positions);
        let pass = self.lm.next(&at, rows.factors.as_ref(), cache);
        let x = self.lm.blocks(self.lm.embed(tokens, &at), 0..self.lm.depth(), &pass);
        self.lm.logits(&self.lm.final_norm(&x))
    }
}
