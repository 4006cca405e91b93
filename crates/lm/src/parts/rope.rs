//! Rotary positions (Su et al. 2021) as published models scale and lay them out.

use problem::{Result, invalid};
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::positive::positive;
use crate::cpu::fused;

/// Which numbers of a head are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Number `i` and number `i + D / 2`: most families.
    Halves,
    /// Number `2i` and number `2i + 1`: GPT-J.
    Interleaved,
}

/// `rope_theta` with `rope_scaling` (transformers 4), or `rope_parameters` (transformers 5).
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RopeConfig {
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<Scaling>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// The fields of all kinds of scaling.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Scaling {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>, // the older name of rope_type
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    /// What this code does not know.
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Scaling {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn kind(&self) -> Option<&str> {
        self.rope_type.as_deref().or(self.kind.as_deref())
    }

    /// These parameters with those of `later` in their place, where it has some: how Gemma 3 reads `rope_scaling`.
    pub(crate) fn updated(self, later: Option<Self>) -> Self {
        let Some(later) = later.filter(|later| !later.is_empty()) else { return self };
        Self { rope_theta: later.rope_theta.or(self.rope_theta), ..later }
    }
}

/// The model's numbers that positions depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Positions<'a> {
    /// How many numbers of a head are rotated.
    pub(crate) rotated: i64,
    /// `rope_theta` where the configuration gives none.
    pub(crate) default_theta: f64,
    /// `max_position_embeddings`
    pub(crate) most: Option<i64>,
    /// The configuration's file, for messages.
    pub(crate) place: &'a str,
}

/// Inverse frequencies and what cosines and sines are multiplied by.
#[derive(Debug)]
pub(crate) struct Frequencies {
    values: Tensor, // [D / 2], float32
    factor: f64,
}

const HINT: &str = "fetch the model's config.json again";

impl RopeConfig {
    /// From a `rope_theta` and what scales it.
    pub(crate) fn new(rope_theta: f64, scaling: Option<Scaling>) -> Self {
        Self { rope_theta: Some(rope_theta), rope_scaling: scaling, ..Self::default() }
    }

    /// What scales the positions. As in transformers, `rope_scaling` is read first.
    fn scaling(&self) -> Option<&Scaling> {
        self.rope_scaling.as_ref().filter(|s| !s.is_empty()).or(self.rope_parameters.as_ref())
    }

    /// The share of each head's numbers that is rotated, inside the rope's own table.
    pub(crate) fn partial_rotary_factor(&self) -> Option<f64> {
        self.scaling()?.partial_rotary_factor
    }

    /// Refuses a `partial_rotary_factor` other than `share`.
    pub(crate) fn refuse_another_share(&self, share: f64, place: &str) -> Result<()> {
        for found in [self.partial_rotary_factor, self.partial_rotary_factor()].into_iter().flatten() {
            if (found - share).abs() > 1e-9 {
                let place = format!("{place}, `partial_rotary_factor`");
                return Err(invalid(place, share.to_string(), found.to_string(), "this model is not supported yet"));
            }
        }
        Ok(())
    }

