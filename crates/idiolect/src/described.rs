//! Counts of an ingestion, in words.

/// What ingestion kept and dropped.
pub(crate) fn described(report: &data::Report) -> String {
    let counts = |map: &std::collections::BTreeMap<String, usize>| {
        if map.is_empty() {
            "none".into()
        } else {
            map.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")
        }
    };
    let weightless = if report.users_without_weight.is_empty() {
        String::new()
    } else {
        format!("; users left out because all of their votes weigh 0: {}", counts(&report.users_without_weight))
    };
    let leakage = if report.leakage.is_empty() { "nothing".to_owned() } else { format!("{:?}", report.leakage) };
    format!(
        "{} rows make {} votes: {} kept of {} users, {} of them ties; dropped: {}; users below the minimum: {}, beyond the top: {}{weightless}; \
         votes by split: {}; prompts by split: {}; on two sides: {leakage}; columns that are not used: {}",
        report.rows,
        report.votes,
        report.kept,
        report.users,
        report.ties,
        counts(&report.dropped),
        report.dropped_users.len(),
        report.users_beyond_the_top,
        counts(&report.splits),
        counts(&report.prompts),
        if report.unused_columns.is_empty() { "none".to_owned() } else { report.unused_columns.join(", ") }
    )
}
