//! Our side of `just bench-estimate`: one measurement a process, one JSON line. `compare.py` writes the votes and runs it beside scikit-learn
//! and PyTorch.
//!
//!     estimate_peers people DATA D VOTES ROUNDS        people of VOTES votes each; rounds of all of them
//!     estimate_peers million D VOTES USERS             users made on the way, ten thousand at a time: time and peak memory
//!     estimate_peers rank DATA N DX DPHI R ROUNDS      a low-rank contextual reward
//!
//! DATA holds float64 numbers: for `people` each vote's difference and outcome, for `rank` each vote's context, difference and outcome.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement may panic, and prints")]

use std::time::Instant;

use estimate::{Comparisons, Contexts, ContextualFit, Judgements, modes};
use nalgebra::DVector;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;
use stats::Prior;

fn numbers(path: &str) -> Vec<f64> {
    let bytes = fs_err::read(path).unwrap();
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn peak_mib() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn loss(person: &Judgements, mode: &[f64]) -> f64 {
    let of_votes: f64 = person
        .iter()
        .map(|(x, y, w)| {
            let m: f64 = x.iter().zip(mode).map(|(x, b)| x * b).sum();
            w * (m.max(0.0) + (-m.abs()).exp().ln_1p() - y * m)
        })
        .sum();
    of_votes + mode.iter().map(|b| b * b).sum::<f64>() / 2.0
}

fn people(data: &str, d: usize, votes: usize, rounds: usize) {
    let all: Vec<Judgements> = numbers(data)
        .chunks_exact(votes * (d + 1))
        .map(|own| {
            let mut person = Judgements::new(d);
            own.chunks_exact(d + 1).for_each(|v| person.push(&v[..d], v[d], 1.0));
            person
        })
        .collect();
    let prior = Prior::ridge(1.0, DVector::zeros(d));
    let found = modes(&prior, &all);
    let started = Instant::now();
    (0..rounds).for_each(|_| _ = std::hint::black_box(modes(&prior, std::hint::black_box(&all))));
    let seconds = started.elapsed().as_secs_f64() / rounds as f64;
    let mean = all.iter().zip(&found).map(|(p, m)| loss(p, m)).sum::<f64>() / all.len() as f64;
    println!("RESULT {{\"users_per_s\": {}, \"loss\": {mean}}}", all.len() as f64 / seconds);
}

fn million(d: usize, votes: usize, users: usize) {
    const AT_ONCE: usize = 10_000;
    let prior = Prior::ridge(1.0, DVector::zeros(d));
    let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
    // A pool of votes, of which everybody gets some: drawing a billion numbers would take longer than the fits.
    let pool: Vec<Vec<f64>> = (0..4096).map(|_| (0..d).map(|_| rng.sample(StandardNormal)).collect()).collect();
    let (started, mut fitting) = (Instant::now(), 0.0);
    let (mut done, mut sum) = (0, 0.0);
    while done < users {
        let some: Vec<Judgements> = (0..AT_ONCE.min(users - done))
            .map(|_| {
                let mut person = Judgements::new(d);
                for _ in 0..votes {
                    person.push(&pool[rng.random_range(0..4096)], f64::from(rng.random_range(0..2)), 1.0);
                }
                person
            })
            .collect();
        let start = Instant::now();
        let found = modes(&prior, &some);
        fitting += start.elapsed().as_secs_f64();
        sum += found.iter().map(|m| m[0]).sum::<f64>();
        done += some.len();
    }
    println!(
        "RESULT {{\"users\": {users}, \"seconds\": {}, \"fitting_s\": {fitting}, \"peak_mib\": {}, \"check\": {sum}}}",
        started.elapsed().as_secs_f64(),
        peak_mib()
    );
}

fn rank(data: &str, [n, dx, dphi, r, rounds]: [usize; 5]) {
    let all = numbers(data);
    let (mut contexts, mut differences, mut outcomes) = (vec![], vec![], vec![]);
    for vote in all.chunks_exact(dx + dphi + 1).take(n) {
        contexts.extend_from_slice(&vote[..dx]);
        differences.extend_from_slice(&vote[dx..dx + dphi]);
        outcomes.push(vote[dx + dphi]);
    }
    let votes = Comparisons { contexts: Contexts::Vectors { d: dx, values: contexts }, d: dphi, differences, outcomes };
    let how = ContextualFit { ridge: 1e-4, gradient: 1e-4, passes: 1000 };
    let (_, found) = votes.fit(r, &how);
    let started = Instant::now();
    (0..rounds).for_each(|_| _ = std::hint::black_box(votes.fit(r, &how)));
    let seconds = started.elapsed().as_secs_f64() / rounds as f64;
    println!(
        "RESULT {{\"seconds\": {seconds}, \"objective\": {}, \"evaluations\": {}}}",
        found.value, found.evaluations
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let count = |i: usize| arguments[i].parse::<usize>().unwrap();
    match arguments.first().map(String::as_str) {
        Some("people") => people(&arguments[1], count(2), count(3), count(4)),
        Some("million") => million(count(1), count(2), count(3)),
        Some("rank") => rank(&arguments[1], [count(2), count(3), count(4), count(5), count(6)]),
        _ => println!("see the head of benches/peers.rs; `just bench-estimate` runs it"),
    }
}
