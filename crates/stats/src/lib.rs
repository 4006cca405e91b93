//! Statistics of votes that need no language model: logistic regression with a normal prior, a minimiser for smooth functions, bootstrap
//! intervals (one- and two-way), calibration, shrinkage over users, slopes of logarithms, win rates.
//!
//! ```
//! // Ten users of 20 votes each; the votes of one user are drawn together.
//! let clusters: Vec<(f64, usize)> = (0..10).map(|user| (10.0 + f64::from(user), 20)).collect();
//! let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(7);
//! let interval = stats::clustered_mean(&clusters, &mut rng).unwrap();
//! assert!(interval.low < 0.725 && 0.725 < interval.high && interval.mean == 0.725);
//! ```

mod bootstrap;
mod calibration;
mod lbfgs;
mod logistic;
mod shrink;
mod sigmoid;
mod slope;
mod two_way;
mod weights;
mod win;

pub use bootstrap::{Interval, clustered, clustered_mean};
pub use calibration::{Bin, Calibration, calibration, log_loss};
pub use lbfgs::{Minimum, Stop, minimise};
pub use logistic::{Logistic, Prior, logistic, logistic_from};
pub use shrink::{Population, Shrunk, shrink};
pub use sigmoid::{sigmoid, softplus};
pub use slope::Slope;
pub use two_way::{Cell, Each, two_way_mean};
pub use weights::relative_weights;
pub use win::{Contest, distinct_n, half_for_equal, length_controlled, win_rate};
