//! Data sets of the Hugging Face Hub, through its usual cache.

use std::path::PathBuf;

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};
use problem::{Result, invalid};

/// Files of `owner/name[@revision]/path`, where the path may hold `*` or be a folder: their names and where they lie.
/// `HF_HOME` moves the cache, `HF_TOKEN` opens gated data sets, `HF_HUB_OFFLINE=1` forbids the network.
pub(crate) fn fetch(dataset: &str) -> Result<Vec<(String, PathBuf)>> {
    let place = format!("hf://datasets/{dataset}");
    let wrong = |found: String| {
        invalid(
            &place,
            "hf://datasets/OWNER/NAME[@REVISION]/PATH of a data set on the hub",
            found,
            "check name, revision and network; HF_TOKEN opens gated data sets; a local folder needs no network",
        )
    };
    let mut parts = dataset.splitn(3, '/');
    let (Some(owner), Some(name), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong("another form".into()));
    };
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    let repo = Repo::with_revision(format!("{owner}/{name}"), RepoType::Dataset, revision.to_owned());
    let cache = Cache::from_env();
    let offline =
        std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !["", "0", "false"].contains(&v.to_lowercase().as_str()));
    if offline {
        let found = cache.repo(repo).get(path).ok_or_else(|| {
            wrong(format!(
                "no `{path}` in the cache {}, and HF_HUB_OFFLINE forbids fetching it",
                cache.path().display()
            ))
        })?;
        return Ok(vec![(path.to_owned(), found)]);
    }
    let token = std::env::var("HF_TOKEN").ok().or_else(|| cache.token());
    let api = ApiBuilder::from_env().with_token(token).build().map_err(|e| wrong(e.to_string()))?.repo(repo);
    let pattern = if path.ends_with('/') { format!("{path}**") } else { path.to_owned() };
    let pattern = glob::Pattern::new(&pattern).map_err(|e| wrong(e.to_string()))?;
    let info = api.info().map_err(|e| wrong(e.to_string()))?;
    let mut names: Vec<String> =
        info.siblings.into_iter().map(|s| s.rfilename).filter(|n| pattern.matches(n)).collect();
    names.sort();
    if names.is_empty() {
        return Err(wrong("no file of that name".into()));
    }
    names
        .into_iter()
        .map(|name| {
            tracing::info!("{name}: from the Hugging Face Hub or its cache");
            let path = api.get(&name).map_err(|e| wrong(format!("{name}: {e}")))?;
            Ok((name, path))
        })
        .collect()
}
