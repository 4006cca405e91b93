//! The stage `import`: a base, from a GGUF file, a folder or the Hugging Face Hub, as a Hugging Face folder that loads.

use std::path::{Path, PathBuf};

use device::Compute;
use problem::{Result, invalid, mistake};
use run::Run;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::stage::as_table;
use super::{Artifact, Inputs, Source, Stage};
use crate::{base, hub};

/// Where the base comes from: one of `gguf`, `folder` and `hub`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImportConfig {
    /// A GGUF file of the Llama family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gguf: Option<PathBuf>,
    /// A Hugging Face folder, which is copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) folder: Option<PathBuf>,
    /// The name of a model on the Hugging Face Hub, such as HuggingFaceTB/SmolLM2-135M-Instruct.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hub: Option<String>,
    /// A branch, tag or commit of the model `hub`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<String>,
    /// A Jinja file for a base of `folder` or `hub` that has no chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chat_template: Option<PathBuf>,
}

/// The one place that the base comes from.
pub(crate) enum Origin<'a> {
    Gguf(&'a Path),
    Folder(&'a Path),
    Hub(&'a str),
}

impl ImportConfig {
    pub(crate) fn origin(&self) -> Result<Origin<'_>> {
        let Self { gguf, folder, hub, revision, chat_template } = self;
        let wrong = |expected: &str, found: String| {
            let hint = "such as gguf = \"../.deps/base/SmolLM2-135M-Instruct.Q4_1.gguf\"";
            Err(invalid("import", expected, found, hint))
        };
        match (gguf, folder, hub) {
            (Some(_), None, None) if chat_template.is_some() => {
                wrong("`chat_template` with `folder` or `hub`", "it with `gguf`, whose file has its own".into())
            }
            (None, None, Some(hub)) => Ok(Origin::Hub(hub)),
            (Some(_), None, None) | (None, Some(_), None) if revision.is_some() => {
                wrong("`revision` with `hub`", "it without".into())
            }
            (Some(gguf), None, None) => Ok(Origin::Gguf(gguf)),
            (None, Some(folder), None) => Ok(Origin::Folder(folder)),
            _ => {
                let given = [("gguf", gguf.is_some()), ("folder", folder.is_some()), ("hub", hub.is_some())];
                let names: Vec<&str> = given.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
                let found = if names.is_empty() { "none of them".into() } else { names.join(" and ") };
                wrong("one of `gguf`, `folder` and `hub`", found)
            }
        }
    }
}

/// What was imported.
#[derive(Debug, Serialize)]
pub(crate) struct Imported {
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    types: Option<String>,
    blocks: usize,
}

impl Stage for ImportConfig {
    const KIND: &'static str = "import";
    const FORMAT: u32 = 8;
    const PATHS: &'static [&'static str] = &["gguf", "folder", "chat_template"];
    type Report = Imported;

    fn defaults(_: &toml::Table) -> toml::Table {
        as_table(&Self::default())
    }

    fn reads(&self) -> Vec<Artifact> {
        vec![]
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![Artifact::Base]
    }

    fn check(&self) -> Result<()> {
        self.origin().map(drop)
    }

    fn files(&self) -> Result<Vec<Source>> {
        let mut sources = match self.origin()? {
            Origin::Gguf(gguf) if !gguf.exists() => {
                let hint = "run ./setup, which fetches the default base";
                return Err(invalid(gguf.display(), "a GGUF file", "nothing", hint));
            }
            Origin::Gguf(gguf) => vec![Source::file("gguf", gguf)],
            Origin::Folder(folder) => files_of_a_base(folder)?.into_iter().map(of_a_folder).collect(),
            Origin::Hub(_) => vec![],
        };
        sources.extend(self.chat_template.iter().map(|file| Source::file("chat_template", file)));
        if let Origin::Hub(name) = self.origin()? {
            let identity = commit_of(name, self.revision.as_deref());
            sources.push(Source::Pinned { name: name.to_owned(), identity });
        }
        Ok(sources)
    }

    fn computes(&self) -> bool {
        false
    }

    fn execute(&self, _: &Inputs, compute: &Compute, run: &mut Run) -> Result<Imported> {
        let (folder, template) = (run.path(""), self.chat_template.as_deref());
        match self.origin()? {
            Origin::Gguf(gguf) => {
                let report = lm::import_gguf(gguf, &folder)?;
                let (lm, _) = base::load(&folder, compute)?;
                base::keep_date(&folder)?;
                Ok(Imported {
                    source: gguf.display().to_string(),
                    tensors: Some(report.tensors),
                    parameters: Some(report.parameters),
                    types: Some(format!("{:?}", report.types)),
                    blocks: lm.depth(),
                })
            }
            Origin::Hub(hub) => {
                // The commit that the run's identity names, whatever the branch points to by now.
                let commit = run.identity().inputs.get(hub).filter(|commit| *commit != UNKNOWN).ok_or_else(|| {
                    let message = format!("import: expected to know which commit {hub} is now, found no answer");
                    mistake(message, "see the warning above; HF_HUB_OFFLINE=1 takes what the cache has")
                })?;
                let source = hub::fetch(hub, Some(commit))?;
                copy_base(&source, template, compute, &folder, hub)
            }
            Origin::Folder(source) => copy_base(source, template, compute, &folder, &source.display().to_string()),
        }
    }

    fn text(report: &Imported) -> String {
        match (report.tensors, report.parameters, &report.types) {
            (Some(tensors), Some(parameters), Some(types)) => {
                format!("{tensors} tensors, {parameters} parameters, types {types}")
            }
            _ => format!("copied {}, {} blocks", report.source, report.blocks),
        }
    }
}

