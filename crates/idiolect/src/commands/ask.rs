//! `idiolect ask`: the pairs whose comparison tells most about a person, one after the other, in the terminal.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use data::{Split, Vote};
use estimate::{Criterion, Taste};
use problem::{Result, mistake};
use rand::Rng;

use crate::judged::{differences, judge};
use crate::served::{Served, ServedArgs};
use crate::table;

#[derive(Args)]
pub(crate) struct AskArgs {
    /// Who answers
    #[arg(long)]
    user: String,
    /// Pairs to choose from: a table that `idiolect data ingest` wrote; who voted how on them is not looked at
    #[arg(long)]
    pairs: PathBuf,
    /// The table of votes to write, after every answer; one that exists goes on
    #[arg(long)]
    out: PathBuf,
    /// Questions at most
    #[arg(long, default_value_t = 30)]
    most: usize,
    /// Stop when the best question is expected to tell less than this, in nats; a coin's toss is 0.69
    #[arg(long, default_value_t = 0.02)]
    least_gain: f64,
    /// `information` or `determinant`
    #[arg(long, default_value = "information")]
    criterion: String,
    /// Decides which answer is shown first
    #[arg(long, default_value_t = 7)]
    seed: u64,
    #[command(flatten)]
    served: ServedArgs,
}

/// A pair that may be asked.
struct Candidate<'a> {
    vote: &'a Vote,
    difference: Vec<f64>,
}

impl AskArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        run(self)
    }
}

fn run(args: &AskArgs) -> Result<()> {
    let criterion = match args.criterion.as_str() {
        "information" => Criterion::Information,
        "determinant" => Criterion::Determinant,
        other => {
            let message = format!("--criterion: expected information or determinant, found `{other}`");
            return Err(mistake(message, "leave it out for information"));
        }
    };
    let pool = data::read_votes(&args.pairs)?;
    let mut votes = if args.out.exists() { data::read_votes(&args.out)? } else { vec![] };
    let served = Served::open(&args.served)?;
    let mut reader = served.reader()?;
    let d = served.people.population.map.nrows();
    let prior = match served.taste(&args.user)? {
        // Adapted to these very votes, perhaps: they count once.
        Some(taste) if votes.is_empty() || !served.file_of(&args.user).exists() => taste.prior(),
        _ => served.people.population.prior(&[1.0]),
    };
    let own: Vec<&Vote> = votes.iter().filter(|v| v.user_id == args.user).collect();
    let (mut judged, _) = judge(&mut reader, &own, d)?;
    let asked: BTreeSet<String> = own.iter().map(|v| key(v)).collect();
    let mut left = candidates(&mut reader, &pool, &asked)?;
    let tie = served.model.tie_width();
    table::say(&format!("{} pairs to choose from; {} votes of {} so far", left.len(), judged.len(), args.user));

    let mut rng = run::rng(args.seed, &["ask", &args.user, &votes.len().to_string()]);
    let mut input = std::io::stdin().lock();
    let (mut answered, mut skipped) = (0, 0);
    let end = loop {
        if answered == args.most {
            break format!("{answered} questions were answered");
        }
        let taste = Taste::of(&prior, &judged);
        let differences: Vec<Vec<f64>> = left.iter().map(|c| c.difference.clone()).collect();
        let Some(question) = estimate::ask(&taste, &differences, 1, criterion, tie).first().copied() else {
            break "no pair is left".into();
        };
        if question.gain < args.least_gain {
            break format!("the best question left would tell {:.3} nats, less than --least-gain", question.gain);
        }
        let Candidate { vote, difference } = left.swap_remove(question.pair);
        let turned = rng.random::<bool>();
        let (first, second) = if turned { (&vote.rejected, &vote.chosen) } else { (&vote.chosen, &vote.rejected) };
        let finished = [vote.chosen_finished, vote.rejected_finished];
        show(vote, first, second, answered + 1, question.gain)?;
        let Some(answer) = read(&mut input)? else { break "you left".into() };
        let (chosen_is_first, is_tie) = match answer {
            Answer::First => (true, false),
            Answer::Second => (false, false),
            Answer::Tie => (true, true),
            Answer::Skip => {
                skipped += 1;
                continue;
            }
        };
        let signed: Vec<f64> = difference.iter().map(|x| if turned { -x } else { *x }).collect();
        let outcome = if is_tie { 0.5 } else { f64::from(u8::from(chosen_is_first)) };
        judged.push(&signed, outcome, 1.0);
        let (chosen, rejected) = if chosen_is_first { (first, second) } else { (second, first) };
        let [chosen_finished, rejected_finished] =
            if chosen_is_first == turned { [finished[1], finished[0]] } else { finished };
        votes.push(Vote {
            user_id: args.user.clone(),
            prompt: vote.prompt.clone(),
            chosen: chosen.clone(),
            rejected: rejected.clone(),
            tie: is_tie,
            chosen_finished,
            rejected_finished,
            chosen_first: Some(chosen_is_first),
            weight: 1.0,
            margin: None,
            timestamp: SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|t| t.as_micros() as i64),
            split: Split::Adapt,
            source_row: format!("ask:{}", votes.len() + 1),
        });
        data::write_votes(&args.out, &votes)?;
        answered += 1;
    };
    let taste = Taste::of(&prior, &judged);
    table::say(&format!(
        "{end}; {answered} answered, {skipped} skipped; {} votes in {}",
        votes.len(),
        args.out.display()
    ));
    table::say(&format!(
        "what is not known of this taste, in deviations of people: {:.0}%",
        100.0 * spread(&taste, &served.people.population.covariance)
    ));
    Ok(())
}