    /// Inverse frequencies `[D / 2]` in float32 of the rotated numbers, as transformers' `modeling_rope_utils` computes them.
    /// Scaling that this code does not compute is refused.
    pub(crate) fn frequencies(&self, of: Positions, device: Device) -> Result<Frequencies> {
        let Positions { rotated: d, default_theta, most, place } = of;
        if d < 2 || d % 2 != 0 {
            let place = format!("{place}, numbers of a head that are rotated");
            return Err(invalid(place, "pairs", d.to_string(), HINT));
        }
        let nothing = Scaling::default();
        let scaling = self.scaling().unwrap_or(&nothing);
        let theta = positive(scaling.rope_theta.or(self.rope_theta).unwrap_or(default_theta), place, "rope_theta")?;
        let plain: Vec<f64> = (0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64)).collect();
        let kind = scaling.kind().unwrap_or("default");
        let place = format!("{place}, RoPE scaling `{kind}`");
        if let Some((name, found)) = scaling.others.iter().find(|(name, v)| !v.is_null() && *name != "finetuned") {
            let expected = "no key that changes positions in a way that is not supported";
            let hint = "this scaling is not supported yet";
            return Err(invalid(place, expected, format!("`{name}` = {found}"), hint));
        }
        let need = |name: &str, value: Option<f64>| {
            let nothing = || invalid(&place, format!("`{name}`"), "nothing", HINT);
            positive(value.ok_or_else(nothing)?, &place, name)
        };
        let longest = most.map(|n| n as f64);
        let original = self.original_max_position_embeddings.or(scaling.original_max_position_embeddings).or(longest);
        let (scaled, factor) = match kind {
            "default" => (plain, 1.0),
            // Within `max_position_embeddings`, which no position exceeds here, dynamic frequencies are the plain ones.
            "dynamic" => {
                need("factor", scaling.factor)?;
                need("max_position_embeddings", longest)?;
                (plain, 1.0)
            }
            "linear" => {
                let factor = need("factor", scaling.factor)?;
                (plain.iter().map(|f| f / factor).collect(), 1.0)
            }
            "llama3" => {
                let factor = need("factor", scaling.factor)?;
                let low = need("low_freq_factor", scaling.low_freq_factor)?;
                let high = need("high_freq_factor", scaling.high_freq_factor)?;
                if low >= high {
                    let expected = "`low_freq_factor` below `high_freq_factor`";
                    return Err(invalid(place, expected, format!("{low} and {high}"), HINT));
                }
                let original = need("original_max_position_embeddings", original)?;
                (plain.iter().map(|f| llama3(*f, factor, low, high, original)).collect(), 1.0)
            }
            "yarn" => {
                let original = need("original_max_position_embeddings", original)?;
                let factor = need("factor", scaling.factor.or(longest.map(|most| most / original)))?;
                let fast = need("beta_fast", Some(scaling.beta_fast.filter(|b| *b != 0.0).unwrap_or(32.0)))?;
                let slow = need("beta_slow", Some(scaling.beta_slow.filter(|b| *b != 0.0).unwrap_or(1.0)))?;
                let attention = match scaling.attention_factor {
                    Some(given) => need("attention_factor", Some(given))?,
                    None => yarn_attention(factor, scaling.mscale, scaling.mscale_all_dim),
                };
                let whole = scaling.truncate.unwrap_or(true);
                (yarn(&plain, theta, factor, original, fast, slow, whole), attention)
            }
            other => {
                let expected = "`default`, `linear`, `dynamic`, `yarn` or `llama3`";
                let hint = "this scaling is not supported yet";
                return Err(invalid(place, expected, format!("`{other}`"), hint));
            }
        };
        let values: Vec<f32> = scaled.into_iter().map(|f| f as f32).collect();
        Ok(Frequencies { values: Tensor::from_slice(&values).to_device(device), factor })
    }
}

/// YaRN's factor of cosines and sines (Peng et al. 2023, equation 22; with DeepSeek's `mscale`).
fn yarn_attention(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let of = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match (mscale.filter(|m| *m != 0.0), mscale_all_dim.filter(|m| *m != 0.0)) {
        (Some(own), Some(all)) => of(own) / of(all),
        _ => of(1.0),
    }
}

