//! Models by name from the Hugging Face Hub, through its usual cache.

use std::path::{Path, PathBuf};

pub(crate) use data::offline;
use data::{HubKind, Snapshot};
use problem::Result;

/// Files that every model has beside its weights.
const NEEDED: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];

/// The folder of a model's files, all of one commit, fetched if the cache lacks them. `HF_HOME` moves the cache, `HF_TOKEN` opens gated
/// models, `HF_HUB_OFFLINE=1` forbids the network.
pub(crate) fn fetch(model: &str, revision: Option<&str>) -> Result<PathBuf> {
    let snapshot = snapshot(model, revision)?;
    let config = snapshot.get("config.json")?;
    for name in NEEDED {
        snapshot.get(name)?;
    }
    // Without a network, what the cache has of the others is in the snapshot's folder already.
    for name in snapshot.names().unwrap_or_default() {
        if lm::is_companion(name) {
            snapshot.get(name)?;
        }
    }
    if snapshot.has("model.safetensors") {
        snapshot.get("model.safetensors")?;
    } else {
        for shard in shards(&snapshot.get("model.safetensors.index.json")?)? {
            snapshot.get(&shard)?;
        }
    }
    Ok(config.parent().unwrap_or(Path::new(".")).to_owned())
}

/// The model at the commit that its revision points to.
pub(crate) fn snapshot(model: &str, revision: Option<&str>) -> Result<Snapshot> {
    let place = format!("{model} at {}", revision.unwrap_or("main"));
    let hint =
        "check name, revision and network; HF_TOKEN opens gated models; HF_HUB_OFFLINE=1 takes what the cache has";
    Snapshot::of(HubKind::Model, model, revision, &place, hint)
}

/// The files that an index names.
fn shards(index: &Path) -> Result<std::collections::BTreeSet<String>> {
    let value: serde_json::Value = run::read_json(index)?;
    let names = value["weight_map"].as_object().into_iter().flat_map(|m| m.values());
    Ok(names.filter_map(|v| v.as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_every_shard_once() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        let map =
            serde_json::json!({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-1.safetensors"}});
        run::write_json(&index, &map).unwrap();
        assert_eq!(shards(&index).unwrap().into_iter().collect::<Vec<_>>(), ["x-1.safetensors", "x-2.safetensors"]);
    }
}
