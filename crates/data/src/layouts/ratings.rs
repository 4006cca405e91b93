//! One rated text a row, as Jester's jokes: votes from pairs of a user's ratings that differ enough.

use std::collections::HashSet;

use problem::Result;
use smallvec::smallvec;

use crate::Layout;
use crate::draft::{Choice, Emit, Flaw};
use crate::layouts::bound::{Bound, Extras, Own, named, without_columns};

/// The user whose rows are being read, with what they rated.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    user: Option<String>,
    rated: Vec<(String, f64)>,
    done: HashSet<u64>,
}

pub(super) fn drafts(
    layout: &Layout,
    bound: &Bound,
    extras: &Extras,
    seed: u64,
    memory: &mut Memory,
    emit: &mut Emit,
) -> Result<()> {
    let Layout::Ratings { user_id, item, rating, .. } = layout else { unreachable!("the dispatch looked") };
    _ = extras; // a pair has two rows: columns of one row say nothing of it
    let (users, items, ratings) = (bound.texts(user_id)?, bound.texts(item)?, bound.reals(rating)?);
    for row in 0..bound.batch.num_rows() {
        let (Some(user), Some(item)) = (users.get(row), items.get(row)) else {
            let column = if users.get(row).is_none() { user_id } else { item };
            emit(row, Err(Flaw::null(column)))?;
            continue;
        };
        if let Err(flaw) = named(user, user_id) {
            emit(row, Err(flaw))?;
            continue;
        }
        if memory.user.as_deref() != Some(user) {
            finish(layout, seed, memory, emit)?;
            if !memory.done.insert(xxhash_rust::xxh3::xxh3_64(user.as_bytes())) {
                emit(
                    row,
                    Err(Flaw {
                        kind: "a user's rows apart",
                        column: user_id.clone(),
                        expected: "all rows of a user one after the other".into(),
                        found: format!("more rows of `{user}` behind another user's"),
                        hint: "sort the file by user",
                    }),
                )?;
            }
            memory.user = Some(user.to_owned());
        }
        match ratings.number(row) {
            Ok(rating) => memory.rated.push((item.to_owned(), rating)),
            Err(flaw) => emit(row, Err(flaw))?,
        }
    }
    Ok(())
}

/// The pairs of the user whose rows have ended.
pub(super) fn finish(layout: &Layout, seed: u64, memory: &mut Memory, emit: &mut Emit) -> Result<()> {
    let Layout::Ratings { prompt, min_gap, pairs_per_user, .. } = layout else { unreachable!("the dispatch looked") };
    let Some(user) = memory.user.take() else { return Ok(()) };
    let mut rated = std::mem::take(&mut memory.rated);
    // Independent of the order of rows.
    rated.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut pairs: Vec<(u64, usize, usize)> = Vec::new();
    for i in 0..rated.len() {
        for j in i + 1..rated.len() {
            if (rated[i].1 - rated[j].1).abs() >= *min_gap && rated[i].0 != rated[j].0 {
                let mut hash = xxhash_rust::xxh3::Xxh3::with_seed(seed);
                hash.update(user.as_bytes());
                hash.update(rated[i].0.as_bytes());
                hash.update(rated[j].0.as_bytes());
                pairs.push((hash.digest(), i, j));
            }
        }
    }
    pairs.sort_unstable();
    pairs.truncate(pairs_per_user.unwrap_or(usize::MAX));
    let mut uses = vec![0usize; rated.len()];
    pairs.iter().for_each(|(_, i, j)| {
        uses[*i] += 1;
        uses[*j] += 1;
    });
    for (_, i, j) in pairs {
        let (one, other) = (&rated[i], &rated[j]);
        let choice = match one.1.total_cmp(&other.1) {
            std::cmp::Ordering::Greater => Choice::First,
            std::cmp::Ordering::Less => Choice::Second,
            std::cmp::Ordering::Equal => Choice::Tie,
        };
        // An item counts once, however many it is compared with.
        let weight = 0.5 * (1.0 / uses[i] as f32 + 1.0 / uses[j] as f32);
        let own = Own { weight, margin: Some((one.1 - other.1).abs() as f32), timestamp: None, ..Own::default() };
        let turns = smallvec![("user", prompt.as_str())];
        let draft = without_columns(&user, turns, &one.0, &other.0, choice, own);
        emit(0, Ok(draft))?;
    }
    Ok(())
}
