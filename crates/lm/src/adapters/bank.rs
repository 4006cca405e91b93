//! The adapter bank: LoRA factors of all users for all adapted layers (Hu et al. 2021; P-ShareLoRA, arXiv 2503.19201).
//!
//! Per layer `down [Nd, r, in]` and `up [Nu, out, r]`, and between them nothing, a `kernel [Nk, r, r]` or a `scale
//! [Nk, r]`, where N is 1 (shared) or the number of users (personal): `y += s * up (middle (down x))`.

use problem::{Result, invalid};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::lora::{InitUsers, LoraConfig};
use super::row_factors::{Dropout, Factors, Grouping, RowFactors, group};
use crate::adamw::{Owner, Parameter};
use crate::{Lm, Place, Storage, Tensors, UserIndex};

/// Is a factor one for all, or one per user?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// One for all users.
    Shared,
    /// One per user.
    Personal,
}

/// What stands between `down` and `up`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Middle {
    /// Nothing.
    #[default]
    None,
    /// A matrix `[r, r]`, at first uniform within `1 / sqrt(r)`.
    Kernel(Sharing),
    /// A diagonal `[r]`, at first ones.
    Scale(Sharing),
}

impl Middle {
    fn sharing(self) -> Option<Sharing> {
        match self {
            Self::None => None,
            Self::Kernel(sharing) | Self::Scale(sharing) => Some(sharing),
        }
    }
}

/// A bank's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankConfig {
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Who owns the down-projections.
    pub down: Sharing,
    /// Who owns the up-projections.
    pub up: Sharing,
    /// What stands between them.
    #[serde(default)]
    pub middle: Middle,
    /// U
    pub users: usize,
}

/// An adapted layer.
#[derive(Debug)]
struct Adapted {
    layer: usize, // of the model
    path: String,
    factors: Factors,
}

/// Factors of all users, float32.
#[derive(Debug)]
pub struct Bank {
    config: BankConfig,
    first_block: usize,
    device: Device,
    layers: Vec<Adapted>, // in the model's order
    model_layers: usize,
    /// Who will own the factors that are shared yet: they are multiplied in the users' groups already.
    ahead: Option<Owners>,
}

/// Who owns what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// Of the down-projections.
    pub down: Sharing,
    /// Of the up-projections.
    pub up: Sharing,
    /// Of what stands between; for none it does not matter.
    pub middle: Sharing,
}

/// One user's factors of one layer.
#[derive(Debug)]
pub struct UserFactors {
    /// Index among the model's layers.
    pub layer: usize,
    /// The layer's published path.
    pub path: String,
    /// `[r, in]`, the middle multiplied in.
    pub down: Tensor,
    /// `[out, r]`
    pub up: Tensor,
}

fn owners(sharing: Sharing, users: usize) -> usize {
    if sharing == Sharing::Personal { users } else { 1 }
}

/// Row `user` of two tensors, the second's counted behind the first's.
pub(crate) fn row_of(ours: &Tensor, theirs: &Tensor, user: usize) -> Tensor {
    let (user, count) = (user as i64, ours.size()[0]);
    if user < count { ours.detach().get(user) } else { theirs.detach().get(user - count) }
}

/// A leaf whose rows `row(owner)` gives: in `storage` if it is personal, in memory if it is one for all.
fn owned(
    storage: &Storage,
    sharing: Sharing,
    users: usize,
    device: Device,
    row: impl FnMut(usize) -> Tensor,
) -> Result<Tensor> {
    match sharing {
        Sharing::Personal => storage.leaf(users, device, row),
        Sharing::Shared => Storage::memory().leaf(1, device, row),
    }
}

impl Bank {
    /// A bank that changes nothing: down-projections drawn as the configuration says, up-projections zero.
    ///
    /// `rng(name)` gives the random stream of one factor; a personal factor's name ends with its owner's id, so a user's
    /// start does not depend on who else is there. `owner_names` are the users' ids; what is personal lies in `storage`.
    pub fn new<R: Rng>(
        config: &BankConfig,
        lm: &Lm,
        owner_names: &[String],
        storage: &Storage,
        rng: impl Fn(&str) -> R,
    ) -> Result<Self> {
        let rank = config.lora.rank.get() as i64;
        let cpu = (Kind::Float, Device::Cpu);
        // Numbers within a bound: an owner's own, or the same for all.
        let draw = |path: &str, sharing: Sharing, shape: [i64; 2], bound: f32| {
            let row = |owner: usize| {
                let own = sharing == Sharing::Personal && config.lora.init_users == InitUsers::Independent;
                let mut rng = rng(&format!("{path}/{}", if own { &owner_names[owner] } else { "shared" }));
                let count = shape[0] * shape[1];
                let values: Vec<f32> = (0..count).map(|_| rng.random_range(-bound..bound)).collect();
                Tensor::from_slice(&values).view(shape)
            };
            owned(storage, sharing, config.users, lm.device, row)
        };
        Self::assemble(config.clone(), lm, |path, input, output| {
            Ok(Factors {
                down: draw(path, config.down, [rank, input], config.lora.bound(input))?,
                up: owned(storage, config.up, config.users, lm.device, |_| Tensor::zeros([output, rank], cpu))?,
                middle: match config.middle {
                    Middle::None => None,
                    Middle::Kernel(sharing) => {
                        let bound = 1.0 / (rank as f32).sqrt();
                        Some(draw(&format!("{path}.kernel"), sharing, [rank, rank], bound)?)
                    }
                    Middle::Scale(sharing) => {
                        Some(owned(storage, sharing, config.users, lm.device, |_| Tensor::ones([rank], cpu))?)
                    }
                },
            })
        })
    }

