//! The papers' theories and studies, on synthetic users whose preferences are known and on given embeddings of real votes.
//!
//! Every study has a struct with its sizes, a `run` that gives one row for each method and repetition, and a function that writes the
//! rows, a summary with intervals and plots into a folder and gives the tables as Markdown: [`ShareLoraLab`] and [`write_share_lora`]
//! (P-ShareLoRA), [`RfmLab`] and [`write_rfm`] (RFM), [`LocoLab`] and [`write_loco`] (LoCo-RLHF), [`PessimismLab`] and
//! [`write_pessimism`] (when pessimism pays), [`HeldOutStudy`] and [`write_held_out`] (held-out users on real votes).
//!
//! ```
//! let lab = lab::PessimismLab { seeds: 1, users: 2, votes: vec![10], ..lab::PessimismLab::default() };
//! let rows = lab.run(|name| run::rng(7, &["example", name]), |_, _| ());
//! assert_eq!(rows.len(), 2 * 4 * 8); // priors, coefficients, divergences
//! ```

mod baselines;
mod held_out_tables;
mod held_out_users;
mod loco;
mod loco_tables;
mod pessimism;
mod pessimism_tables;
mod rfm;
mod rfm_tables;
mod share_lora;
mod share_lora_tables;
mod summary;

pub use baselines::{Mixture, Network, Simplex, calibrated};
pub use held_out_tables::write_held_out;
pub use held_out_users::{EmbeddedVote, HeldOutRow, HeldOutStudy};
pub use loco::{Deployment, LocoLab, LocoRow};
pub use loco_tables::write_loco;
pub use pessimism::{PessimismLab, PessimismRow, tilted};
pub use pessimism_tables::write_pessimism;
pub use rfm::{RfmLab, RfmRow, Served};
pub use rfm_tables::write_rfm;
pub use share_lora::{LabRow, NO_TAIL, ShareLoraLab, slopes};
pub use share_lora_tables::write_share_lora;
