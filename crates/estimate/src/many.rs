//! Many people's tastes at once: eight Newton iterations side by side in one processor's vector lanes, groups on all cores. The
//! optimum is that of [`stats::logistic()`].

#![expect(
    clippy::inline_always,
    reason = "what is not inlined into the dispatch is compiled without its vector instructions"
)]
#![expect(clippy::needless_range_loop, reason = "lanes and rows are counted side by side")]

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use stats::Prior;

use crate::taste::Judgements;

/// People side by side.
const LANES: usize = 8;
type Lanes = [f64; LANES];

const STEPS: usize = 100;
const HALVINGS: usize = 40;
/// Newton decrement, as a share of the loss, from which on the last step is taken.
const NEAR: f64 = 1e-9;

/// The modes `[d]` of everybody's taste under one prior, in the order of `people`.
///
/// # Panics
/// If somebody's votes have another number of features than the prior, or its precision is not positive definite.
pub fn modes(prior: &Prior, people: &[Judgements]) -> Vec<Vec<f64>> {
    let d = prior.mean.len();
    assert!(people.iter().all(|p| p.dimension() == d), "votes on the prior's features");
    // Who has about as many votes goes together: the others' places are filled with votes that weigh nothing.
    let mut order: Vec<usize> = (0..people.len()).collect();
    order.sort_by_key(|i| people[*i].len());
    let found: Vec<Vec<Vec<f64>>> = order
        .par_chunks(LANES)
        .map_init(
            || Room::new(prior),
            |room, group| {
                let own: Vec<&Judgements> = group.iter().map(|i| &people[*i]).collect();
                room.fill(&own);
                Arch::new().dispatch(Newton(room));
                (0..group.len()).map(|l| room.mode.iter().map(|m| m[l]).collect()).collect()
            },
        )
        .collect();
    let mut out = vec![Vec::new(); people.len()];
    for (i, mode) in order.into_iter().zip(found.into_iter().flatten()) {
        out[i] = mode;
    }
    out
}

/// `sum + a b`, lane by lane, rounded once.
#[inline(always)]
fn add_product(mut sum: Lanes, a: &Lanes, b: &Lanes) -> Lanes {
    for l in 0..LANES {
        sum[l] = a[l].mul_add(b[l], sum[l]);
    }
    sum
}

/// `sum - a b`
#[inline(always)]
fn subtract_product(mut sum: Lanes, a: &Lanes, b: &Lanes) -> Lanes {
    for l in 0..LANES {
        sum[l] = (-a[l]).mul_add(b[l], sum[l]);
    }
    sum
}

/// `ln(1 + e)` for `e` from 0 to 1, to rounding: twice the series of atanh at `e / (2 + e)`, which is at most a third. A call of the library's would
/// leave the vector.
#[inline(always)]
fn ln_1p(e: f64) -> f64 {
    let s = e / (2.0 + e);
    let square = s * s;
    let mut sum = 0.0;
    for k in (0..16).rev() {
        sum = sum * square + 1.0 / f64::from(2 * k + 1);
    }
    2.0 * s * sum
}

/// One group's numbers; a thread's own, filled again and again.
struct Room<'a> {
    prior: &'a Prior,
    d: usize,
    x: Vec<Lanes>, // [n, d]
    y: Vec<Lanes>, // [n]
    w: Vec<Lanes>, // [n]
    mode: Vec<Lanes>,
    next: Vec<Lanes>,
    step: Vec<Lanes>,
    gradient: Vec<Lanes>,
    off: Vec<Lanes>,
    curvature: Vec<Lanes>, // lower triangle, row by row; then its Cholesky factor
    slope: Vec<Lanes>,     // [n] w p (1 - p)
    residual: Vec<Lanes>,  // [n] w (p - y)
}

/// A group's steps: a type of its own, as a closure is not surely compiled with the machine's vector instructions.
struct Newton<'r, 'a>(&'r mut Room<'a>);

impl WithSimd for Newton<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.0.newton();
    }
}

impl<'a> Room<'a> {
    fn new(prior: &'a Prior) -> Self {
        let d = prior.mean.len();
        let vector = || vec![[0.0; LANES]; d];
        Self {
            prior,
            d,
            x: vec![],
            y: vec![],
            w: vec![],
            mode: vector(),
            next: vector(),
            step: vector(),
            gradient: vector(),
            off: vector(),
            curvature: vec![[0.0; LANES]; d * (d + 1) / 2],
            slope: vec![],
            residual: vec![],
        }
    }

