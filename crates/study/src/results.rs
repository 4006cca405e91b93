//! The evaluation's result, for programs (`report.json`), readers (`report.md`) and eyes (`matrix.svg`).

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// How one model answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Mean length of an answer in tokens.
    pub mean_tokens: f64,
    /// Share of answers that were cut at the token limit.
    pub unfinished: f64,
    /// Distinct words over all words.
    pub distinct_1: f64,
    /// Distinct pairs of words over all pairs.
    pub distinct_2: f64,
}

/// How far a model is from the base on neutral prompts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// How many prompts.
    pub prompts: usize,
    /// KL divergence from the base, in nats an answer, estimated on the model's own samples.
    pub kl: f64,
    /// The same a token.
    pub kl_per_token: f64,
}

/// What a user's own model is worth to the user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserReport {
    /// Share of comparisons of own model and base that the own model wins by the user's truth, ties half.
    pub win_rate: f64,
    /// Lower end of its 95% interval, clustered by prompt.
    pub win_rate_low: f64,
    /// Upper end.
    pub win_rate_high: f64,
    /// The win rate among answers of the same length.
    pub length_controlled: f64,
    /// Lower end of its 95% interval, clustered by prompt.
    pub length_controlled_low: f64,
    /// Upper end.
    pub length_controlled_high: f64,
    /// Share of comparisons with a model for everybody that the own model wins, if there is one, with its interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<stats::Interval>,
    /// KL divergence from the base, in nats an answer, estimated on the model's own samples.
    pub kl: f64,
    /// The same a token.
    pub kl_per_token: f64,
    /// On prompts that have nothing to do with anybody's taste, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Is no other user's model better by this user's truth?
    pub own_is_best: bool,
    /// How the model answers.
    pub answers: ModelReport,
}

/// `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which prompts were used.
    pub split: String,
    /// Who judged: `truth` (of simulated raters) or `reward` (models).
    pub judged: String,
    /// How many.
    pub prompts: usize,
    /// Answers of each model to each.
    pub samples_per_prompt: usize,
    /// By user id.
    pub users: BTreeMap<String, UserReport>,
    /// The base.
    pub base: ModelReport,
    /// Win rate over the base by the row's user's truth of the column's user's model: `matrix[row][column]`.
    pub matrix: BTreeMap<String, BTreeMap<String, f64>>,
    /// Rows in which the own model is best.
    pub rows_own_best: usize,
}

impl Report {
    /// The tables as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "# Evaluation on {} prompts ({}), {} answers each\n\nWin rate over the base by each user's own {}, with \
             a 95% interval clustered by prompt.\n\n",
            self.prompts, self.split, self.samples_per_prompt, self.judged
        );
        let mut line = |cells: &[String]| _ = writeln!(out, "| {} |", cells.join(" | "));
        let header = [
            "user",
            "win rate",
            "95% interval",
            "at equal length",
            "KL (nats/answer)",
            "KL on neutral prompts",
            "tokens",
            "unfinished",
            "distinct-1",
            "distinct-2",
        ];
        line(&header.map(String::from));
        line(&header.map(|_| "---".to_owned()));
        let answers = |m: &ModelReport| {
            [
                format!("{:.1}", m.mean_tokens),
                format!("{:.2}", m.unfinished),
                format!("{:.3}", m.distinct_1),
                format!("{:.3}", m.distinct_2),
            ]
        };
        for (user, u) in &self.users {
            let mut cells = vec![
                user.clone(),
                format!("{:.3}", u.win_rate),
                format!("{:.3} to {:.3}", u.win_rate_low, u.win_rate_high),
                format!(
                    "{:.3} ({:.3} to {:.3})",
                    u.length_controlled, u.length_controlled_low, u.length_controlled_high
                ),
                format!("{:.2}", u.kl),
                u.drift.map_or_else(String::new, |d| format!("{:.2}", d.kl)),
            ];
            cells.extend(answers(&u.answers));
            line(&cells);
        }
        let mut cells: Vec<String> = ["(base)", "0.500", "", "", "0", ""].map(String::from).to_vec();
        cells.extend(answers(&self.base));
        line(&cells);

        let against = |(user, u): (&String, &UserReport)| {
            u.against.map(|i| format!("{user} {:.3} ({:.3} to {:.3})", i.mean, i.low, i.high))
        };
        let against: Vec<String> = self.users.iter().filter_map(against).collect();
        if !against.is_empty() {
            _ = write!(out, "\nWin rate over the model for everybody: {}\n", against.join(", "));
        }
        _ = write!(
            out,
            "\nWin rate over the base by the row's {} of the column's model; the own model is best in {} of {} rows.\n\n",
            self.judged,
            self.rows_own_best,
            self.matrix.len()
        );
        let mut line = |cells: &[String]| _ = writeln!(out, "| {} |", cells.join(" | "));
        let columns: Vec<String> = self.matrix.keys().cloned().collect();
        line(&[vec![format!("{} of", self.judged)], columns.clone()].concat());
        line(&vec!["---".to_owned(); columns.len() + 1]);
        for (row, values) in &self.matrix {
            let cells = values.iter().map(|(c, v)| if c == row { format!("**{v:.3}**") } else { format!("{v:.3}") });
            line(&std::iter::once(row.clone()).chain(cells).collect::<Vec<_>>());
        }
        out
    }

    /// The matrix as a picture: blue is above one half, red below.
    pub fn svg(&self) -> String {
        let n = self.matrix.len();
        let (cell, left, top) = (72, 110, 40);
        let (width, height) = (left + cell * n + 10, top + cell * n + 30);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for (i, (row, values)) in self.matrix.iter().enumerate() {
            let y = top + i * cell;
            let mut text = |x: usize, y: usize, anchor: &str, label: &str| {
                let label = label.replace('&', "&amp;").replace('<', "&lt;");
                _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{label}</text>");
            };
            text(left - 8, y + cell / 2 + 4, "end", row);
            text(left + i * cell + cell / 2, top - 10, "middle", row);
            for (j, value) in values.values().enumerate() {
                let strength = ((value - 0.5).abs() * 4.0).min(1.0);
                let fade = (255.0 * (1.0 - 0.7 * strength)) as u8;
                let colour =
                    if *value >= 0.5 { format!("rgb({fade},{fade},255)") } else { format!("rgb(255,{fade},{fade})") };
                let x = left + j * cell;
                _ = writeln!(
                    out,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{cell}\" height=\"{cell}\" fill=\"{colour}\" stroke=\"white\"/>"
                );
                _ = writeln!(
                    out,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{value:.2}</text>",
                    x + cell / 2,
                    y + cell / 2 + 4
                );
            }
        }
        let y = height - 10;
        _ = writeln!(
            out,
            "<text x=\"{left}\" y=\"{y}\">row: whose {}; column: whose model; win rate over the base</text>\n</svg>",
            self.judged
        );
        out
    }
}
