//! A bar on a terminal, plain lines in a log.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::bars;
use crate::watch::{LINE_EVERY, Watch};

/// How far a stage is, on stderr: a bar on a terminal; elsewhere a line at most every ten seconds.
#[derive(Debug)]
pub struct Progress {
    label: String,
    total: u64,
    done: u64,
    started: Instant,
    first: u64,
    last_line: Instant,
    bar: Option<ProgressBar>,
    _watch: Watch,
}

impl Progress {
    /// Starts a bar of `total` units of which `done` were finished by an earlier run.
    pub fn new(label: &str, total: usize, done: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{msg:>24} {wide_bar} {pos}/{len} {elapsed} eta {eta}";
            let bar = ProgressBar::new(total as u64)
                .with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_position(done as u64)
                .with_message(label.to_owned());
            bar.reset_eta();
            bars::add(bar)
        });
        let now = Instant::now();
        let (total, done) = (total as u64, done as u64);
        Self {
            label: label.into(),
            total,
            done,
            started: now,
            first: done,
            last_line: now,
            bar,
            _watch: Watch::new(label),
        }
    }

    /// `done` of `total` units are done.
    pub fn reach(&mut self, done: usize, total: usize) {
        self.total = total as u64;
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
        }
        self.advance(done.saturating_sub(self.done as usize), "");
    }

    /// `units` more are done; `note` is what to say beside the bar, such as the current loss.
    pub fn advance(&mut self, units: usize, note: &str) {
        self.done += units as u64;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{} {note}", self.label));
            bar.set_position(self.done);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let elapsed = self.started.elapsed().as_secs_f64();
            let left = elapsed / (self.done - self.first).max(1) as f64 * self.total.saturating_sub(self.done) as f64;
            let (label, done, total) = (&self.label, self.done, self.total);
            tracing::info!("  {label}: {done}/{total} after {elapsed:.0} s, about {left:.0} s left {note}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bars::remove(bar);
        }
    }
}