    /// A bank whose factors, given a layer's (path, in, out), `make` gives.
    fn assemble(config: BankConfig, lm: &Lm, mut make: impl FnMut(&str, i64, i64) -> Result<Factors>) -> Result<Self> {
        let mut layers = Vec::new();
        for layer in config.lora.layers(lm)? {
            let model_layer = &lm.layers()[layer];
            let (input, output) = model_layer.shape();
            let factors = make(&model_layer.path, input, output)?;
            let leaf = |t: Tensor| t.to_kind(Kind::Float).set_requires_grad(true);
            layers.push(Adapted { layer, path: model_layer.path.clone(), factors: factors.map(leaf) });
        }
        let first_block = layers.iter().map(|a| lm.layers()[a.layer].block).min().unwrap_or(lm.depth());
        Ok(Self { config, first_block, device: lm.device, layers, model_layers: lm.layers().len(), ahead: None })
    }

    /// A bank that is shared throughout, whose products are laid out as those of the bank that [`Self::personalised`] will
    /// make of it: scores of a mixed batch do not change by a bit when it does.
    pub fn ahead_of(self, owners: Owners) -> Self {
        Self { ahead: Some(owners), ..self }
    }

    /// The same function for every user, from a bank that is shared throughout: factors are copied to each owner.
    /// What becomes personal lies in `storage`.
    pub fn personalised(&self, to: Owners, users: usize, storage: &Storage) -> Result<Self> {
        let copies = |t: &Tensor, sharing| owned(storage, sharing, users, self.device, |_| t.detach().get(0));
        let middle = match self.config.middle {
            Middle::None => Middle::None,
            Middle::Kernel(_) => Middle::Kernel(to.middle),
            Middle::Scale(_) => Middle::Scale(to.middle),
        };
        let factors = |f: &Factors| {
            Ok(Factors {
                down: copies(&f.down, to.down)?,
                up: copies(&f.up, to.up)?,
                middle: f.middle.as_ref().map(|m| copies(m, to.middle)).transpose()?,
            })
        };
        let lora = self.config.lora.clone();
        self.with(BankConfig { lora, down: to.down, up: to.up, middle, users }, factors)
    }

    /// A bank of some users alone: their own factors as leaves of their own, `[P, ..]` in the order of `users`, and the very
    /// tensors that all share.
    pub fn present(&self, users: &[UserIndex]) -> Self {
        let index = Tensor::from_slice(&users.iter().map(|u| u.0 as i64).collect::<Vec<_>>());
        let pick = |t: &Tensor, sharing: Sharing| match sharing {
            Sharing::Shared => t.shallow_clone(),
            Sharing::Personal => {
                let own = t.detach().index_select(0, &index.to_device(t.device()));
                own.to_device(self.device).set_requires_grad(true)
            }
        };
        self.map_owned(users.len(), |t, sharing| Ok(pick(t, sharing))).expect("picked in memory")
    }

    /// A bank of `count` users who all start from the mean of those here; what is shared is copied.
    pub fn of_mean(&self, count: usize, storage: &Storage) -> Result<Self> {
        self.map_owned(count, |t, sharing| match sharing {
            Sharing::Shared => Ok(t.detach().copy().set_requires_grad(true)),
            Sharing::Personal => {
                let mean = t.detach().mean_dim(Some([0i64].as_slice()), false, Kind::Float);
                storage.leaf(count, self.device, |_| mean.shallow_clone())
            }
        })
    }

    /// The users of both banks, in the order in which `order` counts them: ours first, then the other's. Shared factors are ours.
    pub fn joined(&self, other: &Self, order: &[usize], storage: &Storage) -> Result<Self> {
        let mut theirs = other.parameters().into_iter().map(|p| p.tensor); // in the order of ours
        self.map_owned(order.len(), |t, sharing| {
            let their = theirs.next().expect("banks of one shape");
            match sharing {
                Sharing::Shared => Ok(t.shallow_clone()),
                Sharing::Personal => storage.leaf(order.len(), self.device, |u| row_of(t, &their, order[u])),
            }
        })
    }

