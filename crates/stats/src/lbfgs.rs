//! Limited-memory BFGS (Nocedal and Wright 2006, algorithm 7.4) with a bisecting weak-Wolfe line search (Lewis and Overton 2013):
//! for smooth functions whose gradient costs little, where a library's clones and trait objects would cost more than the gradient.

/// Where it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// Its value.
    pub value: f64,
    /// The largest entry of its gradient, absolute.
    pub gradient: f64,
    /// Values and gradients computed.
    pub evaluations: usize,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// No entry of the gradient is larger.
    pub gradient: f64,
    /// Evaluations, at most.
    pub evaluations: usize,
}

const MEMORY: usize = 10;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A local minimum of `f` from `x`; `f` writes its gradient into its second argument.
pub fn minimise(mut f: impl FnMut(&[f64], &mut [f64]) -> f64, x: Vec<f64>, stop: Stop) -> Minimum {
    let n = x.len();
    let (mut x, mut gradient) = (x, vec![0.0; n]);
    let mut value = f(&x, &mut gradient);
    let mut evaluations = 1;
    let mut pairs: Vec<(Vec<f64>, Vec<f64>, f64)> = Vec::new(); // steps, changes of the gradient, 1 / their product
    let (mut next, mut slope) = (vec![0.0; n], vec![0.0; n]);
    loop {
        let largest = gradient.iter().fold(0f64, |a, g| a.max(g.abs()));
        if largest <= stop.gradient || evaluations >= stop.evaluations {
            return Minimum { x, value, gradient: largest, evaluations };
        }
        let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut shares = Vec::with_capacity(pairs.len());
        for (s, y, rho) in pairs.iter().rev() {
            let a = rho * dot(s, &direction);
            direction.iter_mut().zip(y).for_each(|(d, y)| *d -= a * y);
            shares.push(a);
        }
        if let Some((s, y, _)) = pairs.last() {
            let scale = dot(s, y) / dot(y, y);
            direction.iter_mut().for_each(|d| *d *= scale);
        }
        for ((s, y, rho), a) in pairs.iter().zip(shares.iter().rev()) {
            let b = rho * dot(y, &direction);
            direction.iter_mut().zip(s).for_each(|(d, s)| *d += (a - b) * s);
        }
        let fall = dot(&gradient, &direction);
        if fall >= 0.0 {
            // Rounding has spoilt the memory.
            if pairs.is_empty() {
                return Minimum { x, value, gradient: largest, evaluations };
            }
            pairs.clear();
            continue;
        }
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut length = if pairs.is_empty() { (1.0 / dot(&gradient, &gradient).sqrt()).min(1.0) } else { 1.0 };
        let found = loop {
            next.iter_mut().zip(&x).zip(&direction).for_each(|((n, x), d)| *n = x + length * d);
            let then = f(&next, &mut slope);
            evaluations += 1;
            if then.is_nan() || then > value + 1e-4 * length * fall {
                high = length;
            } else if dot(&slope, &direction) < 0.9 * fall {
                low = length;
            } else {
                break Some(then);
            }
            length = if high.is_finite() { f64::midpoint(low, high) } else { 2.0 * low };
            if evaluations >= stop.evaluations || high - low < 1e-12 * high {
                break None;
            }
        };
        let Some(then) = found else {
            return Minimum { x, value, gradient: largest, evaluations };
        };
        let s: Vec<f64> = next.iter().zip(&x).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = slope.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let product = dot(&s, &y);
        if product > 0.0 {
            if pairs.len() == MEMORY {
                pairs.remove(0);
            }
            pairs.push((s, y, 1.0 / product));
        }
        std::mem::swap(&mut x, &mut next);
        std::mem::swap(&mut gradient, &mut slope);
        value = then;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_bottom_of_a_quadratic_and_of_rosenbrock() {
        let stop = Stop { gradient: 1e-9, evaluations: 2000 };
        let quadratic = minimise(
            |x, g| {
                let scale = |i: usize| 10f64.powi(i as i32);
                g.iter_mut().enumerate().for_each(|(i, g)| *g = scale(i) * (x[i] - 1.0));
                x.iter().enumerate().map(|(i, x)| 0.5 * scale(i) * (x - 1.0).powi(2)).sum()
            },
            vec![5.0; 4],
            stop,
        );
        assert!(quadratic.x.iter().all(|x| (x - 1.0).abs() < 1e-8), "{quadratic:?}");
        let valley = minimise(
            |x, g| {
                let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
                (g[0], g[1]) = (-2.0 * a - 400.0 * x[0] * b, 200.0 * b);
                a * a + 100.0 * b * b
            },
            vec![-1.2, 1.0],
            stop,
        );
        assert!((valley.x[0] - 1.0).abs() < 1e-6 && valley.evaluations < 100, "{valley:?}");
    }
}
