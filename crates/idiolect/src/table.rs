//! Results go to stdout; everything else goes to stderr.

use std::io::{ErrorKind, Write};

use problem::Result;

/// Prints a result. A reader that has seen enough, such as `head`, is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(problem::Problem::from(error).within("stdout")),
        _ => Ok(()),
    }
}

/// Says something in a dialogue: to stderr, whatever the log's filter; a reader that has gone is no failure.
pub(crate) fn say(text: &str) {
    _ = writeln!(std::io::stderr(), "{text}");
}
