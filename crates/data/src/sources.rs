//! Where a source's bytes are: files, globs, folders of shards, Hugging Face datasets, object stores.

use problem::Result;

use crate::input::Input;
use crate::location::{HUB, SourceFile, is_remote, local};

/// A source's files, and what a reader should know of others there.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) files: Vec<SourceFile>,
    pub(crate) remarks: Vec<String>,
}

/// All files of a source, in the order given, those of a folder or a glob sorted by name.
pub(crate) fn resolve(sources: &[String]) -> Result<Found> {
    let (mut files, mut remarks) = (Vec::new(), Vec::new());
    for source in sources {
        if let Some(dataset) = source.strip_prefix(HUB) {
            for (name, path) in crate::hub::fetch(dataset)? {
                let file = SourceFile::new(format!("{source}: {name}"), name, Input::open(&path)?)?;
                files.push(SourceFile { path: Some(path), ..file });
            }
        } else if is_remote(source) {
            for (url, short, input) in crate::pins::remote_inputs(source)? {
                files.push(SourceFile::new(url, short, input)?);
            }
        } else {
            let found = local(source)?;
            remarks.extend(found.remarks);
            for (path, short) in found.files {
                let file = SourceFile::new(path.display().to_string(), short, Input::open(&path)?)?;
                files.push(SourceFile { path: Some(path), ..file });
            }
        }
    }
    Ok(Found { files, remarks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_globs_give_sorted_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.jsonl", "a.jsonl", "_SUCCESS", ".hidden.csv", "sub/c.csv", "notes.md"] {
            let path = dir.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, "{}").unwrap();
        }
        let names = |source: &str| -> Vec<String> {
            resolve(&[source.into()]).unwrap().files.iter().map(|f| f.short.to_string()).collect()
        };
        let root = dir.path().display().to_string();
        assert_eq!(names(&root), ["a.jsonl", "b.jsonl", "sub/c.csv"]);
        assert_eq!(names(&format!("{root}/*.jsonl")), ["a.jsonl", "b.jsonl"]);
        assert!(resolve(&[format!("{root}/*.parquet")]).unwrap_err().to_string().contains("found none"));
        assert!(resolve(&[format!("{root}/x.parquet")]).unwrap_err().to_string().contains("x.parquet"));
        #[cfg(not(feature = "clouds"))]
        {
            let refused = resolve(&["s3://bucket/votes.parquet".into()]).unwrap_err();
            assert!(refused.hint().unwrap().contains("just build-full"), "{refused}");
        }
        assert!(resolve(&[format!("{root}/notes.md")]).unwrap_err().to_string().contains("another ending"));
    }
}
