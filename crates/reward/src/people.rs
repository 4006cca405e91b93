//! Tastes over learnt reward features (RFM, arXiv 2503.17338): once the features are frozen, people are convex statistics. How tastes
//! vary is learnt from everybody by empirical Bayes, and every taste is the mode of its posterior with Laplace's covariance.

use std::collections::BTreeMap;
use std::path::Path;

use data::{Split, Vote};
use device::Checked;
use estimate::{Judgements, Taste, Tastes, TastesFit};
use lm::{Lm, Tensor, UserIndex};
use nalgebra::{DMatrix, DVector};
use problem::{Result, invalid};
use tch::Kind;
use text::Tokenizer;

use crate::{RewardConfig, RewardModel, Texts, Ties};

/// What is known of the users of a model with reward features.
#[derive(Clone, Debug, PartialEq)]
pub struct People {
    /// How tastes vary; the context of everybody is the number 1.
    pub population: Tastes,
    /// By user id.
    pub tastes: BTreeMap<String, Taste>,
}

const HEADER: &str = "idiolect.people";

/// Fits tastes on the model's frozen features, of users with votes of split `train` together with how they vary, and then of those
/// with votes of split `adapt`; the model's head gets them. Features are brought to unit deviation of their differences over training
/// votes first, which fixes what the votes leave open (`phi -> M phi`, `w -> M^-T w`) up to a rotation. A vote is evidence of its own weight: one of 1/2 is
/// half a vote, and one of 0 none. A user without votes gets the population's mean.
///
/// # Errors
/// A row over the limit where that is an error.
///
/// # Panics
/// If the model has no reward features.
pub fn taste_people(
    config: &RewardConfig,
    mut model: RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
) -> Result<(RewardModel, People)> {
    let wanted = |v: &&Vote| {
        matches!(v.split, Split::Train | Split::Adapt)
            && v.counts()
            && (!v.tie || config.objective.ties != Ties::LeaveOut)
            && model.users.binary_search(&v.user_id).is_ok()
    };
    let texts = Texts::new(tokenizer, votes.iter().filter(wanted).collect(), config.max_row_tokens, config.over_long)?;
    let prefix = model.prefix(lm, texts.rows.clone(), |_| ())?;
    let all: Vec<usize> = (0..texts.rows.len()).collect();
    let features = model.features(lm, &prefix, &all).expect("a model with reward features");
    let d = model.taste(UserIndex(0)).len();
    let difference = |(c, r): (usize, usize)| -> Vec<f64> {
        features[c].iter().zip(&features[r]).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
    };

    // The gauge.
    let mut squares = vec![0.0; d];
    let train = || texts.votes.iter().zip(&texts.pairs).filter(|(v, _)| v.split == Split::Train);
    let count = train().count().max(1) as f64;
    for (_, pair) in train() {
        squares.iter_mut().zip(difference(*pair)).for_each(|(s, x)| *s += x * x / count);
    }
    let deviations: Vec<f64> = squares.into_iter().map(|s| if s > 1e-12 { s.sqrt() } else { 1.0 }).collect();

    let mut judged: BTreeMap<(bool, &str), Judgements> = BTreeMap::new();
    for (vote, pair) in texts.votes.iter().zip(&texts.pairs) {
        let x: Vec<f64> = difference(*pair).iter().zip(&deviations).map(|(x, s)| x / s).collect();
        let own = judged.entry((vote.split == Split::Adapt, &vote.user_id)).or_insert_with(|| Judgements::new(d));
        own.push(&x, if vote.tie { 0.5 } else { 1.0 }, f64::from(vote.weight));
    }
    let known: Vec<Judgements> = judged.iter().filter(|((new, _), _)| !new).map(|(_, own)| own.clone()).collect();
    let start: Vec<f64> = UserIndex::all(model.users.len())
        .flat_map(|u| {
            model.taste(u).iter().zip(&deviations).map(|(w, s)| (f64::from(*w) * s).powi(2)).collect::<Vec<_>>()
        })
        .collect();
    // People vary about as much along a feature as joint training found them to.
    let scale = (start.iter().sum::<f64>() / start.len() as f64).clamp(1e-3, 10.0);
    let how = TastesFit { scale, ..TastesFit::default() };
    let population = Tastes::fit(&known, &vec![vec![1.0]; known.len()], &how);
    let prior = population.prior(&[1.0]);
    let tastes: BTreeMap<String, Taste> = model
        .users
        .iter()
        .map(|name| {
            let own = judged.get(&(false, name.as_str())).or_else(|| judged.get(&(true, name.as_str())));
            (name.clone(), own.map_or_else(|| Taste::of(&prior, &Judgements::new(d)), |own| Taste::of(&prior, own)))
        })
        .collect();

    let device = model.head.weight.device();
    let rows: Vec<f32> = model.users.iter().flat_map(|u| tastes[u].mean.iter().map(|w| *w as f32)).collect();
    let divisor: Vec<f32> = deviations.iter().map(|s| *s as f32).collect();
    tch::no_grad(|| {
        let mut weight = model.head.weight.shallow_clone();
        weight.copy_(&Tensor::from_slice(&rows).view([-1, d as i64]).to_device(device));
        if let Some(features) = &mut model.head.features {
            *features /= Tensor::from_slice(&divisor).view([-1, 1]).to_device(device);
        }
    });
    Ok((model.with_probes(lm, &prefix), People { population, tastes }))
}

