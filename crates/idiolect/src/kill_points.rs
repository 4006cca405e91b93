//! For the tests alone, who ask for the feature `kill-points`: the process dies at a known point, without cleaning up.

/// `IDIOLECT_ABORT_AFTER=<stage>:<n>` makes the process die right after the n-th checkpoint of a stage.
pub(crate) fn abort_where_asked(stage: &str, checkpoint: usize) {
    let here = format!("{stage}:{checkpoint}");
    if std::env::var("IDIOLECT_ABORT_AFTER").is_ok_and(|wanted| wanted == here) {
        tracing::warn!("aborting after checkpoint {here}, as IDIOLECT_ABORT_AFTER asks");
        std::process::abort();
    }
}
