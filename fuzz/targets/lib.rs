//! What the targets share.

/// Runs one input. It is not every panic that is a find, as libFuzzer has it (some of libraries' are caught and told as damaged
/// files), but one that gets out.
pub fn abort_on_panic(look: impl FnOnce() + std::panic::UnwindSafe) {
    if let Err(panic) = std::panic::catch_unwind(look) {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        eprintln!("a panic got out: {}", said.unwrap_or("without words"));
        std::process::abort();
    }
}
