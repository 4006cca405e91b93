//! Models by name from the Hugging Face Hub, through its usual cache.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use problem::{Problem, Result, mistake};

/// Files of a model beside its weights; those marked are needed.
const FILES: [(&str, bool); 6] = [
    ("config.json", true),
    ("tokenizer.json", true),
    ("tokenizer_config.json", true),
    ("generation_config.json", false),
    ("special_tokens_map.json", false),
    ("chat_template.jinja", false),
];

/// The folder of a model's files, fetched if the cache lacks them. `HF_HOME` moves the cache, `HF_TOKEN` opens gated models,
/// `HF_HUB_OFFLINE=1` forbids the network.
pub(crate) fn fetch(model: &str, revision: Option<&str>) -> Result<PathBuf> {
    let revision = revision.unwrap_or("main").to_owned();
    let repo = Repo::with_revision(model.to_owned(), RepoType::Model, revision.clone());
    let cache = Cache::from_env();
    let cached = cache.repo(repo.clone());
    let remote: Option<ApiRepo> = if offline() {
        None
    } else {
        let token = std::env::var("HF_TOKEN").ok().or_else(|| cache.token());
        let api = ApiBuilder::from_env().with_token(token).build();
        Some(api.map_err(|e| trouble(model, &revision, &e))?.repo(repo))
    };
    let get = |name: &str| -> Result<PathBuf> {
        match &remote {
            Some(remote) => {
                tracing::info!("{model}: {name}, from the Hugging Face Hub or its cache");
                remote.get(name).map_err(|e| trouble(model, &revision, &e).within(name))
            }
            None => cached.get(name).ok_or_else(|| {
                mistake(
                    format!(
                        "{model} at {revision}: expected `{name}` in the cache {}, found none",
                        cache.path().display()
                    ),
                    "HF_HUB_OFFLINE forbids fetching it: unset it, or name a local folder or a GGUF file",
                )
            }),
        }
    };
    // What the repository holds, so that a failed download is never taken for a file that a model does without.
    let held: Option<Vec<String>> = match &remote {
        Some(remote) => {
            let info = remote.info().map_err(|e| trouble(model, &revision, &e))?;
            Some(info.siblings.into_iter().map(|s| s.rfilename).collect())
        }
        None => None,
    };
    let has = |name: &str| match &held {
        Some(held) => held.iter().any(|h| h == name),
        None => cached.get(name).is_some(),
    };
    let config = get("config.json")?;
    for (name, needed) in FILES {
        if needed || has(name) {
            get(name)?;
        }
    }
    if has("model.safetensors") {
        get("model.safetensors")?;
    } else {
        for shard in shards(&get("model.safetensors.index.json")?)? {
            get(&shard)?;
        }
    }
    Ok(config.parent().unwrap_or(Path::new(".")).to_owned())
}

/// Does `HF_HUB_OFFLINE` forbid the network?
pub(crate) fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !["", "0", "false"].contains(&v.to_lowercase().as_str()))
}

/// The files that an index names.
fn shards(index: &Path) -> Result<std::collections::BTreeSet<String>> {
    let value: serde_json::Value = run::read_json(index)?;
    let names = value["weight_map"].as_object().into_iter().flat_map(|m| m.values());
    Ok(names.filter_map(|v| v.as_str().map(str::to_owned)).collect())
}

fn trouble(model: &str, revision: &str, error: &ApiError) -> Problem {
    let hint =
        "check name, revision and network; HF_TOKEN opens gated models; HF_HUB_OFFLINE=1 takes what the cache has";
    data::hub_problem(&format!("{model} at {revision}"), error, hint)
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
