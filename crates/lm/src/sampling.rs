//! From logits to the next token.

use std::num::NonZero;

use tch::{Kind, Tensor};

use crate::cpu::fused;

/// How to sample. Filters apply in transformers' order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Answers are cut behind so many tokens.
    pub max_new_tokens: usize,
    /// Logits are divided by it; `None` takes the likeliest token.
    pub temperature: Option<f64>,
    /// Only the so many likeliest tokens.
    pub top_k: Option<NonZero<usize>>,
    /// Only the likeliest tokens that together reach this probability (nucleus; Holtzman et al. 2020).
    pub top_p: Option<f64>,
    /// Only tokens with this share of the likeliest one's probability (Nguyen et al. 2024).
    pub min_p: Option<f64>,
    /// Positive logits of tokens that prompt or answer hold are divided by it, negative ones multiplied (Keskar et al.
    /// 2019).
    pub repetition_penalty: Option<f64>,
    /// Tokens that end an answer.
    pub stop_ids: Vec<i64>,
    /// Rows, prompts and cache are padded to fixed multiples and prompts run one by one, so that a row's bits do not
    /// depend on its neighbours. Slower.
    pub fixed_shapes: bool,
}

impl Sampling {
    /// The likeliest token at every step.
    pub fn greedy(max_new_tokens: usize, stop_ids: Vec<i64>) -> Self {
        Self {
            max_new_tokens,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            stop_ids,
            fixed_shapes: false,
        }
    }

    /// The model as it is, at this temperature.
    pub fn at(temperature: f64, max_new_tokens: usize, stop_ids: Vec<i64>) -> Self {
        Self { temperature: Some(temperature), ..Self::greedy(max_new_tokens, stop_ids) }
    }
}

/// The tokens that each row of a batch has seen, for the repetition penalty: `[B, V]`.
#[derive(Debug)]
pub(crate) struct Seen(Tensor);

impl Seen {
    pub(crate) fn new(rows: &[&[i64]], vocab_size: i64, device: tch::Device) -> Self {
        let seen = Tensor::zeros([rows.len() as i64, vocab_size], (Kind::Bool, device));
        for (r, ids) in rows.iter().enumerate() {
            let index = Tensor::from_slice(ids).to_device(device);
            _ = seen.get(r as i64).index_fill_(0, &index, 1);
        }
        Self(seen)
    }

    pub(crate) fn add(&mut self, tokens: &[i64]) {
        let index = Tensor::from_slice(tokens).to_device(self.0.device()).unsqueeze(1);
        _ = self.0.scatter_value_(1, &index, 1);
    }

    pub(crate) fn select_rows(&mut self, rows: &[i64]) {
        self.0 = self.0.index_select(0, &Tensor::from_slice(rows).to_device(self.0.device()));
    }
}

/// The next token of each row of `logits` `[B, V]`: by inverse CDF at the uniforms that `draw` gives, or the likeliest.
pub(crate) fn choose(
    logits: &Tensor,
    sampling: &Sampling,
    seen: Option<&Seen>,
    draw: impl FnOnce() -> Vec<f32>,
) -> Vec<i64> {
    let mut scores = logits.shallow_clone();
    if let (Some(penalty), Some(Seen(seen))) = (sampling.repetition_penalty, seen) {
        let punished = scores.where_self(&scores.lt(0.0), &(&scores / (penalty * penalty))) * penalty;
        scores = punished.where_self(seen, &scores);
    }
    let Some(temperature) = sampling.temperature else {
        return Vec::try_from(scores.argmax(-1, false)).expect("one id a row");
    };
    let filtered = sampling.top_k.is_some() || sampling.top_p.is_some() || sampling.min_p.is_some();
    if !filtered && fused::fits(&scores) {
        let tokens = fused::draw(&scores, &Tensor::from_slice(&draw()), temperature);
        return Vec::try_from(tokens).expect("one id a row");
    }
    scores = scores.to_kind(Kind::Float) / temperature;
    if let Some(k) = sampling.top_k {
        let (best, _) = scores.topk((k.get() as i64).min(scores.size()[1]), -1, true, true);
        scores = below(&scores, &best.narrow(1, -1, 1));
    }
    if let Some(p) = sampling.top_p {
        scores = below(&scores, &nucleus(&scores, p));
    }
    let mut weights = (&scores - scores.amax(-1, true)).exp_(); // the likeliest is 1
    if let Some(min_p) = sampling.min_p {
        weights = weights.masked_fill(&weights.lt(min_p), 0.0);
    }
    let cumulative = weights.cumsum_(-1, Kind::Float);
    let total = cumulative.narrow(1, -1, 1);
    let threshold = Tensor::from_slice(&draw()).to_device(logits.device()).unsqueeze(1) * total;
    // The first token whose cumulative mass exceeds the draw; a token of mass zero is never it.
    let index = threshold.searchsorted::<&Tensor>(&cumulative, false, true, "right", None);
    Vec::try_from(index.squeeze_dim(1).clamp_max(logits.size()[1] - 1)).expect("one id a row")
}

fn below(scores: &Tensor, threshold: &Tensor) -> Tensor {
    scores.masked_fill(&scores.lt_tensor(threshold), f64::NEG_INFINITY)
}

/// Tokens that are sorted before all of them are.
const NUCLEUS_FIRST: i64 = 1024;

