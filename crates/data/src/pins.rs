//! Which bytes a source stands for: a branch or an address is a name, and what it names changes.

use std::collections::BTreeMap;
use std::path::Path;

use problem::Result;

use crate::address::{MARK, apart, identity};
use crate::hub::{Named, is_commit};
use crate::location::{HUB, is_remote, local};

/// Sources that say which bytes they mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// The sources, to be read in the place of those that were pinned: what is remote names its commit or version, and reading it when it
    /// has another is an error.
    pub sources: Vec<String>,
    /// What each is: of every local file its SHA-256, of a data set on the hub its commit, of objects behind an address their entity tag
    /// or time and their size, or where a server gives neither, the SHA-256 of their content.
    pub identities: BTreeMap<String, String>,
}

/// Looks up what every source stands for now. `hash` gives a local file's SHA-256.
///
/// # Errors
/// A source that is not there; a hub, server or store that does not answer.
pub fn pin(sources: &[String], hash: &dyn Fn(&Path) -> Result<String>) -> Result<Pinned> {
    let mut pinned = Pinned::default();
    for source in sources {
        let what = if let Some(dataset) = source.strip_prefix(HUB) {
            let named = Named::parse(dataset)?;
            match named.revision.filter(|r| is_commit(r)) {
                Some(commit) => commit.to_owned(),
                None => named.snapshot()?.commit,
            }
        } else if is_remote(source) {
            identity(apart(source).0)?
        } else {
            for (path, _) in local(source)? {
                pinned.identities.insert(path.display().to_string(), hash(&path)?);
            }
            pinned.sources.push(source.clone());
            continue;
        };
        pinned.sources.push(pinned_to(source, &what)?);
        pinned.identities.insert(apart(source).0.to_owned(), what);
    }
    Ok(pinned)
}

/// What every source stands for now: the identities of [`pin`], local files hashed anew.
///
/// # Errors
/// Those of [`pin`].
pub fn identities_of(sources: &[String]) -> Result<BTreeMap<String, String>> {
    Ok(pin(sources, &run::hash_file)?.identities)
}

/// A remote source that stands for what an identity of [`pin`] says; a local one as it is.
///
/// # Errors
/// A data set on the hub whose name has another form.
pub fn pinned_to(source: &str, identity: &str) -> Result<String> {
    match source.strip_prefix(HUB) {
        Some(dataset) => Ok(Named::parse(dataset)?.at(identity)),
        None if is_remote(source) => Ok(format!("{}{MARK}{identity}", apart(source).0)),
        None => Ok(source.to_owned()),
    }
}
