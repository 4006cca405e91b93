//! What each stage does: inputs in, files into the run's folder, a summary for the manifest and a text for the reader.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use data::{Card, Split};
use device::Compute;
use problem::{Result, mistake};
use run::Run;
use serde_json::{Value, json};

use crate::stages::{DataConfig, ImportConfig, Inputs, Stage};
use crate::{base, data_command, hub, pairs_stage, ppo_stage};

impl Stage {
    /// Does the work, into the run's folder. Gives what the manifest says of it, and what is printed.
    pub(crate) fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<(Value, String)> {
        match self {
            Self::Import(config) => import(config, compute, run),
            Self::Simulate(config) => {
                let (lm, tokenizer) = base::load(&inputs["import"], compute)?;
                let report = study::simulate(config, &lm, &tokenizer, run)?;
                let text = format!(
                    "{} samples, {:.0}% ended by themselves; {} votes, {} ties; agreement with own truth {}; best of n beats another sample {}",
                    report.samples,
                    report.finished * 100.0,
                    report.votes,
                    report.ties,
                    shares(&report.agreement),
                    shares(&report.best_of_n)
                );
                run::write_json(&run.path("report.json"), &report)?;
                Ok((json!(report), text))
            }
            Self::Data(config) => ingest(config, inputs, run),
            Self::Sft(config) => sft(config, inputs, compute, run),
            Self::Reward(config) => fit(config, inputs, compute, run),
            Self::Pairs(config) => pairs_stage::execute(config, inputs, compute, run),
            Self::Dpo(config) => dpo(config, inputs, compute, run),
            Self::Ppo(config) => ppo_stage::execute(config, inputs, compute, run),
            Self::Evaluate(config) => {
                let (lm, tokenizer) = base::load(&inputs["import"], compute)?;
                let policies = policy::Policies::read(&inputs["policies"].join("policies.safetensors"), &lm)?;
                let truth: study::Truth = run::read_json(&inputs["simulate"].join("truth.json"))?;
                let rollouts = inputs["policies"].join("rollouts.parquet");
                let rollouts = rollouts.exists().then_some(rollouts.as_path());
                let own = study::Own { bank: &policies.bank, users: &policies.users };
                let report = study::evaluate(config, &lm, &tokenizer, own, &truth, rollouts, run)?;
                Ok((json!(report), report.markdown()))
            }
            Self::Export(config) => {
                // Merging and parity are float32 matters, whatever the pipeline computes in.
                let (lm, tokenizer) = base::load(&inputs["import"], &compute.in_float32())?;
                let policies = policy::Policies::read(&inputs["policies"].join("policies.safetensors"), &lm)?;
                let report =
                    export::write(config, &inputs["import"], &lm, &tokenizer, &policies.bank, &policies.users, run)?;
                let worst = report.users.values().map(|u| u.adapter_max_logit_difference).fold(0.0, f64::max);
                let merged: Vec<String> = report
                    .users
                    .iter()
                    .filter_map(|(user, u)| u.merged_max_logit_difference.map(|d| format!("{user} merged, {d:.1e}")))
                    .collect();
                let text = format!(
                    "{} adapters, read back within {worst:.1e} of a logit; {}",
                    report.users.len(),
                    merged.join("; ")
                );
                Ok((json!(report), text))
            }
        }
    }
}

fn shares(map: &BTreeMap<String, f64>) -> String {
    map.iter().map(|(k, v)| format!("{k} {v:.2}")).collect::<Vec<_>>().join(", ")
}

/// Files of a model folder that later stages and exports read.
const MODEL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// Is this one of the files that an import copies? No other decides its result.
pub(crate) fn is_of_a_model(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    MODEL_FILES.contains(&name.as_ref()) || path.extension().is_some_and(|e| e == "safetensors")
}

