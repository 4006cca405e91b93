//! Which bytes a source stands for: a branch or an address is a name, and what it names changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use problem::{Result, invalid};

use crate::hub::{Named, is_commit};
use crate::input::Input;
use crate::location::{HUB, is_remote, local};
use crate::remote::Remote;

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

/// What stands between an address and what it was pinned to.
const MARK: &str = "#pinned=";

/// An address and what it was pinned to.
pub(crate) fn apart(source: &str) -> (&str, Option<&str>) {
    source.split_once(MARK).map_or((source, None), |(address, pin)| (address, Some(pin)))
}

/// Looks up what every source stands for now. `hash` gives a local file's SHA-256.
///
/// # Errors
/// A source that is not there; a hub, server or store that does not answer.
pub fn pin(sources: &[String], hash: &dyn Fn(&Path) -> Result<String>) -> Result<Pinned> {
    let mut pinned = Pinned::default();
    for source in sources {
        let identity = if let Some(dataset) = source.strip_prefix(HUB) {
            let named = Named::parse(dataset)?;
            match named.revision.filter(|r| is_commit(r)) {
                Some(commit) => commit.to_owned(),
                None => named.snapshot()?.commit,
            }
        } else if is_remote(source) {
            address_identity(apart(source).0)?
        } else {
            for (path, _) in local(source)?.files {
                pinned.identities.insert(path.display().to_string(), hash(&path)?);
            }
            pinned.sources.push(source.clone());
            continue;
        };
        pinned.sources.push(pinned_to(source, &identity)?);
        pinned.identities.insert(apart(source).0.to_owned(), identity);
    }
    Ok(pinned)
}

/// What every source stands for now: the identities of [`pin`], with local files hashed once more.
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

/// An object: its name in messages, its path below what was given, and where it is.
type Found = (String, String, Arc<Remote>);

fn find(address: &str) -> Result<Vec<Found>> {
    Ok(Remote::find(address)?.into_iter().map(|(name, short, remote)| (name, short, Arc::new(remote))).collect())
}

const CONTENT: &str = "sha256 ";

/// What the objects behind an address are now.
fn address_identity(address: &str) -> Result<String> {
    let found = find(address)?;
    if let Some(identity) = versions(&found) {
        return Ok(identity);
    }
    tracing::warn!(
        "{address}: the server tells neither an entity tag nor a time, so the content's SHA-256 is taken, and the content is fetched twice"
    );
    Ok(contents(&found, address)?.0)
}

/// Entity tags or times, and sizes; none if an object has neither.
fn versions(found: &[Found]) -> Option<String> {
    let all: Option<Vec<String>> = found.iter().map(|(_, _, remote)| remote.version()).collect();
    let all = all?;
    if let [one] = all.as_slice() {
        return Some(one.clone());
    }
    let lines: String =
        found.iter().zip(&all).map(|((_, short, _), version)| format!("{short}\t{version}\n")).collect();
    Some(format!("{} objects, {}", all.len(), run::hash_bytes(lines.as_bytes())))
}

/// The hash of all contents, and the contents in files that have no name.
fn contents(found: &[Found], address: &str) -> Result<(String, Vec<Input>)> {
    let mut hashes = Vec::new();
    let mut inputs = Vec::new();
    for (_, _, remote) in found {
        let mut file = tempfile::NamedTempFile::new()?;
        std::io::copy(&mut Input::Remote(remote.clone()).reader(), &mut file)
            .map_err(|e| problem::unwritable(address, &e))?;
        hashes.push(run::hash_file(file.path())?);
        inputs.push(Input::open(file.path())?);
    }
    let hash = if let [one] = hashes.as_slice() { one.clone() } else { run::hash_bytes(hashes.concat().as_bytes()) };
    Ok((format!("{CONTENT}{hash}"), inputs))
}

/// The objects behind an address, which must be what it was pinned to.
pub(crate) fn remote_inputs(source: &str) -> Result<Vec<(String, String, Input)>> {
    let (address, pin) = apart(source);
    let found = find(address)?;
    let identity = match pin {
        None => None,
        Some(pin) if pin.starts_with(CONTENT) => {
            let (identity, inputs) = contents(&found, address)?;
            if identity == pin {
                return Ok(found
                    .into_iter()
                    .zip(inputs)
                    .map(|((name, short, _), input)| (name, short, input))
                    .collect());
            }
            Some((pin, identity))
        }
        Some(pin) => Some((pin, versions(&found).unwrap_or_else(|| "no entity tag and no time".to_owned()))),
    };
    if let Some((pin, found)) = identity.filter(|(pin, found)| pin != found) {
        let hint = "it changed behind its address: run again, which looks it up again, or read a copy of your own";
        return Err(invalid(address, format!("what it was when it was looked up: {pin}"), found, hint));
    }
    Ok(found.into_iter().map(|(name, short, remote)| (name, short, Input::Remote(remote))).collect())
}