/// The smallest score `[B, 1]` among the likeliest tokens that reach probability `p`.
fn nucleus(scores: &Tensor, p: f64) -> Tensor {
    let probabilities = scores.softmax(-1, Kind::Float);
    let all = scores.size()[1];
    let mut count = NUCLEUS_FIRST.min(all);
    loop {
        let (best, index) = probabilities.topk(count, -1, true, true);
        let cumulative = best.cumsum(-1, Kind::Float);
        if count == all || cumulative.narrow(1, -1, 1).ge(p).all().int64_value(&[]) == 1 {
            // A token is kept if those before it have not reached p.
            let kept = (&cumulative - &best).lt(p).sum_dim_intlist(1, true, Kind::Int64).clamp_min(1); // [B, 1]
            return scores.gather(1, &index.gather(1, &(kept - 1), false), false);
        }
        count = all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(probabilities: &[f32]) -> Tensor {
        tch::set_num_threads(1);
        let values: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        Tensor::from_slice(&values).view([1, -1])
    }

    fn draw(probabilities: &[f32], sampling: &Sampling, u: f32) -> i64 {
        choose(&logits(probabilities), sampling, None, || vec![u])[0]
    }

    #[test]
    fn inverse_cdf_draws_each_token_at_its_probability() {
        let p = [0.5, 0.0, 0.3, 0.2];
        let at = |u: f32| draw(&p, &Sampling::at(1.0, 1, vec![]), u);
        assert_eq!([0.0, 0.49, 0.51, 0.79, 0.81, 0.999_999].map(at), [0, 0, 2, 2, 3, 3]);
        // At temperature 0.5 the probabilities are squared and normed: .25, 0, .09, .04 of .38.
        let at = |u: f32| draw(&p, &Sampling::at(0.5, 1, vec![]), u);
        assert_eq!([0.65, 0.67, 0.89, 0.90].map(at), [0, 2, 2, 3]);
        assert_eq!(draw(&p, &Sampling::greedy(1, vec![]), 0.9), 0);
    }

    #[test]
    fn the_fused_draw_and_the_filtered_one_agree() {
        tch::set_num_threads(1);
        let logits: Vec<f32> = (0..5003).map(|i: i64| ((i * i * 31 + i * 7919) % 1009) as f32 / 100.0).collect();
        let logits = Tensor::from_slice(&logits).view([1, -1]);
        let plain = Sampling::at(0.7, 1, vec![]);
        let filtered = Sampling { min_p: Some(0.0), ..plain.clone() }; // keeps everything, the other way
        let mut apart = 0;
        for i in 0..500 {
            let u = (i as f32 + 0.37) / 500.0;
            let at = |s: &Sampling| choose(&logits, s, None, || vec![u])[0];
            apart += i32::from(at(&plain) != at(&filtered));
        }
        assert!(apart <= 2, "{apart} of 500 draws differ"); // cumulative sums round in another order
    }

    #[test]
    fn filters_keep_what_their_definitions_say() {
        let p = [0.1, 0.4, 0.05, 0.3, 0.15];
        let kept = |sampling: &Sampling| -> Vec<i64> {
            let mut tokens: Vec<i64> = (0..1000).map(|i| draw(&p, sampling, (i as f32 + 0.5) / 1000.0)).collect();
            tokens.dedup();
            tokens
        };
        let plain = Sampling::at(1.0, 1, vec![]);
        assert_eq!(kept(&plain), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&Sampling { top_k: NonZero::new(2), ..plain.clone() }), [1, 3]);
        // .4 + .3 = .7 does not reach .8; with .15 it does.
        assert_eq!(kept(&Sampling { top_p: Some(0.8), ..plain.clone() }), [1, 3, 4]);
        assert_eq!(kept(&Sampling { top_p: Some(0.01), ..plain.clone() }), [1]);
        assert_eq!(kept(&Sampling { min_p: Some(0.3), ..plain.clone() }), [1, 3, 4]); // at least .12
        // After top-k 3 the probabilities are .4, .3, .15 of .85; .471 + .353 reaches .8.
        assert_eq!(kept(&Sampling { top_k: NonZero::new(3), top_p: Some(0.8), ..plain }), [1, 3]);
    }

    #[test]
    fn a_nucleus_wider_than_the_first_look_is_found() {
        tch::set_num_threads(1);
        let even = Tensor::zeros([2, 3000], (Kind::Float, tch::Device::Cpu));
        let sampling = Sampling { top_p: Some(0.9), ..Sampling::at(1.0, 1, vec![]) };
        // All alike: ties are kept, so the last token can be drawn.
        assert_eq!(choose(&even, &sampling, None, || vec![0.0, 0.9999]), [0, 2999]);
    }

    #[test]
    fn the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() {
        tch::set_num_threads(1);
        let logits = Tensor::from_slice(&[2.0f32, 1.5, -0.5, -1.0]).view([1, 4]);
        let greedy = |seen: &[i64], penalty| {
            let seen = Seen::new(&[seen], 4, tch::Device::Cpu);
            let sampling = Sampling { repetition_penalty: Some(penalty), ..Sampling::greedy(1, vec![]) };
            choose(&logits, &sampling, Some(&seen), Vec::new)[0]
        };
        assert_eq!(greedy(&[3], 2.0), 0);
        assert_eq!(greedy(&[0], 2.0), 1); // 2 / 2 < 1.5
        assert_eq!(greedy(&[0, 1], 10.0), 0); // .2 > .15
        let negative = Tensor::from_slice(&[-0.5f32, -0.6]).view([1, 2]);
        let seen = Seen::new(&[&[0]], 2, tch::Device::Cpu);
        let sampling = Sampling { repetition_penalty: Some(1.3), ..Sampling::greedy(1, vec![]) };
        assert_eq!(choose(&negative, &sampling, Some(&seen), Vec::new), [1]); // -.65 < -.6
    }
}
