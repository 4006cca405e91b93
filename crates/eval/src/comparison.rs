//! What is said of several methods on the same votes: one table, with paired differences and a verdict for every user.

use std::collections::BTreeMap;
use std::path::Path;

use problem::Result;
use report::interval_plot;
use serde::{Deserialize, Serialize};
use stats::Interval;

use crate::evaluate::OWN_FIGURES;

/// A row of the table. Intervals are of 95%, over users, prompts (pairs of answers where there are fewer than 20 prompts) and
/// seeds; accuracies are means over users, and over seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodRow {
    /// The method.
    pub name: String,
    /// Fits that were averaged.
    pub seeds: usize,
    /// Decided votes that every method predicted.
    pub votes: usize,
    /// Mean accuracy over users.
    pub accuracy: Interval,
    /// Mean accuracy over votes.
    pub accuracy_by_vote: Interval,
    /// Deviation of the mean accuracy between seeds.
    pub between_seeds: f64,
    /// Mean of -ln P(chosen), over votes and seeds.
    pub log_loss: f64,
    /// It minus that of the model that is one for all, over votes: below zero where the method is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_loss_minus_global: Option<Interval>,
    /// It minus that of separate models, over votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_loss_minus_local: Option<Interval>,
    /// Brier score, over votes and seeds.
    pub brier: f64,
    /// Expected calibration error, over votes and seeds.
    pub ece: f64,
    /// Mean accuracy of the tenth of users who are served worst.
    pub worst_decile: f64,
    /// Deviation of accuracies between users.
    pub dispersion: f64,
    /// Accuracy minus that of the model that is one for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minus_global: Option<Interval>,
    /// Accuracy minus that of separate models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minus_local: Option<Interval>,
    /// The first of the two, over votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minus_global_by_vote: Option<Interval>,
    /// The second, over votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minus_local_by_vote: Option<Interval>,
    /// Other users' factors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped: Option<f64>,
}

/// Whom a personal model serves better than the one for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The user.
    pub user: String,
    /// Test votes.
    pub votes: usize,
    /// Log-loss of the shared model minus that of the personal one: the posterior mean given all users' differences ...
    pub gain: f64,
    /// ... and its standard deviation.
    pub deviation: f64,
    /// The user's own difference, from 20 votes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_gain: Option<f64>,
    /// `personal`, where the gain is above zero with a probability of 0.8; else `use the shared model`.
    pub verdict: String,
}

/// Everything that is said of several methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Decided votes that every method predicted.
    pub votes: usize,
    /// Users who cast them.
    pub users: usize,
    /// Accuracies, over users, of what needs no fit: `longer` answer, `others` (the others' majority on the pair; votes without one
    /// count one half), `global_with_lean` (the model for all, with each user's lean to the answer shown first).
    pub baselines: BTreeMap<String, Interval>,
    /// One a method.
    pub methods: Vec<MethodRow>,
    /// Of the method `verdicts_of`, against the model that is one for all.
    pub verdicts: Vec<Verdict>,
    /// The method that verdicts speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts_of: Option<String>,
}

impl Comparison {
    /// Writes `comparison.json`, `comparison.md` and, where there is a model that is one for all, `comparison.svg`; gives the Markdown.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<String> {
        run::write_json(&folder.join("comparison.json"), self)?;
        if let Some(svg) = self.plot()? {
            run::write_atomic(&folder.join("comparison.svg"), svg.as_bytes())?;
        }
        let text = self.markdown();
        run::write_atomic(&folder.join("comparison.md"), text.as_bytes())?;
        Ok(text)
    }

    /// Paired differences to the model that is one for all, as an SVG; none without one.
    ///
    /// # Errors
    /// A plot that cannot be drawn.
    pub fn plot(&self) -> Result<Option<String>> {
        let held: Vec<&MethodRow> = self.methods.iter().filter(|m| m.minus_global.is_some()).collect();
        if held.is_empty() {
            return Ok(None);
        }
        let panel = |what: &str, of: fn(&MethodRow) -> Option<Interval>| {
            (what.to_owned(), held.iter().map(|m| of(m).map(|i| [i.mean, i.low, i.high])).collect())
        };
        let panels = [
            panel("accuracy over users, minus global", |m| m.minus_global),
            panel("accuracy over votes, minus global", |m| m.minus_global_by_vote),
            panel("log-loss over votes, minus global: less is better", |m| m.log_loss_minus_global),
        ];
        let names: Vec<String> = held.iter().map(|m| m.name.clone()).collect();
        let title = format!("{} decided test votes of {} users, 95%", self.votes, self.users);
        interval_plot(&title, &names, &panels).map(Some)
    }

    /// The tables, for a reader.
    pub fn markdown(&self) -> String {
        let number = |x: f64| format!("{x:.3}");
        let interval = |i: &Interval| format!("{:.3} [{:.3}, {:.3}]", i.mean, i.low, i.high);
        let signed = |i: &Option<Interval>| {
            i.as_ref().map_or(String::new(), |i| format!("{:+.3} [{:+.3}, {:+.3}]", i.mean, i.low, i.high))
        };
        let mut text = format!("{} decided test votes of {} users\n\n", self.votes, self.users);
        text += "| method | fits | accuracy, over users | minus global | minus local | over votes | minus global | minus local |\n";
        text += "| --- | --- | --- | --- | --- | --- | --- | --- |\n";
        for m in &self.methods {
            let cells = [
                m.name.clone(),
                m.seeds.to_string(),
                interval(&m.accuracy),
                signed(&m.minus_global),
                signed(&m.minus_local),
                interval(&m.accuracy_by_vote),
                signed(&m.minus_global_by_vote),
                signed(&m.minus_local_by_vote),
            ];
            text += &format!("| {} |\n", cells.join(" | "));
        }
        text += "\n| method | log-loss, over votes | minus global | minus local | Brier | ECE | worst decile of users | deviation over users | over seeds | others' factors |\n";
        text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
        for m in &self.methods {
            let cells = [
                m.name.clone(),
                number(m.log_loss),
                signed(&m.log_loss_minus_global),
                signed(&m.log_loss_minus_local),
                number(m.brier),
                number(m.ece),
                number(m.worst_decile),
                number(m.dispersion),
                number(m.between_seeds),
                m.swapped.map_or(String::new(), number),
            ];
            text += &format!("| {} |\n", cells.join(" | "));
        }
        text += "\n| baseline | accuracy |\n| --- | --- |\n";
        for (name, value) in &self.baselines {
            text += &format!("| {} | {} |\n", name.replace('_', " "), interval(value));
        }
        if let Some(of) = &self.verdicts_of {
            let personal = self.verdicts.iter().filter(|v| v.verdict == "personal").count();
            text += &format!(
                "\n{of} against the shared model: {personal} of {} users are told `personal`, the others `use the shared model`\n",
                self.verdicts.len()
            );
            text += "\n| user | test votes | gain in log-loss | own, from 20 votes on | verdict |\n| --- | --- | --- | --- | --- |\n";
            for v in self.verdicts.iter().filter(|v| v.votes >= OWN_FIGURES) {
                let own = v.own_gain.map_or(String::new(), |g| format!("{g:+.3}"));
                text += &format!(
                    "| {} | {} | {:+.3} ± {:.3} | {own} | {} |\n",
                    v.user, v.votes, v.gain, v.deviation, v.verdict
                );
            }
        }
        text
    }
}
