//! Line charts as SVG: a grid of panels that share a style. Text is text, so that a page can restyle or search it.

use std::fmt::Write;

/// One panel.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x_label: String,
    pub(crate) series: Vec<Series>,
}

/// A named line through points, drawn from left to right. Points that are no numbers are left out.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Of a panel, in pixels.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 290.0;
/// Of the plot within it: left, top, right, bottom.
const MARGINS: [f64; 4] = [56.0, 34.0, 14.0, 68.0];
/// Told apart by the colour-blind too, and in print by their dashes.
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#555555",
];
const DASHES: [&str; 3] = ["none", "6 3", "2 3"];

/// The panels as one SVG document, `columns` side by side.
pub(crate) fn document(charts: &[Chart], columns: usize) -> String {
    let columns = columns.clamp(1, charts.len().max(1));
    let rows = charts.len().div_ceil(columns);
    let (width, height) = (WIDTH * columns as f64, HEIGHT * rows as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (i, chart) in charts.iter().enumerate() {
        let (x, y) = (WIDTH * (i % columns) as f64, HEIGHT * (i / columns) as f64);
        let panel = panel(chart);
        let _ = writeln!(out, "<g transform=\"translate({x} {y})\">\n{panel}</g>");
    }
    out + "</svg>\n"
}

fn panel(chart: &Chart) -> String {
    let [left, top, right, bottom] = MARGINS;
    let is_number = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let points = || {
        chart
            .series
            .iter()
            .flat_map(|s| s.points.iter().filter(is_number))
    };
    let x_ticks = Ticks::over(points().map(|p| p.0));
    let y_ticks = Ticks::over(points().map(|p| p.1));
    let at_x = |x: f64| left + x_ticks.share(x) * (WIDTH - left - right);
    let at_y = |y: f64| HEIGHT - bottom - y_ticks.share(y) * (HEIGHT - top - bottom);

    let mut out = String::new();
    let mut line = |s: String| {
        out.push_str(&s);
        out.push('\n');
    };
    line(format!(
        "<text x=\"{left}\" y=\"20\" font-size=\"13\" font-weight=\"bold\">{}</text>",
        escaped(&chart.title)
    ));
    for y in y_ticks.values() {
        let at = at_y(y);
        line(format!(
            "<path d=\"M{left} {at:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - right,
            left - 6.0,
            at + 4.0,
            y_ticks.label(y)
        ));
    }
    for x in x_ticks.values() {
        line(format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            at_x(x),
            HEIGHT - bottom + 15.0,
            x_ticks.label(x)
        ));
    }
    line(format!(
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        left + (WIDTH - left - right) / 2.0,
        HEIGHT - bottom + 31.0,
        escaped(&chart.x_label)
    ));
    let slot = (WIDTH - left - right) / chart.series.len().max(1) as f64;
    for (i, series) in chart.series.iter().enumerate() {
        let (colour, dash) = (COLOURS[i % COLOURS.len()], DASHES[i % DASHES.len()]);
        let style = format!("stroke=\"{colour}\" stroke-width=\"1.8\" stroke-dasharray=\"{dash}\"");
        let shown: Vec<&(f64, f64)> = series.points.iter().filter(is_number).collect();
        let path: Vec<String> = shown
            .iter()
            .map(|p| format!("{:.1} {:.1}", at_x(p.0), at_y(p.1)))
            .collect();
        if !path.is_empty() {
            line(format!(
                "<path d=\"M{}\" fill=\"none\" {style}/>",
                path.join("L")
            ));
        }
        for (p, (x, y)) in path.iter().zip(shown) {
            let (px, py) = p.split_once(' ').unwrap_or((p, "0"));
            line(format!(
                "<circle cx=\"{px}\" cy=\"{py}\" r=\"2.2\" fill=\"{colour}\"><title>{}: {x}, {y:.4}</title></circle>",
                escaped(&series.name)
            ));
        }
        let (x, y) = (left + slot * i as f64, HEIGHT - 16.0);
        line(format!(
            "<path d=\"M{x:.1} {y}h18\" {style}/><text x=\"{:.1}\" y=\"{}\">{}</text>",
            x + 23.0,
            y + 4.0,
            escaped(&series.name)
        ));
    }
    out
}

/// Round numbers that span some values.
struct Ticks {
    first: f64,
    step: f64,
    count: usize,
}

impl Ticks {
    fn over(values: impl Iterator<Item = f64>) -> Ticks {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
        let (low, high) = match (low, high) {
            (l, h) if l < h => (l, h),
            (l, _) if l.is_finite() => (l - 0.5, l + 0.5),
            _ => (0.0, 1.0),
        };
        // 1, 2 or 5 times a power of ten, so that there are four to eight ticks or so.
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|m| m * power)
            .find(|s| *s >= rough * 0.999)
            .unwrap_or(10.0 * power);
        let first = (low / step).floor();
        Ticks {
            first: first * step,
            step,
            count: ((high / step).ceil() - first) as usize + 1,
        }
    }

    fn values(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.count).map(|i| self.first + self.step * i as f64)
    }

    /// Where a value lies between the first tick and the last.
    fn share(&self, v: f64) -> f64 {
        (v - self.first) / (self.step * (self.count - 1).max(1) as f64)
    }

    fn label(&self, v: f64) -> String {
        let digits = (-self.step.log10().floor()).clamp(0.0, 9.0) as usize;
        format!("{v:.digits$}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> Chart {
        Chart {
            title: "a < b & c".into(),
            x_label: "layer".into(),
            series: vec![Series {
                name: "\"quoted\"".into(),
                points: points.to_vec(),
            }],
        }
    }

    #[test]
    fn ticks_are_round_and_span_the_values() {
        let t = Ticks::over([0.13, 0.87].into_iter());
        let labels: Vec<String> = t.values().map(|v| t.label(v)).collect();
        assert_eq!(labels, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        let t = Ticks::over([0.0, 23.0].into_iter());
        assert_eq!(t.values().last(), Some(25.0));
        assert!((Ticks::over([7.0].into_iter()).share(7.0) - 0.5).abs() < 0.3);
    }

    #[test]
    fn text_is_escaped_and_every_panel_is_there() {
        let svg = document(&[chart(&[(0.0, 1.0), (1.0, 2.0)]), chart(&[])], 2);
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("&quot;quoted&quot;"));
        assert_eq!(svg.matches("<g ").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.ends_with("</svg>\n") && svg.contains("viewBox=\"0 0 880 290\""));
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let svg = document(
            &[chart(&[(0.0, f64::NAN), (1.0, 2.0), (2.0, f64::INFINITY)])],
            1,
        );
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
