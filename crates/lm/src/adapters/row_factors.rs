//! The factors of one batch's rows. Rows of different users are multiplied in groups, never one by one.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::Place;

/// `down`, `up` and what stands between them; the first axis counts owners.
#[derive(Debug)]
pub(crate) struct Factors {
    pub(crate) down: Tensor,           // [n, r, in]
    pub(crate) up: Tensor,             // [n, out, r]
    pub(crate) middle: Option<Tensor>, // [n, r, r] or [n, r]
}

impl Factors {
    pub(crate) fn map(self, f: impl Fn(Tensor) -> Tensor) -> Self {
        Self { down: f(self.down), up: f(self.up), middle: self.middle.map(f) }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [Some(&self.down), Some(&self.up), self.middle.as_ref()].into_iter().flatten()
    }
}

/// How the tokens `[N]` of a batch are laid out for grouped products, `[G, L]`.
#[derive(Debug)]
pub(crate) struct Grouping {
    groups: i64,
    longest: i64,
    /// (token behind each place `[G * L]`, place of each token `[N]`); none if tokens already lie that way.
    index: Option<(Tensor, Tensor)>,
}

/// Groups the tokens of sequences by their user, or leaves every sequence a group of its own, whichever pads less. Gives
/// the user of each group; a single group needs no grouping.
pub(crate) fn group(users: &[Place], lengths: &[usize], device: Device) -> (Vec<Place>, Option<Grouping>) {
    let mut distinct: Vec<Place> = Vec::new();
    for user in users {
        if !distinct.contains(user) {
            distinct.push(*user);
        }
    }
    if distinct.len() <= 1 {
        return (distinct, None);
    }
    let starts: Vec<usize> = lengths.iter().scan(0, |at, l| Some(std::mem::replace(at, *at + l))).collect();
    let span = |s: usize| starts[s]..starts[s] + lengths[s];
    let by_user: Vec<Vec<usize>> =
        distinct.iter().map(|u| (0..users.len()).filter(|s| users[*s] == *u).flat_map(span).collect()).collect();
    let by_sequence: Vec<Vec<usize>> = (0..users.len()).map(|s| span(s).collect()).collect();
    let padded = |groups: &[Vec<usize>]| groups.len() * groups.iter().map(Vec::len).max().unwrap_or(0);
    let (owners, groups) =
        if padded(&by_user) <= padded(&by_sequence) { (distinct, by_user) } else { (users.to_vec(), by_sequence) };
    let longest = groups.iter().map(Vec::len).max().unwrap_or(0);
    let tokens: usize = lengths.iter().sum();
    let in_order = groups.iter().all(|g| g.len() == longest) && groups.iter().flatten().copied().eq(0..tokens);
    let index = (!in_order).then(|| {
        let (mut places, mut back) = (vec![0i64; groups.len() * longest], vec![0i64; tokens]);
        for (g, members) in groups.iter().enumerate() {
            for (i, token) in members.iter().enumerate() {
                places[g * longest + i] = *token as i64;
                back[*token] = (g * longest + i) as i64;
            }
        }
        (Tensor::from_slice(&places).to_device(device), Tensor::from_slice(&back).to_device(device))
    });
    (owners, Some(Grouping { groups: groups.len() as i64, longest: longest as i64, index }))
}

impl Grouping {
    /// Every token a group of its own.
    pub(crate) fn each(tokens: usize) -> Self {
        Self { groups: tokens as i64, longest: 1, index: None }
    }

    /// `[N, d]` to `[G, L, d]`.
    fn spread(&self, x: &Tensor) -> Tensor {
        let x = match &self.index {
            Some((places, _)) => x.index_select(0, places),
            None => x.shallow_clone(),
        };
        x.reshape([self.groups, self.longest, -1])
    }

    /// `[G, L, d]` to `[N, d]`.
    fn collect(&self, x: &Tensor) -> Tensor {
        let x = x.reshape([self.groups * self.longest, -1]);
        match &self.index {
            Some((_, back)) => x.index_select(0, back),
            None => x,
        }
    }
}

/// Dropout on adapted layers' inputs. A row's stream is decided by its seed and the layer: not by its neighbours, and a
/// second computation of the same block drops the same numbers.
#[derive(Debug)]
pub struct Dropout {
    share: f64,
    seeds: Vec<[u8; 32]>,
    lengths: Vec<usize>,
}

impl Dropout {
    pub(crate) fn new(share: f64, seeds: Vec<[u8; 32]>, lengths: Vec<usize>) -> Self {
        assert_eq!(seeds.len(), lengths.len(), "a seed for every sequence");
        Self { share, seeds, lengths }
    }

    fn apply(&self, x: &Tensor, layer: usize) -> Tensor {
        let width = x.size()[1] as usize;
        let kept = 1.0 / (1.0 - self.share as f32);
        let threshold = (self.share * f64::from(u32::MAX)) as u32;
        let mut mask = Vec::with_capacity(x.numel());
        for (seed, length) in self.seeds.iter().zip(&self.lengths) {
            let mut rng = ChaCha8Rng::from_seed(*seed);
            rng.set_stream(layer as u64);
            mask.extend((0..length * width).map(|_| if rng.random::<u32>() < threshold { 0.0 } else { kept }));
        }
        x * Tensor::from_slice(&mask).view([-1, width as i64]).to_device(x.device())
    }
}

