//! Batched sampling with a KV cache.
//!
//! A prompt's samples share its prefill. Every row has a random stream of its own, and rows that are finished leave the
//! batch.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor, no_grad};

use crate::Lm;
use crate::bank::Bank;

/// How to sample.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Answers are cut behind so many tokens.
    pub max_new_tokens: usize,
    /// Logits are divided by it; `None` takes the likeliest token.
    pub temperature: Option<f64>,
    /// Tokens that end an answer.
    pub stop_ids: Vec<i64>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its tokens, without the stop token.
    pub ids: Vec<i64>,
    /// Did it stop by itself?
    pub finished: bool,
}

/// Finished rows are dropped from the batch as soon as this share of it is done.
const COMPACT_AT: f64 = 0.125;

/// Samples `seeds.len() / prompts.len()` answers for every prompt, in the order of `seeds`: sample `c` of prompt `p` is
/// row `p * copies + c` and draws from the stream that `seeds[row]` starts.
///
/// `adapter` is a bank and each prompt's user.
pub fn generate(
    lm: &Lm,
    adapter: Option<(&Bank, &[usize])>,
    prompts: &[Vec<i64>],
    seeds: &[[u8; 32]],
    sampling: &Sampling,
) -> Vec<Sample> {
    let copies = seeds.len() / prompts.len();
    assert_eq!(prompts.len() * copies, seeds.len(), "a seed for every sample of every prompt");
    no_grad(|| generate_rows(lm, adapter, prompts, copies, seeds, sampling))
}

fn generate_rows(
    lm: &Lm,
    adapter: Option<(&Bank, &[usize])>,
    prompts: &[Vec<i64>],
    copies: usize,
    seeds: &[[u8; 32]],
    sampling: &Sampling,
) -> Vec<Sample> {
    let device = lm.device;
    let to_tensor = |v: &[i64]| Tensor::from_slice(v).to_device(device);
    let t_max = prompts.iter().map(Vec::len).max().unwrap_or(0) as i64;
    let capacity = t_max + sampling.max_new_tokens as i64;

    // Prefill: each prompt once, padded on the right; the logits are those of its last token.
    let padded: Vec<Tensor> = prompts.iter().map(|p| Tensor::from_slice(p)).collect();
    let ids = Tensor::pad_sequence(&padded, true, 0.0, "right").to_device(device); // [P, T]
    let mut cache = lm.cache(prompts.len() as i64, capacity);
    let factors = adapter.map(|(bank, users)| bank.gather(users));
    let x = lm.prefill(lm.embed(&ids), &lm.rope_range(t_max), &mut cache, factors.as_ref());
    let last: Vec<i64> = prompts.iter().enumerate().map(|(p, ids)| p as i64 * t_max + ids.len() as i64 - 1).collect();
    let hidden = x.view([-1, lm.config.hidden_size]).index_select(0, &to_tensor(&last)); // [P, E]

    // From here on a row is one sample.
    let prompt_of: Vec<i64> = (0..seeds.len()).map(|row| (row / copies) as i64).collect();
    cache.select_rows(&to_tensor(&prompt_of));
    let mut logits = lm.logits(&lm.final_norm(&hidden)).index_select(0, &to_tensor(&prompt_of)); // [B, V]
    let mut factors = adapter.map(|(bank, users)| {
        let users: Vec<usize> = prompt_of.iter().map(|p| users[*p as usize]).collect();
        bank.gather(&users)
    });
    let lengths: Vec<i64> = prompt_of.iter().map(|p| prompts[*p as usize].len() as i64).collect();
    let mut position = to_tensor(&lengths); // [B], of the token to come
    // 0 where a row has a token, -inf at the padding behind its prompt.
    let slots = Tensor::arange(t_max, (Kind::Int64, device)).unsqueeze(0);
    let padding = slots.ge_tensor(&position.unsqueeze(1)); // [B, T]
    let mut bias = Tensor::zeros([seeds.len() as i64, capacity], (lm.kind, device));
    _ = bias.narrow(1, 0, t_max).masked_fill_(&padding, f64::NEG_INFINITY);

    let mut rngs: Vec<ChaCha8Rng> = seeds.iter().map(|s| ChaCha8Rng::from_seed(*s)).collect();
    let mut samples: Vec<Sample> = seeds.iter().map(|_| Sample { ids: Vec::new(), finished: false }).collect();
    let mut live: Vec<usize> = (0..seeds.len()).collect(); // the sample behind each row of the batch
    for step in 0..sampling.max_new_tokens {
        let next = choose(&logits, sampling.temperature, || live.iter().map(|s| rngs[*s].random::<f32>()).collect());
        let tokens: Vec<i64> = Vec::try_from(&next).expect("one id a row");
        for (s, token) in live.iter().zip(&tokens) {
            let sample = &mut samples[*s];
            if !sample.finished {
                sample.finished = sampling.stop_ids.contains(token);
                if !sample.finished {
                    sample.ids.push(*token);
                }
            }
        }
        let left: Vec<i64> = (0..live.len() as i64).filter(|row| !samples[live[*row as usize]].finished).collect();
        if left.is_empty() || step + 1 == sampling.max_new_tokens {
            break;
        }
        let mut next = next;
        if ((live.len() - left.len()) as f64) >= COMPACT_AT * live.len() as f64 && left.len() < live.len() {
            let rows = to_tensor(&left);
            cache.select_rows(&rows);
            if let Some(factors) = &mut factors {
                factors.select_rows(&rows);
            }
            (next, position, bias) =
                (next.index_select(0, &rows), position.index_select(0, &rows), bias.index_select(0, &rows));
            live = left.iter().map(|row| live[*row as usize]).collect();
        }
        let seen = bias.narrow(1, 0, cache.len() + 1).unsqueeze(1).unsqueeze(1); // [B, 1, 1, S]
        let rope = lm.rope(&position.unsqueeze(1));
        let x = lm.decode(lm.embed(&next.unsqueeze(1)), &rope, &mut cache, &seen, factors.as_ref());
        logits = lm.logits(&lm.final_norm(&x.squeeze_dim(1)));
        position += 1;
    }
    samples
}