/// The geometric mean of the taste's deviations, over that of people's.
fn spread(taste: &Taste, people: &nalgebra::DMatrix<f64>) -> f64 {
    let log_deviation = |m: &nalgebra::DMatrix<f64>| {
        let d = m.nrows() as f64;
        m.clone().symmetric_eigenvalues().iter().map(|v| v.max(1e-12).ln() / (2.0 * d)).sum::<f64>()
    };
    (log_deviation(&taste.covariance) - log_deviation(people)).exp()
}

/// A prompt with two answers, whichever way they stand.
fn key(vote: &Vote) -> String {
    let (a, b) = (&vote.chosen, &vote.rejected);
    let pair = if a <= b { [a, b] } else { [b, a] };
    format!("{:?}{pair:?}", vote.prompt)
}

fn candidates<'a>(
    reader: &mut reward::Reader,
    pool: &'a [Vote],
    asked: &BTreeSet<String>,
) -> Result<Vec<Candidate<'a>>> {
    let mut seen = asked.clone();
    let distinct: Vec<&Vote> = pool.iter().filter(|v| seen.insert(key(v))).collect();
    let found = differences(reader, &distinct)?;
    let all = distinct.len();
    let left: Vec<Candidate> = distinct
        .into_iter()
        .zip(found)
        .filter_map(|(vote, difference)| difference.map(|difference| Candidate { vote, difference }))
        .collect();
    if left.len() < all {
        table::say(&format!("{} pairs over --max-row-tokens left out", all - left.len()));
    }
    if left.is_empty() {
        return Err(mistake("--pairs: expected pairs that were not asked yet, found none", "name a table with more"));
    }
    Ok(left)
}

fn show(vote: &Vote, first: &str, second: &str, number: usize, gain: f64) -> Result<()> {
    let mut screen = std::io::stdout();
    let prompt: Vec<String> = vote.prompt.iter().map(|m| format!("{}: {}", m.role, m.content)).collect();
    let prompt = prompt.join("\n");
    writeln!(screen, "\n-- question {number} (expected to tell {gain:.2} nats) --\n{prompt}")?;
    writeln!(screen, "\n[1] {first}\n\n[2] {second}\n")?;
    Ok(())
}

/// What somebody types.
enum Answer {
    First,
    Second,
    Tie,
    Skip,
}

/// Asks until it is one of the answers; none if the person leaves, or the input ends.
fn read(input: &mut impl BufRead) -> Result<Option<Answer>> {
    let mut screen = std::io::stdout();
    loop {
        write!(screen, "Which is better? 1, 2, = (equal), s (skip), q (leave): ")?;
        screen.flush()?;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            writeln!(screen)?;
            return Ok(None);
        }
        match line.trim() {
            "1" => return Ok(Some(Answer::First)),
            "2" => return Ok(Some(Answer::Second)),
            "=" => return Ok(Some(Answer::Tie)),
            "s" => return Ok(Some(Answer::Skip)),
            "q" => return Ok(None),
            other => writeln!(screen, "expected 1, 2, =, s or q, found `{other}`")?,
        }
    }
}
