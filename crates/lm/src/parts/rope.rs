//! Rotary positions (Su et al. 2021) as published models scale and lay them out.

use problem::{Result, invalid};
use serde::Deserialize;
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
#[expect(clippy::struct_field_names, reason = "published names")]
pub(crate) struct RopeConfig {
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<Scaling>,
}

/// The fields of all kinds of scaling.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Scaling {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>, // the older name of rope_type
    pub(crate) rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    pub(crate) partial_rotary_factor: Option<f64>,
}

impl RopeConfig {
    /// From a `rope_theta` and what scales it.
    pub(crate) fn new(rope_theta: f64, scaling: Option<Scaling>) -> Self {
        Self { rope_theta: Some(rope_theta), rope_scaling: scaling, rope_parameters: None }
    }

    /// `rope_parameters.partial_rotary_factor`
    pub(crate) fn partial_rotary_factor(&self) -> Option<f64> {
        self.rope_parameters.as_ref()?.partial_rotary_factor
    }

    /// Inverse frequencies `[D / 2]` in float32 of `d` rotated numbers. Scaling that this code does not compute is
    /// refused.
    pub(crate) fn frequencies(&self, d: i64, default_theta: f64, place: &str, device: Device) -> Result<Tensor> {
        if d < 2 || d % 2 != 0 {
            let place = format!("{place}, numbers of a head that are rotated");
            return Err(invalid(place, "pairs", d.to_string(), "fetch the model's config.json again"));
        }
        let scaling = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = scaling.and_then(|s| s.rope_theta).or(self.rope_theta).unwrap_or(default_theta);
        let theta = positive(theta, place, "rope_theta")?;
        let plain: Vec<f64> = (0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64)).collect();
        let kind = scaling.and_then(|s| s.rope_type.as_deref().or(s.kind.as_deref())).unwrap_or("default");
        let need = |name: &str, value: Option<f64>| {
            let place = format!("{place}, RoPE scaling `{kind}`");
            let nothing = || invalid(&place, format!("`{name}`"), "nothing", "fetch the model's config.json again");
            positive(value.ok_or_else(nothing)?, &place, name)
        };
        let scaled: Vec<f64> = match (kind, scaling) {
            ("linear", Some(s)) => {
                let factor = need("factor", s.factor)?;
                plain.iter().map(|f| f / factor).collect()
            }
            ("llama3", Some(s)) => {
                let factor = need("factor", s.factor)?;
                let (low, high) =
                    (need("low_freq_factor", s.low_freq_factor)?, need("high_freq_factor", s.high_freq_factor)?);
                if low >= high {
                    let (place, found) = (format!("{place}, RoPE scaling `{kind}`"), format!("{low} and {high}"));
                    let expected = "`low_freq_factor` below `high_freq_factor`";
                    return Err(invalid(place, expected, found, "fetch the model's config.json again"));
                }
                let original = need("original_max_position_embeddings", s.original_max_position_embeddings)?;
                plain.iter().map(|f| llama3(*f, factor, low, high, original)).collect()
            }
            ("default", _) => plain,
            (other, _) => {
                let place = format!("{place}, RoPE scaling");
                let hint = "this scaling is not supported yet";
                return Err(invalid(place, "`default`, `linear` or `llama3`", format!("`{other}`"), hint));
            }
        };
        let values: Vec<f32> = scaled.into_iter().map(|f| f as f32).collect();
        Ok(Tensor::from_slice(&values).to_device(device))
    }
}

/// Llama 3.1's frequencies: long wavelengths are stretched by `factor`, short ones kept, those between blended.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
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
    frequencies: Tensor, // [D / 2]
    style: Style,
    kind: Kind,
}

impl Rotary {
    pub(crate) fn new(frequencies: Tensor, style: Style, kind: Kind) -> Self {
        Self { frequencies, style, kind }
    }

    /// For the positions `[N]` of a pass.
    pub(crate) fn at(&self, positions: &Tensor) -> Rope {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies; // [N, D / 2]
        let angles = match self.style {
            Style::Halves => Tensor::cat(&[&angles, &angles], -1),
            Style::Interleaved => angles.repeat_interleave_self_int(2, Some(-1), None),
        };
        let angles = angles.unsqueeze(1); // [N, 1, D]
        Rope { cos: angles.cos().to_kind(self.kind), sin: angles.sin().to_kind(self.kind), style: self.style }
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

    #[test]
    fn unknown_scaling_is_refused() {
        let config: RopeConfig = serde_json::from_str(r#"{"rope_scaling": {"type": "yarn", "factor": 4.0}}"#).unwrap();
        let error = config.frequencies(8, 1e4, "config.json", Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("`yarn`"), "{error}");
    }
}
