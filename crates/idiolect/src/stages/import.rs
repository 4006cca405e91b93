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
    /// Files of the folder that do not belong to the base and were not copied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left: Vec<String>,
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
        match self.origin()? {
            Origin::Hub(name) => refuse_path(name),
            Origin::Gguf(_) | Origin::Folder(_) => Ok(()),
        }
    }

    fn files(&self) -> Result<Vec<Source>> {
        let mut sources = match self.origin()? {
            Origin::Gguf(gguf) if !gguf.exists() => {
                let hint = "run ./setup, which fetches the default base";
                return Err(invalid(gguf.display(), "a GGUF file", "nothing", hint));
            }
            Origin::Gguf(gguf) => vec![Source::file("gguf", gguf)],
            Origin::Folder(folder) => files_of_a_base(folder)?.0.into_iter().map(|file| of_a_folder(folder, file)).collect(),
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
            Origin::Gguf(gguf) => import_gguf(gguf, compute, &folder),
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
            _ => {
                let mut text = format!("copied {}, {} blocks", report.source, report.blocks);
                if !report.left.is_empty() {
                    text += &format!("; {} files of others left out: {}", report.left.len(), report.left.join(", "));
                }
                text
            }
        }
    }
}

fn of_a_folder(folder: &Path, file: PathBuf) -> Source {
    Source::File { name: format!("folder: {}", file.display()), path: folder.join(file) }
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

/// The files of a Hugging Face folder that an import copies, as paths below it, and the names of those that it leaves.
pub(crate) fn files_of_a_base(folder: &Path) -> Result<(Vec<PathBuf>, Vec<String>)> {
    lm::recognise(folder)?;
    let lm::Companions { mut files, mut left } = lm::companions(folder)?;
    let mut weights: Vec<PathBuf> = lm::weight_files(folder)?;
    if weights.iter().all(|file| file.file_name().is_none_or(|name| name != "model.safetensors")) {
        weights.push(folder.join("model.safetensors.index.json"));
    }
    let weights: Vec<PathBuf> = weights.iter().filter_map(|file| Some(file.strip_prefix(folder).ok()?.to_owned())).collect();
    left.retain(|name| !weights.iter().any(|file| file == Path::new(name)));
    files.extend(weights);
    files.sort();
    Ok((files, left))
}

/// What `idiolect import` copies, a GGUF file, a folder or a model on the Hub, into a folder; gives what is to be said of it.
pub(crate) fn import_any(model: &Path, revision: Option<&str>, folder: &Path) -> Result<String> {
    let compute = Compute::new("cpu", "auto", None)?;
    let name = model.to_string_lossy();
    let said = if model.is_file() {
        if !model.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) && !lm::is_gguf(model) {
            lm::recognise(model)?;
        }
        import_gguf(model, &compute, folder)?
    } else if model.is_dir() {
        copy_base(model, None, &compute, folder, &name)?
    } else {
        refuse_path(&name)?;
        return Ok(ImportConfig::text(&copy_base(&hub::fetch(&name, revision)?, None, &compute, folder, &name)?));
    };
    if revision.is_some() {
        return Err(mistake(format!("--revision: expected a model on the Hub, found {name}"), "leave --revision out"));
    }
    Ok(ImportConfig::text(&said))
}

/// Refuses the name of a model on the Hub that is a path: nothing is asked of the Hub for a folder that is not there.
pub(crate) fn refuse_path(name: &str) -> Result<()> {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['-', '.'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let parts: Vec<&str> = name.split('/').collect();
    let parent = Path::new(name).parent().filter(|parent| !parent.as_os_str().is_empty());
    let looks_like_a_path = parts.len() > 2
        || !parts.iter().all(|p| part(p))
        || parent.is_some_and(Path::is_dir)
        || [".gguf", ".safetensors", ".bin"].iter().any(|ending| name.to_lowercase().ends_with(ending));
    if !looks_like_a_path {
        return Ok(());
    }
    let hint = "check the path; a model on the Hub is named OWNER/NAME, such as HuggingFaceTB/SmolLM2-135M-Instruct";
    Err(invalid(name, "a GGUF file, a model folder, or a model's name on the Hub", "nothing at this path", hint))
}

/// Makes a folder of a GGUF file, loads it and scores with it once.
fn import_gguf(gguf: &Path, compute: &Compute, folder: &Path) -> Result<Imported> {
    let report = lm::import_gguf(gguf, folder)?;
    let lm = base::try_out(folder, compute).map_err(|e| e.within(gguf.display()))?;
    base::keep_date(folder)?;
    Ok(Imported {
        source: gguf.display().to_string(),
        tensors: Some(report.tensors),
        parameters: Some(report.parameters),
        types: Some(format!("{:?}", report.types)),
        blocks: lm.depth(),
        left: vec![],
    })
}

/// Copies a model folder that loads, with a chat template for one that has none. What an interrupted copy left in `folder` is written over.
fn copy_base(source: &Path, template: Option<&Path>, compute: &Compute, folder: &Path, name: &str) -> Result<Imported> {
    let (files, left) = files_of_a_base(source)?;
    if template.is_some() && text::Tokenizer::from_folder(source)?.template().is_ok() {
        let message = format!("import, `chat_template`: expected a base without a template, found one in {name}");
        return Err(mistake(message, "leave `chat_template` out"));
    }
    let lm = base::try_out(source, compute)?;
    for file in files {
        if let Some(parent) = file.parent() {
            fs_err::create_dir_all(folder.join(parent))?;
        }
        fs_err::copy(source.join(&file), folder.join(&file))?;
    }
    if let Some(template) = template {
        fs_err::copy(template, folder.join("chat_template.jinja"))?;
        text::Tokenizer::from_folder(folder)?; // it compiles
    }
    base::keep_date(folder)?;
    Ok(Imported { source: name.to_owned(), tensors: None, parameters: None, types: None, blocks: lm.depth(), left })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_never_taken_for_a_name_on_the_hub() {
        for name in ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "org/model.v2_x"] {
            refuse_path(name).unwrap();
        }
        for path in ["./model", "../model", "/tmp/model", "models/", "a/b/c", "~/model", "a b/c", "x.gguf", "C:\\model", "src/none"] {
            let error = refuse_path(path).unwrap_err().to_string();
            assert!(error.contains("nothing at this path"), "{error}");
        }
    }
}
