//! Objects behind an address, and whether they are still what they were when they were looked up.

use std::sync::Arc;

use problem::{Result, invalid};

use crate::input::Input;
use crate::remote::Remote;

/// What stands between an address and what it was pinned to.
pub(crate) const MARK: &str = "#pinned=";

/// An address and what it was pinned to.
pub(crate) fn apart(source: &str) -> (&str, Option<&str>) {
    source.split_once(MARK).map_or((source, None), |(address, pin)| (address, Some(pin)))
}

/// An object: its name in messages, its path below what was given, and where it is.
type Found = (String, String, Arc<Remote>);

fn find(address: &str) -> Result<Vec<Found>> {
    Ok(Remote::find(address)?.into_iter().map(|(name, short, remote)| (name, short, Arc::new(remote))).collect())
}

const CONTENT: &str = "sha256 ";

/// What the objects behind an address are now.
pub(crate) fn identity(address: &str) -> Result<String> {
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
        let hint = "it changed behind its address: run again, which looks it up anew, or read a copy of your own";
        return Err(invalid(address, format!("what it was when it was looked up: {pin}"), found, hint));
    }
    Ok(found.into_iter().map(|(name, short, remote)| (name, short, Input::Remote(remote))).collect())
}
