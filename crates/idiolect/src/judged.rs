//! Votes in reward features.

use data::Vote;
use estimate::Judgements;
use problem::Result;

/// Features of each vote's `chosen` minus those of its `rejected`, `[d]`; none where a row is over the limit.
pub(crate) fn differences(reader: &mut reward::Reader, votes: &[&Vote]) -> Result<Vec<Option<Vec<f64>>>> {
    let mut texts: Vec<reward::Text> = Vec::with_capacity(2 * votes.len());
    for vote in votes {
        texts.push((&vote.prompt, &vote.chosen, vote.chosen_ending()));
        texts.push((&vote.prompt, &vote.rejected, vote.rejected_ending()));
    }
    let mut bar = run::Progress::new("reading texts", 0, 0);
    let (features, _) = reader.features(&texts, |done, all| bar.reach(done, all))?;
    drop(bar);
    let difference = |pair: &[Option<Vec<f64>>]| match pair {
        [Some(chosen), Some(rejected)] => Some(chosen.iter().zip(rejected).map(|(a, b)| a - b).collect()),
        _ => None,
    };
    Ok(features.chunks_exact(2).map(difference).collect())
}

/// One user's votes in features `[d]`, those of weight 0 left out, and how many of the others were left out for their length. A vote is evidence
/// of its own weight: one of 1/2 is half a vote.
pub(crate) fn judge(reader: &mut reward::Reader, votes: &[&Vote], d: usize) -> Result<(Judgements, usize)> {
    let votes: Vec<&Vote> = votes.iter().copied().filter(|v| v.counts()).collect();
    let known = votes.iter().zip(differences(reader, &votes)?);
    let known: Vec<(&Vote, Vec<f64>)> = known.filter_map(|(vote, difference)| Some((*vote, difference?))).collect();
    let mut judged = Judgements::new(d);
    for (vote, difference) in &known {
        judged.push(difference, if vote.tie { 0.5 } else { 1.0 }, f64::from(vote.weight));
    }
    let dropped = votes.len() - judged.len();
    Ok((judged, dropped))
}
