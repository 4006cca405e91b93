//! `idiolect lab pessimism`: rows.parquet, summary.json, a plot.

use data::Column;
use estimate::{PessimismLab, PessimismRow};
use problem::Result;
use run::Series;
use serde_json::{Value, json};

use crate::lab_command::{LabArgs, over_seeds, publish, shown};
use crate::table;

/// The divergence that the table is about: as far as a trained policy goes.
const FAR: f64 = 3.0;

pub(crate) fn run(args: &LabArgs) -> Result<()> {
    let (repetitions, aside) = args.begin(20)?;
    let lab = PessimismLab { seeds: repetitions, ..PessimismLab::default() };
    let mut bar = run::Progress::new("lab pessimism", 0, 0);
    let rows = lab.run(|name| run::rng(args.seed, &["lab", "pessimism", name]), |done, all| bar.reach(done, all));
    drop(bar);

    let count = |f: fn(&PessimismRow) -> usize| Column::Integer(rows.iter().map(|r| f(r) as i64).collect());
    let real = |f: fn(&PessimismRow) -> f64| Column::Real(rows.iter().map(f).collect());
    let columns = [
        ("prior", Column::Text(rows.iter().map(|r| r.prior.clone()).collect())),
        ("votes", count(|r| r.votes)),
        ("caution", real(|r| r.caution)),
        ("divergence", real(|r| r.divergence)),
        ("seed", count(|r| r.seed)),
        ("proxy", real(|r| r.proxy)),
        ("gold", real(|r| r.gold)),
        ("worst", real(|r| r.worst)),
    ];
    data::write_table(&aside.join("rows.parquet"), &columns)?;

    type Figure = (&'static str, fn(&PessimismRow) -> f64);
    let values =
        |prior: &str, votes: usize, caution: f64, divergence: f64, value: fn(&PessimismRow) -> f64| -> Vec<f64> {
            let own = |r: &&PessimismRow| {
                r.prior == prior && r.votes == votes && r.caution == caution && r.divergence == divergence
            };
            rows.iter().filter(own).map(value).collect()
        };
    let figures: [Figure; 3] = [("gold", |r| r.gold), ("worst", |r| r.worst), ("proxy", |r| r.proxy)];
    let (mut summary, mut printed): (Vec<Value>, Vec<String>) = (Vec::new(), Vec::new());
    for (figure, value) in figures {
        let mut lines = Vec::new();
        for prior in ["flat", "right"] {
            for caution in &lab.cautions {
                let mut line = vec![prior.to_owned(), format!("{caution}")];
                for votes in &lab.votes {
                    for divergence in &lab.divergences {
                        let name = ["pessimism", figure, prior, &format!("{caution} {votes} {divergence}")];
                        let own = values(prior, *votes, *caution, *divergence, value);
                        let mean = over_seeds(&own, &mut run::rng(args.seed, &name));
                        if *divergence == FAR {
                            line.push(shown(&mean, 2));
                        }
                        summary.push(json!({"figure": figure, "prior": prior, "caution": caution, "votes": votes,
                                            "divergence": divergence, "mean": mean}));
                    }
                }
                lines.push(line);
            }
        }
        let title = match figure {
            "gold" => "True reward",
            "worst" => "True reward of the tenth of the users who fare worst",
            _ => "Reward by the fitted mean",
        };
        let votes: Vec<String> = lab.votes.iter().map(|n| format!("{n} votes")).collect();
        let head: Vec<&str> = ["prior", "caution"].into_iter().chain(votes.iter().map(String::as_str)).collect();
        printed.push(format!(
            "{title} at {FAR} nats from the base, deviations of the base's answers\n\n{}",
            table::markdown(&head, &lines)
        ));
    }
    run::write_json(&aside.join("summary.json"), &json!({"lab": lab, "seed": args.seed, "rows": summary}))?;
    let curve = |name: &str, caution: f64, value: fn(&PessimismRow) -> f64| {
        let point = |kl: &f64| {
            let own = values("flat", lab.votes[0], caution, *kl, value);
            (*kl, own.iter().sum::<f64>() / own.len() as f64)
        };
        Series { name: name.into(), points: lab.divergences.iter().map(point).collect(), reference: false }
    };
    let lines = [
        curve("greedy, fitted reward", 0.0, |r| r.proxy),
        curve("greedy, true reward", 0.0, |r| r.gold),
        curve("careful (1 standard error), true reward", 1.0, |r| r.gold),
        curve("careful (2), true reward", 2.0, |r| r.gold),
    ];
    let title = format!("Over-optimisation, {} votes of each user, a flat prior", lab.votes[0]);
    let (x, y) = ("KL from the base, nats", "reward, deviations of the base");
    run::line_plot(&aside.join("over-optimisation.svg"), &title, x, y, &lines)?;
    publish(&aside, &args.out)?;
    table::print(&printed.join("\n"))?;
    Ok(())
}
