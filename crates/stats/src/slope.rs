//! How fast something falls: the slope of logarithms, with an interval over repetitions.

use rand::Rng;
use serde::{Deserialize, Serialize};

/// A line through logarithms, beside what a theory says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slope {
    /// The experiment, quantity and method.
    pub what: String,
    /// Least squares over all repetitions: d log y / d log x.
    pub measured: f64,
    /// 95% interval, repetitions drawn with replacement.
    pub low: f64,
    /// Its other end.
    pub high: f64,
    /// The exponent of the theory's upper bound.
    pub bound: f64,
    /// Where the bound is from.
    pub source: String,
}

const RESAMPLES: usize = 500;

impl Slope {
    /// Of points (repetition, x, y); those that are not positive are left out. `None` without two different x.
    pub fn of(points: &[(usize, f64, f64)], rng: &mut impl Rng) -> Option<Self> {
        let points: Vec<(usize, f64, f64)> =
            points.iter().filter(|(_, x, y)| *x > 0.0 && *y > 0.0).map(|(s, x, y)| (*s, x.ln(), y.ln())).collect();
        let measured = least_squares(points.iter().map(|(_, x, y)| (*x, *y)))?;
        let repetitions = points.iter().map(|p| p.0).max()? + 1;
        let mut drawn: Vec<f64> = (0..RESAMPLES)
            .filter_map(|_| {
                let some: Vec<usize> = (0..repetitions).map(|_| rng.random_range(0..repetitions)).collect();
                let of =
                    |s: &usize| points.iter().filter(move |p| p.0 == *s).map(|(_, x, y)| (*x, *y)).collect::<Vec<_>>();
                least_squares(some.iter().flat_map(of))
            })
            .collect();
        drawn.sort_by(f64::total_cmp);
        let at = |q: f64| drawn[((drawn.len() - 1) as f64 * q).round() as usize];
        let (low, high) = (at(0.025), at(0.975));
        Some(Self { what: String::new(), measured, low, high, bound: f64::NAN, source: String::new() })
    }
}

fn least_squares(points: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let points: Vec<(f64, f64)> = points.collect();
    let n = points.len() as f64;
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let square: f64 = points.iter().map(|p| (p.0 - mx).powi(2)).sum();
    (square > 0.0).then(|| points.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum::<f64>() / square)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn powers_have_their_exponent() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let points: Vec<(usize, f64, f64)> = (0..5)
            .flat_map(|s| [1.0f64, 2.0, 5.0].map(|x| (s, x, 3.0 * x.powf(-0.5) * (1.0 + 0.1 * s as f64))))
            .collect();
        let slope = Slope::of(&points, &mut rng).unwrap();
        assert!(
            (slope.measured + 0.5).abs() < 1e-12 && (slope.low + 0.5).abs() < 1e-9 && (slope.high + 0.5).abs() < 1e-9
        );
        assert!(Slope::of(&points[..1], &mut rng).is_none() && Slope::of(&[(0, -1.0, 2.0)], &mut rng).is_none());
    }
}
