//! What a reader is shown: Markdown tables, and plots as SVG. Every function returns a string, and whoever calls it writes the file.
//!
//! ```
//! let table = report::markdown(&["user", "votes"], &[vec!["ann".into(), "12".into()]]);
//! assert_eq!(table, "| user | votes |\n| --- | --- |\n| ann | 12 |\n");
//! ```

mod interval_plot;
mod plot;
mod table;

pub use interval_plot::interval_plot;
pub use plot::{Series, bar_plot, line_plot, log_plot};
pub use table::markdown;