    /// A bank of `users` users of the same shape, each factor made from ours.
    fn map_owned(&self, users: usize, mut pick: impl FnMut(&Tensor, Sharing) -> Result<Tensor>) -> Result<Self> {
        let BankConfig { lora, down, up, middle, users: _ } = self.config.clone();
        let factors = |f: &Factors| {
            Ok(Factors {
                down: pick(&f.down, down)?,
                up: pick(&f.up, up)?,
                middle: f.middle.as_ref().zip(middle.sharing()).map(|(m, s)| pick(m, s)).transpose()?,
            })
        };
        self.with(BankConfig { lora, down, up, middle, users }, factors)
    }

    /// A bank of another shape on the same layers.
    fn with(&self, config: BankConfig, mut factors: impl FnMut(&Factors) -> Result<Factors>) -> Result<Self> {
        let each = |a: &Adapted| Ok(Adapted { layer: a.layer, path: a.path.clone(), factors: factors(&a.factors)? });
        let layers = self.layers.iter().map(each).collect::<Result<_>>()?;
        let Self { first_block, device, model_layers, ahead, .. } = *self;
        Ok(Self { config, first_block, device, layers, model_layers, ahead })
    }

    /// The bank's shape.
    pub fn config(&self) -> &BankConfig {
        &self.config
    }

    /// The first adapted block.
    pub fn first_block(&self) -> usize {
        self.first_block
    }

    /// The factors of a batch's rows: the user at `users[s]` among those of this bank owns the `lengths[s]` tokens of sequence `s`.
    pub fn rows(&self, users: &[Place], lengths: &[usize]) -> RowFactors {
        assert_eq!(users.len(), lengths.len(), "a user for every sequence");
        self.gather(group(users, lengths, self.device))
    }

    /// The factors of rows of one token each, every row a group of its own: its bits do not depend on who else is there.
    pub(crate) fn rows_apart(&self, users: &[Place]) -> RowFactors {
        self.gather((users.to_vec(), Some(Grouping::each(users.len()))))
    }

    fn gather(&self, (groups, grouping): (Vec<Place>, Option<Grouping>)) -> RowFactors {
        let index = Tensor::from_slice(&groups.iter().map(|u| u.0 as i64).collect::<Vec<_>>()).to_device(self.device);
        let pick = |t: &Tensor, sharing: Sharing, ahead: Option<Sharing>| match sharing {
            Sharing::Shared if grouping.is_some() && ahead == Some(Sharing::Personal) => {
                t.index_select(0, &index.zeros_like())
            }
            Sharing::Shared => t.shallow_clone(),
            // What is on disk is not where the base is.
            Sharing::Personal if grouping.is_none() => t.narrow(0, groups[0].0 as i64, 1).to_device(self.device),
            Sharing::Personal => t.index_select(0, &index.to_device(t.device())).to_device(self.device),
        };
        let ahead = self.ahead;
        let gather = |f: &Factors| Factors {
            down: pick(&f.down, self.config.down, ahead.map(|a| a.down)),
            up: pick(&f.up, self.config.up, ahead.map(|a| a.up)),
            middle: f
                .middle
                .as_ref()
                .zip(self.config.middle.sharing())
                .map(|(m, s)| pick(m, s, ahead.map(|a| a.middle))),
        };
        let mut by_layer = vec![None; self.model_layers];
        self.layers.iter().enumerate().for_each(|(i, a)| by_layer[a.layer] = Some(i));
        let layers = self.layers.iter().map(|a| gather(&a.factors)).collect();
        RowFactors::new(self.config.lora.scale(), by_layer, layers, grouping)
    }

    /// Dropout's streams for the rows of a batch: none if the bank drops nothing.
    pub fn dropout(&self, seeds: Vec<[u8; 32]>, lengths: &[usize]) -> Option<Dropout> {
        (self.config.lora.dropout > 0.0).then(|| Dropout::new(self.config.lora.dropout, seeds, lengths.to_vec()))
    }

    /// One user's factors in the model's order, of a bank that holds the whole table of users.
    pub fn of_user(&self, user: UserIndex) -> Vec<UserFactors> {
        let pick = |t: &Tensor, sharing: Sharing| {
            t.get(if sharing == Sharing::Personal { user.0 as i64 } else { 0 }).detach().to_device(self.device)
        };
        let each = |a: &Adapted| {
            let (down, up) = (pick(&a.factors.down, self.config.down), pick(&a.factors.up, self.config.up));
            let middle = a.factors.middle.as_ref().zip(self.config.middle.sharing()).map(|(m, s)| pick(m, s));
            let down = match middle {
                None => down,
                Some(kernel) if kernel.dim() == 2 => kernel.matmul(&down),
                Some(scale) => down * scale.unsqueeze(1),
            };
            UserFactors { layer: a.layer, path: a.path.clone(), down, up }
        };
        no_grad(|| self.layers.iter().map(each).collect())
    }

