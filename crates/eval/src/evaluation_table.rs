//! An evaluation for readers: a table, and a plot of calibration.

use problem::Result;
use report::{Series, line_plot, markdown};
use stats::Interval;

use crate::evaluate::{Evaluation, OWN_FIGURES};

impl Evaluation {
    /// All users together, then those with votes enough, at most `most` of them, as Markdown.
    pub fn markdown(&self, most: usize) -> String {
        let interval =
            |i: &Option<Interval>| i.map_or("none".into(), |i| format!("{:.3} [{:.3}, {:.3}]", i.mean, i.low, i.high));
        let mut rows = vec![
            vec!["decided votes (ties)".into(), format!("{} ({})", self.votes, self.ties)],
            vec!["accuracy, mean over users".into(), interval(&self.accuracy)],
            vec!["accuracy, mean over votes".into(), interval(&self.accuracy_by_vote)],
            vec!["worst decile of users".into(), format!("{:.3}", self.worst_decile)],
            vec!["deviation over users".into(), format!("{:.3}", self.dispersion)],
            vec!["longer answer".into(), format!("{:.3}", self.longer)],
        ];
        if let Some(c) = &self.calibration {
            rows.push(vec!["log-loss, Brier, ECE".into(), format!("{:.3}, {:.3}, {:.3}", c.log_loss, c.brier, c.ece)]);
        }
        if let Some((share, votes)) = self.majority {
            rows.push(vec!["majority of the others".into(), format!("{share:.3} of {votes} votes")]);
        }
        if let Some(swapped) = self.swapped {
            rows.push(vec!["other users' factors".into(), format!("{swapped:.3}")]);
        }
        let mut text = markdown(&[&self.split, ""], &rows);
        let mut known: Vec<_> = self.users.iter().collect();
        known.sort_by_key(|u| std::cmp::Reverse(u.votes));
        let shown: Vec<Vec<String>> = known
            .iter()
            .take(most)
            .filter(|u| u.votes >= OWN_FIGURES)
            .map(|u| {
                vec![
                    u.user.clone(),
                    u.votes.to_string(),
                    format!("{:.3}", u.accuracy.mean),
                    format!("{:.3} to {:.3}", u.accuracy.low, u.accuracy.high),
                    format!("{:.3}", u.log_loss),
                    format!("{:.3}", u.longer),
                    u.swapped.map_or(String::new(), |s| format!("{s:.3}")),
                ]
            })
            .collect();
        let hidden = self.users.len() - shown.len();
        if !shown.is_empty() {
            let header =
                ["user", "votes", "accuracy", "95% interval", "log-loss", "longer answer", "other users' factors"];
            text += &format!("\n{}", markdown(&header, &shown));
        }
        if hidden > 0 {
            text += &format!(
                "\n{hidden} more users are in the report; own figures are shown from {OWN_FIGURES} votes on\n"
            );
        }
        if let Some(c) = &self.calibration {
            let bins: Vec<Vec<String>> = c
                .bins
                .iter()
                .map(|b| {
                    vec![
                        format!("{:.2} to {:.2}", b.from, b.to),
                        b.votes.to_string(),
                        format!("{:.3}", b.confidence),
                        format!("{:.3}", b.accuracy),
                    ]
                })
                .collect();
            text += &format!("\n{}", markdown(&["confidence", "votes", "mean confidence", "accuracy"], &bins));
        }
        text
    }
}

/// How often predictions of a confidence were right, a line for each evaluation that has votes, with what they say of themselves: an SVG.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn reliability(evaluations: &[&Evaluation]) -> Result<String> {
    let judged = evaluations.iter().filter_map(|e| Some((e, e.calibration.as_ref()?)));
    let mut lines: Vec<Series> = judged
        .map(|(e, judged)| Series {
            name: format!("{}, ECE {:.3}", e.split, judged.ece),
            points: judged.bins.iter().map(|bin| (bin.confidence, bin.accuracy)).collect(),
            reference: false,
        })
        .collect();
    lines.push(Series { name: "as they say".into(), points: vec![(0.5, 0.5), (1.0, 1.0)], reference: true });
    let (x, y) = ("confidence, mean of a bin", "share that was right");
    line_plot("Reliability on decided votes", x, y, &lines)
}
