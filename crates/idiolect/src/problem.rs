//! Errors as the user sees them: what is wrong and where, then a hint, then the exit code.

use std::process::ExitCode;

/// Something of the user's that is not as it must be.
#[derive(Debug)]
pub(crate) struct Problem {
    message: String,
    hint: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

/// Everything is done, but for users whose training was stopped: stage, user, why.
#[derive(Debug)]
pub(crate) struct Quarantined(pub(crate) Vec<(String, String, String)>);

impl std::fmt::Display for Quarantined {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let each = self.0.iter().map(|(stage, user, why)| format!("{stage}, `{user}`: {why}"));
        write!(f, "finished with users in quarantine: {}", each.collect::<Vec<_>>().join("; "))
    }
}

impl std::error::Error for Quarantined {}

/// An error of the user's, with its remedy.
pub(crate) fn problem(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Problem { message: message.into(), hint: hint.into() })
}

/// Refuses a folder to write that is there already.
pub(crate) fn refuse_folder(out: &std::path::Path) -> anyhow::Result<()> {
    if out.exists() {
        let message = format!("{}: expected a new folder, found one that exists", out.display());
        return Err(problem(message, "name another folder"));
    }
    Ok(())
}

/// The hint of whichever of our errors is in the chain.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|e| {
        None.or_else(|| e.downcast_ref::<Problem>().map(|e| Some(e.hint.clone())))
            .or_else(|| e.downcast_ref::<std::io::Error>().map(run::file_hint))
            .or_else(|| e.downcast_ref::<data::Error>().map(data::Error::hint))
            .or_else(|| e.downcast_ref::<text::Error>().map(text::Error::hint))
            .or_else(|| e.downcast_ref::<run::Error>().map(run::Error::hint))
            .or_else(|| e.downcast_ref::<lm::Error>().map(lm::Error::hint))
            .or_else(|| e.downcast_ref::<policy::Error>().map(policy::Error::hint))
            .or_else(|| e.downcast_ref::<study::Error>().map(study::Error::hint))
            .flatten()
    })
}

/// Prints the error and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(finished) = error.downcast_ref::<Quarantined>() {
        eprintln!("{finished}");
        return ExitCode::from(3);
    }
    let hint = hint(error);
    let mut message = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Transparent wrappers repeat their source's words.
        if !message.ends_with(&cause) {
            message = if message.is_empty() { cause } else { format!("{message}: {cause}") };
        }
    }
    eprintln!("error: {message}");
    if let Some(hint) = &hint {
        eprintln!("hint: {hint}");
    }
    if hint.is_some() { ExitCode::from(2) } else { ExitCode::FAILURE }
}
