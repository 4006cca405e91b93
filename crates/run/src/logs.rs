//! What the program says: lines on stderr, as text or JSON, and every stage's `log.txt`.
//!
//! [`start`] is called once by the program. `RUST_LOG` filters as usual (`RUST_LOG=debug`, `RUST_LOG=policy=trace,info`);
//! the default is `info`, and how the program ends is always said. Spans are `pipeline`, `cell`, `stage`, `phase` and `step`. A phase that says nothing for ten seconds is
//! reported by a thread, so that a log never stays silent for long.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use problem::{Result, invalid};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, fmt as format};

use crate::bars;
use crate::watch::{LINE_EVERY, Watch, lock, newest};

/// How lines on stderr look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Sentences.
    Text,
    /// One JSON object a line, with time, level, fields and spans: for clusters.
    Json,
}

/// Installs the logs of this process and the thread that reports silent phases.
///
/// # Errors
/// A `RUST_LOG` that cannot be read.
pub fn start(log_format: LogFormat) -> Result<()> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "info".into());
    let (filter, refused) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)), // so that the error itself is said
    };
    // Whatever is filtered, the last word of the program is said: why it failed, and who was left out.
    let filter = filter.add_directive("idiolect::exit=warn".parse().expect("a directive"));
    let stderr = match log_format {
        LogFormat::Text => format::layer()
            .event_format(Sentences { log: false })
            .log_internal_errors(false)
            .with_writer(|| Stderr)
            .boxed(),
        LogFormat::Json => {
            format::layer().json().with_current_span(false).log_internal_errors(false).with_writer(|| Stderr).boxed()
        }
    };
    let log = format::layer()
        .event_format(Sentences { log: true })
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(|| StageLog);
    let all = tracing_subscriber::registry().with(filter).with(stderr).with(log).with(LastLine);
    // A second call in one process (in tests) changes nothing.
    if tracing::subscriber::set_global_default(all).is_ok() {
        std::thread::spawn(report_silence);
    }
    refused.map_or(Ok(()), |error| {
        let hint = "such as RUST_LOG=debug or RUST_LOG=policy=trace,info";
        Err(invalid("RUST_LOG", "a filter of levels by module", format!("`{wanted}` ({error})"), hint))
    })
}

/// Where the lines of the stage that runs go beside stderr.
static STAGE_LOG: Mutex<Option<File>> = Mutex::new(None);

/// From now on lines are appended to `path` too, until [`close_stage_log`] or the next stage's.
pub(crate) fn open_stage_log(path: &Path) -> Result<()> {
    let file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    *lock(&STAGE_LOG) = Some(file.into_parts().0);
    Ok(())
}

/// Lines go to stderr alone again: the stage ended, well or not.
pub fn close_stage_log() {
    *lock(&STAGE_LOG) = None;
}

struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A reader that has gone, such as `head`, must not end the run.
        _ = bars::above_bars(|| io::stderr().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

struct StageLog;

impl Write for StageLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full disk is reported by what the stage itself writes.
        if let Some(file) = lock(&STAGE_LOG).as_mut() {
            _ = file.write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `message`, with `warning: ` or `error: ` in front and a hint on its own line; in a log with time, level and spans in front.
struct Sentences {
    log: bool,
}

impl<S, N> FormatEvent<S, N> for Sentences
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let level = *event.metadata().level();
        if self.log {
            SystemTime.format_time(&mut out)?;
            write!(out, " {level:>5} ")?;
            for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
                write!(out, "{}", span.name())?;
                let extensions = span.extensions();
                if let Some(fields) = extensions.get::<format::FormattedFields<N>>().filter(|f| !f.is_empty()) {
                    write!(out, "{{{fields}}}")?;
                }
                out.write_str(": ")?;
            }
        } else {
            match level {
                Level::ERROR => out.write_str("error: ")?,
                Level::WARN => out.write_str("warning: ")?,
                _ => {}
            }
        }
        writeln!(out, "{}{}", said.message, said.fields)?;
        if let Some(hint) = said.hint {
            writeln!(out, "hint: {hint}")?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Said {
    message: String,
    fields: String,
    hint: Option<String>,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields += &format!(" {name}={value:?}"),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "hint" => self.hint = Some(value.to_owned()),
            "message" => value.clone_into(&mut self.message),
            name => self.fields += &format!(" {name}={value}"),
        }
    }
}

/// When something was last said.
static LAST_LINE: Mutex<Option<Instant>> = Mutex::new(None);

struct LastLine;

impl<S: Subscriber> Layer<S> for LastLine {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        *lock(&LAST_LINE) = Some(Instant::now());
    }
}

/// A named part of a stage's work, until it is dropped: a span, and a line whenever it is silent for ten seconds.
#[must_use = "a phase ends when it is dropped"]
#[derive(Debug)]
pub struct Phase {
    _span: tracing::span::EnteredSpan,
    _watch: Watch,
}

/// Begins a phase; `name` says what is done, such as `log-probabilities of the reference`.
pub fn phase(name: &str) -> Phase {
    Phase { _span: tracing::info_span!("phase", phase = name).entered(), _watch: Watch::new(name) }
}

/// Begins a step of a training loop: a span, until it is dropped.
#[must_use = "a step ends when it is dropped"]
pub fn step(number: usize) -> tracing::span::EnteredSpan {
    tracing::info_span!("step", step = number).entered()
}

fn report_silence() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let Some((name, since)) = newest() else { continue };
        let last_line = *lock(&LAST_LINE);
        let on_screen = io::stderr().is_terminal() && bars::has_bar();
        if !is_silent(since, last_line, Instant::now()) {
            continue;
        }
        if on_screen {
            *lock(&LAST_LINE) = Some(Instant::now()); // the bar says it, and the log is told below
            _ = writeln!(StageLog, "  {name}: running for {:.0} s", since.elapsed().as_secs_f64());
        } else {
            tracing::info!("  {name}: running for {:.0} s", since.elapsed().as_secs_f64());
        }
    }
}

/// Has nothing been said for ten seconds of what has run since `since`?
fn is_silent(since: Instant, last_line: Option<Instant>, now: Instant) -> bool {
    let quiet_since = last_line.map_or(since, |last| last.max(since));
    now.duration_since(quiet_since) >= LINE_EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_silent_after_ten_seconds_without_a_line() {
        let since = Instant::now();
        let after = |seconds| since + Duration::from_secs(seconds);
        assert!(!is_silent(since, None, after(9)) && is_silent(since, None, after(10)));
        assert!(!is_silent(since, Some(after(5)), after(14)) && is_silent(since, Some(after(5)), after(15)));
        // A line from before it began says nothing about it.
        assert!(!is_silent(after(20), Some(since), after(29)) && is_silent(after(20), Some(since), after(30)));
    }
}