fn import(config: &ImportConfig, compute: &Compute, run: &mut Run) -> Result<(Value, String)> {
    let folder = run.path("");
    match config {
        ImportConfig::Gguf { gguf } => {
            let report = lm::import_gguf(gguf, &folder)?;
            base::load(&folder, compute)?;
            let text =
                format!("{} tensors, {} parameters, types {:?}", report.tensors, report.parameters, report.types);
            Ok((json!({"tensors": report.tensors, "parameters": report.parameters}), text))
        }
        ImportConfig::Hub { hub, revision, chat_template } => {
            let source = hub::fetch(hub, revision.as_deref())?;
            let (value, text) = copy_model(&source, compute, &folder)?;
            add_template(chat_template.as_deref(), &folder)?;
            Ok((value, format!("{hub}, {text}")))
        }
        ImportConfig::Folder { folder: source, chat_template } => {
            let copied = copy_model(source, compute, &folder)?;
            add_template(chat_template.as_deref(), &folder)?;
            Ok(copied)
        }
    }
}

/// Gives a plain base a chat template; one that has its own keeps it.
fn add_template(file: Option<&Path>, folder: &Path) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    if text::Tokenizer::from_folder(folder)?.template().is_ok() {
        let message =
            format!("import, `chat_template`: expected a base without a template, found one in {}", folder.display());
        return Err(mistake(message, "leave `chat_template` out"));
    }
    fs_err::copy(file, folder.join("chat_template.jinja"))?;
    text::Tokenizer::from_folder(folder)?; // it compiles
    Ok(())
}

/// Fetches a model by name into a folder; gives what is to be said of it.
pub(crate) fn copy_hub_model(name: &str, revision: Option<&str>, folder: &Path) -> Result<String> {
    let source = hub::fetch(name, revision)?;
    let compute = Compute::new("cpu", "auto", None)?;
    Ok(copy_model(&source, &compute, folder)?.1)
}

/// Copies a model folder that loads.
fn copy_model(source: &Path, compute: &Compute, folder: &Path) -> Result<(Value, String)> {
    let (lm, _) = base::load(source, compute)?;
    for entry in fs_err::read_dir(source)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_of_a_model(&path) {
            fs_err::copy(&path, folder.join(&name))?;
        }
    }
    Ok((json!({"blocks": lm.depth()}), format!("copied {}", source.display())))
}

/// Rows that the stage `data` tokenised, in its folder.
const TOKENS: &str = "tokens.arrow";

fn ingest(config: &DataConfig, inputs: &Inputs, run: &mut Run) -> Result<(Value, String)> {
    let DataConfig { card, path, users, tokens, selection } = config;
    let card = Card::read(card)?;
    let sources = match path {
        Some(path) => path.all().to_vec(),
        None => vec![inputs["simulate"].join("votes.parquet").display().to_string()],
    };
    let table = run.path("votes.parquet");
    let report = data::ingest(&card, &sources, selection, run.seed(), &table)?;
    run::write_json(&run.path("report.json"), &report)?;
    let mut text = data_command::described(&report);
    let mut summary = json!(report);
    if let Some(users) = users {
        let card = card.users.as_ref().ok_or_else(|| {
            let message = format!("card `{}`: expected a table [users] for `users`, found none", card.name);
            mistake(message, "say there which columns are the user's id, numbers and categories")
        })?;
        let ids: BTreeSet<String> = data::user_ids(&data::read_votes(&table)?).into_iter().collect();
        let report = data::write_users(card, users.all(), &ids, &run.path("users.parquet"))?;
        text = format!(
            "{text}; users table: {} users, {} numbers each, {} users unknown, {} without votes left out",
            report.users,
            report.columns.len(),
            report.unknown,
            report.without_votes
        );
        summary["users_table"] = json!(report);
    }
    if *tokens {
        let tokenizer = text::Tokenizer::from_folder(&inputs["import"])?;
        let report = data::tokenise(&table, &tokenizer, &run.path(TOKENS), 0)?;
        text = format!(
            "{text}; tokenised {} distinct of {} texts, {} tokens, the longest {}",
            report.distinct, report.texts, report.tokens, report.longest
        );
        summary["tokens"] = json!(report);
    }
    Ok((summary, text))
}

