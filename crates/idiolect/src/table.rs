//! Results go to stdout; everything else goes to stderr.

/// Prints a result.
#[expect(clippy::print_stdout, reason = "this is the one place where results are printed")]
pub(crate) fn print(text: &str) {
    println!("{}", text.trim_end());
}

/// A Markdown table.
pub(crate) fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut out = line(&header.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
    out += &line(&vec!["---".to_owned(); header.len()]);
    rows.iter().for_each(|row| out += &line(row));
    out
}
