//! The stage `data`: source files of any layout to the preference table, validated and split without leakage.

use std::collections::BTreeSet;
use std::path::PathBuf;

use data::{Card, OneOrMore, Selection, SplitRule, TokenReport, UsersReport};
use device::Compute;
use problem::{Result, mistake};
use run::Run;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::artifact::TOKENS;
use super::stage::as_table;
use super::{Artifact, Inputs, Source, Stage};
use crate::base;
use crate::described::described;

/// What is ingested, and how.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataConfig {
    /// The data set's card.
    pub(crate) card: PathBuf,
    /// Files, folders, globs or addresses; without them, the votes of the stage `simulate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<OneOrMore>,
    /// A table of users, read as the card's `[users]` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) users: Option<OneOrMore>,
    /// Tokenise all texts with the base's tokenizer, once, for the stages after this one.
    #[serde(default)]
    pub(crate) tokens: bool,
    /// Which votes are kept, and how they are split.
    pub(crate) selection: Selection,
}

/// What was ingested.
#[derive(Debug, Serialize)]
pub(crate) struct Ingested {
    #[serde(flatten)]
    votes: data::Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    users_table: Option<UsersReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<TokenReport>,
}

impl Stage for DataConfig {
    const KIND: &'static str = "data";
    const FORMAT: u32 = 8;
    const PATHS: &'static [&'static str] = &["card", "path", "users"];
    type Report = Ingested;

    fn defaults(_: &toml::Table) -> toml::Table {
        let selection = Selection { min_votes: 20, ..Selection::all(SplitRule::Prompt { dev: 0.1, test: 0.2 }) };
        let mut table = toml::Table::new();
        table.insert("tokens".into(), false.into());
        table.insert("selection".into(), toml::Value::Table(as_table(&selection)));
        table
    }

    fn reads(&self) -> Vec<Artifact> {
        let simulated = self.path.is_none().then_some(Artifact::SimulatedVotes);
        let base = self.tokens.then_some(Artifact::Base);
        simulated.into_iter().chain(base).collect()
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![Artifact::Votes]
    }

    fn files(&self) -> Result<Vec<Source>> {
        Card::read(&self.card)?;
        let mut sources = vec![Source::file("card", &self.card)];
        for (role, given) in [("path", &self.path), ("users", &self.users)] {
            let (remote, local): (Vec<String>, Vec<String>) =
                given.iter().flat_map(OneOrMore::all).cloned().partition(|s| data::is_remote(s));
            // Order and names of files are in `source_row`.
            for (number, (path, name)) in data::local_files(&local)?.into_iter().enumerate() {
                sources.push(Source::File { name: format!("{role} {number}: {name}"), path });
            }
            if !remote.is_empty() {
                sources.push(Source::Pinned { name: format!("{role}, addresses in order"), identity: remote.join(" ") });
            }
            let pinned = data::identities_of(&remote)?;
            sources.extend(pinned.into_iter().map(|(name, identity)| Source::Pinned { name, identity }));
        }
        Ok(sources)
    }

    fn computes(&self) -> bool {
        false
    }

    fn execute(&self, inputs: &Inputs, _: &Compute, run: &mut Run) -> Result<Ingested> {
        let Self { card, path, users, tokens, selection } = self;
        let card = Card::read(card)?;
        let sources = match path {
            Some(path) => pinned(path, run)?,
            None => vec![inputs.folder(Artifact::SimulatedVotes)?.join("votes.parquet").display().to_string()],
        };
        let table = run.path("votes.parquet");
        let votes = data::ingest(&card, &sources, selection, run.seed(), &table)?;
        votes.column_notes.iter().for_each(|note| tracing::warn!("{note}"));
        votes.remarks.iter().for_each(|remark| tracing::info!("{remark}"));
        run::write_json(&run.path("report.json"), &votes)?;
        let users_table = users.as_ref().map(|users| write_users(&card, users, run)).transpose()?;
        let tokens = if *tokens {
            let tokenizer = base::tokenizer(inputs.folder(Artifact::Base)?)?;
            Some(data::tokenise(&table, &tokenizer, &run.path(TOKENS), 0)?)
        } else {
            None
        };
        Ok(Ingested { votes, users_table, tokens })
    }

    fn text(report: &Ingested) -> String {
        let mut text = described(&report.votes);
        if let Some(users) = &report.users_table {
            text += &format!(
                "; users table: {} users, {} numbers each, {} users unknown, {} without votes left out",
                users.users,
                users.columns.len(),
                users.unknown,
                users.without_votes
            );
        }
        if let Some(tokens) = &report.tokens {
            text += &format!(
                "; tokenised {} distinct of {} texts, {} tokens, the longest {}",
                tokens.distinct, tokens.texts, tokens.tokens, tokens.longest
            );
        }
        text
    }
}

/// The sources as the run's identity pins them: an address is read as it was when the run was planned, or not at all.
fn pinned(sources: &OneOrMore, run: &Run) -> Result<Vec<String>> {
    let identities = &run.identity().inputs;
    let of = |source: &String| match identities.get(source).filter(|_| data::is_remote(source)) {
        Some(identity) => data::pinned_to(source, identity),
        None => Ok(source.clone()),
    };
    sources.all().iter().map(of).collect()
}

fn write_users(card: &Card, users: &OneOrMore, run: &Run) -> Result<UsersReport> {
    let of_users = card.users.as_ref().ok_or_else(|| {
        let message = format!("card `{}`: expected a table [users] for `users`, found none", card.name);
        mistake(message, "say there which columns are the user's id, numbers and categories")
    })?;
    let votes = data::read_votes(&run.path("votes.parquet"))?;
    let ids: BTreeSet<String> = data::user_ids(&votes).into_iter().collect();
    data::write_users(of_users, &pinned(users, run)?, &ids, &run.path("users.parquet"))
}
