//! What decides a stage's bytes, its hash, and the environment that is recorded apart from it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use problem::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Everything that decides the result of a stage.
///
/// What moves last bits only (the device, threads, micro-batch sizes) is the [`Environment`], which is recorded beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The stage's kind.
    pub stage: String,
    /// Raised whenever the code changes what this stage writes.
    pub format: u32,
    /// The settings that decide the result.
    pub config: Value,
    /// The run's seed.
    pub seed: u64,
    /// Content hashes of the inputs, by name.
    pub inputs: BTreeMap<String, String>,
}

/// What moves the last bits of a result and nothing else, by name: machine type, device model, dtype, threads, libtorch, sizes of
/// micro-batches.
pub type Environment = BTreeMap<String, String>;

/// How `found` differs from `wanted`, such as `threads 1 (now 2)`.
pub(crate) fn differences_of_environments(found: &Environment, wanted: &Environment) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = found.keys().chain(wanted.keys()).collect();
    let text = |environment: &Environment, name: &str| environment.get(name).cloned().unwrap_or("not set".into());
    names
        .into_iter()
        .filter(|name| found.get(*name) != wanted.get(*name))
        .map(|name| format!("{name} {} (now {})", text(found, name), text(wanted, name)))
        .collect()
}

impl Identity {
    /// An identity without inputs.
    pub fn new(stage: &str, format: u32, config: Value, seed: u64) -> Self {
        Self { stage: stage.into(), format, config, seed, inputs: BTreeMap::new() }
    }

    /// The hash of all of it, in hex.
    pub fn fingerprint(&self) -> String {
        // Going through Value sorts nothing, but every map in here is either a BTreeMap or a struct: the order is fixed.
        hash_bytes(serde_json::to_string(self).expect("plain data").as_bytes())
    }

    /// Which parts differ from `other`, in words: `config.steps`, `input reward`, ...
    pub fn differences(&self, other: &Self) -> Vec<String> {
        fn walk(path: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
            match (a, b) {
                (Value::Object(a), Value::Object(b)) => {
                    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
                    for key in keys {
                        let null = Value::Null;
                        walk(&format!("{path}.{key}"), a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), out);
                    }
                }
                _ if a != b => out.push(path.trim_start_matches('.').to_owned()),
                _ => {}
            }
        }
        let mut out = Vec::new();
        let value = |i: &Self| serde_json::to_value(i).expect("plain data");
        walk("", &value(other), &value(self), &mut out);
        out
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 in hex.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file in hex.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut block)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&block[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_part_changes_the_fingerprint_and_is_named() {
        let a = Identity::new("dpo", 1, json!({"beta": 0.1, "optimizer": {"lr": 1}}), 7);
        let change = |f: &dyn Fn(&mut Identity)| {
            let mut b = a.clone();
            f(&mut b);
            assert_ne!(a.fingerprint(), b.fingerprint());
            b.differences(&a)
        };
        assert_eq!(change(&|b| b.config["optimizer"]["lr"] = json!(2)), ["config.optimizer.lr"]);
        assert_eq!(change(&|b| b.seed = 8), ["seed"]);
        assert_eq!(change(&|b| b.format = 2), ["format"]);
        assert_eq!(change(&|b| _ = b.inputs.insert("data".into(), "x".into())), ["inputs.data"]);
        assert!(a.differences(&a.clone()).is_empty());
    }

    #[test]
    fn environments_differ_by_name() {
        let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let (found, wanted) =
            (of(&[("threads", "1"), ("dtype", "float32")]), of(&[("threads", "2"), ("dtype", "float32")]));
        assert_eq!(differences_of_environments(&found, &wanted), ["threads 1 (now 2)"]);
        assert_eq!(differences_of_environments(&of(&[]), &of(&[("threads", "2")])), ["threads not set (now 2)"]);
        assert!(differences_of_environments(&found, &found).is_empty());
    }

    #[test]
    fn file_hash_is_sha256() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), "abc").unwrap(); // printf abc | sha256sum
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_file(file.path()).unwrap(), want);
        assert_eq!(hash_bytes(b"abc"), want);
    }
}
