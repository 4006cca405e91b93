//! Golden numbers of TRL for the crate's own tests, and what they were made of: a tiny model with adapters whose numbers are a formula.

use std::path::PathBuf;

use device::Compute;
use lm::{Blocks, Lm, LoraConfig, Parameter, Targets, Tensor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Kind, no_grad};

/// Weights that are a formula.
#[path = "../../lm/tests/formula.rs"]
mod formula;

use formula::{formula, wave};

/// The committed golden numbers, or those that `just parity` has made anew.
pub(crate) fn read<T: DeserializeOwned>(name: &str) -> T {
    let committed = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let folder = std::env::var_os("IDIOLECT_GOLDEN").map_or_else(committed, PathBuf::from);
    run::read_json(&folder.join(name)).unwrap()
}

/// The base, and the shape of adapters on it.
#[derive(Deserialize)]
pub(crate) struct Tiny {
    config: serde_json::Value,
    names: Vec<(String, Vec<i64>)>,
    lora: Lora,
}

#[derive(Deserialize)]
struct Lora {
    rank: usize,
    alpha: f64,
    from: usize,
    to: usize,
    factor: f64,
    paths: Vec<String>,
}

impl Tiny {
    /// The base: one thread, float32.
    pub(crate) fn model(&self) -> Lm {
        let folder = tempfile::tempdir().unwrap();
        run::write_json(&folder.path().join("config.json"), &self.config).unwrap();
        lm::write_tensors(&folder.path().join("model.safetensors"), &formula(&self.names), None).unwrap();
        Lm::load(folder.path(), &Compute::new("cpu", "float32", Some(1)).unwrap()).unwrap()
    }

    pub(crate) fn lora(&self) -> LoraConfig {
        let targets = Targets::Names(["q_proj", "v_proj"].map(String::from).to_vec());
        let Lora { rank, alpha, from, to, .. } = self.lora;
        LoraConfig { targets, blocks: Blocks::Range { from, to }, ..LoraConfig::of_last_blocks(rank, alpha, 1) }
    }

    /// Fills a user's numbers with waves, the first with number `first`. The factors of a bank come in the order in which the goldens
    /// have them.
    pub(crate) fn fill(&self, parameters: &[Parameter], user: usize, first: usize) {
        let names: Vec<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
        let factors: Vec<String> =
            self.lora.paths.iter().flat_map(|p| ["down", "up"].map(|f| format!("{p}.{f}"))).collect();
        assert!(names == factors || names == [lm::ScalarHead::NAME], "{names:?}");
        for (k, parameter) in parameters.iter().enumerate() {
            let mut own = parameter.tensor.detach().get(user as i64);
            let values = wave(own.numel() as i64, first + k) * self.lora.factor;
            no_grad(|| own.copy_(&values.view(own.size().as_slice()).to_kind(Kind::Float)));
        }
    }
}

/// Row `row` of each tensor, flattened: one user's numbers.
pub(crate) fn row(tensors: &[Tensor], row: usize) -> Vec<f32> {
    let own = |t: &Tensor| t.detach().get(row as i64).reshape(-1);
    Vec::try_from(Tensor::cat(&tensors.iter().map(own).collect::<Vec<_>>(), 0)).unwrap()
}

/// Fails if the largest difference is more than `tolerance` of the largest number of `want`.
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f32, |most, w| most.max(w.abs()));
    let apart = got.iter().zip(want).fold(0f32, |most, (g, w)| most.max((g - w).abs())) / largest;
    eprintln!("{what}: {apart:.1e} of {largest:.2e}, over {} numbers", want.len());
    assert!(apart <= tolerance, "{what}: {apart} is more than {tolerance}\n{got:?}\n{want:?}");
}