impl People {
    /// What is known of somebody: a user's taste, or the population's before any vote.
    pub fn taste(&self, user: &str) -> Taste {
        let unknown =
            || Taste { mean: self.population.mean(&[1.0]), covariance: self.population.covariance.clone(), votes: 0 };
        self.tastes.get(user).cloned().unwrap_or_else(unknown)
    }

    /// Writes `people.safetensors`: `map [d, 1]`, `covariance [d, d]`, and of all users `means [U, d]`, `covariances [U, d, d]`,
    /// `votes [U]`, in the order of the header's ids; float64.
    pub fn write(&self, path: &Path) -> Result<()> {
        let d = self.population.map.nrows() as i64;
        let users: Vec<&String> = self.tastes.keys().collect();
        // Row by row: a covariance is its own transpose.
        let flat = |f: &dyn Fn(&Taste) -> Vec<f64>| -> Vec<f64> { self.tastes.values().flat_map(f).collect() };
        let tensors = [
            ("covariance", Tensor::from_slice(self.population.covariance.as_slice()).view([d, d])),
            ("covariances", Tensor::from_slice(&flat(&|t| t.covariance.iter().copied().collect())).view([-1, d, d])),
            ("map", Tensor::from_slice(self.population.map.as_slice()).view([d, 1])),
            ("means", Tensor::from_slice(&flat(&|t| t.mean.iter().copied().collect())).view([-1, d])),
            ("votes", Tensor::from_slice(&self.tastes.values().map(|t| t.votes as i64).collect::<Vec<_>>())),
        ];
        let header = serde_json::to_string(&users).expect("plain data");
        lm::write_tensors(path, &tensors.map(|(n, t)| (n.to_owned(), t)), Some((HEADER, header)))
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// Another file.
    pub fn read(path: &Path) -> Result<Self> {
        let mut tensors = lm::read_tensors(path, tch::Device::Cpu, None)?;
        let users = tensors.metadata.get(HEADER).and_then(|t| serde_json::from_str::<Vec<String>>(t).ok());
        let Some(users) = users else {
            return Err(invalid(
                path.display().to_string(),
                format!("a header `{HEADER}`"),
                "none",
                "point at the people.safetensors of a reward stage with `variant = \"rfm\"`",
            ));
        };
        let d = tensors.by_name.get("covariance").map_or(0, |t| t.size()[0]);
        let count = users.len() as i64;
        let mut take = |name: &str, shape: &[i64]| -> Result<Vec<f64>> {
            Vec::try_from(tensors.take(name, shape)?.to_kind(Kind::Double).flatten(0, -1)).checked()
        };
        let n = d as usize;
        let square = |values: &[f64]| DMatrix::from_row_slice(n, n, values);
        let population = Tastes {
            map: DMatrix::from_column_slice(n, 1, &take("map", &[d, 1])?),
            covariance: square(&take("covariance", &[d, d])?),
        };
        let (means, covariances) = (take("means", &[count, d])?, take("covariances", &[count, d, d])?);
        let votes = take("votes", &[count])?;
        let taste = |u: usize| Taste {
            mean: DVector::from_column_slice(&means[u * n..(u + 1) * n]),
            covariance: square(&covariances[u * n * n..(u + 1) * n * n]),
            votes: votes[u] as usize,
        };
        let tastes = users.into_iter().enumerate().map(|(u, name)| (name, taste(u))).collect();
        tensors.refuse_rest()?;
        Ok(Self { population, tastes })
    }
}
