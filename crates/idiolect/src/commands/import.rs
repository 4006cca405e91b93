//! `idiolect import`: a GGUF file, a model folder, or a model's name on the Hugging Face Hub, as a Hugging Face folder.

use std::path::PathBuf;

use clap::Args;
use problem::Result;

use crate::new_folder::NewFolder;
use crate::stages::import::import_any;
use crate::table;

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// A GGUF file, a model folder, or a name such as HuggingFaceTB/SmolLM2-135M-Instruct
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
        let said = import_any(model, revision.as_deref(), new.path())?;
        new.publish()?;
        table::say(&said);
        Ok(())
    }
}
