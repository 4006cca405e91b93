//! `idiolect data tokenise`: every distinct text of a table, once.

use std::path::PathBuf;

use clap::Args;
use problem::Result;
use text::Tokenizer;

use crate::new_folder::refuse_file;
use crate::table::print;

#[derive(Args)]
pub(crate) struct TokeniseArgs {
    /// A table that `idiolect data ingest` or the stage `data` wrote
    table: PathBuf,
    /// A folder with tokenizer.json and chat template
    #[arg(long)]
    tokenizer: PathBuf,
    /// The Arrow file to write; must not exist
    #[arg(long)]
    out: PathBuf,
    /// Threads [default: all cores]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

impl TokeniseArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        tokenise(self)
    }
}

fn tokenise(args: &TokeniseArgs) -> Result<()> {
    refuse_file(&args.out)?;
    let tokenizer = Tokenizer::from_folder(&args.tokenizer)?;
    let data::TokenReport { texts, distinct, tokens, longest } =
        data::tokenise(&args.table, &tokenizer, &args.out, args.threads)?;
    print(&format!("{distinct} distinct of {texts} texts, {tokens} tokens, the longest {longest}"))?;
    Ok(())
}
