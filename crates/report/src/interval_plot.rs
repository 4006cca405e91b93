//! Means with their intervals as SVG.

use plotters::prelude::*;
use problem::Result;

use crate::plot::failed;

/// Sizes in pixels: a panel, a row, what stands above and below the rows, and between names and the first panel.
const PANEL: u32 = 320;
const ROW: u32 = 24;
const AROUND: u32 = 110;
const NAMES: u32 = 170;

/// Names below each other, and beside them in every panel a dot with a line from `low` to `high`, for those who have `(mean, low, high)`. A thin
/// line stands at zero.
pub fn interval_plot(title: &str, names: &[String], panels: &[(String, Vec<Option<[f64; 3]>>)]) -> Result<String> {
    let failed = |e: &dyn std::fmt::Display| failed(title, &e);
    let rows = names.len();
    let mut drawing = String::new();
    {
        let size = (NAMES + PANEL * panels.len() as u32, AROUND + ROW * rows as u32);
        let root = SVGBackend::with_string(&mut drawing, size).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        let below = root.titled(title, ("sans-serif", 20)).map_err(|e| failed(&e))?;
        let (mut left, mut rest) = below.split_horizontally(NAMES + PANEL);
        for (p, (x, values)) in panels.iter().enumerate() {
            let all = || values.iter().flatten().flatten().copied();
            let (low, high) = all().fold((0.0, 0.0), |(l, h): (f64, f64), v| (l.min(v), h.max(v)));
            let margin = if high > low { 0.06 * (high - low) } else { 0.5 };
            let mut chart = ChartBuilder::on(&left)
                .margin(10)
                .x_label_area_size(44)
                .y_label_area_size(if p == 0 { NAMES - 10 } else { 0 })
                .build_cartesian_2d((low - margin)..(high + margin), (0..rows.max(1) - 1).into_segmented())
                .map_err(|e| failed(&e))?;
            // The first name is at the top.
            let place = |row: usize| SegmentValue::CenterOf(rows - 1 - row);
            let name = |at: &SegmentValue<usize>| match at {
                SegmentValue::CenterOf(i) if *i < rows => names[rows - 1 - i].clone(),
                _ => String::new(),
            };
            chart
                .configure_mesh()
                .disable_y_mesh()
                .x_desc(x)
                .x_labels(6)
                .x_label_formatter(&|x| format!("{}", (x * 1e3).round() / 1e3 + 0.0)) // no "-0"
                .y_labels(rows)
                .y_label_formatter(&name)
                .draw()
                .map_err(|e| failed(&e))?;
            let zero = [(0.0, SegmentValue::Exact(0)), (0.0, SegmentValue::Last)];
            chart.draw_series(LineSeries::new(zero, BLACK.mix(0.6))).map_err(|e| failed(&e))?;
            for (row, [mean, low, high]) in values.iter().enumerate().filter_map(|(row, v)| Some((row, (*v)?))) {
                let line = [(low, place(row)), (high, place(row))];
                chart.draw_series(LineSeries::new(line, BLUE.stroke_width(2))).map_err(|e| failed(&e))?;
                chart.draw_series([Circle::new((mean, place(row)), 4, BLUE.filled())]).map_err(|e| failed(&e))?;
            }
            drop(chart);
            (left, rest) = rest.split_horizontally(PANEL);
        }
        root.present().map_err(|e| failed(&e))?;
    }
    Ok(drawing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_every_interval_is_drawn() {
        let names = ["one".to_owned(), "two".into(), "three".into()];
        let first = vec![Some([0.1, -0.1, 0.3]), None, Some([0.2, 0.1, 0.4])];
        let panels = [("accuracy".to_owned(), first), ("loss".to_owned(), vec![Some([-0.5, -0.6, -0.4]); 3])];
        let drawn = interval_plot("methods", &names, &panels).unwrap();
        assert!(["methods", "one", "two", "three", "accuracy", "loss"].iter().all(|word| drawn.contains(word)));
        assert_eq!(drawn.matches("<circle").count(), 5, "two and three intervals");
        interval_plot("none", &[], &[]).unwrap();
    }
}
