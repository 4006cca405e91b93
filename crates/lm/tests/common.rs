//! What the tests share: golden numbers, and the tiny models whose weights are a formula.

use std::path::PathBuf;

use device::Compute;
use lm::Lm;
use serde::Deserialize;

pub(crate) use crate::formula::formula;

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The committed golden numbers, or those that `just parity` has made anew.
pub(crate) fn golden<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let folder = std::env::var_os("IDIOLECT_GOLDEN").map_or_else(|| root().join("tests/golden"), PathBuf::from);
    serde_json::from_slice(&fs_err::read(folder.join(name)).unwrap()).unwrap()
}

pub(crate) fn float32() -> Compute {
    Compute::new("cpu", "float32", Some(1)).unwrap()
}

#[derive(Deserialize)]
pub(crate) struct Families {
    pub(crate) stride: i64,
    pub(crate) families: std::collections::BTreeMap<String, Family>,
}

#[derive(Deserialize)]
pub(crate) struct Family {
    pub(crate) config: serde_json::Value,
    pub(crate) names: Vec<(String, Vec<i64>)>,
    pub(crate) rows: Vec<Row>,
}

#[derive(Deserialize)]
pub(crate) struct Row {
    pub(crate) ids: Vec<i64>,
    pub(crate) answer_start: usize,
    pub(crate) logits: Vec<f32>,
    pub(crate) hidden: Vec<Vec<f32>>,
    pub(crate) logp: Vec<f32>,
    pub(crate) left: Vec<f32>,
    pub(crate) right: Vec<f32>,
    pub(crate) greedy: Vec<i64>,
}

/// Writes a family's folder.
pub(crate) fn write_family(folder: &std::path::Path, family: &Family) {
    run::write_json(&folder.join("config.json"), &family.config).unwrap();
    lm::write_tensors(&folder.join("model.safetensors"), &formula(&family.names), None).unwrap();
}

/// A family's tiny model.
pub(crate) fn tiny(family: &Family, compute: &Compute) -> Lm {
    let folder = tempfile::tempdir().unwrap();
    write_family(folder.path(), family);
    Lm::load(folder.path(), compute).unwrap()
}