/// YaRN's frequencies: those that turn more than `fast` times within the original context are kept, those that turn less than `slow`
/// times are divided by `factor`, those between are blended. With `whole`, the borders are rounded to whole numbers.
fn yarn(plain: &[f64], theta: f64, factor: f64, original: f64, fast: f64, slow: f64, whole: bool) -> Vec<f64> {
    let d = 2.0 * plain.len() as f64;
    let border = |turns: f64| d * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let (low, high) = (border(fast), border(slow));
    let (low, high) = if whole { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
    if (low - high).abs() < f64::EPSILON {
        high += 0.001;
    }
    let blend = |(i, frequency): (usize, &f64)| {
        let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        frequency / factor * stretched + frequency * (1.0 - stretched)
    };
    plain.iter().enumerate().map(blend).collect()
}

/// Llama 3.1's frequencies: long wavelengths are stretched by `factor`, short ones kept, those between blended.
pub(crate) fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = std::f64::consts::TAU / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// A model's rotary embedding.
#[derive(Debug)]
pub(crate) struct Rotary {
    frequencies: Frequencies,
    style: Style,
    kind: Kind,
}

impl Rotary {
    pub(crate) fn new(frequencies: Frequencies, style: Style, kind: Kind) -> Self {
        Self { frequencies, style, kind }
    }

    /// For the positions `[N]` of a pass.
    pub(crate) fn at(&self, positions: &Tensor) -> Rope {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies.values; // [N, D / 2]
        let angles = match self.style {
            Style::Halves => Tensor::cat(&[&angles, &angles], -1),
            Style::Interleaved => angles.repeat_interleave_self_int(2, Some(-1), None),
        };
        let angles = angles.unsqueeze(1); // [N, 1, D]
        let scaled = |wave: Tensor| if self.frequencies.factor == 1.0 { wave } else { wave * self.frequencies.factor };
        let in_kind = |wave: Tensor| scaled(wave).to_kind(self.kind);
        Rope { cos: in_kind(angles.cos()), sin: in_kind(angles.sin()), style: self.style }
    }
}

/// Cosines and sines `[N, 1, D]` of a pass's positions, in the model's type.
#[derive(Debug)]
pub(crate) struct Rope {
    cos: Tensor,
    sin: Tensor,
    style: Style,
}

impl Rope {
    /// Rotates `[N, H, D]`; of wider heads only the first numbers.
    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        let (d, width) = (self.cos.size()[2], x.size()[2]);
        if d == width {
            return self.rotate(x);
        }
        Tensor::cat(&[self.rotate(&x.narrow(2, 0, d)), x.narrow(2, d, width - d)], 2)
    }

    fn rotate(&self, x: &Tensor) -> Tensor {
        if self.style == Style::Halves && fused::fits(x) && x.kind() == self.cos.kind() {
            return fused::rotate(x, &self.cos, &self.sin);
        }
        let rotated = match self.style {
            Style::Halves => {
                let half = x.size()[2] / 2;
                Tensor::cat(&[-x.narrow(2, half, half), x.narrow(2, 0, half)], 2)
            }
            Style::Interleaved => {
                let (n, h, d) = x.size3().expect("three axes");
                let pairs = x.reshape([n, h, d / 2, 2]);
                Tensor::stack(&[-pairs.select(3, 1), pairs.select(3, 0)], 3).reshape([n, h, d])
            }
        };
        x * &self.cos + rotated * &self.sin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        // original 8192, low 1, high 4, factor 8: below a wavelength of 2048 as it is, above 8192 an eighth.
        let at = |wavelength: f64| llama3(std::f64::consts::TAU / wavelength, 8.0, 1.0, 4.0, 8192.0) * wavelength;
        let turn = std::f64::consts::TAU;
        assert!((at(2000.0) / turn - 1.0).abs() < 1e-12);
        assert!((at(9000.0) / turn - 0.125).abs() < 1e-12);
        // Between: wavelength 4096 is smooth = (2 - 1) / 3; 2/3 * 1/8 + 1/3 = 5/12.
        assert!((at(4096.0) / turn - 5.0 / 12.0).abs() < 1e-12);
    }

    fn frequencies(config: &str) -> Result<Frequencies> {
        let config: RopeConfig = serde_json::from_str(config).unwrap();
        let of = Positions { rotated: 8, default_theta: 1e4, most: Some(64), place: "config.json" };
        config.frequencies(of, Device::Cpu)
    }

    #[test]
    fn unknown_scaling_is_refused_by_its_name() {
        for (config, name) in [
            (r#"{"rope_scaling": {"type": "longrope", "factor": 4.0}}"#, "`longrope`"),
            (r#"{"rope_scaling": {"rope_type": "su"}}"#, "`su`"),
            (r#"{"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}}"#, "`proportional`"),
            (r#"{"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}"#, "`mrope"),
            (r#"{"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}"#, "`full_attention`"),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "`factor`"),
            (r#"{"rope_scaling": {"factor": 2.0, "rope_type": "linear", "offset": 3}}"#, "`offset`"),
        ] {
            let error = frequencies(config).unwrap_err();
            assert!(error.to_string().contains(name), "{config}: {error}");
        }
    }

    #[test]
    fn both_spellings_of_the_type_are_read_and_rope_scaling_goes_before_rope_parameters() {
        let values = |config: &str| Vec::<f32>::try_from(frequencies(config).unwrap().values).unwrap();
        let halved: Vec<f32> = values("{}").iter().map(|f| f / 2.0).collect();
        assert_eq!(values(r#"{"rope_scaling": {"type": "linear", "factor": 2}}"#), halved);
        assert_eq!(values(r#"{"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2}}"#), halved);
        let both = r#"{"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}"#;
        assert_eq!(values(both), halved);
        assert_eq!(values(r#"{"rope_scaling": {"type": "dynamic", "factor": 2}}"#), values("{}"));
    }

    #[test]
    fn yarn_keeps_fast_waves_stretches_slow_ones_and_scales_attention() {
        let yarn = r#"{"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}"#;
        let (plain, scaled) = (frequencies("{}").unwrap(), frequencies(yarn).unwrap());
        assert_eq!(scaled.factor, 0.1 * 4f64.ln() + 1.0);
        let of = |f: &Frequencies, i: i64| f.values.double_value(&[i]);
        assert_eq!(of(&scaled, 0), of(&plain, 0));
        assert_eq!(of(&scaled, 3), of(&plain, 3) / 4.0);
    }
}
