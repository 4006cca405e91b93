//! Tables as Markdown.

/// A Markdown table.
pub fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut out = line(&header.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
    out += &line(&vec!["---".to_owned(); header.len()]);
    rows.iter().for_each(|row| out += &line(row));
    out
}
