//! The adapter bank: LoRA factors of all users for all adapted layers (Hu et al. 2021; P-ShareLoRA, arXiv 2503.19201).
//!
//! Per layer `down [Nd, r, in]` and `up [Nu, out, r]`, where N is 1 (shared) or the number of users (personal). A row
//! of a batch gathers its user's factors; `y += alpha / r * up (down x)`.

use std::collections::BTreeMap;
use std::num::NonZero;

use rand::Rng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::adamw::{Owner, Parameter};
use crate::error::invalid;
use crate::{LlamaConfig, Lm, Result, Tensors};

/// A linear layer of a block, under its published name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Projection {
    /// Queries.
    #[serde(rename = "q_proj")]
    Q,
    /// Keys.
    #[serde(rename = "k_proj")]
    K,
    /// Values.
    #[serde(rename = "v_proj")]
    V,
    /// Attention's output.
    #[serde(rename = "o_proj")]
    O,
    /// The MLP's gate.
    #[serde(rename = "gate_proj")]
    Gate,
    /// The MLP's upward projection.
    #[serde(rename = "up_proj")]
    Up,
    /// The MLP's downward projection.
    #[serde(rename = "down_proj")]
    Down,
}

impl Projection {
    /// `q_proj`, ...
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The published path of this layer in block `block`, such as `model.layers.3.self_attn.q_proj`.
    pub fn path(self, block: usize) -> String {
        let module = match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        };
        format!("model.layers.{block}.{module}.{}", self.name())
    }

    /// (in, out) of this layer.
    pub fn shape(self, config: &LlamaConfig) -> (i64, i64) {
        let (e, m) = (config.hidden_size, config.intermediate_size);
        let (q, kv) =
            (config.num_attention_heads * config.head_dim(), config.num_key_value_heads() * config.head_dim());
        match self {
            Self::Q => (e, q),
            Self::K | Self::V => (e, kv),
            Self::O => (q, e),
            Self::Gate | Self::Up => (e, m),
            Self::Down => (m, e),
        }
    }
}

/// Is a factor one for all, or one per user?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// One for all users.
    Shared,
    /// One per user.
    Personal,
}

/// What is adapted, as written in a stage's TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// r
    pub rank: NonZero<usize>,
    /// The product is scaled by `alpha / r`.
    pub alpha: f64,
    /// Which linear layers.
    pub targets: Vec<Projection>,
    /// Adapters sit on the last so many blocks; what lies below is computed once per text.
    pub last_blocks: NonZero<usize>,
}

/// A bank's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankConfig {
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Who owns `down`.
    pub down: Sharing,
    /// Who owns `up`.
    pub up: Sharing,
    /// Number of users.
    pub users: usize,
}

#[derive(Debug)]
struct Factors {
    down: Tensor, // [Nd, r, in]
    up: Tensor,   // [Nu, out, r]
}

/// All factors, float32.
#[derive(Debug)]
pub struct Bank {
    config: BankConfig,
    first_block: usize,
    factors: BTreeMap<(usize, Projection), Factors>,
}

/// Each row's factors, gathered: `down [1 or B, r, in]`, `up [1 or B, out, r]`.
#[derive(Debug)]
pub struct RowFactors {
    scale: f64,
    factors: BTreeMap<(usize, Projection), Factors>,
}

fn owners(sharing: Sharing, users: usize) -> usize {
    if sharing == Sharing::Personal { users } else { 1 }
}

