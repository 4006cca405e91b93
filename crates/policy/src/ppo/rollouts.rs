//! Responses of every user's policy to the user's prompts, with all that a policy update needs to know of them.

use std::collections::{BTreeMap, HashMap};

use lm::{Bank, Hooks, Lm, Place, Prefix, Sampling, Stop, TokenRow, UserIndex, answer_token_logp, forward, generate};
use problem::Result;
use tch::no_grad;
use text::Tokenizer;

/// One response of one user's policy.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Whose policy it is.
    pub user: UserIndex,
    /// Index of the prompt.
    pub prompt: usize,
    /// Which of the user's asks it belongs to; responses to one follow each other.
    pub turn: usize,
    /// Prompt and response, which ends with the stop token if it ended by itself.
    pub row: TokenRow,
    /// How many of the response's tokens were sampled: all of them.
    pub sampled: usize,
    /// Did it stop by itself?
    pub finished: bool,
    /// The words.
    pub text: String,
    /// Log-probability of each sampled token as the decoder saw it.
    pub logp: Vec<f32>,
}

/// Who is asked what: a user and a prompt's tokens, with a seed for every response.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Whose policy it is.
    pub user: UserIndex,
    /// Index of the prompt.
    pub prompt: usize,
    /// Counts the user's asks: a prompt that comes twice in a round is another turn.
    pub turn: usize,
    /// Its tokens.
    pub ids: Vec<i64>,
    /// One for each response.
    pub seeds: Vec<[u8; 32]>,
}

/// Responses to all `asks`, at most `rows` decoded together; every ask has the same number of seeds. `bank` holds the whole table of users;
/// without it they are the base's.
pub fn roll_out(
    lm: &Lm,
    tokenizer: &Tokenizer,
    bank: Option<&Bank>,
    asks: &[Ask],
    sampling: &Sampling,
    rows: usize,
) -> Result<Vec<Rollout>> {
    let copies = asks.first().map_or(1, |a| a.seeds.len());
    let together = (rows / copies).max(1);
    let mut out = Vec::with_capacity(asks.len() * copies);
    for some in asks.chunks(together) {
        let places: Vec<Place> = some.iter().map(|a| a.user.in_whole_bank()).collect();
        let prompts: Vec<Vec<i64>> = some.iter().map(|a| a.ids.clone()).collect();
        let seeds: Vec<[u8; 32]> = some.iter().flat_map(|a| a.seeds.iter().copied()).collect();
        let mut logp: Vec<Vec<f32>> = vec![Vec::new(); seeds.len()];
        let mut note = |row: usize, value: f32| logp[row].push(value);
        let hooks = Hooks { on_logp: Some(&mut note), ..Hooks::default() };
        let samples = generate(lm, bank.map(|b| (b, places.as_slice())), &prompts, &seeds, sampling, hooks);
        for ((n, sample), logp) in samples.into_iter().enumerate().zip(logp) {
            let ask = &some[n / copies];
            // A response that was cut has no end of turn: nothing sampled it, and rewards read such votes without it.
            let stop = match sample.stop {
                Stop::Token(id) => Some(id),
                Stop::Length | Stop::Text(_) => None,
            };
            let ids: Vec<i64> = ask.ids.iter().chain(&sample.ids).copied().chain(stop).collect();
            out.push(Rollout {
                user: ask.user,
                prompt: ask.prompt,
                turn: ask.turn,
                row: TokenRow { ids, answer_start: ask.ids.len() },
                sampled: sample.ids.len() + usize::from(matches!(sample.stop, Stop::Token(_))),
                finished: sample.finished(),
                text: tokenizer.decode(&sample.ids)?,
                logp,
            });
        }
    }
    Ok(out)
}

/// The responses of each user who has some, in order.
pub(crate) fn by_user(rollouts: &[Rollout]) -> BTreeMap<UserIndex, Vec<usize>> {
    let mut out: BTreeMap<UserIndex, Vec<usize>> = BTreeMap::new();
    rollouts.iter().enumerate().for_each(|(row, rollout)| out.entry(rollout.user).or_default().push(row));
    out
}

/// Rows in groups that share a user and a prompt, and so what they begin with; as batches of about `budget` tokens.
pub(crate) fn in_parts(rollouts: &[Rollout], rows: &[usize], budget: usize) -> Vec<Vec<Vec<usize>>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<(UserIndex, usize), usize> = HashMap::new();
    for row in rows {
        let Rollout { user, prompt, .. } = rollouts[*row];
        let group = *known.entry((user, prompt)).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(*row);
    }
    let tokens = |group: &Vec<usize>| {
        let answers: usize = group.iter().map(|r| rollouts[*r].row.answer_tokens()).sum();
        answers + rollouts[group[0]].row.answer_start
    };
    let lengths: Vec<usize> = groups.iter().map(tokens).collect();
    let pick = |part: Vec<usize>| part.into_iter().map(|g| groups[g].clone()).collect();
    lm::under_budget(&lengths, budget).into_iter().map(pick).collect()
}

/// Log-probability of each response token of every row under the reference: the base, or the policies of all users that `reference` holds.
pub(crate) fn reference_logp(
    lm: &Lm,
    prefix: &Prefix,
    rollouts: &[Rollout],
    reference: Option<&Bank>,
    temperature: f64,
    budget: usize,
) -> Vec<Vec<f32>> {
    let all: Vec<usize> = (0..rollouts.len()).collect();
    let mut out = vec![Vec::new(); rollouts.len()];
    for groups in in_parts(rollouts, &all, budget) {
        let batch = prefix.batch(lm, &groups);
        let places: Vec<Place> = groups.iter().map(|g| rollouts[g[0]].user.in_whole_bank()).collect();
        let factors = reference.map(|bank| bank.rows(&places, batch.lengths()));
        let logp = no_grad(|| answer_token_logp(lm, &batch, &forward(lm, &batch, factors.as_ref()), temperature));
        let logp = Vec::<f32>::try_from(logp).expect("a number a token");
        scatter(&logp, groups.iter().flatten().copied(), &batch.answer_lengths(), &mut out);
    }
    out
}

/// Numbers of a batch's response tokens, back to their rows.
pub(crate) fn scatter(values: &[f32], rows: impl Iterator<Item = usize>, lengths: &[usize], out: &mut [Vec<f32>]) {
    let mut at = 0;
    for (row, length) in rows.zip(lengths) {
        out[row] = values[at..at + length].to_vec();
        at += length;
    }
}
