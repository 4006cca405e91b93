//! Bars and lines as SVG.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use problem::{Problem, Result, bug};

const SIZE: (u32, u32) = (720, 440);

pub(crate) fn failed(title: &str, error: &impl std::fmt::Display) -> Problem {
    bug(format!("the plot `{title}`"), "a plot that can be drawn", error.to_string())
}

/// Bars over bins: `bins` holds each bin's label and count.
pub fn bar_plot(title: &str, x: &str, y: &str, bins: &[(String, f64)]) -> Result<String> {
    let mut drawing = String::new();
    let top = bins.iter().map(|(_, n)| *n).fold(1.0, f64::max) * 1.05;
    {
        let root = SVGBackend::with_string(&mut drawing, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(title, &e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0..bins.len().max(1), 0.0..top)
            .map_err(|e| failed(title, &e))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_labels(bins.len().clamp(1, 20))
            .x_label_formatter(&|i| bins.get(*i).map_or(String::new(), |(label, _)| label.clone()))
            .draw()
            .map_err(|e| failed(title, &e))?;
        chart
            .draw_series(bins.iter().enumerate().map(|(i, (_, n))| {
                let mut bar = Rectangle::new([(i, 0.0), (i + 1, *n)], BLUE.mix(0.6).filled());
                bar.set_margin(0, 0, 1, 1);
                bar
            }))
            .map_err(|e| failed(title, &e))?;
        root.present().map_err(|e| failed(title, &e))?;
    }
    Ok(drawing)
}

/// A line of a plot, or dots.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
    /// A thin line without dots, such as what a theory predicts.
    pub reference: bool,
}

/// Lines over logarithmic axes; points that are not positive are left out.
pub fn log_plot(title: &str, x: &str, y: &str, series: &[Series]) -> Result<String> {
    let series: Vec<Series> = kept(series, |v| v > 0.0);
    let [xs, ys] = ranges(&series).map(|(low, high)| if low > 0.0 { (low / 1.3)..(high * 1.3) } else { 0.1..1.0 });
    draw(title, x, y, &series, xs.log_scale(), ys.log_scale())
}

/// Lines over ordinary axes.
pub fn line_plot(title: &str, x: &str, y: &str, series: &[Series]) -> Result<String> {
    let series = kept(series, |_| true);
    let [xs, ys] = ranges(&series).map(|(low, high)| {
        let margin = if high > low { 0.04 * (high - low) } else { 0.5 };
        (low - margin)..(high + margin)
    });
    draw(title, x, y, &series, xs, ys)
}

/// Series without the points that cannot be drawn.
fn kept(series: &[Series], fits: impl Fn(f64) -> bool) -> Vec<Series> {
    let keep = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite() && fits(*x) && fits(*y);
    series.iter().map(|s| Series { points: s.points.iter().copied().filter(keep).collect(), ..s.clone() }).collect()
}

/// Smallest and largest x, and y; 0 and 0 without points.
fn ranges(series: &[Series]) -> [(f64, f64); 2] {
    let all: Vec<(f64, f64)> = series.iter().flat_map(|s| s.points.iter().copied()).collect();
    let range = |f: fn(&(f64, f64)) -> f64| {
        let ends = (f64::INFINITY, f64::NEG_INFINITY);
        let (low, high) = all.iter().map(f).fold(ends, |(l, h), v| (l.min(v), h.max(v)));
        if low.is_finite() { (low, high) } else { (0.0, 0.0) }
    };
    [range(|p| p.0), range(|p| p.1)]
}

fn draw<X, Y>(title: &str, x: &str, y: &str, series: &[Series], xs: X, ys: Y) -> Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut drawing = String::new();
    {
        let root = SVGBackend::with_string(&mut drawing, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(title, &e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(xs, ys)
            .map_err(|e| failed(title, &e))?;
        chart.configure_mesh().x_desc(x).y_desc(y).draw().map_err(|e| failed(title, &e))?;
        for (i, s) in series.iter().enumerate() {
            let colour = if s.reference { BLACK.mix(0.6) } else { Palette99::pick(i).mix(1.0) };
            let style = colour.stroke_width(if s.reference { 1 } else { 2 });
            chart
                .draw_series(LineSeries::new(s.points.clone(), style))
                .map_err(|e| failed(title, &e))?
                .label(&s.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
            if !s.reference {
                let dots = s.points.iter().map(|p| Circle::new(*p, 3, colour.filled()));
                chart.draw_series(dots).map_err(|e| failed(title, &e))?;
            }
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()
            .map_err(|e| failed(title, &e))?;
        root.present().map_err(|e| failed(title, &e))?;
    }
    Ok(drawing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_lines_and_leaves_out_what_has_no_place() {
        let series =
            |points: &[(f64, f64)], reference| Series { name: "one".into(), points: points.to_vec(), reference };
        let svg = log_plot("title", "x", "y", &[series(&[(1.0, 1.0), (10.0, 0.1), (0.0, 1.0)], false)]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("title") && svg.contains("one"));
        assert_eq!(svg.matches("<circle").count(), 2, "no zero on a logarithmic axis");
        let svg = line_plot("t", "x", "y", &[series(&[(0.0, 1.0), (f64::NAN, 1.0)], true)]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 0, "a reference has no dots");
        assert!(bar_plot("t", "x", "y", &[("few".into(), 2.0)]).unwrap().contains("few"));
        assert!(bar_plot("t", "x", "y", &[]).is_ok() && line_plot("t", "x", "y", &[]).is_ok());
    }
}