    fn fill(&mut self, people: &[&Judgements]) {
        let most = people.iter().map(|p| p.len()).max().unwrap_or(0);
        let votes = most.next_multiple_of(4); // curvature takes four at a time
        for (room, size) in [(&mut self.x, votes * self.d), (&mut self.y, votes), (&mut self.w, votes)] {
            room.clear();
            room.resize(size, [0.0; LANES]);
        }
        for room in [&mut self.slope, &mut self.residual] {
            room.resize(votes, [0.0; LANES]);
        }
        for (lane, person) in people.iter().enumerate() {
            for (n, (x, y, w)) in person.iter().enumerate() {
                (self.y[n][lane], self.w[n][lane]) = (y, w);
                for (place, value) in self.x[n * self.d..].iter_mut().zip(x) {
                    place[lane] = *value;
                }
            }
        }
        self.mode.iter_mut().zip(self.prior.mean.iter()).for_each(|(m, p)| *m = [*p; LANES]);
    }

    #[inline(always)]
    fn newton(&mut self) {
        self.next.copy_from_slice(&self.mode);
        let mut value = self.look();
        let mut finished = [false; LANES];
        for _ in 0..STEPS {
            self.slopes();
            self.curve();
            let decrement = self.solve();
            // So near, one whole step more squares what is left, and the loss is too coarse to judge it.
            let near: Lanes = std::array::from_fn(|l| NEAR * (1.0 + value[l].abs()));
            let near: [bool; LANES] = std::array::from_fn(|l| decrement[l] < near[l]);
            // Halved until it gains a quarter of what the slope promises.
            let mut length: Lanes = std::array::from_fn(|l| if finished[l] { 0.0 } else { 1.0 });
            for _ in 0..HALVINGS {
                for ((next, mode), step) in self.next.iter_mut().zip(&self.mode).zip(&self.step) {
                    *next = std::array::from_fn(|l| mode[l] - length[l] * step[l]);
                }
                let then = self.look();
                let mut short = false;
                for l in 0..LANES {
                    if !near[l] && length[l] > 0.0 && then[l] > value[l] - 0.25 * length[l] * decrement[l] {
                        // Below a billionth it is rounding that keeps it from falling.
                        length[l] = if length[l] < 1e-9 { 0.0 } else { length[l] / 2.0 };
                        short = true;
                    }
                }
                if !short {
                    value = then;
                    break;
                }
            }
            self.mode.copy_from_slice(&self.next);
            (0..LANES).for_each(|l| finished[l] |= near[l]);
            if finished.iter().all(|f| *f) {
                return;
            }
        }
    }

    /// The loss at `next`; leaves residuals and slopes there.
    #[inline(always)]
    fn look(&mut self) -> Lanes {
        let mut loss = [0.0; LANES];
        for ((((x, y), w), residual), slope) in
            self.x.chunks_exact(self.d).zip(&self.y).zip(&self.w).zip(&mut self.residual).zip(&mut self.slope)
        {
            let mut margin = [0.0; LANES];
            for (x, b) in x.iter().zip(&self.next) {
                margin = add_product(margin, x, b);
            }
            let exponentials: Lanes = std::array::from_fn(|l| (-margin[l].abs()).exp()); // calls
            for l in 0..LANES {
                let e = exponentials[l];
                let p = if margin[l] >= 0.0 { 1.0 } else { e } / (1.0 + e);
                loss[l] += w[l] * (margin[l].max(0.0) + ln_1p(e) - y[l] * margin[l]);
                residual[l] = w[l] * (p - y[l]);
                slope[l] = w[l] * p * (1.0 - p);
            }
        }
        for (off, (b, m)) in self.off.iter_mut().zip(self.next.iter().zip(self.prior.mean.iter())) {
            *off = std::array::from_fn(|l| b[l] - m);
        }
        for i in 0..self.d {
            let mut pull = [0.0; LANES];
            for (j, off) in self.off.iter().enumerate() {
                let p = self.prior.precision[(i, j)];
                for l in 0..LANES {
                    pull[l] += p * off[l];
                }
            }
            for l in 0..LANES {
                loss[l] += 0.5 * self.off[i][l] * pull[l];
            }
            self.gradient[i] = pull;
        }
        loss
    }

    /// The gradient at the point that was looked at last.
    #[inline(always)]
    fn slopes(&mut self) {
        for (x, residual) in self.x.chunks_exact(self.d).zip(&self.residual) {
            for (g, x) in self.gradient.iter_mut().zip(x) {
                *g = add_product(*g, residual, x);
            }
        }
    }