impl Bank {
    /// Fresh factors: `down` uniform within `1 / sqrt(in)` (PyTorch's Kaiming-uniform of an `[r, in]` linear layer, as
    /// PEFT has it), `up` zero, so that the bank changes nothing yet.
    ///
    /// `rng(name)` is the random stream of a factor's first axis: `name` is `layer path / owner`, where the owner is
    /// `shared` or what `owner_names` calls the user, so a user's draw does not depend on who else is there.
    pub fn new<R: Rng>(
        config: BankConfig,
        lm: &LlamaConfig,
        owner_names: &[String],
        device: Device,
        rng: impl Fn(&str) -> R,
    ) -> Result<Self> {
        let depth = lm.num_hidden_layers;
        let first_block = depth.checked_sub(config.lora.last_blocks.get()).ok_or_else(|| {
            invalid(
                "`lora.last_blocks`",
                format!("at most {depth}, the model's blocks"),
                config.lora.last_blocks.to_string(),
                "lower it",
            )
        })?;
        if config.lora.targets.is_empty() {
            return Err(invalid(
                "`lora.targets`",
                "at least one layer",
                "none",
                "the usual ones are q_proj and v_proj",
            ));
        }
        let rank = config.lora.rank.get() as i64;
        let mut factors = BTreeMap::new();
        for block in first_block..depth {
            for projection in &config.lora.targets {
                let (input, output) = projection.shape(lm);
                let bound = 1.0 / (input as f32).sqrt();
                let mut values = Vec::new();
                let shared = ["shared".to_owned()];
                let names = if config.down == Sharing::Shared { &shared[..] } else { owner_names };
                for owner in names {
                    let mut rng = rng(&format!("{}/{owner}", projection.path(block)));
                    values.extend((0..rank * input).map(|_| rng.random_range(-bound..bound)));
                }
                let down = Tensor::from_slice(&values).view([-1, rank, input]).to_device(device);
                let up_owners = owners(config.up, config.users) as i64;
                let up = Tensor::zeros([up_owners, output, rank], (Kind::Float, device));
                let (down, up) = (down.set_requires_grad(true), up.set_requires_grad(true));
                factors.insert((block, *projection), Factors { down, up });
            }
        }
        Ok(Self { config, first_block, factors })
    }

    /// The same function for every user, from a bank that is shared throughout: factors are copied to each owner.
    pub fn personalised(&self, down: Sharing, up: Sharing, users: usize) -> Self {
        let copies = |t: &Tensor, sharing: Sharing| {
            let n = owners(sharing, users) as i64;
            t.detach().expand([n, -1, -1], false).contiguous().copy().set_requires_grad(true)
        };
        let factors =
            self.factors.iter().map(|(k, f)| (*k, Factors { down: copies(&f.down, down), up: copies(&f.up, up) }));
        let config = BankConfig { lora: self.config.lora.clone(), down, up, users };
        Self { config, first_block: self.first_block, factors: factors.collect() }
    }

    /// The bank's shape.
    pub fn config(&self) -> &BankConfig {
        &self.config
    }

    /// The first adapted block.
    pub fn first_block(&self) -> usize {
        self.first_block
    }

    /// The factors of each row's user. One user's rows, or a bank shared throughout, gather a single copy.
    pub fn gather(&self, users: &[usize]) -> RowFactors {
        let one = users.iter().all(|u| *u == users[0]);
        let device = self.factors.values().next().map_or(Device::Cpu, |f| f.down.device());
        let index = Tensor::from_slice(&users.iter().map(|u| *u as i64).collect::<Vec<_>>()).to_device(device);
        let pick = |t: &Tensor, sharing: Sharing| match sharing {
            Sharing::Shared => t.shallow_clone(),
            Sharing::Personal if one => t.narrow(0, users[0] as i64, 1),
            Sharing::Personal => t.index_select(0, &index),
        };
        let factors = self
            .factors
            .iter()
            .map(|(key, f)| (*key, Factors { down: pick(&f.down, self.config.down), up: pick(&f.up, self.config.up) }));
        RowFactors { scale: self.scale(), factors: factors.collect() }
    }

    /// `alpha / r`
    pub fn scale(&self) -> f64 {
        self.config.lora.alpha / self.config.lora.rank.get() as f64
    }

    /// (layer path, down `[r, in]`, up `[out, r]`) of one user, in the order of the blocks.
    pub fn of_user(&self, user: usize) -> Vec<(usize, Projection, Tensor, Tensor)> {
        let pick =
            |t: &Tensor, sharing: Sharing| t.get(if sharing == Sharing::Personal { user as i64 } else { 0 }).detach();
        self.factors
            .iter()
            .map(|((b, p), f)| (*b, *p, pick(&f.down, self.config.down), pick(&f.up, self.config.up)))
            .collect()
    }

