//! Plots as SVG, for people who would rather look.

use std::path::Path;

use plotters::prelude::*;

use crate::{Error, Result};

const SIZE: (u32, u32) = (720, 440);

fn failed(path: &Path, error: &impl std::fmt::Display) -> Error {
    Error::Io(std::io::Error::other(format!("{}: the plot could not be drawn: {error}", path.display())))
}

/// Bars over bins: `bins` holds each bin's label and count.
pub fn bar_plot(path: &Path, title: &str, x: &str, y: &str, bins: &[(String, f64)]) -> Result<()> {
    let mut drawing = String::new();
    let top = bins.iter().map(|(_, n)| *n).fold(1.0, f64::max) * 1.05;
    {
        let root = SVGBackend::with_string(&mut drawing, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(path, &e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0..bins.len().max(1), 0.0..top)
            .map_err(|e| failed(path, &e))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_labels(bins.len().min(20))
            .x_label_formatter(&|i| bins.get(*i).map_or(String::new(), |(label, _)| label.clone()))
            .draw()
            .map_err(|e| failed(path, &e))?;
        chart
            .draw_series(bins.iter().enumerate().map(|(i, (_, n))| {
                let mut bar = Rectangle::new([(i, 0.0), (i + 1, *n)], BLUE.mix(0.6).filled());
                bar.set_margin(0, 0, 1, 1);
                bar
            }))
            .map_err(|e| failed(path, &e))?;
        root.present().map_err(|e| failed(path, &e))?;
    }
    crate::write_atomic(path, drawing.as_bytes())
}
