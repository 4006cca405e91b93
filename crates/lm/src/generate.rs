//! Batched sampling with a KV cache.
//!
//! A prompt's samples share its prefill. Every row has a random stream of its own, and rows that are finished leave the
//! batch.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor, no_grad};

use crate::layout::{Layout, Tree};
use crate::sampling::{Seen, choose};
use crate::{Bank, Lm, Sampling};

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
/// `adapter` is a bank and each prompt's user. Prompts have at least one token.
pub fn generate(
    lm: &Lm,
    adapter: Option<(&Bank, &[usize])>,
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
    no_grad(|| generate_rows(lm, adapter, prompts, copies, seeds, sampling, hooks))
}

fn generate_rows(
    lm: &Lm,
    adapter: Option<(&Bank, &[usize])>,
    prompts: &[Vec<i64>],
    copies: usize,
    seeds: &[[u8; 32]],
    sampling: &Sampling,
    mut hooks: Hooks,
) -> Vec<Sample> {
    let fixed = sampling.fixed_shapes;
    let to_tensor = |v: &[i64]| Tensor::from_slice(v).to_device(lm.device);
    // With fixed shapes the last row is repeated until their number is a multiple.
    let fill = |mut rows: Vec<usize>| {
        if fixed {
            rows.resize(rows.len().next_multiple_of(FIXED_ROWS), rows[rows.len() - 1]);
        }
        rows
    };
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let slots = if fixed { FIXED_SLOTS } else { 16 };
    let cache = lm.cache(prompts.len(), longest + sampling.max_new_tokens, slots);

    // Prefill: each prompt once; the logits are those of its last token.
    let together = if fixed { 1 } else { prompts.len() };
    let mut first = Vec::new();
    for (n, some) in prompts.chunks(together).enumerate() {
        let trees: Vec<Tree> = some.iter().map(|p| Tree::new(&[p])).collect();
        let layout =
            Layout::new(&trees.iter().collect::<Vec<_>>(), if fixed { FIXED_SLOTS } else { 1 }, lm.kind, lm.device);
        let rows: Vec<i64> =
            some.iter().enumerate().flat_map(|(i, p)| vec![(n * together + i) as i64; p.len()]).collect();
        let positions: Vec<i64> = some.iter().flat_map(|p| 0..p.len() as i64).collect();
        cache.borrow_mut().expect(&rows, &positions, &[longest as i64 - 1]);
        let factors = adapter.map(|(bank, users)| bank.rows(&users[n * together..][..some.len()], &layout.lengths));
        let pass = lm.over(&layout, factors.as_ref(), Some(&cache));
        let ids: Vec<i64> = some.iter().flatten().copied().collect();
        let x = lm.blocks(lm.embed(&ids, &layout.positions), 0..lm.depth(), &pass);
        let last: Vec<i64> = some
            .iter()
            .scan(-1, |at, p| {
                *at += p.len() as i64;
                Some(*at)
            })
            .collect();
        first.push(lm.logits(&lm.final_norm(&x.index_select(0, &to_tensor(&last)))));
    }

    // From here on a row is one sample.
    let mut live: Vec<usize> = fill((0..seeds.len()).collect()); // the sample behind each row of the batch
    let prompt_of = |sample: usize| sample / copies;
    let from: Vec<i64> = live.iter().map(|s| prompt_of(*s) as i64).collect();
    cache.borrow_mut().select_rows(&from);
    let mut logits = Tensor::cat(&first, 0).index_select(0, &to_tensor(&from)); // [B, V]
    let gather = |live: &[usize]| {
        adapter.map(|(bank, users)| {
            let users: Vec<usize> = live.iter().map(|s| users[prompt_of(*s)]).collect();
            if fixed { bank.rows_apart(&users) } else { bank.rows(&users, &vec![1; users.len()]) }
        })
    };
    let mut factors = gather(&live);
    let mut seen = sampling.repetition_penalty.map(|_| {
        let rows: Vec<&[i64]> = live.iter().map(|s| prompts[prompt_of(*s)].as_slice()).collect();
        Seen::new(&rows, lm.shape.vocab_size, lm.device)
    });
    let mut rngs: Vec<ChaCha8Rng> = seeds.iter().map(|s| ChaCha8Rng::from_seed(*s)).collect();
    let mut samples: Vec<Sample> = seeds.iter().map(|_| Sample { ids: Vec::new(), stop: Stop::Length }).collect();
    let mut done = vec![false; samples.len()];
    for step in 0..sampling.max_new_tokens {
        let mut draws = vec![None; samples.len()];
        let draw = || live.iter().map(|s| *draws[*s].get_or_insert_with(|| rngs[*s].random::<f32>())).collect();
        let mut tokens = choose(&logits, sampling, seen.as_ref(), draw);
        let scores: Vec<f32> = match hooks.on_score {
            Some(_) => {
                let drawn = logits.gather(1, &to_tensor(&tokens).unsqueeze(1), false).squeeze_dim(1);
                Vec::try_from(drawn.to_kind(Kind::Float)).expect("a number a row")
            }
            None => vec![],
        };
        let logps: Vec<f32> = match hooks.on_logp {
            Some(_) => {
                let scaled = logits.to_kind(Kind::Float) / sampling.temperature.unwrap_or(1.0);
                let drawn = scaled.gather(1, &to_tensor(&tokens).unsqueeze(1), false).squeeze_dim(1);
                Vec::try_from(drawn - scaled.logsumexp([1i64].as_slice(), false)).expect("a number a row")
            }
            None => vec![],
        };
        let mut told = vec![false; samples.len()];
        for (row, (s, token)) in live.iter().zip(&tokens).enumerate() {
            if done[*s] || std::mem::replace(&mut told[*s], true) {
                continue;
            }
            if let Some(on_score) = &mut hooks.on_score {
                on_score(*s, scores[row]);
            }
            if let Some(on_logp) = &mut hooks.on_logp {
                on_logp(*s, logps[row]);
            }
            let sample = &mut samples[*s];
            if sampling.stop_ids.contains(token) {
                sample.stop = Stop::Token(*token);
                done[*s] = true;
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
                    done[*s] = true;
                }
            }
        }
        let mut left: Vec<usize> = (0..live.len()).filter(|row| !done[live[*row]]).collect();
        if left.is_empty() || step + 1 == sampling.max_new_tokens {
            break;
        }
        if fixed {
            left.dedup_by_key(|row| live[*row]); // the repeated row
        }
        left = fill(left);
        let gone = live.len().saturating_sub(left.len());
        if gone > 0 && gone as f64 >= COMPACT_AT * live.len() as f64 {
            let rows: Vec<i64> = left.iter().map(|row| *row as i64).collect();
            cache.borrow_mut().select_rows(&rows);
            if let Some(seen) = &mut seen {
                seen.select_rows(&rows);
            }
            tokens = left.iter().map(|row| tokens[*row]).collect();
            live = left.iter().map(|row| live[*row]).collect();
            factors = gather(&live);
        }
        if let Some(seen) = &mut seen {
            seen.add(&tokens);
        }
        let positions: Vec<i64> = live.iter().map(|s| (prompts[prompt_of(*s)].len() + step) as i64).collect();
        let rows: Vec<i64> = (0..live.len() as i64).collect();
        cache.borrow_mut().expect(&rows, &positions, &positions);
        let at = to_tensor(&positions);
        let pass = lm.next(&at, factors.as_ref(), &cache);
        let x = lm.blocks(lm.embed(&tokens, &at), 0..lm.depth(), &pass);
        logits = lm.logits(&lm.final_norm(&x));
    }
    samples
}