fn of_a_folder(path: PathBuf) -> Source {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Source::File { name: format!("folder: {name}"), path }
}

/// In place of a commit that could not be looked up.
const UNKNOWN: &str = "unknown";

/// The commit that a revision of a model on the hub points to now. Where the hub cannot be asked, the run itself will say so when it fetches
/// the model: a dry run goes on with a warning.
fn commit_of(name: &str, revision: Option<&str>) -> String {
    if let Some(commit) = revision.filter(|revision| data::is_commit(revision)) {
        return commit.to_owned();
    }
    match hub::snapshot(name, revision) {
        Ok(snapshot) => snapshot.commit,
        Err(problem) => {
            tracing::warn!("import: which commit {name} is now could not be looked up: {problem}");
            UNKNOWN.into()
        }
    }
}

/// The files of a Hugging Face folder that an import copies, in order.
pub(crate) fn files_of_a_base(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        fs_err::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.is_file() && Artifact::is_of_a_base(file));
    files.sort();
    Ok(files)
}

/// Fetches a model by name into a folder; gives what is to be said of it.
pub(crate) fn copy_hub_model(name: &str, revision: Option<&str>, folder: &Path) -> Result<String> {
    let source = hub::fetch(name, revision)?;
    let compute = Compute::new("cpu", "auto", None)?;
    Ok(ImportConfig::text(&copy_base(&source, None, &compute, folder, name)?))
}

/// Copies a model folder that loads, with a chat template for one that has none. What an interrupted copy left in `folder` is written over.
fn copy_base(source: &Path, template: Option<&Path>, compute: &Compute, folder: &Path, name: &str) -> Result<Imported> {
    if template.is_some() && text::Tokenizer::from_folder(source)?.template().is_ok() {
        let message = format!("import, `chat_template`: expected a base without a template, found one in {name}");
        return Err(mistake(message, "leave `chat_template` out"));
    }
    let (lm, _) = base::load(source, compute)?;
    for path in files_of_a_base(source)? {
        fs_err::copy(&path, folder.join(path.file_name().unwrap_or_default()))?;
    }
    if let Some(template) = template {
        fs_err::copy(template, folder.join("chat_template.jinja"))?;
        text::Tokenizer::from_folder(folder)?; // it compiles
    }
    base::keep_date(folder)?;
    Ok(Imported { source: name.to_owned(), tensors: None, parameters: None, types: None, blocks: lm.depth() })
}