    /// The second derivative there, lower triangle.
    #[inline(always)]
    fn curve(&mut self) {
        let d = self.d;
        let mut at = 0;
        for i in 0..d {
            for j in 0..=i {
                self.curvature[at] = [self.prior.precision[(i, j)]; LANES];
                at += 1;
            }
        }
        for (x, slope) in self.x.chunks_exact(4 * d).zip(self.slope.chunks_exact(4)) {
            let (x0, rest) = x.split_at(d);
            let (x1, rest) = rest.split_at(d);
            let (x2, x3) = rest.split_at(d);
            let mut at = 0;
            for i in 0..d {
                let scaled = |x: &[Lanes], s: usize| -> Lanes { std::array::from_fn(|l| slope[s][l] * x[i][l]) };
                let (a0, a1, a2, a3) = (scaled(x0, 0), scaled(x1, 1), scaled(x2, 2), scaled(x3, 3));
                let row = &mut self.curvature[at..=at + i];
                for ((((h, x0), x1), x2), x3) in row.iter_mut().zip(x0).zip(x1).zip(x2).zip(x3) {
                    *h = add_product(add_product(add_product(add_product(*h, &a0, x0), &a1, x1), &a2, x2), &a3, x3);
                }
                at += i + 1;
            }
        }
    }

    /// Newton's step, and the gradient along it.
    #[inline(always)]
    fn solve(&mut self) -> Lanes {
        let d = self.d;
        let start = |i: usize| i * (i + 1) / 2;
        for i in 0..d {
            for j in 0..=i {
                let (before, row) = self.curvature.split_at_mut(start(i));
                let mut sum = row[j];
                if i == j {
                    for row in &row[..j] {
                        sum = subtract_product(sum, row, row);
                    }
                    row[j] = std::array::from_fn(|l| sum[l].sqrt());
                } else {
                    let other = &before[start(j)..];
                    for (row, other) in row[..j].iter().zip(other) {
                        sum = subtract_product(sum, row, other);
                    }
                    row[j] = std::array::from_fn(|l| sum[l] / other[j][l]);
                }
            }
        }
        for i in 0..d {
            let row = &self.curvature[start(i)..start(i + 1)];
            let mut sum = self.gradient[i];
            for k in 0..i {
                for l in 0..LANES {
                    sum[l] -= row[k][l] * self.step[k][l];
                }
            }
            self.step[i] = std::array::from_fn(|l| sum[l] / row[i][l]);
        }
        for i in (0..d).rev() {
            let mut sum = self.step[i];
            for k in i + 1..d {
                let factor = &self.curvature[start(k) + i];
                for l in 0..LANES {
                    sum[l] -= factor[l] * self.step[k][l];
                }
            }
            let diagonal = &self.curvature[start(i) + i];
            self.step[i] = std::array::from_fn(|l| sum[l] / diagonal[l]);
        }
        let mut decrement = [0.0; LANES];
        for (g, s) in self.gradient.iter().zip(&self.step) {
            for l in 0..LANES {
                decrement[l] += g[l] * s[l];
            }
        }
        decrement
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::taste::Taste;
    use nalgebra::{DMatrix, DVector};
    use rand::{Rng, SeedableRng};
    use stats::logistic;

    #[test]
    fn the_logarithm_is_the_librarys() {
        for i in 0..=1000 {
            let e = f64::from(i) / 1000.0;
            assert!((ln_1p(e) - e.ln_1p()).abs() <= 4e-16, "{e}");
        }
        assert!((ln_1p(1e-300) / 1e-300 - 1.0).abs() < 1e-15);
    }

    #[test]
    fn everybody_gets_what_they_would_get_alone() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(4);
        let d = 5;
        let root = DMatrix::from_fn(d, d, |_, _| rng.random_range(-0.5..0.5));
        let prior = Prior {
            mean: DVector::from_fn(d, |_, _| rng.random_range(-1.0..1.0)),
            precision: root.transpose() * &root + DMatrix::identity(d, d) * 0.05,
        };
        // No votes, one, few, many; features of all sizes; votes that can be told apart without error; ties and weights.
        let people: Vec<Judgements> = (0..37)
            .map(|u| {
                let mut own = Judgements::new(d);
                let size = [0.1, 1.0, 30.0][u % 3];
                for n in 0..[0, 1, 3, 20, 61][u % 5] {
                    let x: Vec<f64> = (0..d).map(|_| size * rng.random_range(-1.0..1.0)).collect();
                    let y = if u % 2 == 0 { f64::from(u8::from(x[0] > 0.0)) } else { [0.0, 1.0, 0.5][n % 3] };
                    own.push(&x, y, [1.0, 2.5][n % 2]);
                }
                own
            })
            .collect();
        let together = modes(&prior, &people);
        for (own, mode) in people.iter().zip(&together) {
            let alone = Taste::of(&prior, own).mean;
            let apart = (DVector::from_column_slice(mode) - &alone).norm();
            assert!(apart < 1e-7 * (1.0 + alone.norm()), "{} votes: {apart}", own.len());
        }
        // Somebody more changes nobody's taste, not by a bit.
        let mut more = people[..3].to_vec();
        more.extend(people[20..21].to_vec());
        assert_eq!(modes(&prior, &people[..3])[..3], modes(&prior, &more)[..3]);
        let fit = logistic(&people[3].matrix(), &[1.0; 20], &[1.0; 20], &prior);
        assert!(fit.steps < 50);
    }
}