    /// What an optimiser trains, by name: `<layer path>.down`, `.up`, `.kernel`, `.scale`.
    pub fn parameters(&self) -> Vec<Parameter> {
        let owner = |s: Sharing| if s == Sharing::Personal { Owner::PerUser } else { Owner::Shared };
        let mut out = Vec::new();
        for Adapted { path, factors, .. } in &self.layers {
            let mut push = |role: &str, tensor: &Tensor, sharing| {
                out.push(Parameter {
                    name: format!("{path}.{role}"),
                    tensor: tensor.shallow_clone(),
                    owner: owner(sharing),
                });
            };
            push("down", &factors.down, self.config.down);
            push("up", &factors.up, self.config.up);
            match (self.config.middle, &factors.middle) {
                (Middle::Kernel(sharing), Some(kernel)) => push("kernel", kernel, sharing),
                (Middle::Scale(sharing), Some(scale)) => push("scale", scale, sharing),
                _ => {}
            }
        }
        out
    }

    /// The factors by name, to be written.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        self.parameters().into_iter().map(|p| (p.name, p.tensor)).collect()
    }

    /// Takes a bank of this shape out of a file's tensors.
    pub fn take(config: &BankConfig, lm: &Lm, tensors: &mut Tensors) -> Result<Self> {
        let rank = config.lora.rank.get() as i64;
        let count = |sharing| owners(sharing, config.users) as i64;
        Self::assemble(config.clone(), lm, |path, input, output| {
            let mut take = |role: &str, shape: &[i64]| tensors.take(&format!("{path}.{role}"), shape);
            Ok(Factors {
                down: take("down", &[count(config.down), rank, input])?,
                up: take("up", &[count(config.up), output, rank])?,
                middle: match config.middle {
                    Middle::None => None,
                    Middle::Kernel(sharing) => Some(take("kernel", &[count(sharing), rank, rank])?),
                    Middle::Scale(sharing) => Some(take("scale", &[count(sharing), rank])?),
                },
            })
        })
    }

    /// A bank of one user from explicit factors: an adapter read from a file. `take(path)` gives `down [r, in]` and
    /// `up [out, r]` of an adapted layer.
    pub fn single(lora: LoraConfig, lm: &Lm, mut take: impl FnMut(&str) -> Option<(Tensor, Tensor)>) -> Result<Self> {
        Self::from_factors(lora, lm, 1, |path| take(path).map(|(down, up)| (down.unsqueeze(0), up.unsqueeze(0))))
    }

    /// A bank of independent factors: `take(path)` gives `down [U, r, in]` and `up [U, out, r]` of an adapted layer.
    pub fn from_factors(
        lora: LoraConfig,
        lm: &Lm,
        users: usize,
        mut take: impl FnMut(&str) -> Option<(Tensor, Tensor)>,
    ) -> Result<Self> {
        let (rank, count) = (lora.rank.get() as i64, users as i64);
        let config = BankConfig { lora, down: Sharing::Personal, up: Sharing::Personal, middle: Middle::None, users };
        Self::assemble(config, lm, |path, input, output| {
            let missing = || invalid("adapter", format!("factors of `{path}`"), "none", "write the adapter again");
            let (down, up) = take(path).ok_or_else(missing)?;
            if down.size() != [count, rank, input] || up.size() != [count, output, rank] {
                return Err(invalid(
                    format!("adapter, `{path}`"),
                    format!("[{count}, {rank}, {input}] and [{count}, {output}, {rank}]"),
                    format!("{:?} and {:?}", down.size(), up.size()),
                    "the adapter belongs to another base",
                ));
            }
            Ok(Factors { down, up, middle: None })
        })
    }

    /// The base's weights plus this user's adapter by published name, as the checkpoint stores them, computed and given in
    /// float32.
    pub fn merged(&self, lm: &Lm, user: UserIndex) -> Vec<(String, Tensor)> {
        self.of_user(user)
            .into_iter()
            .map(|UserFactors { layer, path, down, up }| {
                let layer = &lm.layers()[layer];
                let weight = layer.weight.to_kind(Kind::Float) + up.matmul(&down) * self.config.lora.scale();
                (format!("{path}.weight"), if layer.transposed { weight.tr().contiguous() } else { weight })
            })
            .collect()
    }
}
