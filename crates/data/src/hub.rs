//! Data sets and models of the Hugging Face Hub, through its usual cache.

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use problem::{Problem, Result, invalid, machine, unwritable};

const OFFLINE: &str = "HF_HUB_OFFLINE forbids the network: unset it, or name a local file or folder";
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

/// What is fetched from the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// Does `HF_HUB_OFFLINE` forbid the network?
pub fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !["", "0", "false"].contains(&v.to_lowercase().as_str()))
}

/// A repository of the hub at one commit: all of its files belong together, whatever its branches point to meanwhile.
///
/// `HF_HOME` moves the cache, `HF_TOKEN` opens gated repositories, `HF_HUB_OFFLINE=1` forbids the network, `HF_ENDPOINT` is another hub.
#[derive(Debug)]
pub struct Snapshot {
    /// The commit.
    pub commit: String,
    /// Where its files are, once they are fetched.
    pub folder: PathBuf,
    place: String,
    hint: String,
    cache: PathBuf,
    /// None without a network: then there is what the cache holds.
    remote: Option<(ApiRepo, Vec<String>)>,
}

impl Snapshot {
    /// The commit that `revision` (a branch, a tag or a commit; `main` if none) of `owner/name` points to now; without a network, the one
    /// that it pointed to when it was last fetched. `place` and `hint` are for messages.
    ///
    /// # Errors
    /// A name or revision that the hub, or the cache, does not know; a hub that does not answer.
    pub fn of(kind: HubKind, name: &str, revision: Option<&str>, place: &str, hint: &str) -> Result<Self> {
        let revision = revision.unwrap_or("main");
        let kind = match kind {
            HubKind::Model => RepoType::Model,
            HubKind::Dataset => RepoType::Dataset,
        };
        let named = |revision: &str| Repo::with_revision(name.to_owned(), kind, revision.to_owned());
        let cache = Cache::from_env();
        let (commit, remote) = if offline() {
            (cached_commit(&cache, &named(revision), place)?, None)
        } else {
            let token = std::env::var("HF_TOKEN").ok().or_else(|| cache.token());
            let failed = |e: &ApiError| hub_problem(place, e, hint);
            let api = ApiBuilder::from_env().with_token(token).build().map_err(|e| failed(&e))?;
            let info = api.repo(named(revision)).info().map_err(|e| failed(&e))?;
            if !is_commit(&info.sha) {
                return Err(invalid(place, "a commit of 40 hexadecimal digits from the hub", info.sha, hint));
            }
            // So that the branch is found without a network later, as it is after a fetch by the hub's own tools.
            cache.repo(named(revision)).create_ref(&info.sha)?;
            let names = info.siblings.into_iter().map(|s| s.rfilename).collect();
            (info.sha.clone(), Some((api.repo(named(&info.sha)), names)))
        };
        Ok(Self {
            folder: cache.repo(named(revision)).pointer_path(&commit),
            commit,
            place: place.to_owned(),
            hint: hint.to_owned(),
            cache: cache.path().clone(),
            remote,
        })
    }

    /// Does it hold a file of this name (without a network: does the cache)?
    pub fn has(&self, name: &str) -> bool {
        match &self.remote {
            Some((_, names)) => names.iter().any(|n| n == name),
            None => self.folder.join(name).exists(),
        }
    }

    /// Its names, where they are known: with a network.
    pub fn names(&self) -> Option<&[String]> {
        self.remote.as_ref().map(|(_, names)| names.as_slice())
    }

    /// Where a file is, fetched if the cache lacks it.
    ///
    /// # Errors
    /// A file that is not there, a network that fails, a full disk.
    pub fn get(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(path);
        }
        let Some((remote, _)) = &self.remote else {
            return Err(invalid(
                &self.place,
                format!("`{name}` in the cache {}", self.cache.display()),
                "none, and HF_HUB_OFFLINE forbids fetching it",
                OFFLINE,
            ));
        };
        tracing::info!("{name}: from the Hugging Face Hub");
        remote.get(name).map_err(|e| hub_problem(&self.place, &e, &self.hint).within(name))
    }
}

/// Is a revision a commit already?
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The commit that the cache knows for a revision.
fn cached_commit(cache: &Cache, repo: &Repo, place: &str) -> Result<String> {
    let revision = repo.revision();
    if is_commit(revision) {
        return Ok(revision.to_owned());
    }
    let file = cache.path().join(repo.folder_name()).join("refs").join(revision);
    match fs_err::read_to_string(&file) {
        Ok(commit) => Ok(commit.trim().to_owned()),
        Err(_) => Err(invalid(
            place,
            format!("the revision `{revision}` in the cache {}", cache.path().display()),
            "none, and HF_HUB_OFFLINE forbids asking the hub",
            OFFLINE,
        )),
    }
}

/// `OWNER/NAME[@REVISION]/PATH`, taken apart.
pub(crate) struct Named<'a> {
    place: String,
    name: String,
    pub(crate) revision: Option<&'a str>,
    path: &'a str,
}

impl<'a> Named<'a> {
    pub(crate) fn parse(dataset: &'a str) -> Result<Self> {
        let place = format!("hf://datasets/{dataset}");
        let mut parts = dataset.splitn(3, '/');
        let (Some(owner), Some(name), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            let expected = "hf://datasets/OWNER/NAME[@REVISION]/PATH of a data set on the hub";
            return Err(invalid(&place, expected, "another form", HINT));
        };
        let (name, revision) = name.split_once('@').map_or((name, None), |(name, revision)| (name, Some(revision)));
        Ok(Self { place, name: format!("{owner}/{name}"), revision, path })
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::of(HubKind::Dataset, &self.name, self.revision, &self.place, HINT)
    }

    /// The same path at a commit.
    pub(crate) fn at(&self, commit: &str) -> String {
        format!("hf://datasets/{}@{commit}/{}", self.name, self.path)
    }
}

/// Files of `owner/name[@revision]/path`, where the path may hold `*` or be a folder: their names and where they lie. All are of one commit.
pub(crate) fn fetch(dataset: &str) -> Result<Vec<(String, PathBuf)>> {
    let named = Named::parse(dataset)?;
    let (place, path) = (&named.place, named.path);
    let snapshot = named.snapshot()?;
    let Some(all) = snapshot.names() else { return Ok(vec![(path.to_owned(), snapshot.get(path)?)]) };
    let wrong = |found: String| invalid(place, "files of a data set on the hub", found, HINT);
    let pattern = if path.ends_with('/') { format!("{path}**") } else { path.to_owned() };
    let pattern = glob::Pattern::new(&pattern).map_err(|e| wrong(e.to_string()))?;
    // A folder or a pattern of a repository holds more than data: README.md, dataset_infos.json.
    let file_name = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let all = all.iter().filter(|n| crate::location::is_data(&file_name(n)));
    let mut names: Vec<&String> = all.filter(|n| pattern.matches(n)).collect();
    names.sort();
    if names.is_empty() {
        return Err(wrong("no file of that name".into()));
    }
    names.into_iter().map(|name| Ok((name.clone(), snapshot.get(name)?))).collect()
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