/// The base, with the rows that the data stage tokenised where it did.
fn load_with_rows(inputs: &Inputs, compute: &Compute) -> Result<(lm::Lm, text::Tokenizer)> {
    let (lm, tokenizer) = base::load(&inputs["import"], compute)?;
    let path = inputs["data"].join(TOKENS);
    if !path.exists() {
        return Ok((lm, tokenizer));
    }
    let cache = data::TokenCache::open(&path)?;
    if !cache.is_of(&tokenizer) {
        tracing::info!("{}: another tokenizer's or template's rows, not used", path.display());
        return Ok((lm, tokenizer));
    }
    Ok((lm, tokenizer.with_known(cache)))
}

fn sft(config: &policy::SftConfig, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<(Value, String)> {
    let (lm, tokenizer) = load_with_rows(inputs, compute)?;
    let votes = data::read_votes(&inputs["data"].join("votes.parquet"))?;
    let users = data::user_ids(&votes);
    let (policies, report) = policy::train_sft(config, &lm, &tokenizer, &votes, &users, run)?;
    policies.write(&run.path("policies.safetensors"))?;
    if config.scope == policy::Scope::Global {
        // The fine-tuned base is a folder like the imported one. Merging is a float32 matter.
        let (whole, _) = base::load(&inputs["import"], &compute.in_float32())?;
        export::write_merged(&run.path(""), &inputs["import"], &whole, &policies.bank, 0)?;
    }
    run::write_json(&run.path("report.json"), &report)?;
    let each = report.models.iter().map(|(model, r)| {
        format!(
            "{model}: {} answers, {} steps, loss {:.3} to {:.3} nats a token",
            r.answers, r.steps, r.first_loss, r.final_loss
        )
    });
    Ok((json!(report), format!("{}; {}", each.collect::<Vec<_>>().join("; "), report.rows)))
}

fn dpo(config: &policy::DpoConfig, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<(Value, String)> {
    let (lm, tokenizer) = base::load(&inputs["import"], compute)?;
    let pairs = policy::read_pairs(&inputs["pairs"].join("pairs.parquet"))?;
    let made: pairs_stage::Made = run::read_json(&inputs["pairs"].join("report.json"))?;
    let start = match config.start {
        policy::Start::Base => None,
        policy::Start::Sft => Some(policy::Policies::read(&inputs["sft"].join("policies.safetensors"), &lm)?),
    };
    let (policies, report) = policy::train_dpo(config, &lm, &tokenizer, &pairs, &made.users, start, run)?;
    policies.write(&run.path("policies.safetensors"))?;
    run::write_json(&run.path("report.json"), &report)?;
    let each = report.users.iter().map(|(user, r)| {
        format!(
            "{user}: {} pairs, {} steps, loss {:.3}, accuracy {:.2}",
            r.pairs, r.steps, r.final_loss, r.final_accuracy
        )
    });
    let worst = report.worst_decile;
    let mut text = format!(
        "{} tokens; {}; the {} worst: loss {:.3}, accuracy {:.2}; {}",
        report.tokens,
        each.collect::<Vec<_>>().join("; "),
        worst.users,
        worst.final_loss,
        worst.final_accuracy,
        report.rows
    );
    for (user, why) in &report.quarantined {
        text += &format!("\nquarantined: {user}: {why}");
    }
    Ok((json!(report), text))
}

fn fit(config: &reward::RewardConfig, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<(Value, String)> {
    let (lm, tokenizer) = load_with_rows(inputs, compute)?;
    let lm = match config.frozen_states {
        reward::Kept::Memory => lm,
        reward::Kept::Disk => {
            let run::Identity { inputs, environment, .. } = run.identity();
            lm.keeping_prefixes(run.beside("frozen-states"), format!("{} {environment:?}", inputs["import"]))
        }
    };
    let votes = data::read_votes(&inputs["data"].join("votes.parquet"))?;
    // Users with training votes; those who have votes for adapting instead come after them.
    let of = |split: Split| -> Vec<String> {
        let ids: BTreeSet<&String> = votes.iter().filter(|v| v.split == split).map(|v| &v.user_id).collect();
        ids.into_iter().cloned().collect()
    };
    let (mut model, report) = reward::fit(config, &lm, &tokenizer, &votes, &of(Split::Train), run)?;
    let newcomers = of(Split::Adapt);
    let mut welcomed = None;
    if !newcomers.is_empty() {
        (model, welcomed) = reward::welcome(config, &model, &lm, &tokenizer, &votes, &newcomers, run)?;
    }
    let mut people = None;
    if model.head.features.as_ref().is_some_and(|f| f.size()[0] > 1) {
        let (with_tastes, tastes) = reward::taste_people(config, model, &lm, &tokenizer, &votes)?;
        tastes.write(&run.path("people.safetensors"))?;
        (model, people) = (with_tastes, Some(tastes));
    }
    let users = model.users.clone();
    model.write(&run.path("reward.safetensors"), &lm)?;
    let mut evaluations = Vec::new();
    for split in [Split::Dev, Split::Test] {
        let mut bar = run::Progress::new(&format!("reward: scoring {}", split.name()), 0, 0);
        let scored = config.scored(split);
        let said = reward::predict(&model, &lm, &tokenizer, &votes, &scored, |done, all| bar.reach(done, all))?;
        eval::write_predictions(&run.path(&format!("predictions-{}.parquet", split.name())), &said.votes)?;
        if !said.swap.is_empty() {
            said.write_swap(&run.path(&format!("swap-{}.parquet", split.name())), &users)?;
        }
        evaluations.push(eval::evaluate(&said, split.name(), &users, run.seed()));
    }
    let svg = eval::reliability(&evaluations.iter().collect::<Vec<_>>())?;
    run::write_atomic(&run.path("reliability.svg"), svg.as_bytes())?;
    let accuracy =
        |e: &eval::Evaluation| if e.votes == 0 { "(no votes)".into() } else { format!("{:.3}", e.mean_accuracy) };
    let mut quarantined = report.quarantined.clone();
    quarantined.extend(welcomed.iter().flat_map(|fit| fit.quarantined.clone()));
    let summary = json!({"fit": report, "newcomers": newcomers.len(), "newcomers_fit": welcomed, "dev": evaluations[0], "test": evaluations[1], "quarantined": quarantined});
    run::write_json(&run.path("report.json"), &summary)?;
    let mut text = format!(
        "{} votes ({} ties) on {} texts; {} steps ({} with one adapter for all), {} tokens, final loss {:.3}; accuracy on dev {}, on test {}; {}",
        report.votes,
        report.ties,
        report.texts,
        report.steps,
        report.global_steps,
        report.tokens,
        report.final_loss,
        accuracy(&evaluations[0]),
        accuracy(&evaluations[1]),
        report.rows
    );
    if report.ties_left_out > 0 {
        text += &format!("; {} ties left out of the likelihood", report.ties_left_out);
    }
    if !newcomers.is_empty() {
        text +=
            &format!("; {} newcomers, fitted to {} votes", newcomers.len(), welcomed.as_ref().map_or(0, |r| r.votes));
    }
    if let Some(people) = &people {
        let d = people.population.map.nrows();
        let cut = config.features.filter(|asked| asked.get() != d);
        let cut = cut.map_or(String::new(), |asked| format!(" ({asked} asked for; never more than users)"));
        text += &format!("; {d} reward features{cut}, {} tastes", people.tastes.len());
    }
    if let Some(step) = report.best_step {
        text += &format!("; the parameters of step {step} were best on dev and are kept");
    }
    for (user, why) in &quarantined {
        text += &format!("\nquarantined: {user}: {why}");
    }
    Ok((summary, format!("{text}\n{}", evaluations[1].markdown(40))))
}
