//! Ingestion as its users see it: files in, the canonical table and a report out.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod columns;
mod common;
mod damage;
mod endings;
mod formats;
mod ingestion;
mod layouts;
mod mutations;
mod pins;
mod properties;
#[cfg(feature = "clouds")]
mod remote;
mod sources;
mod tables;
mod texts;
