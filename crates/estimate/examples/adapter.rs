//! Serving a person from stored reward features, without libtorch:
//!
//!     cargo run --release --package estimate --example adapter
//!
//! Reads a table of features (here made on the spot; a server has it on disk) and what is known of people in general, adds votes as they come, and
//! gives rewards with their uncertainty, the taste and its covariance, and what to ask next.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::collections::BTreeMap;

use estimate::{Criterion, Judgements, Taste, Tastes, ask};
use nalgebra::{DMatrix, DVector};

fn main() {
    // Features of answers, by any key.
    let features: BTreeMap<&str, Vec<f64>> = BTreeMap::from([
        ("short and dry", vec![-1.0, -0.5, 0.2]),
        ("short and warm", vec![-1.0, 1.0, 0.1]),
        ("long and warm", vec![1.2, 0.9, -0.3]),
        ("long and formal", vec![1.1, -1.0, 0.9]),
    ]);
    // What is known of people: tastes vary around this mean with this covariance. `Tastes::fit` learns it from many people's votes.
    let people = Tastes {
        map: DMatrix::from_column_slice(3, 1, &[0.2, 0.4, 0.0]),
        covariance: DMatrix::from_diagonal(&DVector::from_vec(vec![1.0, 0.8, 0.3])),
    };
    let prior = people.prior(&[1.0]);
    let difference =
        |a: &str, b: &str| -> Vec<f64> { features[a].iter().zip(&features[b]).map(|(a, b)| a - b).collect() };

    let mut votes = Judgements::new(3);
    for (chosen, rejected) in [("short and warm", "long and warm"), ("short and dry", "long and formal")] {
        votes.push(&difference(chosen, rejected), 1.0, 1.0);
    }
    let taste = Taste::of(&prior, &votes);
    println!(
        "taste {:.2?}, deviations {:.2?}",
        taste.mean.as_slice(),
        taste.covariance.diagonal().map(f64::sqrt).as_slice()
    );
    for (name, phi) in &features {
        let (reward, error) = taste.score(phi);
        println!("{name}: {reward:.2} +- {error:.2}");
    }
    let names: Vec<&str> = features.keys().copied().collect();
    let pairs: Vec<(usize, usize)> = (0..4).flat_map(|i| (0..i).map(move |j| (j, i))).collect();
    let candidates: Vec<Vec<f64>> = pairs.iter().map(|(i, j)| difference(names[*i], names[*j])).collect();
    for question in ask(&taste, &candidates, 2, Criterion::Information, 0.0) {
        let (i, j) = pairs[question.pair];
        println!("ask: `{}` or `{}`? ({:.3} nats)", names[i], names[j], question.gain);
    }
}
