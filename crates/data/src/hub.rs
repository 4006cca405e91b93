//! Data sets of the Hugging Face Hub, through its usual cache.

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use problem::{Problem, Result, invalid, machine, unwritable};

const HINT: &str = "check name, revision and network; HF_TOKEN opens gated data sets; a local folder needs no network";

/// What the hub's client failed with at `place`: a name or a right that is missing is the user's matter, a network or a disk that fails the
/// machine's.
pub fn hub_problem(place: &str, error: &ApiError, hint: &str) -> Problem {
    let refused = |text: &str| ["401", "403", "404"].iter().any(|code| text.ends_with(&format!("status: {code}")));
    match error {
        ApiError::IoError(_) => unwritable(place, error),
        ApiError::RequestError(e) if refused(&e.to_string()) => {
            invalid(place, "files that the hub gives out", e.to_string(), hint)
        }
        ApiError::RequestError(_) | ApiError::TooManyRetries(_) => machine(
            format!("{place}: the hub did not answer: {error}"),
            "run the same command again when the network is back",
        ),
        _ => invalid(place, "an answer of the hub", error.to_string(), hint),
    }
}

/// Files of `owner/name[@revision]/path`, where the path may hold `*` or be a folder: their names and where they lie.
/// `HF_HOME` moves the cache, `HF_TOKEN` opens gated data sets, `HF_HUB_OFFLINE=1` forbids the network.
pub(crate) fn fetch(dataset: &str) -> Result<Vec<(String, PathBuf)>> {
    let place = format!("hf://datasets/{dataset}");
    let wrong = |found: String| {
        invalid(&place, "hf://datasets/OWNER/NAME[@REVISION]/PATH of a data set on the hub", found, HINT)
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
    let failed = |e: &ApiError| hub_problem(&place, e, HINT);
    let api = ApiBuilder::from_env().with_token(token).build().map_err(|e| failed(&e))?.repo(repo);
    let pattern = if path.ends_with('/') { format!("{path}**") } else { path.to_owned() };
    let pattern = glob::Pattern::new(&pattern).map_err(|e| wrong(e.to_string()))?;
    let info = api.info().map_err(|e| failed(&e))?;
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
            let path = api.get(&name).map_err(|e| failed(&e).within(&name))?;
            Ok((name, path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use problem::Kind;

    use super::*;

    #[test]
    fn a_full_cache_is_the_machines_and_an_odd_answer_the_users() {
        let full = ApiError::IoError(std::io::Error::from_raw_os_error(28));
        assert_eq!(hub_problem("me/votes", &full, "x").kind(), Kind::Machine);
        let retried = ApiError::TooManyRetries(Box::new(ApiError::InvalidResume));
        assert_eq!(hub_problem("me/votes", &retried, "x").kind(), Kind::Machine);
        let odd = hub_problem("me/votes", &ApiError::InvalidResume, "x");
        assert_eq!((odd.kind(), odd.hint()), (Kind::User, Some("x")));
    }
}