/// Each row's factors, gathered once for a batch.
#[derive(Debug)]
pub struct RowFactors {
    scale: f64,
    by_layer: Vec<Option<usize>>, // the model's layer to ours
    layers: Vec<Factors>,         // [1 or G, ..]
    grouping: Option<Grouping>,
    dropout: Option<Dropout>,
}

impl RowFactors {
    pub(crate) fn new(
        scale: f64,
        by_layer: Vec<Option<usize>>,
        layers: Vec<Factors>,
        grouping: Option<Grouping>,
    ) -> Self {
        Self { scale, by_layer, layers, grouping, dropout: None }
    }

    /// The same with dropout, for a training step.
    pub fn with_dropout(self, dropout: Option<Dropout>) -> Self {
        Self { dropout, ..self }
    }

    /// Is this layer of the model adapted?
    pub(crate) fn adapts(&self, layer: usize) -> bool {
        self.by_layer[layer].is_some()
    }

    /// Adds the adapters' parts to the outputs `[N, out]` of layers that read `x` `[N, in]`.
    pub(crate) fn add(&self, layers: &[Option<usize>], x: &Tensor, outputs: &mut [Tensor]) {
        let ours = |layer: &Option<usize>| layer.and_then(|l| self.by_layer[l]).map(|i| &self.layers[i]);
        let adapted: Vec<(usize, &Factors)> =
            layers.iter().enumerate().filter_map(|(part, layer)| Some((part, ours(layer)?))).collect();
        if adapted.is_empty() {
            return;
        }
        let x = x.to_kind(Kind::Float);
        // Layers that read the same input share one product with their stacked down-projections.
        let lows: Vec<Tensor> = match (&self.dropout, adapted.as_slice()) {
            (None, [_, _, ..]) => {
                let downs: Vec<&Tensor> = adapted.iter().map(|(_, f)| &f.down).collect();
                let ranks: Vec<i64> = downs.iter().map(|d| d.size()[1]).collect();
                self.apply(&x, &Tensor::cat(&downs, 1)).split_with_sizes(&ranks, 1)
            }
            (None, _) => vec![self.apply(&x, &adapted[0].1.down)],
            (Some(dropout), _) => adapted
                .iter()
                .map(|(part, f)| self.apply(&dropout.apply(&x, layers[*part].expect("an adapted layer")), &f.down))
                .collect(),
        };
        for ((part, factors), low) in adapted.iter().zip(lows) {
            let low = match &factors.middle {
                None => low,
                Some(kernel) if kernel.dim() == 3 => self.apply(&low, kernel),
                Some(scale) => self.multiply(&low, scale),
            };
            let y = &outputs[*part];
            outputs[*part] = y + self.apply(&(low * self.scale), &factors.up).to_kind(y.kind());
        }
    }

    /// `x [N, in]` times `factor [1 or G, out, in]` transposed.
    fn apply(&self, x: &Tensor, factor: &Tensor) -> Tensor {
        match &self.grouping {
            Some(grouping) if factor.size()[0] > 1 => {
                grouping.collect(&grouping.spread(x).bmm(&factor.transpose(1, 2)))
            }
            _ => x.matmul(&factor.get(0).tr()),
        }
    }

    /// `x [N, r]` times the diagonal `scale [1 or G, r]`.
    fn multiply(&self, x: &Tensor, scale: &Tensor) -> Tensor {
        match &self.grouping {
            Some(grouping) if scale.size()[0] > 1 => grouping.collect(&(grouping.spread(x) * scale.unsqueeze(1))),
            _ => x * scale,
        }
    }

    /// Copies that end the graph, for blocks that are computed a second time.
    pub(crate) fn leaves(&self) -> Self {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(t.requires_grad());
        let layers = self.layers.iter().map(|f| Factors {
            down: leaf(&f.down),
            up: leaf(&f.up),
            middle: f.middle.as_ref().map(leaf),
        });
        let grouping = self.grouping.as_ref().map(|g| Grouping {
            groups: g.groups,
            longest: g.longest,
            index: g.index.as_ref().map(|(a, b)| (a.shallow_clone(), b.shallow_clone())),
        });
        let dropout = self.dropout.as_ref().map(|d| Dropout::new(d.share, d.seeds.clone(), d.lengths.clone()));
        Self { scale: self.scale, by_layer: self.by_layer.clone(), layers: layers.collect(), grouping, dropout }
    }

    /// The gathered factors of the model's layers `layers`.
    pub(crate) fn of_layers(&self, layers: impl Iterator<Item = usize>) -> Vec<&Tensor> {
        layers.filter_map(|l| self.by_layer[l]).flat_map(|i| self.layers[i].tensors()).collect()
    }
}
