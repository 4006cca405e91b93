//! Where a pipeline's paths begin.
//!
//! Paths in a file are relative to that file. The project is the parent of `pipelines/`, else the file's folder; a path that is not found
//! from its file is looked up from the project, with a warning.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use problem::Result;

/// The folder of a project.
#[derive(Debug)]
pub(crate) struct Project {
    root: PathBuf,
    warned: RefCell<BTreeSet<String>>,
}

impl Project {
    /// The project of a pipeline file.
    pub(crate) fn of(file: &Path) -> Result<Self> {
        let file = std::path::absolute(file)?;
        let folder = file.parent().unwrap_or(&file);
        let pipelines = folder.ancestors().find(|a| a.file_name().is_some_and(|name| name == "pipelines"));
        let whole = pipelines.and_then(Path::parent).unwrap_or(folder).to_owned();
        Ok(Self { root: from_here(&whole), warned: RefCell::default() })
    }

    /// Where results are written, unless the user names another folder.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        tidy(&self.root.join("checkpoints"))
    }

    /// What a path means that is written in a file of the folder `from`; `place` names the file. Addresses are left as they are.
    pub(crate) fn resolve(&self, path: &str, from: &Path, place: &str) -> PathBuf {
        if data::is_remote(path) || Path::new(path).is_absolute() {
            return path.into();
        }
        let own = tidy(&from.join(path));
        if exists(&own) {
            return own;
        }
        let of_project = tidy(&self.root.join(path));
        if !exists(&of_project) {
            return own;
        }
        if self.warned.borrow_mut().insert(format!("{place} {path}")) {
            tracing::warn!(
                hint = "paths in a file are relative to that file",
                "{place}: `{path}` was not found from there; taken from the project: {}",
                of_project.display()
            );
        }
        of_project
    }
}

/// The same path, from the current folder where that is shorter.
pub(crate) fn from_here(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(&here) {
        Ok(below) if below.as_os_str().is_empty() => ".".into(),
        Ok(below) => below.to_owned(),
        Err(_) => path.to_owned(),
    }
}

/// The path without `.` and `..`, where they can be left out.
fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => _ = out.pop(),
            other => out.push(other),
        }
    }
    if out.as_os_str().is_empty() { ".".into() } else { out }
}

/// Is there such a file or folder, or where the name is a pattern, the folder that it looks into?
fn exists(path: &Path) -> bool {
    let pattern = |part: &Component| part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let fixed: PathBuf = path.components().take_while(|part| !pattern(part)).collect();
    path.exists() || (fixed != path && fixed.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_its_files_before_it_is_the_projects() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["pipelines/studies", "configs", "data"] {
            fs_err::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["data/a.parquet", "configs/card.toml", "card.toml"] {
            fs_err::write(root.join(name), "").unwrap();
        }
        let project = Project::of(&root.join("pipelines/studies/x.toml")).unwrap();
        assert_eq!(project.checkpoints(), root.join("checkpoints"), "the parent of pipelines/");
        let resolve = |path: &str, from: &str| project.resolve(path, &root.join(from), "x.toml");
        assert_eq!(resolve("../../data/a.parquet", "pipelines/studies"), root.join("data/a.parquet"));
        assert_eq!(resolve("card.toml", "configs"), root.join("configs/card.toml"));
        assert_eq!(resolve("card.toml", "pipelines"), root.join("card.toml"), "from the project");
        assert_eq!(resolve("data/*.parquet", "pipelines"), root.join("data/*.parquet"));
        assert_eq!(resolve("missing.toml", "pipelines"), root.join("pipelines/missing.toml"));
        assert_eq!(resolve("hf://datasets/a/b", "pipelines"), Path::new("hf://datasets/a/b"));
        assert_eq!(project.warned.borrow().len(), 2);
        // A file outside of any `pipelines/`: its own folder.
        assert_eq!(Project::of(&root.join("data/x.toml")).unwrap().checkpoints(), root.join("data/checkpoints"));
    }

    #[test]
    fn tidy_paths_keep_what_leads_out() {
        let of = |path: &str| tidy(Path::new(path)).display().to_string();
        assert_eq!(of("pipelines/../.deps/./x"), ".deps/x");
        assert_eq!(of("../x"), "../x");
        assert_eq!(of("a/.."), ".");
    }
}
