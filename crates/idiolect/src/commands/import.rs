//! `idiolect import`: a GGUF file, or a model's name on the Hugging Face Hub, as a Hugging Face folder.

use std::path::PathBuf;

use clap::Args;
use problem::Result;

use crate::new_folder::NewFolder;
use crate::stages::import::copy_hub_model;
use crate::table;

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// A GGUF file, or a name such as HuggingFaceTB/SmolLM2-135M-Instruct
    model: PathBuf,
    /// Branch, tag or commit of a named model
    #[arg(long)]
    revision: Option<String>,
    /// The folder to write; must not exist
    folder: PathBuf,
}

impl ImportArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        let Self { model, revision, folder } = self;
        let new = NewFolder::begin(folder)?;
        let said = if model.extension().is_some_and(|e| e == "gguf") {
            let report = lm::import_gguf(model, new.path())?;
            format!("{} tensors, {} parameters, types {:?}", report.tensors, report.parameters, report.types)
        } else {
            copy_hub_model(&model.to_string_lossy(), revision.as_deref(), new.path())?
        };
        new.publish()?;
        table::say(&said);
        Ok(())
    }
}