/// The next token of each row, `[B]`: by inverse CDF at the uniforms that `draw` gives, or the likeliest.
fn choose(logits: &Tensor, temperature: Option<f64>, draw: impl FnOnce() -> Vec<f32>) -> Tensor {
    let Some(temperature) = temperature else { return logits.argmax(-1, false) };
    let cumulative = (logits.to_kind(Kind::Float) / temperature).softmax(-1, Kind::Float).cumsum(-1, Kind::Float);
    let total = cumulative.narrow(1, -1, 1); // 1 up to rounding
    let threshold = Tensor::from_slice(&draw()).to_device(logits.device()).unsqueeze(1) * total;
    // The first token whose cumulative mass exceeds the draw; a token of mass zero is never it.
    let index = threshold.searchsorted::<&Tensor>(&cumulative, false, true, "right", None);
    index.squeeze_dim(1).clamp_max(logits.size()[1] - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverse_cdf_draws_each_token_at_its_probability() {
        let logits = Tensor::from_slice(&[0.5f32.ln(), f32::NEG_INFINITY, 0.3f32.ln(), 0.2f32.ln()]).view([1, 4]);
        let at = |u: f32| i64::try_from(choose(&logits, Some(1.0), || vec![u])).unwrap();
        assert_eq!([0.0, 0.49, 0.51, 0.79, 0.81, 0.999_999].map(at), [0, 0, 2, 2, 3, 3]);
        // At temperature 0.5 the probabilities are squared and normed: .25, 0, .09, .04 of .38.
        let at = |u: f32| i64::try_from(choose(&logits, Some(0.5), || vec![u])).unwrap();
        assert_eq!([0.65, 0.67, 0.89, 0.90].map(at), [0, 2, 2, 3]);
        assert_eq!(i64::try_from(choose(&logits, None, Vec::new)).unwrap(), 0);
    }
}