    /// What an optimiser trains, by name: `<layer path>.down`, `<layer path>.up`.
    pub fn parameters(&self) -> Vec<Parameter> {
        let owner = |s: Sharing| if s == Sharing::Personal { Owner::PerUser } else { Owner::Shared };
        self.factors
            .iter()
            .flat_map(|((block, projection), f)| {
                let path = projection.path(*block);
                [
                    Parameter {
                        name: format!("{path}.down"),
                        tensor: f.down.shallow_clone(),
                        owner: owner(self.config.down),
                    },
                    Parameter {
                        name: format!("{path}.up"),
                        tensor: f.up.shallow_clone(),
                        owner: owner(self.config.up),
                    },
                ]
            })
            .collect()
    }

    /// The factors by name, to be written.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        self.parameters().into_iter().map(|p| (p.name, p.tensor)).collect()
    }

    /// Takes a bank of this shape out of a file's tensors.
    pub fn take(config: BankConfig, lm: &LlamaConfig, tensors: &mut Tensors) -> Result<Self> {
        let rank = config.lora.rank.get() as i64;
        let first_block = lm.num_hidden_layers.saturating_sub(config.lora.last_blocks.get());
        let mut factors = BTreeMap::new();
        for block in first_block..lm.num_hidden_layers {
            for projection in &config.lora.targets {
                let (input, output) = projection.shape(lm);
                let path = projection.path(block);
                let mut take = |role: &str, shape: [i64; 3]| -> Result<Tensor> {
                    Ok(tensors.take(&format!("{path}.{role}"), &shape)?.to_kind(Kind::Float).set_requires_grad(true))
                };
                let down = take("down", [owners(config.down, config.users) as i64, rank, input])?;
                let up = take("up", [owners(config.up, config.users) as i64, output, rank])?;
                factors.insert((block, *projection), Factors { down, up });
            }
        }
        Ok(Self { config, first_block, factors })
    }

    /// A bank of one user from explicit factors, `down [r, in]` and `up [out, r]` by layer: an adapter read from a file.
    pub fn single(lora: LoraConfig, first_block: usize, factors: Vec<(usize, Projection, Tensor, Tensor)>) -> Self {
        let config = BankConfig { lora, down: Sharing::Personal, up: Sharing::Personal, users: 1 };
        let factors = factors.into_iter().map(|(block, projection, down, up)| {
            ((block, projection), Factors { down: down.unsqueeze(0), up: up.unsqueeze(0) })
        });
        Self { config, first_block, factors: factors.collect() }
    }

    /// The base's weight plus this user's adapter, `[out, in]`, computed and given in float32.
    pub fn merged(&self, lm: &Lm, user: usize) -> Vec<(String, Tensor)> {
        self.of_user(user)
            .into_iter()
            .map(|(block, projection, down, up)| {
                let weight = lm.weight(block, projection).to_kind(Kind::Float);
                (format!("{}.weight", projection.path(block)), weight + up.matmul(&down) * self.scale())
            })
            .collect()
    }
}

impl RowFactors {
    /// `y` plus the adapter's part for the layer's input `x` `[B, T, in]`; nothing where the layer is not adapted.
    pub(crate) fn add(&self, block: usize, projection: Projection, x: &Tensor, y: &Tensor) -> Option<Tensor> {
        let Factors { down, up } = self.factors.get(&(block, projection))?;
        let low = apply(&x.to_kind(Kind::Float), down); // [B, T, r]
        Some(y + (apply(&low, up) * self.scale).to_kind(y.kind()))
    }

    /// The rows `rows`, where rows have factors of their own.
    pub(crate) fn select_rows(&mut self, rows: &Tensor) {
        for f in self.factors.values_mut() {
            for t in [&mut f.down, &mut f.up] {
                if t.size()[0] > 1 {
                    *t = t.index_select(0, rows);
                }
            }
        }
    }
}

/// `x [B, T, in]` times `factor [1 or B, out, in]` transposed.
fn apply(x: &Tensor, factor: &Tensor) -> Tensor {
    if factor.size()[0] == 1 { x.matmul(&factor.get(0).tr()) } else { x.bmm(&factor.transpose(1, 2)) }
}
